package handoff.rbac_test

import data.handoff
import data.handoff.fixture

read_seven := {"crm.read": {"id": {"constraint_type": "exact", "value": 7}}}

write := {"crm.write": {}}

roles := {"everything": {"tools": "*"}, "reader": {"tools": read_seven}, "writer": {"tools": write}}

agents := {
	"/agent/planner": {"roles": ["everything"], "hands_to": ["/agent/reader", "spiffe://partner.example"]},
	"/agent/reader": {"roles": ["reader", "writer"]},
}

test_roles_add_up_to_the_ceiling if {
	answer := handoff.decision with input as fixture.offer with data.agents as agents with data.roles as roles
	answer.effect == "allow"
	answer.ceiling == object.union(read_seven, write)
}

test_one_role_for_everything_is_no_ceiling if {
	answer := handoff.session with input as fixture.session with data.agents as agents with data.roles as roles
	answer.effect == "allow"
	answer.ceiling == null
}

test_no_role_is_no_tool if {
	answer := handoff.decision with input as fixture.offer
		with data.agents as {"*": {"roles": []}}
	answer.ceiling == {}
}

test_whoever_is_not_listed_may_nothing if {
	session := handoff.session with input as fixture.session with data.agents as {}
	fixture.codes(session) == {"agent_unlisted"}
	decision := handoff.decision with input as fixture.offer with data.agents as {}
	fixture.codes(decision) == {"agent_unlisted"}
	count(decision.reasons) == 2
	call := handoff.call with input as fixture.call with data.agents as {}
	fixture.codes(call) == {"agent_unlisted"}
}

test_strangers_go_by_id_or_domain if {
	input_ := object.union(fixture.offer, {"receiver": fixture.stranger})
	every key in ["spiffe://partner.example", fixture.stranger.id] {
		answer := handoff.decision with input as input_
			with data.agents as object.union(agents, {key: {"roles": ["writer"]}})
			with data.roles as roles
			with data.trust_domains as {"partner.example": {"receive": true}}
		answer.effect == "allow"
		answer.ceiling == write
	}
	star := handoff.decision with input as input_ with data.trust_domains as {"partner.example": {"receive": true}}
	fixture.codes(star) == {"agent_unlisted"}
}

test_the_narrowest_key_counts if {
	answer := handoff.decision with input as fixture.offer
		with data.agents as {"*": {"roles": ["everything"]}, "/agent/reader": {"roles": ["writer"]}}
		with data.roles as roles
	answer.ceiling == write
}

test_hands_to if {
	answer := handoff.decision with input as object.union(fixture.offer, {"receiver": fixture.agent("writer")})
		with data.agents as object.union(agents, {"/agent/writer": {"roles": ["writer"]}})
		with data.roles as roles
	fixture.codes(answer) == {"hands_to"}
	nobody := handoff.decision with input as fixture.offer
		with data.agents as object.union(agents, {"/agent/planner": {"roles": ["everything"], "hands_to": []}})
		with data.roles as roles
	fixture.codes(nobody) == {"hands_to"}
	anyone := handoff.decision with input as fixture.offer
		with data.agents as {"*": {"roles": ["everything"], "hands_to": ["*"]}}
	anyone.effect == "allow"
}

test_principals if {
	every principals in [
		{"human:alice": {"agents": ["/agent/other"]}, "*": {"agents": ["*"]}},
		{"workload:alice": {"agents": ["*"]}},
		{},
	] {
		session := handoff.session with input as fixture.session with data.principals as principals
		fixture.codes(session) == {"principal"}
		decision := handoff.decision with input as fixture.offer with data.principals as principals
		fixture.codes(decision) == {"principal"}
	}
	session := handoff.session with input as fixture.session
		with data.principals as {"human:alice": {"agents": ["/agent/planner"]}}
	session.effect == "allow"
}

test_whose_behalf_is_said if {
	person := handoff.session with input as fixture.session with data.principals as {}
	endswith(person.reasons[0].message, " may not act for human alice")
	itself := object.union(fixture.session, {"principal": {"kind": "workload", "name": "handoff=dlocal=sagent=splanner"}})
	own := handoff.session with input as itself with data.principals as {}
	endswith(own.reasons[0].message, " may not act on its own behalf")
}

test_a_call_is_judged_by_the_roles_of_now if {
	allowed := handoff.call with input as fixture.call with data.agents as agents with data.roles as roles
	allowed.effect == "allow"
	every change in [{"args": {"id": 8}}, {"args": {}}, {"tool": "crm.delete"}] {
		input_ := object.union(object.remove(fixture.call, object.keys(change)), change)
		denied := handoff.call with input as input_ with data.agents as agents with data.roles as roles
		fixture.codes(denied) == {"role_ceiling"}
		denied.reasons[0].tool == input_.tool
	}
}
