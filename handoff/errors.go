package handoff

import (
	"fmt"
	"strings"

	"github.com/handoff-governor/handoff-governor/handoff/wire"
)

// Denied says that the governor has decided against something, or has ended it. [errors.Is] compares it with a
// *[wire.Error] by the codes of its reasons.
type Denied struct {
	ID      string // of the handoff
	Effect  string // wire.EffectDeny, or wire.EffectHold where a person must approve and the caller did not want to wait
	Reasons []wire.Reason
	Entry   *uint64 // in the ledger; nil where nothing was recorded: the message could not be trusted
}

func (d *Denied) Error() string {
	var b strings.Builder
	word := "denied"
	if d.Effect == wire.EffectHold {
		word = "held"
	}
	fmt.Fprintf(&b, "handoff %s %s", d.ID, word)
	for i, r := range d.Reasons {
		sep := "; "
		if i == 0 {
			sep = ": "
		}
		fmt.Fprintf(&b, "%s%s (%s)", sep, r.Message, r.Code)
		if r.Nearest != "" {
			fmt.Fprintf(&b, ", nearest: %s", r.Nearest)
		}
	}
	return b.String()
}

// Is compares by code.
func (d *Denied) Is(target error) bool {
	t, ok := target.(*wire.Error)
	if !ok {
		return false
	}
	for _, r := range d.Reasons {
		if r.Code == t.Code {
			return true
		}
	}
	return false
}

func denied(v *wire.Verdict) *Denied {
	return &Denied{ID: v.ID, Effect: v.Effect, Reasons: v.Reasons, Entry: v.Entry}
}

// refusedWith keeps the reasons beside a refusal.
func refusedWith(id string, e *wire.Error, reasons []wire.Reason, entry uint64) error {
	if len(reasons) == 0 {
		return e
	}
	d := &Denied{ID: id, Effect: wire.EffectDeny, Reasons: append([]wire.Reason{{Code: e.Code, Message: e.Message}}, reasons...)}
	if entry != 0 {
		d.Entry = &entry
	}
	return d
}
