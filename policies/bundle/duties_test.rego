package handoff.duties_test

import data.handoff
import data.handoff.fixture

payments := {"payments": {"tools": ["pay.create", "pay.approve"]}}

test_not_both_in_one_handoff if {
	answer := handoff.decision with input as object.union(fixture.offer, {"tools": {"pay.create": {}, "pay.approve": {}}})
		with data.duties as payments
	fixture.codes(answer) == {"separation_of_duties"}
	count(answer.reasons) == 2
}

test_not_both_over_the_chain if {
	# reader was handed pay.create; planner handed it on and so held it.
	every name in ["reader", "planner"] {
		answer := handoff.decision with input as object.union(fixture.second, {
			"sender": fixture.agent("writer"), "receiver": fixture.agent(name),
			"tools": object.union({"pay.approve": {}}, {"crm.read": {}}),
		})
			with data.duties as payments
		fixture.codes(answer) == {"separation_of_duties"}
		answer.reasons[0].tool == "pay.approve"
	}
}

test_two_agents_may_share_a_duty if {
	answer := handoff.decision with input as object.union(fixture.second, {"tools": {"pay.approve": {}}})
		with data.duties as payments
	answer.effect == "allow"
}
