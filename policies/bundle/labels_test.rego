package handoff.labels_test

import data.handoff
import data.handoff.fixture

pii(input_) := object.union(input_, {"labels": ["pii"]})

at_reader := {"pii": ["/agent/reader"]}

test_a_label_stays_in_its_zone if {
	allowed := handoff.decision with input as pii(fixture.offer) with data.zones as at_reader
	allowed.effect == "allow"
	denied := handoff.decision with input as pii(fixture.second) with data.zones as at_reader
	fixture.codes(denied) == {"label_zone"}
}

test_results_too if {
	denied := handoff.result with input as pii(fixture.result) with data.zones as at_reader
	fixture.codes(denied) == {"label_zone"}
	allowed := handoff.result with input as pii(fixture.result) with data.zones as {"pii": ["*"]}
	allowed.effect == "allow"
}

test_sessions_and_calls_too if {
	session := handoff.session with input as pii(fixture.session) with data.zones as at_reader
	fixture.codes(session) == {"label_zone"}
	call := handoff.call with input as pii(fixture.call) with data.zones as {"pii": ["/agent/planner"]}
	fixture.codes(call) == {"label_zone"}
}

test_a_label_without_a_zone_stays_at_home if {
	allowed := handoff.decision with input as pii(fixture.offer) with data.zones as {}
	allowed.effect == "allow"
	input_ := object.union(fixture.result, {"receiver": fixture.stranger, "labels": ["pii"]})
	abroad := handoff.result with input as input_
		with data.zones as {}
		with data.trust_domains as {"partner.example": {"send": true}}
	fixture.codes(abroad) == {"label_zone"}
	every key in ["spiffe://partner.example", fixture.stranger.id] {
		listed := handoff.result with input as input_
			with data.zones as {"pii": [key]}
			with data.trust_domains as {"partner.example": {"send": true}}
		listed.effect == "allow"
	}
}

test_a_tool_refuses_labels if {
	tools := {"crm.read": {"refuses": ["pii"]}}
	decision := handoff.decision with input as pii(fixture.offer) with data.tools as tools
	fixture.codes(decision) == {"label_tool"}
	decision.reasons[0].tool == "crm.read"
	call := handoff.call with input as pii(fixture.call) with data.tools as tools
	fixture.codes(call) == {"label_tool"}
	clean := handoff.decision with input as fixture.offer with data.tools as tools
	clean.effect == "allow"
}
