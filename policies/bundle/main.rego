# METADATA
# title: The entry points
# description: |
#   Each asks every concern for its denials, and allows only where the input was proven whole and no concern denies.
#   Denials are found by looking for what is wrong, and what is missing never looks wrong: hence the proof.
package handoff

import data.handoff.approval
import data.handoff.duties
import data.handoff.impact
import data.handoff.labels
import data.handoff.limits
import data.handoff.rbac
import data.handoff.trust

# What is not proven to be a whole input is denied. Other than that, nothing is said about it.
incomplete := {
	"effect": "deny",
	"reasons": [{"code": "input_invalid", "message": "the input lacks a member or has one of the wrong type"}],
}

# METADATA
# title: May this principal open this root?
# entrypoint: true
session := answer(denials, set(), bounds) if {
	handoff.whole("session", input)
	denials := union({trust.session, rbac.session, labels.session, limits.session})
	bounds := {
		"ceiling": rbac.agent_ceiling,
		"ttl": limits.session_ttl,
		"max_hops": limits.session_hops,
	}
} else := incomplete

# METADATA
# title: May this handoff be offered, or claimed?
# entrypoint: true
decision := answer(denials, approval.decision, bounds) if {
	handoff.whole("decision", input)
	denials := union({
		trust.decision, rbac.decision, labels.decision,
		impact.decision, duties.decision, limits.decision,
	})
	bounds := {
		"ceiling": rbac.receiver_ceiling,
		"ttl": limits.grant_ttl,
		"max_hops": limits.hops_after,
	}
} else := incomplete

# METADATA
# title: May this result go back?
# entrypoint: true
result := answer(denials, approval.result, {}) if {
	handoff.whole("result", input)
	denials := trust.result | labels.result
} else := incomplete

# METADATA
# title: May this tool be called?
# entrypoint: true
call := answer(denials, set(), {}) if {
	handoff.whole("call", input)
	denials := union({trust.call, rbac.call, labels.call})
} else := incomplete

# METADATA
# description: A denial outweighs a hold, and a hold an allowance.
answer(denials, holds, bounds) := {"effect": "deny", "reasons": few(denials)} if {
	count(denials) > 0
} else := object.union(bounds, {"effect": "hold", "reasons": few(holds)}) if {
	count(holds) > 0
} else := object.union(bounds, {"effect": "allow", "reasons": []})

# METADATA
# description: The first reasons in sorted order; an answer may have 64.
few(reasons) := array.slice([reason | some reason in reasons], 0, 32)
