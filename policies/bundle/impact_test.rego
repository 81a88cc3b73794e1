package handoff.impact_test

import data.handoff
import data.handoff.fixture
import data.handoff.impact

test_the_worst_of_the_chain_counts if {
	answer := handoff.decision with input as fixture.second
		with data.tools as {"crm.read": {"impact": "low"}, "pay.create": {"impact": "critical"}}
		with data.impact as {"deny": "high"}
	answer.effect == "deny"
	some reason in answer.reasons
	reason.code == "impact"
	reason.tool == "pay.create"
	reason.hop == 1
	count(answer.reasons) == 1
}

test_this_handoff_counts if {
	answer := handoff.decision with input as fixture.offer
		with data.tools as {"crm.read": {"impact": "medium"}}
		with data.impact as {"deny": "medium"}
	fixture.codes(answer) == {"impact"}
	answer.reasons[0].hop == 1
}

test_below_is_allowed if {
	answer := handoff.decision with input as fixture.offer
		with data.tools as {"crm.read": {"impact": "medium"}}
		with data.impact as {"deny": "high"}
	answer.effect == "allow"
}

test_a_tool_without_a_class_is_the_worst if {
	impact.rank("x") == 4 with data.impact as {}
	impact.rank("x") == 1 with data.impact as {"unlisted": "low"}
}
