package torture

import (
	"crypto/sha256"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/handoff-governor/handoff-governor/handoff"
)

// books are what the agents were told and have seen, by their own clocks. In the end they are compared with the ledger.
type books struct {
	mu       sync.Mutex
	handoffs map[string]*handed
	sessions map[string]*opened
	ends     map[string]int // :: how a handoff or a try ended → how often
	wrong    []string       // what must not be
	missing  int            // of it, what was promised and never came

	offers, delivered, results int
	permitted, refused         int           // calls at guards; those refused because of a revocation
	late                       int           // calls that were permitted though what they stood on had been revoked
	lag                        time.Duration // the longest for which that was so
	slowest                    time.Duration // from an offer to its result
}

// opened is a session that is on record, as far as its opener knows.
type opened struct {
	id     string
	closed time.Time
}

// handed is a handoff.
type handed struct {
	session   *opened
	under     *held // whose grant it was offered with; nil for the session's root
	receipted bool
	delivered bool
	completed bool // a worker has a receipt for its result
	resulted  bool // the sender has it
	passedOn  bool // transferred, so that another one's result is its
	holder    *held
	revoked   time.Time
}

// held is a grant that a worker holds or has held.
type held struct {
	grant          atomic.Pointer[handoff.Grant] // nil once no more calls are made under it
	chain          [sha256.Size]byte             // tells grants apart
	of             *handed
	ended, revoked time.Time // alone, or with all that is below
}

func newBooks() *books {
	return &books{handoffs: map[string]*handed{}, sessions: map[string]*opened{}, ends: map[string]int{}}
}

// amiss notes what must not be.
func (b *books) amiss(format string, args ...any) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.note(format, args...)
}

func (b *books) note(format string, args ...any) {
	b.wrong = append(b.wrong, fmt.Sprintf(format, args...))
}

// lost notes that something promised never came.
func (b *books) lost(format string, args ...any) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.missing++
	b.note(format, args...)
}

func (b *books) end(how string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.ends[how]++
}

func (b *books) open(session string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.sessions[session] = &opened{id: session}
}

func (b *books) close(session string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.sessions[session].closed = time.Now()
}

// offer is called before an offer is sent, so that its receiver is never ahead of the books.
func (b *books) offer(id, session string, under *held) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.handoffs[id] = &handed{session: b.sessions[session], under: under}
}

func (b *books) receipt(id string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.handoffs[id].receipted = true
	b.offers++
}

// claim is called when a task was received.
func (b *books) claim(id string, grant *handoff.Grant, transferred bool) *held {
	b.mu.Lock()
	defer b.mu.Unlock()
	h := b.handoffs[id]
	if h == nil {
		b.note("the task %s was offered by nobody", id)
		h = &handed{session: &opened{}}
		b.handoffs[id] = h
	}
	if !h.delivered {
		h.delivered = true
		b.delivered++
	}
	now := time.Now()
	chain := chainOf(grant)
	if h.holder != nil && grant != nil && h.holder.chain == chain {
		return h.holder // a process that has lost sight of its task has it again
	}
	if h.holder != nil {
		h.holder.revoked = now // taken over
		b.ends["taken over"]++
	}
	if transferred && h.under != nil {
		h.under.ended, h.under.of.passedOn = now, true
	}
	h.holder = &held{chain: chain, of: h}
	h.holder.grant.Store(grant)
	return h.holder
}

func chainOf(grant *handoff.Grant) [sha256.Size]byte {
	if grant == nil {
		return [sha256.Size]byte{}
	}
	return sha256.Sum256([]byte(strings.Join(grant.Chain(), "\n")))
}

func (b *books) complete(id string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	h := b.handoffs[id]
	h.completed, h.holder.revoked = true, time.Now()
}

func (b *books) revoke(id string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.handoffs[id].revoked = time.Now()
}

func (b *books) result(id string, took time.Duration) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.handoffs[id].resulted = true
	b.results++
	b.slowest = max(b.slowest, took)
	b.ends["result"]++
}

// over is since when no call may be made under a grant any more, and why; zero while it may. It is called with mu held.
func (g *held) over() (since time.Time, why string) {
	ended := func(at time.Time, what string) {
		if !at.IsZero() && (since.IsZero() || at.Before(since)) {
			since, why = at, what
		}
	}
	ended(g.ended, "passed on")
	ended(g.revoked, "done or taken over")
	ended(g.of.revoked, "revoked")
	ended(g.of.session.closed, "closed")
	for up := g.of.under; up != nil; up = up.of.under {
		ended(up.revoked, "done or taken over above")
		ended(up.of.revoked, "revoked above")
	}
	return since, why
}

// permit notes that a guard has permitted a call that began at a time. Guards hear of a revocation over the network, and
// refuse everything within heard where they hear nothing.
func (b *books) permit(g *held, audience string, began time.Time, heard time.Duration) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.permitted++
	since, why := g.over()
	if since.IsZero() || began.Before(since) {
		return
	}
	lag := began.Sub(since)
	if b.lag = max(b.lag, lag); lag > heard {
		b.late++
		b.note("at %s %s has permitted a call for a task of session %s, which was %s %s before",
			began.UTC().Format(time.RFC3339Nano), audience, g.of.session.id, why, lag)
	}
}

func (b *books) refuse() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.refused++
}

// compare holds the books against the ledger. What was receipted must be in it, and lead to what was told.
func (b *books) compare(a *audit) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for id, s := range b.sessions {
		if over, known := a.sessions[id]; !known || !s.closed.IsZero() && !over {
			b.missing++
			b.note("session %s was answered, and is not so in the ledger", id)
		}
	}
	for id, h := range b.handoffs {
		switch in := a.offers[id]; {
		case in == nil && h.receipted, in != nil && in.decided == 0:
			b.missing++
			b.note("handoff %s was receipted, and is not in the ledger", id)
		case in == nil:
		case (h.completed || h.resulted && !h.passedOn) && in.results == 0:
			b.missing++
			b.note("the result of handoff %s was receipted, and is not in the ledger", id)
		case h.delivered && in.claims == 0:
			b.missing++
			b.note("handoff %s was claimed, and is not so in the ledger", id)
		case !h.revoked.IsZero() && !in.over && !a.sessions[in.session]:
			b.missing++
			b.note("handoff %s was revoked, and is not so in the ledger", id)
		}
	}
}
