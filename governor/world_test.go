package governor_test

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"log/slog"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/handoff-governor/handoff-governor/cmd/governor/daemon"
	"github.com/handoff-governor/handoff-governor/cmd/governor/daemon/daemontest"
	"github.com/handoff-governor/handoff-governor/governor"
	"github.com/handoff-governor/handoff-governor/governor/ledger"
	"github.com/handoff-governor/handoff-governor/handoff/aat"
	"github.com/handoff-governor/handoff-governor/handoff/aat/jws"
	"github.com/handoff-governor/handoff-governor/handoff/entry"
	"github.com/handoff-governor/handoff-governor/handoff/identity"
	"github.com/handoff-governor/handoff-governor/handoff/wire"
)

// The tests of the path run against the real thing: the daemon with its embedded server, mTLS, OPA and bbolt. The agents
// here speak the wire by hand, so that they can say what no client would.

// world is a running governor.
type world struct {
	t     testing.TB
	place *daemontest.World
	cfg   daemon.Config
	d     *daemon.Daemon
}

func newWorld(t testing.TB, change ...func(*daemon.Config)) *world {
	t.Helper()
	return newWorldIn(t, daemontest.Embedded, change...)
}

func newWorldIn(t testing.TB, in daemontest.Deployment, change ...func(*daemon.Config)) *world {
	t.Helper()
	place := daemontest.New(t, in, append([]func(*daemon.Config){func(c *daemon.Config) {
		if testing.Verbose() {
			c.Logger = slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelWarn}))
		}
	}}, change...)...)
	w := &world{t: t, place: place, cfg: place.Config}
	w.start()
	t.Cleanup(w.stop)
	return w
}

func (w *world) start() {
	w.t.Helper()
	w.place.Config = w.cfg
	w.place.Start()
	w.d = w.place.Daemon
}

// stop ends the daemon and has a verifier read everything it wrote.
func (w *world) stop() {
	if w.d == nil {
		return
	}
	d := w.d
	w.d = nil
	sameAfterRestart(w.t, d.Governor())
	w.place.Stop()
	e, err := daemon.LoadEndpoint(w.cfg.Dir) // with the issuer's keys of before
	if err != nil {
		w.t.Fatal(err)
	}
	verifyLedger(w.t, w.cfg.Dir, e)
}

// sameAfterRestart checks that the ledger alone leads to the state that the governor is in, read whole or by the live
// bucket. (Leases are renewed without an entry; after a restart they run again in full.)
func sameAfterRestart(t testing.TB, g *governor.Governor) {
	t.Helper()
	ctx := context.Background()
	for _, useLive := range []bool{false, true} {
		// What is under way runs ahead of the ledger; it settles.
		for tries := 0; ; tries++ {
			replayed, err := g.DumpReplayed(ctx, useLive)
			if err != nil {
				t.Errorf("replaying (live bucket: %v): %v", useLive, err)
				break
			}
			is, leases := g.Dump(), regexp.MustCompile(`leased \d+`)
			diff := cmp.Diff(leases.ReplaceAllString(is, ""), leases.ReplaceAllString(replayed, ""))
			if diff == "" {
				break
			}
			if tries == 50 {
				t.Errorf("a restart (live bucket: %v) would change the state (-is +after):\n%s", useLive, diff)
				break
			}
			time.Sleep(100 * time.Millisecond)
		}
	}
}

// verifyLedger has the independent verifier read a stopped daemon's ledger.
func verifyLedger(t testing.TB, dir string, e daemon.Endpoint) {
	t.Helper()
	l, err := ledger.Open(daemon.LedgerPath(dir), ledger.Config{ReadOnly: true})
	if err != nil {
		t.Errorf("opening the ledger: %v", err)
		return
	}
	defer l.Close()
	if _, err := entry.Verify(context.Background(), l, verifierConfig(t, e)); err != nil {
		t.Errorf("the ledger does not verify: %v", err)
	}
}

// agent is one process of an agent that speaks by hand.
type agent struct {
	w    *world
	t    testing.TB
	name string
	key  ed25519.PrivateKey
	nc   *nats.Conn
	js   jetstream.JetStream

	receipts chan wire.Receipt
	passed   map[string][]uint64 // receipts that came while another was awaited
	inbox    jetstream.Consumer
}

// agent connects a process with the SPIFFE ID path /agent/<short>.
func (w *world) agent(short string) *agent {
	w.t.Helper()
	a := &agent{w: w, t: w.t, receipts: make(chan wire.Receipt, 10_000), passed: map[string][]uint64{}}
	_, a.key, _ = ed25519.GenerateKey(rand.Reader)
	a.connect("/agent/" + short)
	if _, err := a.nc.Subscribe(wire.SubjectReceipt, func(m *nats.Msg) {
		var r wire.Receipts
		if err := json.Unmarshal(m.Data, &r); err != nil {
			w.t.Errorf("a receipt that is not JSON: %v", err)
		}
		for _, e := range r.Entries {
			a.receipts <- e
		}
	}); err != nil {
		w.t.Fatal(err)
	}
	var err error
	if a.inbox, err = a.js.Consumer(context.Background(), wire.InboxStream, wire.InboxConsumer); err != nil {
		w.t.Fatal(err)
	}
	return a
}

func (a *agent) connect(path string) {
	a.t.Helper()
	source := a.w.place.Source(path)
	a.name = daemontest.Name(a.t, path)
	server := identity.ServerOf(spiffeid.RequireFromPath(daemontest.TrustDomain, "/governor"))
	var err error
	a.nc, err = nats.Connect(a.w.d.Endpoint.URL, nats.Secure(identity.ClientTLS(source, source, server)),
		nats.TLSHandshakeFirst(), nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {}))
	if err != nil {
		a.t.Fatal(err)
	}
	a.t.Cleanup(a.nc.Close)
	if a.js, err = jetstream.NewWithAPIPrefix(a.nc, wire.InboxPrefix); err != nil {
		a.t.Fatal(err)
	}
}

func (a *agent) jwk() aat.JWK { return aat.NewJWK(a.key.Public().(ed25519.PublicKey)) }

// process is another process of the same agent: another key, the same identity.
func (a *agent) process() *agent {
	return a.w.agent(strings.TrimPrefix(idOf(a.t, a.name).Path(), "/agent/"))
}

func idOf(t testing.TB, name string) spiffeid.ID {
	t.Helper()
	id, err := identity.Name(name).ID()
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// ask makes a request and reads the answer into out.
func (a *agent) ask(subject string, body []byte, out any) {
	a.t.Helper()
	m, err := a.nc.Request(subject, body, 30*time.Second)
	for deadline := time.Now().Add(10 * time.Second); errors.Is(err, nats.ErrNoResponders) && time.Now().Before(deadline); {
		m, err = a.nc.Request(subject, body, 30*time.Second) // the daemon has just started
	}
	if err != nil {
		a.t.Fatalf("%s: %v", subject, err)
	}
	if err := json.Unmarshal(m.Data, out); err != nil {
		a.t.Fatalf("%s answered %s: %v", subject, m.Data, err)
	}
}

// now is the governor's time, in Unix seconds.
func (w *world) now() int64 {
	if w.cfg.Now != nil {
		return w.cfg.Now().Unix()
	}
	return time.Now().Unix()
}

func newID(t testing.TB) string {
	id, err := uuid.NewV7()
	if err != nil {
		t.Fatal(err)
	}
	return id.String()
}

// newIDAt is an ID as it is made at another time.
func newIDAt(t testing.TB, at time.Time) string {
	id := uuid.MustParse(newID(t))
	ms := uint64(at.UnixMilli())
	for i := range 6 {
		id[i] = byte(ms >> (40 - 8*i))
	}
	return id.String()
}

func encode(t testing.TB, v any) []byte {
	t.Helper()
	raw, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

// held is a grant as its holder has it.
type held struct {
	a        *agent
	links    []*aat.Link // verified, root first
	governor aat.JWK
	session  string
	handoff  string
}

func (h held) leaf() *aat.Link { return h.links[len(h.links)-1] }

// openRequest is what session opens with, to be changed by the test.
func (a *agent) openRequest(tools aat.Tools) wire.OpenRequest {
	return wire.OpenRequest{
		ID: newID(a.t), Objective: "test", Principal: wire.Principal{Kind: wire.PrincipalWorkload, Name: a.name},
		Tools: tools, TTL: 3600, MaxHops: 4, JWK: a.jwk(),
	}
}

// sign adds the proof to a request with a member proof, which must be "" in it.
func (a *agent) prove(request any) []byte {
	a.t.Helper()
	if _, ok := request.(wire.OpenRequest); ok {
		return a.proveFor(wire.VerbSessionOpen, request)
	}
	return a.proveFor(wire.VerbSessionClose, request)
}

// proveFor adds a proof that is good for one verb.
func (a *agent) proveFor(verb string, request any) []byte {
	a.t.Helper()
	body := encode(a.t, request)
	hash, err := wire.RequestHash(body)
	if err != nil {
		a.t.Fatal(err)
	}
	now := a.w.now()
	proof, err := jws.SignJSON(wire.TypeSession, wire.SessionProof{
		ID: newID(a.t), IssuedAt: now, Expires: now + 60, Audience: a.w.d.Endpoint.Governor, Subject: a.name, Verb: verb, RequestHash: hash,
	}, a.key)
	if err != nil {
		a.t.Fatal(err)
	}
	var members map[string]jsontext.Value
	if err := json.Unmarshal(body, &members); err != nil {
		a.t.Fatal(err)
	}
	members["proof"] = encode(a.t, proof)
	return encode(a.t, members)
}

func (a *agent) open(request wire.OpenRequest) wire.OpenResponse {
	a.t.Helper()
	var out wire.OpenResponse
	a.ask(wire.SubjectSessionOpen, a.prove(request), &out)
	return out
}

// session opens a session and holds its root.
func (a *agent) session(tools aat.Tools, change ...func(*wire.OpenRequest)) held {
	a.t.Helper()
	request := a.openRequest(tools)
	for _, f := range change {
		f(&request)
	}
	out := a.open(request)
	if out.Error != nil {
		a.t.Fatalf("opening a session: %v %v", out.Error, out.Reasons)
	}
	return a.hold(out.Chain, *out.GovernorJWK, request.ID, "")
}

func (a *agent) hold(chain []string, governor aat.JWK, session, handoff string) held {
	a.t.Helper()
	e := a.w.d.Endpoint
	anchors, err := e.Anchors()
	if err != nil {
		a.t.Fatal(err)
	}
	v := aat.Verifier{Anchors: anchors, Now: a.w.cfg.Now}
	links, err := v.Chain(chain)
	if err != nil {
		a.t.Fatalf("the chain that was handed out does not verify: %v", err)
	}
	if links[len(links)-1].Claims.Holder != a.jwk() {
		a.t.Fatal("the chain that was handed out is not bound to the process that asked")
	}
	return held{a: a, links: links, governor: governor, session: session, handoff: handoff}
}

// offering is an offer about to be sent; tests bend it.
type offering struct {
	id      string
	claims  aat.Claims
	handoff wire.HandoffClaim
	subject string
	header  nats.Header
	salt    []byte
	body    []byte
	token   string
	key     ed25519.PrivateKey
}

// offer makes a proper offer, signs it with what change leaves of it, and sends it.
func (h held) offer(to string, body string, change ...func(*offering)) *offering {
	h.a.t.Helper()
	o := h.draft(to, body)
	for _, f := range change {
		f(o)
	}
	h.seal(o)
	h.a.publish(o)
	return o
}

func (h held) draft(to, body string) *offering {
	now := h.a.w.now()
	leaf := h.leaf().Claims
	o := &offering{id: newID(h.a.t), salt: wire.NewSalt(), body: []byte(body), key: h.a.key, header: nats.Header{}}
	expires := min(leaf.ExpiresAt, now+600)
	o.handoff = wire.HandoffClaim{
		Session: h.session, To: to, Mode: wire.ModeDelegate, ContentType: "text/plain", Deadline: expires, Labels: h.labels(),
	}
	o.claims = aat.Claims{
		ID: o.id, IssuedAt: now, ExpiresAt: expires, Holder: h.governor, MaxDepth: leaf.MaxDepth, Tools: leaf.Tools,
	}
	o.subject = wire.OfferSubject(h.session, to)
	return o
}

// labels are those of the leaf, which an offer must repeat.
func (h held) labels() []string {
	var claim wire.HandoffClaim
	if err := json.Unmarshal(h.leaf().Claims.Extra["handoff"], &claim); err != nil {
		h.a.t.Fatal(err)
	}
	return claim.Labels
}

func (h held) seal(o *offering) {
	h.a.t.Helper()
	if o.handoff.TaskHash == "" {
		o.handoff.TaskHash = wire.TaskHash(o.salt, o.body)
	}
	if o.token == "" {
		o.claims.Extra = map[string]jsontext.Value{"handoff": encode(h.a.t, o.handoff)}
		o.token = h.deriveRaw(o)
	}
	set := func(name, value string) {
		if _, given := o.header[name]; !given {
			o.header[name] = []string{value}
		}
	}
	set(wire.HeaderToken, o.token)
	set(wire.HeaderSalt, wire.EncodeSalt(o.salt))
	set(wire.HeaderContentType, "text/plain")
}

// deriveRaw signs whatever the claims say, also what aat.Derive would refuse.
func (h held) deriveRaw(o *offering) string {
	h.a.t.Helper()
	leaf := h.leaf()
	c := o.claims
	members := map[string]any{
		"jti": c.ID, "iss": h.a.jwk().ThumbprintURI(), "iat": c.IssuedAt, "exp": c.ExpiresAt,
		"cnf": map[string]any{"jwk": c.Holder}, "del_depth": leaf.Claims.Depth + 1, "del_max_depth": c.MaxDepth,
		"par_hash":              leaf.HashString(),
		"authorization_details": []any{map[string]any{"type": "attenuating_agent_token", "tools": c.Tools}},
	}
	if len(c.Audience) > 0 {
		members["aud"] = c.Audience
	}
	if c.ParentHash != "" {
		members["par_hash"] = c.ParentHash
	}
	for name, value := range c.Extra {
		members[name] = value
	}
	token, err := jws.SignJSON(aat.TokenType, members, o.key)
	if err != nil {
		h.a.t.Fatal(err)
	}
	return token
}

func (a *agent) publish(o *offering) {
	a.t.Helper()
	m := &nats.Msg{Subject: o.subject, Header: o.header, Data: o.body}
	ack, err := a.nc.RequestMsg(m, 30*time.Second)
	if err != nil {
		a.t.Fatalf("publishing an offer: %v", err)
	}
	if bytes.Contains(ack.Data, []byte(`"error"`)) {
		a.t.Fatalf("the server did not take the offer: %s", ack.Data)
	}
}

// receipt waits for the receipt of an ID.
func (a *agent) receipt(id string) uint64 {
	a.t.Helper()
	if seen := a.passed[id]; len(seen) > 0 {
		a.passed[id] = seen[1:]
		return seen[0]
	}
	timeout := time.After(45 * time.Second)
	for {
		select {
		case r := <-a.receipts:
			if r.ID == id {
				return r.Index
			}
			a.passed[r.ID] = append(a.passed[r.ID], r.Index)
		case <-timeout:
			a.t.Fatalf("no receipt for %s", id)
		}
	}
}

// next waits for an inbox message of a kind about an ID, and acks everything it sees.
func (a *agent) next(kind, id string) jetstream.Msg {
	a.t.Helper()
	for deadline := time.Now().Add(45 * time.Second); time.Now().Before(deadline); {
		m, err := a.inbox.Next(jetstream.FetchMaxWait(time.Second))
		if err != nil {
			continue
		}
		if err := m.Ack(); err != nil {
			a.t.Fatal(err)
		}
		if m.Headers().Get(wire.HeaderKind) == kind && (id == "" || m.Headers().Get(wire.HeaderID) == id) {
			return m
		}
		a.t.Logf("%s passes over a %s about %s: %s", a.name, m.Headers().Get(wire.HeaderKind), m.Headers().Get(wire.HeaderID), m.Data())
	}
	a.t.Fatalf("no %s about %s in the inbox of %s", kind, id, a.name)
	return nil
}

// verdict waits for the verdict about an ID.
func (a *agent) verdict(id string) wire.Verdict {
	a.t.Helper()
	var v wire.Verdict
	if err := json.Unmarshal(a.next(wire.KindVerdict, id).Data(), &v); err != nil {
		a.t.Fatal(err)
	}
	return v
}

func (a *agent) claimRequest(session string, ids []string, change ...func(*wire.ClaimProof)) wire.ClaimRequest {
	a.t.Helper()
	now := a.w.now()
	proof := wire.ClaimProof{
		ID: newID(a.t), IssuedAt: now, Expires: now + 60, Audience: a.w.d.Endpoint.Governor, Subject: a.name, IDs: ids,
	}
	for _, f := range change {
		f(&proof)
	}
	token, err := jws.SignJSON(wire.TypeClaim, proof, a.key)
	if err != nil {
		a.t.Fatal(err)
	}
	return wire.ClaimRequest{IDs: ids, JWK: a.jwk(), Proof: token}
}

func (a *agent) tryClaim(session, id string) wire.Claimed {
	a.t.Helper()
	var out wire.ClaimResponse
	a.ask(wire.ClaimSubject(session), encode(a.t, a.claimRequest(session, []string{id})), &out)
	if out.Error != nil {
		return wire.Claimed{ID: id, Error: out.Error}
	}
	if len(out.Claims) != 1 {
		a.t.Fatalf("one ID was claimed and %d were answered", len(out.Claims))
	}
	return out.Claims[0]
}

// claim claims a task that must be granted.
func (a *agent) claim(session, id string) (held, wire.Claimed) {
	a.t.Helper()
	c := a.tryClaim(session, id)
	if c.Error != nil {
		a.t.Fatalf("claiming %s: %v %v", id, c.Error, c.Reasons)
	}
	return a.hold(c.Chain, *c.GovernorJWK, session, id), c
}

// result returns a result for the held task.
func (h held) result(body string, change ...func(*wire.ResultToken, *nats.Msg)) string {
	h.a.t.Helper()
	id, m := h.sealResult(body, change...)
	if _, err := h.a.nc.RequestMsg(m, 30*time.Second); err != nil {
		h.a.t.Fatalf("publishing a result: %v", err)
	}
	return id
}

// sealResult makes a result for the held task.
func (h held) sealResult(body string, change ...func(*wire.ResultToken, *nats.Msg)) (id string, m *nats.Msg) {
	h.a.t.Helper()
	salt := wire.NewSalt()
	token := wire.ResultToken{
		ID: newID(h.a.t), IssuedAt: time.Now().Unix(), Audience: h.a.w.d.Endpoint.Governor, Handoff: h.handoff,
		Status: wire.StatusCompleted, BodyHash: wire.TaskHash(salt, []byte(body)), ContentType: "text/plain",
	}
	m = &nats.Msg{Subject: wire.ResultSubject(h.session), Data: []byte(body), Header: nats.Header{
		wire.HeaderID: {h.handoff}, wire.HeaderSalt: {wire.EncodeSalt(salt)}, wire.HeaderContentType: {"text/plain"},
	}}
	for _, f := range change {
		f(&token, m)
	}
	signed, err := jws.SignJSON(wire.TypeResult, token, h.a.key)
	if err != nil {
		h.a.t.Fatal(err)
	}
	if m.Header.Get(wire.HeaderToken) == "" {
		m.Header.Set(wire.HeaderToken, signed)
	}
	return token.ID, m
}

func b64(b []byte) string { return base64.RawURLEncoding.EncodeToString(b) }

func verifierConfig(t testing.TB, e daemon.Endpoint) entry.Config {
	t.Helper()
	anchors, err := e.Anchors()
	if err != nil {
		t.Fatal(err)
	}
	return entry.Config{LogKey: e.LogKey, PastLogKeys: e.PastLogKeys, Issuers: anchors}
}

type natsMsg = nats.Msg

func equal(a, b []string) bool { return slices.Equal(a, b) }
