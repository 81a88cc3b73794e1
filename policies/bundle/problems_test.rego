package handoff.problems_test

import data.handoff

test_home if count(handoff.problems) == 1 with data.home as 7

test_entries if {
	every agents in [
		{"/agent/x": {"rolls": ["everything"]}},
		{"/agent/x": {"roles": "everything"}},
		{"/agent/x": {"roles": ["nothing"]}},
		{"/agent/x": {"roles": [], "hands_to": ["agent/y"]}},
		{"agent/x": {"roles": []}},
		{"spiffe://handoff.local/agent/x": {"roles": []}},
		{"/agent/x": null},
	] {
		count(handoff.problems) > 0 with data.agents as agents
	}
	count(handoff.problems) == 0 with data.agents as {"/agent/x": {"roles": ["everything"], "hands_to": ["spiffe://a/b"]}}
}

test_sections if {
	count(handoff.problems) > 0 with data.zones as []
	count(handoff.problems) > 0 with data.zones as {"pii": "*"}
	count(handoff.problems) > 0 with data.limits as {"ttl": 5}
	count(handoff.problems) > 0 with data.limits as {"max_hops": -1}
	count(handoff.problems) > 0 with data.impact as {"deny": "hihg"}
	count(handoff.problems) > 0 with data.tools as {"t": {"impact": "none"}}
	count(handoff.problems) > 0 with data.trust_domains as {"td": {"send": "yes"}}
	count(handoff.problems) > 0 with data.roles as {"everything": {"tools": "all"}}
	count(handoff.problems) > 0 with data.roles as {"everything": {}}
	count(handoff.problems) > 0 with data.approvals as {"a": {"by": ["bob"]}}
	count(handoff.problems) > 0 with data.approvals as {"a": {"label": "pii", "within": {}}}
	count(handoff.problems) > 0 with data.principals as {"human:alice": {"agents": ["spiffe://handoff.local/a"]}}
	count(handoff.problems) > 0 with data.duties as {"d": ["t"]}
	count(handoff.problems) > 0 with data.zones as {"pii": ["agent/x"]}
	count(handoff.problems) == 0 with data.approvals as {"a": {"tool": "t", "within": {}, "count": 2, "by": ["bob"]}}
		with data.tools as {"t": {"impact": "low", "labels": ["pii"]}}
		with data.trust_domains as {"td": {"send": true}}
		with data.zones as {"pii": ["*"]}
		with data.impact as {"deny": "high"}
		with data.duties as {"d": {"tools": ["t"]}}
}

test_roles_that_do_not_add_up if {
	roles := {"a": {"tools": {"t": {}}}, "b": {"tools": {"t": {"n": {"constraint_type": "wildcard"}}}}}
	[sentence] := [found |
		some found in handoff.problems with data.roles as roles with data.agents as {"*": {"roles": ["a", "b"]}}
	]
	contains(sentence, "differently")
}

test_sections_by_name if {
	count(handoff.problems) == 0 with input as {"data": ["home", "zones", "agents"]}
	handoff.problems == {"zone is not a section"} with input as {"data": ["home", "zone"]}
}
