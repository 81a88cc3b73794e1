package issuer_test

import (
	"crypto/ed25519"
	"errors"
	"testing"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/google/uuid"

	"github.com/handoff-governor/handoff-governor/governor"
	"github.com/handoff-governor/handoff-governor/governor/issuer"
	"github.com/handoff-governor/handoff-governor/governor/keyring"
	"github.com/handoff-governor/handoff-governor/handoff/aat"
	"github.com/handoff-governor/handoff-governor/handoff/aat/jws"
	"github.com/handoff-governor/handoff-governor/handoff/wire"
)

const (
	uri         = "spiffe://handoff.local/issuer"
	governorURI = "spiffe://handoff.local/governor"
	opener      = "handoff=dlocal=sagent=splanner"
)

func key(n byte) ed25519.PrivateKey {
	seed := make([]byte, ed25519.SeedSize)
	seed[0] = n
	return ed25519.NewKeyFromSeed(seed)
}

func jwkOf(k ed25519.PrivateKey) aat.JWK { return aat.NewJWK(k.Public().(ed25519.PublicKey)) }

// asking is a request with its terms, as a governor carries it. Tests bend it.
type asking struct {
	now     time.Time
	agent   ed25519.PrivateKey
	person  ed25519.PrivateKey
	request wire.OpenRequest
	proof   wire.SessionProof
	opener  string
	terms   governor.RootTerms
	after   func(*wire.OpenRequest) // once everybody has signed
}

func ask(t *testing.T) *asking {
	t.Helper()
	id, err := uuid.NewV7()
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	tools := aat.Tools{"read": {"path": aat.OneOf("/a", "/b")}}
	a := &asking{now: now, agent: key(1), opener: opener}
	a.request = wire.OpenRequest{
		ID: id.String(), Objective: "test", Principal: wire.Principal{Kind: wire.PrincipalWorkload, Name: opener}, Tools: tools,
		TTL: 600, MaxHops: 2, JWK: jwkOf(a.agent),
	}
	a.proof = wire.SessionProof{
		Verb: wire.VerbSessionOpen,
		ID:   "1", IssuedAt: now.Unix(), Expires: now.Unix() + 60, Audience: governorURI, Subject: opener,
	}
	a.terms = governor.RootTerms{Tools: tools, IssuedAt: now.Unix(), Expires: now.Unix() + 600, MaxDepth: 4}
	return a
}

// issue signs what is asked and brings it to the issuer.
func (a *asking) issue(t *testing.T, cfg issuer.Config) (string, error) {
	t.Helper()
	cfg.URI, cfg.Keys, cfg.Governor = uri, keyring.Of(key(9)), governorURI
	i, err := issuer.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	encode := func() []byte {
		body, err := json.Marshal(a.request)
		if err != nil {
			t.Fatal(err)
		}
		return body
	}
	if a.person != nil {
		hash, err := wire.PrincipalRequestHash(encode())
		if err != nil {
			t.Fatal(err)
		}
		a.request.Principal.Proof, err = jws.SignJSON(wire.TypePrincipal, wire.PrincipalProof{
			ID: "2", IssuedAt: a.now.Unix(), Expires: a.now.Unix() + 60, Audience: uri, Subject: a.request.Principal.Name,
			RequestHash: hash,
		}, a.person)
		if err != nil {
			t.Fatal(err)
		}
	}
	if a.proof.RequestHash, err = wire.RequestHash(encode()); err != nil {
		t.Fatal(err)
	}
	if a.request.Proof, err = jws.SignJSON(wire.TypeSession, a.proof, a.agent); err != nil {
		t.Fatal(err)
	}
	if a.after != nil {
		a.after(&a.request)
	}
	return i.Issue(t.Context(), a.opener, encode(), a.terms)
}

// What the opener asked for, and the governor's policy left of it, becomes a root that verifies.
func TestIssue(t *testing.T) {
	a := ask(t)
	a.terms.Tools = aat.Tools{"read": {"path": aat.Exact("/a")}}
	root, err := a.issue(t, issuer.Config{})
	if err != nil {
		t.Fatal(err)
	}
	v := aat.Verifier{Anchors: []aat.Anchor{{Issuer: uri, Key: key(9).Public().(ed25519.PublicKey)}}}
	link, err := v.Root(root)
	if err != nil {
		t.Fatal(err)
	}
	c := link.Claims
	if c.ID != a.request.ID || c.Holder != jwkOf(a.agent) || c.MaxDepth != 4 || !c.Tools.Equal(a.terms.Tools) || c.ExpiresAt != a.terms.Expires {
		t.Errorf("the root says %+v", c)
	}
}

// Whoever has the governor's place, and its key, can make no root that the opener did not ask for, and widen none.
func TestRefusals(t *testing.T) {
	thief := key(7)
	for name, test := range map[string]struct {
		code   wire.Code
		cfg    issuer.Config
		change func(*asking)
	}{
		"a tool more":             {wire.CodeWidened, issuer.Config{}, func(a *asking) { a.terms.Tools = aat.Tools{"write": {}} }},
		"a wider argument":        {wire.CodeWidened, issuer.Config{}, func(a *asking) { a.terms.Tools = aat.Tools{"read": {}} }},
		"longer than asked":       {wire.CodeWidened, issuer.Config{}, func(a *asking) { a.terms.Expires++ }},
		"no lifetime":             {wire.CodeWidened, issuer.Config{}, func(a *asking) { a.terms.Expires = a.terms.IssuedAt }},
		"longer than it gives":    {wire.CodeWidened, issuer.Config{MaxTTL: time.Minute}, nil},
		"deeper than asked":       {wire.CodeHopLimit, issuer.Config{}, func(a *asking) { a.terms.MaxDepth = 6 }},
		"a negative depth":        {wire.CodeHopLimit, issuer.Config{}, func(a *asking) { a.terms.MaxDepth = -2 }},
		"above its ceiling":       {wire.CodeCeiling, issuer.Config{Ceiling: aat.Tools{"read": {"path": aat.Exact("/a")}}}, nil},
		"another's clock":         {wire.CodeClock, issuer.Config{}, func(a *asking) { a.terms.IssuedAt += 60; a.terms.Expires += 60 }},
		"another opener":          {wire.CodeProof, issuer.Config{}, func(a *asking) { a.opener = "handoff=dlocal=sagent=sthief" }},
		"the governor's own key":  {wire.CodeProof, issuer.Config{}, func(a *asking) { a.after = func(r *wire.OpenRequest) { r.JWK = jwkOf(thief) } }},
		"the issuer's key":        {wire.CodeKey, issuer.Config{}, func(a *asking) { a.after = func(r *wire.OpenRequest) { r.JWK = jwkOf(key(9)) } }},
		"more after the proof":    {wire.CodeProof, issuer.Config{}, func(a *asking) { a.after = func(r *wire.OpenRequest) { r.MaxHops = 9 } }},
		"no proof":                {wire.CodeProof, issuer.Config{}, func(a *asking) { a.after = func(r *wire.OpenRequest) { r.Proof = "" } }},
		"an old proof":            {wire.CodeProof, issuer.Config{}, func(a *asking) { a.proof.IssuedAt -= 200; a.proof.Expires -= 200 }},
		"a proof for closing":     {wire.CodeProof, issuer.Config{}, func(a *asking) { a.proof.Verb = wire.VerbSessionClose }},
		"a proof of an hour":      {wire.CodeProof, issuer.Config{}, func(a *asking) { a.proof.Expires += 3600 }},
		"a proof for elsewhere":   {wire.CodeProof, issuer.Config{}, func(a *asking) { a.proof.Audience = "spiffe://elsewhere/governor" }},
		"another workload":        {wire.CodeForbidden, issuer.Config{}, func(a *asking) { a.request.Principal.Name = "handoff=dlocal=sagent=sboss" }},
		"a person nobody knows":   {wire.CodeForbidden, issuer.Config{}, func(a *asking) { a.request.Principal = wire.Principal{Kind: "human", Name: "alice"} }},
		"a ghost":                 {wire.CodeMalformed, issuer.Config{}, func(a *asking) { a.request.Principal.Kind = "ghost" }},
		"an ID that is none":      {wire.CodeID, issuer.Config{}, func(a *asking) { a.request.ID = "x" }},
		"a person who said no":    {wire.CodeProof, alice, func(a *asking) { a.request.Principal = wire.Principal{Kind: "human", Name: "alice"} }},
		"somebody else for alice": {wire.CodeProof, alice, func(a *asking) { a.request.Principal = wire.Principal{Kind: "human", Name: "alice"}; a.person = thief }},
	} {
		t.Run(name, func(t *testing.T) {
			a := ask(t)
			if test.change != nil {
				test.change(a)
			}
			root, err := a.issue(t, test.cfg)
			if refusal, ok := errors.AsType[*wire.Error](err); !ok || refusal.Code != test.code || root != "" {
				t.Errorf("got %q, %v, want %s", root, err, test.code)
			}
		})
	}
}

var alice = issuer.Config{People: map[string]aat.JWK{"alice": jwkOf(key(3))}}

// A person who signs the very request is its principal.
func TestPerson(t *testing.T) {
	a := ask(t)
	a.request.Principal = wire.Principal{Kind: wire.PrincipalHuman, Name: "alice"}
	a.person = key(3)
	if _, err := a.issue(t, alice); err != nil {
		t.Error(err)
	}
}
