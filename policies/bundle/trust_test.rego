package handoff.trust_test

import data.handoff
import data.handoff.fixture

listed := {"spiffe://partner.example": {"roles": ["everything"]}, "*": {"roles": ["everything"]}}

to_stranger := object.union(fixture.offer, {"receiver": fixture.stranger})

from_stranger := object.union(fixture.offer, {"sender": fixture.stranger})

test_strangers_get_nothing if {
	answer := handoff.decision with input as to_stranger with data.agents as listed
	fixture.codes(answer) == {"trust_domain"}
}

test_a_domain_receives_where_the_data_says_so if {
	answer := handoff.decision with input as to_stranger
		with data.agents as listed
		with data.trust_domains as {"partner.example": {"receive": true}}
	answer.effect == "allow"
}

test_receiving_is_not_sending if {
	answer := handoff.decision with input as from_stranger
		with data.agents as listed
		with data.trust_domains as {"partner.example": {"receive": true}}
	fixture.codes(answer) == {"trust_domain"}
	allowed := handoff.decision with input as from_stranger
		with data.agents as listed
		with data.trust_domains as {"partner.example": {"send": true}}
	allowed.effect == "allow"
}

test_only_true_is_true if {
	answer := handoff.decision with input as to_stranger
		with data.agents as listed
		with data.trust_domains as {"partner.example": {"receive": "yes"}}
	fixture.codes(answer) == {"trust_domain"}
}

test_without_a_home_nobody_is_at_home if {
	answer := handoff.decision with input as fixture.offer with data.home as null
	"trust_domain" in fixture.codes(answer)
}

test_sessions_of_strangers if {
	theirs := object.union(fixture.session, {"agent": fixture.stranger})
	denied := handoff.session with input as theirs with data.agents as listed
	"trust_domain" in fixture.codes(denied)
	allowed := handoff.session with input as theirs
		with data.agents as listed
		with data.trust_domains as {"partner.example": {"open": true}}
		with data.principals as {"human:alice": {"agents": ["spiffe://partner.example"]}}
	allowed.effect == "allow"
}

test_results_go_back_the_way_the_task_came if {
	worked := object.union(fixture.result, {"sender": fixture.stranger})
	denied := handoff.result with input as worked with data.trust_domains as {"partner.example": {"send": true}}
	fixture.codes(denied) == {"trust_domain"}
	allowed := handoff.result with input as worked with data.trust_domains as {"partner.example": {"receive": true}}
	allowed.effect == "allow"
	asked := object.union(fixture.result, {"receiver": fixture.stranger})
	not_asked := handoff.result with input as asked with data.trust_domains as {"partner.example": {"receive": true}}
	fixture.codes(not_asked) == {"trust_domain"}
	answered := handoff.result with input as asked with data.trust_domains as {"partner.example": {"send": true}}
	answered.effect == "allow"
}

test_calls_of_strangers if {
	theirs := object.union(fixture.call, {"agent": fixture.stranger})
	denied := handoff.call with input as theirs
		with data.agents as listed
		with data.trust_domains as {"partner.example": {"send": true}}
	fixture.codes(denied) == {"trust_domain"}
	every may in ["receive", "open"] {
		allowed := handoff.call with input as theirs
			with data.agents as listed
			with data.trust_domains as {"partner.example": {may: true}}
		allowed.effect == "allow"
	}
}
