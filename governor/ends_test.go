package governor_test

import (
	"crypto/ed25519"
	"crypto/rand"
	"testing"
	"testing/fstest"
	"time"

	"github.com/go-json-experiment/json"

	"github.com/handoff-governor/handoff-governor/cmd/governor/daemon"
	"github.com/handoff-governor/handoff-governor/handoff/aat"
	"github.com/handoff-governor/handoff-governor/handoff/aat/jws"
	"github.com/handoff-governor/handoff-governor/handoff/entry"
	"github.com/handoff-governor/handoff-governor/handoff/wire"
	"github.com/handoff-governor/handoff-governor/policies"
)

// operator connects the local operator.
func (w *world) operator() *agent {
	w.t.Helper()
	a := &agent{w: w, t: w.t}
	a.connect("/operator/local")
	return a
}

func (a *agent) operate(verb string, q wire.OperatorRequest) wire.OperatorResponse {
	a.t.Helper()
	var out wire.OperatorResponse
	a.ask(wire.OperatorSubject(verb), encode(a.t, q), &out)
	return out
}

// awaitForgotten waits until the governor has no session in memory any more: a heartbeat after the last has expired.
func (a *agent) awaitForgotten() {
	a.t.Helper()
	for end := time.Now().Add(30 * time.Second); a.operate(wire.VerbHealth, wire.OperatorRequest{}).Health.Sessions > 0; {
		if time.Now().After(end) {
			a.t.Fatal("the governor does not forget its sessions")
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// chainOf hands a task from the root along the agents and returns the grant of the last.
func chainOf(t *testing.T, root held, mode string, agents ...*agent) held {
	t.Helper()
	h := root
	for _, next := range agents {
		o := h.offer(next.name, "work", func(o *offering) { o.handoff.Mode = mode })
		h.a.receipt(o.id)
		h, _ = next.claim(root.session, o.id)
	}
	return h
}

// firstCode is the code of a verdict's first reason.
func firstCode(v wire.Verdict) wire.Code {
	if len(v.Reasons) == 0 {
		return ""
	}
	return v.Reasons[0].Code
}

// A transfer's claim ends the sender's grant; what comes of it goes to whoever delegated.
func TestTransfer(t *testing.T) {
	w := newWorld(t)
	a, b, c := w.agent("a"), w.agent("b"), w.agent("c")
	root := a.session(readFiles())
	delegated := root.offer(b.name, "work")
	a.receipt(delegated.id)
	grant, _ := b.claim(root.session, delegated.id)

	open := grant.offer(c.name, "a part")
	b.receipt(open.id)
	early := grant.offer(c.name, "all of it", func(o *offering) { o.handoff.Mode = wire.ModeTransfer })
	if v := b.verdict(early.id); firstCode(v) != wire.CodeTransferOpen {
		t.Errorf("a transfer while a delegated handoff is open: %+v", v)
	}
	part, _ := c.claim(root.session, open.id)
	part.result("the part")
	b.next(wire.KindResult, open.id)

	transfer := grant.offer(c.name, "the rest", func(o *offering) { o.handoff.Mode = wire.ModeTransfer })
	b.receipt(transfer.id)
	rest, _ := c.claim(root.session, transfer.id)
	late := grant.offer(c.name, "too late")
	if v := b.verdict(late.id); firstCode(v) != wire.CodeParentEnded {
		t.Errorf("an offer under a grant that was transferred away: %+v", v)
	}
	grant.result("too late")
	if v := b.verdict(delegated.id); firstCode(v) != wire.CodeParentEnded {
		t.Errorf("a result under a grant that was transferred away: %+v", v)
	}
	rest.result("all done")
	if m := a.next(wire.KindResult, delegated.id); string(m.Data()) != "all done" {
		t.Errorf("the result is %q", m.Data())
	}
}

// Revoking a grant takes everything below with it, and nothing beside it.
func TestRevoke(t *testing.T) {
	w := newWorld(t)
	a, b, c, d := w.agent("a"), w.agent("b"), w.agent("c"), w.agent("d")
	root := a.session(readFiles())
	first := chainOf(t, root, wire.ModeDelegate, b)
	below := chainOf(t, first, wire.ModeDelegate, c)
	beside := chainOf(t, root, wire.ModeDelegate, d)
	waiting := below.offer(d.name, "never to be claimed")
	c.receipt(waiting.id)

	op := w.operator()
	if out := op.operate(wire.VerbRevoke, wire.OperatorRequest{ID: first.handoff}); out.Error == nil || out.Error.Code != wire.CodeMalformed {
		t.Errorf("revoking without a reason: %+v", out)
	}
	out := op.operate(wire.VerbRevoke, wire.OperatorRequest{ID: first.handoff, Reason: "test"})
	if out.Error != nil {
		t.Fatal(out.Error)
	}
	if v := a.verdict(first.handoff); firstCode(v) != wire.CodeRevoked {
		t.Errorf("the sender of a revoked handoff is told %+v", v)
	}
	for _, h := range []held{first, below} {
		o := h.offer(d.name, "more")
		if v := h.a.verdict(o.id); firstCode(v) != wire.CodeParentRevoked {
			t.Errorf("%s offers under what was revoked: %+v", h.a.name, v)
		}
		h.result("done")
		if v := h.a.verdict(h.handoff); firstCode(v) != wire.CodeRevoked {
			t.Errorf("%s returns a result under what was revoked: %+v", h.a.name, v)
		}
	}
	if claimed := d.tryClaim(root.session, waiting.id); claimed.Error == nil || claimed.Error.Code != wire.CodeRevoked {
		t.Errorf("a task below a revoked grant was claimed: %+v", claimed.Error)
	}
	lives(t, beside, a)
	if out := op.operate(wire.VerbRevoke, wire.OperatorRequest{ID: newID(t), Reason: "test"}); out.Error == nil || out.Error.Code != wire.CodeHandoffUnknown {
		t.Errorf("revoking what is not there: %+v", out)
	}
}

// Closing wins over everything that is under way in the session, and only its opener or an operator can.
func TestClose(t *testing.T) {
	w := newWorld(t)
	a, b := w.agent("a"), w.agent("b")
	root := a.session(readFiles())
	grant := chainOf(t, root, wire.ModeDelegate, b)
	waiting := root.offer(b.name, "never to be claimed")
	a.receipt(waiting.id)

	var status wire.SessionStatus
	b.ask(wire.SubjectSessionClose, b.prove(wire.SessionRequest{Session: root.session}), &status)
	if status.Error == nil || status.Error.Code != wire.CodeNotYours {
		t.Errorf("another agent closes: %+v", status)
	}
	other := a.process()
	other.ask(wire.SubjectSessionClose, other.prove(wire.SessionRequest{Session: root.session}), &status)
	if status.Error == nil || status.Error.Code != wire.CodeProof {
		t.Errorf("another process of the opener closes: %+v", status)
	}
	for range 2 {
		status = wire.SessionStatus{}
		a.ask(wire.SubjectSessionClose, a.prove(wire.SessionRequest{Session: root.session}), &status)
		if status.Error != nil || status.State != "closed" {
			t.Fatalf("closing: %+v", status)
		}
	}
	grant.result("too late")
	if v := b.verdict(grant.handoff); firstCode(v) != wire.CodeSessionClosed {
		t.Errorf("a result after the close: %+v", v)
	}
	if claimed := b.tryClaim(root.session, waiting.id); claimed.Error == nil || claimed.Error.Code != wire.CodeSessionClosed {
		t.Errorf("a claim after the close: %+v", claimed.Error)
	}
	w.operator().operate(wire.VerbSessionClose, wire.OperatorRequest{Session: a.session(readFiles()).session, Reason: "night"})
}

// What time ends, ends by comparison, is on record, and is told.
func TestExpiry(t *testing.T) {
	clock := newClock()
	w := newWorld(t, clock.use)
	a, b := w.agent("a"), w.agent("b")
	root := a.session(readFiles(), func(r *wire.OpenRequest) { r.TTL = 1000 })
	now := time.Now().Unix()
	unclaimed := root.offer(b.name, "work", func(o *offering) { o.handoff.Deadline = now + 30 })
	claimed := root.offer(b.name, "work", func(o *offering) { o.claims.ExpiresAt, o.handoff.Deadline = now+60, now+60 })
	a.receipt(claimed.id)
	grant, _ := b.claim(root.session, claimed.id)

	clock.advance(40 * time.Second)
	if c := b.tryClaim(root.session, unclaimed.id); c.Error == nil || c.Error.Code != wire.CodeExpired {
		t.Errorf("a claim after the deadline: %+v", c.Error)
	}
	if v := a.verdict(unclaimed.id); firstCode(v) != wire.CodeExpired {
		t.Errorf("the sender is told %+v", v)
	}
	clock.advance(25 * time.Second)
	grant.result("too late")
	if v := b.verdict(claimed.id); firstCode(v) != wire.CodeExpired {
		t.Errorf("a result after the grant's end: %+v", v)
	}
	clock.advance(time.Hour)
	o := root.draft(b.name, "too late")
	root.seal(o)
	a.publish(o)
	if v := a.verdict(o.id); firstCode(v) != wire.CodeIDTime && firstCode(v) != wire.CodeSessionExpired && firstCode(v) != wire.CodeSessionClosed {
		t.Errorf("an offer after the session's end: %+v", v)
	}
}

// Time ends sessions and grants by itself, within a second of when it should: nobody needs to ask, and a restart in between changes
// nothing.
func TestExpiryComesByItself(t *testing.T) {
	w := newWorld(t)
	a, b := w.agent("a"), w.agent("b")
	root := a.session(readFiles(), func(r *wire.OpenRequest) { r.TTL = 5 })
	short := root.offer(b.name, "work", func(o *offering) {
		o.claims.ExpiresAt = root.leaf().Claims.ExpiresAt - 1
		o.handoff.Deadline = o.claims.ExpiresAt
	})
	a.receipt(short.id)
	grant, _ := b.claim(root.session, short.id)
	w.stop()
	w.start()
	op := w.operator()
	ends := map[entry.Kind]int64{ // Unix milliseconds
		entry.KindRevoked: grant.leaf().Claims.ExpiresAt * 1000, entry.KindClosed: root.leaf().Claims.ExpiresAt * 1000,
	}
	next := uint64(0)
	for end := time.Now().Add(20 * time.Second); len(ends) > 0; time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("these have not come: %v", ends)
		}
		for size := op.operate(wire.VerbHealth, wire.OperatorRequest{}).Health.Entries; next < size; next++ {
			e := w.entryAt(op, next)
			due, ok := ends[e.Kind]
			if !ok {
				continue
			}
			delete(ends, e.Kind)
			if late := e.Time - due; late < 0 || late > 1500 { // a heartbeat, and a busy machine
				t.Errorf("%s came %d ms after it was due", e.Kind, late)
			}
		}
	}
}

// Requests to open a session that must not open one.
func TestBadOpens(t *testing.T) {
	w := newWorld(t)
	a, b := w.agent("a"), w.agent("b")
	for _, test := range []struct {
		name   string
		code   wire.Code
		change func(*wire.OpenRequest)
	}{
		{"an ID that is none", wire.CodeID, func(r *wire.OpenRequest) { r.ID = "x" }},
		{"no objective", wire.CodeMalformed, func(r *wire.OpenRequest) { r.Objective = "" }},
		{"no ttl", wire.CodeMalformed, func(r *wire.OpenRequest) { r.TTL = 0 }},
		{"a week", wire.CodeMalformed, func(r *wire.OpenRequest) { r.TTL = 7 * 24 * 3600 }},
		{"17 hops", wire.CodeMalformed, func(r *wire.OpenRequest) { r.MaxHops = 17 }},
		{"an empty label", wire.CodeMalformed, func(r *wire.OpenRequest) { r.Labels = []string{""} }},
		{"another workload as principal", wire.CodeForbidden, func(r *wire.OpenRequest) { r.Principal.Name = b.name }},
		{"an unknown kind of principal", wire.CodeMalformed, func(r *wire.OpenRequest) { r.Principal.Kind = "ghost" }},
		{"a person nobody knows", wire.CodeForbidden, func(r *wire.OpenRequest) {
			r.Principal = wire.Principal{Kind: wire.PrincipalHuman, Name: "eve"}
		}},
		{"the governor's key", wire.CodeKey, func(r *wire.OpenRequest) {
			var keys wire.Keys
			a.ask(wire.SubjectKeys, nil, &keys)
			r.JWK = keys.GovernorKeys[0]
		}},
		{"another's key", wire.CodeProof, func(r *wire.OpenRequest) { r.JWK = b.jwk() }},
	} {
		request := a.openRequest(readFiles())
		test.change(&request)
		if out := a.open(request); out.Error == nil || out.Error.Code != test.code || out.Chain != nil {
			t.Errorf("%s: %+v, want %s", test.name, out.Error, test.code)
		}
	}
	request := a.openRequest(readFiles())
	body := a.prove(request)
	var changed wire.OpenRequest
	if err := json.Unmarshal(body, &changed); err != nil {
		t.Fatal(err)
	}
	changed.MaxHops = 16
	var out wire.OpenResponse
	a.ask(wire.SubjectSessionOpen, encode(t, changed), &out)
	if out.Error == nil || out.Error.Code != wire.CodeProof {
		t.Errorf("a request changed after its proof: %+v", out.Error)
	}
	// The same request again gets the same root; another process does not.
	first, again := a.open(request), a.open(request)
	if first.Error != nil || again.Error != nil || !again.Repeat || first.Chain[0] != again.Chain[0] {
		t.Errorf("opened %+v, again %+v", first.Error, again.Error)
	}
	if out := b.open(func() wire.OpenRequest { r := b.openRequest(readFiles()); r.ID = request.ID; return r }()); out.Error == nil || out.Error.Code != wire.CodeIDConflict {
		t.Errorf("another agent with the same ID: %+v", out.Error)
	}
}

// A person is principal only with their own signature under the very request.
func TestHumanPrincipal(t *testing.T) {
	public, key, _ := ed25519.GenerateKey(rand.Reader)
	w := newWorld(t, func(c *daemon.Config) { c.People = map[string]aat.JWK{"alice": aat.NewJWK(public)} })
	a := w.agent("a")
	request := a.openRequest(readFiles())
	request.Principal = wire.Principal{Kind: wire.PrincipalHuman, Name: "alice"}
	if out := a.open(request); out.Error == nil || out.Error.Code != wire.CodeProof {
		t.Errorf("without alice's proof: %+v", out.Error)
	}
	hash, err := wire.PrincipalRequestHash(encode(t, request))
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now().Unix()
	request.Principal.Proof, err = jws.SignJSON(wire.TypePrincipal, wire.PrincipalProof{
		ID: newID(t), IssuedAt: now, Expires: now + 60, Audience: w.d.Endpoint.Issuer, Subject: "alice", RequestHash: hash,
	}, key)
	if err != nil {
		t.Fatal(err)
	}
	wide := request
	wide.Tools = aat.Tools{"everything": {}}
	if out := a.open(wide); out.Error == nil || out.Error.Code != wire.CodeProof {
		t.Errorf("alice's proof under another request: %+v", out.Error)
	}
	if out := a.open(request); out.Error != nil {
		t.Errorf("with alice's proof: %+v", out.Error)
	}
}

// bundle makes a policy that answers sessions with allow and offers with what rego says.
func bundle(t *testing.T, rego string) *policies.Bundle {
	t.Helper()
	b, err := policies.Load(fstest.MapFS{"handoff.rego": {Data: []byte(`package handoff

session := {"effect": "allow"}

result := {"effect": "allow"}

` + rego)}})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// A policy that fails in any way denies, says so, and leaves the governor serving.
func TestPolicyFailures(t *testing.T) {
	for name, test := range map[string]struct {
		rego string
		code wire.Code
	}{
		"undefined": {`decision := {"effect": "allow"} if input.mode == "never"`, wire.CodePolicyUndefined},
		"error":     {"decision := {\"effect\": \"allow\"} if input.mode == \"delegate\"\n\ndecision := {\"effect\": \"deny\", \"reasons\": [{\"code\": \"x\", \"message\": \"x\"}]} if input.stage == \"offer\"", wire.CodePolicyError},
		"endless": {`xs := [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]

decision := {"effect": "allow"} if count([1 | some a in xs; some b in xs; some c in xs; some d in xs; some e in xs; some f in xs; some g in xs; a + b + c + d + e + f + g < 0]) == 0`, wire.CodePolicyTimeout},
		"wrong shape": {`decision := {"effect": "maybe"}`, wire.CodePolicyAnswer},
		"a string":    {`decision := "allow"`, wire.CodePolicyAnswer},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, func(c *daemon.Config) { c.Bundle = bundle(t, test.rego) })
			a, b := w.agent("a"), w.agent("b")
			root := a.session(readFiles())
			o := root.offer(b.name, "work")
			if v := a.verdict(o.id); v.Effect != wire.EffectDeny || firstCode(v) != test.code || v.Entry == nil {
				t.Errorf("verdict %+v, want a recorded denial with %s", v, test.code)
			}
			// Another bundle is in force at once; one that does not compile is not.
			op := w.operator()
			if out := op.operate(wire.VerbBundleActivate, wire.OperatorRequest{Bundle: []byte("no bundle")}); out.Error == nil || out.Error.Code != wire.CodeBundle {
				t.Errorf("activating garbage: %+v", out)
			}
			good := bundle(t, `decision := {"effect": "allow"}`)
			if out := op.operate(wire.VerbBundleActivate, wire.OperatorRequest{Bundle: good.Bytes()}); out.Error != nil {
				t.Fatal(out.Error)
			}
			lives(t, root, b)
		})
	}
}

// The policy in force at the claim decides, and one that is put in force later reaches what was granted before.
func TestJudgedAgain(t *testing.T) {
	allow := bundle(t, `decision := {"effect": "allow"}`)
	w := newWorld(t, func(c *daemon.Config) { c.Bundle = allow })
	a, b := w.agent("a"), w.agent("b")
	root := a.session(readFiles())
	grant := chainOf(t, root, wire.ModeDelegate, b)
	waiting := root.offer(b.name, "work")
	a.receipt(waiting.id)

	deny := bundle(t, `decision := {"effect": "deny", "reasons": [{"code": "changed_our_mind", "message": "ask again tomorrow"}]}`)
	op := w.operator()
	if out := op.operate(wire.VerbBundleActivate, wire.OperatorRequest{Bundle: deny.Bytes()}); out.Error != nil {
		t.Fatal(out.Error)
	}
	if v := a.verdict(grant.handoff); firstCode(v) != wire.CodeRevoked {
		t.Errorf("a live grant that the policy no longer allows: %+v", v)
	}
	c := b.tryClaim(root.session, waiting.id)
	if c.Error == nil || c.Error.Code != wire.CodePolicyDenied || len(c.Reasons) == 0 || c.Reasons[0].Code != "changed_our_mind" {
		t.Errorf("a claim under a policy that denies: %+v %+v", c.Error, c.Reasons)
	}
	if v := a.verdict(waiting.id); firstCode(v) != "changed_our_mind" {
		t.Errorf("the sender is told %+v", v)
	}
	if out := op.operate(wire.VerbBundleActivate, wire.OperatorRequest{Bundle: allow.Bytes()}); out.Error != nil {
		t.Fatal(out.Error)
	}
	if c := b.tryClaim(root.session, waiting.id); c.Error == nil || c.Error.Code != wire.CodeNotAdmitted {
		t.Errorf("a denied claim is final, and yet: %+v", c.Error)
	}
}

// A held offer waits for a person, and is judged again with the approval.
func TestApproval(t *testing.T) {
	hold := bundle(t, `default decision := {"effect": "hold", "reasons": [{"code": "needs_approval", "message": "ask alice"}]}

decision := {"effect": "allow", "ceiling": {"fs.list": {}}} if count(input.approvals) > 0`)
	w := newWorld(t, func(c *daemon.Config) { c.Bundle = hold })
	a, b := w.agent("a"), w.agent("b")
	root := a.session(readFiles())
	o := root.offer(b.name, "work")
	v := a.verdict(o.id)
	if v.Effect != wire.EffectHold || v.Entry == nil {
		t.Fatalf("verdict %+v, want a hold", v)
	}
	if c := b.tryClaim(root.session, o.id); c.Error == nil || c.Error.Code != wire.CodeNotAdmitted {
		t.Errorf("a held task was claimed: %+v", c.Error)
	}
	w.stop()
	w.start()
	a, b = w.agent("a"), w.agent("b")
	op := w.operator()
	approved := op.operate(wire.VerbApprove, wire.OperatorRequest{Index: *v.Entry, Approve: true})
	if approved.Error != nil {
		t.Fatal(approved.Error)
	}
	got := a.verdict(o.id)
	if got.Effect == wire.EffectHold { // published again at the start
		got = a.verdict(o.id)
	}
	if got.Effect != wire.EffectAllow {
		t.Errorf("after the approval: %+v", got)
	}
	grant, _ := b.claim(root.session, o.id)
	if tools := grant.leaf().Claims.Tools; !tools.Equal(aat.Tools{"fs.list": {}}) {
		t.Errorf("granted %v, want what the ceiling leaves", tools)
	}
	again := op.operate(wire.VerbApprove, wire.OperatorRequest{Index: *v.Entry, Approve: true})
	if again.Error != nil || again.Entry != approved.Entry {
		t.Errorf("the same hold was approved twice: %+v, then %+v", approved, again)
	}
}

// The ceiling narrows at the offer and the labels grow along the chain.
func TestCeilingAndLabels(t *testing.T) {
	w := newWorld(t, func(c *daemon.Config) {
		b, err := bundle(t, `decision := {"effect": "allow", "ceiling": {"fs.read": {"path": {"constraint_type": "exact", "value": "/a"}}}, "ttl": 60}`).
			WithData("/tools", map[string]any{"fs.list": map[string]any{"labels": []string{"listing"}}})
		if err != nil {
			t.Fatal(err)
		}
		c.Bundle = b
	})
	a, b, c := w.agent("a"), w.agent("b"), w.agent("c")
	root := a.session(readFiles(), func(r *wire.OpenRequest) { r.Labels = []string{"red"} })
	o := root.offer(b.name, "work", func(o *offering) { o.handoff.Labels = []string{"blue"} })
	a.receipt(o.id)
	grant, claimed := b.claim(root.session, o.id)
	if tools := grant.leaf().Claims.Tools; !tools.Equal(aat.Tools{"fs.read": {"path": aat.OneOf("/a")}}) {
		t.Errorf("granted %v", tools)
	}
	if life := grant.leaf().Claims.ExpiresAt - time.Now().Unix(); life > 60 {
		t.Errorf("the grant lives %d s, the policy gives 60", life)
	}
	if want := []string{"blue", "listing", "red"}; !equal(claimed.Labels, want) {
		t.Errorf("labels %v, want %v", claimed.Labels, want)
	}
	nothing := root.offer(b.name, "work", func(o *offering) { o.claims.Tools = aat.Tools{"fs.list": {}} })
	if v := a.verdict(nothing.id); v.Effect != wire.EffectDeny || v.Reasons[len(v.Reasons)-1].Code != wire.CodeCeiling {
		t.Errorf("an offer that the ceiling leaves nothing of: %+v", v)
	}
	// A result's labels stay with whoever got it.
	part := grant.offer(c.name, "a part")
	b.receipt(part.id)
	worker, _ := c.claim(root.session, part.id)
	worker.result("secret", func(r *wire.ResultToken, _ *natsMsg) { r.Labels = []string{"secret"} })
	b.next(wire.KindResult, part.id)
	after := grant.offer(c.name, "another part")
	b.receipt(after.id)
	if _, claimed := c.claim(root.session, after.id); !equal(claimed.Labels, []string{"blue", "listing", "red", "secret"}) {
		t.Errorf("labels after the result: %v", claimed.Labels)
	}
}

// A task that was handed on for good is nobody's to take over: whoever has it now works on it.
func TestNoTakeOverAfterTransfer(t *testing.T) {
	clock := newClock()
	w := newWorld(t, clock.use)
	a, b, c := w.agent("a"), w.agent("b"), w.agent("c")
	root := a.session(readFiles())
	first := chainOf(t, root, wire.ModeDelegate, b)
	last := chainOf(t, first, wire.ModeTransfer, c)
	clock.advance(wire.Lease*time.Second + time.Second)
	other := b.process()
	if claimed := other.tryClaim(root.session, first.handoff); claimed.Error == nil || claimed.Error.Code != wire.CodeParentEnded {
		t.Errorf("a process takes over what was transferred: %+v", claimed.Error)
	}
	last.result("done")
	if m := a.next(wire.KindResult, first.handoff); string(m.Data()) != "done" {
		t.Errorf("the result is %q", m.Data())
	}
}

// A session that policy does not let open is on record, with the reasons, and stays denied under its ID.
func TestDeniedSession(t *testing.T) {
	w := newWorld(t, func(c *daemon.Config) {
		c.Bundle = policyOf(t, `session := {"effect": "deny", "reasons": [{"code": "closed_today", "message": "come back tomorrow"}]}

decision := {"effect": "allow"}

result := {"effect": "allow"}`)
	})
	a, b, op := w.agent("a"), w.agent("b"), w.operator()
	request := a.openRequest(readFiles())
	first := a.open(request)
	if first.Error == nil || first.Error.Code != wire.CodePolicyDenied || len(first.Reasons) != 1 || first.Chain != nil {
		t.Fatalf("answered with %+v", first)
	}
	e := w.entryAt(op, first.Entry)
	if e.Decided == nil || e.Decided.Stage != entry.StageSession || e.Session != request.ID || e.From != a.name || e.Decided.Decision == nil {
		t.Errorf("the record says %+v", e)
	}
	good := bundle(t, `decision := {"effect": "allow"}`)
	if out := op.operate(wire.VerbBundleActivate, wire.OperatorRequest{Bundle: good.Bytes()}); out.Error != nil {
		t.Fatal(out.Error)
	}
	if again := a.open(request); again.Error == nil || again.Entry != first.Entry || again.Chain != nil {
		t.Errorf("asked again: %+v", again)
	}
	stolen := b.openRequest(readFiles())
	stolen.ID = request.ID
	if out := b.open(stolen); out.Error == nil || out.Error.Code != wire.CodeIDConflict {
		t.Errorf("another agent with the same ID: %+v", out.Error)
	}
	lives(t, a.session(readFiles()), b)
}
