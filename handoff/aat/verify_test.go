package aat_test

import (
	"crypto/ed25519"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/handoff-governor/handoff-governor/handoff/aat"
)

// step fails the test unless err is a refusal at that step.
func wantStep(t *testing.T, err error, step string) {
	t.Helper()
	if e, ok := errors.AsType[*aat.StepError](err); !ok || e.Step != step {
		t.Errorf("got %v; want step %s", err, step)
	}
}

// presentation is a chain of three links that verifies, and what it takes to call with it.
type presentation struct {
	v     *aat.Verifier
	clock time.Time
	chain []string
	links []*aat.Link
}

func newPresentation(t *testing.T) *presentation {
	p := &presentation{clock: time.Unix(now, 0)}
	p.v = &aat.Verifier{
		Anchors:  []aat.Anchor{{Issuer: issuerURI, Key: publicKey("issuer")}},
		Audience: []string{guardURI},
		Now:      func() time.Time { return p.clock },
	}
	p.chain = newScenario().build(t).Chain
	links, err := p.v.Chain(p.chain)
	if err != nil {
		t.Fatal(err)
	}
	p.links = links
	return p
}

func (p *presentation) pop(t *testing.T, args string) string {
	pop, err := aat.CreatePoP(p.links[2], "read_file", []byte(args), guardURI, "", p.clock, privateKey("bob"))
	if err != nil {
		t.Fatal(err)
	}
	return pop
}

func TestPresentLooksAgain(t *testing.T) {
	const args = `{"path":"/a"}`
	present := func(p *presentation, links []*aat.Link) error {
		_, err := p.v.Present(links, "read_file", []byte(args), p.pop(t, args))
		return err
	}
	p := newPresentation(t)
	if err := present(p, p.links); err != nil {
		t.Fatal(err)
	}
	p.clock = time.Unix(now+998, 0)
	wantStep(t, present(p, p.links), "4i")
	p.clock = time.Unix(now+1000, 0)
	wantStep(t, present(p, p.links), "3e")

	p = newPresentation(t)
	p.v.Anchors[0].Key = publicKey("mallory")
	wantStep(t, present(p, p.links), "3b")

	p = newPresentation(t)
	wantStep(t, present(p, nil), "1")
	wantStep(t, present(p, p.links[1:]), "5")
	wantStep(t, present(p, []*aat.Link{p.links[0], p.links[2]}), "5")
	again, err := p.v.Chain(p.chain[:2])
	if err != nil {
		t.Fatal(err)
	}
	wantStep(t, present(p, []*aat.Link{again[0], again[1], p.links[2]}), "5")
	wantStep(t, present(p, []*aat.Link{p.links[0], p.links[1], nil}), "4b")
	wantStep(t, present(p, []*aat.Link{{Claims: p.links[0].Claims, Compact: p.chain[0]}}), "3b")

	// Links that only their recorder vouches for parent others, and are not presented.
	for _, restore := range []func() (*aat.Link, error){
		func() (*aat.Link, error) { return aat.Restore(p.links[1], p.links[2].Payload) },
		func() (*aat.Link, error) { return aat.RestoreToken(p.links[1], p.chain[2]) },
	} {
		restored, err := restore()
		if err != nil || restored.Hash != p.links[2].Hash {
			t.Fatal(err, restored)
		}
		wantStep(t, present(p, []*aat.Link{p.links[0], p.links[1], restored}), "4b")
		signed, err := restored.Sign(privateKey("gov"))
		if err != nil {
			t.Fatal(err)
		}
		if err := present(p, []*aat.Link{p.links[0], p.links[1], signed}); err != nil {
			t.Errorf("a restored link that its holder signed again: %v", err)
		}
		if _, err := restored.Sign(privateKey("mallory")); err == nil {
			t.Error("signed with another key")
		}
	}
}

// TestChildAgreesWithChain: one link at a time or all at once, the same links come out and the same steps fail.
func TestChildAgreesWithChain(t *testing.T) {
	for _, s := range scenarios(t) {
		vec := s.build(t)
		v := vec.verifier()
		_, want := v.Chain(vec.Chain)
		if e, ok := errors.AsType[*aat.StepError](want); ok && strings.HasPrefix(e.Step, "2") || len(vec.Chain) == 0 {
			continue // step 2 is over a whole chain, and comes first there
		}
		link, err := v.Root(vec.Chain[0])
		for _, compact := range vec.Chain[1:] {
			if err != nil {
				break
			}
			link, err = v.Child(link, compact)
		}
		if fmt.Sprint(err) != fmt.Sprint(want) {
			t.Errorf("%s: %v one by one, %v together", vec.ID, err, want)
		}
	}
	p := newPresentation(t)
	_, err := p.v.Child(p.links[0], p.chain[0])
	wantStep(t, err, "4b")
	small := *p.v
	small.MaxTokenSize = 100
	_, err = small.Child(p.links[0], p.chain[1])
	wantStep(t, err, "2a")
	small = *p.v
	small.MaxChainSize = len(p.chain[0]) + 100
	_, err = small.Child(p.links[0], p.chain[1])
	wantStep(t, err, "2b")
	// A link that joins a chain alone must not bring an ancestor's jti, by which a revocation or a proof could name either.
	twin := newScenario()
	twin.set(2, "jti", twin.tokens[0].claims["jti"])
	_, err = p.v.Child(p.links[1], twin.build(t).Chain[2])
	wantStep(t, err, "2c")
	// The parent may come from a verifier that allows more depth.
	shallow := *p.v
	shallow.MaxDepth = 1
	_, err = shallow.Child(p.links[1], p.chain[2])
	wantStep(t, err, "4f")
	_, err = p.v.Child(p.links[0], "..")
	wantStep(t, err, "4a")
	_, err = p.v.Child(p.links[0], "a.b")
	wantStep(t, err, "2c")
	for _, parent := range []*aat.Link{nil, {}, {Claims: p.links[0].Claims}} {
		if _, err := p.v.Child(parent, p.chain[1]); err == nil {
			t.Error("a Link that nobody verified became a parent")
		}
		if _, err := aat.Restore(parent, p.links[1].Payload); err == nil {
			t.Error("a Link that nobody verified became a parent")
		}
	}
}

// TestRestoreTokenChecksTheHeader: what was recorded as a link must be one; a proof that was put in its place is not.
func TestRestoreTokenChecksTheHeader(t *testing.T) {
	p := newPresentation(t)
	for _, header := range []string{
		`{"alg":"Ed25519","typ":"aat-pop+jwt"}`, `{"alg":"none","typ":"aat+jwt"}`, `{"alg":"Ed25519","crit":["x"],"typ":"aat+jwt","x":1}`,
	} {
		other := newScenario().tokens[2]
		other.header, other.payload = header, string(p.links[2].Payload)
		_, err := aat.RestoreToken(p.links[1], other.sign(t))
		wantStep(t, err, "4a")
	}
	_, err := aat.RestoreToken(p.links[1], strings.Repeat("x", 65<<10))
	wantStep(t, err, "4a")
}

func TestOnlyPermittedProofsAreSpent(t *testing.T) {
	p := newPresentation(t)
	spent := map[string]time.Time{}
	p.v.Seen = func(jti string, until time.Time) bool {
		_, seen := spent[jti]
		spent[jti] = until
		return seen
	}
	pop := p.pop(t, `{"path":"/a"}`)
	for range 2 {
		_, err := p.v.Present(p.links, "read_file", []byte(`{"path":"/b"}`), pop)
		wantStep(t, err, "6b")
	}
	if len(spent) != 0 {
		t.Fatal("a denied invocation consumed a jti")
	}
	if _, err := p.v.Present(p.links, "read_file", []byte(`{"path":"/a"}`), pop); err != nil {
		t.Fatal(err)
	}
	_, err := p.v.Present(p.links, "read_file", []byte(`{"path":"/a"}`), pop)
	wantStep(t, err, "7i")

	// At the time that Seen was told, the proof is too old by itself; just before it is not.
	for _, until := range spent {
		p.v.Seen = nil
		p.clock = until.Add(-time.Nanosecond)
		if _, err := p.v.Present(p.links, "read_file", []byte(`{"path":"/a"}`), pop); err != nil {
			t.Errorf("just before it may be forgotten: %v", err)
		}
		p.clock = until
		_, err = p.v.Present(p.links, "read_file", []byte(`{"path":"/a"}`), pop)
		wantStep(t, err, "7g")
	}
}

func TestCreatePoPRefuses(t *testing.T) {
	p := newPresentation(t)
	leaf, bob := p.links[2], privateKey("bob")
	create := func(leaf *aat.Link, tool, args string, key ed25519.PrivateKey) error {
		_, err := aat.CreatePoP(leaf, tool, []byte(args), "", "", p.clock, key)
		return err
	}
	for what, err := range map[string]error{
		"no leaf":        create(nil, "read_file", `{}`, bob),
		"unchecked leaf": create(&aat.Link{}, "read_file", `{}`, bob),
		"other key":      create(leaf, "read_file", `{}`, privateKey("gov")),
		"no key":         create(leaf, "read_file", `{}`, nil),
		"other tool":     create(leaf, "search", `{}`, bob),
		"array":          create(leaf, "read_file", `[]`, bob),
		"twice":          create(leaf, "read_file", `{"a":1,"a":2}`, bob),
		"inexact number": create(leaf, "read_file", `{"a":9007199254740993}`, bob),
	} {
		if err == nil {
			t.Errorf("%s: a proof was made", what)
		}
	}
}

func TestPrepareRefuses(t *testing.T) {
	p := newPresentation(t)
	good := aat.Claims{ID: "x", IssuedAt: now, ExpiresAt: now + 10, Holder: jwk("bob"), MaxDepth: 4, Tools: aat.Tools{}}
	for name, c := range map[string]struct {
		change func(*aat.Claims)
		step   string // "" where the claims cannot be encoded
	}{
		"as it is":     {func(c *aat.Claims) {}, "permit"},
		"earlier iat":  {func(c *aat.Claims) { c.IssuedAt = 5 }, "permit"}, // raised to the parent's
		"jti":          {func(c *aat.Claims) { c.ID = "" }, "4b1"},
		"parent's jti": {func(c *aat.Claims) { c.ID = p.links[0].Claims.ID }, "2c"},
		"holder":       {func(c *aat.Claims) { c.Holder = aat.JWK{} }, "4b2"},
		"exp":          {func(c *aat.Claims) { c.ExpiresAt = now + 1e6 }, "4h"},
		"lifetime":     {func(c *aat.Claims) { c.ExpiresAt = now }, "4l"},
		"depth":        {func(c *aat.Claims) { c.MaxDepth = 0 }, "4m"},
		"deeper":       {func(c *aat.Claims) { c.MaxDepth = 5 }, "4g"},
		"tool":         {func(c *aat.Claims) { c.Tools = aat.Tools{"rm": {}} }, "4p1"},
		"own extra":    {func(c *aat.Claims) { c.Extra = map[string]jsontext.Value{"exp": jsontext.Value("1")} }, ""},
		"broken extra": {func(c *aat.Claims) { c.Extra = map[string]jsontext.Value{"a": jsontext.Value(`1,"b":2`)} }, ""},
		"long extra": {func(c *aat.Claims) {
			c.Extra = map[string]jsontext.Value{"a": jsontext.Value(`"` + strings.Repeat("x", 64<<10) + `"`)}
		}, "2a"},
		"bad UTF-8":       {func(c *aat.Claims) { c.Tools = aat.Tools{"\xff": {}} }, ""},
		"zero constraint": {func(c *aat.Claims) { c.Tools = aat.Tools{"search": {"x": aat.Constraint{}}} }, ""},
		"star": {func(c *aat.Claims) {
			c.Tools = aat.Tools{"search": {aat.Unnamed: aat.Wildcard().AsOptional()}}
		}, ""},
	} {
		claims := good
		c.change(&claims)
		_, err := aat.Prepare(p.links[0], claims, publicKey("alice"))
		switch {
		case c.step == "permit" && err != nil, c.step == "" && err == nil:
			t.Errorf("%s: %v", name, err)
		case c.step != "" && c.step != "permit":
			wantStep(t, err, c.step)
		}
	}
	_, err := aat.Prepare(p.links[0], good, publicKey("bob"))
	wantStep(t, err, "4b")
	if _, err := aat.Derive(p.links[0], good, nil); err == nil {
		t.Error("derived without a key")
	}
}

// TestClaimsRoundTrip: what Prepare writes, a Verifier reads back.
func TestClaimsRoundTrip(t *testing.T) {
	v := &aat.Verifier{
		Anchors: []aat.Anchor{{Issuer: issuerURI, Key: publicKey("issuer")}}, Now: func() time.Time { return time.Unix(now, 0) },
	}
	for _, audience := range [][]string{nil, {}, {"a"}, {"a", "b"}} {
		want := aat.Claims{
			ID: "x", Issuer: issuerURI, IssuedAt: now, ExpiresAt: now + 10, Holder: jwk("alice"), MaxDepth: 4, Audience: audience,
			Tools: aat.Tools{"tool:é\"\\": {"arg\n": aat.Exact("😀\u2028")}}, Extra: map[string]jsontext.Value{"handoff": jsontext.Value(`{"to":"b"}`)},
		}
		link, err := v.Root(must(aat.Issue(want, privateKey("issuer"))))
		if err != nil {
			t.Fatal(err)
		}
		if !link.Claims.Tools.Equal(want.Tools) || (audience == nil) != (link.Claims.Audience == nil) {
			t.Fatalf("read back %+v", link.Claims)
		}
		got := link.Claims
		got.Tools, want.Tools = nil, nil
		if fmt.Sprintf("%+v", got) != fmt.Sprintf("%+v", want) {
			t.Errorf("read back %+v; wrote %+v", got, want)
		}
		canonical := jsontext.Value(link.Payload).Clone()
		if canonical.Canonicalize() != nil || string(canonical) != string(link.Payload) {
			t.Errorf("%s is not canonical", link.Payload)
		}
	}
}

// TestDecodersAreNotShared reads tokens from many goroutines, whose decoders come from one pool.
func TestDecodersAreNotShared(t *testing.T) {
	p := newPresentation(t)
	pop := p.pop(t, `{"path":"/a"}`)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 20 {
				if _, err := p.v.Verify(p.chain, "read_file", []byte(`{"path":"/a"}`), pop); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
}

func TestJWK(t *testing.T) {
	good := jwk("alice")
	if key, err := good.Key(); err != nil || !key.Equal(publicKey("alice")) {
		t.Fatal(key, err)
	}
	// RFC 8037, appendix A.3.
	if got := (aat.JWK{Kty: "OKP", Crv: "Ed25519", X: "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}).Thumbprint(); got !=
		"kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k" {
		t.Errorf("thumbprint %s", got)
	}
	for _, text := range []string{
		`null`, `{}`, `[]`, `{"kty":"OKP","crv":"Ed25519"}`, `{"kty":"OKP","crv":"Ed25519","x":"` + good.X + `="}`,
		`{"kty":"OKP","crv":"Ed25519","x":"` + good.X + `","d":"x"}`, `{"kty":"OKP","crv":"Ed25519","x":"` + good.X + `","kid":"x"}`,
		`{"kty":"OKP","crv":"Ed25519","x":"` + good.X + `","x":"` + good.X + `"}`, `{"KTY":"OKP","crv":"Ed25519","x":"` + good.X + `"}`,
		`{"kty":"EC","crv":"P-256","x":"` + good.X + `"}`, `{"kty":"OKP","crv":"Ed25519","x":7}`,
	} {
		var j aat.JWK
		if err := json.Unmarshal([]byte(text), &j); err == nil || j != (aat.JWK{}) {
			t.Errorf("%s was read as %v", text, j)
		}
	}
}

// TestZeroIsOneNumber: -0 is 0, as an integer too.
func TestZeroIsOneNumber(t *testing.T) {
	s := newScenario()
	s.truncate(1, "alice")
	s.set(0, "del_depth", raw("-0"))
	v := s.build(t)
	if _, err := v.verifier().Verify(v.Chain, v.Tool, []byte(v.Args), v.PoP); err != nil {
		t.Error(err)
	}
}

// TestCheckOfNothing: no constraint accepts a value that is not there. Who calls without an argument must not have it taken
// for one that is unrestricted.
func TestCheckOfNothing(t *testing.T) {
	for _, c := range []aat.Constraint{
		aat.Wildcard(), aat.Contains(), aat.Subset(), aat.Range(aat.Bound{}, aat.Bound{}), aat.NotOneOf(), {},
	} {
		if c.Check(nil) || c.Check(jsontext.Value(" ")) {
			t.Errorf("%v accepts nothing at all", c)
		}
	}
}

// TestConstructorsRefuse: a program cannot make a constraint that a token could not hold. A clause that is optional, or one
// that is nested deeper than others can read, would mean something else to each reader.
func TestConstructorsRefuse(t *testing.T) {
	nest := func(depth int) aat.Constraint {
		c := aat.Wildcard()
		for range depth - 1 {
			c = aat.Any(c)
		}
		return c
	}
	nest(aat.MaxConstraintDepth)
	for name, make := range map[string]func(){
		"optional clause": func() { aat.All(aat.Wildcard().AsOptional()) },
		"zero clause":     func() { aat.Any(aat.Constraint{}) },
		"no clause":       func() { aat.Any() },
		"too deep":        func() { nest(aat.MaxConstraintDepth + 1) },
		"reversed":        func() { aat.Range(aat.AtLeast("2"), aat.AtMost("1")) },
		"exact array":     func() { aat.Exact([]int{1}) },
		"no number":       func() { aat.AtLeast(`"1"`) },
	} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%s: made", name)
				}
			}()
			make()
		}()
	}
}

func TestToolsJSON(t *testing.T) {
	var tools aat.Tools
	if err := json.Unmarshal([]byte(`null`), &tools); err != nil || tools != nil {
		t.Errorf("null is %v, %v", tools, err)
	}
	if b := must(json.Marshal(aat.Tools(nil))); string(b) != "null" {
		t.Errorf("nil is %s", b)
	}
	for _, text := range []string{
		`[]`, `{"t":null}`, `{"t":{},"t":{}}`, `{"t":{"x":null}}`, `{"t":{"x":{"constraint_type":"regex"}}}`, `{"t":{}} {}`, `{"t":{}`,
		`{"t":{"*":{"constraint_type":"exact","value":1}}}`, `{"t":{"x":{"constraint_type":"exact","value":1,"value":1}}}`,
		`{"t":{"x":{"constraint_type":"any","constraints":[` + strings.Repeat(`{"constraint_type":"any","constraints":[`, 1e5),
	} {
		tools = aat.Tools{"before": {}}
		if err := json.Unmarshal([]byte(text), &tools); err == nil {
			t.Errorf("%.80s was read as %v", text, tools)
		}
	}
}
