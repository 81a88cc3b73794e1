package governor

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/handoff-governor/handoff-governor/handoff/wire"
)

// This file keeps a sequence number of the inboxes from being given twice. A loss of power takes the newest messages of a stream
// away, and JetStream gives their numbers to the next ones. Whoever still holds one of the lost messages acknowledges it by its
// number, and would have another one removed that nobody has read. So the ledger knows a bound that no number may exceed before
// the bound was raised, and a start leaves out whatever is below it.

// numbersAhead is how far the bound is ahead of what has been given: as many messages may go out before it is raised. As many
// numbers are left out after a crash, and those of messages that were refused since the stream was asked last.
const numbersAhead = 4096

// numbers counts the sequence numbers of the inboxes. Nothing on the way of a message waits for it, but for one in numbersAhead.
type numbers struct {
	pending atomic.Int64  // messages on their way
	given   atomic.Uint64 // no number is higher
	bound   atomic.Uint64 // on record; given must not be higher when a message leaves

	recording sync.Mutex
	unsure    atomic.Int64 // Unix nanoseconds until which a message may still be stored that was given up
}

// put puts messages into inboxes, as [Bus.Deliver] does. Their numbers are below the bound on record.
func (g *Governor) put(ctx context.Context, messages []wire.Outbound) error {
	n := &g.numbers
	// In this order: what correct finds in given, and not on its way, was stored before.
	n.pending.Add(int64(len(messages)))
	defer n.pending.Add(-int64(len(messages)))
	if n.given.Add(uint64(len(messages))) > n.bound.Load() {
		err := n.record(numbersAhead, func(bound []byte) error {
			return g.cfg.Log.NoteLive(map[string][]byte{liveNumbers: bound})
		})
		if err != nil {
			return fmt.Errorf("raising the bound of sequence numbers: %w", err)
		}
	}
	err := g.cfg.Bus.Deliver(ctx, messages)
	g.noticeLoss(err)
	if !settled(err) {
		n.unsure.Store(time.Now().Add(unsureFor).UnixNano())
		g.noteTrouble(ctx, ofStreams, err)
	} else if g.cfg.Bus.Trouble() == nil {
		g.noteTrouble(ctx, ofStreams, nil) // an inbox at its limit is its owner's trouble
	}
	return err
}

// noticeLoss ends the governor where err says that inboxes have lost messages.
func (g *Governor) noticeLoss(err error) {
	if errors.Is(err, wire.ErrStreamsLost) {
		g.end(err)
	}
}

// unsureFor is how long a message may be on its way that was given up.
const unsureFor = time.Minute

// settled tells whether it is known that no message which did not get out will.
func settled(err error) bool {
	some, ok := errors.AsType[*wire.UndeliveredError](err)
	if !ok {
		return err == nil
	}
	for _, err := range some.Failed {
		if !errors.Is(err, &wire.Error{Code: wire.CodeInboxFull}) {
			return false
		}
	}
	return true
}

// reading of what was given, and of how many of those were on their way after it.
type reading struct{ given, pending uint64 }

func (n *numbers) read() reading {
	given := n.given.Load()
	return reading{given, uint64(n.pending.Load())}
}

// correct brings what was given down to what the stream says, which was asked after the reading: messages that were refused have
// no number.
func (n *numbers) correct(r reading, stored uint64) {
	if high := stored + r.pending; high < r.given && time.Now().UnixNano() > n.unsure.Load() {
		n.given.Add(high - r.given) // what has been given since stays counted
	}
}

// record puts a bound on record that is ahead of what was given.
func (n *numbers) record(ahead uint64, put func(bound []byte) error) error {
	n.recording.Lock()
	defer n.recording.Unlock()
	// Whoever counts from here on finds the lower bound, and waits for its turn; whoever has counted before is in given.
	bound := n.given.Load() + ahead
	if old := n.bound.Load(); bound < old {
		n.bound.Store(bound)
		if given := n.given.Load(); given > bound {
			bound = given + ahead
		}
	}
	if err := put(binary.BigEndian.AppendUint64(nil, bound)); err != nil {
		return err
	}
	n.bound.Store(bound)
	return nil
}

// skipNumbers has no number given again, after a start that finds numbers up to stored in the inboxes. Fresh is a record that was
// empty before this start.
func (g *Governor) skipNumbers(ctx context.Context, stored uint64, fresh bool) error {
	_, items, err := g.cfg.Log.Live()
	if err != nil {
		return err
	}
	bound := stored
	switch b := items[liveNumbers]; {
	case len(b) == 8:
		bound = max(bound, binary.BigEndian.Uint64(b))
	case b != nil:
		return fmt.Errorf("the bound of sequence numbers has %d bytes", len(b))
	case fresh: // none was given
	case stored == 0: // a record that was restored beside new streams: as many as microseconds were never given
		bound = uint64(time.Now().UnixMicro())
	default: // the cache was damaged; what the streams can have lost is little
		bound += unknownAhead
	}
	if bound > stored {
		if err := g.cfg.Bus.Skip(ctx, bound); err != nil {
			return err
		}
	}
	g.numbers.given.Store(bound)
	g.numbers.bound.Store(bound)
	return nil
}

// unknownAhead is how many numbers are left out where the bound is not on record, and the streams know the numbers given but for
// what a loss of power took: far more than they have unsynced.
const unknownAhead = 16 * numbersAhead
