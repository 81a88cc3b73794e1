package torture

import (
	"context"
	"fmt"

	"github.com/go-json-experiment/json"

	"github.com/handoff-governor/handoff-governor/cmd/governor/daemon"
	"github.com/handoff-governor/handoff-governor/governor/ledger"
	"github.com/handoff-governor/handoff-governor/handoff/entry"
	"github.com/handoff-governor/handoff-governor/handoff/wire"
)

// audit is what a ledger says of the handoffs in it. It believes neither the governor nor its state.
type audit struct {
	offers        map[string]*audited // :: handoff ID
	sessions      map[string]bool     // :: session ID → whether it is over
	duplicated    int                 // offers decided, or results accepted, more than once
	doubleGranted int                 // claims that left a task with two live grants
	entries       uint64
}

// audited is one handoff.
type audited struct {
	session string
	decided int // at its offer
	effect  string
	claims  int
	live    string // its live grant
	results int    // accepted
	over    bool   // revoked, denied later, or its session is over
}

// audits verifies the ledger of a governor that does not run, and counts.
func audits(ctx context.Context, dir string) (*audit, error) {
	endpoint, err := daemon.LoadEndpoint(dir)
	if err != nil {
		return nil, err
	}
	trust, err := endpoint.Trust()
	if err != nil {
		return nil, err
	}
	l, err := ledger.Open(daemon.LedgerPath(dir), ledger.Config{ReadOnly: true})
	if err != nil {
		return nil, err
	}
	defer l.Close()
	if _, err := daemon.Verify(ctx, l, trust); err != nil {
		return nil, fmt.Errorf("the ledger does not verify: %w", err)
	}
	a := &audit{offers: map[string]*audited{}, sessions: map[string]bool{}}
	for encoded, err := range l.Entries(0) {
		if err != nil {
			return nil, err
		}
		var e entry.Entry
		if err := json.Unmarshal(encoded, &e); err != nil {
			return nil, fmt.Errorf("entry %d: %w", a.entries, err)
		}
		a.read(&e)
		a.entries++
	}
	return a, nil
}

func (a *audit) read(e *entry.Entry) {
	h := a.offers[e.Handoff]
	if h == nil && e.Handoff != "" {
		h = &audited{session: e.Session}
		a.offers[e.Handoff] = h
	}
	switch {
	case e.Kind == entry.KindSession:
		a.sessions[e.Session] = false
	case e.Kind == entry.KindDecided && e.Decided.Stage == entry.StageOffer:
		if h.decided++; h.decided > 1 {
			a.duplicated++
		}
		h.effect = e.Decided.Effect
	case e.Kind == entry.KindDecided && h != nil && e.Decided.Effect == wire.EffectDeny:
		h.over = true
	case e.Kind == entry.KindClaimed:
		if h.live != "" && e.Claimed.Supersedes != h.live {
			a.doubleGranted++
		}
		h.live = e.Grant
		h.claims++
	case e.Kind == entry.KindResult && e.Result.Effect == wire.EffectAllow:
		a.accept(h)
	case e.Kind == entry.KindApproved && e.Approved.Decided != nil && e.Approved.Decided.Effect == wire.EffectDeny:
		h.over = true
	case e.Kind == entry.KindApproved && e.Approved.Decided != nil && e.Approved.Decided.Stage == entry.StageResult:
		a.accept(h)
	case e.Kind == entry.KindRevoked && h != nil:
		h.live, h.over = "", true
	case e.Kind == entry.KindClosed:
		a.sessions[e.Session] = true
	}
}

func (a *audit) accept(h *audited) {
	h.live = ""
	if h.results++; h.results > 1 {
		a.duplicated++
	}
}
