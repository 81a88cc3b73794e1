package governor_test

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/base64"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/nats-io/nats.go"

	"github.com/handoff-governor/handoff-governor/handoff/aat"
	"github.com/handoff-governor/handoff-governor/handoff/aat/jws"
	"github.com/handoff-governor/handoff-governor/handoff/wire"
)

// rawToken is a token with any header and payload, signed by key.
func rawToken(header, payload string, key ed25519.PrivateKey) string {
	input := b64([]byte(header)) + "." + b64([]byte(payload))
	return input + "." + b64(ed25519.Sign(key, []byte(input)))
}

// Every bad offer gets its code, and leaves the governor serving. Those that the sender has not provably signed under a
// grant of its own are refused without an entry; the others are on record.
func TestBadOffers(t *testing.T) {
	w := newWorld(t)
	a, b, c := w.agent("a"), w.agent("b"), w.agent("c")
	root := a.session(readFiles())
	others := c.session(readFiles())
	closed := a.session(readFiles())
	var status wire.SessionStatus
	a.ask(wire.SubjectSessionClose, a.prove(wire.SessionRequest{Session: closed.session}), &status)
	if status.State != "closed" {
		t.Fatalf("closing: %+v", status)
	}
	single := a.session(readFiles(), func(r *wire.OpenRequest) { r.MaxHops = 0 })

	payload := func(o *offering, change func(string) string) string {
		root.seal(o)
		u, err := jws.Split(o.token, wire.MaxToken)
		if err != nil {
			t.Fatal(err)
		}
		return change(string(u.Payload))
	}
	const header = `{"alg":"Ed25519","typ":"aat+jwt"}`
	resign := func(header string, change func(string) string) func(*offering) {
		return func(o *offering) {
			o.header[wire.HeaderToken] = []string{rawToken(header, payload(o, change), o.key)}
		}
	}
	same := func(s string) string { return s }
	swap := func(from, to string) func(string) string {
		return func(s string) string {
			if !strings.Contains(s, from) {
				t.Errorf("the payload has no %q to replace: %s", from, s)
			}
			return strings.Replace(s, from, to, 1)
		}
	}
	at := func(d time.Duration) string {
		id, err := uuid.NewV7()
		if err != nil {
			t.Fatal(err)
		}
		ms := time.Now().Add(d).UnixMilli()
		for i := range 6 {
			id[i] = byte(ms >> (8 * (5 - i)))
		}
		return id.String()
	}
	setID := func(id string) func(*offering) {
		return func(o *offering) { o.id, o.claims.ID = id, id }
	}

	for _, test := range []struct {
		name     string
		grant    *held // nil: root
		change   func(*offering)
		code     wire.Code
		recorded bool
	}{
		// The token.
		{"malformed token", nil, func(o *offering) { o.token = "not a token" }, wire.CodeToken, false},
		{"truncated token", nil, func(o *offering) {
			root.seal(o)
			o.header[wire.HeaderToken] = []string{o.token[:len(o.token)-9]}
		}, wire.CodeToken, false},
		{"token over 60 KiB", nil, func(o *offering) {
			o.header[wire.HeaderToken] = []string{strings.Repeat("a", wire.MaxToken+1)}
		}, wire.CodeTooLarge, false},
		{"duplicate member", nil, resign(header, swap(`{`, `{"jti":"x",`)), wire.CodeToken, false},
		{"trailing data", nil, resign(header, func(s string) string { return s + "{}" }), wire.CodeToken, false},
		{"jti of the wrong type", nil, resign(header, swap(`"jti":"`, `"jti":1,"x":"`)), wire.CodeToken, false},
		{"exp of the wrong type", nil, resign(header, swap(`"exp":`, `"exp":"soon","x":`)), wire.CodeToken, true},
		{"exp with a fraction", nil, resign(header, swap(`"exp":`, `"exp":1.5,"x":`)), wire.CodeToken, true},
		{"alg none", nil, resign(`{"alg":"none","typ":"aat+jwt"}`, same), wire.CodeToken, false},
		{"alg EdDSA", nil, resign(`{"alg":"EdDSA","typ":"aat+jwt"}`, same), wire.CodeToken, false},
		{"alg missing", nil, resign(`{"typ":"aat+jwt"}`, same), wire.CodeToken, false},
		{"alg twice", nil, resign(`{"alg":"none","alg":"Ed25519","typ":"aat+jwt"}`, same), wire.CodeToken, false},
		{"another typ", nil, resign(`{"alg":"Ed25519","typ":"aat-pop+jwt"}`, same), wire.CodeToken, false},
		{"unknown crit", nil, resign(`{"alg":"Ed25519","typ":"aat+jwt","crit":["x"],"x":1}`, same), wire.CodeToken, false},
		{"embedded key", nil, func(o *offering) {
			_, stranger, _ := ed25519.GenerateKey(rand.Reader)
			jwk := aat.NewJWK(stranger.Public().(ed25519.PublicKey))
			o.key = stranger
			resign(fmt.Sprintf(`{"alg":"Ed25519","typ":"aat+jwt","jwk":{"kty":"OKP","crv":"Ed25519","x":%q}}`, jwk.X), same)(o)
		}, wire.CodeToken, false},
		{"signed by another key", nil, func(o *offering) { o.key = b.key }, wire.CodeToken, false},
		{"private key in cnf", nil, resign(header, swap(`"kty":"OKP"`, `"d":"AAAA","kty":"OKP"`)), wire.CodeToken, true},
		{"not the governor's key in cnf", nil, func(o *offering) { o.claims.Holder = b.jwk() }, wire.CodeGovernorKey, true},

		// Time.
		{"expired", nil, func(o *offering) { o.claims.ExpiresAt = time.Now().Unix() - 1; o.claims.IssuedAt -= 5 }, wire.CodeExpired, true},
		{"outlives its parent", nil, func(o *offering) { o.claims.ExpiresAt = root.leaf().Claims.ExpiresAt + 1 }, wire.CodeExpired, true},
		{"not yet issued", nil, func(o *offering) { o.claims.IssuedAt += 60; o.handoff.Deadline += 0 }, wire.CodeExpired, true},
		{"issued before its parent", nil, func(o *offering) { o.claims.IssuedAt = root.leaf().Claims.IssuedAt - 60 }, wire.CodeExpired, true},
		{"deadline passed", nil, func(o *offering) { o.handoff.Deadline = o.claims.IssuedAt - 1; o.claims.IssuedAt -= 2 }, wire.CodeExpired, true},
		{"deadline after exp", nil, func(o *offering) { o.handoff.Deadline = o.claims.ExpiresAt + 1 }, wire.CodeProfile, true},
		{"ID of yesterday", nil, setID(at(-24 * time.Hour)), wire.CodeIDTime, false},
		{"ID of tomorrow", nil, setID(at(24 * time.Hour)), wire.CodeIDTime, false},
		{"ID that is a UUIDv4", nil, setID(uuid.NewString()), wire.CodeID, false},
		{"ID in upper case", nil, setID(strings.ToUpper(newID(t))), wire.CodeID, false},

		// Whose, and where.
		{"unknown session", nil, func(o *offering) { o.subject = wire.OfferSubject(newID(t), b.name) }, wire.CodeSubjectMismatch, false},
		{"session never opened", nil, func(o *offering) {
			s := newID(t)
			o.subject, o.claims.ParentHash = wire.OfferSubject(s, b.name), b64(make([]byte, 32))
		}, wire.CodeSessionUnknown, false},
		{"closed session", &closed, nil, wire.CodeSessionClosed, true},
		{"parent unknown", nil, func(o *offering) { o.claims.ParentHash = b64(make([]byte, 32)) }, wire.CodeParentUnknown, false},
		{"parent of another agent", nil, func(o *offering) {
			o.claims.ParentHash = others.leaf().HashString()
			o.subject = wire.OfferSubject(others.session, b.name)
		}, wire.CodeParentNotYours, false},
		{"no hop left", &single, nil, wire.CodeHopLimit, true},
		{"no room for the claim", nil, func(o *offering) { o.claims.MaxDepth = 1 }, wire.CodeHopLimit, true},
		{"more hops than the parent", nil, func(o *offering) { o.claims.MaxDepth = 30 }, wire.CodeHopLimit, true},
		{"subject names another receiver", nil, func(o *offering) { o.subject = wire.OfferSubject(root.session, c.name) }, wire.CodeSubjectMismatch, true},
		{"receiver of an unknown trust domain", nil, func(o *offering) {
			o.handoff.To = strings.Replace(b.name, "handoff", "elsewhere", 1)
			o.subject = wire.OfferSubject(root.session, o.handoff.To)
		}, wire.CodeUnknownAgent, true},
		{"receiver that is no agent", nil, func(o *offering) {
			o.handoff.To = strings.Replace(b.name, "agent", "operator", 1)
			o.subject = wire.OfferSubject(root.session, o.handoff.To)
		}, wire.CodeUnknownAgent, true},

		// Authority.
		{"another tool", nil, func(o *offering) { o.claims.Tools = aat.Tools{"fs.write": {}} }, wire.CodeWidened, true},
		{"a wider argument", nil, func(o *offering) { o.claims.Tools = aat.Tools{"fs.read": {"path": aat.Wildcard()}} }, wire.CodeWidened, true},
		{"an argument made optional", nil, func(o *offering) {
			o.claims.Tools = aat.Tools{"fs.read": {"path": aat.Exact("/a").AsOptional()}}
		}, wire.CodeWidened, true},
		{"an unknown constraint", nil, resign(header, swap(`"constraint_type":"one_of"`, `"constraint_type":"regex"`)), wire.CodeToken, true},

		// The message.
		{"another body", nil, func(o *offering) { o.handoff.TaskHash = wire.TaskHash(o.salt, []byte("other")) }, wire.CodeTaskHash, true},
		{"another salt", nil, func(o *offering) { o.header[wire.HeaderSalt] = []string{wire.EncodeSalt(wire.NewSalt())} }, wire.CodeTaskHash, true},
		{"no salt", nil, func(o *offering) { o.header[wire.HeaderSalt] = nil }, wire.CodeHeaderMissing, false},
		{"a short salt", nil, func(o *offering) { o.header[wire.HeaderSalt] = []string{"AAAA"} }, wire.CodeSalt, false},
		{"a padded salt", nil, func(o *offering) {
			o.header[wire.HeaderSalt] = []string{base64.URLEncoding.EncodeToString(o.salt)}
		}, wire.CodeSalt, false},
		{"no token", nil, func(o *offering) { o.header[wire.HeaderToken] = nil }, wire.CodeHeaderMissing, false},
		{"a header twice", nil, func(o *offering) {
			root.seal(o)
			o.header[wire.HeaderToken] = []string{o.token, o.token}
		}, wire.CodeHeaderRepeated, false},
		{"a header in another case", nil, func(o *offering) { o.header["handoff-token"] = []string{"x"} }, wire.CodeHeaderRepeated, false},
		{"federation", nil, func(o *offering) { o.header[wire.HeaderChain] = []string{"x"} }, wire.CodeFederation, false},
		{"another content type", nil, func(o *offering) { o.header[wire.HeaderContentType] = []string{"text/html"} }, wire.CodeContentType, true},
		{"a body of one byte too many", nil, func(o *offering) { o.body = make([]byte, wire.MaxBody+1) }, wire.CodeTooLarge, false},

		// The handoff claim.
		{"an unknown mode", nil, func(o *offering) { o.handoff.Mode = "lend" }, wire.CodeProfile, true},
		{"another session in the claim", nil, func(o *offering) { o.handoff.Session = others.session }, wire.CodeProfile, true},
		{"a member of claims only", nil, func(o *offering) { o.handoff.From = a.name }, wire.CodeProfile, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			h := root
			if test.grant != nil {
				h = *test.grant
			}
			change := test.change
			if change == nil {
				change = func(*offering) {}
			}
			o := h.offer(b.name, "work", change)
			v := a.anyVerdict(t, o.id)
			if v.Effect != wire.EffectDeny || len(v.Reasons) == 0 {
				t.Fatalf("verdict %+v, want a denial with a reason", v)
			}
			if got := v.Reasons[0].Code; got != test.code {
				t.Errorf("code %q (%s), want %q", got, v.Reasons[0].Message, test.code)
			}
			if v.Reasons[0].Message == "" {
				t.Error("the reason does not say what to do")
			}
			if recorded := v.Entry != nil; recorded != test.recorded {
				t.Errorf("recorded: %v, want %v", recorded, test.recorded)
			}
		})
	}
	lives(t, root, b)
}

// anyVerdict waits for the next verdict, which must be about id, or about nothing where the ID could not be read.
func (a *agent) anyVerdict(t *testing.T, id string) wire.Verdict {
	t.Helper()
	v := a.verdict("")
	if v.ID != id && v.ID != "" {
		t.Fatalf("the verdict is about %q, want %q", v.ID, id)
	}
	return v
}

// lives checks that a good offer still goes through.
func lives(t *testing.T, grant held, to *agent) {
	t.Helper()
	o := grant.offer(to.name, "still there")
	grant.a.receipt(o.id)
	_, c := to.claim(grant.session, o.id)
	if string(c.Task) != "still there" {
		t.Errorf("the task is %q", c.Task)
	}
}

// A token over 64 KiB does not fit into what JetStream allows all headers of a message: the publisher is told at once.
func TestOversizedToken(t *testing.T) {
	w := newWorld(t)
	a, b := w.agent("a"), w.agent("b")
	root := a.session(readFiles())
	o := root.draft(b.name, "work")
	o.token = strings.Repeat("a", 64<<10)
	root.seal(o)
	ack, err := a.nc.RequestMsg(&nats.Msg{Subject: o.subject, Header: o.header, Data: o.body}, 10*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Contains(ack.Data, []byte(`"error"`)) {
		t.Errorf("the server answered %s", ack.Data)
	}
	lives(t, root, b)
}

// Bodies of every allowed size arrive as they are.
func TestBodies(t *testing.T) {
	w := newWorld(t)
	a, b := w.agent("a"), w.agent("b")
	root := a.session(readFiles())
	large := make([]byte, wire.MaxBody)
	rand.Read(large)
	for _, body := range [][]byte{nil, {0}, large} {
		o := root.offer(b.name, string(body))
		a.receipt(o.id)
		grant, c := b.claim(root.session, o.id)
		if !bytes.Equal(c.Task, body) {
			t.Errorf("a task of %d bytes came as %d others", len(body), len(c.Task))
		}
		grant.result(string(body))
		if got := a.next(wire.KindResult, o.id).Data(); !bytes.Equal(got, body) {
			t.Errorf("a result of %d bytes came as %d others", len(body), len(got))
		}
	}
}

// A replayed ID gets the same answer for the same offer, and a conflict for everything else.
func TestReplays(t *testing.T) {
	w := newWorld(t)
	a, b := w.agent("a"), w.agent("b")
	root := a.session(readFiles())
	o := root.offer(b.name, "work")
	index := a.receipt(o.id)

	a.publish(o)
	if again := a.receipt(o.id); again != index {
		t.Errorf("the repeat has receipt %d, the first had %d", again, index)
	}

	other := *o
	other.body = []byte("other")
	a.publish(&other)
	if v := a.verdict(o.id); v.Reasons[0].Code != wire.CodeIDConflict {
		t.Errorf("the same ID with another body: %+v", v)
	}
	resigned := root.offer(b.name, "another token", func(n *offering) { n.id, n.claims.ID = o.id, o.id })
	if v := a.verdict(resigned.id); v.Reasons[0].Code != wire.CodeIDConflict {
		t.Errorf("the same ID with another token: %+v", v)
	}
	thief := w.agent("thief")
	thief.publish(o)
	if v := thief.verdict(o.id); v.Reasons[0].Code != wire.CodeIDConflict {
		t.Errorf("the same offer from another agent: %+v", v)
	}

	// None of this touched the first, nor does a restart.
	w.stop()
	w.start()
	a2, b2 := w.agent("a"), w.agent("b")
	a2.publish(o)
	if again := a2.receipt(o.id); again != index {
		t.Errorf("after a restart the repeat has receipt %d, the first had %d", again, index)
	}
	if _, c := b2.claim(root.session, o.id); string(c.Task) != "work" {
		t.Errorf("the task is %q", c.Task)
	}
}

// A denial is final and is answered the same again.
func TestDenialRepeats(t *testing.T) {
	w := newWorld(t)
	a, b := w.agent("a"), w.agent("b")
	root := a.session(readFiles())
	o := root.offer(b.name, "work", func(o *offering) { o.claims.Tools = aat.Tools{"fs.write": {}} })
	first := a.verdict(o.id)
	a.publish(o)
	again := a.verdict(o.id)
	if *first.Entry != *again.Entry || again.Reasons[0].Code != wire.CodeWidened || again.Reasons[0].Tool != "fs.write" {
		t.Errorf("first %+v, again %+v", first, again)
	}
	if c := b.tryClaim(root.session, o.id); c.Error == nil || c.Error.Code != wire.CodeHandoffUnknown {
		t.Errorf("a denied task was claimed: %+v", c.Error)
	}
}

// Claims go to the right agent, with its own key, for a process that proves to hold it.
func TestBadClaims(t *testing.T) {
	w := newWorld(t)
	a, b, c := w.agent("a"), w.agent("b"), w.agent("c")
	root := a.session(readFiles())
	o := root.offer(b.name, "work")
	a.receipt(o.id)

	now := time.Now().Unix()
	expect := func(name string, code wire.Code, by *agent, session string, request wire.ClaimRequest) {
		t.Helper()
		var out wire.ClaimResponse
		by.ask(wire.ClaimSubject(session), encode(t, request), &out)
		got := out.Error
		if got == nil && len(out.Claims) == 1 {
			got = out.Claims[0].Error
		}
		if got == nil || got.Code != code || got.Message == "" {
			t.Errorf("%s: %+v, want %s", name, got, code)
		}
		if len(out.Claims) == 1 && (out.Claims[0].Task != nil || out.Claims[0].Chain != nil) {
			t.Errorf("%s: a refusal carries the task or a credential", name)
		}
	}
	ids := []string{o.id}
	expect("another agent's task", wire.CodeHandoffUnknown, c, root.session, c.claimRequest(root.session, ids))
	expect("unknown task", wire.CodeHandoffUnknown, b, root.session, b.claimRequest(root.session, []string{newID(t)}))
	expect("another session", wire.CodeHandoffUnknown, b, newID(t), b.claimRequest(root.session, ids))
	stolen := b.claimRequest(root.session, ids)
	expect("a proof that another agent made", wire.CodeProof, c, root.session, stolen)
	mixed := b.claimRequest(root.session, ids)
	mixed.JWK = c.jwk()
	expect("another key than the proof's", wire.CodeProof, b, root.session, mixed)
	for name, change := range map[string]func(*wire.ClaimProof){
		"wrong audience": func(p *wire.ClaimProof) { p.Audience = "spiffe://elsewhere/governor" },
		"wrong subject":  func(p *wire.ClaimProof) { p.Subject = c.name },
		"expired":        func(p *wire.ClaimProof) { p.IssuedAt, p.Expires = now-200, now-150 },
		"too long":       func(p *wire.ClaimProof) { p.Expires = now + 3600 },
		"from tomorrow":  func(p *wire.ClaimProof) { p.IssuedAt, p.Expires = now+3600, now+3660 },
		"other IDs":      func(p *wire.ClaimProof) { p.IDs = []string{newID(t)} },
		"no jti":         func(p *wire.ClaimProof) { p.ID = "" },
	} {
		expect("proof: "+name, wire.CodeProof, b, root.session, b.claimRequest(root.session, ids, change))
	}
	// The key of another agent's live grant.
	key := b.key
	b.key = a.key
	expect("a key bound to another agent", wire.CodeKeyBound, b, root.session, b.claimRequest(root.session, ids))
	b.key = key
	for name, body := range map[string]string{
		"not JSON": "{", "duplicate member": `{"ids":[],"ids":[]}`, "unknown member": `{"id":[]}`, "no IDs": `{"ids":[]}`,
		"wrong type": `{"ids":"x"}`, "null": `null`, "empty": ``,
		"private key": fmt.Sprintf(`{"ids":[%q],"jwk":{"kty":"OKP","crv":"Ed25519","x":"A","d":"B"},"proof":""}`, o.id),
		"many IDs":    `{"ids":[` + strings.Repeat(`"x",`, 99) + `"x"]}`,
	} {
		var out wire.ClaimResponse
		b.ask(wire.ClaimSubject(root.session), []byte(body), &out)
		if out.Error == nil || out.Error.Code != wire.CodeMalformed {
			t.Errorf("claim %s: %+v", name, out.Error)
		}
	}
	lives(t, root, b)
}

// Another process takes over only when the lease has run out; the first never regains the task, and its result is void.
func TestTakeOver(t *testing.T) {
	clock := newClock()
	w := newWorld(t, clock.use)
	a, b := w.agent("a"), w.agent("b")
	root := a.session(readFiles())
	o := root.offer(b.name, "work")
	a.receipt(o.id)
	first, _ := b.claim(root.session, o.id)

	second := b.process()
	if c := second.tryClaim(root.session, o.id); c.Error == nil || c.Error.Code != wire.CodeAlreadyClaimed || c.Error.RetryAfter < 1 {
		t.Fatalf("claiming what another process works on: %+v", c.Error)
	}
	clock.advance(20 * time.Second)
	b.claim(root.session, o.id) // renews the lease
	clock.advance(20 * time.Second)
	if c := second.tryClaim(root.session, o.id); c.Error == nil || c.Error.Code != wire.CodeAlreadyClaimed {
		t.Fatalf("the lease was renewed, and yet: %+v", c.Error)
	}
	clock.advance(11 * time.Second)
	over, _ := second.claim(root.session, o.id)

	if c := b.tryClaim(root.session, o.id); c.Error == nil || c.Error.Code != wire.CodeSuperseded {
		t.Errorf("the superseded process claims again: %+v", c.Error)
	}
	id := first.result("from the superseded process")
	if v := b.verdict(o.id); v.Reasons[0].Code != wire.CodeSuperseded {
		t.Errorf("a result by a superseded process (%s): %+v", id, v)
	}
	over.result("from the one that took over")
	if got := a.next(wire.KindResult, o.id); string(got.Data()) != "from the one that took over" {
		t.Errorf("the result is %q", got.Data())
	}
}

// The first valid result wins.
func TestResults(t *testing.T) {
	w := newWorld(t)
	a, b := w.agent("a"), w.agent("b")
	root := a.session(readFiles())
	o := root.offer(b.name, "work")
	a.receipt(o.id)
	grant, _ := b.claim(root.session, o.id)

	for _, test := range []struct {
		name   string
		code   wire.Code
		change func(*wire.ResultToken, *nats.Msg)
	}{
		{"another audience", wire.CodeToken, func(r *wire.ResultToken, _ *nats.Msg) { r.Audience = "x" }},
		{"another handoff", wire.CodeSubjectMismatch, func(r *wire.ResultToken, _ *nats.Msg) { r.Handoff = newID(t) }},
		{"another body", wire.CodeTaskHash, func(_ *wire.ResultToken, m *nats.Msg) { m.Data = []byte("x") }},
		{"another content type", wire.CodeContentType, func(_ *wire.ResultToken, m *nats.Msg) { m.Header.Set(wire.HeaderContentType, "x") }},
		{"unknown status", wire.CodeMalformed, func(r *wire.ResultToken, _ *nats.Msg) { r.Status = "fine" }},
		{"a UUIDv4", wire.CodeID, func(r *wire.ResultToken, _ *nats.Msg) { r.ID = uuid.NewString() }},
		{"the offer's ID", wire.CodeIDConflict, func(r *wire.ResultToken, _ *nats.Msg) { r.ID = o.id }},
		{"no salt", wire.CodeHeaderMissing, func(_ *wire.ResultToken, m *nats.Msg) { m.Header.Del(wire.HeaderSalt) }},
		{"garbage", wire.CodeToken, func(_ *wire.ResultToken, m *nats.Msg) { m.Header.Set(wire.HeaderToken, "x") }},
		{"a body too large", wire.CodeTooLarge, func(_ *wire.ResultToken, m *nats.Msg) { m.Data = make([]byte, wire.MaxBody+1) }},
	} {
		grant.result("done", test.change)
		if v := b.verdict(o.id); v.Effect != wire.EffectDeny || v.Reasons[0].Code != test.code || v.Entry != nil {
			t.Errorf("a result with %s: %+v, want %s", test.name, v, test.code)
		}
	}

	var sent *nats.Msg
	id := grant.result("done", func(_ *wire.ResultToken, m *nats.Msg) { sent = m })
	index := b.receipt(id)
	a.next(wire.KindResult, o.id)
	if _, err := b.nc.RequestMsg(sent, 10*time.Second); err != nil {
		t.Fatal(err)
	}
	if again := b.receipt(id); again != index {
		t.Errorf("the repeated result has receipt %d, the first had %d", again, index)
	}
	grant.result("changed my mind")
	if v := b.verdict(o.id); v.Reasons[0].Code != wire.CodeResultConflict {
		t.Errorf("a second result: %+v", v)
	}
	if c := b.tryClaim(root.session, o.id); c.Error == nil || c.Error.Code != wire.CodeNotAdmitted {
		t.Errorf("a finished task was claimed: %+v", c.Error)
	}
	// A grant that has ended parents nothing.
	late := grant.offer(a.name, "more")
	if v := b.verdict(late.id); !slices.ContainsFunc(v.Reasons, func(r wire.Reason) bool { return r.Code == wire.CodeParentEnded }) {
		t.Errorf("an offer under an ended grant: %+v", v)
	}
}
