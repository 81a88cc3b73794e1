package governor

import (
	"context"
	"slices"
	"time"

	"github.com/handoff-governor/handoff-governor/handoff/entry"
	"github.com/handoff-governor/handoff-governor/handoff/wire"
)

// This file is what a start owes to the one before it. The ledger is the outbox: what is in it may have left, or not, and
// the streams may have lost with the power what had left. Receivers know repeats by (Handoff-Id, Handoff-Kind).

const (
	// lossWindow is how long the streams may keep what they have stored from the disk (JetStream's sync_interval is two
	// minutes), with time to spare.
	lossWindow = 5 * time.Minute
	// maxRepublished bounds how far back a start looks for verdicts and results, in entries.
	maxRepublished = 100_000
	// republishBatch is how many messages are in flight at once.
	republishBatch = 256
)

// republish publishes every notice whose task still waits, and the verdicts and results of the last minutes. Revocations
// need no repeating: the feed has a new epoch, and guards ask for all of it.
// newest is the time of the newest entry before this start, in Unix milliseconds.
func (g *Governor) republish(ctx context.Context, newest int64) error {
	var out []wire.Outbound
	flush := func(limit int) error {
		for len(out) > limit {
			n := min(len(out), republishBatch)
			if err := g.cfg.Bus.Deliver(ctx, out[:n]); err != nil {
				// One inbox that is full must not keep the governor from starting. Its owner will see the rest.
				g.log.WarnContext(ctx, "some messages could not be published again", "err", err)
			}
			out = slices.Delete(out, 0, n)
		}
		return ctx.Err()
	}
	g.state.mu.RLock()
	for _, h := range g.state.handoffs {
		if h.status == statusAdmitted {
			out = append(out, notice(h, ""))
		}
	}
	next := g.state.next
	g.state.mu.RUnlock()
	if err := flush(0); err != nil {
		return err
	}
	for encoded, err := range g.cfg.Log.Entries(next - min(next, maxRepublished)) {
		if err != nil {
			return err
		}
		e, err := entry.Decode(encoded)
		if err != nil {
			return err
		}
		if e.Time < newest-lossWindow.Milliseconds() {
			continue
		}
		if e.Kind == entry.KindClosed {
			out = append(out, g.closedVerdicts(e)...)
			continue
		}
		messages, err := g.lostMessages(e)
		if err != nil { // retention may have dropped the body; nobody can have it any more
			g.log.WarnContext(ctx, "a result could not be published again", "entry", e.Index, "err", err)
		}
		out = append(out, messages...)
		if err := flush(republishBatch); err != nil {
			return err
		}
	}
	return flush(0)
}

// closedVerdicts are those that a closing led to, as long as its session is in memory.
func (g *Governor) closedVerdicts(e *entry.Entry) []wire.Outbound {
	g.state.mu.RLock()
	defer g.state.mu.RUnlock()
	s := g.state.sessions[e.Session]
	if s == nil {
		return nil
	}
	var out []wire.Outbound
	for _, h := range s.handoffs {
		if h.newest == e.Index {
			out = append(out, verdict(h))
		}
	}
	return out
}

// lostMessages are the verdict and the result that an entry led to, as long as its session is in memory.
func (g *Governor) lostMessages(e *entry.Entry) (out []wire.Outbound, err error) {
	g.state.mu.RLock()
	defer g.state.mu.RUnlock()
	h := g.state.handoffs[e.Handoff]
	switch {
	case h == nil && e.Decided != nil && e.Decided.Effect == wire.EffectDeny && g.state.sessions[e.Session] != nil:
		return []wire.Outbound{denial(e)}, nil
	case h == nil:
		return nil, nil
	case e.Result != nil && (e.Result.Effect == wire.EffectDeny || h.result != nil && h.result.index == e.Index && h.held != nil):
		claim, err := peekResult(e.Result.Token)
		if err != nil {
			return nil, err
		}
		return []wire.Outbound{resultVerdict(e, claim.ID)}, nil
	case h.result != nil && h.result.index == e.Index && h.result.effect == wire.EffectAllow:
		if e.Approved != nil {
			out = append(out, resultVerdict(e, h.result.claim.ID))
		}
		_, body, err := g.cfg.Log.Body(h.result.body)
		if err != nil {
			return out, err
		}
		return append(out, resultMessage(h, body, "")), nil
	case e.Approved != nil:
		for id, at := range h.refused {
			if at == e.Index {
				return []wire.Outbound{resultVerdict(e, id)}, nil
			}
		}
		if h.newest == e.Index {
			return []wire.Outbound{verdict(h)}, nil
		}
	case h.newest == e.Index && (h.status == statusDenied || h.status == statusHeld || h.status == statusRevoked || h.status == statusExpired):
		return []wire.Outbound{verdict(h)}, nil
	}
	return nil, nil
}
