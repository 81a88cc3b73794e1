package governor

import (
	"slices"

	"github.com/handoff-governor/handoff-governor/handoff/aat"
	"github.com/handoff-governor/handoff-governor/handoff/wire"
)

// What follows from a policy's answer. Whoever replays a decision uses the same, so that it gives the same reasons.

// ReasonsOf are the reasons of an answer: a denial always has one.
func ReasonsOf(answer wire.Answer) []wire.Reason {
	if len(answer.Reasons) == 0 && answer.Effect == wire.EffectDeny {
		return []wire.Reason{{Code: wire.CodePolicyDenied, Message: "the policy denies this and gives no reason"}}
	}
	return answer.Reasons
}

// Narrow returns what a ceiling leaves of tools, and the reasons with one more for each part that it takes away. It
// reports false where nothing is left of something: that is a denial.
func Narrow(tools, ceiling aat.Tools, reasons []wire.Reason) (granted aat.Tools, why []wire.Reason, left bool) {
	granted, dropped := meet(tools, ceiling)
	why = slices.Clone(reasons)
	for _, d := range dropped {
		why = append(why, droppedReason(d))
	}
	if len(granted) == 0 && len(tools) > 0 {
		return nil, append(why, wire.Reason{Code: wire.CodeCeiling, Message: "the policy's ceiling leaves none of the tools"}), false
	}
	return granted, why, true
}

// StillAllowed tells whether what is held would be granted now, all of it.
func StillAllowed(answer wire.Answer, reasons []wire.Reason, held aat.Tools) (effect string, why []wire.Reason) {
	if answer.Effect != wire.EffectAllow {
		return answer.Effect, reasons
	}
	granted, dropped := meet(held, answer.Ceiling)
	if granted.Equal(held) {
		return wire.EffectAllow, nil
	}
	why = slices.Clone(reasons)
	for _, d := range dropped {
		why = append(why, droppedReason(d))
	}
	return wire.EffectDeny, append(why, wire.Reason{Code: wire.CodeCeiling, Message: "it holds more than the policy now allows"})
}

// meet narrows tools to a ceiling; nil is no ceiling.
func meet(tools, ceiling aat.Tools) (aat.Tools, []aat.Dropped) {
	if tools == nil {
		tools = aat.Tools{}
	}
	if ceiling == nil {
		return tools, nil
	}
	return aat.Meet(tools, ceiling)
}

func droppedReason(d aat.Dropped) wire.Reason {
	return wire.Reason{Code: wire.CodeCeiling, Tool: d.Tool, Argument: d.Argument, Message: d.Reason}
}
