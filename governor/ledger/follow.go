package ledger

import (
	"context"
	"errors"
	"fmt"

	"go.etcd.io/bbolt"

	"github.com/handoff-governor/handoff-governor/handoff/entry"
)

// Source is a record that another ledger follows.
type Source interface {
	entry.Source
	// Body returns what is stored beside an entry. Its error is an [ErrNotFound] where nothing is, or nothing any more.
	Body(index uint64) (salt, data []byte, err error)
	// Bundle returns the bytes of a policy bundle that was in force.
	Bundle(digest string) ([]byte, error)
}

// Followed tells what was copied.
type Followed struct {
	Entries uint64 // that the ledger did not have
	Bodies  uint64 // with them
}

// Follow appends what src has and the ledger has not, up to src's newest checkpoint, and keeps that: so the ledger is a copy that
// proves itself, and each further copy costs what is new. The ledger must be open without a signer. Trust has the keys of the log.
//
// Nothing is appended unless it is what the log signed, on top of what the ledger has. Else the error is [ErrForked]: src was
// rewritten, or is not as long as it once was, and the ledger is the proof of it. The live state is not copied; it is made again
// from the entries.
func (l *Ledger) Follow(ctx context.Context, src Source, trust entry.Config) (done Followed, err error) {
	signed, err := src.Checkpoint()
	if err != nil {
		return done, fmt.Errorf("reading the checkpoint: %w", err)
	}
	c, err := trust.OpenCheckpoint(signed)
	if err != nil {
		return done, err
	}
	if err := l.mayFollow(ctx, src, c); err != nil {
		return done, err
	}
	var batch []Record
	volume, bodyless := 0, uint64(0)
	flush := func() error {
		if err := l.Append(ctx, l.Size(), batch); err != nil {
			return err
		}
		done.Entries += uint64(len(batch))
		batch, volume = batch[:0], 0
		return nil
	}
	for encoded, err := range src.Entries(l.Size()) {
		next := l.Size() + uint64(len(batch))
		if err != nil {
			return done, fmt.Errorf("reading entry %d: %w", next, err)
		}
		if next == c.Size {
			break
		}
		r, err := followed(src, next, encoded)
		if errors.Is(err, ErrNotFound) {
			bodyless = next
		} else if err != nil {
			return done, err
		}
		if r.Body != nil {
			done.Bodies++
			volume += len(r.Body.Data)
		}
		batch = append(batch, r)
		if volume += len(encoded); len(batch) == pageEntries || volume > pageVolume {
			if err := flush(); err != nil {
				return done, err
			}
		}
	}
	if err := flush(); err != nil {
		return done, err
	}
	if bodyless > 0 { // what src's retention has taken, takes with it whatever is older
		if err := l.dropBelow(ctx, bodyless); err != nil {
			return done, err
		}
	}
	return done, l.keep(signed, c)
}

// ErrForked is a record that does not go on from the one it is to be appended to.
var ErrForked = errors.New("the record is not a continuation of its copy")

// mayFollow finds out whether what src has is what the log signed, before any of it is appended.
func (l *Ledger) mayFollow(ctx context.Context, src Source, c entry.Checkpoint) error {
	l.mu.Lock()
	grown := l.tree.clone()
	l.mu.Unlock()
	switch {
	case c.Origin != l.cfg.LogName:
		return fmt.Errorf("%w (%q, not %q): name the copy of this one", ErrOtherLog, c.Origin, l.cfg.LogName)
	case c.Size < grown.size:
		return fmt.Errorf("%w: it has %d entries, and the copy %d", ErrForked, c.Size, grown.size)
	}
	for encoded, err := range src.Entries(grown.size) {
		if err == nil {
			err = ctx.Err()
		}
		if err != nil {
			return fmt.Errorf("reading entry %d: %w", grown.size, err)
		}
		if grown.size == c.Size {
			break
		}
		grown.add(entry.LeafHash(encoded))
		grown.full = grown.full[:0]
	}
	if grown.size < c.Size || grown.root() != c.Root {
		return fmt.Errorf("%w: the %d entries that it signed are not the copy's with what is newer", ErrForked, c.Size)
	}
	return nil
}

// followed is an entry with what src has beside it. Where a body is no more, the error is [ErrNotFound], and the record good.
func followed(src Source, index uint64, encoded []byte) (Record, error) {
	e, err := entry.Decode(encoded)
	if err != nil {
		return Record{}, fmt.Errorf("entry %d: %w", index, err)
	}
	r := Record{Entry: encoded, Session: e.Session}
	if id := e.ID(); id != "" {
		r.IDs = []string{id}
	}
	if e.Kind == entry.KindBundle {
		content, err := src.Bundle(e.Bundle.Digest)
		if err != nil {
			return r, fmt.Errorf("the bundle of entry %d: %w", index, err)
		}
		r.Bundle = &Bundle{Digest: e.Bundle.Digest, Bytes: content}
	}
	if _, hash := e.BodyHash(); hash != "" {
		salt, data, err := src.Body(index)
		if err != nil {
			return r, fmt.Errorf("the body of entry %d: %w", index, err)
		}
		r.Body = &Body{Salt: salt, Data: data}
	}
	return r, nil
}

// keep stores a checkpoint that somebody else has signed.
func (l *Ledger) keep(signed []byte, c entry.Checkpoint) error {
	l.mu.Lock()
	same := l.tree.size == c.Size && l.tree.root() == c.Root
	if same {
		l.checkpoint, l.signed = signed, c.Size
	}
	l.mu.Unlock()
	if !same {
		return fmt.Errorf("%w: it was changed while it was read", ErrForked)
	}
	l.writing.Lock()
	defer l.writing.Unlock()
	l.stored = 0 // so that it is stored, though one of this size may be: its signatures can be others
	return l.update(func(*bbolt.Tx) error { return nil })
}
