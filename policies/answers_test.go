package policies

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"
)

// Whatever changes in the data, a store that remembers answers as a fresh one does.
func TestRememberedAnswersAreExact(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	pick := func(values ...any) any { return values[random.IntN(len(values))] }
	roles := map[string]any{
		"everything": map[string]any{"tools": "*"},
		"some":       map[string]any{"tools": map[string]any{"crm.read": map[string]any{}}},
	}
	entries := func() any {
		m := map[string]any{"*": map[string]any{"roles": []string{"everything"}}}
		for _, name := range []string{"planner", "reader", "writer"} {
			if random.IntN(3) == 0 {
				m["/agent/"+name] = map[string]any{"roles": pick([]string{"some"}, []string{"everything", "some"}, []string{})}
			}
		}
		if random.IntN(6) == 0 {
			delete(m, "*")
		}
		return m
	}
	changes := []func() (string, any){
		func() (string, any) { return "/roles", roles },
		func() (string, any) { return "/agents", entries() },
		func() (string, any) { return "/home", pick("handoff.local", "handoff.local", "other.example") },
		func() (string, any) { return "/limits/grant_ttl", random.IntN(3) * 60 },
		func() (string, any) { return "/limits/max_hops", random.IntN(4) },
		func() (string, any) {
			return "/zones", pick(map[string]any{}, map[string]any{"pii": []string{"/agent/reader"}})
		},
		func() (string, any) { return "/tools/crm.read", map[string]any{"impact": pick("low", "critical")} },
		func() (string, any) {
			return "/impact", pick(map[string]any{}, map[string]any{"deny": "high", "unlisted": "low"})
		},
		func() (string, any) {
			return "/duties/d", map[string]any{"tools": pick([]string{}, []string{"crm.read", "mail.send"})}
		},
		func() (string, any) {
			return "/approvals", pick(map[string]any{}, map[string]any{"a": map[string]any{"label": "pii", "count": random.IntN(3)}})
		},
	}
	var inputs []string
	for entry, input := range whole {
		inputs = append(inputs, strings.ReplaceAll(whole[entry], `"pii"`, ""))
		for _, name := range []string{"writer", "editor"} {
			inputs = append(inputs, strings.ReplaceAll(input, "writer", name))
		}
	}
	cfg := Config{Timeout: 5 * time.Second}
	b := Default()
	store, err := NewStore(b, cfg)
	if err != nil {
		t.Fatal(err)
	}
	inherited, answers := 0, map[string]bool{}
	for range 25 {
		at, value := changes[random.IntN(len(changes))]()
		if b, err = b.WithData(at, value); err != nil {
			t.Fatal(err)
		}
		if at == "/agents" {
			if b, err = b.WithData("/roles", roles); err != nil {
				t.Fatal(err)
			}
		}
		if err := store.Activate(b); err != nil {
			t.Fatal(err)
		}
		inherited += len(store.Current().answers.young)
		fresh, err := Compile(b, Config{Timeout: 5 * time.Second, Remember: -1})
		if err != nil {
			t.Fatal(err)
		}
		for entry := range whole {
			for _, input := range inputs {
				got, errGot := store.Current().Evaluate(t.Context(), entry, []byte(input))
				want, errWant := fresh.Evaluate(t.Context(), entry, []byte(input))
				if !bytes.Equal(got, want) || (errGot == nil) != (errWant == nil) {
					t.Fatalf("after %s = %v: %s, %v; want %s, %v for %s", at, value, got, errGot, want, errWant, input)
				}
				answers[string(want)] = true
			}
		}
	}
	if inherited == 0 || len(answers) < 10 {
		t.Errorf("%d answers inherited, %d different: too few to show anything", inherited, len(answers))
	}
	t.Logf("%d answers inherited, %d different", inherited, len(answers))
}

// An answer is of the policies that gave it: under others it is asked again, though the data is the same.
func TestOtherPoliciesInheritNothing(t *testing.T) {
	const short, long = "package handoff\ndecision := {\"effect\": \"allow\", \"ttl\": 1}", "package handoff\ndecision := {\"effect\": \"allow\", \"ttl\": 2}"
	store, err := NewStore(bundleOf(t, long, `{}`), Config{Timeout: 5 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	for i, rego := range []string{long, short, long, short + "\n"} {
		if err := store.Activate(bundleOf(t, rego, fmt.Sprintf(`{"n":%d}`, i))); err != nil {
			t.Fatal(err)
		}
		fresh, err := Compile(bundleOf(t, rego, `{}`), Config{Timeout: 5 * time.Second})
		if err != nil {
			t.Fatal(err)
		}
		got, errGot := store.Current().Evaluate(t.Context(), "decision", []byte(`{}`))
		want, errWant := fresh.Evaluate(t.Context(), "decision", []byte(`{}`))
		if !bytes.Equal(got, want) || errGot != nil || errWant != nil {
			t.Errorf("%s: %s, %v; want %s, %v", rego, got, errGot, want, errWant)
		}
	}
}

func TestMemoryIsBounded(t *testing.T) {
	const limit = 64 << 10
	s, err := Compile(Default(), Config{Timeout: 5 * time.Second, Remember: limit})
	if err != nil {
		t.Fatal(err)
	}
	for i := range 1000 {
		input := strings.ReplaceAll(whole[EntryCall], `{"id":7}`, fmt.Sprintf(`{"id":%d}`, i))
		if _, err := s.Evaluate(t.Context(), EntryCall, []byte(input)); err != nil {
			t.Fatal(err)
		}
	}
	if kept := len(s.answers.young) + len(s.answers.old); kept == 0 || kept*rememberedSize > 2*limit {
		t.Errorf("%d answers are kept", kept)
	}
	hits, misses := s.Remembered()
	if hits != 0 || misses != 1000 {
		t.Errorf("%d hits, %d misses", hits, misses)
	}
}
