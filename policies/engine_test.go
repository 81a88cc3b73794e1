package policies

import (
	"bytes"
	"context"
	stdjson "encoding/json"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/fstest"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/santhosh-tekuri/jsonschema/v6"
	"pgregory.net/rapid"

	"github.com/handoff-governor/handoff-governor/handoff/wire"
)

const (
	planner = `{"id":"spiffe://handoff.local/agent/planner","name":"handoff=dlocal=sagent=splanner",
		"path":"/agent/planner","trust_domain":"handoff.local"}`
	reader = `{"id":"spiffe://handoff.local/agent/reader","name":"handoff=dlocal=sagent=sreader",
		"path":"/agent/reader","trust_domain":"handoff.local"}`
	writer = `{"id":"spiffe://handoff.local/agent/writer","name":"handoff=dlocal=sagent=swriter",
		"path":"/agent/writer","trust_domain":"handoff.local"}`
	tools = `{"crm.read":{"id":{"constraint_type":"range","min":1,"max":9}},
		"mail.send":{"to":{"constraint_type":"one_of","values":["a@example.com","b@example.com"]}}}`
	chain = `[{"from":` + planner + `,"to":` + reader + `,"tools":["crm.read","mail.send"],"labels":["pii"]}]`
)

// whole has an input for each entry point that the default bundle allows.
var whole = map[string]string{
	EntrySession: `{"agent":` + planner + `,"principal":{"kind":"human","name":"alice"},"tools":` + tools + `,
		"labels":["pii"],"ttl":3600,"max_hops":4,"budget":{"handoffs":10}}`,
	EntryDecision: `{"stage":"offer","mode":"delegate","sender":` + reader + `,"receiver":` + writer + `,
		"opener":` + planner + `,"principal":{"kind":"human","name":"alice"},"content_type":"text/plain",
		"tools":` + tools + `,"labels":["pii"],"chain":` + chain + `,"depth":1,"max_hops":4,
		"facts":{"deadline_ok":true,"budget_ok":true,"hops_left":2},"approvals":[{"by":"bob"}]}`,
	EntryResult: `{"stage":"result","sender":` + reader + `,"receiver":` + planner + `,"opener":` + planner + `,
		"principal":{"kind":"human","name":"alice"},"status":"completed","content_type":"text/plain",
		"labels":["pii"],"chain":` + chain + `,"approvals":[]}`,
	EntryCall: `{"agent":` + reader + `,"tool":"crm.read","args":{"id":7},"labels":["pii"],"chain":` + chain + `}`,
}

func compileDefault(t testing.TB) *Snapshot {
	t.Helper()
	s, err := Compile(Default(), Config{Timeout: 5 * time.Second, Remember: -1}) // tests share slow machines
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func effect(t testing.TB, s *Snapshot, entry string, input []byte) string {
	t.Helper()
	answer, err := s.Evaluate(context.Background(), entry, input)
	if err != nil {
		return "error"
	}
	a, err := wire.ParseAnswer(answer)
	if err != nil {
		t.Fatalf("Evaluate let pass %s: %v", answer, err)
	}
	return a.Effect
}

// A member that is missing or mistyped, anywhere in the input, is never allowed; and what the schema accepts is whole.
func TestOnlyWholeInputsAreAllowed(t *testing.T) {
	s := compileDefault(t)
	compiler := jsonschema.NewCompiler()
	document, err := jsonschema.UnmarshalJSON(bytes.NewReader(InputSchema))
	if err != nil {
		t.Fatal(err)
	}
	if err := compiler.AddResource("urn:handoff-governor:input", document); err != nil {
		t.Fatal(err)
	}
	for entry, input := range whole {
		schema := compiler.MustCompile("urn:handoff-governor:input#/$defs/" + entry)
		valid := func(v any) bool { return schema.Validate(v) == nil }
		decoded, err := jsonschema.UnmarshalJSON(strings.NewReader(input))
		if err != nil {
			t.Fatal(err)
		}
		if !valid(decoded) {
			t.Fatalf("%s: %v", entry, schema.Validate(decoded))
		}
		if got := effect(t, s, entry, []byte(input)); got != wire.EffectAllow {
			t.Fatalf("%s: the whole input is answered %s", entry, got)
		}
		changes := 0
		mutate(decoded, func(v any) { decoded = v }, func(what string) {
			text, err := stdjson.Marshal(decoded) // jsonschema works on its json.Number
			if err != nil {
				t.Fatal(err)
			}
			changes++
			v, err := decodeValue(text)
			if err != nil {
				t.Fatal(err)
			}
			if wholeInputs[entry](v) && !valid(decoded) {
				t.Errorf("%s: the schema refuses what is whole with %s: %s", entry, what, text)
			}
			if got := effect(t, s, entry, text); got == wire.EffectAllow && !valid(decoded) {
				t.Errorf("%s: allowed with %s: %s", entry, what, text)
			}
			// What the schema accepts beyond that is an identity that does not agree, or a depth.
			if valid(decoded) && !wholeInputs[entry](v) && !beyondSchema.MatchString(what) {
				t.Errorf("%s: the schema accepts what is not whole, with %s: %s", entry, what, text)
			}
		})
		if changes < 100 {
			t.Errorf("%s: only %d changes were tried", entry, changes)
		}
	}
}

var beyondSchema = regexp.MustCompile(`for (spiffe:|/agent|handoff\.local|1$|\[map\[from)`)

// mutate calls visit for each change of each value within v: gone, and of every other type.
func mutate(v any, set func(any), visit func(what string)) {
	for _, other := range []any{nil, true, -1, 1.5, "x", []any{}, []any{7}, map[string]any{}, map[string]any{"x": 7}} {
		set(other)
		visit(fmt.Sprintf("%v for %v", other, v))
	}
	set(v)
	switch v := v.(type) {
	case map[string]any:
		for _, name := range slices.Sorted(maps.Keys(v)) {
			member := v[name]
			delete(v, name)
			visit("no " + name)
			v[name] = member
			mutate(member, func(w any) { v[name] = w }, visit)
		}
	case []any:
		for i, item := range v {
			mutate(item, func(w any) { v[i] = w }, visit)
		}
	}
}

func bundleOf(t testing.TB, rego, data string) *Bundle {
	t.Helper()
	b, err := Load(fstest.MapFS{"policy.rego": {Data: []byte(rego)}, "data.json": {Data: []byte(data)}})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestHostilePolicies(t *testing.T) {
	const allow = `{"effect": "allow", "reasons": []}`
	for name, c := range map[string]struct {
		rego string
		code wire.Code
	}{
		"endless loop":     {`decision := x if { xs := [0,1,2,3,4,5,6,7,8,9]; some a in xs; some b in xs; some c in xs; some d in xs; some e in xs; some f in xs; some g in xs; some h in xs; some i in xs; a+b+c+d+e+f+g+h+i == 1000; x := ` + allow + ` }`, wire.CodePolicyTimeout},
		"huge string":      {`decision := x if { y := input.grow; z := replace(replace(replace(replace(y, "a", y), "a", y), "a", y), "a", y); count(z) > 0; some a in split(z, ""); a == "b"; x := ` + allow + ` }`, wire.CodePolicyTimeout},
		"builtin error":    {`decision := x if { 1 / input.zero == 1; x := ` + allow + ` }`, wire.CodePolicyError},
		"conflict":         {"decision := " + allow + "\ndecision := {\"effect\": \"deny\"} if input.zero == 0", wire.CodePolicyError},
		"undefined":        {`decision := ` + allow + ` if input.zero == 1`, wire.CodePolicyUndefined},
		"no object":        {`decision := true`, wire.CodePolicyAnswer},
		"a set":            {`decision contains "allow"`, wire.CodePolicyAnswer},
		"false":            {`decision := false`, wire.CodePolicyAnswer},
		"no such effect":   {`decision := {"effect": "permit"}`, wire.CodePolicyAnswer},
		"unknown member":   {`decision := {"effect": "allow", "ceilling": {}}`, wire.CodePolicyAnswer},
		"bad constraint":   {`decision := {"effect": "allow", "ceiling": {"t": {"a": {"constraint_type": "regex"}}}}`, wire.CodePolicyAnswer},
		"silent denial":    {`decision := {"effect": "deny", "reasons": []}`, wire.CodePolicyAnswer},
		"number key":       {`decision := {"effect": "allow", 1: 2}`, wire.CodePolicyAnswer},
		"negative ttl":     {`decision := {"effect": "allow", "ttl": -1}`, wire.CodePolicyAnswer},
		"malformed scope":  {`decision := ` + allow + ` if not handoff.subsumes({"t": {"a": {"constraint_type": "x"}}}, {})`, wire.CodePolicyError},
		"malformed permit": {`decision := ` + allow + ` if not handoff.permits({"t": 1}, "t", {})`, wire.CodePolicyError},
	} {
		t.Run(name, func(t *testing.T) {
			limit := 50 * time.Millisecond
			if c.code != wire.CodePolicyTimeout {
				limit = 5 * time.Second
			}
			s, err := Compile(bundleOf(t, "package handoff\n"+c.rego, "{}"), Config{Timeout: limit})
			if err != nil {
				t.Fatal(err)
			}
			began := time.Now()
			answer, err := s.Evaluate(t.Context(), EntryDecision, []byte(`{"zero":0,"grow":"`+strings.Repeat("a", 40)+`"}`))
			if !errors.Is(err, &wire.Error{Code: c.code}) {
				t.Fatalf("got %s, %v; want %s", answer, err, c.code)
			}
			if took := time.Since(began); took > 3*time.Second {
				t.Errorf("it took %v", took)
			}
		})
	}
}

func TestHostileInputs(t *testing.T) {
	s := compileDefault(t)
	for name, input := range map[string]string{
		"empty":           ``,
		"not JSON":        `{`,
		"two values":      `{} {}`,
		"repeated member": `{"stage":"offer","stage":"claim"}`,
		"invalid UTF-8":   "{\"stage\":\"\xff\"}",
		"huge number":     `{"depth":1e999999999}`,
		"too deep":        strings.Repeat("[", 100_000),
		"too large":       `"` + strings.Repeat("a", MaxInput) + `"`,
	} {
		if _, err := s.Evaluate(t.Context(), EntryDecision, []byte(input)); !errors.Is(err, &wire.Error{Code: wire.CodePolicyError}) {
			t.Errorf("%s: got %v; want policy_error", name, err)
		}
	}
	if _, err := s.Evaluate(t.Context(), "nothing", []byte("{}")); !errors.Is(err, &wire.Error{Code: wire.CodePolicyUndefined}) {
		t.Errorf("unknown entry point: %v", err)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := s.Evaluate(ended, EntryDecision, []byte(whole[EntryDecision]))
	if refusal := new(wire.Error); !errors.Is(err, context.Canceled) || errors.As(err, &refusal) {
		t.Errorf("a context that ended is no decision: %v", err)
	}
}

func TestCompileRefuses(t *testing.T) {
	for name, c := range map[string]struct{ rego, data, says string }{
		"syntax":           {`package handoff decision :=`, `{}`, "rego_parse_error"},
		"clock":            {"package handoff\ndecision := time.now_ns()", `{}`, "undefined function time.now_ns"},
		"random":           {"package handoff\ndecision := rand.intn(\"a\", 5)", `{}`, "undefined function rand.intn"},
		"uuid":             {"package handoff\ndecision := uuid.rfc4122(\"a\")", `{}`, "undefined function uuid.rfc4122"},
		"network":          {"package handoff\ndecision := http.send({\"method\": \"get\", \"url\": \"http://x\"})", `{}`, "http.send"},
		"names":            {"package handoff\ndecision := net.lookup_ip_addr(\"x\")", `{}`, "net.lookup_ip_addr"},
		"process":          {"package handoff\ndecision := opa.runtime()", `{}`, "opa.runtime"},
		"certificates":     {"package handoff\ndecision := crypto.x509.parse_certificates(\"x\")", `{}`, "crypto.x509"},
		"many paths":       {"package handoff\ndecision := graph.reachable_paths({\"a\": [\"b\"], \"b\": []}, [\"a\"])", `{}`, "graph.reachable_paths"},
		"big ranges":       {"package handoff\ndecision := numbers.range(1, 1000000000)", `{}`, "numbers.range"},
		"recursion":        {"package handoff\ndecision := decision", `{}`, "rego_recursion_error"},
		"unused variable":  {"package handoff\ndecision := true if { x := 1 }", `{}`, "unused"},
		"no decision":      {"package handoff\nsession := true", `{}`, "no rule decision"},
		"other package":    {"package other\ndecision := true", `{}`, "no rule decision"},
		"hidden data":      {"package handoff\ndecision := true", `{"handoff":{"decision":{}}}`, "conflict"},
		"own problems":     {"package handoff\ndecision := true\nproblems contains \"the moon is full\" if data.moon", `{"moon":1}`, "the moon is full"},
		"problems fail":    {"package handoff\ndecision := true\nproblems contains \"x\" if 1 / data.zero == 1", `{"zero":0}`, "problems"},
		"problems mistype": {"package handoff\ndecision := true\nproblems := true", `{}`, "set of sentences"},
		"labels mistyped":  {"package handoff\ndecision := true", `{"tools":{"t":{"labels":"pii"}}}`, "must be an array"},
		"no label":         {"package handoff\ndecision := true", `{"tools":{"t":{"labels":[""]}}}`, "1 to 128 bytes"},
		"long label":       {"package handoff\ndecision := true", `{"tools":{"t":{"labels":["` + strings.Repeat("x", wire.MaxLabel+1) + `"]}}}`, "1 to 128 bytes"},
		"huge number":      {"package handoff\ndecision := true", `{"n":1e999999}`, "out of range"},
	} {
		_, err := Compile(bundleOf(t, c.rego, c.data), Config{})
		if !errors.Is(err, &wire.Error{Code: wire.CodeBundle}) || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: got %v; want bundle_invalid saying %q", name, err, c.says)
		}
	}
	if _, err := Compile(Default(), Config{Timeout: -1}); err == nil {
		t.Error("a negative timeout is accepted")
	}
}

// What is asked at compilation is no entry point: an answer of it would pass for a decision.
func TestProblemsAreNoEntryPoint(t *testing.T) {
	s, err := Compile(bundleOf(t, "package handoff\ndecision := {\"effect\": \"deny\"}\nproblems contains \"none\" if data.some", `{}`), Config{})
	if err != nil {
		t.Fatal(err)
	}
	if s.Has("problems") {
		t.Error("problems is one")
	}
	if _, err := s.Evaluate(t.Context(), "problems", []byte(`{}`)); !errors.Is(err, &wire.Error{Code: wire.CodePolicyUndefined}) {
		t.Errorf("asked: %v", err)
	}
}

func TestCapabilitiesAreDeterministic(t *testing.T) {
	names := strings.Fields(builtinNames)
	if !slices.IsSorted(names) {
		t.Error("builtins.txt is not sorted")
	}
	if got := len(capabilities().Builtins); got != len(names)+len(ours) {
		t.Errorf("%d of %d listed builtins are known to OPA, deterministic and not deprecated", got-len(ours), len(names))
	}
	if text, err := Capabilities(); err != nil || !jsontext.Value(text).IsValid() {
		t.Errorf("Capabilities: %v", err)
	}
}

func TestReplayGivesTheSameBytes(t *testing.T) {
	past := Default().Bytes()
	first := compileDefault(t)
	parsed, err := Parse(past)
	if err != nil {
		t.Fatal(err)
	}
	again, err := Compile(parsed, Config{Timeout: 5 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	if first.Digest() != again.Digest() {
		t.Fatalf("digests differ: %s, %s", first.Digest(), again.Digest())
	}
	for entry, input := range whole {
		// Also what is denied, for several reasons at once.
		for _, text := range []string{input, strings.ReplaceAll(input, "reader", "stranger"), "{}"} {
			a, errA := first.Evaluate(t.Context(), entry, []byte(text))
			b, errB := again.Evaluate(t.Context(), entry, []byte(text))
			if !bytes.Equal(a, b) || (errA == nil) != (errB == nil) {
				t.Errorf("%s: %s, %v is not %s, %v", entry, a, errA, b, errB)
			}
			canonical := jsontext.Value(slices.Clone(a))
			if err := canonical.Canonicalize(); errA == nil && (err != nil || !bytes.Equal(canonical, a)) {
				t.Errorf("%s: %s is not canonical", entry, a)
			}
		}
	}
}

// Each answer comes whole from one bundle, the one that its snapshot names.
func TestActivateWhileEvaluating(t *testing.T) {
	const rego = "package handoff\ndecision := {\"effect\": \"allow\", \"ttl\": data.a, \"max_hops\": data.b}"
	bundles := make([]*Bundle, 8)
	want := map[string]string{}
	for i := range bundles {
		bundles[i] = bundleOf(t, rego, fmt.Sprintf(`{"a":%d,"b":%d}`, i, i))
		want[bundles[i].Digest()] = fmt.Sprintf(`{"effect":"allow","max_hops":%d,"ttl":%d}`, i, i)
	}
	store, err := NewStore(bundles[0], Config{Timeout: 5 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	var readers sync.WaitGroup
	stop := make(chan struct{})
	for range 4 {
		readers.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				s := store.Current()
				answer, err := s.Evaluate(context.Background(), EntryDecision, []byte("{}"))
				if err != nil || string(answer) != want[s.Digest()] {
					t.Errorf("%s: %s, %v", s.Digest(), answer, err)
					return
				}
			}
		})
	}
	for i := range 64 {
		if err := store.Activate(bundles[i%len(bundles)]); err != nil {
			t.Error(err)
		}
	}
	close(stop)
	readers.Wait()

	before := store.Current()
	if err := store.Activate(bundleOf(t, "package handoff", "{}")); err == nil || store.Current() != before {
		t.Errorf("a bundle that does not compile must leave the one before in force; got %v", err)
	}
}

func TestToolLabels(t *testing.T) {
	b, err := Default().WithData("/tools", map[string]any{"crm.read": map[string]any{"labels": []string{"pii", "eu"}}})
	if err != nil {
		t.Fatal(err)
	}
	s, err := Compile(b, Config{})
	if err != nil {
		t.Fatal(err)
	}
	if got := s.ToolLabels("crm.read"); !slices.Equal(got, []string{"pii", "eu"}) {
		t.Errorf("got %v", got)
	}
	if got := s.ToolLabels("x"); got != nil {
		t.Errorf("got %v", got)
	}
}

func TestScopeBuiltins(t *testing.T) {
	s, err := Compile(bundleOf(t, `package handoff
decision := {"effect": "allow", "obligations": {
	"wider": handoff.subsumes({"t": {}}, {"t": {"a": {"constraint_type": "exact", "value": 1}}}),
	"narrower": handoff.subsumes({"t": {"a": {"constraint_type": "exact", "value": 1}}}, {"t": {}}),
	"within": handoff.permits({"t": {"a": {"constraint_type": "range", "max": 5}}}, "t", {"a": 5}),
	"beyond": handoff.permits({"t": {"a": {"constraint_type": "range", "max": 5}}}, "t", {"a": 6}),
	"other": handoff.permits({"t": {}}, "u", {}),
}}`, "{}"), Config{Timeout: 5 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	got, err := s.Evaluate(t.Context(), EntryDecision, []byte("{}"))
	const want = `{"effect":"allow","obligations":{"beyond":false,"narrower":false,"other":false,"wider":true,"within":true}}`
	if string(got) != want {
		t.Errorf("got %s, %v", got, err)
	}
}

func TestValuesSurvive(t *testing.T) {
	var value func(depth int) *rapid.Generator[any]
	value = func(depth int) *rapid.Generator[any] {
		kinds := []*rapid.Generator[any]{
			rapid.Just[any](nil), rapid.Bool().AsAny(), rapid.String().AsAny(),
			rapid.Int64Range(-1<<53, 1<<53).AsAny(), rapid.Float64().AsAny(),
		}
		if depth > 0 {
			kinds = append(kinds, rapid.SliceOfN(value(depth-1), 0, 4).AsAny(),
				rapid.MapOfN(rapid.String(), value(depth-1), 0, 4).AsAny())
		}
		return rapid.OneOf(kinds...)
	}
	rapid.Check(t, func(t *rapid.T) {
		text, err := json.Marshal(value(3).Draw(t, "value"))
		if err != nil {
			t.Skip(err) // NaN and infinities are no JSON
		}
		v, err := decodeValue(text)
		if err != nil {
			t.Fatal(err)
		}
		got, err := encodeValue(v)
		if err != nil {
			t.Fatal(err)
		}
		want := jsontext.Value(text)
		if err := want.Canonicalize(); err != nil || !bytes.Equal(want, got) {
			t.Fatalf("%s became %s", want, got)
		}
	})
}

func FuzzEvaluate(f *testing.F) {
	for _, input := range whole {
		f.Add([]byte(input))
	}
	s := compileDefault(f)
	f.Fuzz(func(t *testing.T, input []byte) {
		for _, entry := range entryPoints {
			if effect(t, s, entry, input) == wire.EffectAllow && !jsontext.Value(input).IsValid() {
				t.Fatalf("%s: allowed", entry)
			}
		}
	})
}

func BenchmarkEvaluate(b *testing.B) {
	s := compileDefault(b)
	for _, entry := range entryPoints {
		b.Run(entry, func(b *testing.B) {
			input := []byte(whole[entry])
			b.ReportAllocs()
			for b.Loop() {
				if _, err := s.Evaluate(context.Background(), entry, input); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkEvaluateRemembered(b *testing.B) {
	s, err := Compile(Default(), Config{Timeout: 5 * time.Second})
	if err != nil {
		b.Fatal(err)
	}
	input := []byte(whole[EntryDecision])
	b.ReportAllocs()
	for b.Loop() {
		if _, err := s.Evaluate(context.Background(), EntryDecision, input); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkCompile(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Compile(Default(), Config{}); err != nil {
			b.Fatal(err)
		}
	}
}
