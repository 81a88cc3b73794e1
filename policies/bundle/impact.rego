# METADATA
# title: Impact
# description: |
#   data.tools gives a tool its class of impact. What counts is the worst class over the whole chain: a harmless last
#   hop does not make what led to it harmless. data.impact.deny is the class from which on nothing is handed on.
package handoff.impact

ranks := {"low": 1, "medium": 2, "high": 3, "critical": 4}

# METADATA
# description: A tool without a class has data.impact.unlisted, and without that the worst.
rank(tool) := found if {
	found := ranks[data.tools[tool].impact]
} else := found if {
	found := ranks[data.impact.unlisted]
} else := 4

decision contains {
	"code": "impact",
	"message": sprintf("the chain holds a tool of impact class %s or worse", [data.impact.deny]),
	"tool": at.tool,
	"hop": at.hop,
	"nearest": "the same in a chain in which nobody was handed this tool",
} if {
	some at in from(data.impact.deny)
}

# METADATA
# description: Every tool of the chain and of this handoff whose class is at least class, with the hop that handed it on.
from(class) := {at |
	least := ranks[class]
	some at in handed
	rank(at.tool) >= least
}

handed contains {"tool": tool, "hop": i + 1} if {
	some i, link in input.chain
	some tool in link.tools
}

handed contains {"tool": tool, "hop": input.depth + 1} if some tool, _ in input.tools
