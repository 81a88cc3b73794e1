package governor

import (
	"context"
	"encoding/binary"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/handoff-governor/handoff-governor/handoff/entry"
	"github.com/handoff-governor/handoff-governor/handoff/wire"
)

// This file is what a start owes to the one before it. The ledger is the outbox: what is in it may have left, or not, and
// the streams may have lost with the power what had left. A mark in the live bucket tells how far it is known to have left;
// what is repeated beyond that, receivers know by (Handoff-Id, Handoff-Kind, Handoff-Entry).

const (
	// lossWindow is how long the streams may keep what they have stored from the disk (JetStream's sync_interval is two
	// minutes), with time to spare.
	lossWindow = 5 * time.Minute
	// maxRepublished bounds how far back a start looks for verdicts and results, in entries.
	maxRepublished = 100_000
	// republishBatch is how many messages are in flight at once.
	republishBatch = 256
)

// outMark says that everything which the entries below one led to was out when inboxes had been given so many messages.
type outMark struct{ entries, stored uint64 }

func (m outMark) encode() []byte {
	return binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(nil, m.entries), m.stored)
}

func parseOutMark(b []byte) (outMark, error) {
	if len(b) != 16 {
		return outMark{}, fmt.Errorf("the mark of what is out has %d bytes", len(b))
	}
	return outMark{binary.BigEndian.Uint64(b[:8]), binary.BigEndian.Uint64(b[8:])}, nil
}

// hole is the first entry whose messages did not all get out. They are tried again; but nothing tells when they are out,
// so the mark stays below it for as long as a start would publish them again.
type hole struct {
	sync.Mutex
	entry uint64
	until time.Time // the zero time where there is none
}

func (g *Governor) notOut(first uint64) {
	g.hole.Lock()
	defer g.hole.Unlock()
	if g.cfg.Now().After(g.hole.until) {
		g.hole.entry = first
	}
	g.hole.until = g.cfg.Now().Add(lossWindow)
}

// outUpTo is how far below a watermark everything is known to be out.
func (g *Governor) outUpTo(watermark uint64) uint64 {
	g.hole.Lock()
	defer g.hole.Unlock()
	if g.cfg.Now().After(g.hole.until) {
		return watermark
	}
	return min(watermark, g.hole.entry)
}

// lastOut is the first entry whose messages may not be in the inboxes, which hold numbers up to stored.
func (g *Governor) lastOut(stored uint64) (uint64, error) {
	mark := g.state.out
	if stored >= mark.stored {
		return mark.entries, nil
	}
	// Power was lost. What is published now counts up to the mark again, and must not be taken for what it stood for.
	return 0, g.cfg.Log.NoteLive(map[string][]byte{liveOut: nil})
}

// republish publishes what is not known to be out: every notice whose task still waits, and the verdicts and results of
// the last minutes. Revocations need no repeating: the feed has a new epoch, and guards ask for all of it.
// newest is the time of the newest entry before this start, in Unix milliseconds.
func (g *Governor) republish(ctx context.Context, newest int64) error {
	stored, err := g.cfg.Bus.Stored(ctx)
	if err != nil {
		return err
	}
	from, err := g.lastOut(stored)
	if err != nil {
		return err
	}
	if err := g.skipNumbers(ctx, stored, newest == 0); err != nil {
		return err
	}
	var out []wire.Outbound
	flush := func(limit int) error {
		for len(out) > limit {
			n := min(len(out), republishBatch)
			if err := g.put(ctx, out[:n]); err != nil {
				// One inbox that is full must not keep the governor from starting. Its owner will see the rest.
				g.log.WarnContext(ctx, "some messages could not be published again", "err", err)
			}
			out = slices.Delete(out, 0, n)
		}
		return ctx.Err()
	}
	g.state.mu.RLock()
	for _, h := range g.state.handoffs {
		if h.status == statusAdmitted && h.newest >= from {
			out = append(out, notice(h, ""))
		}
	}
	next := g.state.next
	g.state.mu.RUnlock()
	if err := flush(0); err != nil {
		return err
	}
	for encoded, err := range g.cfg.Log.Entries(max(from, next-min(next, maxRepublished))) {
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
