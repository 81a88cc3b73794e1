# METADATA
# title: Depth, time and budget
# description: |
#   The governor compares clocks and counters and says what it found as facts. data.limits caps what sessions may ask.
package handoff.limits

default session_ttl := 0

session_ttl := data.limits.session_ttl

default grant_ttl := 0

grant_ttl := data.limits.grant_ttl

default session_hops := -1

session_hops := data.limits.max_hops

default hops_after := -1

hops_after := max({0, (data.limits.max_hops - input.depth) - 1})

session contains {
	"code": "session_budget",
	"message": sprintf("a session needs a budget of at most %d handoffs", [data.limits.handoffs]),
	"nearest": sprintf("the same with a budget of %d handoffs", [data.limits.handoffs]),
} if {
	data.limits.handoffs
	not frugal
}

frugal if input.budget.handoffs <= data.limits.handoffs

decision contains {
	"code": "expired",
	"message": "the deadline or the lifetime has run out",
	"nearest": "the same with a later deadline",
} if not input.facts.deadline_ok == true

decision contains {
	"code": "budget_exhausted",
	"message": "the session's budget is used up",
	"nearest": "the same in another session",
} if not input.facts.budget_ok == true

decision contains {
	"code": "hop_limit",
	"message": sprintf("the session allows %d hops", [input.max_hops]),
	"hop": input.depth + 1,
	"nearest": "the same in a session with a larger max_hops",
} if not input.facts.hops_left >= 0

decision contains {
	"code": "hop_limit",
	"message": sprintf("policy allows %d hops", [data.limits.max_hops]),
	"hop": input.depth + 1,
	"nearest": "the same by an agent nearer to the session's opener",
} if input.depth >= data.limits.max_hops
