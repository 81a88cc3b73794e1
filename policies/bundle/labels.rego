# METADATA
# title: Label flow
# description: |
#   data.zones names, for a label, the agents that may hold data so labelled; nobody else gets it, as a task or as a
#   result. A label without a zone may go to every agent of the home trust domain and to no other. Tools that lead data
#   out of the system refuse labels.
package handoff.labels

import data.handoff.agents

session contains outside(label, input.agent) if {
	some label in input.labels
	not may_hold(input.agent, label)
}

decision contains outside(label, input.receiver) if {
	some label in input.labels
	not may_hold(input.receiver, label)
}

decision contains leaks(label, tool) if {
	some tool, _ in input.tools
	some label in data.tools[tool].refuses
	label in input.labels
}

result contains outside(label, input.receiver) if {
	some label in input.labels
	not may_hold(input.receiver, label)
}

call contains outside(label, input.agent) if {
	some label in input.labels
	not may_hold(input.agent, label)
}

call contains leaks(label, input.tool) if {
	some label in data.tools[input.tool].refuses
	label in input.labels
}

may_hold(agent, label) if agents.among(agent, data.zones[label])

may_hold(agent, label) if {
	not data.zones[label]
	agent.trust_domain == data.home
}

outside(label, agent) := {
	"code": "label_zone",
	"message": sprintf("label %s may not reach %s", [label, agent.id]),
	"nearest": sprintf("the same without data labelled %s, or to an agent in its zone", [label]),
}

leaks(label, tool) := {
	"code": "label_tool",
	"message": sprintf("the tool must not be held together with data labelled %s", [label]),
	"tool": tool,
	"nearest": "the same without this tool",
}
