package governor

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"time"
)

// Halted is a sequencer that waits. What is proposed meanwhile is looked at, and has its turn afterwards: in the order in
// which it came, and in one batch where it fits.
type Halted struct {
	messages, requests atomic.Int64 // that were looked at
	own                int          // requests of the governor's own that will come: for the passing of time, one after the other
	resume             chan struct{}
}

// Halt has the sequencer wait, from when it returns.
func (g *Governor) Halt() *Halted {
	h := &Halted{resume: make(chan struct{})}
	holding := make(chan struct{})
	waiting := make(chan error, 1)
	wait := &step{done: waiting, run: func(b *batch) error {
		h.own = 1
		for _, p := range b.members {
			if s, ok := p.(*step); ok && s.done != waiting {
				h.own = 0 // it is in this very batch
			}
		}
		b.unlocked(func() { // and so others can go on looking
			close(holding)
			h.collect(g.proposals)
		})
		b.judging = 0
		return nil
	}}
	g.proposals <- []proposal{wait}
	<-holding
	return h
}

func (h *Halted) collect(proposals chan []proposal) {
	var all []proposal
	add := func(more []proposal) {
		all = append(all, more...)
		for _, p := range more {
			if _, ok := p.(*step); ok {
				h.requests.Add(1)
			} else {
				h.messages.Add(1)
			}
		}
	}
	for {
		select {
		case more := <-proposals:
			add(more)
			continue
		case <-h.resume:
		}
		for len(all) > 0 {
			select {
			case more := <-proposals: // what has come meanwhile is later than the rest
				add(more)
				continue
			default:
			}
			select {
			case more := <-proposals:
				add(more)
			case proposals <- all:
				all = nil
			}
		}
		return
	}
}

// Await waits until so many offers, results and claims, and so many requests of other kinds, have been looked at.
func (h *Halted) Await(messages, requests int) {
	if requests > 0 {
		requests += h.own
	}
	for m, r := h.Looked(); m < messages || r < requests; m, r = h.Looked() {
		time.Sleep(100 * time.Microsecond)
	}
}

// Own is how many requests of the governor's own will come.
func (h *Halted) Own() int { return h.own }

// Looked is how many offers, results and claims, and how many requests of other kinds, have been looked at.
func (h *Halted) Looked() (messages, requests int) {
	return int(h.messages.Load()), int(h.requests.Load())
}

// Resume lets them have their turn.
func (h *Halted) Resume() { close(h.resume) }

// EndAtOnce, NameAtOnce and PageOf change a bound until the function that they return is called.
func EndAtOnce(n int) func()  { return bound(&maxEnded, n) }
func NameAtOnce(n int) func() { return bound(&maxNamed, n) }
func PageOf(n int) func()     { return bound(&feedPage, n) }

func bound(b *int, n int) func() {
	before := *b
	*b = n
	return func() { *b = before }
}

// OutUpTo is the first entry whose messages a start after a crash would publish again.
func (g *Governor) OutUpTo() (uint64, error) {
	_, items, err := g.cfg.Log.Live()
	if err != nil || items[liveOut] == nil {
		return 0, err
	}
	mark, err := parseOutMark(items[liveOut])
	return mark.entries, err
}

// DumpReplayed is what a governor that starts now would believe, with the live bucket or from the whole ledger.
func (g *Governor) DumpReplayed(ctx context.Context, useLive bool) (string, error) {
	st := g.newState()
	if useLive {
		if err := g.flushLive(ctx); err != nil {
			return "", err
		}
		if err := st.restoreLive(ctx, g.cfg.Log); err != nil {
			return "", err
		}
		if st.next == 0 {
			return "", errors.New("there is no live state")
		}
	}
	if err := st.replay(ctx, g.cfg.Log, g.cfg.Now().Unix()); err != nil {
		return "", err
	}
	return st.dump(), nil
}

// dump writes the state down, so that two can be compared.
func (st *State) dump() string {
	var lines []string
	add := func(format string, args ...any) { lines = append(lines, fmt.Sprintf(format, args...)) }
	add("next %d clock %d bundle %s", st.next, st.clock, st.bundle)
	for id, s := range st.sessions {
		add("session %s %s %q admitted %d decided %d denied %d newest %d results %v", id, s.opener, s.over, s.admitted, s.decided,
			s.denied, s.newest, s.results)
	}
	for id, h := range st.handoffs {
		grant, result := "", ""
		if h.grant != nil {
			grant = h.grant.id
		}
		if h.result != nil {
			result = fmt.Sprintf("%d %s %s", h.result.index, h.result.effect, h.result.claim.ID)
		}
		add("handoff %s %s→%s %s under %s %s labels %v granted %v until %d/%d depth %d reasons %v decided %d newest %d grant %s lost %v leased %d result %s approvals %v",
			id, h.from, h.to, h.mode(), h.parent.id, h.status, h.labels, h.granted, h.deadline, h.expires, h.maxDepth, h.reasons, h.decided,
			h.newest, grant, h.lost, h.leased, result, h.approvals)
	}
	for id, g := range st.byID {
		var children []string
		for _, h := range g.children {
			children = append(children, h.id)
		}
		add("grant %s %s %s state %d labels %v until %d hops %d newest %d children %v hash %s", id, g.agent, g.key, g.state, g.labels,
			g.expires, g.hops, g.newest, children, g.link.HashString())
	}
	for name, i := range st.sender {
		add("sender %s %d", name, i)
	}
	for name, i := range st.receiver {
		add("receiver %s %d", name, i)
	}
	for way, n := range st.open {
		add("open %s %s %d", way.from, way.to, n)
	}
	for name, at := range st.withdrawn {
		add("withdrawn %s %d", name, at)
	}
	for name, n := range st.opens {
		add("opens %s %d", name, n)
	}
	for print, h := range st.holders {
		add("holder %s %s %d", print, h.agent, h.grants)
	}
	for id, i := range st.used {
		add("used %s %d", id, i)
	}
	for i, r := range st.held {
		add("held %d %s %s", i, r.handoff.id, r.stage)
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

// Dump is what a running governor believes.
func (g *Governor) Dump() string {
	g.state.mu.RLock()
	defer g.state.mu.RUnlock()
	return g.state.dump()
}

// OnWithdrawn puts something between the governor and what its configuration has it tell.
func (g *Governor) OnWithdrawn(f func(next func(context.Context, string, bool) error) func(context.Context, string, bool) error) {
	g.identities.Lock()
	defer g.identities.Unlock()
	g.cfg.Withdrawn = f(g.cfg.Withdrawn)
}
