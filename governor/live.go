package governor

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/handoff-governor/handoff-governor/governor/failpoint"
	"github.com/handoff-governor/handoff-governor/handoff/entry"
	"github.com/handoff-governor/handoff-governor/handoff/wire"
)

// The live bucket makes restarts quick: it names the sessions that are in memory, and the newest entry of each agent, as
// of a watermark. What a session is follows from its own entries, which its back pointers find; so a restart reads those
// and whatever came after the watermark, however long the ledger is.
//
// It is a cache and proves nothing: without it the whole ledger is read, to the same state.
const (
	liveSession   = "session/"   // + ID → nothing
	liveAgent     = "agent/"     // + name → newest entry sent + 1, newest entry received + 1; 0 for none
	liveWithdrawn = "withdrawn/" // + name → the entry that withdrew it
	liveBundle    = "bundle"     // → digest of the bundle in force
	liveOut       = "out"        // → what has left for inboxes: outMark
	liveNumbers   = "numbers"    // → the highest sequence number that a message in an inbox may have: numbers.go
)

// touch notes that a key of the live bucket is out of date.
func (st *State) touch(key string) { st.touched[key] = true }

// liveValue is what a key of the live bucket should be, or nil where it should not be there.
func (st *State) liveValue(key string) []byte {
	if id, ok := strings.CutPrefix(key, liveSession); ok {
		if st.sessions[id] != nil {
			return []byte{}
		}
		return nil
	}
	if name, ok := strings.CutPrefix(key, liveAgent); ok {
		var heads [16]byte
		if i, ok := st.sender[name]; ok {
			binary.BigEndian.PutUint64(heads[:8], i+1)
		}
		if i, ok := st.receiver[name]; ok {
			binary.BigEndian.PutUint64(heads[8:], i+1)
		}
		return heads[:]
	}
	if name, ok := strings.CutPrefix(key, liveWithdrawn); ok {
		if at, ok := st.withdrawn[name]; ok {
			return binary.BigEndian.AppendUint64(nil, at)
		}
		return nil
	}
	return []byte(st.bundle)
}

// flushLive stores what has changed in the live bucket. It takes its turn like everything else, so that what it stores is
// of a prefix of the ledger, and only once that prefix is durable and what it leads to is out.
func (g *Governor) flushLive(ctx context.Context) error {
	var watermark uint64
	var changes map[string][]byte
	err := g.do(ctx, func(b *batch) error {
		watermark, changes = b.st.next, b.st.liveChanges() // this may run again, where its batch fails
		return nil
	})
	if err == nil {
		err = g.putLive(ctx, watermark, changes, numbersAhead)
	}
	if err != nil {
		g.state.mu.Lock()
		defer g.state.mu.Unlock()
		for key := range changes {
			g.state.touch(key)
		}
	}
	return err
}

// flushLast is flushLive once everything has come to its end and nothing takes turns any more.
func (g *Governor) flushLast(ctx context.Context) error {
	if g.stale {
		return nil // the state holds what is not on record
	}
	g.state.mu.Lock()
	watermark, changes := g.state.next, g.state.liveChanges()
	g.state.mu.Unlock()
	return g.putLive(ctx, watermark, changes, 0)
}

// liveChanges takes what has changed since it was called last.
func (st *State) liveChanges() map[string][]byte {
	changes := map[string][]byte{}
	for key := range st.touched {
		changes[key] = st.liveValue(key)
	}
	clear(st.touched)
	return changes
}

// putLive stores the live bucket as of a watermark. No more than ahead sequence numbers are given before it is stored again.
func (g *Governor) putLive(ctx context.Context, watermark uint64, changes map[string][]byte, ahead uint64) error {
	all := maps.Clone(changes)
	before := g.numbers.read()
	stored, err := g.cfg.Bus.Stored(ctx)
	g.noticeLoss(err)
	if err == nil { // else the mark stays where it was
		all[liveOut] = outMark{g.outUpTo(watermark), stored}.encode()
		g.numbers.correct(before, stored)
	}
	err = g.numbers.record(ahead, func(bound []byte) error {
		all[liveNumbers] = bound
		return g.cfg.Log.PutLive(watermark, all)
	})
	g.noteFlushed(ctx, err)
	failpoint.At("flushed")
	return err
}

// rebuild reads the state back from the ledger.
func (g *Governor) rebuild(ctx context.Context) error {
	fresh := g.newState()
	if err := fresh.restoreLive(ctx, g.cfg.Log); err != nil {
		g.log.WarnContext(ctx, "the live state cannot be used; reading the whole ledger", "err", err)
		fresh = g.newState()
	}
	if err := fresh.replay(ctx, g.cfg.Log, g.cfg.Now().Unix()); err != nil {
		return err
	}
	// Renewals are not on record. After a failed commit they are still in memory; after a start every process gets its
	// time in full.
	lease := g.cfg.Now().UnixMilli() + wire.Lease*1000
	for id, h := range fresh.handoffs {
		if h.status != statusClaimed {
			continue
		}
		until := lease
		if old := g.state.handoffs[id]; old != nil && old.status == statusClaimed {
			until = old.leased
		}
		h.leased = max(h.leased, until)
	}
	g.state.replace(fresh)
	return nil
}

// replay applies the entries from st.next on. Sessions that are over and forgotten at the time now (Unix seconds) do not
// stay.
func (st *State) replay(ctx context.Context, log Log, now int64) error {
	for encoded, err := range log.Entries(st.next) {
		if err == nil {
			err = ctx.Err()
		}
		if err != nil {
			return err
		}
		e, err := entry.Decode(encoded)
		if err != nil {
			return fmt.Errorf("entry %d: %w", st.next, err)
		}
		if err := st.apply(e, known{}); err != nil {
			return err
		}
		if e.Kind == entry.KindClosed || e.Kind == entry.KindRevoked {
			st.sweep(now)
		}
	}
	return nil
}

// restoreLive makes the state as of the live bucket's watermark.
func (st *State) restoreLive(ctx context.Context, log Log) error {
	watermark, items, err := log.Live()
	if err != nil || watermark == 0 {
		return err
	}
	if watermark > log.Size() {
		return errors.New("it is newer than the ledger")
	}
	last, err := log.Entry(watermark - 1)
	if err != nil {
		return err
	}
	newest, err := entry.Decode(last)
	if err != nil {
		return err
	}
	var entries []*entry.Entry
	for _, key := range slices.Sorted(maps.Keys(items)) {
		value := items[key]
		if id, ok := strings.CutPrefix(key, liveSession); ok {
			for encoded, err := range log.Session(id) {
				if err == nil {
					err = ctx.Err()
				}
				if err != nil {
					return err
				}
				e, err := entry.Decode(encoded)
				if err != nil {
					return err
				}
				if e.Index < watermark {
					entries = append(entries, e)
				}
			}
			continue
		}
		if name, ok := strings.CutPrefix(key, liveAgent); ok {
			if len(value) != 16 {
				return fmt.Errorf("the heads of %s have %d bytes", name, len(value))
			}
			if i := binary.BigEndian.Uint64(value[:8]); i > 0 {
				st.sender[name] = i - 1
			}
			if i := binary.BigEndian.Uint64(value[8:]); i > 0 {
				st.receiver[name] = i - 1
			}
			continue
		}
		if name, ok := strings.CutPrefix(key, liveWithdrawn); ok {
			if len(value) != 8 {
				return fmt.Errorf("who withdrew %s has %d bytes", name, len(value))
			}
			st.withdrawn[name] = binary.BigEndian.Uint64(value)
			continue
		}
		switch key {
		case liveBundle:
			st.bundle = string(value)
		case liveOut:
			if st.out, err = parseOutMark(value); err != nil {
				return err
			}
		case liveNumbers: // not of the state
		default:
			return fmt.Errorf("unknown key %q", key)
		}
	}
	slices.SortFunc(entries, func(a, b *entry.Entry) int { return int(int64(a.Index) - int64(b.Index)) })
	for _, e := range entries {
		if err := st.applySession(e, known{}); err != nil {
			return err
		}
	}
	st.next, st.clock = watermark, newest.Time
	clear(st.touched)
	return nil
}
