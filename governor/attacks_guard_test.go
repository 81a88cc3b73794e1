package governor_test

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/handoff-governor/handoff-governor/handoff"
	"github.com/handoff-governor/handoff-governor/handoff/aat"
	"github.com/handoff-governor/handoff-governor/handoff/guard"
	"github.com/handoff-governor/handoff-governor/handoff/wire"
)

// toolsURL is where the arena's guard stands.
const toolsURL = "https://tools.example"

// guarded starts a guard that hears the governor's revocations, for one deployment.
func guarded(t *testing.T, w *world) *guard.Guard {
	t.Helper()
	watcher, err := handoff.Connect(t.Context(), handoff.Config{URL: w.d.Endpoint.URL, Source: w.place.Source("/guard/tools")})
	if err != nil {
		t.Fatal(err)
	}
	keys, err := watcher.Keys(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	issuer, err := guard.IssuerOf(keys)
	if err != nil {
		t.Fatal(err)
	}
	begun := time.Now().Add(-time.Minute) // it was there before, as guards are when agents call
	now := func() time.Time { return begun }
	g, err := guard.New(guard.Config{Audience: []string{toolsURL}, Issuers: []guard.Issuer{issuer}, Now: func() time.Time { return now() }})
	if err != nil {
		t.Fatal(err)
	}
	now = time.Now
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- watcher.WatchRevocations(ctx, g) }()
	t.Cleanup(func() {
		cancel()
		<-done
		watcher.Close()
	})
	return g
}

// guardAttacks are made at a tool, by those who hold something or have found it.
var guardAttacks = []attack{
	calling("calls a tool that she was not given", "the tool", []wire.Code{wire.CodeNotGranted}, func(_ *arena, c *call) { c.tool = "fs.write" }),
	calling("calls with an argument that is not allowed", "another file", []wire.Code{wire.CodeNotGranted}, func(_ *arena, c *call) { c.args = `{"path":"/c"}` }),
	calling("calls with one argument more", "what nobody has thought of", []wire.Code{wire.CodeNotGranted}, func(_ *arena, c *call) { c.args = `{"path":"/a","recursive":true}` }),
	calling("calls without an argument", "the tool's default", []wire.Code{wire.CodeNotGranted}, func(_ *arena, c *call) { c.args = `{}` }),
	calling("says an argument twice", "the guard reads one, the tool the other", []wire.Code{wire.CodeNotGranted, wire.CodeProof, wire.CodeToken},
		func(_ *arena, c *call) { c.args = `{"path":"/a","path":"/c"}` }),
	calling("has a proof for other arguments", "another file", []wire.Code{wire.CodeProof}, func(_ *arena, c *call) { c.proved = `{"path":"/b"}` }),
	calling("has a proof for another tool", "the tool", []wire.Code{wire.CodeProof}, func(_ *arena, c *call) { c.pop.Tool = "fs.list" }),
	calling("has a proof for another guard", "a proof that was shown elsewhere is good here", []wire.Code{wire.CodeAudience}, func(_ *arena, c *call) { c.pop.Audience = "https://else.example" }),
	calling("has a proof for no guard", "a proof that is good everywhere", []wire.Code{wire.CodeAudience}, func(_ *arena, c *call) { c.pop.Audience = "" }),
	calling("has a proof for another grant", "the wider of two grants", []wire.Code{wire.CodeProof}, func(a *arena, c *call) { c.pop.TokenHash = a.root.leaf().HashString() }),
	calling("has a proof of an hour ago", "a proof that was found in a log", []wire.Code{wire.CodeProof, wire.CodeGuardStart}, func(_ *arena, c *call) { c.pop.IssuedAt -= 3600 }),
	calling("has a proof of tomorrow", "a proof to be kept", []wire.Code{wire.CodeProof}, func(_ *arena, c *call) { c.pop.IssuedAt += 3600 }),
	calling("signs the proof with another key", "whoever has the chain has the grant", []wire.Code{wire.CodeProof}, func(_ *arena, c *call) {
		_, c.key, _ = ed25519.GenerateKey(rand.Reader)
	}),
	calling("passes off a claim's proof as one for a call", "what was signed for the governor moves a tool", []wire.Code{wire.CodeProof}, func(a *arena, c *call) {
		c.raw = a.mallory.claimRequest(c.held.session, []string{newID(a.t)}).Proof
	}),
	{
		name: "uses a proof twice", wins: "one permitted call is many",
		try: func(a *arena) string {
			c := a.call(a.task(a.mallory))
			if _, err := a.present(c); err != nil {
				a.t.Fatalf("the first call: %v", err)
			}
			return a.refused(c, wire.CodeProof)
		},
	},

	// What is another's.
	{
		name: "calls with the planner's chain and proof", wins: "whoever listens to a call can make it",
		try: func(a *arena) string {
			c := a.call(a.task(a.bob()))
			c.caller = a.mallory.name
			return a.refused(c, wire.CodeCaller)
		},
	},
	{
		name: "is given an accomplice's key and chain outside NATS", wins: "authority passes without a handoff",
		try: func(a *arena) string {
			h := a.task(a.bob()) // bob hands over everything that it has, but for its SVID
			stolen := h
			stolen.a = &agent{w: a.world, t: a.t, name: a.mallory.name, key: h.a.key}
			return a.refused(a.call(stolen), wire.CodeCaller)
		},
	},
	{
		name: "is handed a link by an accomplice outside NATS", wins: "a hop that nobody has judged",
		try: func(a *arena) string {
			h := a.task(a.bob())
			return a.refused(a.direct(h, a.mallory), wire.CodeAlternation)
		},
	},
	{
		name: "is handed two links by an accomplice who plays the governor", wins: "a hop that nobody has judged, and that looks like one",
		try: func(a *arena) string {
			h := a.task(a.bob())
			_, fake, _ := ed25519.GenerateKey(rand.Reader)
			mid := a.link(h.leaf(), h.a.key, fake, wire.HandoffClaim{
				Session: h.session, To: a.mallory.name, Mode: wire.ModeDelegate, TaskHash: b64(make([]byte, 32)), ContentType: "text/plain",
				Deadline: h.leaf().Claims.ExpiresAt, Labels: h.labels(),
			})
			leaf := a.link(mid, fake, a.mallory.key, wire.HandoffClaim{
				ID: mid.Claims.ID, Session: h.session, From: a.bob().name, To: a.mallory.name, Labels: h.labels(),
			})
			return a.refused(a.call(held{a: a.mallory, links: leaf.Chain(), session: h.session}), wire.CodeAlternation)
		},
	},
	{
		name: "presents an offer that the governor has not answered", wins: "authority without a claim",
		try: func(a *arena) string {
			h := a.task(a.bob())
			o := h.offer(a.mallory.name, "work")
			h.a.receipt(o.id)
			mid, err := aat.RestoreToken(h.leaf(), o.token)
			if err != nil {
				a.t.Fatal(err)
			}
			return a.refused(a.call(held{a: a.mallory, links: mid.Chain(), session: h.session}), wire.CodeAlternation, wire.CodeProof, wire.CodeToken)
		},
	},
	{
		name: "makes a root of her own", wins: "any authority at all",
		try: func(a *arena) string {
			h := a.task(a.mallory)
			_, own, _ := ed25519.GenerateKey(rand.Reader)
			claims := h.links[0].Claims
			claims.Holder, claims.Tools = a.mallory.jwk(), aat.Tools{"fs.read": {"path": aat.Wildcard()}}
			token, err := aat.Issue(claims, own)
			if err != nil {
				a.t.Fatal(err)
			}
			c := a.call(h)
			c.chain = []string{token}
			return a.refused(c, wire.CodeToken)
		},
	},
	{
		name: "puts another's link under her root", wins: "a part of each of two grants",
		try: func(a *arena) string {
			mine, theirs := a.mallory.session(readFiles()), a.task(a.bob())
			c := a.call(mine)
			c.chain = append(slices.Clone(c.chain), theirs.leaf().Chain()[1].Compact, theirs.leaf().Compact)
			return a.refused(c, wire.CodeToken)
		},
	},
	{
		name: "leaves links out", wins: "the root's authority for the leaf's holder",
		try: func(a *arena) string {
			c := a.call(a.task(a.mallory))
			c.chain = []string{c.chain[0], c.chain[2]}
			return a.refused(c, wire.CodeToken)
		},
	},
	{
		name: "presents the links above hers alone", wins: "the wider grant of who handed it to her",
		try: func(a *arena) string {
			c := a.call(a.task(a.mallory))
			c.chain = c.chain[:1]
			return a.refused(c, wire.CodeProof, wire.CodeCaller)
		},
	},
	{
		name: "presents links in another order", wins: "a verifier that does not look",
		try: func(a *arena) string {
			c := a.call(a.task(a.mallory))
			slices.Reverse(c.chain)
			return a.refused(c, wire.CodeToken)
		},
	},
	{
		name: "presents a chain of a thousand links", wins: "a guard that is busy",
		try: func(a *arena) string {
			c := a.call(a.task(a.mallory))
			c.chain = slices.Repeat(c.chain, 334)
			return a.refused(c, wire.CodeToken, wire.CodeTooLarge)
		},
	},
	{
		name: "presents a token of a megabyte", wins: "a guard that is busy",
		try: func(a *arena) string {
			c := a.call(a.task(a.mallory))
			c.chain[0] = strings.Repeat("a", 1<<20)
			return a.refused(c, wire.CodeToken, wire.CodeTooLarge)
		},
	},

	// After the end.
	{
		name: "calls after her task is done", wins: "authority after the work",
		try: func(a *arena) string {
			h := a.task(a.mallory)
			h.a.receipt(h.result("done"))
			return a.closes(h, wire.CodeParentEnded)
		},
	},
	{
		name: "calls after her grant was revoked", wins: "a revocation stops nobody",
		try: func(a *arena) string {
			h := a.task(a.mallory)
			if out := a.operator.operate(wire.VerbRevoke, wire.OperatorRequest{ID: h.handoff, Reason: "test"}); out.Error != nil {
				a.t.Fatal(out.Error)
			}
			return a.closes(h, wire.CodeRevoked)
		},
	},
	{
		name: "calls after the session was closed", wins: "a session without an end",
		try: func(a *arena) string {
			h := a.mallory.session(readFiles())
			a.mallory.closing(h.session)
			return a.closes(h, wire.CodeRevoked)
		},
	},
	{
		name: "calls with what a process before hers was given", wins: "two processes, one grant",
		try: func(a *arena) string {
			h := a.task(a.mallory)
			after := h
			after.a = a.mallory.process()
			return a.refused(a.call(after), wire.CodeProof)
		},
	},
	{
		name: "calls a guard that her grant does not name", wins: "a grant for one place is good everywhere",
		try: func(a *arena) string {
			root := a.bob().session(readFiles())
			o := root.offer(a.mallory.name, "work", func(o *offering) { o.claims.Audience = []string{"https://else.example"} })
			a.bob().receipt(o.id)
			h, _ := a.mallory.claim(root.session, o.id)
			return a.refused(a.call(h), wire.CodeAudience)
		},
	},
	{
		name: "hands on without the audience that was named to her", wins: "a grant for one place is good everywhere, one hop later",
		try: func(a *arena) string {
			root := a.bob().session(readFiles())
			o := root.offer(a.mallory.name, "work", func(o *offering) { o.claims.Audience = []string{"https://else.example"} })
			a.bob().receipt(o.id)
			h, _ := a.mallory.claim(root.session, o.id)
			on := h.offer(a.mallory.name, "work", func(o *offering) { o.claims.Audience = []string{toolsURL} })
			a.mallory.receipt(on.id)
			c := a.mallory.tryClaim(root.session, on.id)
			if c.Error != nil {
				return a.oneOf(c.Error.Code, []wire.Code{wire.CodeWidened, wire.CodeHandoffUnknown, wire.CodeAudience})
			}
			return a.refused(a.call(a.mallory.hold(c.Chain, *c.GovernorJWK, root.session, on.id)), wire.CodeAudience)
		},
	},
}

// call is one call of a tool, to be bent.
type call struct {
	held   held
	tool   string
	args   string // as the tool gets them
	proved string // as the proof has them; "": as args
	caller string // whom the connection belongs to
	chain  []string
	key    ed25519.PrivateKey
	pop    aat.PoP
	raw    string // the proof, where it is none of the above
}

// call is a good one.
func (a *arena) call(h held) *call {
	leaf := h.leaf()
	return &call{
		held: h, tool: "fs.read", args: `{"path":"/a"}`, caller: h.a.name, chain: leaf.Tokens(), key: h.a.key,
		pop: aat.PoP{ID: newID(a.t), IssuedAt: a.now(), TokenID: leaf.Claims.ID, TokenHash: leaf.HashString(), Audience: toolsURL},
	}
}

func (a *arena) present(c *call) (*guard.Call, error) {
	a.t.Helper()
	pop := c.pop
	if pop.Tool == "" {
		pop.Tool = c.tool
	}
	pop.Args = jsontext.Value(c.args)
	if c.proved != "" {
		pop.Args = jsontext.Value(c.proved)
	} else if !pop.Args.IsValid() {
		pop.Args = jsontext.Value(`{"path":"/a"}`)
	}
	proof := c.raw
	if proof == "" {
		var err error
		if proof, err = pop.Sign(c.key); err != nil {
			a.t.Fatal(err)
		}
	}
	return a.guard.Check(a.t.Context(), guard.Presentation{Chain: c.chain, PoP: proof}, c.tool, []byte(c.args), c.caller)
}

// refused presents a call that must be refused, and then a good one of the same kind that must not.
func (a *arena) refused(c *call, want ...wire.Code) string {
	a.t.Helper()
	_, err := a.present(c)
	e, ok := errors.AsType[*wire.Error](err)
	if !ok {
		a.t.Fatalf("the guard says %v", err)
	}
	if _, err := a.present(a.call(a.root)); err != nil {
		a.t.Errorf("the planner's own call: %v", err)
	}
	a.oneOf(e.Code, want)
	if e.Step != "" {
		return "guard: " + string(e.Code) + ", step " + e.Step
	}
	return "guard: " + string(e.Code)
}

// calling is an attack with a grant of mallory's own and a call that is bent.
func calling(name, wins string, want []wire.Code, change func(*arena, *call)) attack {
	return attack{name, wins, func(a *arena) string {
		h := a.task(a.mallory)
		if _, err := a.present(a.call(h)); err != nil {
			a.t.Fatalf("the call as it should be: %v", err)
		}
		c := a.call(h)
		change(a, c)
		return a.refused(c, want...)
	}}
}

// closes waits for the guard to refuse what it has permitted. It has a second.
func (a *arena) closes(h held, want wire.Code) string {
	a.t.Helper()
	for end := time.Now().Add(time.Second); ; {
		_, err := a.present(a.call(h))
		if errors.Is(err, &wire.Error{Code: want}) {
			return a.refused(a.call(h), want)
		}
		if time.Now().After(end) {
			a.t.Fatalf("after a second the guard says %v", err)
		}
	}
}

// direct is a call under a link that one agent has made for another.
func (a *arena) direct(h held, to *agent) *call {
	a.t.Helper()
	leaf := a.link(h.leaf(), h.a.key, to.key, wire.HandoffClaim{
		ID: newID(a.t), Session: h.session, From: h.a.name, To: to.name, Labels: h.labels(),
	})
	return a.call(held{a: to, links: leaf.Chain(), session: h.session})
}

// link derives a link as no governor would.
func (a *arena) link(parent *aat.Link, signer, holder ed25519.PrivateKey, claim wire.HandoffClaim) *aat.Link {
	a.t.Helper()
	token, err := aat.Derive(parent, aat.Claims{
		ID: newID(a.t), IssuedAt: a.now(), ExpiresAt: parent.Claims.ExpiresAt, Holder: aat.NewJWK(holder.Public().(ed25519.PublicKey)),
		MaxDepth: parent.Claims.MaxDepth, Tools: parent.Claims.Tools,
		Extra: map[string]jsontext.Value{"handoff": encode(a.t, claim)},
	}, signer)
	if err != nil {
		a.t.Fatal(err)
	}
	l, err := aat.RestoreToken(parent, token)
	if err != nil {
		a.t.Fatal(err)
	}
	return l
}
