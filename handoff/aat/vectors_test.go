package aat_test

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"flag"
	"fmt"
	"go/ast"
	"go/parser"
	gotoken "go/token"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/handoff-governor/handoff-governor/handoff/aat"
	"github.com/handoff-governor/handoff-governor/handoff/aat/jcs"
)

const vectorsPath = "testdata/vectors.json"

var update = flag.Bool("update", false, "write "+vectorsPath)

// TestVectorsFile holds the generator and its file together; go generate writes the file.
func TestVectorsFile(t *testing.T) {
	want := encodeVectors(t)
	if *update {
		if err := os.WriteFile(vectorsPath, want, 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	got, err := os.ReadFile(vectorsPath)
	if err != nil || !bytes.Equal(got, want) {
		t.Fatalf("%s is not what the generator writes (%v): run go generate", vectorsPath, err)
	}
}

// TestVectors runs the file as another implementation would, and sees that it leaves no step out.
func TestVectors(t *testing.T) {
	raw, err := os.ReadFile(vectorsPath)
	if err != nil {
		t.Fatal(err)
	}
	var file vectorFile
	if err := json.Unmarshal(raw, &file, json.RejectUnknownMembers(true)); err != nil {
		t.Fatal(err)
	}
	covered := map[string]bool{}
	for _, u := range file.Unreachable {
		covered[u.Step] = true
	}
	for _, vec := range file.Vectors {
		t.Run(vec.ID, func(t *testing.T) {
			covered[vec.Step] = true
			_, err := vec.verifier().Verify(vec.Chain, vec.Tool, []byte(vec.Args), vec.PoP)
			step, _ := errors.AsType[*aat.StepError](err)
			switch {
			case vec.Expect == "permit" && err != nil:
				t.Fatalf("denied: %v", err)
			case vec.Expect == "deny" && err == nil:
				t.Fatalf("permitted; want a denial at step %s", vec.Step)
			case vec.Expect == "deny" && step.Step != vec.Step:
				t.Fatalf("denied by %v; want step %s", err, vec.Step)
			}
		})
	}
	for _, step := range allSteps {
		if !covered[step] {
			t.Errorf("step %s has no vector, nor a reason for having none", step)
		}
	}
}

// TestStepsOfTheSource holds allSteps and the verifier together: it names every step there and no other.
func TestStepsOfTheSource(t *testing.T) {
	sources, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	step, named := regexp.MustCompile(`^"[1-8]([a-q][1-9]?)?"$`), map[string]bool{}
	for _, source := range sources {
		if strings.HasSuffix(source, "_test.go") {
			continue
		}
		file, err := parser.ParseFile(gotoken.NewFileSet(), source, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(file, func(n ast.Node) bool {
			if lit, ok := n.(*ast.BasicLit); ok && lit.Kind == gotoken.STRING && step.MatchString(lit.Value) {
				named[strings.Trim(lit.Value, `"`)] = true
			}
			return true
		})
	}
	for _, step := range allSteps {
		if !named[step] {
			t.Errorf("the verifier never names step %s", step)
		}
		delete(named, step)
	}
	for step := range named {
		t.Errorf("the verifier names step %s, for which no vector is asked", step)
	}
}

// allSteps lists draft section 8. 2c stands for three faults, 4p for its four parts, 8 for a permit.
var allSteps = strings.Fields(`1 2a 2b 2c 3a 3b 3c 3d 3e 3f 3g 3h 3i 3j 3k 3l 3m 3n
	4a 4b 4b1 4b2 4b3 4b4 4b5 4c 4d 4e 4f 4g 4h 4i 4j 4k 4l 4m 4n 4o 4p1 4p2 4p3 4p4 4q 5 6a 6b 6c
	7a 7b 7c 7d 7e 7f 7g 7h 7i`)

type vectorFile struct {
	About       []string          `json:"about"`
	Draft       draft             `json:"draft"`
	Seeds       map[string]string `json:"seeds"` // hex
	Unreachable []unreachable     `json:"unreachable"`
	Vectors     []vector          `json:"vectors"`
}

// draft is the text that the vectors follow: a draft of one number can still change.
type draft struct {
	Name       string `json:"name"`
	Date       string `json:"date"`
	Repository string `json:"repository"`
	Commit     string `json:"commit"`
}

type unreachable struct {
	Step string `json:"step"`
	Why  string `json:"why"`
}

type vector struct {
	ID          string   `json:"id"`
	Description string   `json:"description"`
	Invariant   string   `json:"invariant,omitempty"`
	Now         int64    `json:"now"`
	Anchors     []anchor `json:"trust_anchors"`
	Audience    []string `json:"audience"`
	Options     options  `json:"options"`
	Tool        string   `json:"tool"`
	Args        string   `json:"args"` // JSON as text: how a number is written matters
	Chain       []string `json:"chain"`
	PoP         string   `json:"pop"`
	Expect      string   `json:"expect"`
	Step        string   `json:"step,omitempty"`
}

type anchor struct {
	Issuer string  `json:"iss"`
	JWK    aat.JWK `json:"jwk"`
}

// options are what an enforcement point may ask beyond the defaults: absent means not asked.
type options struct {
	RequireAudience    bool     `json:"require_aud,omitempty"`
	RequirePoPAudience bool     `json:"require_aat_aud,omitempty"`
	Nonces             []string `json:"nonces,omitempty"`       // a nonce is required, and must be one of these
	AcceptedIDs        []string `json:"accepted_jti,omitempty"` // jti are tracked, and these were accepted before
	MaxTokenSize       int      `json:"max_token_size,omitempty"`
	MaxChainSize       int      `json:"max_chain_size,omitempty"`
}

func (v vector) verifier() *aat.Verifier {
	out := &aat.Verifier{
		Audience:        v.Audience,
		Now:             func() time.Time { return time.Unix(v.Now, 0) },
		RequireAudience: v.Options.RequireAudience, RequirePoPAudience: v.Options.RequirePoPAudience,
		MaxTokenSize: v.Options.MaxTokenSize, MaxChainSize: v.Options.MaxChainSize,
	}
	for _, a := range v.Anchors {
		key, _ := a.JWK.Key()
		out.Anchors = append(out.Anchors, aat.Anchor{Issuer: a.Issuer, Key: key})
	}
	if v.Options.Nonces != nil {
		out.Nonce = func(n string) bool { return slices.Contains(v.Options.Nonces, n) }
	}
	if v.Options.AcceptedIDs != nil {
		out.Seen = func(jti string, _ time.Time) bool { return slices.Contains(v.Options.AcceptedIDs, jti) }
	}
	return out
}

func encodeVectors(t testing.TB) []byte {
	file := vectorFile{
		About: []string{
			"Test vectors for draft-niyikiza-oauth-attenuating-agent-tokens-02, section 8.",
			"Each vector is one call of the algorithm at the time `now` (Unix seconds). `step` names the step that denies;",
			"steps run in the order of the draft, but 7a and 7b before 6. `args` is JSON text, to be parsed by the verifier.",
			"Limits are those the draft recommends (skew 30 s, lifetime 90 days, PoP window 30 s, depths 32) unless `options` differ.",
			"`draft` is the text that the steps are numbered by: its name, its date, and the commit of tenuo-ai/tenuo that has it.",
			"`seeds` are the Ed25519 seeds (RFC 8032) of the keys: issuer signs roots; alice, gov and bob hold depths 0, 1 and 2.",
		},
		Draft: draft{
			Name: "draft-niyikiza-oauth-attenuating-agent-tokens-02", Date: "2026-09-29",
			Repository: "https://github.com/tenuo-ai/tenuo", Commit: "038a44b0106870ef8dd053428fc5df62bf1dd0de",
		},
		Seeds: map[string]string{},
		Unreachable: []unreachable{
			{"4f", "3i and 4g keep every del_max_depth within the limit, and 4e keeps del_depth within the parent's del_max_depth"},
			{"5", "3c and 4d make the depth of every token its place in the chain"},
		},
	}
	for name, b := range seeds {
		file.Seeds[name] = fmt.Sprintf("%x", seed(b))
	}
	ids := map[string]bool{}
	for _, s := range scenarios(t) {
		vec := s.build(t)
		if ids[vec.ID] {
			t.Fatalf("two vectors are called %s", vec.ID)
		}
		ids[vec.ID] = true
		file.Vectors = append(file.Vectors, vec)
	}
	out, err := json.Marshal(file, json.Deterministic(true), jsontext.WithIndent(" "))
	if err != nil {
		t.Fatal(err)
	}
	return append(out, '\n')
}

// Keys of the vectors, from seeds of one repeated byte.
var seeds = map[string]byte{"issuer": 1, "alice": 2, "gov": 3, "bob": 4, "mallory": 5}

func seed(b byte) []byte { return bytes.Repeat([]byte{b}, ed25519.SeedSize) }

func privateKey(name string) ed25519.PrivateKey { return ed25519.NewKeyFromSeed(seed(seeds[name])) }

func publicKey(name string) ed25519.PublicKey { return privateKey(name).Public().(ed25519.PublicKey) }

func jwk(name string) aat.JWK { return aat.NewJWK(publicKey(name)) }

const (
	now       = 1741600000
	issuerURI = "https://issuer.example.com"
	guardURI  = "https://tools.example.com"
)

// object is JSON in the making.
type object = map[string]any

// scenario is a valid presentation of three links, which a vector then breaks in one way.
type scenario struct {
	vector
	tokens []token
	pop    token
	after  func(*vector) // what is broken after signing
}

// token is a JWS in the making. Payload, when set, replaces the JSON of claims.
type token struct {
	header  string
	claims  object
	payload string
	signer  string
}

func newScenario() *scenario {
	readFile := func(paths ...any) object {
		return object{"constraint_type": "one_of", "values": paths}
	}
	s := &scenario{vector: vector{
		Now: now, Anchors: []anchor{{issuerURI, jwk("issuer")}}, Audience: []string{guardURI},
		Tool: "read_file", Args: `{"path":"/a"}`,
	}}
	tools := []object{
		{
			"read_file": object{
				"path": readFile("/a", "/b", "/c"), "limit": object{"constraint_type": "range", "max": 100, "optional": true},
			},
			"search": object{},
		},
		{
			"read_file": object{
				"path": readFile("/a", "/b"), "limit": object{"constraint_type": "range", "max": 50, "optional": true},
			},
		},
		{"read_file": object{"path": object{"constraint_type": "exact", "value": "/a"}}},
	}
	signers := []string{"issuer", "alice", "gov"}
	holders := []string{"alice", "gov", "bob"}
	for i := range tools {
		claims := object{
			"jti": fmt.Sprintf("01957a3f-4e23-7b01-a9d1-00000000000%d", i), "iat": now - 100 + i, "exp": now + 1000 - i,
			"cnf": object{"jwk": jwk(holders[i])}, "del_depth": i, "del_max_depth": 4, "iss": issuerURI,
			"authorization_details": []any{object{"type": "attenuating_agent_token", "tools": tools[i]}},
		}
		if i > 0 {
			claims["iss"] = jwk(signers[i]).ThumbprintURI()
		}
		s.tokens = append(s.tokens, token{header: `{"alg":"Ed25519","typ":"aat+jwt"}`, claims: claims, signer: signers[i]})
	}
	s.pop = token{header: `{"alg":"Ed25519","typ":"aat-pop+jwt"}`, signer: "bob", claims: object{
		"jti": "c980f2a1-4a37-4e88-bb3c-9defd37c1a45", "iat": now,
	}}
	return s
}

func (tok token) sign(t testing.TB) string {
	payload := []byte(tok.payload)
	if tok.payload == "" {
		payload = encode(t, tok.claims)
	}
	input := b64([]byte(tok.header)) + "." + b64(payload)
	return input + "." + b64(ed25519.Sign(privateKey(tok.signer), []byte(input)))
}

// encode sorts members and leaves values as they are written, numbers that JCS would round among them.
func encode(t testing.TB, v any) []byte {
	b, err := json.Marshal(v, json.Deterministic(true))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func b64(b []byte) string { return base64.RawURLEncoding.EncodeToString(b) }

func hashOf(compact string) string {
	sum := sha256.Sum256([]byte(compact[:strings.LastIndexByte(compact, '.')]))
	return b64(sum[:])
}

// build signs from the root down, and fills in hashes and a proof's members that the scenario left alone. A member of the
// proof that it made nil is left out.
func (s *scenario) build(t testing.TB) vector {
	v := s.vector
	v.Chain = []string{}
	for i, tok := range s.tokens {
		if _, set := tok.claims["par_hash"]; i > 0 && !set {
			tok.claims["par_hash"] = hashOf(v.Chain[i-1])
		}
		v.Chain = append(v.Chain, tok.sign(t))
	}
	leaf := s.tokens[len(s.tokens)-1].claims
	args := jsontext.Value(v.Args)
	if args.Canonicalize() != nil || args.Kind() != '{' {
		args = jsontext.Value("{}")
	}
	for name, value := range (object{
		"aat_id": leaf["jti"], "aat_hash": hashOf(v.Chain[len(v.Chain)-1]), "aat_tool": v.Tool, "hta": args,
	}) {
		if _, set := s.pop.claims[name]; !set {
			s.pop.claims[name] = value
		}
	}
	maps.DeleteFunc(s.pop.claims, func(_ string, value any) bool { return value == nil })
	v.PoP = s.pop.sign(t)
	if s.after != nil {
		s.after(&v)
	}
	return v
}

// Handles for breaking a scenario.

func (s *scenario) truncate(links int, holder string) {
	s.tokens, s.pop.signer = s.tokens[:links], holder
}

func (s *scenario) tools(link int) object {
	return s.tokens[link].claims["authorization_details"].([]any)[0].(object)["tools"].(object)
}

func (s *scenario) setTools(link int, tools any) {
	s.tokens[link].claims["authorization_details"] = []any{object{"type": "attenuating_agent_token", "tools": tools}}
}

// set gives a claim another value, or removes it where that is nil.
func (s *scenario) set(link int, claim string, value any) {
	if value == nil {
		delete(s.tokens[link].claims, claim)
		return
	}
	s.tokens[link].claims[claim] = value
}

// respell writes a token's claims with one change to their text.
func (s *scenario) respell(t testing.TB, link int, old, new string) {
	payload := string(encode(t, s.tokens[link].claims))
	if link > 0 {
		t.Helper()
		s.set(link, "par_hash", hashOf(s.tokens[link-1].sign(t)))
		payload = string(encode(t, s.tokens[link].claims))
	}
	if !strings.Contains(payload, old) {
		t.Fatalf("%s is not in %s", old, payload)
	}
	s.tokens[link].payload = strings.Replace(payload, old, new, 1)
}

// raw is JSON text that no Go value marshals to.
func raw(text string) jsontext.Value { return jsontext.Value(text) }

func scenarios(t testing.TB) []*scenario {
	var all []*scenario
	add := func(id, step, description string, change func(s *scenario)) *scenario {
		s := newScenario()
		s.ID, s.Step, s.Description, s.Expect = id, step, description, "deny"
		if step == "" {
			s.Expect = "permit"
		}
		if change != nil {
			change(s)
		}
		all = append(all, s)
		return s
	}
	setAt := func(link int, claim string, value any) func(*scenario) {
		return func(s *scenario) { s.set(link, claim, value) }
	}

	// What is permitted.
	add("permit-three-links", "", "root, offer and claim", nil)
	add("permit-root-alone", "", "a root is a leaf, too", func(s *scenario) { s.truncate(1, "alice") })
	add("permit-other-spelling", "", "arguments are compared in canonical form", func(s *scenario) {
		s.Args = "{ \"path\" : \"\\u002fa\" }"
	})
	add("permit-optional-present", "", "an optional argument within its constraint", func(s *scenario) {
		s.truncate(2, "gov")
		s.Args = `{"limit":5e1,"path":"/b"}`
	})
	add("permit-empty-map", "", "an empty constraint map accepts every argument", func(s *scenario) {
		s.truncate(1, "alice")
		s.Tool, s.Args = "search", `{"anything":[1,{"deep":null}]}`
	})
	add("permit-unnamed", "", `"*" accepts an argument that is not named`, func(s *scenario) {
		s.truncate(1, "alice")
		s.tools(0)["read_file"].(object)["*"] = object{"constraint_type": "wildcard"}
		s.Args = `{"path":"/a","*":1,"other":true}`
	})
	add("permit-key-in-header", "", "a key in the header is ignored", func(s *scenario) {
		s.tokens[1].header = `{"alg":"Ed25519","jwk":` + string(must(json.Marshal(jwk("mallory")))) + `,"kid":"x","typ":"aat+jwt"}`
	})
	add("permit-unknown-claims", "", "unknown claims and other entries of authorization_details are ignored", func(s *scenario) {
		s.set(1, "handoff", object{"to": "bob"})
		details := s.tokens[1].claims["authorization_details"].([]any)
		s.set(1, "authorization_details", append(details, object{"type": "payment"}, 5))
	})
	add("permit-same-scope", "", "a derivation may narrow nothing", func(s *scenario) {
		s.truncate(2, "gov")
		s.setTools(1, s.tools(0))
	})
	add("permit-audience", "", "one value of aud names the enforcement point, and aat_aud does", func(s *scenario) {
		s.set(0, "aud", []any{"https://other.example.com", guardURI})
		s.set(2, "aud", guardURI)
		s.pop.claims["aat_aud"] = guardURI
		s.Options.RequireAudience, s.Options.RequirePoPAudience = true, true
	})
	add("permit-nonce", "", "a nonce that was issued", func(s *scenario) {
		s.pop.claims["nonce"] = "n-1"
		s.Options.Nonces = []string{"n-1"}
		s.Options.AcceptedIDs = []string{"another"}
	})
	add("permit-skew", "", "iat at the end of the skew, PoP at the end of the window, exp in the next second", func(s *scenario) {
		s.truncate(1, "alice")
		s.set(0, "iat", now+30)
		s.set(0, "exp", now+31)
		s.pop.claims["iat"] = now - 30
	})
	add("permit-not-canonical", "", "a payload may be spelled in any way", func(s *scenario) {
		s.truncate(1, "alice")
		s.tokens[0].payload = string(must(json.Marshal(s.tokens[0].claims, jsontext.WithIndent(" "), json.Deterministic(true))))
	})

	add("permit-prefix", "", "a prefix of a chain is a chain: whoever holds the link that it ends with presents it", func(s *scenario) {
		s.pop.claims["aat_id"] = s.tokens[1].claims["jti"]
		s.pop.signer = "gov"
		s.after = func(v *vector) {
			v.Chain = v.Chain[:2]
			s.pop.claims["aat_hash"] = hashOf(v.Chain[1])
			v.PoP = s.pop.sign(t)
		}
	})
	add("permit-cnf-other-member", "", "cnf may have other members beside jwk", func(s *scenario) {
		s.set(1, "cnf", object{"jwk": jwk("gov"), "kid": "k"})
	})
	add("permit-type-escaped", "", "the type of the capability entry is compared as a string, however it is spelled", func(s *scenario) {
		s.truncate(1, "alice")
		s.respell(t, 0, `"type":"attenuating_agent_token"`, `"type":"\u0061ttenuating_agent_token"`)
	})
	for what, args := range map[string]string{
		"utf16":      "{\"\uFB33\":1,\"\U0001F600\":2}", // in the order of code points, which is not that of RFC 8785
		"minus-zero": `{"a":-0,"b":[-0.0]}`,
	} {
		add("permit-hta-"+what, "", "hta is the arguments in canonical form, which are "+args, func(s *scenario) {
			s.truncate(1, "alice")
			s.Tool, s.Args = "search", args
			canonical := must(jcs.Canonical([]byte(args)))
			if bytes.Equal(canonical, []byte(args)) {
				t.Fatalf("%s is canonical already", args)
			}
			s.pop.claims["hta"] = raw(string(canonical))
		})
	}

	// What a child may do with its parent's arguments (section 4.5).
	wild := object{"constraint_type": "wildcard"}
	optional := func(c object) object {
		c = maps.Clone(c)
		c["optional"] = true
		return c
	}
	exactA := object{"constraint_type": "exact", "value": "/a"}
	for _, c := range []struct {
		step, what, description string
		parent, child           object
	}{
		{"", "star", `"*" below "*"`, object{"path": wild, "*": wild}, object{"path": wild, "*": wild}},
		{"", "star-dropped", `a closed map below "*"`, object{"path": wild, "*": wild}, object{"path": wild}},
		{"", "star-named", `an argument named that the parent has under "*"`, object{"*": wild}, object{"path": exactA}},
		{"", "star-spelled", `"*" alone below an empty map, which means the same`, object{}, object{"*": wild}},
		{"", "star-empty", `an empty map below "*" alone, which means the same`, object{"*": wild}, object{}},
		{"", "empty-named", "an argument named below an empty map", object{}, object{"path": exactA}},
		{"", "optional-required", "an optional argument becomes required", object{"path": optional(wild)}, object{"path": exactA}},
		{"", "optional-stays", "an optional argument stays so", object{"path": optional(wild)}, object{"path": optional(exactA)}},
		{"", "optional-omitted", "an optional argument is omitted", object{"path": wild, "x": optional(wild)}, object{"path": exactA}},
		{"", "optional-below-star", `an optional argument named below "*"`, object{"*": wild}, object{"path": optional(exactA)}},
		{"4p2", "empty-below-optional", "an empty map below optional arguments only", object{"path": optional(exactA)}, object{}},
		{"4p2", "star-below-optional", `"*" below optional arguments only`, object{"path": optional(exactA)}, object{"*": wild}},
		{"4p2", "star-hides-required", `a required argument is only under "*"`, object{"path": exactA, "*": wild}, object{"*": wild}},
		{"4p2", "omitted-required", "a required argument is omitted beside another", object{"path": exactA, "x": wild}, object{"path": exactA}},
		{"4p3", "optional-below-required", "a required argument becomes optional, and narrower", object{"path": wild}, object{"path": optional(exactA)}},
	} {
		id, invariant := "permit-key-"+c.what, ""
		if c.step != "" {
			id, invariant = "deny-"+c.step+"-key-"+c.what, "I4"
		}
		add(id, c.step, c.description, func(s *scenario) {
			s.truncate(2, "gov")
			s.setTools(0, object{"read_file": c.parent})
			s.setTools(1, object{"read_file": c.child})
		}).Invariant = invariant
	}
	add("permit-same-times", "", "a child with its parent's iat and exp, and the last depth that there may be", func(s *scenario) {
		for i := range s.tokens {
			s.set(i, "iat", now-100)
			s.set(i, "exp", now+1000)
			s.set(i, "del_max_depth", 2)
		}
	})
	add("permit-skew-child", "", "iat of a child at the end of the skew, PoP at the other end of the window", func(s *scenario) {
		s.set(2, "iat", now+30)
		s.pop.claims["iat"] = now + 30
	})
	add("permit-lifetime", "", "a lifetime of 90 days", setAt(0, "exp", now-100+90*86400))
	add("permit-max-depth", "", "del_max_depth is 32 all the way", func(s *scenario) {
		for i := range s.tokens {
			s.set(i, "del_max_depth", 32)
		}
	})
	add("permit-minus-zero", "", "-0 is an integer, and 0", func(s *scenario) { s.set(0, "del_depth", raw("-0")) })
	add("permit-optional-false", "", `"optional":false says nothing new`, func(s *scenario) {
		s.tools(1)["read_file"].(object)["path"].(object)["optional"] = false
	})
	add("permit-audience-arrays", "", "every link has aud, each names the enforcement point in its way", func(s *scenario) {
		s.set(0, "aud", []any{guardURI, guardURI})
		s.set(1, "aud", []any{"https://other.example.com", "", guardURI})
		s.set(2, "aud", []any{guardURI})
		s.Options.RequireAudience = true
	})
	add("permit-audience-second", "", "the enforcement point has two names", func(s *scenario) {
		s.set(0, "aud", guardURI)
		s.set(1, "aud", "urn:tools")
		s.pop.claims["aat_aud"] = "urn:tools"
		s.Audience = append(s.Audience, "urn:tools")
	})
	add("permit-hta-rounded", "", "hta in canonical form is the arguments, whatever its digits were", func(s *scenario) {
		s.truncate(1, "alice")
		s.Tool, s.Args = "search", `{"n":9007199254740992}`
		s.pop.claims["hta"] = raw(`{"n":9007199254740993}`)
	})
	add("permit-depth-32", "", "constraints that nest as deep as they may", func(s *scenario) {
		deep := any(wild)
		for range aat.MaxConstraintDepth - 1 {
			deep = object{"constraint_type": "all", "constraints": []any{deep}}
		}
		s.truncate(1, "alice")
		s.setTools(0, object{"read_file": object{"path": deep}})
	})

	// Step 1 and 2.
	add("deny-1-empty", "1", "no chain", func(s *scenario) { s.after = func(v *vector) { v.Chain = []string{} } })
	add("deny-2a-token-size", "2a", "a token above the limit", func(s *scenario) { s.Options.MaxTokenSize = 512 })
	add("deny-2b-chain-size", "2b", "a chain above the limit", func(s *scenario) { s.Options.MaxChainSize = 1024 })
	add("deny-2c-twice", "2c", "the same token twice", func(s *scenario) {
		s.after = func(v *vector) { v.Chain = append(v.Chain, v.Chain[0]) }
	}).Invariant = "I2"
	add("deny-2c-same-jti", "2c", "two tokens with one jti", func(s *scenario) { s.set(2, "jti", s.tokens[0].claims["jti"]) })
	add("deny-2c-no-jti", "2c", "no jti", setAt(2, "jti", nil))
	add("deny-2c-jti-number", "2c", "jti is a number", setAt(0, "jti", 7))
	add("deny-2c-segments", "2c", "two segments", func(s *scenario) {
		s.after = func(v *vector) { v.Chain[1] = v.Chain[1][:strings.LastIndexByte(v.Chain[1], '.')] }
	})
	add("deny-2c-padding", "2c", "base64url with padding in the payload", func(s *scenario) {
		s.after = func(v *vector) { v.Chain[1] = strings.Replace(v.Chain[1], ".", ".=", 1) }
	})

	// Steps 3 and 4, what they share: header, signature, and the claims as JSON.
	for _, at := range []struct {
		link                                int
		header, signature, id, cnf, entries string
		constraints                         string
	}{
		{0, "3a", "3b", "3j", "3l", "3m", "3n"},
		{1, "4a", "4b", "4b1", "4b2", "4n", "4o"},
	} {
		name := func(step, what string) string { return "deny-" + step + "-" + what }
		for what, header := range map[string]string{
			"alg-none": `{"alg":"none","typ":"aat+jwt"}`, "alg-eddsa": `{"alg":"EdDSA","typ":"aat+jwt"}`,
			"alg-hs256": `{"alg":"HS256","typ":"aat+jwt"}`, "alg-missing": `{"typ":"aat+jwt"}`,
			"typ-missing": `{"alg":"Ed25519"}`, "typ-pop": `{"alg":"Ed25519","typ":"aat-pop+jwt"}`,
			"typ-case": `{"alg":"Ed25519","typ":"AAT+JWT"}`,
			"crit":     `{"alg":"Ed25519","crit":["exp"],"typ":"aat+jwt"}`, "twice": `{"alg":"Ed25519","alg":"Ed25519","typ":"aat+jwt"}`,
			"crit-empty": `{"alg":"Ed25519","crit":[],"typ":"aat+jwt"}`, "crit-null": `{"alg":"Ed25519","crit":null,"typ":"aat+jwt"}`,
		} {
			add(name(at.header, "header-"+what), at.header, "header "+header, func(s *scenario) { s.tokens[at.link].header = header })
		}
		add(name(at.signature, "signer"), at.signature, "signed by another key", func(s *scenario) {
			s.tokens[at.link].signer = "mallory"
		}).Invariant = "I1"
		add(name(at.signature, "tampered"), at.signature, "one bit of the signature flipped", func(s *scenario) {
			s.after = func(v *vector) { v.Chain[at.link] = flipSignature(v.Chain[at.link]) }
		})
		add(name(at.signature, "duplicate"), at.signature, "a claim twice, in a payload that its holder signed", func(s *scenario) {
			claims := maps.Clone(s.tokens[at.link].claims)
			s.tokens[at.link].payload = `{"iat":1,` + string(must(jcs.Marshal(claims)))[1:]
		})
		tool := fmt.Sprintf(`{"read_file":{},%s`, string(encode(t, newScenario().tools(at.link)))[1:])
		for what, change := range map[string][2]string{
			"duplicate-tool":         {`"tools":` + string(encode(t, newScenario().tools(at.link))), `"tools":` + tool},
			"duplicate-tool-escaped": {`"tools":` + string(encode(t, newScenario().tools(at.link))), `"tools":` + strings.Replace(tool, "read", `re\u0061d`, 1)},
			"duplicate-argument":     {`"path":`, `"path":{"constraint_type":"wildcard"},"path":`},
			"duplicate-in-jwk":       {`"crv":"Ed25519"`, `"crv":"Ed25519","crv":"Ed25519"`},
			"duplicate-type":         {`"type":"attenuating_agent_token"`, `"type":"attenuating_agent_token","type":"x"`},
			"duplicate-elsewhere":    {`"cnf":`, `"x":[{"a":1,"\u0061":1}],"cnf":`},
		} {
			add(name(at.signature, what), at.signature, "a member twice in an object within the claims: "+what, func(s *scenario) {
				s.respell(t, at.link, change[0], change[1])
			})
		}
		add(name(at.signature, "trailing"), at.signature, "data after the claims", func(s *scenario) {
			s.tokens[at.link].payload = string(must(jcs.Marshal(s.tokens[at.link].claims))) + " {}"
		})
		add(name(at.id, "jti-empty"), at.id, "jti is empty", setAt(at.link, "jti", ""))
		x := jwk("bob").X
		notCanonical := append([]byte{0xf0}, append(bytes.Repeat([]byte{0xff}, 30), 0x7f)...) // y = p + 3
		for what, key := range map[string]any{
			"missing": object{}, "private": object{"kty": "OKP", "crv": "Ed25519", "x": x, "d": x},
			"kid":   object{"kty": "OKP", "crv": "Ed25519", "x": x, "kid": "k"},
			"curve": object{"kty": "OKP", "crv": "X25519", "x": x}, "short": object{"kty": "OKP", "crv": "Ed25519", "x": x[:40]},
			"small-order":   object{"kty": "OKP", "crv": "Ed25519", "x": b64(append([]byte{1}, make([]byte, 31)...))},
			"not-canonical": object{"kty": "OKP", "crv": "Ed25519", "x": b64(notCanonical)},
		} {
			value := any(object{"jwk": key})
			if what == "missing" {
				value = key
			}
			add(name(at.cnf, "cnf-"+what), at.cnf, "cnf.jwk: "+what, setAt(at.link, "cnf", value))
		}
		entry := object{"type": "attenuating_agent_token", "tools": object{}}
		add(name(at.entries, "two"), at.entries, "two capability entries", setAt(at.link, "authorization_details", []any{entry, entry}))
		add(name(at.entries, "no-tools"), at.entries, "an entry without tools",
			setAt(at.link, "authorization_details", []any{object{"type": "attenuating_agent_token"}}))
		add(name(at.entries, "tools-array"), at.entries, "tools is an array", func(s *scenario) { s.setTools(at.link, []any{}) })
		add(name(at.entries, "tool-null"), at.entries, "a tool's value is null; another's constraint is unknown, which comes later",
			func(s *scenario) {
				s.setTools(at.link, object{"a": object{"x": object{"constraint_type": "regex"}}, "b": raw("null")})
			})
		deep := any(object{"constraint_type": "wildcard"})
		for range aat.MaxConstraintDepth {
			deep = object{"constraint_type": "any", "constraints": []any{deep}}
		}
		for _, c := range []struct {
			what string
			json any
		}{
			{"unknown-type", object{"constraint_type": "regex", "pattern": ".*"}},
			{"no-type", object{}},
			{"not-object", "wildcard"},
			{"unknown-member", object{"constraint_type": "wildcard", "note": "x"}},
			{"foreign-member", object{"constraint_type": "exact", "value": 1, "values": []any{1}}},
			{"exact-object", object{"constraint_type": "exact", "value": object{}}},
			{"exact-missing", object{"constraint_type": "exact"}},
			{"one-of-empty", object{"constraint_type": "one_of", "values": []any{}}},
			{"subset-not-array", object{"constraint_type": "subset", "allowed": "a"}},
			{"all-empty", object{"constraint_type": "all", "constraints": []any{}}},
			{"any-empty", object{"constraint_type": "any", "constraints": []any{}}},
			{"too-deep", deep},
			{"all-empty-deep", object{"constraint_type": "any", "constraints": []any{
				object{"constraint_type": "all", "constraints": []any{}}}}},
			{"unknown-deep", object{"constraint_type": "all", "constraints": []any{
				object{"constraint_type": "any", "constraints": []any{object{"constraint_type": "regex"}}}}}},
			{"optional-null", object{"constraint_type": "wildcard", "optional": raw("null")}},
			{"range-null", object{"constraint_type": "range", "min": raw("null")}},
			{"range-boolean", object{"constraint_type": "range", "max": true}},
			{"range-2-53", object{"constraint_type": "range", "max": raw("9007199254740993")}},
			{"number-deep", object{"constraint_type": "not_one_of", "excluded": []any{object{"a": []any{raw("9007199254740993")}}}}},
			{"range-reversed", object{"constraint_type": "range", "min": 2, "max": 1}},
			{"range-string", object{"constraint_type": "range", "min": "2"}},
			{"range-inclusive-alone", object{"constraint_type": "range", "min": 1, "max_inclusive": true}},
			{"range-inclusive-number", object{"constraint_type": "range", "min": 1, "min_inclusive": 1}},
			{"number-not-exact", object{"constraint_type": "exact", "value": raw("9007199254740993")}},
			{"number-too-long", object{"constraint_type": "range", "max": raw("1.00000000000000001")}},
			{"number-overflow", object{"constraint_type": "one_of", "values": []any{raw("[1e400]")}}},
			{"optional-string", object{"constraint_type": "wildcard", "optional": "true"}},
			{"optional-nested", object{"constraint_type": "any", "constraints": []any{
				object{"constraint_type": "wildcard", "optional": false}}}},
			{"null-clause", object{"constraint_type": "all", "constraints": []any{raw("null")}}},
		} {
			add(name(at.constraints, c.what), at.constraints, "an ill-formed constraint", func(s *scenario) {
				tools := maps.Clone(s.tools(at.link))
				tools["search"] = object{"q": c.json}
				s.setTools(at.link, tools)
			})
		}
		for what, c := range map[string]object{
			"unnamed-exact":    {"constraint_type": "exact", "value": 1},
			"unnamed-optional": {"constraint_type": "wildcard", "optional": false},
		} {
			add(name(at.constraints, what), at.constraints, `"*" is not a plain wildcard`, func(s *scenario) {
				s.setTools(at.link, object{"search": object{"*": c}})
			})
		}
	}

	// Step 3.
	add("deny-3b-iat-missing", "3b", "no iat", setAt(0, "iat", nil))
	add("deny-3b-exp-string", "3b", "exp is a string", setAt(0, "exp", "later"))
	add("deny-3b-exp-exponent", "3b", "exp has an exponent", func(s *scenario) {
		s.truncate(1, "alice")
		s.set(0, "exp", raw("17416010e2"))
	})
	add("deny-3b-iat-exponent", "3b", "iat has an exponent", setAt(0, "iat", raw("17415999e2")))
	add("deny-3b-surrogate", "3b", "half a character in a claim that nobody knows", func(s *scenario) {
		s.respell(t, 0, `-000000000000"`, `-000000000000","x":"\ud83dx"`)
	})
	add("deny-3i-exponent", "3i", "del_max_depth is 4e0", setAt(0, "del_max_depth", raw("4e0")))
	add("deny-3c-false", "3c", "del_depth is false", setAt(0, "del_depth", false))
	add("deny-3c-depth", "3c", "a root with depth 1", setAt(0, "del_depth", 1)).Invariant = "I2"
	add("deny-3c-missing", "3c", "no del_depth", setAt(0, "del_depth", nil))
	add("deny-3c-fraction", "3c", "del_depth is 0.0", setAt(0, "del_depth", raw("0.0")))
	add("deny-3d-null", "3d", "a root with par_hash null", setAt(0, "par_hash", raw("null")))
	add("deny-3d-par-hash", "3d", "a root with par_hash", setAt(0, "par_hash", "x"))
	add("deny-3e-expired", "3e", "exp is now", setAt(0, "exp", now)).Invariant = "I3"
	add("deny-3f-future", "3f", "iat beyond the skew", setAt(0, "iat", now+31))
	add("deny-3g-lifetime", "3g", "exp before iat, both within what 3e and 3f allow", func(s *scenario) {
		s.set(0, "iat", now+20)
		s.set(0, "exp", now+10)
	})
	add("deny-3h-lifetime", "3h", "a lifetime of a second above 90 days", setAt(0, "exp", now-100+90*86400+1))
	add("deny-3i-missing", "3i", "no del_max_depth", setAt(0, "del_max_depth", nil))
	add("deny-3i-limit", "3i", "del_max_depth beyond the limit", setAt(0, "del_max_depth", 33)).Invariant = "I2"
	add("deny-3i-negative", "3i", "del_max_depth is negative", setAt(0, "del_max_depth", -1))
	add("deny-3k-issuer", "3k", "the anchor's key under another issuer", setAt(0, "iss", "https://other.example.com"))
	add("deny-3k-not-uri", "3k", "the issuer is no URI, even if configured so", func(s *scenario) {
		s.set(0, "iss", "issuer")
		s.Anchors = append(s.Anchors, anchor{"issuer", jwk("issuer")})
	})
	add("deny-3k-missing", "3k", "no iss", setAt(0, "iss", nil))
	add("deny-3m-none", "3m", "a root without a capability entry", setAt(0, "authorization_details", []any{}))

	// Step 4.
	add("deny-4b-wrong-order", "4b", "links in the wrong order", func(s *scenario) {
		s.after = func(v *vector) { v.Chain[1], v.Chain[2] = v.Chain[2], v.Chain[1] }
	}).Invariant = "I1"
	add("deny-4b3-missing", "4b3", "no authorization_details", setAt(1, "authorization_details", nil))
	add("deny-4b4-depth", "4b4", "del_depth is a string", setAt(1, "del_depth", "1"))
	add("deny-4b4-exponent", "4b4", "del_depth is 1e0", setAt(1, "del_depth", raw("1e0")))
	add("deny-4b4-negative", "4b4", "del_max_depth is negative", setAt(1, "del_max_depth", -1))
	add("deny-4b4-max-depth", "4b4", "no del_max_depth", setAt(1, "del_max_depth", nil))
	add("deny-4b5-iss", "4b5", "no iss", setAt(1, "iss", nil))
	add("deny-4b5-par-hash", "4b5", "par_hash is a number", setAt(1, "par_hash", 1))
	add("deny-4b5-iat-exponent", "4b5", "iat has an exponent", setAt(1, "iat", raw("17415999e2")))
	add("deny-4b5-exp-fraction", "4b5", "exp has a fraction", setAt(1, "exp", raw(fmt.Sprint(now+999, ".0"))))
	add("deny-4b5-iat", "4b5", "no iat", setAt(1, "iat", nil))
	add("deny-4c-iss", "4c", "iss names another key", setAt(1, "iss", jwk("gov").ThumbprintURI())).Invariant = "I1"
	add("deny-4d-skipped", "4d", "a depth is skipped", setAt(1, "del_depth", 2)).Invariant = "I2"
	add("deny-4e-terminal", "4e", "the parent may have no children", setAt(0, "del_max_depth", 0)).Invariant = "I2"
	add("deny-4g-raised", "4g", "del_max_depth is raised", setAt(1, "del_max_depth", 5)).Invariant = "I2"
	add("deny-4h-outlives", "4h", "exp is after the parent's", setAt(1, "exp", now+1001)).Invariant = "I3"
	add("deny-4i-expired", "4i", "a link in the middle has expired", setAt(1, "exp", now)).Invariant = "I3"
	add("deny-4j-earlier", "4j", "iat is before the parent's", setAt(1, "iat", now-101)).Invariant = "I3"
	add("deny-4k-future", "4k", "iat beyond the skew", setAt(1, "iat", now+31)).Invariant = "I3"
	add("deny-4l-lifetime", "4l", "exp before iat", func(s *scenario) {
		s.set(1, "iat", now+20)
		s.set(1, "exp", now+10)
	}).Invariant = "I3"
	add("deny-4m-max-depth", "4m", "del_max_depth below del_depth", setAt(1, "del_max_depth", 0)).Invariant = "I2"
	add("deny-4p1-tool", "4p1", "a tool that the parent has not", func(s *scenario) {
		s.tools(1)["write_file"] = object{}
	}).Invariant = "I4"
	add("deny-4p1-from-nothing", "4p1", "a tool below a link that grants nothing", func(s *scenario) {
		s.set(1, "authorization_details", []any{})
	}).Invariant = "I4"
	add("deny-4p2-empty", "4p2", "an empty map below a closed one", func(s *scenario) {
		s.tools(1)["read_file"] = object{}
	}).Invariant = "I4"
	add("deny-4p2-star", "4p2", `"*" below a closed map`, func(s *scenario) {
		s.tools(1)["read_file"].(object)["*"] = object{"constraint_type": "wildcard"}
	}).Invariant = "I4"
	add("deny-4p2-new-argument", "4p2", "an argument that the parent forbids", func(s *scenario) {
		s.tools(1)["read_file"].(object)["mode"] = object{"constraint_type": "exact", "value": "r"}
	}).Invariant = "I4"
	add("deny-4p2-dropped-required", "4p2", "a required argument is dropped", func(s *scenario) {
		delete(s.tools(1)["read_file"].(object), "path")
	}).Invariant = "I4"
	add("deny-4p2-dropped-under-star", "4p2", `an optional argument returns under "*"`, func(s *scenario) {
		s.tools(0)["read_file"].(object)["*"] = object{"constraint_type": "wildcard"}
		s.tools(1)["read_file"].(object)["*"] = object{"constraint_type": "wildcard"}
		delete(s.tools(1)["read_file"].(object), "limit")
	}).Invariant = "I4"
	add("deny-4p3-optional", "4p3", "a required argument becomes optional", func(s *scenario) {
		s.tools(1)["read_file"].(object)["path"].(object)["optional"] = true
	}).Invariant = "I4"
	for _, pair := range pairs {
		if pair.valid {
			add("permit-pair-"+pair.name, "", "the pair table of section 4.5", pair.apply)
		} else {
			add("deny-4p4-"+pair.name, "4p4", "the pair table of section 4.5", pair.apply).Invariant = "I4"
		}
	}
	add("deny-4q-substituted", "4q", "the hash of another parent", func(s *scenario) {
		s.set(1, "par_hash", b64(make([]byte, 32)))
	}).Invariant = "I5"
	add("deny-4q-other-root", "4q", "a link is moved below another root, with more authority, that the same key holds", func(s *scenario) {
		own := newScenario()
		s.set(1, "par_hash", hashOf(own.tokens[0].sign(t)))
		s.set(0, "jti", "01957a3f-4e23-7b01-a9d1-000000000009")
		s.tools(0)["write_file"] = object{}
	}).Invariant = "I5"
	add("deny-4q-payload", "4q", "par_hash is over the parent's payload alone, not its signing input", func(s *scenario) {
		sum := sha256.Sum256(encode(t, s.tokens[0].claims))
		s.set(1, "par_hash", b64(sum[:]))
	}).Invariant = "I5"
	add("deny-4q-token", "4q", "par_hash is over the whole parent, its signature too", func(s *scenario) {
		sum := sha256.Sum256([]byte(s.tokens[0].sign(t)))
		s.set(1, "par_hash", b64(sum[:]))
	}).Invariant = "I5"
	add("deny-4q-grandparent", "4q", "par_hash names the grandparent", func(s *scenario) {
		s.set(2, "par_hash", hashOf(s.tokens[0].sign(t)))
	}).Invariant = "I5"

	// Integers are integers however large, and exceed the limit that the claim has (a verifier must not wrap them around).
	for _, c := range []struct {
		step        string
		link        int
		claim, text string
	}{
		{"3f", 0, "iat", "99999999999999999999"}, {"3h", 0, "exp", "99999999999999999999"},
		{"3i", 0, "del_max_depth", "4294967300"}, {"4d", 1, "del_depth", "4294967297"},
		{"4g", 1, "del_max_depth", "18446744073709551620"}, {"4h", 1, "exp", "18446744073709551617"},
		{"4j", 1, "iat", "-99999999999999999999"}, {"4k", 1, "iat", "9223372036854775808"},
	} {
		add("deny-"+c.step+"-large-"+strings.ReplaceAll(c.claim, "_", "-"), c.step, c.claim+" is "+c.text, setAt(c.link, c.claim, raw(c.text)))
	}
	add("deny-3e-large", "3e", "exp is long before all time that fits", setAt(0, "exp", raw("-99999999999999999999")))
	add("deny-7g-large", "7g", "iat of the proof is 2^64 + now", func(s *scenario) {
		s.pop.claims["iat"] = raw("18446744075451151616")
	})

	// Step 6.
	add("deny-6a-no-entry", "6a", "a leaf without a capability entry", func(s *scenario) { s.set(2, "authorization_details", []any{}) })
	add("deny-6b-tool", "6b", "a tool that the leaf has not", func(s *scenario) { s.Tool = "search" })
	for what, args := range map[string]string{
		"value": `{"path":"/b"}`, "unnamed": `{"path":"/a","x":1}`, "missing": `{}`, "not-object": `["path"]`,
		"type": `{"path":["/a"]}`, "twice": `{"path":"/b","path":"/a"}`, "trailing": `{"path":"/a"} 1`,
	} {
		add("deny-6b-"+what, "6b", "arguments "+args, func(s *scenario) { s.Args = args })
	}
	add("deny-6b-star-argument", "6b", `an argument called "*" is one that is not named`, func(s *scenario) {
		s.Args = `{"path":"/a","*":1}`
	})
	for _, c := range []struct {
		what, constraint string
		in, out          []string // values that are within, and that are not
	}{
		{"exact", `{"constraint_type":"exact","value":"x"}`, []string{`"x"`, `"\u0078"`}, []string{`"y"`, `["x"]`, `"X"`}},
		{"exact-zero", `{"constraint_type":"exact","value":0}`, []string{`0`, `-0`, `0.0`}, []string{`"0"`, `false`, `1e-300`}},
		{"range", `{"constraint_type":"range","min":1,"max":5}`, []string{`1`, `5`, `1.0`, `2.5`}, []string{`0.5`, `5.5`, `"2"`, `null`, `[2]`}},
		{"range-exclusive", `{"constraint_type":"range","min":1,"min_inclusive":false,"max":5,"max_inclusive":false}`,
			[]string{`1.5`, `4.5`}, []string{`1`, `5`}},
		{"range-zero", `{"constraint_type":"range","min":-0,"max":0}`, []string{`0`, `-0`}, []string{`-1`, `1`}},
		{"one_of", `{"constraint_type":"one_of","values":["x",1,[1],null]}`, []string{`"x"`, `1.0`, `[1]`, `null`}, []string{`"1"`, `1.5`, `[1,1]`, `{}`}},
		{"not_one_of", `{"constraint_type":"not_one_of","excluded":["x",10]}`, []string{`"y"`, `11`, `["x"]`}, []string{`"x"`, `1e1`}},
		{"contains", `{"constraint_type":"contains","required":["x",1]}`, []string{`[1,"y","x"]`}, []string{`["x"]`, `[]`, `"x"`, `{"x":1}`, `[["x",1]]`}},
		{"subset", `{"constraint_type":"subset","allowed":["x",1]}`, []string{`[]`, `["x","x"]`, `[1]`}, []string{`["x","y"]`, `"x"`, `{}`, `[["x"]]`}},
		{"all", `{"constraint_type":"all","constraints":[{"constraint_type":"range","min":1},{"constraint_type":"not_one_of","excluded":[2]}]}`,
			[]string{`1`, `3`}, []string{`0`, `2`}},
		{"any", `{"constraint_type":"any","constraints":[{"constraint_type":"exact","value":"x"},{"constraint_type":"range","max":1}]}`,
			[]string{`"x"`, `1`}, []string{`2`, `"y"`}},
		{"optional", `{"constraint_type":"exact","optional":true,"value":"x"}`, []string{`"x"`}, []string{`"y"`, `null`}},
		{"all-of-any", `{"constraint_type":"all","constraints":[{"constraint_type":"any","constraints":[` +
			`{"constraint_type":"range","max":1},{"constraint_type":"range","min":5}]},{"constraint_type":"not_one_of","excluded":[7]}]}`,
			[]string{`1`, `5`, `8`}, []string{`3`, `7`, `"8"`}},
		{"any-of-all", `{"constraint_type":"any","constraints":[{"constraint_type":"all","constraints":[` +
			`{"constraint_type":"contains","required":["x"]},{"constraint_type":"subset","allowed":["x","y"]}]},` +
			`{"constraint_type":"exact","value":null}]}`,
			[]string{`["x"]`, `["y","x"]`, `null`}, []string{`["y"]`, `["x","z"]`, `[]`, `"x"`}},
		{"range-open", `{"constraint_type":"range"}`, []string{`0`, `-1.7976931348623157e308`}, []string{`"0"`, `true`, `null`}},
		{"range-min", `{"constraint_type":"range","min":0.1}`, []string{`0.1`, `1e-1`, `1e300`}, []string{`0.09999999999999999`, `-1`}},
		{"range-point", `{"constraint_type":"range","min":1,"max":1.0}`, []string{`1`, `10e-1`}, []string{`1.0000000000000002`, `0`}},
		{"range-nothing", `{"constraint_type":"range","min":1,"max":1,"max_inclusive":false}`, nil, []string{`1`, `0`}},
		{"range-inclusive", `{"constraint_type":"range","min":1,"min_inclusive":true,"max":2,"max_inclusive":true}`,
			[]string{`1`, `2`}, []string{`0`, `3`}},
		{"range-2-53", `{"constraint_type":"range","min":-9007199254740992,"max":9007199254740992}`,
			[]string{`9007199254740991`, `9007199254740992`, `-9007199254740992`, `9.007199254740992e15`},
			[]string{`9007199254740993`, `9007199254740994`, `-9007199254740993`, `-9007199254740994`}},
		{"exact-2-53", `{"constraint_type":"exact","value":9007199254740992}`,
			[]string{`9007199254740992`, `9007199254740992.0`, `9007199254740992e0`, `900719925474099200E-2`},
			[]string{`9007199254740993`, `9007199254740991`, `"9007199254740992"`}},
		{"exponents", `{"constraint_type":"one_of","values":[1e2,0.1,1E+20,12.5e-1]}`,
			[]string{`100`, `100.0`, `1e+2`, `10E1`, `1e-1`, `100000000000000000000`, `1.25`},
			[]string{`1e3`, `0.10000000000000002`, `1e21`, `125`}},
		{"any-number", `{"constraint_type":"wildcard"}`,
			[]string{`0.1`, `1e20`, `9007199254740994`, `1.7976931348623157e308`, `5e-324`, `0e999999999`},
			[]string{`1.00000000000000001`, `9007199254740993`, `1e400`, `-1e400`, `1e-400`, `4e-324`, `1.7976931348623158e308`,
				`1e999999999999`}},
		{"normal-form", "{\"constraint_type\":\"exact\",\"value\":\"caf\u00e9\"}", []string{`"caf\u00e9"`}, []string{"\"cafe\u0301\""}},
	} {
		for id, values := range map[string][]string{"permit-6b-": c.in, "deny-6b-": c.out} {
			step := ""
			if id == "deny-6b-" {
				step = "6b"
			}
			for i, value := range values {
				add(fmt.Sprintf("%s%s-%d", id, c.what, i), step, value+" under "+c.constraint, func(s *scenario) {
					s.truncate(1, "alice")
					s.setTools(0, object{"read_file": object{"v": raw(c.constraint)}})
					s.Args = `{"v":` + value + `}`
				})
			}
		}
	}
	for what, c := range map[string]struct{ tool, argument string }{
		"tool": {"cafe\u0301", "x"}, "argument": {"caf\u00e9", "cafe\u0301"},
	} {
		add("deny-6b-normal-form-"+what, "6b", "a name that looks alike, in another Unicode normal form: "+what, func(s *scenario) {
			s.truncate(1, "alice")
			s.setTools(0, object{"caf\u00e9": object{"x": optional(wild), "caf\u00e9": optional(wild)}})
			s.Tool, s.Args = c.tool, string(encode(t, object{c.argument: 1}))
		})
	}
	for what, args := range map[string]string{
		"collision": `{"q":9007199254740993}`, "nested": `{"q":{"deep":[1.00000000000000001]}}`,
	} {
		add("deny-6b-number-"+what, "6b", "a number that is no double, in arguments of any kind: "+args, func(s *scenario) {
			s.truncate(1, "alice")
			s.Tool, s.Args = "search", args
		})
	}
	add("deny-6c-root", "6c", "the root is for another enforcement point", setAt(0, "aud", "https://other.example.com"))
	add("deny-6c-middle", "6c", "a middle link is for another enforcement point", func(s *scenario) {
		s.set(0, "aud", guardURI)
		s.set(1, "aud", []any{"https://other.example.com"})
	})
	add("deny-6c-null", "6c", "aud is null", setAt(1, "aud", raw("null")))
	add("deny-6c-empty", "6c", "aud is an empty array", setAt(1, "aud", []any{}))
	add("deny-6c-number", "6c", "aud is a number", setAt(1, "aud", 5))
	add("deny-6c-null-in-array", "6c", "aud is an array with something else in it", setAt(1, "aud", []any{guardURI, raw("null")}))
	for what, aud := range map[string]any{
		"nested": []any{[]any{guardURI}}, "case": strings.ToUpper(guardURI), "slash": guardURI + "/", "object": object{guardURI: true},
		"others": []any{"https://other.example.com", "x"}, "number-in-array": []any{1, guardURI},
	} {
		add("deny-6c-"+what, "6c", "aud is "+string(encode(t, aud)), setAt(1, "aud", aud))
	}
	add("deny-6c-required", "6c", "no link has aud", func(s *scenario) { s.Options.RequireAudience = true })

	// Step 7.
	setPoP := func(claim string, value any) func(*scenario) {
		return func(s *scenario) { s.pop.claims[claim] = value }
	}
	add("deny-7a-typ", "7a", "a token instead of a proof", func(s *scenario) { s.pop.header = `{"alg":"Ed25519","typ":"aat+jwt"}` })
	for what, header := range map[string]string{
		"alg": `{"alg":"none","typ":"aat-pop+jwt"}`, "alg-eddsa": `{"alg":"EdDSA","typ":"aat-pop+jwt"}`,
		"alg-missing": `{"typ":"aat-pop+jwt"}`, "typ-missing": `{"alg":"Ed25519"}`, "typ-null": `{"alg":"Ed25519","typ":null}`,
		"crit": `{"alg":"Ed25519","crit":["x"],"typ":"aat-pop+jwt","x":1}`, "crit-empty": `{"alg":"Ed25519","crit":[],"typ":"aat-pop+jwt"}`,
		"twice": `{"alg":"none","alg":"Ed25519","typ":"aat-pop+jwt"}`,
	} {
		add("deny-7a-"+what, "7a", "header "+header, func(s *scenario) { s.pop.header = header })
	}
	add("deny-7a-empty", "7a", "no proof", func(s *scenario) { s.after = func(v *vector) { v.PoP = "" } })
	add("deny-7b-holder", "7b", "signed by another key", func(s *scenario) { s.pop.signer = "mallory" }).Invariant = "I6"
	add("deny-7b-before-6b", "7b", "the signature comes before the arguments", func(s *scenario) {
		s.pop.signer, s.Args = "gov", `{"path":"/z"}`
	}).Invariant = "I6"
	add("deny-7b-duplicate", "7b", "a claim twice", func(s *scenario) {
		s.pop.payload = `{"jti":"a","jti":"b"}`
	})
	add("deny-7b-tampered", "7b", "one bit of the signature flipped", func(s *scenario) {
		s.after = func(v *vector) { v.PoP = flipSignature(v.PoP) }
	}).Invariant = "I6"
	add("deny-7b-swapped", "7b", "other claims under the same signature", func(s *scenario) {
		s.after = func(v *vector) {
			s.pop.claims["hta"] = object{"path": "/b"}
			other, own := strings.Split(s.pop.sign(t), "."), strings.Split(v.PoP, ".")
			v.PoP = own[0] + "." + other[1] + "." + own[2]
		}
	}).Invariant = "I6"
	add("deny-7b-duplicate-in-hta", "7b", "an argument twice in hta", func(s *scenario) {
		s.pop.payload = `{"hta":{"path":"/b","path":"/a"},"iat":1}`
	})
	for _, claim := range []string{"jti", "iat", "aat_id", "aat_hash", "aat_tool", "hta"} {
		add("deny-7c-missing-"+strings.ReplaceAll(claim, "_", "-"), "7c", "no "+claim, setPoP(claim, nil))
	}
	add("deny-7c-iat-fraction", "7c", "iat has a fraction", setPoP("iat", raw("1741600000.0")))
	add("deny-7c-iat-exponent", "7c", "iat has an exponent", setPoP("iat", raw("17416e5")))
	add("deny-7f-overflow", "7f", "hta has a number beyond the largest double, the arguments have the largest", func(s *scenario) {
		s.truncate(1, "alice")
		s.Tool, s.Args = "search", `{"n":1.7976931348623157e308}`
		s.pop.claims["hta"] = raw(`{"n":1e400}`)
	})
	add("deny-7b-surrogate", "7b", "half a character in a claim", func(s *scenario) {
		s.pop.payload = `{"jti":"\ud800","iat":1}`
	})
	add("deny-7b-utf8", "7b", "a claim is not UTF-8", func(s *scenario) { s.pop.payload = "{\"jti\":\"\xff\",\"iat\":1}" })
	add("deny-6b-surrogate", "6b", "half a character in an argument", func(s *scenario) {
		s.truncate(1, "alice")
		s.Tool, s.Args = "search", `{"q":"\udc00"}`
	})
	add("deny-7c-sibling", "7c", "for a sibling of the leaf with the same jti and the same holder", func(s *scenario) {
		sibling := newScenario()
		sibling.set(2, "exp", now+500)
		chain := sibling.build(t).Chain
		s.pop.claims["aat_hash"] = hashOf(chain[2])
	}).Invariant = "I6"
	add("deny-7c-parent", "7c", "for the leaf's parent, by the holder of both", func(s *scenario) {
		s.set(1, "cnf", object{"jwk": jwk("bob")})
		s.set(2, "iss", jwk("bob").ThumbprintURI())
		s.tokens[2].signer = "bob"
		parent := newScenario()
		parent.set(1, "cnf", object{"jwk": jwk("bob")})
		parent.truncate(2, "bob")
		s.pop.claims["aat_id"] = s.tokens[1].claims["jti"]
		s.pop.claims["aat_hash"] = hashOf(parent.build(t).Chain[1])
	}).Invariant = "I6"
	add("deny-7c-jti", "7c", "an empty jti", setPoP("jti", ""))
	add("deny-7c-iat", "7c", "iat is a string", setPoP("iat", "now"))
	add("deny-7c-hta", "7c", "hta is an array", setPoP("hta", []any{}))
	add("deny-7c-id", "7c", "for another leaf", setPoP("aat_id", "01957a3f-4e23-7b01-a9d1-000000000000"))
	add("deny-7c-hash", "7c", "for another leaf with the same jti", setPoP("aat_hash", b64(make([]byte, 32)))).Invariant = "I6"
	add("deny-7d-audience", "7d", "for another enforcement point", setPoP("aat_aud", "https://other.example.com"))
	add("deny-7d-null", "7d", "aat_aud is null", setPoP("aat_aud", raw("null")))
	add("deny-7d-array", "7d", "aat_aud is not a string", setPoP("aat_aud", []any{guardURI}))
	add("deny-7d-required", "7d", "no aat_aud", func(s *scenario) { s.Options.RequirePoPAudience = true })
	add("deny-7e-tool", "7e", "for another tool", setPoP("aat_tool", "search"))
	add("deny-7f-arguments", "7f", "for other arguments", setPoP("hta", object{"path": "/b"}))
	add("deny-7f-more", "7f", "for more arguments", setPoP("hta", object{"path": "/a", "x": 1}))
	add("deny-7g-old", "7g", "a second too old", setPoP("iat", now-31))
	add("deny-7g-early", "7g", "a second too early", setPoP("iat", now+31))
	add("deny-7h-missing", "7h", "no nonce", func(s *scenario) { s.Options.Nonces = []string{"n-1"} })
	add("deny-7h-unknown", "7h", "an unknown nonce", func(s *scenario) {
		s.Options.Nonces = []string{"n-1"}
		s.pop.claims["nonce"] = "n-2"
	})
	add("deny-7i-replay", "7i", "accepted before", func(s *scenario) {
		s.Options.AcceptedIDs = []string{s.pop.claims["jti"].(string)}
	})
	slices.SortStableFunc(all, func(a, b *scenario) int { return strings.Compare(a.ID, b.ID) })
	return all
}

func flipSignature(compact string) string {
	dot := strings.LastIndexByte(compact, '.')
	signature, _ := base64.RawURLEncoding.DecodeString(compact[dot+1:])
	signature[0] ^= 1
	return compact[:dot+1] + b64(signature)
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// pair is one cell of the pair table, applied to the root and the offer as argument "v" of tool "t".
type pair struct {
	name          string
	parent, child aat.Constraint
	valid         bool
}

func (p pair) apply(s *scenario) {
	s.truncate(2, "gov")
	s.setTools(0, object{"t": object{"v": p.parent}, "read_file": object{}})
	s.setTools(1, object{"t": object{"v": p.child}, "read_file": object{}})
}

var pairs = pairTable()

func pairTable() []pair {
	num := aat.Range(aat.AtLeast("0"), aat.AtMost("10"))
	kinds := map[string]aat.Constraint{
		"exact": aat.Exact(5), "range": num, "one_of": aat.OneOf(5, 6), "not_one_of": aat.NotOneOf("x"),
		"contains": aat.Contains("x"), "subset": aat.Subset("x"), "wildcard": aat.Wildcard(),
		"all": aat.All(aat.Exact(5)), "any": aat.Any(aat.Exact(5)),
	}
	var out []pair
	add := func(name string, parent, child aat.Constraint, valid bool) {
		out = append(out, pair{name, parent, child, valid})
	}
	// Every pair of types, with values that would make a valid one valid.
	valid := map[string]bool{"range-exact": true, "one_of-exact": true}
	for _, p := range slices.Sorted(maps.Keys(kinds)) {
		for _, c := range slices.Sorted(maps.Keys(kinds)) {
			name := p + "-" + c
			add(name, kinds[p], kinds[c], p == c || p == "wildcard" || valid[name])
		}
	}
	// The conditions.
	add("exact-other", aat.Exact(5), aat.Exact(6), false)
	add("exact-type", aat.Exact(5), aat.Exact("5"), false)
	add("exact-one_of-one", aat.Exact(5), aat.OneOf(5), false)
	add("range-exact-outside", num, aat.Exact(11), false)
	add("range-exact-string", num, aat.Exact("5"), false)
	add("range-tighter", num, aat.Range(aat.MoreThan("0"), aat.AtMost("9.5")), true)
	add("range-min-lower", num, aat.Range(aat.AtLeast("-1"), aat.AtMost("10")), false)
	add("range-max-missing", num, aat.Range(aat.AtLeast("1"), aat.Bound{}), false)
	add("range-includes-end", aat.Range(aat.Bound{}, aat.LessThan("10")), aat.Range(aat.Bound{}, aat.AtMost("10")), false)
	add("range-includes-start", aat.Range(aat.MoreThan("0"), aat.Bound{}), aat.Range(aat.AtLeast("0"), aat.Bound{}), false)
	add("range-open-parent", aat.Range(aat.Bound{}, aat.Bound{}), num, true)
	add("one_of-more", aat.OneOf(5, 6), aat.OneOf(5, 7), false)
	add("one_of-exact-outside", aat.OneOf(5, 6), aat.Exact(7), false)
	add("not_one_of-more", aat.NotOneOf("x"), aat.NotOneOf("x", "y"), true)
	add("not_one_of-fewer", aat.NotOneOf("x", "y"), aat.NotOneOf("x"), false)
	add("contains-more", aat.Contains("x"), aat.Contains("x", "y"), true)
	add("contains-fewer", aat.Contains("x", "y"), aat.Contains("x"), false)
	add("subset-fewer", aat.Subset("x", "y"), aat.Subset(), true)
	add("subset-more", aat.Subset("x"), aat.Subset("x", "y"), false)
	add("all-added", aat.All(num), aat.All(num, aat.NotOneOf(5)), true)
	add("all-one-for-two", aat.All(aat.Wildcard(), aat.Wildcard()), aat.All(aat.Exact(5)), true)
	add("all-dropped", aat.All(num, aat.NotOneOf(5)), aat.All(num), false)
	add("range-exact-min", aat.Range(aat.AtLeast("0"), aat.Bound{}), aat.Exact(0), true)
	add("range-exact-excluded", aat.Range(aat.MoreThan("0"), aat.Bound{}), aat.Exact(0), false)
	add("range-exact-max-excluded", aat.Range(aat.Bound{}, aat.LessThan("1e1")), aat.Exact(10), false)
	add("range-same-excluded", aat.Range(aat.MoreThan("0"), aat.LessThan("1")), aat.Range(aat.MoreThan("0.0"), aat.LessThan("1e0")), true)
	add("range-open-child", num, aat.Range(aat.Bound{}, aat.Bound{}), false)
	add("range-2-53", aat.Range(aat.Bound{}, aat.AtMost("9007199254740992")), aat.Exact(value("9007199254740992")), true)
	add("range-2-53-above", aat.Range(aat.Bound{}, aat.AtMost("9007199254740992")), aat.Exact(value("9007199254740994")), false)
	add("one_of-respelled", aat.OneOf(value("1e2"), "\u0061"), aat.OneOf(value("100.0")), true)
	add("all-of-any-fewer", aat.All(aat.Any(aat.Exact(1), aat.Exact(2))), aat.All(aat.Any(aat.Exact(2))), true)
	add("all-of-any-more", aat.All(aat.Any(aat.Exact(1))), aat.All(aat.Any(aat.Exact(1), aat.Exact(2))), false)
	add("any-of-all-added", aat.Any(aat.All(num)), aat.Any(aat.All(num, aat.NotOneOf(5)), aat.All(num, aat.NotOneOf(6))), true)
	add("any-of-all-dropped", aat.Any(aat.All(num, aat.NotOneOf(5))), aat.Any(aat.All(num)), false)
	add("any-of-wildcard", aat.Any(aat.Wildcard()), aat.Any(aat.All(aat.Any(num))), true)
	add("any-fewer", aat.Any(aat.Exact("pdf"), aat.Exact("csv")), aat.Any(aat.Exact("pdf")), true)
	add("any-cross-type", aat.Any(aat.OneOf("pdf", "csv")), aat.Any(aat.Exact("pdf")), true)
	add("any-more", aat.Any(aat.Exact("pdf")), aat.Any(aat.Exact("pdf"), aat.Exact("docx")), false)
	return out
}
