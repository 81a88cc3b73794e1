# METADATA
# title: Human approval
# description: |
#   data.approvals names what waits for people: a tool whose arguments are not bound narrowly enough, a label, or a
#   class of impact anywhere in the chain. Nobody approves what is done in their own name.
package handoff.approval

import data.handoff.impact

decision contains held(rule, at) if {
	some name, rule in data.approvals
	some at in matches(rule)
	not approved(rule)
}

result contains held(rule, {}) if {
	some name, rule in data.approvals
	rule.label in input.labels
	not approved(rule)
}

matches(rule) := union({by_tool(rule), by_label(rule), by_impact(rule)})

default by_tool(_) := set()

by_tool(rule) := {{"tool": rule.tool}} if {
	input.tools[rule.tool]
	not within(rule)
}

within(rule) if handoff.subsumes({rule.tool: rule.within}, {rule.tool: input.tools[rule.tool]})

default by_label(_) := set()

by_label(rule) := {{}} if rule.label in input.labels

default by_impact(_) := set()

by_impact(rule) := impact.from(rule.impact)

approved(rule) if count(approvers(rule)) >= object.get(rule, "count", 1)

approvers(rule) := {approval.by |
	some approval in input.approvals
	approval.by != input.principal.name
	among(approval.by, rule)
}

among(_, rule) if not rule.by

among(person, rule) if person in rule.by

held(rule, at) := object.union(at, {
	"code": "approval_required",
	"message": sprintf("%d of %s must approve this", [object.get(rule, "count", 1), people(rule)]),
	"nearest": nearest(rule),
})

people(rule) := named if {
	named := substring(concat(", ", rule.by), 0, 500)
} else := "the operators"

nearest(rule) := bound if {
	bound := substring(sprintf("the same within %s", [json.marshal(rule.within)]), 0, 500)
} else := "the same without what this approval is for"
