package guard

import (
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/go-json-experiment/json"

	"github.com/handoff-governor/handoff-governor/handoff/aat/jws"
	"github.com/handoff-governor/handoff-governor/handoff/wire"
)

// feed is what is known of one governor's revocations. It is trustworthy while it is complete (a snapshot and every
// statement since) and fresh (a statement within the time limit).
//
// Links only ever get added, and a link's state only ever gets worse, until the link itself has expired. So statements
// may be applied in any order and any number of times; order matters only to know whether one is missing.
type feed struct {
	governor string // URI
	skew     time.Duration
	timeout  time.Duration
	max      int              // links
	clock    func() time.Time // Config.Now as it is, with a monotonic reading where there is one

	mu       sync.RWMutex
	epoch    string
	first    uint64    // statements first to last of epoch were applied, without a gap;
	last     uint64    // none yet when last is first-1
	read     bool      // a whole snapshot, which covers what came before first
	upto     uint64    // highest sequence of a page of it: what is between last and this is still to come
	base     uint64    // sequence of the first page of the snapshot that is being read
	after    string    // the page to ask for next
	heard    time.Time // when the newest statement was applied, by the guard's clock, or its own time if that is earlier
	arrived  time.Time // when, by Config.Now, which goes on where the guard's clock stands still
	links    map[[32]byte]string
	expiring map[int64][][32]byte // :: minute after which they are forgotten → links
	swept    int64                // minutes below are forgotten
}

func newFeed(governor string, cfg Config) *feed {
	return &feed{
		governor: governor, skew: cfg.Skew, timeout: cfg.FeedTimeout, max: cfg.MaxRevocations, clock: cfg.Now,
		first: 1, links: map[[32]byte]string{}, expiring: map[int64][][32]byte{},
	}
}

// fresh says whether the feed can be relied on now. The guard's clock stands still after the wall clock was set back, so
// the time that has really passed counts as well. Where there is no telling, because a clock without a monotonic reading
// was set back, the feed is not fresh until the next statement.
func (f *feed) fresh(now time.Time) bool {
	f.mu.RLock()
	defer f.mu.RUnlock()
	passed := f.clock().Sub(f.arrived)
	return f.complete() && now.Sub(f.heard) <= f.timeout && 0 <= passed && passed <= f.timeout
}

// alive notes a sign of life that the governor gave at made, by its own clock. A network can hold one back and deliver it
// late, so it counts from when it was made, as far as the clocks can be relied on to agree.
func (f *feed) alive(made, now time.Time) {
	f.heard, f.arrived = now, f.clock()
	if latest := made.Add(f.skew); latest.Before(now) {
		f.heard = latest
	}
}

// complete says whether nothing is missing up to the newest statement or page.
func (f *feed) complete() bool { return f.read && f.last >= f.upto }

// state of a link: "", or one of wire.StateRevoked and wire.StateEnded.
func (f *feed) state(link [32]byte) string {
	f.mu.RLock()
	defer f.mu.RUnlock()
	return f.links[link]
}

// need returns the page of the snapshot to ask for, and whether one is needed.
func (f *feed) need() (after string, needed bool) {
	f.mu.RLock()
	defer f.mu.RUnlock()
	return f.after, !f.read // what a page has shown to be missing comes as a statement, or shows as a gap
}

// apply takes a statement of this feed's governor whose signature has been verified.
func (f *feed) apply(s wire.RevocationFeed, now time.Time) error {
	links, err := readLinks(s.Links)
	if err != nil {
		return err
	}
	made := time.Unix(s.Time, 0)
	age := now.Sub(made)
	switch limit := f.timeout + f.skew; {
	case s.Epoch == "" || s.Sequence == 0 && !s.Snapshot:
		return errors.New("the statement has no epoch or no sequence")
	case age > limit || age < -limit:
		return fmt.Errorf("the statement's time is %s off this guard's clock", age.Round(time.Second))
	}

	f.mu.Lock()
	defer f.mu.Unlock()
	f.sweep(now)
	next := s.Sequence
	if s.Snapshot {
		next++
	}
	if s.Epoch != f.epoch {
		f.epoch = s.Epoch
		f.restart(next)
	}
	if s.Snapshot {
		err = f.page(s, made, now)
	} else {
		f.statement(s.Sequence, made, now)
	}
	for _, l := range links {
		if !f.add(l, now) {
			f.incomplete()
			return fmt.Errorf("more than %d links are revoked: raise MaxRevocations", f.max)
		}
	}
	return err
}

// statement notes the place of an event or a heartbeat.
func (f *feed) statement(sequence uint64, made, now time.Time) {
	switch {
	case sequence <= f.last: // a repeat is no sign of life
		return
	case sequence > f.last+1:
		f.restart(sequence)
	}
	f.last = sequence
	f.alive(made, now)
}

// page notes the place of a page of a snapshot. The pages need not stand at one sequence: what was revoked after the
// first page has come, or will come, as a statement.
func (f *feed) page(s wire.RevocationFeed, made, now time.Time) error {
	switch {
	case f.read:
		return nil // what it says is added all the same
	case s.After != f.after:
		return fmt.Errorf("a page of the snapshot after %.50q, asked for %.50q", s.After, f.after)
	case s.Next != "" && s.Next <= s.After:
		f.incomplete()
		return errors.New("the snapshot's pages do not advance")
	case s.After == "" && s.Sequence+1 < f.first, s.After != "" && s.Sequence < f.base:
		f.incomplete()
		return errors.New("the snapshot is older than the statements it should complete")
	}
	if s.After == "" {
		f.base = s.Sequence
		if s.Sequence > f.last {
			f.first, f.last = s.Sequence+1, s.Sequence
		}
	}
	f.upto = max(f.upto, s.Sequence)
	f.after = s.Next
	if s.Next == "" {
		f.read = true
		f.alive(made, now)
	}
	return nil
}

// restart begins an unbroken run at sequence, which a snapshot must complete.
func (f *feed) restart(sequence uint64) {
	f.first, f.last = sequence, sequence-1
	f.incomplete()
}

func (f *feed) incomplete() { f.read, f.upto, f.base, f.after = false, 0, 0, "" }

func (f *feed) add(l revokedLink, now time.Time) bool {
	minute := l.expires.Add(f.skew).Unix()/60 + 1
	if minute <= now.Unix()/60 {
		return true
	}
	known, ok := f.links[l.hash]
	switch {
	case !ok && len(f.links) >= f.max:
		return false
	case !ok:
		f.expiring[minute] = append(f.expiring[minute], l.hash)
	case known == wire.StateRevoked:
		return true
	}
	f.links[l.hash] = l.state
	return true
}

// sweep forgets links that have expired on their own, once a minute.
func (f *feed) sweep(now time.Time) {
	minute := now.Unix() / 60
	if minute == f.swept {
		return
	}
	f.swept = minute
	for m, hashes := range f.expiring {
		if m <= minute {
			for _, h := range hashes {
				delete(f.links, h)
			}
			delete(f.expiring, m)
		}
	}
}

func readStatement(payload []byte) (wire.RevocationFeed, error) {
	var s wire.RevocationFeed
	err := json.Unmarshal(payload, &s, json.RejectUnknownMembers(true))
	return s, err
}

type revokedLink struct {
	hash    [32]byte
	state   string
	expires time.Time
}

// readLinks refuses a whole statement for one link that it cannot read: the gap this leaves closes the guard, which is
// better than not to know what was revoked.
func readLinks(in []wire.RevokedLink) ([]revokedLink, error) {
	out := make([]revokedLink, len(in))
	for i, l := range in {
		raw, err := jws.Decode(l.Hash)
		if err != nil || len(raw) != 32 {
			return nil, fmt.Errorf("link %d: the hash is not 32 bytes as base64url without padding", i)
		}
		if l.State != wire.StateRevoked && l.State != wire.StateEnded {
			return nil, fmt.Errorf("link %d: unknown state %.20q", i, l.State)
		}
		out[i] = revokedLink{hash: [32]byte(raw), state: l.State, expires: time.Unix(l.Expires, 0)}
	}
	return out, nil
}
