package aat_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/go-json-experiment/json"

	"github.com/handoff-governor/handoff-governor/handoff/aat"
)

func parse(t *testing.T, text string) aat.Arguments {
	t.Helper()
	var args aat.Arguments
	// Constraints are abbreviated here: {"x?":["exact",1]} is an optional exact.
	var short map[string][]any
	if err := json.Unmarshal([]byte(text), &short); err != nil {
		t.Fatal(err)
	}
	args = aat.Arguments{}
	for name, c := range short {
		name, optional := strings.CutSuffix(name, "?")
		made := constraint(c)
		if optional {
			made = made.AsOptional()
		}
		args[name] = made
	}
	return args
}

// constraint reads ["type", operands…]; a range is [lo, hi] with null for an open end, and ["(]", …] for exclusive ends.
func constraint(c []any) aat.Constraint {
	var clauses []aat.Constraint
	for _, operand := range c[1:] {
		if clause, ok := operand.([]any); ok {
			clauses = append(clauses, constraint(clause))
		}
	}
	bound := func(i int, inclusive, exclusive func(string) aat.Bound, excludes bool) aat.Bound {
		if c[i] == nil {
			return aat.Bound{}
		}
		number := string(must(json.Marshal(c[i])))
		if excludes {
			return exclusive(number)
		}
		return inclusive(number)
	}
	switch kind := c[0].(string); kind {
	case "exact":
		return aat.Exact(c[1])
	case "one_of":
		return aat.OneOf(c[1:]...)
	case "not_one_of":
		return aat.NotOneOf(c[1:]...)
	case "contains":
		return aat.Contains(c[1:]...)
	case "subset":
		return aat.Subset(c[1:]...)
	case "all":
		return aat.All(clauses...)
	case "any":
		return aat.Any(clauses...)
	case "*":
		return aat.Wildcard()
	default:
		return aat.Range(bound(1, aat.AtLeast, aat.MoreThan, kind[0] == '('), bound(2, aat.AtMost, aat.LessThan, kind[1] == ')'))
	}
}

// TestMeetCases are the cases that deserve a name. The laws hold for all of them; here is what they come to.
func TestMeetCases(t *testing.T) {
	for name, c := range map[string]struct{ offer, ceiling, want string }{ // want "" where the tool is dropped
		"equal":                      {`{"x":["exact",1]}`, `{"x":["exact",1]}`, `{"x":["exact",1]}`},
		"empty map stays":            {`{}`, `{}`, `{}`},
		"open offer":                 {`{}`, `{"x":["exact",1]}`, `{"x":["exact",1]}`},
		"open ceiling":               {`{"x":["exact",1]}`, `{}`, `{"x":["exact",1]}`},
		"both open":                  {`{"x":["exact",1],"*":["*"]}`, `{"y":["exact",2],"*":["*"]}`, `{"x":["exact",1],"y":["exact",2],"*":["*"]}`},
		"list filtered by range":     {`{"x":["one_of",1,5,9]}`, `{"x":["[]",2,9]}`, `{"x":["one_of",5,9]}`},
		"range against one":          {`{"x":["[]",0,10]}`, `{"x":["one_of",5,50]}`, `{"x":["exact",5]}`},
		"range against two":          {`{"x":["[]",0,10]}`, `{"x":["one_of",5,6]}`, ``},
		"ranges":                     {`{"x":["[]",0,null]}`, `{"x":["[)",-5,10]}`, `{"x":["[)",0,10]}`},
		"ranges apart":               {`{"x":["[]",0,1]}`, `{"x":["[]",2,3]}`, ``},
		"ranges that touch":          {`{"x":["[]",0,1]}`, `{"x":["[]",1,3]}`, `{"x":["[]",1,1]}`},
		"ranges that just miss":      {`{"x":["[)",0,1]}`, `{"x":["[]",1,3]}`, ``},
		"range loses its end":        {`{"x":["[]",0,10]}`, `{"x":["not_one_of",0,10,"a"]}`, `{"x":["()",0,10]}`},
		"range with a hole":          {`{"x":["[]",0,10]}`, `{"x":["not_one_of",5]}`, ``},
		"exclusions add up":          {`{"x":["not_one_of","a"]}`, `{"x":["not_one_of","b"]}`, `{"x":["not_one_of","a","b"]}`},
		"list under exclusions":      {`{"x":["not_one_of","a"]}`, `{"x":["one_of","b"]}`, ``},
		"required of arrays":         {`{"x":["contains","a"]}`, `{"x":["contains","b"]}`, `{"x":["contains","a","b"]}`},
		"allowed in arrays":          {`{"x":["subset","a","b"]}`, `{"x":["subset","b","c"]}`, `{"x":["subset","b"]}`},
		"arrays with no form":        {`{"x":["contains","a"]}`, `{"x":["subset","a","b"]}`, ``},
		"arrays that contradict":     {`{"x?":["contains","a"],"y":["*"]}`, `{"x?":["subset","b"],"y":["*"]}`, `{"y":["*"]}`},
		"all gains a clause":         {`{"x":["all",["[]",0,10]]}`, `{"x":["not_one_of",5]}`, `{"x":["all",["[]",0,10],["not_one_of",5]]}`},
		"all that contradicts":       {`{"x":["all",["[]",0,10]]}`, `{"x":["exact",11]}`, ``},
		"any clause by clause":       {`{"x":["any",["exact","a"],["[]",0,10]]}`, `{"x":["[]",5,20]}`, `{"x":["any",["[]",5,10]]}`},
		"any with any":               {`{"x":["any",["[]",0,10]]}`, `{"x":["any",["[]",0,2],["[]",4,5]]}`, `{"x":["any",["[]",0,2],["[]",4,5]]}`},
		"ceiling any, one part":      {`{"x":["[]",0,10]}`, `{"x":["any",["[]",5,20],["exact","a"]]}`, `{"x":["[]",5,10]}`},
		"ceiling any, two parts":     {`{"x":["[]",0,10]}`, `{"x":["any",["exact",1],["exact",2]]}`, ``},
		"ceiling any, lost part":     {`{"x":["[]",0,10]}`, `{"x":["any",["not_one_of",5],["[]",2,3]]}`, ``},
		"ceiling all":                {`{"x":["[]",0,10]}`, `{"x":["all",["not_one_of",5],["[]",6,7]]}`, `{"x":["[]",6,7]}`},
		"optional for both":          {`{"x?":["exact",1]}`, `{"x?":["*"]}`, `{"x?":["exact",1]}`},
		"required by the ceiling":    {`{"x?":["exact",1]}`, `{"x":["*"]}`, `{"x":["exact",1]}`},
		"required by the offer":      {`{"x":["exact",1]}`, `{"x?":["*"]}`, `{"x":["exact",1]}`},
		"optional, forbidden":        {`{"x?":["exact",1],"y":["*"]}`, `{"y":["*"]}`, `{"y":["*"]}`},
		"required, forbidden":        {`{"x":["exact",1],"y":["*"]}`, `{"y":["*"]}`, ``},
		"ceiling requires, no offer": {`{"y":["*"]}`, `{"x":["exact",1],"y":["*"]}`, ``},
		"ceiling allows, no offer":   {`{"y":["*"]}`, `{"x?":["exact",1],"y":["*"]}`, `{"y":["*"]}`},
		"optional, no value, closed": {`{"x?":["exact",1],"y":["*"]}`, `{"x?":["exact",2],"y":["*"]}`, `{"y":["*"]}`},
		"optional, no value, open":   {`{"x?":["exact",1],"*":["*"]}`, `{"x?":["exact",2],"*":["*"]}`, ``},
		"nothing but no arguments":   {`{"x?":["exact",1]}`, `{"y?":["exact",1]}`, ``},
	} {
		t.Run(name, func(t *testing.T) {
			granted, dropped := aat.Meet(
				aat.Tools{"t": parse(t, c.offer)}, aat.Tools{"t": parse(t, c.ceiling), "u": {}})
			got, ok := granted["t"]
			switch {
			case c.want == "" && (ok || len(dropped) != 1 || dropped[0].Tool != "t" || dropped[0].Reason == ""):
				t.Fatalf("granted %v, dropped %v", got, dropped)
			case c.want != "" && (!ok || !got.Equal(parse(t, c.want)) || len(dropped) != 0):
				t.Fatalf("granted %v, dropped %v; want %v", got, dropped, parse(t, c.want))
			}
		})
	}
	if granted, dropped := aat.Meet(aat.Tools{"b": {}, "a": {}}, nil); granted == nil || len(granted) != 0 ||
		len(dropped) != 2 || dropped[0].Tool != "a" {
		t.Errorf("a ceiling of nothing grants %v and drops %v", granted, dropped)
	}
}

// TestMeetAtItsBounds: a holder who offers as much as the bounds allow is not granted today what is dropped tomorrow.
func TestMeetAtItsBounds(t *testing.T) {
	span := func(from, width int) aat.Constraint {
		return aat.Range(aat.AtLeast(fmt.Sprint(from)), aat.LessThan(fmt.Sprint(from+width)))
	}
	var mine, theirs []aat.Constraint
	for i := range 2 {
		mine = append(mine, span(i*10000, 10000))
	}
	for i := range 200 {
		theirs = append(theirs, aat.All(span(i*100, 100), aat.NotOneOf(i*100)))
	}
	offer, ceiling := aat.Tools{"t": {"x": aat.Any(mine...)}}, aat.Tools{"t": {"x": aat.Any(theirs...)}}
	if granted, _ := aat.Meet(offer, ceiling); len(granted) > 0 { // once it fits the bound on steps, twice it must
		if again, dropped := aat.Meet(granted, ceiling); !again.Equal(granted) {
			t.Fatalf("granted, and then dropped: %v", dropped)
		}
	}

	// One clause of the offer falls apart into as many as the ceiling has.
	apart := func(parts int) (granted aat.Tools) {
		var theirs []aat.Constraint
		for i := range parts {
			theirs = append(theirs, span(i*10, 5))
		}
		granted, _ = aat.Meet(aat.Tools{"t": {"x": aat.Any(span(0, 10000))}}, aat.Tools{"t": {"x": aat.Any(theirs...)}})
		return granted
	}
	if granted := apart(256); len(granted) != 1 {
		t.Error("256 clauses were dropped")
	}
	if granted := apart(257); len(granted) != 0 {
		t.Errorf("granted more than 256 clauses: %s", show(granted))
	}
}

// TestMeetEnds: nests that would take exponential work end, as a refusal if need be.
func TestMeetEnds(t *testing.T) {
	nest := func(leaf aat.Constraint, of ...func(...aat.Constraint) aat.Constraint) aat.Constraint {
		for i := range aat.MaxConstraintDepth - 1 {
			leaf = of[i%len(of)](leaf)
		}
		return leaf
	}
	offer := nest(aat.Range(aat.AtLeast("0"), aat.AtMost("9")), aat.Any)
	for _, ceiling := range []aat.Constraint{
		nest(aat.OneOf(1, 2), aat.Any), nest(aat.OneOf(1, 2), aat.All, aat.Any), nest(aat.NotOneOf(5), aat.Any, aat.All),
	} {
		granted, dropped := aat.Meet(aat.Tools{"t": {"x": offer}}, aat.Tools{"t": {"x": ceiling}})
		if len(granted)+len(dropped) != 1 {
			t.Errorf("granted %v, dropped %v", granted, dropped)
		}
	}
	wide := make([]aat.Constraint, 1500) // as many clauses as a token has room for
	for i := range wide {
		wide[i] = aat.Range(aat.AtLeast("0"), aat.AtMost(string(must(json.Marshal(i)))))
	}
	aat.Meet(aat.Tools{"t": {"x": aat.Any(wide...)}}, aat.Tools{"t": {"x": aat.Any(wide...).AsOptional()}})
	aat.Meet(aat.Tools{"t": {"x": aat.Any(wide...)}}, aat.Tools{"t": {"x": aat.All(aat.Any(wide...), aat.NotOneOf(5))}})
}
