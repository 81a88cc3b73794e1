package handoff.limits_test

import data.handoff
import data.handoff.fixture

facts(changed) := object.union(fixture.offer, {"facts": changed})

test_facts if {
	every changed, code in {
		{"deadline_ok": false}: "expired",
		{"budget_ok": false}: "budget_exhausted",
		{"hops_left": -1}: "hop_limit",
	} {
		answer := handoff.decision with input as facts(changed)
		fixture.codes(answer) == {code}
	}
}

test_caps_are_answered if {
	session := handoff.session with input as fixture.session
		with data.limits as {"session_ttl": 600, "max_hops": 3}
	session.ttl == 600
	session.max_hops == 3
	decision := handoff.decision with input as fixture.second
		with data.limits as {"grant_ttl": 60, "max_hops": 3}
	decision.ttl == 60
	decision.max_hops == 1
	none := handoff.session with input as fixture.session with data.limits as {}
	none.ttl == 0
	none.max_hops == -1
}

test_depth if {
	last := handoff.decision with input as fixture.second with data.limits as {"max_hops": 2}
	last.effect == "allow"
	last.max_hops == 0
	over := handoff.decision with input as fixture.second with data.limits as {"max_hops": 1}
	fixture.codes(over) == {"hop_limit"}
	over.reasons[0].hop == 2
}

test_sessions_ask_for_a_budget if {
	enough := handoff.session with input as fixture.session with data.limits as {"handoffs": 10}
	enough.effect == "allow"
	every budget in [{"handoffs": 11}, null] {
		input_ := object.union(object.remove(fixture.session, ["budget"]), {"budget": budget})
		answer := handoff.session with input as input_ with data.limits as {"handoffs": 10}
		fixture.codes(answer) == {"session_budget"}
	}
	free := handoff.session with input as object.union(object.remove(fixture.session, ["budget"]), {"budget": null})
	free.effect == "allow"
}
