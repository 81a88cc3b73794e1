package guard_test

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/handoff-governor/handoff-governor/handoff/aat"
	"github.com/handoff-governor/handoff-governor/handoff/guard"
	"github.com/handoff-governor/handoff-governor/handoff/wire"
)

func TestPermit(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	h := w.root().to("b").to("c")
	for range 2 { // seen for the first time, and seen before
		for _, caller := range []string{"c", ""} {
			call, err := w.check(h.present(), caller)
			if err != nil {
				t.Fatal(err)
			}
			if call.Agent != "c" || call.Session != h.session() || call.Handoff != h.links[3].Claims.ID || call.Issuer != issuer ||
				call.Tool != "read" || string(call.Args) != readA || !slices.Equal(call.Labels, []string{"internal"}) ||
				!call.Expires.Equal(time.Unix(h.leaf().Claims.ExpiresAt, 0)) || len(call.Links) != 5 {
				t.Errorf("the call is %+v", call)
			}
		}
	}
	root, err := w.check(w.root().present(), "a")
	if err != nil || root.Handoff != "" || root.Agent != "a" {
		t.Errorf("a root's call is %+v, %v", root, err)
	}
}

// Each of these is one thing wrong with a call that is otherwise permitted.
func TestRefusals(t *testing.T) {
	t.Parallel()
	proof := func(change func(*aat.PoP)) func(*world) guard.Presentation {
		return func(w *world) guard.Presentation {
			h := w.root().to("b")
			return guard.Presentation{Chain: h.tokens(), PoP: h.proof(readA, change)}
		}
	}
	chain := func(change func([]string) []string) func(*world) guard.Presentation {
		return func(w *world) guard.Presentation {
			h := w.root().to("b")
			return guard.Presentation{Chain: change(h.tokens()), PoP: h.proof(readA)}
		}
	}
	for name, test := range map[string]struct {
		make func(*world) guard.Presentation
		code wire.Code
		step string
	}{
		"no chain":            {chain(func([]string) []string { return nil }), wire.CodeToken, "1"},
		"a link left out":     {chain(func(c []string) []string { return []string{c[0], c[2]} }), wire.CodeToken, "4b"},
		"ends with an offer":  {chain(func(c []string) []string { return c[:2] }), wire.CodeAlternation, ""},
		"only the root":       {chain(func(c []string) []string { return c[:1] }), wire.CodeProof, "7b"},
		"a link twice":        {chain(func(c []string) []string { return append(c, c[2]) }), wire.CodeToken, "2c"},
		"too large":           {chain(func(c []string) []string { return append(c, strings.Repeat("x", 65<<10)) }), wire.CodeToken, "2a"},
		"a flipped signature": {chain(func(c []string) []string { c[2] = flip(c[2]); return c }), wire.CodeToken, "4b"},
		"a strange root":      {func(w *world) guard.Presentation { w.issuer = seedKey("x"); return w.root().present() }, wire.CodeToken, "3b"},
		"another issuer's name": {func(w *world) guard.Presentation {
			return w.root(func(c *aat.Claims) { c.Issuer = "https://other.example.com" }).present()
		}, wire.CodeToken, "3k"},
		"without a governor between": {func(w *world) guard.Presentation {
			h := w.root()
			return h.derive(seedKey("b"), h.key, "b", h.offerClaim("b")).present()
		}, wire.CodeAlternation, ""},
		"two agents behind the governor's back": {func(w *world) guard.Presentation {
			h := w.root()
			h = h.derive(seedKey("b"), h.key, "b", h.offerClaim("b"))
			return h.derive(seedKey("c"), h.key, "c", wire.HandoffClaim{
				Session: h.session(), To: "b", ID: h.leaf().Claims.ID, From: "a", Decision: &wire.EntryRef{}, Bundle: "x",
			}).present()
		}, wire.CodeAlternation, ""},
		"held by the governor": {func(w *world) guard.Presentation {
			h := w.root()
			h = h.derive(w.governor, h.key, "", h.offerClaim("b"))
			return h.derive(w.governor, w.governor, "b", wire.HandoffClaim{
				Session: h.session(), To: "b", ID: h.leaf().Claims.ID, From: "a", Decision: &wire.EntryRef{}, Bundle: "x",
			}).present()
		}, wire.CodeAlternation, ""},
		"another session's name": {func(w *world) guard.Presentation {
			return w.root(func(c *aat.Claims) { c.Extra = w.extra(wire.HandoffClaim{Session: newID(w), To: "a"}) }).present()
		}, wire.CodeProfile, ""},
		"no handoff claim": {func(w *world) guard.Presentation {
			return w.root(func(c *aat.Claims) { c.Extra = nil }).present()
		}, wire.CodeProfile, ""},
		"another guard's link": {func(w *world) guard.Presentation {
			return w.root().to("b", func(c *aat.Claims) { c.Audience = []string{"https://else.example.com"} }).present()
		}, wire.CodeAudience, "6c"},
		"another guard's proof": {proof(func(p *aat.PoP) { p.Audience = "https://else.example.com" }), wire.CodeAudience, "7d"},
		"a proof for anybody":   {proof(func(p *aat.PoP) { p.Audience = "" }), wire.CodeAudience, "7d"},
		"another tool's proof":  {proof(func(p *aat.PoP) { p.Tool = "send" }), wire.CodeProof, "7e"},
		"another call's proof":  {proof(func(p *aat.PoP) { p.Args = []byte(`{"path":"/b"}`) }), wire.CodeProof, "7f"},
		"another leaf's proof":  {proof(func(p *aat.PoP) { p.TokenID = newID(t) }), wire.CodeProof, "7c"},
		"an old proof":          {proof(func(p *aat.PoP) { p.IssuedAt -= 31 }), wire.CodeProof, "7g"},
		"a proof of tomorrow":   {proof(func(p *aat.PoP) { p.IssuedAt += 6 }), wire.CodeProof, "7g"},
		"a proof of later":      {proof(func(p *aat.PoP) { p.IssuedAt += 3600 }), wire.CodeProof, "7g"},
		"a proof with no jti":   {proof(func(p *aat.PoP) { p.ID = "" }), wire.CodeProof, "7c"},
		"no proof": {func(w *world) guard.Presentation {
			p := w.root().present()
			p.PoP = ""
			return p
		}, wire.CodeProof, "7a"},
		"a proof by somebody else": {func(w *world) guard.Presentation {
			h := w.root().to("b")
			h.key = seedKey("a")
			return h.present()
		}, wire.CodeProof, "7b"},
		"a tool that is not granted": {func(w *world) guard.Presentation {
			return w.root().to("b", func(c *aat.Claims) { c.Tools = aat.Tools{"send": tools["send"]} }).present()
		}, wire.CodeNotGranted, "6b"},
		"an argument that is not granted": {func(w *world) guard.Presentation {
			return w.root().to("b", func(c *aat.Claims) { c.Tools = aat.Tools{"read": {"path": aat.Exact("/b")}} }).present()
		}, wire.CodeNotGranted, "6b"},
		"a task with no authority": {func(w *world) guard.Presentation {
			return w.root().to("b", func(c *aat.Claims) { c.Tools = aat.Tools{} }).present()
		}, wire.CodeNotGranted, "6b"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			_, err := w.check(test.make(w), "")
			e := wantCode(t, err, test.code)
			if e.Step != test.step || e.Message == "" {
				t.Errorf("step %q, message %q; want step %q and a sentence", e.Step, e.Message, test.step)
			}
			w.issuer = seedKey("issuer")
			w.permits(w.root().to("b")) // the guard itself is well
		})
	}
}

func flip(token string) string {
	at := len(token) - 20
	c := byte('A')
	if token[at] == c {
		c = 'B'
	}
	return token[:at] + string(c) + token[at+1:]
}

func TestCallerMustHoldTheGrant(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	h := w.root().to("b")
	_, err := w.check(h.present(), "a")
	wantCode(t, err, wire.CodeCaller)
	w.permits(h)
}

func TestLinksExpire(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	h := w.root(func(c *aat.Claims) { c.ExpiresAt = w.now().Unix() + 60 }).to("b")
	unseen := w.root(func(c *aat.Claims) { c.ExpiresAt = w.now().Unix() + 60 }).to("b")
	w.permits(h)
	w.advance(59 * time.Second)
	w.beat()
	w.permits(h)
	w.advance(time.Second)
	w.beat()
	w.refuses(h, wire.CodeExpired)
	w.refuses(unseen, wire.CodeExpired)
}

func TestProofIsUsedUp(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	h := w.root().to("b")
	p := h.present()
	if _, err := w.check(p, "a"); err == nil {
		t.Fatal("permitted for another caller")
	}
	if _, err := w.check(p, "b"); err != nil {
		t.Fatalf("a refused call has used the proof up: %v", err)
	}
	for range 40 { // until the window closes and beyond
		if e := wantCode(t, second(w.check(p, "b")), wire.CodeProof); e.Step != "7i" && e.Step != "7g" {
			t.Fatalf("step %s", e.Step)
		}
		w.advance(time.Second)
		w.beat()
	}
	// The same jti under another leaf is another proof.
	id := newID(t)
	same := func(p *aat.PoP) { p.ID = id }
	for _, agent := range []string{"b", "c"} {
		h := w.root().to(agent)
		if _, err := w.check(guard.Presentation{Chain: h.tokens(), PoP: h.proof(readA, same)}, agent); err != nil {
			t.Error(err)
		}
	}
}

// Who sets a guard's clock back by a few seconds, less than anything notices, wants to use a proof again that the guard
// has forgotten since its window closed.
func TestProofNotReplayedAfterClockFallsBack(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	h := w.root().to("b")
	p := h.present()
	if _, err := w.check(p, "b"); err != nil {
		t.Fatal(err)
	}
	for range 32 { // the proof's window closes, and other calls sweep it
		w.advance(time.Second)
		w.beat()
	}
	w.permits(h)
	w.advance(-4 * time.Second)
	w.beat()
	wantCode(t, second(w.check(p, "b")), wire.CodeProof)
}

// Who can set the wall clock of a guard's machine wants used proofs and expired grants again. Go's monotonic reading hides
// the step from whoever subtracts two times.
func TestWallClockSetBackRevivesNothing(t *testing.T) {
	t.Parallel()
	w, c := newSteppedWorld(t)
	h := w.root(func(c *aat.Claims) { c.ExpiresAt = w.now().Unix() + 60 }).to("b")
	p := h.present()
	if _, err := w.check(p, "b"); err != nil {
		t.Fatal(err)
	}
	for range 90 { // the proof's window closes, the grant expires, other calls are made
		c.ahead += time.Second
		w.follow(c)
		w.beat()
	}
	w.permits(w.root().to("c"))
	wantCode(t, second(w.check(p, "b")), wire.CodeExpired)
	c.wall -= 85 * time.Second
	wantCode(t, second(w.check(p, "b")), wire.CodeExpired)
}

// A wall clock that was wrong for a moment closes the guard, for it cannot tell which of the two times was wrong. It goes
// on when the clock has got there.
func TestClockAheadCloses(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	h := w.root().to("b")
	w.advance(time.Minute)
	wantCode(t, second(w.check(h.present(), "b")), wire.CodeGuardFeed)
	w.advance(-time.Minute)
	w.beatRefused()
	w.refuses(h, wire.CodeGuardFeed)
	w.advance(time.Minute)
	w.beat()
	w.snapshot("", "")
	w.permits(h)
}

func second[T any](_ T, err error) error { return err }

func TestProofUsedOnceAmongMany(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	p := w.root().to("b").present()
	var permitted atomic.Int32
	var all sync.WaitGroup
	for range 32 {
		all.Go(func() {
			if _, err := w.check(p, "b"); err == nil {
				permitted.Add(1)
			}
		})
	}
	all.Wait()
	if n := permitted.Load(); n != 1 {
		t.Errorf("one proof permitted %d calls", n)
	}
}

func TestProofsNeverForgotten(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(c *guard.Config) { c.MaxProofs = 8 })
	first, second := w.root().to("b"), w.root().to("c")
	for range 3 { // a quarter, and one
		w.permits(first)
	}
	e := wantCode(t, func() error { _, err := w.check(first.present(), ""); return err }(), wire.CodeUnavailable)
	if e.RetryAfter == 0 {
		t.Error("no Retry-After")
	}
	for range 3 {
		w.permits(second) // who has done nothing is not shut out
	}
	w.permits(w.root())
	w.permits(w.root())
	w.refuses(w.root().to("d"), wire.CodeUnavailable)
	w.advance(31 * time.Second)
	w.beat()
	w.permits(first)
	w.permits(w.root().to("d"))
}

func TestStart(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	h := w.root().to("b")
	old := h.present()
	w.permits(h)

	// The guard is started anew, and remembers nothing.
	g, err := guard.New(guard.Config{Audience: []string{audience}, Issuers: []guard.Issuer{w.trusted()}, Now: w.now})
	if err != nil {
		t.Fatal(err)
	}
	w.guard = g
	w.refuses(h, wire.CodeGuardFeed)
	w.snapshot("", "")
	e := wantCode(t, second(w.check(old, "b")), wire.CodeGuardStart)
	if e.RetryAfter < 5 || e.RetryAfter > 8 {
		t.Errorf("retry after %d s", e.RetryAfter)
	}
	ahead := guard.Presentation{Chain: h.tokens(), PoP: h.proof(readA, func(p *aat.PoP) { p.IssuedAt += 4 })}
	wantCode(t, second(w.check(ahead, "b")), wire.CodeGuardStart)
	w.advance(4 * time.Second)
	w.beat()
	w.refuses(h, wire.CodeGuardStart)
	w.advance(time.Second)
	w.beat()
	w.permits(h)
	wantCode(t, second(w.check(old, "b")), wire.CodeGuardStart)
}

func TestTrust(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	h := w.root().to("b")
	w.permits(h)

	rotated := w.trusted()
	until := w.now().Add(time.Minute)
	next := seedKey("next governor")
	rotated.GovernorKeys = []guard.GovernorKey{{Key: public(next)}, {Key: public(w.governor), Until: until}}
	if err := w.guard.Trust(rotated); err != nil {
		t.Fatal(err)
	}
	w.refuses(h, wire.CodeGuardFeed) // what the old belief brought is forgotten
	old := w.governor
	w.governor = next
	w.snapshot("", "")
	w.permits(h)
	w.permits(w.root().to("c"))
	w.governor = old
	w.permits(w.root().to("c"))
	w.governor = next
	w.advance(59 * time.Second)
	w.beat()
	w.permits(h)
	w.advance(time.Second)
	w.beat() // the feed goes on
	w.refuses(h, wire.CodeAlternation)
	w.permits(w.root().to("c"))
	w.governor = old
	if err := w.guard.Feed(w.statement()); err == nil {
		t.Error("a lapsed key still signs the feed")
	}
	w.governor = next
	w.seq--

	if err := w.guard.Trust(); err != nil {
		t.Fatal(err)
	}
	w.refuses(h, wire.CodeGuardGovernor)
	without := w.trusted()
	without.GovernorKeys = nil
	if err := w.guard.Trust(without); err != nil {
		t.Fatal(err)
	}
	w.refuses(h, wire.CodeGuardGovernor)
}

// A key that comes does not make the guard forget what was revoked; one that goes does, and what was verified under it is over.
func TestUpdate(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	h := w.root().to("b")
	w.permits(h)
	next, old := seedKey("next governor"), w.governor
	both := w.trusted()
	both.GovernorKeys = []guard.GovernorKey{{Key: public(old)}, {Key: public(next)}}
	for range 2 { // the second time it is the same
		if err := w.guard.Update(both); err != nil {
			t.Fatal(err)
		}
		w.permits(h)
	}
	w.governor = next
	w.permits(w.root().to("c"))
	alone := w.trusted()
	alone.GovernorKeys = []guard.GovernorKey{{Key: public(next)}}
	if err := w.guard.Update(alone); err != nil {
		t.Fatal(err)
	}
	w.refuses(w.root().to("c"), wire.CodeGuardFeed)
	w.snapshot("", "")
	w.permits(w.root().to("c"))
	w.refuses(h, wire.CodeAlternation)

	stranger := w.trusted()
	stranger.URI = "https://other.example/issuer"
	if err := w.guard.Update(stranger); err == nil {
		t.Error("an issuer is trusted that was not before")
	}
	none := w.trusted()
	none.Keys = nil
	if err := w.guard.Update(none); err == nil {
		t.Error("an issuer without a key is trusted")
	}
	w.permits(w.root().to("c"))
}

// Every governor's key lapses at its own time, whichever stands first: a key that was stolen after its end is worth nothing.
func TestEveryKeyLapses(t *testing.T) {
	t.Parallel()
	for _, late := range []int{0, 1} {
		w := newWorld(t)
		current, keys := w.governor, []ed25519.PrivateKey{seedKey("k0"), seedKey("k1")}
		issuer := w.trusted()
		for i, key := range keys {
			until := w.now().Add(time.Minute)
			if i == late {
				until = until.Add(time.Minute)
			}
			issuer.GovernorKeys = append(issuer.GovernorKeys, guard.GovernorKey{Key: public(key), Until: until})
		}
		if err := w.guard.Trust(issuer); err != nil {
			t.Fatal(err)
		}
		w.snapshot("", "")
		held := make([]holding, 2)
		for i, key := range keys {
			w.governor = key
			held[i] = w.root().to("b")
			w.permits(held[i])
		}
		w.governor = current
		w.advance(time.Minute)
		w.beat()
		w.permits(held[late])
		w.refuses(held[1-late], wire.CodeAlternation)
		w.advance(time.Minute)
		w.beat()
		w.refuses(held[late], wire.CodeAlternation)
	}
}

func TestTrustRefusesNonsense(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for name, change := range map[string]func(*guard.Issuer){
		"no URI":            func(i *guard.Issuer) { i.URI = "" },
		"no governor":       func(i *guard.Issuer) { i.Governor = "" },
		"no key":            func(i *guard.Issuer) { i.Keys = nil },
		"half a key":        func(i *guard.Issuer) { i.Keys = []ed25519.PublicKey{make([]byte, 16)} },
		"a small-order key": func(i *guard.Issuer) { i.Keys = []ed25519.PublicKey{append([]byte{1}, make([]byte, 31)...)} },
		"one key for both":  func(i *guard.Issuer) { i.GovernorKeys = []guard.GovernorKey{{Key: i.Keys[0]}} },
		"no governor's key": func(i *guard.Issuer) { i.GovernorKeys = []guard.GovernorKey{{}} },
	} {
		issuer := w.trusted()
		change(&issuer)
		if err := w.guard.Trust(issuer); err == nil {
			t.Errorf("%s: trusted", name)
		}
	}
	if err := w.guard.Trust(w.trusted(), w.trusted()); err == nil {
		t.Error("one issuer twice: trusted")
	}
	w.permits(w.root()) // what failed changed nothing
	for name, cfg := range map[string]guard.Config{
		"no audience":    {},
		"empty audience": {Audience: []string{""}},
		"negative":       {Audience: []string{audience}, Skew: -1},
		"negative count": {Audience: []string{audience}, MaxProofs: -1},
		"endless":        {Audience: []string{audience}, FeedTimeout: 2 * time.Hour},
	} {
		if _, err := guard.New(cfg); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

// A governor that is trusted for the roots of one issuer must not say what is revoked under another, or that nothing is:
// who has stolen a key of the one would keep alive what the other revoked.
func TestGovernorsOfTwoIssuers(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	until := w.now().Add(time.Hour)
	one := w.trusted()
	two := guard.Issuer{
		URI: "https://two.example.com", Keys: []ed25519.PublicKey{public(seedKey("two"))}, Governor: governor,
	}
	key, other := guard.GovernorKey{Key: public(w.governor)}, guard.GovernorKey{Key: public(seedKey("other"))}
	for name, test := range map[string]struct {
		one, two []guard.GovernorKey
		good     bool
	}{
		"the same":       {[]guard.GovernorKey{key, other}, []guard.GovernorKey{other, key}, true},
		"another":        {[]guard.GovernorKey{key}, []guard.GovernorKey{other}, false},
		"one more":       {[]guard.GovernorKey{key}, []guard.GovernorKey{key, other}, false},
		"none":           {[]guard.GovernorKey{key}, nil, false},
		"another end":    {[]guard.GovernorKey{key}, []guard.GovernorKey{{Key: key.Key, Until: until}}, false},
		"the same until": {[]guard.GovernorKey{{Key: key.Key, Until: until}}, []guard.GovernorKey{{Key: key.Key, Until: until.UTC()}}, true},
	} {
		one.GovernorKeys, two.GovernorKeys = test.one, test.two
		switch err := w.guard.Trust(one, two); {
		case test.good && err != nil:
			t.Errorf("%s: %v", name, err)
		case !test.good && (err == nil || !strings.Contains(err.Error(), governor)):
			t.Errorf("%s: trusted (%v)", name, err)
		}
	}

	// One key, two governors: each feed is for its own issuer's roots, whichever stands first.
	one, two = w.trusted(), w.trusted()
	two.URI, two.Governor = "https://two.example.com", "https://governor.two.example.com"
	if err := w.guard.Trust(two, one); err != nil {
		t.Fatal(err)
	}
	w.snapshot("", "")
	w.permits(w.root())
	theirs := w.root(func(c *aat.Claims) { c.Issuer = two.URI })
	w.refuses(theirs, wire.CodeGuardFeed)
	w.feed(w.sign(wire.RevocationFeed{Governor: two.Governor, Epoch: "e1", Time: w.now().Unix(), Snapshot: true}))
	w.permits(theirs)
}

func TestDecide(t *testing.T) {
	t.Parallel()
	var answer error
	var asked *guard.Call
	w := newWorld(t, func(c *guard.Config) {
		c.Decide = func(_ context.Context, call *guard.Call) error { asked = call; return answer }
	})
	h := w.root().to("b")
	w.permits(h)
	if asked == nil || asked.Agent != "b" || asked.Tool != "read" {
		t.Errorf("asked about %+v", asked)
	}
	answer = wire.Refuse(wire.CodePolicyDenied, "not on Sundays")
	if e := wantCode(t, second(w.check(h.present(), "")), wire.CodePolicyDenied); e.Message != "not on Sundays" {
		t.Errorf("message %q", e.Message)
	}
	answer = errors.New("the password is 1234")
	if e := wantCode(t, second(w.check(h.present(), "")), wire.CodePolicyError); strings.Contains(e.Message, "1234") {
		t.Errorf("an internal error is told to the caller: %q", e.Message)
	}
}

// What one call's Decide or tool does to its Call must not change what the next is decided on: who is let in once could
// otherwise wash the labels off a grant.
func TestCallsDoNotShare(t *testing.T) {
	t.Parallel()
	var seen []guard.Call
	w := newWorld(t, func(c *guard.Config) {
		c.Decide = func(_ context.Context, call *guard.Call) error {
			copied := *call
			copied.Labels, copied.Links = slices.Clone(call.Labels), slices.Clone(call.Links)
			seen = append(seen, copied)
			call.Labels[0] = "public"
			clear(call.Links)
			return nil
		}
	})
	h := w.root().to("b")
	for range 3 { // seen for the first time, and seen before
		w.permits(h)
	}
	for _, call := range seen {
		if call.Labels[0] != "internal" || slices.Contains(call.Links, nil) {
			t.Errorf("decided on %+v, which the call before had changed", call)
		}
	}
}

// Whoever made a guard and goes on using the slices of its configuration does not change what it trusts.
func TestConfigIsCopied(t *testing.T) {
	t.Parallel()
	names := []string{audience}
	var trusted []guard.Issuer
	w := newWorld(t, func(c *guard.Config) {
		c.Audience = names
		c.Issuers[0].GovernorKeys = append(c.Issuers[0].GovernorKeys,
			guard.GovernorKey{Key: public(seedKey("old")), Until: time.Date(2026, 1, 2, 3, 5, 0, 0, time.UTC)})
		trusted = c.Issuers
	})
	names[0] = "https://else.example.com"
	trusted[0].Keys[0], trusted[0].GovernorKeys[0].Key = public(seedKey("x")), public(seedKey("y"))
	h := w.root().to("b")
	w.permits(h)
	w.advance(time.Minute) // a key lapses, and the trust is made anew
	w.beat()
	w.permits(h)
}

// The log of refusals helps to find a fault, and holds nothing that could be used.
func TestLogHasNoCredentials(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	w := newWorld(t, func(c *guard.Config) { c.Logger = slog.New(slog.NewTextHandler(&out, nil)) })
	h := w.root().to("b")
	p := h.present()
	w.check(p, strings.Repeat("x", 10_000))
	log := out.String()
	if !strings.Contains(log, "code=caller_mismatch") || !strings.Contains(log, "session="+h.session()) {
		t.Errorf("the log does not say what happened: %s", log)
	}
	if len(log) > 1000 {
		t.Errorf("a stranger wrote %d bytes into the log", len(log))
	}
	for _, secret := range append(p.Chain, p.PoP) {
		if strings.Contains(log, secret[len(secret)-40:]) {
			t.Errorf("a credential is in the log: %s", log)
		}
	}
}

// Chains are remembered within limits, and by all their bytes.
func TestChainsAreRemembered(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(c *guard.Config) { c.SeenChains = 4 })
	held := make([]holding, 12)
	for i := range held {
		held[i] = w.root().to(fmt.Sprintf("b%d", i))
	}
	for range 3 {
		for _, h := range held {
			w.permits(h)
		}
	}
	h := held[0]
	w.permits(h)
	forged := h.present()
	forged.Chain[1] = flip(forged.Chain[1]) // the same leaf, so the same place in memory
	wantCode(t, second(w.check(forged, "")), wire.CodeToken)
	forged.Chain = append([]string{flip(h.tokens()[0])}, h.tokens()[1:]...)
	wantCode(t, second(w.check(forged, "")), wire.CodeToken)
	wantCode(t, second(w.check(guard.Presentation{Chain: h.tokens()[2:], PoP: h.proof(readA)}, "")), wire.CodeToken)
	w.permits(h)
}
