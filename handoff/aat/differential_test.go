package aat_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	jsonv2 "github.com/go-json-experiment/json"
	"pgregory.net/rapid"

	"github.com/handoff-governor/handoff-governor/handoff/aat"
)

// The verifier is held against the naive one of naive_test.go: both permit, or both deny at the same step.

// disagreement says how the two differ about a presentation, "" where they do not.
func disagreement(v vector) string {
	naive := naiveVerify(v)
	_, err := v.verifier().Verify(v.Chain, v.Tool, []byte(v.Args), v.PoP)
	step := ""
	if err != nil {
		refusal, ok := errors.AsType[*aat.StepError](err)
		if !ok {
			return fmt.Sprintf("refused without a step: %v", err)
		}
		step = refusal.Step
	}
	if err2 := linkByLink(v); (err2 == nil) != (err == nil) {
		return fmt.Sprintf("the verifier says %v of the whole, and %v link by link", err, err2)
	}
	if naive == step {
		return ""
	}
	// How much of a payload that is no JSON step 2c reads, the draft leaves open. It is denied there, or later.
	if naive != "" && step != "" && (naive == "2c" || step == "2c") && !wellFormed(v.Chain) {
		return ""
	}
	name := func(step string) string {
		if step == "" {
			return "permits"
		}
		return "denies at " + step
	}
	return fmt.Sprintf("the verifier %s (%v), the naive one %s", name(step), err, name(naive))
}

// linkByLink verifies in the way of who keeps links that were verified before. It finds what is wrong in another order.
func linkByLink(v vector) error {
	verifier := v.verifier()
	if len(v.Chain) == 0 {
		return errors.New("no chain")
	}
	link, err := verifier.Root(v.Chain[0])
	for _, token := range v.Chain[1:] {
		if err != nil {
			break
		}
		link, err = verifier.Child(link, token)
	}
	if err == nil {
		_, err = verifier.Present(link.Chain(), v.Tool, []byte(v.Args), v.PoP)
	}
	return err
}

func wellFormed(chain []string) bool {
	for _, token := range chain {
		_, payload, _, ok := naiveSplit(token)
		if !ok || naiveParse(payload) == (broken{}) {
			return false
		}
	}
	return true
}

func describe(v vector) string {
	var b strings.Builder
	for i, token := range append(slices.Clone(v.Chain), v.PoP) {
		header, payload, _, _ := naiveSplit(token)
		fmt.Fprintf(&b, "\n%d %q %q", i, header, payload)
	}
	config := v
	config.Chain, config.PoP = nil, ""
	text, _ := jsonv2.Marshal(config)
	return b.String() + "\n" + string(text)
}

// TestNaiveVectors: the naive verifier reads the file as any other implementation does, and passes; so does the other.
func TestNaiveVectors(t *testing.T) {
	raw, err := os.ReadFile(vectorsPath)
	if err != nil {
		t.Fatal(err)
	}
	var file vectorFile
	if err := jsonv2.Unmarshal(raw, &file); err != nil {
		t.Fatal(err)
	}
	for _, v := range file.Vectors {
		if got := naiveVerify(v); got != v.Step {
			t.Errorf("%s: denied at %q by the naive verifier, want %q", v.ID, got, v.Step)
		}
		if what := disagreement(v); what != "" {
			t.Errorf("%s: %s", v.ID, what)
		}
	}
}

// TestDifferential is FuzzDifferential for every day.
func TestDifferential(t *testing.T) {
	bases(t)
	permitted := 0
	rapid.Check(t, func(t *rapid.T) {
		for range 30 {
			if differ(t) == "" {
				permitted++
			}
		}
	})
	if permitted == 0 {
		t.Error("no presentation was permitted: there is something to differ about on one side only")
	}
}

// FuzzDifferential looks for a presentation about which the two verifiers differ. With -fuzzminimizetime=1x it does little
// else; without, it makes what it kept shorter most of the time.
func FuzzDifferential(f *testing.F) {
	bases(f)
	random := rand.NewChaCha8([32]byte{})
	for range 50 {
		choices := make([]byte, 4096)
		_, _ = random.Read(choices) // it cannot fail
		f.Add(choices)
	}
	f.Fuzz(rapid.MakeFuzz(func(t *rapid.T) { differ(t) }))
}

// differ returns the step that denies what it drew, "" for a permit.
func differ(t *rapid.T) (step string) {
	v := draw(t)
	if what := disagreement(v); what != "" {
		t.Fatalf("%s%s", what, describe(v))
	}
	return naiveVerify(v)
}

// forged is a token as it is before it is signed.
type forged struct {
	header, payload, signer string
	hash                    string // of the token that payloads name, before anything is changed
}

// forgery is a presentation that is right, or wrong in the one way of a vector, before it is changed and signed.
type forgery struct {
	config vector // all but chain and proof
	tokens []forged
	pop    forged
}

var made struct {
	sync.Once
	bases []forgery
}

// bases are what all is made from: the vectors, as they are before they are signed.
func bases(t testing.TB) []forgery {
	made.Do(func() {
		for _, s := range scenarios(t) {
			if big := s.ID == "deny-2a-token-size" || s.ID == "deny-2b-chain-size"; big || len(s.tokens) == 0 {
				continue
			}
			after := s.after
			s.after = nil // what is broken after signing, the changes below break as well
			v := s.build(t)
			s.after = after
			made.bases = append(made.bases, forge(s, v))
		}
	})
	return made.bases
}

// forge takes a presentation apart again.
func forge(s *scenario, v vector) forgery {
	f := forgery{config: v}
	f.config.Chain, f.config.PoP = nil, ""
	part := func(token, signer string) forged {
		header, payload, _, _ := naiveSplit(token)
		return forged{string(header), string(payload), signer, naiveHash(token)}
	}
	for i, token := range v.Chain {
		f.tokens = append(f.tokens, part(token, s.tokens[i].signer))
	}
	f.pop = part(v.PoP, s.pop.signer)
	return f
}

// sign makes the presentation. Where relink, hashes that named a token before it was changed name it still.
func (f forgery) sign(t testing.TB, relink bool) vector {
	v := f.config
	v.Chain = []string{}
	renamed := []string{}
	for _, tok := range f.tokens {
		payload := tok.payload
		if relink {
			payload = strings.NewReplacer(renamed...).Replace(payload)
		}
		compact := token{header: tok.header, payload: payload, signer: tok.signer}.sign(t)
		renamed = append(renamed, tok.hash, naiveHash(compact))
		v.Chain = append(v.Chain, compact)
	}
	pop := f.pop.payload
	if relink {
		pop = strings.NewReplacer(renamed...).Replace(pop)
	}
	v.PoP = token{header: f.pop.header, payload: pop, signer: f.pop.signer}.sign(t)
	return v
}

// draw makes a presentation that is changed in up to three ways before it is signed, and perhaps after.
func draw(t *rapid.T) vector {
	var f forgery
	if rapid.Bool().Draw(t, "generated") {
		f = generated(t)
	} else {
		f = made.bases[rapid.IntRange(0, len(made.bases)-1).Draw(t, "base")]
	}
	f.tokens = slices.Clone(f.tokens)
	for range rapid.IntRange(0, 3).Draw(t, "changes") {
		f.change(t)
	}
	v := f.sign(signing{}, rapid.IntRange(0, 9).Draw(t, "hashes stay") != 7)
	if rapid.IntRange(0, 9).Draw(t, "after signing") == 7 {
		breakSigned(t, &v)
	}
	return v
}

// generated makes a chain that narrows, of one to four links.
func generated(t *rapid.T) forgery {
	s := newScenario()
	holders := []string{"alice", "gov", "bob", "mallory"}
	signers := append([]string{"issuer"}, holders...)
	depth := rapid.IntRange(0, 3).Draw(t, "depth")
	tools := toolsets().Draw(t, "tools")
	base := s.tokens
	s.tokens = nil
	for i := range depth + 1 {
		tok := token{header: base[0].header, signer: signers[i], claims: object{
			"jti": fmt.Sprint("link-", i), "iat": now - 100 + i, "exp": now + 1000 - i, "del_depth": i, "del_max_depth": 4,
			"iss": issuerURI, "cnf": object{"jwk": jwk(holders[i])},
		}}
		if i > 0 {
			tok.claims["iss"] = jwk(signers[i]).ThumbprintURI()
			if rapid.Bool().Draw(t, "narrower") {
				next, _ := aat.Meet(tools, toolsets().Draw(t, "ceiling"))
				for tool, args := range next {
					if rapid.IntRange(0, 2).Draw(t, "perturbed") == 1 {
						next[tool] = perturb(t, args)
					}
				}
				tools = next
			}
		}
		tok.claims["authorization_details"] = []any{object{"type": "attenuating_agent_token", "tools": tools}}
		s.tokens = append(s.tokens, tok)
	}
	s.pop.signer = holders[depth]
	s.Tool = rapid.SampledFrom([]string{"s", "t"}).Draw(t, "tool")
	s.Args = invocations().Draw(t, "args")
	return forge(s, s.build(signing{}))
}

// signing is a testing.TB for what cannot fail.
type signing struct{ testing.TB }

func (signing) Helper()           {}
func (signing) Fatal(args ...any) { panic(fmt.Sprint(args...)) }

// change changes one thing before signing. Whoever holds a key can do all of this.
func (f *forgery) change(t *rapid.T) {
	tok := &f.pop
	if at := rapid.IntRange(0, len(f.tokens)).Draw(t, "token"); at < len(f.tokens) {
		tok = &f.tokens[at]
	}
	switch rapid.IntRange(0, 19).Draw(t, "change") {
	case 0:
		tok.header = rapid.SampledFrom([]string{
			`{"alg":"Ed25519","typ":"aat+jwt"}`, `{"alg":"Ed25519","typ":"aat-pop+jwt"}`,
			`{"typ":"aat+jwt","alg":"Ed25519"}`,
			`{"alg":"EdDSA","typ":"aat+jwt"}`, `{"alg":"none","typ":"aat+jwt"}`, `{"alg":"Ed25519"}`, `{}`, `[]`,
			`null`, ``,
			`{"alg":"Ed25519","typ":"aat+jwt","crit":["b64"],"b64":true}`, `{"alg":"Ed25519","typ":"aat+jwt","crit":[]}`,
			`{"alg":"Ed25519","typ":"aat+jwt","typ":"aat+jwt"}`, `{"alg":"Ed25519","typ":"aat+jwt","kid":"x","jwk":{}}`,
			`{"\u0061lg":"Ed25519","typ":"aat\u002bjwt"}`, `{"alg":["Ed25519"],"typ":"aat+jwt"}`,
			`{"Alg":"Ed25519","typ":"aat+jwt"}`,
			` {"alg" : "Ed25519", "typ" : "aat+jwt"} `, `{"alg":"Ed25519","typ":"aat+jwt"}x`,
		}).Draw(t, "header")
	case 1:
		tok.signer = rapid.SampledFrom([]string{"issuer", "alice", "gov", "bob", "mallory"}).Draw(t, "signer")
	case 2:
		tok.payload = splice(t, tok.payload)
	case 3:
		f.config.Args = mutated(t, f.config.Args)
	case 4:
		f.config.Args = splice(t, f.config.Args)
	case 5:
		f.configure(t)
	case 6, 7:
		f.call(t)
	case 8, 9, 10:
		tok.payload = claimed(t, tok.payload)
	case 11, 12, 13:
		tok.payload = constrained(t, tok.payload)
	default:
		tok.payload = mutated(t, tok.payload)
	}
}

// alike are spellings of numbers that are the same, or the same once they are doubles, or once more only in a careless
// canonical form.
var alike = [][]string{
	{`0`, `-0`, `0.0`, `0e9`, `1e-400`}, {`1`, `1.0`, `1e0`, `10e-1`, `1.00000000000000001`}, {`50`, `5e1`, `50.0`},
	{`9007199254740992`, `9007199254740993`, `9007199254740992.0`}, {`1e20`, `100000000000000000000`, `1E+20`},
	{`1.7976931348623157e308`, `1.7976931348623157E+308`, `1e400`}, {`"x"`, `"\u0078"`}, {`"\ud83d\ude00"`, "\"\U0001F600\""},
}

// call makes another call, with a proof for it, or for one that is spelled in another way. Its value is one of those, or
// stands in the leaf, where values are at the edge of what a constraint accepts.
func (f *forgery) call(t *rapid.T) {
	shape := rapid.SampledFrom([]string{
		`{"path":"/a","limit":?}`, `{"path":?}`, `{"v":?}`, `{"q":[?,{"b":?,"a":?}]}`, `{"x":?,"y":?}`, `{"z":?,"x":1}`,
		`{"x":?}`, `{"v":[?]}`,
	}).Draw(t, "shape")
	group := rapid.SampledFrom(alike).Draw(t, "alike")
	if leaf := f.tokens[len(f.tokens)-1].payload; json.Valid([]byte(leaf)) && rapid.Bool().Draw(t, "from the leaf") {
		var values []string
		for _, parent := range readJSON(leaf).parents() {
			for _, kid := range parent.kids {
				if kid.open != '{' {
					values = append(values, textOf(kid))
				}
			}
		}
		if len(values) > 0 {
			group = []string{rapid.SampledFrom(values).Draw(t, "value")}
		}
	}
	call := func(value string) string { return strings.ReplaceAll(shape, "?", value) }
	f.config.Args = call(rapid.SampledFrom(group).Draw(t, "called with"))
	if !json.Valid([]byte(f.pop.payload)) {
		return
	}
	root := readJSON(f.pop.payload)
	root.set(`"hta"`, call(rapid.SampledFrom(group).Draw(t, "signed")))
	f.pop.payload = textOf(root)
}

// plausible :: claim → values that it may have, or nearly.
var plausible = map[string][]string{
	`"jti"`: {`"link-0"`, `"link-1"`, `""`, `1`, `"\u006cink-0"`}, `"iss"`: {`"` + issuerURI + `"`,
		`"https://issuer.example.com/"`, `""`},
	`"aud"`: {
		`"` + guardURI + `"`, `["` + guardURI + `"]`, `["x","` + guardURI + `"]`, `["` + guardURI + `",1]`,
		`[null,"` + guardURI + `"]`,
		`"x"`, `[]`, `null`, `{}`, `[["` + guardURI + `"]]`, `"` + guardURI + `/"`,
	},
	`"del_depth"`:     {`0`, `1`, `2`, `-0`, `-1`, `1.0`, `1e0`, `"1"`, `true`, `4294967297`, `18446744073709551617`},
	`"del_max_depth"`: {`0`, `1`, `2`, `3`, `4`, `5`, `32`, `33`, `-1`, `4.0`, `4294967300`},
	`"par_hash"`:      {`null`, `""`, `"x"`, `1`}, `"nonce"`: {`"n-1"`, `"n-2"`, `""`, `null`, `["n-1"]`},
	`"aat_aud"`:  {`"` + guardURI + `"`, `["` + guardURI + `"]`, `"x"`, `null`, `""`},
	`"aat_tool"`: {`"s"`, `"t"`, `"search"`, `"read_file"`, `"READ_FILE"`, `""`},
	`"authorization_details"`: {
		`[]`, `null`, `{}`, `[{"type":"payment"}]`, `[{"type":"attenuating_agent_token"}]`,
		`[{"type":"attenuating_agent_token","tools":[]}]`,
		`[{"type":"attenuating_agent_token","tools":{}}]`, `[{"type":"attenuating_agent_token","tools":{"t":null}}]`,
		`[{"type":"attenuating_agent_token","tools":{"t":{}}},{"type":"attenuating_agent_token","tools":{"read_file":{}}}]`,
		`[1,{"type":["attenuating_agent_token"]},{"type":"attenuating_agent_token","tools":{"read_file":{}}}]`,
	},
	`"cnf"`: {
		`{"jwk":{"kty":"OKP","crv":"Ed25519","x":"AQAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"}}`,  // of small order
		`{"jwk":{"kty":"OKP","crv":"Ed25519","x":"7v________________________________________38"}}`, // 0, written as p + 1
		`{"jwk":{"kty":"OKP","crv":"Ed25519","x":"AgAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"}}`,  // no point
		`{"jwk":{}}`, `{}`, `null`, `{"jwk":[]}`,
	},
}

// claimed changes a claim as a person would who tries what is accepted, or adds one to a number.
func claimed(t *rapid.T, text string) string {
	if !json.Valid([]byte(text)) {
		return text
	}
	root := readJSON(text)
	name := rapid.SampledFrom(slices.Sorted(maps.Keys(plausible))).Draw(t, "claim")
	if numbers := root.integers(); len(numbers) > 0 && rapid.Bool().Draw(t, "nudged") {
		n := rapid.SampledFrom(numbers).Draw(t, "number")
		value, _ := strconv.ParseInt(n.text, 10, 64)
		n.text = fmt.Sprint(value + rapid.SampledFrom([]int64{-31, -30, -2, -1, 1, 2, 30, 31}).Draw(t, "by"))
	} else {
		root.set(name, rapid.SampledFrom(plausible[name]).Draw(t, "value"))
	}
	return textOf(root)
}

// constrained changes a constraint, or the map that it is in.
func constrained(t *rapid.T, text string) string {
	if !json.Valid([]byte(text)) {
		return text
	}
	root := readJSON(text)
	type place struct {
		in *node
		at int
	}
	var constraints []place
	for _, parent := range root.parents() {
		for i, kid := range parent.kids {
			if slices.Contains(kid.names, `"constraint_type"`) {
				constraints = append(constraints, place{parent, i})
			}
		}
	}
	if len(constraints) == 0 {
		return text
	}
	p := rapid.SampledFrom(constraints).Draw(t, "constraint")
	c := p.in.kids[p.at]
	switch rapid.IntRange(0, 7).Draw(t, "constraint changes") {
	case 0, 1:
		c.set(`"optional"`, rapid.SampledFrom([]string{`true`, `true`, `false`, `1`}).Draw(t, "optional"))
	case 2:
		c.set(`"min_inclusive"`, rapid.SampledFrom([]string{`false`, `true`}).Draw(t, "inclusive"))
	case 3:
		c.set(`"max_inclusive"`, rapid.SampledFrom([]string{`false`, `true`}).Draw(t, "inclusive"))
	case 4:
		p.in.set(`"*"`, `{"constraint_type":"wildcard"}`)
	case 5:
		p.in.kids[p.at] = &node{text: `{"constraint_type":"all","constraints":[` + textOf(c) + `]}`}
	case 6:
		p.in.kids[p.at] = &node{text: `{"constraint_type":"any","constraints":[` + textOf(c) + `,{"constraint_type":"wildcard"}]}`}
	case 7:
		p.in.kids[p.at] = &node{text: `{"constraint_type":"wildcard"}`}
	}
	return textOf(root)
}

// configure changes the enforcement point or the call.
func (f *forgery) configure(t *rapid.T) {
	c := &f.config
	switch rapid.IntRange(0, 8).Draw(t, "configuration") {
	case 0:
		c.Options.RequireAudience = !c.Options.RequireAudience
	case 1:
		c.Options.RequirePoPAudience = !c.Options.RequirePoPAudience
	case 2:
		c.Options.Nonces = []string{"n-1", ""}
	case 3:
		c.Options.AcceptedIDs = []string{"c980f2a1-4a37-4e88-bb3c-9defd37c1a45"}
	case 4:
		c.Now += rapid.SampledFrom([]int64{-131, -130, -31, -30, -1, 1, 30, 31, 990, 999, 1000}).Draw(t, "clock")
	case 5:
		c.Tool = rapid.SampledFrom([]string{"s", "t", "search", "read_file", "write_file", ""}).Draw(t, "tool")
	case 6:
		c.Audience = rapid.SampledFrom([][]string{nil, {guardURI}, {"another", guardURI}, {"another"}}).Draw(t, "audience")
	case 7:
		c.Options.MaxTokenSize = rapid.IntRange(400, 1000).Draw(t, "size of a token")
	case 8:
		c.Options.MaxChainSize = rapid.IntRange(400, 3000).Draw(t, "size of the chain")
	}
}

// breakSigned changes one thing after signing. Anybody can do this.
func breakSigned(t *rapid.T, v *vector) {
	at := rapid.IntRange(0, len(v.Chain)-1).Draw(t, "link")
	switch rapid.IntRange(0, 6).Draw(t, "broken") {
	case 0:
		v.Chain = slices.Delete(v.Chain, at, at+1)
	case 1:
		tokens := append(slices.Clone(v.Chain), v.PoP, "", "..", ".e30.")
		v.Chain = slices.Insert(v.Chain, at, rapid.SampledFrom(tokens).Draw(t, "inserted"))
	case 2:
		v.Chain[at], v.Chain[0] = v.Chain[0], v.Chain[at]
	case 3:
		v.Chain[at] = splice(t, v.Chain[at])
	case 4:
		v.PoP = splice(t, v.PoP)
	case 5:
		v.Chain[at] = flipSignature(v.Chain[at])
	case 6:
		v.PoP, v.Chain[at] = v.Chain[at], v.PoP
	}
}

// splice replaces a few bytes.
func splice(t *rapid.T, text string) string {
	from := rapid.IntRange(0, len(text)).Draw(t, "from")
	to := min(len(text), from+rapid.IntRange(0, 3).Draw(t, "cut"))
	return text[:from] + rapid.SampledFrom([]string{
		"", "", " ", "\n", "\x00", "\xff", "\\", `"`,
		",", ":", "{", "}", "[", "]", "=", ".", "A", "-", "+", "0", "1", "e1", "E+0",
		`\ud800`, `\ud83d\ude00`, `\u0000`, "\u00e9", "\u2028", "\ufeff", "{}", "[]", "null", `,"jti":"x"`, "//", "'",
	}).Draw(t, "insert") + text[to:]
}

// node is JSON that can be changed anywhere, into what no Go value marshals to.
type node struct {
	text  string // of a scalar, or of whatever was put here
	open  byte   // '{' or '[', else 0
	names []string
	kids  []*node
}

func readJSON(text string) *node {
	dec := json.NewDecoder(bytes.NewReader([]byte(text)))
	dec.UseNumber()
	return readNode(dec)
}

func readNode(dec *json.Decoder) *node {
	tok, _ := dec.Token()
	delim, ok := tok.(json.Delim)
	if !ok {
		if number, ok := tok.(json.Number); ok {
			return &node{text: string(number)}
		}
		text, _ := jsonv2.Marshal(tok)
		return &node{text: string(text)}
	}
	n := &node{open: byte(delim)}
	for dec.More() {
		if n.open == '{' {
			name, _ := dec.Token()
			text, _ := jsonv2.Marshal(name)
			n.names = append(n.names, string(text))
		}
		n.kids = append(n.kids, readNode(dec))
	}
	_, _ = dec.Token()
	return n
}

func (n *node) write(b *strings.Builder) {
	if n.open == 0 {
		b.WriteString(n.text)
		return
	}
	b.WriteByte(n.open)
	for i, kid := range n.kids {
		if i > 0 {
			b.WriteByte(',')
		}
		if n.open == '{' {
			b.WriteString(n.names[i] + ":")
		}
		kid.write(b)
	}
	b.WriteByte(n.open + 2) // '}' is two after '{', as ']' is after '['
}

// parents lists every object and array that has something in it.
func (n *node) parents() (all []*node) {
	if len(n.kids) > 0 {
		all = append(all, n)
	}
	for _, kid := range n.kids {
		all = append(all, kid.parents()...)
	}
	return all
}

// integers lists the whole numbers.
func (n *node) integers() (all []*node) {
	if n.open == 0 && naiveInt.MatchString(n.text) && len(n.text) < 18 {
		all = append(all, n)
	}
	for _, kid := range n.kids {
		all = append(all, kid.integers()...)
	}
	return all
}

// set gives a member of an object another value, or adds the member.
func (n *node) set(name, value string) {
	if n.open != '{' {
		return
	}
	if i := slices.Index(n.names, name); i >= 0 {
		n.kids[i] = &node{text: value}
		return
	}
	n.names, n.kids = append(n.names, name), append(n.kids, &node{text: value})
}

// fragments are values that tokens, proofs and calls have, or must not have.
var fragments = append([]string{
	`0`, `-0`, `-0.0`, `1.0`, `1e0`, `1E+0`, `5e1`, `50`, `51`, `100`, `100.0`, `101`, `1e2`, `0.1`, `0.10`,
	`1e20`, `1e21`, `1e22`,
	`9007199254740991`, `9007199254740992`, `9007199254740993`, `9007199254740994`, `-9007199254740993`,
	`1.00000000000000001`, `1e400`, `-1e400`, `1e-400`, `0e999999999`, `1.7976931348623157e308`, `5e-324`, `4e-324`,
	`333333333.33333329`, `18446744073709551617`, `-99999999999999999999`, `2147483648`, `4`, `5`, `32`, `33`,
	fmt.Sprint(now), fmt.Sprint(now - 101), fmt.Sprint(now - 30), fmt.Sprint(now - 31), fmt.Sprint(now + 30),
	fmt.Sprint(now + 31),
	fmt.Sprint(now + 1000), fmt.Sprint(now + 1001), fmt.Sprint(now - 100 + 90*86400), fmt.Sprint(now - 99 + 90*86400),
	`"/a"`, `"\u002fa"`, `"/b"`, `"x"`, `""`, `"*"`, `"\ud83d\ude00"`, `"\u00e9"`, `"e\u0301"`, `{}`, `false`,
	`[[]]`, `[{}]`, `[null]`,
	`"` + guardURI + `"`, `["` + guardURI + `"]`, `["x","` + guardURI + `"]`, `["` + guardURI + `",1]`, `"n-1"`,
	`"link-0"`,
	`"` + issuerURI + `"`, `"issuer"`, `"attenuating_agent_token"`, `"aat_tool"`, `"search"`, `"read_file"`, `"s"`, `"t"`,
	`{"constraint_type":"wildcard"}`, `{"constraint_type":"wildcard","optional":true}`,
	`{"constraint_type":"exact","value":"/a"}`,
	`{"constraint_type":"exact","value":1.0}`, `{"constraint_type":"one_of","values":["/a",1e0]}`,
	`{"constraint_type":"one_of","values":[]}`,
	`{"constraint_type":"not_one_of","excluded":["x",10]}`, `{"constraint_type":"range"}`,
	`{"constraint_type":"range","min":1,"max":1}`,
	`{"constraint_type":"range","min":0.1,"min_inclusive":false}`,
	`{"constraint_type":"range","max":50,"max_inclusive":false}`,
	`{"constraint_type":"range","max":50}`, `{"constraint_type":"range","min":1,"max":0}`,
	`{"constraint_type":"range","max_inclusive":true}`,
	`{"constraint_type":"contains","required":[]}`, `{"constraint_type":"subset","allowed":["a",1,[]]}`,
	`{"constraint_type":"all","constraints":[]}`, `{"constraint_type":"regex"}`,
	`{"constraint_type":"all","constraints":[{"constraint_type":"wildcard"},{"constraint_type":"range","max":10}]}`,
	`{"constraint_type":"any","constraints":[{"constraint_type":"exact","value":"/a"},{"constraint_type":"exact","value":1}]}`,
	`{"constraint_type":"any","constraints":[{"constraint_type":"exact","value":"/a","optional":false}]}`,
	`{"type":"attenuating_agent_token","tools":{"read_file":{}}}`, `{"type":"payment"}`,
}, world...)

var names = []string{
	`"jti"`, `"iss"`, `"iat"`, `"exp"`, `"cnf"`, `"jwk"`, `"aud"`, `"del_depth"`, `"del_max_depth"`,
	`"par_hash"`, `"kty"`, `"crv"`,
	`"x"`, `"d"`, `"authorization_details"`, `"type"`, `"tools"`, `"*"`, `"path"`, `"\u0070ath"`, `"limit"`,
	`"s"`, `"t"`, `"y"`, `"z"`,
	`"search"`, `"read_file"`, `"constraint_type"`, `"optional"`, `"min"`, `"max"`, `"min_inclusive"`,
	`"max_inclusive"`, `"value"`,
	`"values"`, `"excluded"`, `"required"`, `"allowed"`, `"constraints"`, `"aat_aud"`, `"aat_id"`, `"aat_hash"`,
	`"aat_tool"`, `"hta"`,
	`"nonce"`, `"JTI"`, `"extra"`, `""`,
}

// mutated changes one value or one name somewhere in a JSON text, and leaves alone what is none.
func mutated(t *rapid.T, text string) string {
	if !json.Valid([]byte(text)) {
		return text
	}
	root := readJSON(text)
	parents := root.parents()
	if len(parents) == 0 {
		return rapid.SampledFrom(fragments).Draw(t, "whole")
	}
	n := rapid.SampledFrom(parents).Draw(t, "where")
	at := rapid.IntRange(0, len(n.kids)-1).Draw(t, "which")
	fragment := func() *node { return &node{text: rapid.SampledFrom(fragments).Draw(t, "fragment")} }
	switch what := rapid.IntRange(0, 5).Draw(t, "mutation"); {
	case what == 0:
		n.kids = slices.Delete(n.kids, at, at+1)
		if n.open == '{' {
			n.names = slices.Delete(n.names, at, at+1)
		}
	case what == 1:
		n.kids = slices.Insert(n.kids, at, fragment())
		if n.open == '{' {
			n.names = slices.Insert(n.names, at, rapid.SampledFrom(names).Draw(t, "name"))
		}
	case what == 2:
		n.kids = append(n.kids, n.kids[at])
		if n.open == '{' {
			other := rapid.SampledFrom(names).Draw(t, "name")
			n.names = append(n.names, rapid.SampledFrom([]string{n.names[at], other}).Draw(t, "copy"))
		}
	case what == 3 && n.open == '{':
		n.names[at] = rapid.SampledFrom(names).Draw(t, "rename")
	case what == 4:
		other := rapid.SampledFrom(parents).Draw(t, "from where")
		n.kids[at] = &node{text: textOf(rapid.SampledFrom(other.kids).Draw(t, "moved"))}
	default:
		n.kids[at] = fragment()
	}
	return textOf(root)
}

func textOf(n *node) string {
	var b strings.Builder
	n.write(&b)
	return b.String()
}
