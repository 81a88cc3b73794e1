package ledger

import (
	"bytes"
	"errors"
	"fmt"
	"iter"
	"math"
	"sort"
	"time"

	"github.com/go-json-experiment/json"
	"go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"

	"github.com/handoff-governor/handoff-governor/handoff/entry"
	"github.com/handoff-governor/handoff-governor/handoff/wire"
)

// Reads are short transactions: a long one would keep every page that is replaced meanwhile. And they end at
// [Ledger.Size]: bbolt shows a commit to readers a moment before it is durable.
const (
	pageEntries = 256     // entries read in one transaction
	pageVolume  = 1 << 20 // and bytes, give or take one entry
)

// view runs read in a transaction of its own. Nothing read may outlive it.
func (l *Ledger) view(read func(*bbolt.Tx) error) (err error) {
	defer guard(&err)()
	err = l.db.View(read)
	if errors.Is(err, berrors.ErrDatabaseNotOpen) {
		return ErrClosed
	}
	return err
}

// get copies one value, or fails with [ErrNotFound].
func (l *Ledger) get(bucket, key []byte, what func() string) (value []byte, err error) {
	err = l.view(func(tx *bbolt.Tx) error {
		v := tx.Bucket(bucket).Get(key)
		if v == nil {
			return fmt.Errorf("%s: %w", what(), ErrNotFound)
		}
		value = bytes.Clone(v)
		return nil
	})
	return value, err
}

// LogName is the log's name, the origin of its checkpoints.
func (l *Ledger) LogName() string { return l.cfg.LogName }

// Size is the number of entries that are durable.
func (l *Ledger) Size() uint64 { return l.size.Load() }

// Entry returns the encoded entry of an index, or [ErrNotFound].
func (l *Ledger) Entry(index uint64) ([]byte, error) {
	if index >= l.Size() {
		return nil, fmt.Errorf("entry %d: %w", index, ErrNotFound)
	}
	return l.get(bucketEntry, u64(index), func() string { return fmt.Sprintf("entry %d", index) })
}

// Entries yields the encoded entries from an index on, up to those that are durable when it gets there.
func (l *Ledger) Entries(from uint64) iter.Seq2[[]byte, error] {
	return func(yield func([]byte, error) bool) {
		for next := from; ; {
			page, err := l.page(next)
			if err != nil {
				yield(nil, err)
				return
			}
			if len(page) == 0 {
				return
			}
			for _, e := range page {
				if !yield(e, nil) {
					return
				}
			}
			next += uint64(len(page))
		}
	}
}

// page copies the entries from an index on, as many as one transaction should.
func (l *Ledger) page(from uint64) (page [][]byte, err error) {
	end := min(l.Size(), from+pageEntries)
	if from >= end {
		return nil, nil
	}
	err = l.view(func(tx *bbolt.Tx) error {
		c := tx.Bucket(bucketEntry).Cursor()
		volume := 0
		k, v := c.Seek(u64(from))
		for next := from; next < end && volume < pageVolume; next++ {
			if index, ok := parseU64(k); !ok || index != next {
				return fmt.Errorf("%w: entry %d is missing", ErrDamaged, next)
			}
			page = append(page, bytes.Clone(v))
			volume += len(v)
			k, v = c.Next()
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return page, nil
}

// Session yields the encoded entries of a session, newest first: a walk along the pointers that each has to the one
// before it. An unknown session has none.
func (l *Ledger) Session(id string) iter.Seq2[[]byte, error] {
	return func(yield func([]byte, error) bool) {
		index, found, err := l.Newest(id)
		if err != nil {
			yield(nil, err)
		}
		if !found || err != nil {
			return
		}
		l.SessionFrom(id, index)(yield)
	}
}

// Newest finds the newest entry of a session.
func (l *Ledger) Newest(session string) (index uint64, found bool, err error) {
	index, found, err = l.find(bucketSession, session)
	if l.cfg.ReadOnly && index >= l.Size() && err == nil && found { // else it may be on its way
		return 0, false, fmt.Errorf("%w: session %s should have entry %d, and there are %d", ErrDamaged, session, index, l.Size())
	}
	return index, found, err
}

// SessionFrom is [Ledger.Session] from one of the session's entries on, back to its first.
func (l *Ledger) SessionFrom(id string, index uint64) iter.Seq2[[]byte, error] {
	return func(yield func([]byte, error) bool) {
		var err error
		for durable := l.Size(); err == nil; {
			var encoded []byte
			var link struct {
				Session string     `json:"session"`
				Prev    entry.Prev `json:"prev"`
			}
			if encoded, err = l.get(bucketEntry, u64(index), func() string { return "an entry of session " + id }); err != nil {
				break
			}
			if err = json.Unmarshal(encoded, &link); err != nil || link.Session != id {
				err = fmt.Errorf("%w: entry %d should be of session %s", ErrDamaged, index, id)
				break
			}
			if index < durable && !yield(encoded, nil) || link.Prev.Session == nil {
				return
			}
			if before := *link.Prev.Session; before < index {
				index = before
			} else {
				err = fmt.Errorf("%w: entry %d points forward", ErrDamaged, index)
			}
		}
		yield(nil, err)
	}
}

// Lookup finds the entry that used up an ID, however long ago.
func (l *Ledger) Lookup(id string) (index uint64, found bool, err error) {
	index, found, err = l.find(bucketID, id)
	return index, found && index < l.Size(), err
}

// find reads the index that a bucket has for a UUID.
func (l *Ledger) find(bucket []byte, id string) (index uint64, found bool, err error) {
	key, err := uuidKey(id)
	if err != nil {
		return 0, false, err
	}
	err = l.view(func(tx *bbolt.Tx) error {
		if v := tx.Bucket(bucket).Get(key); v != nil {
			if index, found = parseU64(v); !found {
				return fmt.Errorf("%w: in bucket %q, what is kept for %s is not an index", ErrDamaged, bucket, id)
			}
		}
		return nil
	})
	return index, found, err
}

// Body returns the salt and the bytes stored beside an entry, or [ErrNotFound] where there are none, or none any more.
func (l *Ledger) Body(index uint64) (salt, data []byte, err error) {
	if index >= l.Size() {
		return nil, nil, fmt.Errorf("body of entry %d: %w", index, ErrNotFound)
	}
	body, err := l.get(bucketBody, u64(index), func() string { return fmt.Sprintf("body of entry %d", index) })
	if err != nil {
		return nil, nil, err
	}
	if len(body) < wire.SaltSize {
		return nil, nil, fmt.Errorf("%w: the body of entry %d has no salt", ErrDamaged, index)
	}
	return body[:wire.SaltSize:wire.SaltSize], body[wire.SaltSize:], nil
}

// Bundle returns a bundle's bytes by their digest, or [ErrNotFound].
func (l *Ledger) Bundle(digest string) ([]byte, error) {
	return l.get(bucketBundle, []byte(digest), func() string { return fmt.Sprintf("bundle %.80q", digest) })
}

// NewestBundle returns the bytes of the bundle that was put in force last, or [ErrNotFound] where none ever was.
func (l *Ledger) NewestBundle() ([]byte, error) {
	l.mu.Lock()
	digest := l.bundle
	l.mu.Unlock()
	if digest == "" {
		return nil, fmt.Errorf("a bundle in force: %w", ErrNotFound)
	}
	return l.Bundle(digest)
}

// Live returns the cache that [Ledger.PutLive] stored, and its watermark: 0 and nothing where there never was one, or where it
// is damaged. A damaged one is emptied, unless the ledger is open for reading only.
func (l *Ledger) Live() (watermark uint64, items map[string][]byte, err error) {
	items = map[string][]byte{}
	var sum, want liveSum
	summed := false
	err = l.view(func(tx *bbolt.Tx) error {
		meta := tx.Bucket(bucketMeta)
		if mark := meta.Get(metaWatermark); mark != nil {
			watermark, _ = parseU64(mark)
			sum.toggle(nil, mark)
		}
		want, summed = liveSumOf(meta)
		return tx.Bucket(bucketLive).ForEach(func(k, v []byte) error {
			sum.toggle(k, v)
			items[string(k)] = bytes.Clone(v)
			return nil
		})
	})
	if err != nil {
		return 0, nil, err
	}
	if !summed || sum == want {
		return watermark, items, nil
	}
	l.log.Error("the cache of the governor's state is damaged; the state is read from the entries, which takes longer")
	if l.cfg.ReadOnly {
		return 0, map[string][]byte{}, nil
	}
	return 0, map[string][]byte{}, l.emptyLive()
}

// emptyLive takes the cache away.
func (l *Ledger) emptyLive() error {
	l.writing.Lock()
	defer l.writing.Unlock()
	return l.update(func(tx *bbolt.Tx) error {
		if err := tx.DeleteBucket(bucketLive); err != nil {
			return err
		}
		if _, err := tx.CreateBucket(bucketLive); err != nil {
			return err
		}
		meta := tx.Bucket(bucketMeta)
		if err := meta.Delete(metaWatermark); err != nil {
			return err
		}
		return meta.Put(metaLive, make([]byte, len(liveSum{})))
	})
}

// after finds the first entry that is not older than t. Entries' times never go backwards.
func (l *Ledger) after(t time.Time) (uint64, error) {
	var failed error
	index := sort.Search(int(min(l.Size(), math.MaxInt)), func(i int) bool {
		var when struct {
			Time int64 `json:"time"`
		}
		encoded, err := l.Entry(uint64(i))
		if err == nil {
			err = json.Unmarshal(encoded, &when)
		}
		if err != nil {
			failed = err
		}
		return when.Time >= t.UnixMilli()
	})
	return uint64(index), failed
}

// firstBody is the index of the oldest body, or the largest number where there is none.
func (l *Ledger) firstBody() (index uint64, err error) {
	err = l.view(func(tx *bbolt.Tx) error {
		index = math.MaxUint64
		if k, _ := tx.Bucket(bucketBody).Cursor().First(); k != nil {
			index, _ = parseU64(k)
		}
		return nil
	})
	return index, err
}
