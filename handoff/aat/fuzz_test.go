package aat_test

import (
	"errors"
	"testing"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/handoff-governor/handoff-governor/handoff/aat"
	"github.com/handoff-governor/handoff-governor/handoff/aat/jws"
)

// Every parser behind a signature is fuzzed with the signature made after the fact: the fuzzer plays a holder who signs
// whatever it likes.

func seedPayloads(f *testing.F, link int) {
	for _, s := range scenarios(f) {
		if link < len(s.tokens) {
			b, _ := json.Marshal(s.tokens[link].claims, json.Deterministic(true))
			f.Add(b)
		}
	}
}

func FuzzConstraint(f *testing.F) {
	for _, p := range pairs {
		f.Add([]byte(p.parent.String()), []byte(`["x"]`))
	}
	f.Add([]byte(`{"constraint_type":"range","min":1e3,"optional":false}`), []byte(`1000.5`))
	f.Fuzz(func(t *testing.T, text, value []byte) {
		var c aat.Constraint
		if c.UnmarshalJSON(text) != nil {
			return
		}
		written := must(c.MarshalJSON())
		var back aat.Constraint
		if err := back.UnmarshalJSON(written); err != nil || !back.Equal(c) {
			t.Fatalf("%s was written as %s, which is %v (%v)", text, written, back, err)
		}
		canonical := jsontext.Value(written).Clone()
		if err := canonical.Canonicalize(); err != nil || string(canonical) != string(written) {
			t.Fatalf("%s is not canonical", written)
		}
		if !aat.Subsumes(c, c) {
			t.Fatalf("%s does not attenuate itself", written)
		}
		if c.Check(value) != back.Check(value) {
			t.Fatal("two spellings, two answers")
		}
	})
}

func FuzzRoot(f *testing.F) {
	seedPayloads(f, 0)
	v := &aat.Verifier{
		Anchors: []aat.Anchor{{Issuer: issuerURI, Key: publicKey("issuer")}}, Now: func() time.Time { return time.Unix(now, 0) },
	}
	f.Fuzz(func(t *testing.T, payload []byte) {
		link, err := v.Root(must(aat.SignPayload(payload, privateKey("issuer"))))
		if err != nil {
			wantRefusal(t, err)
			return
		}
		// What was understood, written again, means the same.
		again, err := aat.Prepare(nil, link.Claims, publicKey("issuer"))
		if err != nil || !again.Claims.Tools.Equal(link.Claims.Tools) || again.Claims.ExpiresAt != link.Claims.ExpiresAt {
			t.Fatalf("%s: %v", payload, err)
		}
	})
}

func FuzzChild(f *testing.F) {
	seedPayloads(f, 1)
	s := newScenario()
	root := s.tokens[0]
	f.Fuzz(func(t *testing.T, payload []byte) {
		v := &aat.Verifier{
			Anchors: []aat.Anchor{{Issuer: issuerURI, Key: publicKey("issuer")}}, Now: func() time.Time { return time.Unix(now, 0) },
		}
		parent := must(v.Root(root.sign(t)))
		child, err := v.Child(parent, must(aat.SignPayload(payload, privateKey("alice"))))
		if err != nil {
			wantRefusal(t, err)
			return
		}
		if err := aat.SubsumesTools(parent.Claims.Tools, child.Claims.Tools); err != nil || child.Claims.ExpiresAt > parent.Claims.ExpiresAt {
			t.Fatalf("%s widens: %v", payload, err)
		}
	})
}

// FuzzRestoreToken reads back what a disk has kept, good or not: no signature stands before the parsers here.
func FuzzRestoreToken(f *testing.F) {
	s := newScenario()
	vec := s.build(f)
	for _, token := range append(vec.Chain, vec.PoP, "", "..") {
		f.Add(token)
	}
	for _, s := range scenarios(f) {
		if vec := s.build(f); len(vec.Chain) > 1 && len(vec.Chain[1]) < 2048 {
			f.Add(vec.Chain[1])
		}
	}
	v := vec.verifier()
	root := must(v.Root(vec.Chain[0]))
	f.Fuzz(func(t *testing.T, token string) {
		link, err := aat.RestoreToken(root, token)
		if err != nil {
			wantRefusal(t, err)
			return
		}
		if err := aat.SubsumesTools(root.Claims.Tools, link.Claims.Tools); err != nil || link.Claims.Depth != 1 || link.Parent() != root {
			t.Fatalf("restored %+v: %v", link.Claims, err)
		}
		again, err := aat.RestoreToken(root, token)
		if err != nil || again.Hash != link.Hash {
			t.Fatalf("restored once, not twice: %v", err)
		}
		if _, err := v.Present([]*aat.Link{root, link}, "search", []byte(`{}`), vec.PoP); err == nil {
			t.Fatal("a token that nobody verified was presented")
		}
	})
}

func FuzzPoP(f *testing.F) {
	for _, s := range scenarios(f) {
		if vec := s.build(f); s.Expect == "permit" || s.Step[0] == '7' {
			if u, err := jws.Split(vec.PoP, 1<<20); err == nil {
				f.Add(u.Payload, []byte(vec.Args))
			}
		}
	}
	f.Fuzz(func(t *testing.T, payload, args []byte) {
		vec := newScenario().build(t)
		pop := must(jws.Sign(aat.PoPType, payload, privateKey("bob")))
		call, err := vec.verifier().Verify(vec.Chain, "read_file", args, pop)
		if err != nil {
			wantRefusal(t, err)
			return
		}
		if string(call.Args) != `{"path":"/a"}` {
			t.Fatalf("permitted with %s", call.Args)
		}
	})
}

func FuzzJWK(f *testing.F) {
	f.Add(must(json.Marshal(jwk("alice"))))
	f.Add([]byte(`{"kty":"OKP","crv":"Ed25519","x":"AQAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		var j aat.JWK
		if json.Unmarshal(text, &j) != nil {
			return
		}
		if key, err := j.Key(); err == nil && aat.NewJWK(key) != j {
			t.Fatalf("%s is a key with two spellings", text)
		}
	})
}

func wantRefusal(t *testing.T, err error) {
	if _, ok := errors.AsType[*aat.StepError](err); !ok {
		t.Fatalf("refused without a step: %v", err)
	}
}
