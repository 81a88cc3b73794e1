package aat_test

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"pgregory.net/rapid"

	"github.com/handoff-governor/handoff-governor/handoff/aat"
)

// The laws are tried on a small world, where constraints meet often: a few values, a few argument and tool names.

var world = []string{
	`"a"`, `"b"`, `"c"`, `1`, `2`, `3`, `2.5`, `-1`, `10`, `true`, `null`, `{"k":1}`,
	`[]`, `["a"]`, `["b"]`, `["a","b"]`, `["a","b","c"]`, `[1,2]`,
}

func value(text string) any { return jsontext.Value(text) }

func values(atLeast int) *rapid.Generator[[]any] {
	return rapid.Custom(func(t *rapid.T) []any {
		var out []any
		for _, v := range rapid.SliceOfN(rapid.SampledFrom(world), atLeast, 4).Draw(t, "values") {
			out = append(out, value(v))
		}
		return out
	})
}

func constraints(depth int) *rapid.Generator[aat.Constraint] {
	return rapid.Custom(func(t *rapid.T) aat.Constraint {
		kinds := 7
		if depth > 0 {
			kinds = 9
		}
		elements := []any{}
		for _, v := range rapid.SliceOfN(rapid.SampledFrom([]string{"a", "b", "c"}), 0, 3).Draw(t, "elements") {
			elements = append(elements, v)
		}
		switch rapid.IntRange(0, kinds-1).Draw(t, "kind") {
		case 0:
			return aat.Exact(value(rapid.SampledFrom(world[:11]).Draw(t, "value")))
		case 1:
			numbers := []string{"", "-1", "1", "2", "2.5", "3", "10"}
			lo := rapid.IntRange(0, len(numbers)-1).Draw(t, "lo")
			hi := rapid.IntRange(lo, len(numbers)-1).Draw(t, "hi")
			var from, to aat.Bound
			if lo > 0 {
				from = rapid.SampledFrom([]aat.Bound{aat.AtLeast(numbers[lo]), aat.MoreThan(numbers[lo])}).Draw(t, "from")
			}
			if hi > 0 {
				to = rapid.SampledFrom([]aat.Bound{aat.AtMost(numbers[hi]), aat.LessThan(numbers[hi])}).Draw(t, "to")
			}
			return aat.Range(from, to)
		case 2:
			return aat.OneOf(values(1).Draw(t, "one of")...)
		case 3:
			return aat.NotOneOf(values(0).Draw(t, "not one of")...)
		case 4:
			return aat.Contains(elements...)
		case 5:
			return aat.Subset(elements...)
		case 6:
			return aat.Wildcard()
		case 7:
			return aat.All(rapid.SliceOfN(constraints(depth-1), 1, 3).Draw(t, "all")...)
		default:
			return aat.Any(rapid.SliceOfN(constraints(depth-1), 1, 3).Draw(t, "any")...)
		}
	})
}

func arguments() *rapid.Generator[aat.Arguments] {
	return rapid.Custom(func(t *rapid.T) aat.Arguments {
		args := aat.Arguments{}
		for _, name := range []string{"x", "y"} {
			switch rapid.IntRange(0, 2).Draw(t, name) {
			case 1:
				args[name] = constraints(2).Draw(t, "required")
			case 2:
				args[name] = constraints(2).Draw(t, "optional").AsOptional()
			}
		}
		if rapid.Bool().Draw(t, "open") {
			args[aat.Unnamed] = aat.Wildcard()
		}
		return args
	})
}

func toolsets() *rapid.Generator[aat.Tools] {
	return rapid.Custom(func(t *rapid.T) aat.Tools {
		return rapid.MapOfN(rapid.SampledFrom([]string{"s", "t"}), arguments(), 0, 2).Draw(t, "tools")
	})
}

// invocations are the calls that a law is tried with: all of one or two arguments would be too many for each draw.
func invocations() *rapid.Generator[string] {
	return rapid.Custom(func(t *rapid.T) string {
		members := []string{}
		for _, name := range []string{"x", "y", "z"} {
			if rapid.Bool().Draw(t, name) {
				members = append(members, fmt.Sprintf("%q:%s", name, rapid.SampledFrom(world).Draw(t, name+" value")))
			}
		}
		return "{" + strings.Join(members, ",") + "}"
	})
}

func TestSubsumesIsSound(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		parent, child := constraints(2).Draw(t, "parent"), constraints(2).Draw(t, "child")
		if !aat.Subsumes(parent, child) {
			return
		}
		for _, v := range world {
			if child.Check(jsontext.Value(v)) && !parent.Check(jsontext.Value(v)) {
				t.Fatalf("%v attenuates %v by the table, yet accepts %s", child, parent, v)
			}
		}
	})
}

func TestSubsumesIsAnOrder(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a, b, c := constraints(2).Draw(t, "a"), constraints(2).Draw(t, "b"), constraints(2).Draw(t, "c")
		if !aat.Subsumes(a, a) {
			t.Fatalf("%v does not attenuate itself", a)
		}
		if aat.Subsumes(a, b) && aat.Subsumes(b, c) && !aat.Subsumes(a, c) {
			t.Fatalf("%v ⊒ %v ⊒ %v is not transitive", a, b, c)
		}
	})
}

func TestJSONRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		tools := toolsets().Draw(t, "tools")
		b := must(json.Marshal(tools))
		var back aat.Tools
		if err := json.Unmarshal(b, &back); err != nil || !back.Equal(tools) {
			t.Fatalf("%s came back as %v (%v)", b, back, err)
		}
		canonical := jsontext.Value(b).Clone()
		if err := canonical.Canonicalize(); err != nil || string(canonical) != string(b) {
			t.Fatalf("%s is not canonical", b)
		}
	})
}

// perturb changes one thing about a claim, which may widen it.
func perturb(t *rapid.T, args aat.Arguments) aat.Arguments {
	args = maps.Clone(args)
	name := rapid.SampledFrom([]string{"x", "y"}).Draw(t, "perturbed")
	c, named := args[name]
	switch what := rapid.IntRange(0, 4).Draw(t, "perturbation"); {
	case what == 0 && len(args) > 0:
		args[aat.Unnamed] = aat.Wildcard()
	case what == 1 && named:
		args[name] = c.AsOptional()
	case what == 2 && len(args) > 1:
		delete(args, name)
	case what == 3:
		args[name] = constraints(1).Draw(t, "another")
	}
	return args
}

func TestSubsumesToolsIsSound(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		parent, child := toolsets().Draw(t, "parent"), toolsets().Draw(t, "child")
		if rapid.Bool().Draw(t, "near") { // two random claims seldom attenuate each other
			child, _ = aat.Meet(parent, child)
			for tool, args := range child {
				child[tool] = perturb(t, args)
			}
		}
		if aat.SubsumesTools(parent, child) != nil {
			return
		}
		for tool := range child {
			call := []byte(invocations().Draw(t, "call"))
			if aat.CheckInvocation(child[tool], call) == nil && aat.CheckInvocation(parent[tool], call) != nil {
				t.Fatalf("%s %s is permitted by the child %v and not by %v", tool, call, child, parent)
			}
		}
	})
}

func TestMeetLaws(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		offer, ceiling := toolsets().Draw(t, "offer"), toolsets().Draw(t, "ceiling")
		granted, dropped := aat.Meet(offer, ceiling)

		if err := aat.SubsumesTools(offer, granted); err != nil {
			t.Fatalf("%v does not attenuate the offer: %v", granted, err)
		}
		if len(granted)+len(dropped) != len(offer) {
			t.Fatalf("%d granted and %d dropped of %d", len(granted), len(dropped), len(offer))
		}
		for range 8 {
			call := []byte(invocations().Draw(t, "call"))
			for tool := range granted {
				got := aat.CheckInvocation(granted[tool], call) == nil
				want := aat.CheckInvocation(offer[tool], call) == nil && aat.CheckInvocation(ceiling[tool], call) == nil
				if got && !want {
					t.Fatalf("%v permits %s %s, offer and ceiling do not both", granted, tool, call)
				}
				if want && !got {
					t.Fatalf("%v refuses %s %s, which offer and ceiling permit: not the widest", granted, tool, call)
				}
			}
		}
		again, lost := aat.Meet(granted, ceiling)
		if !again.Equal(granted) || len(lost) > 0 {
			t.Fatalf("met twice: %s, then %s, %v", show(granted), show(again), lost)
		}
		if self, lost := aat.Meet(offer, offer); !self.Equal(offer) || len(lost) > 0 {
			t.Fatalf("met with itself: %v", show(self))
		}
		repeat, droppedAgain := aat.Meet(offer, ceiling)
		if !repeat.Equal(granted) || !slices.Equal(dropped, droppedAgain) {
			t.Fatal("not deterministic")
		}
		var back aat.Tools
		if err := json.Unmarshal(must(json.Marshal(granted)), &back); err != nil {
			t.Fatalf("%v is not well-formed: %v", granted, err)
		}
	})
}

func show(tools aat.Tools) string { return string(must(json.Marshal(tools))) }

// TestDerivedChainsVerify: what Derive makes Child accepts, and what Child accepts permits nothing that the parent refuses.
func TestDerivedChainsVerify(t *testing.T) {
	v := &aat.Verifier{
		Anchors: []aat.Anchor{{Issuer: issuerURI, Key: publicKey("issuer")}},
		Now:     func() time.Time { return time.Unix(now, 0) },
	}
	rapid.Check(t, func(t *rapid.T) {
		parent, child := toolsets().Draw(t, "parent"), toolsets().Draw(t, "child")
		if rapid.Bool().Draw(t, "near") {
			child, _ = aat.Meet(parent, child)
		}
		root := must(v.Root(must(aat.Issue(aat.Claims{
			ID: "root", Issuer: issuerURI, IssuedAt: now, ExpiresAt: now + 100, Holder: jwk("alice"),
			MaxDepth: rapid.IntRange(0, 2).Draw(t, "root's max depth"), Tools: parent,
		}, privateKey("issuer")))))
		compact, err := aat.Derive(root, aat.Claims{
			ID:        rapid.SampledFrom([]string{"root", "child"}).Draw(t, "jti"),
			IssuedAt:  rapid.Int64Range(now-1, now+1).Draw(t, "iat"),
			ExpiresAt: rapid.Int64Range(now-1, now+101).Draw(t, "exp"),
			MaxDepth:  rapid.IntRange(0, 3).Draw(t, "max depth"),
			Holder:    jwk("gov"), Tools: child,
		}, privateKey("alice"))
		if err != nil {
			if _, ok := errors.AsType[*aat.StepError](err); !ok {
				t.Fatalf("refused without a step: %v", err)
			}
			return
		}
		link, err := v.Child(root, compact)
		if err != nil {
			t.Fatalf("Derive made what Child refuses: %v", err)
		}
		if restored := must(aat.RestoreToken(root, compact)); restored.Hash != link.Hash || !restored.Claims.Tools.Equal(link.Claims.Tools) {
			t.Fatal("a token restored is not the token verified")
		}
		call := []byte(invocations().Draw(t, "call"))
		for tool, args := range link.Claims.Tools {
			if aat.CheckInvocation(args, call) == nil && aat.CheckInvocation(parent[tool], call) != nil {
				t.Fatalf("the child permits %s %s, the parent does not", tool, call)
			}
		}
	})
}
