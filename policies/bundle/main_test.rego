package handoff_test

import data.handoff
import data.handoff.fixture

test_shipped_data_has_no_problems if count(handoff.problems) == 0

test_shipped_data_allows_whole_inputs if {
	handoff.session == {"effect": "allow", "reasons": [], "ceiling": null, "ttl": 86400, "max_hops": -1} with input as fixture.session
	every input_ in [fixture.offer, object.union(fixture.offer, {"stage": "claim"}), fixture.second] {
		handoff.decision == {"effect": "allow", "reasons": [], "ceiling": null, "ttl": 0, "max_hops": -1} with input as input_
	}
	handoff.result == {"effect": "allow", "reasons": []} with input as fixture.result
	handoff.call == {"effect": "allow", "reasons": []} with input as fixture.call
}

test_nothing_is_said_of_an_incomplete_input if {
	every answer in [handoff.session, handoff.decision, handoff.result, handoff.call] {
		answer == handoff.incomplete
	}
}

# "If denied, why" comes before "if held, for what".
test_a_denial_outweighs_a_hold if {
	answer := handoff.decision with input as object.union(fixture.offer, {"labels": ["pii"]})
		with data.zones as {"pii": []}
		with data.approvals as {"a": {"label": "pii"}}
	answer.effect == "deny"
	fixture.codes(answer) == {"label_zone"}
}

test_reasons_are_few if {
	letters := ["a", "b", "c", "d", "e", "f", "g"]
	labels := [concat("", [one, other]) | some one in letters; some other in letters]
	answer := handoff.decision with input as object.union(fixture.offer, {"labels": labels})
		with data.zones as {label: [] | some label in labels}
	answer.effect == "deny"
	count(answer.reasons) == 32
}
