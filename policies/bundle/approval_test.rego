package handoff.approval_test

import data.handoff
import data.handoff.fixture

within := {"amount": {"constraint_type": "range", "max": 1000}}

large := {"large": {"tool": "pay.create", "within": within, "by": ["bob", "carol"]}}

paying(most) := object.union(fixture.offer, {"tools": {"pay.create": {"amount": {"constraint_type": "range", "max": most}}}})

approved_by(input_, names) := object.union(input_, {"approvals": [{"by": name} | some name in names]})

test_narrow_enough_needs_nobody if {
	answer := handoff.decision with input as paying(1000) with data.approvals as large
	answer.effect == "allow"
}

test_wider_waits if {
	answer := handoff.decision with input as paying(1001) with data.approvals as large
	answer.effect == "hold"
	answer.ceiling == null
	[reason] := answer.reasons
	reason.code == "approval_required"
	reason.tool == "pay.create"
	contains(reason.message, "bob, carol")
	contains(reason.nearest, "1000")
}

test_a_named_person_approves if {
	bob := handoff.decision with input as approved_by(paying(1001), ["bob"]) with data.approvals as large
	bob.effect == "allow"
	mallory := handoff.decision with input as approved_by(paying(1001), ["mallory"]) with data.approvals as large
	mallory.effect == "hold"
}

test_nobody_approves_their_own if {
	answer := handoff.decision with input as approved_by(paying(1001), ["alice"])
		with data.approvals as {"large": {"tool": "pay.create"}}
	answer.effect == "hold"
	contains(answer.reasons[0].message, "operators")
}

test_two_people if {
	approvals := {"a": {"label": "pii", "count": 2}}
	input_ := object.union(fixture.offer, {"labels": ["pii"]})
	every names in [[], ["bob"], ["bob", "bob"]] {
		answer := handoff.decision with input as approved_by(input_, names) with data.approvals as approvals
		answer.effect == "hold"
	}
	answer := handoff.decision with input as approved_by(input_, ["bob", "carol"]) with data.approvals as approvals
	answer.effect == "allow"
}

test_impact_anywhere_in_the_chain if {
	answer := handoff.decision with input as fixture.second
		with data.tools as {"crm.read": {"impact": "low"}, "pay.create": {"impact": "high"}}
		with data.approvals as {"a": {"impact": "high"}}
	answer.effect == "hold"
	answer.reasons[0].tool == "pay.create"
}

test_results_wait_for_their_labels if {
	input_ := object.union(fixture.result, {"labels": ["pii"]})
	held := handoff.result with input as input_ with data.approvals as {"a": {"label": "pii"}}
	held.effect == "hold"
	free := handoff.result with input as approved_by(input_, ["bob"]) with data.approvals as {"a": {"label": "pii"}}
	free.effect == "allow"
}
