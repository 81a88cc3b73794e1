package governor_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-json-experiment/json"

	"github.com/handoff-governor/handoff-governor/governor"
	"github.com/handoff-governor/handoff-governor/handoff/entry"
	"github.com/handoff-governor/handoff-governor/handoff/wire"
)

// The sequencer against a model. Offers, claims, results, revocations, closings and activations are looked at together, in any order,
// and have their turns in one batch; some batches cannot be written. What comes of each must be what the model says, which knows nothing
// but that one thing happens after the other.

// modelSession, modelGrant and modelHandoff are all that there is in the model.
type modelSession struct {
	root   *modelGrant
	closed bool
}

type modelGrant struct {
	session *modelSession
	handoff *modelHandoff // that it was claimed for; nil for the root
	below   []*modelHandoff
	over    bool
	held    held // what its holder has of it
}

type modelHandoff struct {
	session  *modelSession
	parent   *modelGrant
	offering *offering
	to       *agent // any process of the receiver
	unwanted bool   // by the second policy
	state    string // "", admitted, claimed, completed, denied, revoked
	asked    bool   // an operator has revoked it
	claimer  *agent
	grant    *modelGrant
}

// revoke ends a handoff that is not over, and all below it.
func (h *modelHandoff) revoke() {
	if h.state == "admitted" || h.state == "claimed" {
		h.state = "revoked"
	}
	if h.grant != nil {
		h.grant.revoke()
	}
}

func (g *modelGrant) revoke() {
	g.over = true
	for _, h := range g.below {
		h.revoke()
	}
}

// modelOp is something that is asked of the governor and of the model.
type modelOp struct {
	what    string
	request bool // it takes its turn as one
	send    func()
	done    chan bool   // whether it was granted, for good
	undone  atomic.Bool // it was told to come again, and changed nothing
	expect  func() bool // applies it to the model, and says whether it is granted
	granted func()      // what the test learns
}

type model struct {
	*loose
	r        *rand.Rand
	agents   []*agent // two processes each of b and c; a opens sessions
	sessions []*modelSession
	handoffs []*modelHandoff
	grants   []*modelGrant // of which the test holds the credential
	strict   bool          // the second policy is in force
	settled  map[string]int
	history  []string
}

const (
	wanted   = "text/plain"
	unwanted = "text/unwanted"
)

func (m *model) offer() *modelOp {
	g := m.grants[m.r.IntN(len(m.grants))]
	to := m.agents[m.r.IntN(len(m.agents))]
	h := &modelHandoff{session: g.session, parent: g, to: to, unwanted: m.r.IntN(3) == 0}
	h.offering = g.held.draft(to.name, "work")
	h.offering.handoff.ContentType = wanted
	if h.unwanted {
		h.offering.handoff.ContentType = unwanted
	}
	h.offering.header[wire.HeaderContentType] = []string{h.offering.handoff.ContentType}
	g.held.seal(h.offering)
	m.handoffs = append(m.handoffs, h)
	op := m.offered("offer", h)
	op.expect = func() bool { return m.decide(h) }
	return op
}

// decide is an offer's first turn.
func (m *model) decide(h *modelHandoff) bool {
	if h.state = "denied"; h.session.closed || h.parent.over || m.strict && h.unwanted {
		return false
	}
	h.state = "admitted"
	h.parent.below = append(h.parent.below, h)
	return true
}

// repeat sends an offer once more. It is answered as it was: nothing is decided twice.
func (m *model) repeat() *modelOp {
	h := m.handoffs[m.r.IntN(len(m.handoffs))]
	op := m.offered("repeat", h)
	op.expect = func() bool {
		switch h.state {
		case "": // the first could not be written
			return m.decide(h)
		case "admitted", "claimed", "completed":
			return true
		}
		return false
	}
	return op
}

func (m *model) offered(what string, h *modelHandoff) *modelOp {
	op := &modelOp{what: fmt.Sprintf("%s %s", what, h.offering.id), done: make(chan bool, 1)}
	op.send = func() {
		m.offers <- []wire.Inbound{m.inbound(op, m.message(h.parent.held, h.offering, nil), h.offering.id)}
	}
	return op
}

// inbound has a message's end known.
func (m *model) inbound(op *modelOp, in wire.Inbound, id string) wire.Inbound {
	in.Ack = func() error {
		op.done <- m.receipt(id) == wire.EffectAllow
		return nil
	}
	in.Term = func(string) error { op.done <- false; return nil }
	in.Retry = func(time.Duration) error { op.undone.Store(true); op.done <- false; return nil }
	return in
}

func (m *model) claim() *modelOp {
	h := m.handoffs[m.r.IntN(len(m.handoffs))]
	var processes []*agent
	for _, a := range m.agents {
		if a.name == h.to.name {
			processes = append(processes, a)
		}
	}
	by := processes[m.r.IntN(len(processes))]
	session := h.parent.held.session
	op := &modelOp{what: fmt.Sprintf("claim %s by key %.6s", h.offering.id, by.jwk().X), done: make(chan bool, 1)}
	var got wire.Claimed
	op.send = func() {
		answer := m.request(wire.VerbClaim, session, by, encode(m.t, by.claimRequest(session, []string{h.offering.id})))
		go func() {
			var out wire.ClaimResponse
			err := json.Unmarshal(<-answer, &out)
			if err == nil && out.Error == nil && len(out.Claims) == 1 {
				got = out.Claims[0]
				out.Error = got.Error
			}
			op.undone.Store(out.Error != nil && out.Error.Code == wire.CodeUnavailable)
			op.done <- out.Error == nil
		}()
	}
	op.expect = func() bool {
		switch {
		case h.session.closed || h.state == "claimed" && h.claimer != by:
			return false
		case h.state == "claimed":
			return !h.grant.over
		case h.state != "admitted":
			return false
		case m.strict && h.unwanted:
			h.state = "denied"
			return false
		}
		h.state, h.claimer, h.grant = "claimed", by, &modelGrant{session: h.session, handoff: h}
		return true
	}
	op.granted = func() {
		if h.grant != nil && h.grant.held.a == nil {
			h.grant.held = by.hold(got.Chain, *got.GovernorJWK, session, h.offering.id)
			m.grants = append(m.grants, h.grant)
		}
	}
	return op
}

func (m *model) result() *modelOp {
	var of []*modelGrant
	for _, g := range m.grants {
		if g.handoff != nil {
			of = append(of, g)
		}
	}
	if len(of) == 0 {
		return nil
	}
	g := of[m.r.IntN(len(of))]
	id, msg := g.held.sealResult("done")
	op := &modelOp{what: fmt.Sprintf("result %s of %s", id, g.held.handoff), done: make(chan bool, 1)}
	op.send = func() {
		m.offers <- []wire.Inbound{m.inbound(op, wire.Inbound{
			Kind: wire.InboundResult, Sender: g.held.a.name, Session: g.held.session, Header: msg.Header, Body: msg.Data, Deliveries: 1,
		}, id)}
	}
	op.expect = func() bool {
		if g.session.closed || g.over || g.handoff.state != "claimed" {
			return false
		}
		g.handoff.state = "completed"
		g.revoke()
		return true
	}
	return op
}

func (m *model) revoke() *modelOp {
	h := m.handoffs[m.r.IntN(len(m.handoffs))]
	op := m.operated("revoke "+h.offering.id, wire.VerbRevoke, wire.OperatorRequest{ID: h.offering.id, Reason: "model"})
	op.expect = func() bool {
		if h.session.closed || h.state != "admitted" && h.state != "claimed" {
			return h.asked && !h.session.closed // who asks again gets the same answer
		}
		h.revoke()
		h.asked = true
		return true
	}
	return op
}

func (m *model) closing() *modelOp {
	s := m.sessions[m.r.IntN(len(m.sessions))]
	op := m.operated("close "+s.root.held.session, wire.VerbSessionClose, wire.OperatorRequest{Session: s.root.held.session, Reason: "model"})
	op.expect = func() bool {
		if !s.closed {
			s.root.revoke()
			s.closed = true
		}
		return true
	}
	return op
}

func (m *model) activate() *modelOp {
	strict := m.r.IntN(2) == 0
	op := m.operated(fmt.Sprintf("activate, strict: %t", strict), wire.VerbBundleActivate,
		wire.OperatorRequest{Bundle: policyOf(m.t, map[bool]string{false: allowAll, true: strictPolicy}[strict]).Bytes()})
	op.expect = func() bool {
		if m.strict = strict; strict {
			for _, h := range m.handoffs {
				if h.unwanted && h.state == "claimed" && !h.session.closed {
					h.revoke()
				}
			}
		}
		return true
	}
	return op
}

const strictPolicy = `session := {"effect": "allow"}

result := {"effect": "allow"}

default decision := {"effect": "allow"}

decision := {"effect": "deny", "reasons": [{"code": "unwanted", "message": "no"}]} if input.content_type == "text/unwanted"`

func (m *model) operated(what, verb string, q wire.OperatorRequest) *modelOp {
	op := &modelOp{what: what, request: true, done: make(chan bool, 1)}
	op.send = func() {
		answer := m.request(wire.VerbOperator+verb, "", &agent{name: "op"}, encode(m.t, q))
		go func() {
			var out struct {
				Error *wire.Error `json:"error"`
			}
			err := json.Unmarshal(<-answer, &out)
			op.undone.Store(out.Error != nil && out.Error.Code == wire.CodeUnavailable)
			op.done <- err == nil && out.Error == nil
		}()
	}
	return op
}

// next is what is asked next.
func (m *model) next() *modelOp {
	for {
		var op *modelOp
		switch n := m.r.IntN(100); {
		case n < 35 || len(m.handoffs) == 0:
			op = m.offer()
		case n < 42:
			op = m.repeat()
		case n < 68:
			op = m.claim()
		case n < 85:
			op = m.result()
		case n < 91:
			op = m.revoke()
		case n < 97:
			op = m.activate()
		case len(m.sessions) > 1:
			op = m.closing()
		}
		if op != nil {
			return op
		}
	}
}

// batch has some of them looked at in their order while the sequencer waits, and compares what comes of them.
func (m *model) batch(ops []*modelOp, halted *governor.Halted) {
	m.t.Helper()
	own := 0
	if slices.ContainsFunc(ops, func(op *modelOp) bool { return op.request }) {
		own = halted.Own() // it comes sooner or later, and must not be taken for ours
		m.until(func() bool { _, r := halted.Looked(); return r >= own })
	}
	messages, requests := 0, own
	for _, op := range ops {
		op.send()
		m.until(func() bool {
			seen, asked := halted.Looked()
			return len(op.done) > 0 || !op.request && seen > messages || op.request && asked > requests
		})
		if seen, asked := halted.Looked(); op.request && asked > requests {
			requests = asked
		} else if !op.request {
			messages = seen
		}
	}
	halted.Resume()
	m.history = append(m.history, "— a batch")
	for _, op := range ops {
		got := false
		select {
		case got = <-op.done:
		case <-time.After(20 * time.Second):
			m.t.Fatalf("nothing came of: %s", op.what)
		}
		if op.undone.Load() {
			m.settled["undone"]++
			m.history = append(m.history, op.what+": undone")
			continue // the model does not hear of it
		}
		want := op.expect()
		m.history = append(m.history, fmt.Sprintf("%s: %t", op.what, got))
		m.settled[strings.Fields(op.what)[0]+fmt.Sprint(" ", got)]++
		if got != want {
			m.t.Fatalf("%s: granted %t, want %t; everything before:\n%s", op.what, got, want, strings.Join(m.history, "\n"))
		}
		if got && op.granted != nil {
			op.granted()
		}
	}
}

func (m *model) until(so func() bool) {
	m.t.Helper()
	for end := time.Now().Add(20 * time.Second); !so(); time.Sleep(50 * time.Microsecond) {
		if time.Now().After(end) {
			m.t.Fatal("it was not looked at")
		}
	}
}

// states compares what every handoff has come to.
func (m *model) states() {
	m.t.Helper()
	found := map[string]string{}
	for encoded, err := range m.ledger.Entries(0) {
		if err != nil {
			m.t.Fatal(err)
		}
		e, err := entry.Decode(encoded)
		if err != nil {
			m.t.Fatal(err)
		}
		switch {
		case e.Kind == entry.KindDecided && e.Decided.Stage == entry.StageOffer && e.Decided.Effect == wire.EffectAllow:
			found[e.Handoff] = "admitted"
		case e.Kind == entry.KindDecided && e.Decided.Effect == wire.EffectDeny:
			found[e.Handoff] = "denied"
		case e.Kind == entry.KindClaimed:
			found[e.Handoff] = "claimed"
		case e.Kind == entry.KindResult && e.Result.Effect == wire.EffectAllow:
			found[e.Handoff] = "completed"
		}
	}
	for _, h := range m.handoffs {
		got, want := found[h.offering.id], h.state
		if want == "revoked" && got != "" && got != "completed" { // the entry of what was above it has it
			got = "revoked"
		}
		if got != want {
			m.t.Errorf("handoff %s is %q in the record, and %q in the model", h.offering.id, got, want)
		}
	}
}

func TestSequencerAgainstAModel(t *testing.T) {
	const seeds, batches, most = 24, 25, 12
	total := map[string]int{}
	for seed := range uint64(seeds) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			roomy := func(c *governor.Config) { c.MaxOpen = 10_000 }
			m := &model{loose: newLooseWith(t, t.TempDir(), roomy, newKey()), r: rand.New(rand.NewPCG(seed, 1)), settled: total}
			for _, short := range []string{"b", "b", "c", "c"} {
				m.agents = append(m.agents, m.agent(short))
			}
			for range 3 {
				g := &modelGrant{held: m.session(m.agent("a"))}
				s := &modelSession{root: g}
				g.session = s
				m.sessions, m.grants = append(m.sessions, s), append(m.grants, g)
			}
			for range batches {
				halted := m.g.Halt()
				var ops []*modelOp
				for range 1 + m.r.IntN(most) {
					ops = append(ops, m.next())
				}
				if m.r.IntN(5) == 0 { // the disk is full for a moment
					var once atomic.Bool
					m.with(func() {
						m.faults.append = func(int) error {
							if once.CompareAndSwap(false, true) {
								return errDisk
							}
							return nil
						}
					})
				}
				m.batch(ops, halted)
				m.with(func() { m.faults.append = nil })
			}
			m.states()
			sameAfterRestart(t, m.g)
		})
	}
	t.Logf("what came of what was asked: %v", total)
	for _, often := range []string{
		"undone", "offer true", "offer false", "repeat true", "repeat false", "claim true", "claim false", "result true", "result false",
		"revoke true", "revoke false", "close true", "activate, true",
	} {
		if total[often] < 10 {
			t.Errorf("%s: only %d times", often, total[often])
		}
	}
}
