package guard_test

import (
	"context"
	"crypto/ed25519"
	"errors"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/google/uuid"

	"github.com/handoff-governor/handoff-governor/handoff/aat"
	"github.com/handoff-governor/handoff-governor/handoff/aat/jws"
	"github.com/handoff-governor/handoff-governor/handoff/guard"
	"github.com/handoff-governor/handoff-governor/handoff/wire"
)

const (
	audience = "https://tools.example.com"
	issuer   = "https://issuer.example.com"
	governor = "https://governor.example.com"
)

// tester is what testing.TB and rapid.T have in common.
type tester interface {
	Helper()
	Fatal(...any)
	Fatalf(string, ...any)
	Context() context.Context
}

// clock is a clock that tests turn.
type clock struct{ nanos atomic.Int64 }

func (c *clock) now() time.Time          { return time.Unix(0, c.nanos.Load()) }
func (c *clock) advance(d time.Duration) { c.nanos.Add(int64(d)) }

// steppedClock is time.Now on a machine whose wall clock can be set: like a time from time.Now, its times have a monotonic
// reading as well, which is not set with it. Nothing in package time makes one, so this reaches into it.
type steppedClock struct {
	base        time.Time
	ahead, wall time.Duration // both readings; the wall clock alone, whole seconds
}

func (c *steppedClock) now() time.Time {
	t := c.base.Add(c.ahead)
	parts := (*struct {
		wall uint64 // 1 bit: has a monotonic reading; 33 bits: seconds; 30 bits: nanoseconds
		ext  int64
		loc  *time.Location
	})(unsafe.Pointer(&t))
	parts.wall += uint64(int64(c.wall/time.Second) << 30)
	return t
}

// world is a guard with everything that stands around it: issuer, governor and agents.
type world struct {
	tester
	*clock
	guard    *guard.Guard
	issuer   ed25519.PrivateKey
	governor ed25519.PrivateKey

	epoch string
	seq   uint64
}

func seedKey(name string) ed25519.PrivateKey {
	seed := make([]byte, ed25519.SeedSize)
	copy(seed, name)
	return ed25519.NewKeyFromSeed(seed)
}

func public(key ed25519.PrivateKey) ed25519.PublicKey { return key.Public().(ed25519.PublicKey) }

// newWorld returns a guard that is past its start, with a fresh feed.
func newWorld(t tester, change ...func(*guard.Config)) *world {
	t.Helper()
	w := &world{tester: t, clock: &clock{}, issuer: seedKey("issuer"), governor: seedKey("governor"), epoch: "e1"}
	w.nanos.Store(time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC).UnixNano())
	cfg := guard.Config{Audience: []string{audience}, Issuers: []guard.Issuer{w.trusted()}, Now: w.now}
	for _, f := range change {
		f(&cfg)
	}
	g, err := guard.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	w.guard = g
	w.advance(10 * time.Second)
	w.snapshot("", "")
	return w
}

// newSteppedWorld is newWorld with a guard whose wall clock can be set. Governor and agents follow it.
func newSteppedWorld(t tester) (*world, *steppedClock) {
	t.Helper()
	w := &world{tester: t, clock: &clock{}, issuer: seedKey("issuer"), governor: seedKey("governor"), epoch: "e1"}
	c := &steppedClock{base: time.Now()}
	g, err := guard.New(guard.Config{Audience: []string{audience}, Issuers: []guard.Issuer{w.trusted()}, Now: c.now})
	if err != nil {
		t.Fatal(err)
	}
	w.guard = g
	c.ahead = 10 * time.Second
	w.follow(c)
	w.snapshot("", "")
	return w, c
}

func (w *world) follow(c *steppedClock) { w.nanos.Store(c.now().UnixNano()) }

func (w *world) trusted() guard.Issuer {
	return guard.Issuer{
		URI: issuer, Keys: []ed25519.PublicKey{public(w.issuer)}, Governor: governor,
		GovernorKeys: []guard.GovernorKey{{Key: public(w.governor)}},
	}
}

// statement signs one statement of the feed with the next number.
func (w *world) statement(links ...wire.RevokedLink) string {
	w.seq++
	return w.sign(wire.RevocationFeed{
		Governor: governor, Epoch: w.epoch, Sequence: w.seq, Time: w.now().Unix(), Links: links,
	})
}

func (w *world) sign(s wire.RevocationFeed) string {
	w.Helper()
	token, err := jws.SignJSON(wire.TypeRevocation, s, w.governor)
	if err != nil {
		w.Fatal(err)
	}
	return token
}

func (w *world) feed(token string) {
	w.Helper()
	if err := w.guard.Feed(token); err != nil {
		w.Fatal(err)
	}
}

func (w *world) snapshot(after, next string, links ...wire.RevokedLink) {
	w.Helper()
	w.feed(w.sign(wire.RevocationFeed{
		Governor: governor, Epoch: w.epoch, Sequence: w.seq, Time: w.now().Unix(), Snapshot: true, After: after, Next: next,
		Links: links,
	}))
}

func (w *world) beat() { w.Helper(); w.feed(w.statement()) }

// beatRefused sends a heartbeat that the guard cannot use. The governor counts it all the same.
func (w *world) beatRefused() {
	w.Helper()
	if err := w.guard.Feed(w.statement()); err == nil {
		w.Fatal("a statement of another time was taken")
	}
}

func newID(t tester) string {
	id, err := uuid.NewV7()
	if err != nil {
		t.Fatal(err)
	}
	return id.String()
}

// holding is a chain with the key of its leaf.
type holding struct {
	w     *world
	links []*aat.Link
	key   ed25519.PrivateKey
	agent string
}

func (h holding) leaf() *aat.Link  { return h.links[len(h.links)-1] }
func (h holding) tokens() []string { return h.leaf().Tokens() }
func (h holding) session() string  { return h.links[0].Claims.ID }
func (h holding) revoked(depth int, state string) wire.RevokedLink {
	l := h.links[depth]
	return wire.RevokedLink{Hash: l.HashString(), State: state, Expires: l.Claims.ExpiresAt}
}

var tools = aat.Tools{"read": {"path": aat.OneOf("/a", "/b")}, "send": {"to": aat.Wildcard(), "cc": aat.Wildcard().AsOptional()}}

func (w *world) extra(claim wire.HandoffClaim) map[string]jsontext.Value {
	w.Helper()
	raw, err := json.Marshal(claim)
	if err != nil {
		w.Fatal(err)
	}
	return map[string]jsontext.Value{"handoff": raw}
}

// root is an open session's grant, held by the agent a.
func (w *world) root(change ...func(*aat.Claims)) holding {
	w.Helper()
	id := newID(w)
	key := seedKey("a")
	c := aat.Claims{
		ID: id, Issuer: issuer, IssuedAt: w.now().Unix(), ExpiresAt: w.now().Add(time.Hour).Unix(), Holder: aat.NewJWK(public(key)),
		MaxDepth: 32, Tools: tools, Extra: w.extra(wire.HandoffClaim{Session: id, To: "a"}),
	}
	for _, f := range change {
		f(&c)
	}
	l, err := aat.Prepare(nil, c, public(w.issuer))
	if err == nil {
		l, err = l.Sign(w.issuer)
	}
	if err != nil {
		w.Fatal(err)
	}
	return holding{w: w, links: []*aat.Link{l}, key: key, agent: "a"}
}

// derive adds a link that the holder signs.
func (h holding) derive(key, signer ed25519.PrivateKey, agent string, claim wire.HandoffClaim, change ...func(*aat.Claims)) holding {
	h.w.Helper()
	c := aat.Claims{
		ID: newID(h.w), IssuedAt: h.w.now().Unix(), ExpiresAt: h.leaf().Claims.ExpiresAt, Holder: aat.NewJWK(public(key)),
		MaxDepth: h.leaf().Claims.MaxDepth, Tools: h.leaf().Claims.Tools, Extra: h.w.extra(claim),
	}
	for _, f := range change {
		f(&c)
	}
	l, err := aat.Prepare(h.leaf(), c, public(signer))
	if err == nil {
		l, err = l.Sign(signer)
	}
	if err != nil {
		h.w.Fatal(err)
	}
	return holding{w: h.w, links: append(h.links[:len(h.links):len(h.links)], l), key: key, agent: agent}
}

func (h holding) offerClaim(to string) wire.HandoffClaim {
	var labels []string
	if len(h.links) > 1 {
		labels = []string{"internal"}
	}
	return wire.HandoffClaim{
		Labels:  labels,
		Session: h.session(), To: to, Mode: wire.ModeDelegate, TaskHash: wire.TaskHash(nil, nil), ContentType: "text/plain",
		Deadline: h.leaf().Claims.ExpiresAt,
	}
}

// to hands the grant on to another agent, through the governor.
func (h holding) to(agent string, change ...func(*aat.Claims)) holding {
	h.w.Helper()
	offer := h.derive(h.w.governor, h.key, "", h.offerClaim(agent), change...)
	return offer.derive(seedKey(agent), h.w.governor, agent, wire.HandoffClaim{
		Session: h.session(), To: agent, ID: offer.leaf().Claims.ID, From: h.agent, Labels: []string{"internal"},
		Decision: &wire.EntryRef{Log: "log", Index: 1}, Bundle: "sha256:00",
	}, func(c *aat.Claims) { c.Audience = nil })
}

// until hands the grant on to the agent b, for work until then.
func (h holding) until(end time.Time) holding {
	h.w.Helper()
	offer := h.derive(h.w.governor, h.key, "", h.offerClaim("b"))
	return offer.derive(seedKey("b"), h.w.governor, "b", wire.HandoffClaim{
		Session: h.session(), To: "b", ID: offer.leaf().Claims.ID, From: h.agent, Labels: []string{"internal"},
		Decision: &wire.EntryRef{Log: "log", Index: 1}, Bundle: "sha256:00",
	}, func(c *aat.Claims) { c.ExpiresAt = end.Unix() })
}

// proof signs a proof for a call of read, with changes.
func (h holding) proof(args string, change ...func(*aat.PoP)) string {
	h.w.Helper()
	p := aat.PoP{
		ID: newID(h.w), IssuedAt: h.w.now().Unix(), TokenID: h.leaf().Claims.ID, TokenHash: h.leaf().HashString(),
		Tool: "read", Audience: audience, Args: jsontext.Value(args),
	}
	for _, f := range change {
		f(&p)
	}
	token, err := p.Sign(h.key)
	if err != nil {
		h.w.Fatal(err)
	}
	return token
}

const readA = `{"path":"/a"}`

// present is a presentation for reading /a.
func (h holding) present() guard.Presentation {
	h.w.Helper()
	return guard.Presentation{Chain: h.tokens(), PoP: h.proof(readA)}
}

func (w *world) check(p guard.Presentation, caller string) (*guard.Call, error) {
	w.Helper()
	return w.guard.Check(w.Context(), p, "read", []byte(readA), caller)
}

func (w *world) permits(h holding) {
	w.Helper()
	if _, err := w.check(h.present(), h.agent); err != nil {
		w.Fatalf("refused: %v", err)
	}
}

func (w *world) refuses(h holding, code wire.Code) {
	w.Helper()
	_, err := w.check(h.present(), h.agent)
	wantCode(w, err, code)
}

func wantCode(t tester, err error, code wire.Code) *wire.Error {
	t.Helper()
	e, ok := errors.AsType[*wire.Error](err)
	if !ok || e.Code != code {
		t.Fatalf("got %v, want %s", err, code)
	}
	return e
}
