package aat

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/handoff-governor/handoff-governor/handoff/aat/jcs"
)

// Check says whether the constraint accepts an argument value, which may be spelled in any way JSON allows. What is not
// JSON or has inadmissible numbers is not accepted.
func (c Constraint) Check(value jsontext.Value) bool {
	text, err := jcs.Canonical(value)
	return err == nil && c.accepts(&argument{text: string(text)})
}

// accepted is Check for a text that is canonical already.
func (c Constraint) accepted(text string) bool { return c.accepts(&argument{text: text}) }

func (c Constraint) accepts(v *argument) bool {
	switch c.typ {
	case TypeWildcard:
		return true
	case TypeExact, TypeOneOf:
		return c.has(v.text)
	case TypeNotOneOf:
		return !c.has(v.text)
	case TypeRange:
		num, ok := number(v.text)
		return ok && c.inRange(num)
	case TypeContains:
		elements, ok := v.set()
		return ok && isSubset(c.values, elements)
	case TypeSubset:
		elements, ok := v.set()
		return ok && isSubset(elements, c.values)
	case TypeAll:
		return !slices.ContainsFunc(c.clauses, func(d Constraint) bool { return !d.accepts(v) })
	case TypeAny:
		return slices.ContainsFunc(c.clauses, func(d Constraint) bool { return d.accepts(v) })
	}
	return false
}

func (c Constraint) has(text string) bool {
	_, found := slices.BinarySearch(c.values, text)
	return found
}

func (c Constraint) inRange(num float64) bool {
	if c.lo.text != "" && (num < c.lo.num || num == c.lo.num && c.lo.exclusive) {
		return false
	}
	return c.hi.text == "" || num < c.hi.num || num == c.hi.num && !c.hi.exclusive
}

// argument is a value in canonical form. Where it is an array it is taken apart once, however many clauses ask.
type argument struct {
	text     string
	elements []string // sorted and each once, like [Constraint].values
	split    bool
}

// set returns the elements of an array.
func (v *argument) set() (elements []string, ok bool) {
	if v.text[0] != '[' {
		return nil, false
	}
	if !v.split {
		v.split = true
		v.elements = elementsOf(v.text)
	}
	return v.elements, true
}

// elementsOf takes a canonical array apart; being canonical, it cannot fail to parse.
func elementsOf(text string) (elements []string) {
	_ = decodeWhole([]byte(text), func(dec *jsontext.Decoder) error {
		return readArray(dec, func() error {
			v, err := dec.ReadValue()
			elements = append(elements, string(v))
			return err
		})
	})
	slices.Sort(elements)
	return slices.Compact(elements)
}

// isSubset says whether the sorted set a is within the sorted set b.
func isSubset(a, b []string) bool {
	for _, v := range a {
		i, found := slices.BinarySearch(b, v)
		if !found {
			return false
		}
		b = b[i+1:]
	}
	return true
}

// InvocationError says why a constraint map refuses an invocation: step 6b of draft section 8.
type InvocationError struct {
	Argument string // "" where the arguments as a whole are at fault
	Reason   string
}

func (e *InvocationError) Error() string {
	if e.Argument == "" {
		return "arguments: " + e.Reason
	}
	return fmt.Sprintf("argument %q: %s", e.Argument, e.Reason)
}

// CheckInvocation evaluates a tool's constraint map against the arguments of one call, a JSON object as written (step
// 6b): every argument satisfies its constraint, none is there that the map does not name, unless it has "*", and none is
// missing that it requires. The error is an [*InvocationError]; of several faults it names the first in the order of
// argument names.
func CheckInvocation(args Arguments, invocation []byte) error {
	_, err := checkInvocation(args, invocation)
	return err
}

// checkInvocation also returns the canonical form of the invocation.
func checkInvocation(args Arguments, invocation []byte) (canonical []byte, err error) {
	if kind := jsontext.Value(invocation).Kind(); kind != '{' {
		return nil, &InvocationError{Reason: "they must be a JSON object"}
	}
	canonical, err = jcs.Canonical(invocation)
	if err != nil {
		return nil, &InvocationError{Reason: err.Error()}
	}
	args = args.normalized()
	_, open := args[Unnamed]
	var fault *InvocationError
	refuse := func(argument, reason string) {
		if fault == nil || argument < fault.Argument {
			fault = &InvocationError{Argument: argument, Reason: reason}
		}
	}
	required := 0
	for name, c := range args {
		if name != Unnamed && !c.optional {
			required++
		}
	}
	err = rawMembers(canonical, func(name string, value jsontext.Value) {
		c, named := args[name]
		switch {
		case !named && !open:
			refuse(name, "the credential does not name it")
		case !named:
		case !c.accepted(string(value)):
			refuse(name, "the value is outside "+brief(c))
		}
		if named && name != Unnamed && !c.optional {
			required--
		}
	})
	if err != nil {
		return nil, &InvocationError{Reason: err.Error()}
	}
	if required > 0 {
		if name := firstMissing(args, canonical); fault == nil || name < fault.Argument {
			refuse(name, "it is required and missing")
		}
	}
	if fault != nil {
		return nil, fault
	}
	return canonical, nil
}

func firstMissing(args Arguments, invocation []byte) string {
	present := map[string]bool{}
	_ = rawMembers(invocation, func(name string, _ jsontext.Value) { present[name] = true }) // it was read before
	missing := []string{}
	for name, c := range args {
		if name != Unnamed && !c.optional && !present[name] {
			missing = append(missing, name)
		}
	}
	return slices.Min(missing)
}

// brief writes a constraint for people, and bounds what a reason takes.
func brief(c Constraint) string {
	const enough = 256
	s := c.AsRequired().String()
	if len(s) > enough {
		return strings.ToValidUTF8(s[:enough], "") + "…"
	}
	return s
}

// Subsumes says whether child attenuates parent (child ⊑ parent) by the pair table of draft section 4.5, which knows
// fewer pairs than set inclusion does. Whether either is optional does not matter here.
func Subsumes(parent, child Constraint) bool {
	if parent.typ == TypeWildcard {
		return child.typ != ""
	}
	switch parent.typ {
	case TypeExact:
		return child.typ == TypeExact && child.values[0] == parent.values[0]
	case TypeOneOf:
		return (child.typ == TypeOneOf || child.typ == TypeExact) && isSubset(child.values, parent.values)
	case TypeRange:
		if child.typ == TypeExact {
			num, ok := number(child.values[0])
			return ok && parent.inRange(num)
		}
		return child.typ == TypeRange && compareLower(child.lo, parent.lo) >= 0 && compareUpper(child.hi, parent.hi) <= 0
	}
	if child.typ != parent.typ {
		return false
	}
	switch parent.typ {
	case TypeNotOneOf, TypeContains:
		return isSubset(parent.values, child.values)
	case TypeSubset:
		return isSubset(child.values, parent.values)
	case TypeAll:
		for _, p := range parent.clauses {
			if !slices.ContainsFunc(child.clauses, func(d Constraint) bool { return Subsumes(p, d) }) {
				return false
			}
		}
		return true
	case TypeAny:
		for _, d := range child.clauses {
			if !slices.ContainsFunc(parent.clauses, func(p Constraint) bool { return Subsumes(p, d) }) {
				return false
			}
		}
		return true
	}
	return false
}

// compareLower orders lower ends by how much they exclude; an open end excludes least.
func compareLower(a, b Bound) int {
	switch {
	case a.text == "" || b.text == "":
		return cmp.Compare(len(a.text), len(b.text))
	case a.num != b.num:
		return cmp.Compare(a.num, b.num)
	case a.exclusive == b.exclusive:
		return 0
	case a.exclusive:
		return 1
	}
	return -1
}

// compareUpper orders upper ends by how much they admit; an open end admits most.
func compareUpper(a, b Bound) int {
	switch {
	case a.text == "" || b.text == "":
		return cmp.Compare(len(b.text), len(a.text))
	case a.num != b.num:
		return cmp.Compare(a.num, b.num)
	case a.exclusive == b.exclusive:
		return 0
	case a.exclusive:
		return -1
	}
	return 1
}

// WidenedError names what a child claim has that its parent does not grant.
type WidenedError struct {
	Rule     string // step of draft section 8: 4p1, 4p2, 4p3 or 4p4
	Tool     string
	Argument string // "" for 4p1
	Reason   string
}

func (e *WidenedError) Error() string {
	if e.Argument == "" {
		return fmt.Sprintf("tool %q: %s", e.Tool, e.Reason)
	}
	return fmt.Sprintf("tool %q, argument %q: %s", e.Tool, e.Argument, e.Reason)
}

// SubsumesTools returns nil where child attenuates parent (invariant I4, draft section 4.5), else a [*WidenedError]. Of
// several faults it names the one of the lowest step, then the first in the order of tool and argument names.
func SubsumesTools(parent, child Tools) error {
	if worst := widest(parent, child); worst != nil {
		return worst
	}
	return nil
}

// widest is the fault that [SubsumesTools] names, nil where there is none.
func widest(parent, child Tools) (worst *WidenedError) {
	for tool, args := range child {
		parentArgs, ok := parent[tool]
		if !ok {
			worst = lower(worst, &WidenedError{Rule: "4p1", Tool: tool, Reason: "the parent does not grant it"})
			continue
		}
		widened(parentArgs, args, func(rule, argument, reason string) {
			worst = lower(worst, &WidenedError{Rule: rule, Tool: tool, Argument: argument, Reason: reason})
		})
	}
	return worst
}

func lower(a, b *WidenedError) *WidenedError {
	if a == nil || cmp.Or(cmp.Compare(b.Rule, a.Rule), cmp.Compare(b.Tool, a.Tool), cmp.Compare(b.Argument, a.Argument)) < 0 {
		return b
	}
	return a
}

// widened reports each way in which child does not attenuate parent.
func widened(parent, child Arguments, report func(rule, argument, reason string)) {
	parent, child = parent.normalized(), child.normalized()
	_, parentOpen := parent[Unnamed]
	_, childOpen := child[Unnamed]
	if childOpen && !parentOpen {
		report("4p2", Unnamed, "the parent does not accept arguments that it does not name")
	}
	for name, p := range parent {
		if _, ok := child[name]; ok || name == Unnamed {
			continue
		}
		switch {
		case !p.optional:
			report("4p2", name, "the parent requires it, so the child must name it")
		case childOpen:
			report("4p2", name, `the parent restricts it, and the child would accept any value of it under "*"`)
		}
	}
	for name, c := range child {
		if name == Unnamed {
			continue // a wildcard on both sides
		}
		p, named := parent[name]
		switch {
		case !named && !parentOpen:
			report("4p2", name, "the parent does not name it")
		case named && !p.optional && c.optional:
			report("4p3", name, "the parent requires it, the child makes it optional")
		case named && !Subsumes(p, c):
			report("4p4", name, brief(c)+" does not attenuate "+brief(p))
		}
	}
}

// subsumesArguments is widened for who needs no reasons.
func subsumesArguments(parent, child Arguments) bool {
	ok := true
	widened(parent, child, func(string, string, string) { ok = false })
	return ok
}
