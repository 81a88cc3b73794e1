package aat_test

import (
	"bytes"
	"crypto/ed25519"
	"errors"
	"fmt"
	"time"

	"github.com/go-json-experiment/json"

	"github.com/handoff-governor/handoff-governor/handoff/aat"
)

// newKey stands for ed25519.GenerateKey, so that the examples print the same every time.
func newKey(b byte) (ed25519.PublicKey, ed25519.PrivateKey) {
	private := ed25519.NewKeyFromSeed(bytes.Repeat([]byte{b}, ed25519.SeedSize))
	return private.Public().(ed25519.PublicKey), private
}

// An issuer lets Alice read two files, Alice lets Bob read one of them, and Bob reads it.
func Example() {
	issuerPublic, issuer := newKey(1)
	alicePublic, alice := newKey(2)
	bobPublic, bob := newKey(3)
	clock := time.Unix(1741600000, 0)

	guard := &aat.Verifier{
		Anchors:  []aat.Anchor{{Issuer: "https://issuer.example.com", Key: issuerPublic}},
		Audience: []string{"https://files.example.com"},
		Now:      func() time.Time { return clock },
	}

	// The issuer signs a root for Alice's key.
	root, err := aat.Issue(aat.Claims{
		ID:        "01957a3f-4e23-7b01-a9d1-0050569c2e4f",
		Issuer:    "https://issuer.example.com",
		IssuedAt:  clock.Unix(),
		ExpiresAt: clock.Add(time.Hour).Unix(),
		Holder:    aat.NewJWK(alicePublic),
		MaxDepth:  3,
		Tools:     aat.Tools{"read_file": {"path": aat.OneOf("/reports/q3", "/reports/q4")}},
	}, issuer)
	if err != nil {
		panic(err)
	}

	// Alice checks what she got, and hands a part of it on to Bob's key.
	rootLink, err := guard.Root(root)
	if err != nil {
		panic(err)
	}
	link, err := aat.Derive(rootLink, aat.Claims{
		ID:        "01957a41-0081-7c20-bf3a-00a0c91e1234",
		IssuedAt:  clock.Unix(),
		ExpiresAt: clock.Add(time.Minute).Unix(),
		Holder:    aat.NewJWK(bobPublic),
		MaxDepth:  1,
		Tools:     aat.Tools{"read_file": {"path": aat.Exact("/reports/q3")}},
	}, alice)
	if err != nil {
		panic(err)
	}

	// Bob calls the tool, and proves for this very call that the leaf is his.
	chain, err := guard.Chain([]string{root, link})
	if err != nil {
		panic(err)
	}
	args := []byte(`{"path": "/reports/q3"}`)
	pop, err := aat.CreatePoP(chain[1], "read_file", args, "https://files.example.com", "", clock, bob)
	if err != nil {
		panic(err)
	}

	// The guard decides from the tokens alone.
	call, err := guard.Verify([]string{root, link}, "read_file", args, pop)
	if err != nil {
		panic(err)
	}
	fmt.Printf("%s %s\n", call.Tool, call.Args)

	_, err = guard.Verify([]string{root, link}, "read_file", []byte(`{"path": "/reports/q4"}`), pop)
	fmt.Println(err)

	// Output:
	// read_file {"path":"/reports/q3"}
	// step 6b, link 1: argument "path": the value is outside {"constraint_type":"exact","value":"/reports/q3"}
}

// Nobody can hand on more than they hold: Derive refuses at once what every verifier would refuse later.
func ExampleDerive_widened() {
	issuerPublic, issuer := newKey(1)
	alicePublic, alice := newKey(2)
	clock := time.Unix(1741600000, 0)
	v := &aat.Verifier{
		Anchors: []aat.Anchor{{Issuer: "https://issuer.example.com", Key: issuerPublic}},
		Now:     func() time.Time { return clock },
	}
	root, _ := aat.Issue(aat.Claims{
		ID: "root", Issuer: "https://issuer.example.com", IssuedAt: clock.Unix(), ExpiresAt: clock.Unix() + 60,
		Holder: aat.NewJWK(alicePublic), MaxDepth: 1,
		Tools: aat.Tools{"pay": {"amount": aat.Range(aat.MoreThan("0"), aat.AtMost("100"))}},
	}, issuer)
	parent, _ := v.Root(root)

	_, err := aat.Derive(parent, aat.Claims{
		ID: "child", IssuedAt: clock.Unix(), ExpiresAt: clock.Unix() + 60, Holder: aat.NewJWK(alicePublic), MaxDepth: 1,
		Tools: aat.Tools{"pay": {"amount": aat.Exact(250)}},
	}, alice)
	widened, _ := errors.AsType[*aat.WidenedError](err)
	fmt.Println(widened.Rule, widened.Tool, widened.Argument)
	fmt.Println(widened.Reason)
	// Output:
	// 4p4 pay amount
	// {"constraint_type":"exact","value":250} does not attenuate {"constraint_type":"range","max":100,"min":0,"min_inclusive":false}
}

// A policy permits less than was asked for: Meet grants what both allow, and says what it could not express.
func ExampleMeet() {
	offer := aat.Tools{
		"pay":    {"amount": aat.Range(aat.MoreThan("0"), aat.AtMost("100"))},
		"search": {},
		"delete": {"path": aat.Wildcard()},
	}
	ceiling := aat.Tools{
		"pay":    {"amount": aat.Range(aat.Bound{}, aat.AtMost("50"))},
		"search": {"query": aat.NotOneOf("secrets")},
	}
	granted, dropped := aat.Meet(offer, ceiling)
	text, _ := json.Marshal(granted)
	fmt.Println(string(text))
	for _, d := range dropped {
		fmt.Println(d.Tool+":", d.Reason)
	}
	// Output:
	// {"pay":{"amount":{"constraint_type":"range","max":50,"min":0,"min_inclusive":false}},"search":{"query":{"constraint_type":"not_one_of","excluded":["secrets"]}}}
	// delete: the ceiling does not grant it
}

// The arguments of one call can be tried without any token.
func ExampleCheckInvocation() {
	args := aat.Arguments{
		"path": aat.OneOf("/a", "/b"),
		"head": aat.Range(aat.Bound{}, aat.AtMost("200")).AsOptional(),
	}
	for _, call := range []string{`{"path":"/a"}`, `{"path":"/a","head":500}`, `{"head":5}`, `{"path":"/a","mode":"w"}`} {
		fmt.Println(aat.CheckInvocation(args, []byte(call)))
	}
	// Output:
	// <nil>
	// argument "head": the value is outside {"constraint_type":"range","max":200}
	// argument "path": it is required and missing
	// argument "mode": the credential does not name it
}

// A ledger records what is about to be signed, and can sign the same again after a crash.
func ExamplePrepare() {
	issuerPublic, issuer := newKey(1)
	alicePublic, _ := newKey(2)
	prepared, err := aat.Prepare(nil, aat.Claims{
		ID: "root", Issuer: "https://issuer.example.com", IssuedAt: 1741600000, ExpiresAt: 1741600060,
		Holder: aat.NewJWK(alicePublic), Tools: aat.Tools{},
	}, issuerPublic)
	if err != nil {
		panic(err)
	}
	record := prepared.Payload // durable from here on

	signed, _ := prepared.Sign(issuer)
	again, _ := aat.SignPayload(record, issuer)
	fmt.Println(signed.Compact == again)
	// Output: true
}
