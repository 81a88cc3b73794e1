package profile_test

import (
	"bytes"
	"crypto/ed25519"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/handoff-governor/handoff-governor/handoff/aat"
	"github.com/handoff-governor/handoff-governor/handoff/aat/jcs"
	"github.com/handoff-governor/handoff-governor/handoff/aat/profile"
	"github.com/handoff-governor/handoff-governor/handoff/wire"
)

const (
	now    = 1741600000
	issuer = "https://issuer.example.com"
	hash   = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"
)

func key(b byte) ed25519.PrivateKey {
	return ed25519.NewKeyFromSeed(bytes.Repeat([]byte{b}, ed25519.SeedSize))
}

func public(k ed25519.PrivateKey) ed25519.PublicKey { return k.Public().(ed25519.PublicKey) }

var issuerKey, governorKey, alice, bob, carol = key(1), key(2), key(3), key(4), key(5)

func id(n int) string { return fmt.Sprintf("01957a3f-4e23-7b01-a9d1-%012d", n) }

func newProfile() *profile.Profile {
	return &profile.Profile{
		Governors: map[string][]ed25519.PublicKey{issuer: {public(governorKey)}},
		Issuers:   []ed25519.PublicKey{public(issuerKey)},
	}
}

// link is one link in the making.
type link struct {
	holder   ed25519.PrivateKey
	handoff  wire.HandoffClaim
	raw      string // instead of handoff, when set
	id       string
	maxDepth int
	tools    aat.Tools
}

// story is two handoffs, from alice to bob to carol, all links as they should be.
func story() []*link {
	offer := func(n int, to string) *link {
		return &link{id: id(n), holder: governorKey, handoff: wire.HandoffClaim{
			Session: id(0), To: to, Mode: wire.ModeDelegate, TaskHash: hash, ContentType: "text/plain", Deadline: now + 10,
			Labels: []string{"pii"}, Purpose: "summarize",
		}}
	}
	claim := func(n int, from, to string, holder ed25519.PrivateKey) *link {
		return &link{id: id(n), holder: holder, handoff: wire.HandoffClaim{
			Session: id(0), ID: id(n - 1), From: from, To: to, Labels: []string{"pii"},
			Decision: &wire.EntryRef{Log: "log"}, Bundle: "sha256:x",
		}}
	}
	return []*link{
		{id: id(0), holder: alice, handoff: wire.HandoffClaim{Session: id(0), To: "alice"}},
		offer(1, "bob"), claim(2, "alice", "bob", bob), offer(3, "carol"), claim(4, "bob", "carol", carol),
	}
}

func build(t *testing.T, links []*link) []*aat.Link {
	t.Helper()
	var parent *aat.Link
	var chain []*aat.Link
	signer := issuerKey
	for _, l := range links {
		raw := jsontext.Value(l.raw)
		if l.raw == "" {
			b, err := jcs.Marshal(l.handoff)
			if err != nil {
				t.Fatal(err)
			}
			raw = b
		}
		c := aat.Claims{
			ID: l.id, Issuer: issuer, IssuedAt: now, ExpiresAt: now + 100, Holder: aat.NewJWK(public(l.holder)),
			MaxDepth: 8, Tools: l.tools, Extra: map[string]jsontext.Value{profile.ClaimName: raw},
		}
		if l.raw == "absent" {
			c.Extra = nil
		}
		if l.maxDepth > 0 {
			c.MaxDepth = l.maxDepth
		}
		if c.Tools == nil {
			c.Tools = aat.Tools{}
		}
		prepared, err := aat.Prepare(parent, c, public(signer))
		if err == nil {
			prepared, err = prepared.Sign(signer)
		}
		if err != nil {
			t.Fatal(err)
		}
		parent, signer, chain = prepared, l.holder, append(chain, prepared)
	}
	return chain
}

func TestChain(t *testing.T) {
	chain := build(t, story())
	for _, depth := range []int{1, 3, 5} {
		links, err := newProfile().Chain(chain[:depth])
		if err != nil {
			t.Fatal(err)
		}
		if last := links[len(links)-1]; last.Link != chain[depth-1] || last.Handoff.Session != id(0) {
			t.Fatalf("got %+v", last.Handoff)
		}
	}
	// The same chain as another verifier sees it.
	v := &aat.Verifier{
		Anchors: []aat.Anchor{{Issuer: issuer, Key: public(issuerKey)}}, Now: func() time.Time { return time.Unix(now, 0) },
	}
	verified, err := v.Chain(chain[4].Tokens())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := newProfile().Chain(verified); err != nil {
		t.Fatal(err)
	}
}

func TestRefusals(t *testing.T) {
	long := strings.Repeat("x", 5000)
	for name, c := range map[string]struct {
		links  int // presented; 0: all five
		change func(links []*link, p *profile.Profile)
		code   wire.Code
	}{
		"no governors": {change: func(l []*link, p *profile.Profile) { p.Governors = nil }, code: wire.CodeGuardGovernor},
		"other issuer's": {change: func(l []*link, p *profile.Profile) {
			p.Governors = map[string][]ed25519.PublicKey{"x:y": {public(governorKey)}}
		}, code: wire.CodeGuardGovernor},
		"another governor":    {change: func(l []*link, p *profile.Profile) { p.Governors[issuer] = []ed25519.PublicKey{public(carol)} }, code: wire.CodeAlternation},
		"odd leaf":            {links: 2, code: wire.CodeAlternation},
		"two agents in a row": {change: func(l []*link, p *profile.Profile) { l[1].holder = bob }, code: wire.CodeAlternation},
		"governor in place":   {change: func(l []*link, p *profile.Profile) { l[2].holder = governorKey }, code: wire.CodeAlternation},
		"governor opens":      {change: func(l []*link, p *profile.Profile) { l[0].holder = governorKey }, code: wire.CodeAlternation},
		"issuer in place":     {change: func(l []*link, p *profile.Profile) { l[2].holder = issuerKey }, code: wire.CodeAlternation},
		"foreign governor in place": {change: func(l []*link, p *profile.Profile) {
			p.Governors["https://other.example.com"] = []ed25519.PublicKey{public(bob)}
		}, code: wire.CodeAlternation},
		"no room for a claim": {change: func(l []*link, p *profile.Profile) { l[3].maxDepth = 3 }, links: 4, code: wire.CodeHopLimit},

		"no handoff":      {change: func(l []*link, p *profile.Profile) { l[1].raw = "absent" }},
		"handoff a list":  {change: func(l []*link, p *profile.Profile) { l[1].raw = "[]" }},
		"unknown member":  {change: func(l []*link, p *profile.Profile) { l[0].raw = `{"session":"` + id(0) + `","to":"alice","x":1}` }},
		"in other case":   {change: func(l []*link, p *profile.Profile) { l[0].raw = `{"Session":"` + id(0) + `","to":"alice"}` }},
		"number too long": {change: func(l []*link, p *profile.Profile) { l[0].raw = `{"session":"` + id(0) + `","to":5}` }},
		"session not jti": {change: func(l []*link, p *profile.Profile) { l[0].handoff.Session = id(7) }},
		"other session":   {change: func(l []*link, p *profile.Profile) { l[3].handoff.Session = id(7) }},
		"jti in capitals": {change: func(l []*link, p *profile.Profile) { l[1].id = strings.ToUpper(l[1].id) }},
		"jti version 4":   {change: func(l []*link, p *profile.Profile) { l[1].id = strings.Replace(l[1].id, "-7", "-4", 1) }},
		"tools": {change: func(l []*link, p *profile.Profile) {
			l[0].tools = aat.Tools{}
			for i := range 257 {
				l[0].tools[fmt.Sprint(i)] = nil
			}
		}},
		"constraints": {change: func(l []*link, p *profile.Profile) { l[0].tools = wide(1025) }},

		"root with mode":         {change: func(l []*link, p *profile.Profile) { l[0].handoff.Mode = wire.ModeDelegate }},
		"root without to":        {change: func(l []*link, p *profile.Profile) { l[0].handoff.To = "" }},
		"offer with from":        {change: func(l []*link, p *profile.Profile) { l[1].handoff.From = "alice" }},
		"offer with decision":    {change: func(l []*link, p *profile.Profile) { l[1].handoff.Decision = &wire.EntryRef{} }},
		"offer without mode":     {change: func(l []*link, p *profile.Profile) { l[1].handoff.Mode = "" }},
		"offer of other mode":    {change: func(l []*link, p *profile.Profile) { l[1].handoff.Mode = "share" }},
		"offer without hash":     {change: func(l []*link, p *profile.Profile) { l[1].handoff.TaskHash = "" }},
		"hash too short":         {change: func(l []*link, p *profile.Profile) { l[1].handoff.TaskHash = hash[1:] }},
		"hash, trailing bits":    {change: func(l []*link, p *profile.Profile) { l[1].handoff.TaskHash = hash[1:] + "B" }},
		"offer without type":     {change: func(l []*link, p *profile.Profile) { l[1].handoff.ContentType = "" }},
		"offer without deadline": {change: func(l []*link, p *profile.Profile) { l[1].handoff.Deadline = 0 }},
		"deadline after exp":     {change: func(l []*link, p *profile.Profile) { l[1].handoff.Deadline = now + 101 }},
		"deadline before iat":    {change: func(l []*link, p *profile.Profile) { l[1].handoff.Deadline = now - 1 }},
		"purpose too long":       {change: func(l []*link, p *profile.Profile) { l[1].handoff.Purpose = long }},
		"reply to nothing":       {change: func(l []*link, p *profile.Profile) { l[1].handoff.InReplyTo = "x" }},
		"to too long":            {change: func(l []*link, p *profile.Profile) { l[1].handoff.To = long }},

		"claim of other offer":   {change: func(l []*link, p *profile.Profile) { l[4].handoff.ID = id(1) }},
		"claim for another":      {change: func(l []*link, p *profile.Profile) { l[4].handoff.To = "mallory" }},
		"claim from another":     {change: func(l []*link, p *profile.Profile) { l[4].handoff.From = "alice" }},
		"claim without decision": {change: func(l []*link, p *profile.Profile) { l[4].handoff.Decision = nil }},
		"claim without bundle":   {change: func(l []*link, p *profile.Profile) { l[4].handoff.Bundle = "" }},
		"claim with deadline":    {change: func(l []*link, p *profile.Profile) { l[4].handoff.Deadline = now + 1 }},
		"claim with purpose":     {change: func(l []*link, p *profile.Profile) { l[4].handoff.Purpose = "x" }},

		"label dropped by claim": {change: func(l []*link, p *profile.Profile) { l[2].handoff.Labels = nil }},
		"label dropped by offer": {change: func(l []*link, p *profile.Profile) { l[3].handoff.Labels = []string{"other"} }},
		"label empty":            {change: func(l []*link, p *profile.Profile) { l[1].handoff.Labels = []string{"pii", ""} }},
		"label too long":         {change: func(l []*link, p *profile.Profile) { l[1].handoff.Labels = []string{"pii", long} }},
		"too many labels": {change: func(l []*link, p *profile.Profile) {
			for i := range wire.MaxLabels {
				l[1].handoff.Labels = append(l[1].handoff.Labels, fmt.Sprint(i))
			}
		}},
	} {
		t.Run(name, func(t *testing.T) {
			links, p := story(), newProfile()
			if c.change != nil {
				c.change(links, p)
			}
			if c.links > 0 {
				links = links[:c.links]
			}
			chain := build(t, links)
			if c.code == "" {
				c.code = wire.CodeProfile
			}
			_, err := p.Chain(chain)
			if e, ok := errors.AsType[*wire.Error](err); !ok || e.Code != c.code {
				t.Fatalf("got %v; want %s", err, c.code)
			}
		})
	}
	if _, err := newProfile().Chain(nil); err == nil {
		t.Error("accepted a chain of no links")
	}
}

// wide has that many constraints, half of them within others.
func wide(n int) aat.Tools {
	clauses := make([]aat.Constraint, n/2)
	for i := range clauses {
		clauses[i] = aat.NotOneOf(i)
	}
	args := aat.Arguments{"any": aat.Any(clauses...)}
	for i := range n - len(clauses) - 1 {
		args[fmt.Sprint(i)] = aat.Wildcard()
	}
	return aat.Tools{"search": args}
}

// TestManyConstraints: a link may have as many as the limit. Who fills a token with more wants the comparison of two links
// to take the time of whoever has to make it.
func TestManyConstraints(t *testing.T) {
	links := story()[:3]
	for _, l := range links {
		l.tools = wide(1024)
	}
	if _, err := newProfile().Chain(build(t, links)); err != nil {
		t.Fatal(err)
	}
}

// TestChildWantsItsOwnParent: what was checked of one chain says nothing of another.
func TestChildWantsItsOwnParent(t *testing.T) {
	p := newProfile()
	one, two := build(t, story()), build(t, story())
	root, err := p.Root(one[0])
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.Child(root, two[1]); err == nil {
		t.Error("took a child of another root")
	}
	if _, err := p.Child(nil, one[1]); err == nil {
		t.Error("took a child without a parent")
	}
	if _, err := p.Root(one[2]); err == nil {
		t.Error("took a claim for a root")
	}
}

func TestIsID(t *testing.T) {
	for s, want := range map[string]bool{
		id(0): true, "01957a3f-4e23-7b01-b9d1-0050569c2e4f": true,
		"": false, id(0)[1:]: false, id(0) + "0": false, strings.ReplaceAll(id(0), "-", "0"): false,
		"01957A3f-4e23-7b01-a9d1-0050569c2e4f": false, "01957a3f-4e23-7b01-c9d1-0050569c2e4f": false,
		"01957a3f-4e23-1b01-a9d1-0050569c2e4f": false, "01957a3f-4e2-37b01-a9d1-0050569c2e4f": false,
		"01957a3g-4e23-7b01-a9d1-0050569c2e4f": false,
	} {
		if profile.IsID(s) != want {
			t.Errorf("IsID(%q) is %v", s, !want)
		}
	}
}

// FuzzHandoff plays the issuer, agents and a governor who write whatever they like as the claim `handoff`: a chain that is
// accepted tells one story.
func FuzzHandoff(f *testing.F) {
	for i, l := range story() {
		b, err := jcs.Marshal(l.handoff)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(uint8(i), b)
	}
	for _, s := range []string{
		`{}`, `null`, `[]`, `{"session":"x","session":"y"}`, `{"labels":["pii","pii"]}`, `{"deadline":1e3}`, `{"decision":null}`,
		`9007199270000001`,
		`{"to":"\u0061lice","session":"` + id(0) + `"}`,
	} {
		f.Add(uint8(0), []byte(s))
		f.Add(uint8(1), []byte(s))
		f.Add(uint8(2), []byte(s))
	}
	f.Fuzz(func(t *testing.T, place uint8, raw []byte) {
		if _, err := jcs.Marshal(jsontext.Value(raw)); err != nil {
			return // no token can hold it
		}
		links := story()
		at := int(place) % len(links)
		links[at].raw = string(raw)
		if len(raw) > 4096 || links[at].raw == "absent" {
			return
		}
		chain, err := newProfile().Chain(build(t, links[:3+at/3*2]))
		if err != nil {
			if e, ok := errors.AsType[*wire.Error](err); !ok || e.Code != wire.CodeProfile || e.Message == "" {
				t.Fatalf("refused with %v", err)
			}
			return
		}
		for i, l := range chain {
			switch h := l.Handoff; {
			case h.Session != id(0), h.To == "":
				t.Fatalf("%s was read as %+v", raw, h)
			case i%2 == 1 && (h.ID != "" || h.Decision != nil || h.Deadline > now+100):
				t.Fatalf("an offer says %+v", h)
			case i > 0 && i%2 == 0 && (h.ID != id(i-1) || h.To != chain[i-1].Handoff.To || h.From != chain[i-2].Handoff.To):
				t.Fatalf("a claim says %+v", h)
			}
			if i > 1 && !slices.Contains(l.Handoff.Labels, "pii") {
				t.Fatalf("the label was dropped by %s", raw)
			}
		}
	})
}
