package aat

import (
	"crypto/ed25519"
	"testing"
	"time"
)

func TestSmoke(t *testing.T) {
	k := func(b byte) ed25519.PrivateKey { s := make([]byte, 32); s[0] = b; return ed25519.NewKeyFromSeed(s) }
	pub := func(k ed25519.PrivateKey) ed25519.PublicKey { return k.Public().(ed25519.PublicKey) }
	now := time.Unix(1741600000, 0)
	v := &Verifier{Anchors: []Anchor{{"https://issuer.example", pub(k(1))}}, Now: func() time.Time { return now }, Audience: []string{"g"}}
	root, err := Issue(Claims{ID: "r", Issuer: "https://issuer.example", IssuedAt: 1741600000, ExpiresAt: 1741600600, Holder: NewJWK(pub(k(2))), MaxDepth: 4,
		Tools: Tools{"read": {"path": OneOf("/a", "/b"), "n": Range(AtLeast("0"), LessThan("10")).AsOptional()}, "x": {}}}, k(1))
	if err != nil {
		t.Fatal(err)
	}
	rl, err := v.Root(root)
	if err != nil {
		t.Fatal(err)
	}
	child, err := Derive(rl, Claims{ID: "c", ExpiresAt: 1741600500, Holder: NewJWK(pub(k(3))), MaxDepth: 4, Tools: Tools{"read": {"path": Exact("/a")}}}, k(2))
	if err != nil {
		t.Fatal(err)
	}
	chain, err := v.Chain([]string{root, child})
	if err != nil {
		t.Fatal(err)
	}
	pop, err := CreatePoP(chain[1], "read", []byte(`{"path":"/a"}`), "g", "", now, k(3))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := v.Verify([]string{root, child}, "read", []byte(`{ "path": "\u002fa"}`), pop); err != nil {
		t.Fatal(err)
	}
	t.Log(string(chain[0].Payload))
}
