package aat_test

import (
	"crypto/ed25519"
	"fmt"
	"testing"
	"time"

	"github.com/handoff-governor/handoff-governor/handoff/aat"
)

// benchChain makes a chain of links below a root; at every hop the same two tools, narrowed a little.
func benchChain(b *testing.B, below int) (*aat.Verifier, []string, []ed25519.PrivateKey) {
	v := &aat.Verifier{
		Anchors: []aat.Anchor{{Issuer: issuerURI, Key: publicKey("issuer")}},
		Now:     func() time.Time { return time.Unix(now, 0) }, Audience: []string{guardURI},
	}
	tools := aat.Tools{
		"read_file": {"path": aat.OneOf("/a", "/b", "/c"), "limit": aat.Range(aat.Bound{}, aat.AtMost("100")).AsOptional()},
		"search":    {"query": aat.NotOneOf("secret"), "tags": aat.Subset("x", "y", "z")},
	}
	keys := []ed25519.PrivateKey{privateKey("issuer")}
	var parent *aat.Link
	var chain []string
	for i := range below + 1 {
		_, key := newKey(byte(i + 10))
		c := aat.Claims{
			ID: fmt.Sprintf("01957a3f-4e23-7b01-a9d1-%012d", i), Issuer: issuerURI, IssuedAt: now, ExpiresAt: now + 600,
			Holder: aat.NewJWK(key.Public().(ed25519.PublicKey)), MaxDepth: 32, Tools: tools,
		}
		link, err := aat.Prepare(parent, c, keys[i].Public().(ed25519.PublicKey))
		if err == nil {
			link, err = link.Sign(keys[i])
		}
		if err != nil {
			b.Fatal(err)
		}
		parent, keys, chain = link, append(keys, key), append(chain, link.Compact)
	}
	return v, chain, keys
}

func BenchmarkSignature(b *testing.B) { // what the others are measured against
	key := privateKey("alice")
	message := make([]byte, 900)
	signature := ed25519.Sign(key, message)
	for b.Loop() {
		ed25519.Verify(publicKeyOf(key), message, signature)
	}
}

func publicKeyOf(key ed25519.PrivateKey) ed25519.PublicKey { return ed25519.PublicKey(key[32:]) }

func BenchmarkChild(b *testing.B) {
	v, chain, _ := benchChain(b, 1)
	root := must(v.Root(chain[0]))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := v.Child(root, chain[1]); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkChain(b *testing.B) {
	for _, depth := range []int{1, 4, 16} {
		b.Run(fmt.Sprint(depth), func(b *testing.B) {
			v, chain, _ := benchChain(b, depth)
			b.ReportAllocs()
			for b.Loop() {
				if _, err := v.Chain(chain); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkPresent(b *testing.B) {
	v, chain, keys := benchChain(b, 2)
	links := must(v.Chain(chain))
	args := []byte(`{"path":"/a","limit":10}`)
	pop := must(aat.CreatePoP(links[2], "read_file", args, guardURI, "", time.Unix(now, 0), keys[3]))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := v.Present(links, "read_file", args, pop); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkPrepare(b *testing.B) {
	v, chain, keys := benchChain(b, 1)
	links := must(v.Chain(chain))
	claims := links[1].Claims
	b.ReportAllocs()
	for b.Loop() {
		claims.ID = "x"
		if _, err := aat.Prepare(links[1], claims, keys[2].Public().(ed25519.PublicKey)); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkMeet(b *testing.B) {
	offer := aat.Tools{"read_file": {"path": aat.OneOf("/a", "/b"), "limit": aat.Range(aat.Bound{}, aat.AtMost("100"))}, "search": {}}
	for name, ceiling := range map[string]aat.Tools{
		"within":  {"read_file": {}, "search": {}},
		"narrows": {"read_file": {"path": aat.Exact("/a"), "limit": aat.Range(aat.Bound{}, aat.AtMost("10"))}, "search": {}},
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				aat.Meet(offer, ceiling)
			}
		})
	}
}

func BenchmarkCheckInvocation(b *testing.B) {
	args := aat.Arguments{"path": aat.OneOf("/a", "/b"), "limit": aat.Range(aat.Bound{}, aat.AtMost("100"))}
	call := []byte(`{"limit":10,"path":"/a"}`)
	b.ReportAllocs()
	for b.Loop() {
		if err := aat.CheckInvocation(args, call); err != nil {
			b.Fatal(err)
		}
	}
}
