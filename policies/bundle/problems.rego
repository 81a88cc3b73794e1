# What is wrong with the data. Asked once, when the bundle is compiled; one sentence is enough to refuse it. A section or
# member that is misspelt or mistyped would otherwise silently not count.
package handoff

import data.handoff.impact

# The type of each member that an entry of a section may have.
sections := {
	"trust_domains": {"open": "boolean", "send": "boolean", "receive": "boolean"},
	"principals": {"agents": "strings"},
	"agents": {"roles": "strings", "hands_to": "strings"},
	"roles": {"tools": "tools"},
	"tools": {"labels": "strings", "refuses": "strings", "impact": "class"},
	"duties": {"tools": "strings"},
	"approvals": {
		"tool": "string", "within": "arguments", "label": "string", "impact": "class",
		"by": "strings", "count": "count",
	},
}

# The same where a section has no entries but members. "?" stands for any name.
flat := {
	"zones": {"?": "strings"},
	"impact": {"deny": "class", "unlisted": "class"},
	"limits": {"session_ttl": "count", "grant_ttl": "count", "max_hops": "count", "handoffs": "count"},
}

known := object.keys(sections) | object.keys(flat) | {"home"}

section["trust_domains"] := data.trust_domains

section["principals"] := data.principals

section["agents"] := data.agents

section["roles"] := data.roles

section["tools"] := data.tools

section["zones"] := data.zones

section["impact"] := data.impact

section["duties"] := data.duties

section["limits"] := data.limits

section["approvals"] := data.approvals

# METADATA
# title: Sentences about the data that must be put right
problems contains "home must name the home trust domain" if not is_string(data.home)

problems contains sprintf("%s is not a section", [name]) if {
	some name in input.data
	not name in known
}

problems contains sprintf("%s must be an object", [name]) if {
	some name, value in section
	not is_object(value)
}

problems contains sprintf("%s[%q] must be an object", [name, key]) if {
	some name, _ in sections
	some key, value in section[name]
	not is_object(value)
}

problems contains sprintf("%s[%q].%s is not known or has the wrong type", [name, key, member]) if {
	some name, members in sections
	some key, value in section[name]
	some member, found in value
	not has_type(found, object.get(members, member, "nothing"))
}

problems contains sprintf("%s[%q] is not known or has the wrong type", [name, member]) if {
	some name, members in flat
	some member, found in section[name]
	not has_type(found, object.get(members, member, object.get(members, "?", "nothing")))
}

problems contains sprintf("agents[%q].roles names %q, which is not in roles", [key, role]) if {
	some key, entry in data.agents
	some role in entry.roles
	not data.roles[role]
}

problems contains sprintf("roles[%q] needs tools: \"*\" or an object", [role]) if {
	some role, entry in data.roles
	not entry.tools
}

problems contains sprintf("%s names %q; home agents go by path or *, others by spiffe://", [place, key]) if {
	some place, keys in agent_keys
	some key in keys
	not is_agent_key(key)
}

agent_keys["agents"] := object.keys(data.agents)

agent_keys[sprintf("agents[%q].hands_to", [key])] := entry.hands_to if some key, entry in data.agents

agent_keys[sprintf("principals[%q].agents", [key])] := entry.agents if some key, entry in data.principals

agent_keys[sprintf("zones[%q]", [label])] := keys if some label, keys in data.zones

is_agent_key("*")

is_agent_key(key) if startswith(key, "/")

is_agent_key(key) if {
	startswith(key, "spiffe://")
	split(key, "/")[2] != data.home
}

# Two maps of constraints for one tool have no union that is a map of constraints.
problems contains sprintf("agents[%q]: roles %q and %q bind tool %q differently", [key, one, other, tool]) if {
	some key, entry in data.agents
	some one in entry.roles
	some other in entry.roles
	one < other
	some tool, arguments in data.roles[one].tools
	arguments != data.roles[other].tools[tool]
}

problems contains sprintf("approvals[%q] needs a tool, a label or a class of impact", [name]) if {
	some name, rule in data.approvals
	count({matcher | some matcher in ["tool", "label", "impact"]; rule[matcher]}) == 0
}

problems contains sprintf("approvals[%q].within bounds a tool that it does not name", [name]) if {
	some name, rule in data.approvals
	rule.within
	not rule.tool
}

has_type(value, "boolean") if is_boolean(value)

has_type(value, "string") if is_string(value)

has_type(value, "strings") if strings(value)

has_type(value, "class") if impact.ranks[value]

has_type(value, "count") if {
	is_number(value)
	value >= 0
}

has_type("*", "tools")

# Constraints that are not well-formed end the evaluation, which refuses the bundle, too.
has_type(value, "tools") if handoff.subsumes(value, value)

has_type(value, "arguments") if handoff.subsumes({"tool": value}, {"tool": value})

strings(list) if {
	is_array(list)
	every item in list {
		is_string(item)
	}
}
