# METADATA
# title: Separation of duties
# description: |
#   The tools of one duty must not meet in one agent within a chain: not in one handoff, and not over several.
package handoff.duties

decision contains {
	"code": "separation_of_duties",
	"message": sprintf("duty %s: the receiver would hold %s as well", [substring(name, 0, 200), other]),
	"tool": tool,
	"nearest": "the same without this tool, or to an agent that has held no other tool of the duty in this chain",
} if {
	some name, duty in data.duties
	some tool in duty.tools
	input.tools[tool]
	others := {other | some other in duty.tools; other != tool; other in held}
	other := min(others)
}

# METADATA
# description: What the receiver holds now, was handed earlier in the chain, or has handed on itself.
held contains tool if some tool, _ in input.tools

held contains tool if {
	some link in input.chain
	input.receiver.id in {link.to.id, link.from.id}
	some tool in link.tools
}
