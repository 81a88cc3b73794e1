package aat

import (
	"cmp"
	"fmt"
	"slices"
)

// Dropped says why [Meet] left a tool out.
type Dropped struct {
	Tool     string
	Argument string // "" where no one argument is the cause
	Reason   string
}

// Meet returns the widest claim that both the offer and the ceiling allow, in a form that attenuates the offer.
//
// The result attenuates the offer structurally, by the pair table of draft section 4.5, so that [SubsumesTools] accepts it
// as a child of whatever the offer is a child of. It permits no invocation that the ceiling refuses. The table has no
// form for some intersections (a range with a hole, a list under not_one_of): then there is no widest claim to choose, the
// tool is left out whole, and dropped says why, ordered by tool. Nothing is ever granted instead of nothing.
//
// Granted shares its maps and constraints with the offer and the ceiling where it can: change none of them afterwards.
//
// Meet is deterministic; Meet(a, a) is a, and Meet(Meet(a, b), b) is Meet(a, b). A nil ceiling permits nothing, like an
// empty one: whether a policy that names no ceiling means "no limit" is its caller's to decide.
func Meet(offer, ceiling Tools) (granted Tools, dropped []Dropped) {
	granted = Tools{}
	for tool, offered := range offer {
		permitted, ok := ceiling[tool]
		if !ok {
			dropped = append(dropped, Dropped{Tool: tool, Reason: "the ceiling does not grant it"})
			continue
		}
		met, argument, reason := meetArguments(offered, permitted)
		if reason != "" {
			dropped = append(dropped, Dropped{Tool: tool, Argument: argument, Reason: reason})
			continue
		}
		granted[tool] = met
	}
	slices.SortFunc(dropped, func(a, b Dropped) int { return cmp.Compare(a.Tool, b.Tool) })
	return granted, dropped
}

// meetArguments is Meet for one tool. A reason means that the tool is dropped.
func meetArguments(offered, permitted Arguments) (met Arguments, argument, reason string) {
	if subsumesArguments(permitted, offered) {
		return offered, "", "" // every spelling of it, {} too, stays as it was
	}
	o, p := offered.normalized(), permitted.normalized()
	_, offerOpen := o[Unnamed]
	_, ceilingOpen := p[Unnamed]
	open := offerOpen && ceilingOpen
	met = Arguments{}
	if open {
		met[Unnamed] = Wildcard()
	}
	for _, name := range sortedNames(o, p) {
		mine, offerNames := o[name]
		theirs, ceilingNames := p[name]
		switch {
		case offerNames && ceilingNames:
			both, out := meet(mine, theirs)
			optional := mine.optional && theirs.optional
			switch {
			case out == whole:
				both.optional = optional
				met[name] = both
			case out == inexpressible:
				return nil, name, fmt.Sprintf("no constraint under %s expresses %s as well", brief(mine), brief(theirs))
			case !optional:
				return nil, name, fmt.Sprintf("no value is within both %s and %s", brief(mine), brief(theirs))
			case open:
				return nil, name, fmt.Sprintf(`no value is within both %s and %s, and "*" cannot leave it out`,
					brief(mine), brief(theirs))
			}
			// No value satisfies both, and it may be left out: so it is forbidden, by not being named.
		case offerNames && ceilingOpen:
			met[name] = mine
		case offerNames && !mine.optional:
			return nil, name, "the offer requires it and the ceiling forbids it"
		case ceilingNames && offerOpen:
			met[name] = theirs
		case ceilingNames && !theirs.optional:
			return nil, name, "the ceiling requires it and the offer forbids it"
		}
	}
	if len(met) == 0 {
		return nil, "", "only a call without arguments is within both, and a constraint map cannot say so"
	}
	return met, "", ""
}

func sortedNames(maps ...Arguments) []string {
	var names []string
	for _, m := range maps {
		for name := range m {
			if name != Unnamed {
				names = append(names, name)
			}
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// outcome is how a meet of two constraints ended.
type outcome int

const (
	whole         outcome = iota // the constraint returned is their intersection
	empty                        // no value satisfies both
	inexpressible                // some value may, but the pair table has no widest form for what is left
)

// maxClauses bounds the any that a meet of two any can grow to; maxSteps bounds the work, which nests of any can make
// exponential. Beyond either the constraint is inexpressible.
const (
	maxClauses = 256
	maxSteps   = 1 << 14
)

// meet is the meet of two arguments. What is granted must be granted again when it is met with the same ceiling: a policy
// that is asked again has not changed its mind. Near the bounds above the second meet can fail where the first did not, so
// it is tried.
func meet(mine, theirs Constraint) (Constraint, outcome) {
	both, out := new(meeting).meet(mine, theirs)
	if out == whole {
		if again, out := new(meeting).meet(both, theirs); out != whole || !again.Equal(both) {
			return Constraint{}, inexpressible
		}
	}
	return both, out
}

// meeting is the meet of one argument's two constraints.
type meeting struct{ steps int }

// meet returns the intersection of o and c as a constraint that attenuates o. Neither's optional counts.
func (m *meeting) meet(o, c Constraint) (Constraint, outcome) {
	o.optional, c.optional = false, false
	if m.steps++; m.steps > maxSteps {
		return Constraint{}, inexpressible
	}
	switch {
	case Subsumes(c, o):
		return o, whole
	case o.typ == TypeWildcard:
		return c, whole
	case o.typ == TypeExact || o.typ == TypeOneOf:
		return meetValues(o, c)
	case o.typ == TypeAll:
		return m.meetAll(o, c)
	case o.typ == TypeAny:
		return m.meetAny(o, c)
	}
	// What is left offers a range, not_one_of, contains or subset.
	switch c.typ {
	case TypeAll:
		return m.meetEvery(o, c.clauses)
	case TypeAny:
		return m.meetSome(o, c.clauses)
	case TypeExact, TypeOneOf:
		return meetList(o, c)
	case TypeNotOneOf:
		if o.typ != TypeNotOneOf {
			return meetWithout(o, c)
		}
	}
	return meetSameKind(o, c)
}

// meetValues filters the offer's list: exact in every case.
func meetValues(o, c Constraint) (Constraint, outcome) {
	kept := slices.DeleteFunc(slices.Clone(o.values), func(v string) bool { return !c.accepted(v) })
	if len(kept) == 0 {
		return Constraint{}, empty
	}
	return Constraint{typ: o.typ, values: kept}, whole
}

// meetAll adds what the ceiling asks as further clauses. A clause that some clause of the offer attenuates adds nothing.
func (m *meeting) meetAll(o, c Constraint) (Constraint, outcome) {
	added := []Constraint{c}
	if c.typ == TypeAll {
		added = c.clauses
	}
	clauses := slices.Clone(o.clauses)
	for _, add := range added {
		if slices.ContainsFunc(clauses, func(d Constraint) bool { return Subsumes(add, d) }) {
			continue
		}
		for _, d := range clauses {
			if _, out := m.meet(d, add); out == empty {
				return Constraint{}, empty
			}
		}
		clauses = append(clauses, add)
	}
	met, err := newComposite(TypeAll, clauses)
	if err != nil { // too deep
		return Constraint{}, inexpressible
	}
	return met, whole
}

// meetAny meets every clause of the offer with the ceiling, or with each clause of a ceiling that is an any itself.
func (m *meeting) meetAny(o, c Constraint) (Constraint, outcome) {
	var clauses []Constraint
	for _, mine := range o.clauses {
		met, out := m.meet(mine, c)
		switch {
		case out == whole:
			clauses = append(clauses, met)
		case out == inexpressible && c.typ == TypeAny:
			for _, theirs := range c.clauses {
				met, out := m.meet(mine, theirs)
				if out == inexpressible {
					return Constraint{}, inexpressible
				}
				if out == whole {
					clauses = append(clauses, met)
				}
			}
		case out == inexpressible:
			return Constraint{}, inexpressible
		}
		if len(clauses) > maxClauses {
			return Constraint{}, inexpressible
		}
	}
	if len(clauses) == 0 {
		return Constraint{}, empty
	}
	met, err := newComposite(TypeAny, dropRedundant(clauses))
	if err != nil {
		return Constraint{}, inexpressible
	}
	return met, whole
}

// dropRedundant leaves out each clause that another subsumes; of two that subsume each other the first stays.
func dropRedundant(clauses []Constraint) []Constraint {
	var kept []Constraint
	for i, c := range clauses {
		redundant := slices.ContainsFunc(kept, func(k Constraint) bool { return Subsumes(k, c) }) ||
			slices.ContainsFunc(clauses[i+1:], func(d Constraint) bool { return Subsumes(d, c) && !Subsumes(c, d) })
		if !redundant {
			kept = append(kept, c)
		}
	}
	return kept
}

// meetEvery meets o with each clause of an all. A clause that has no form now may have one when others have narrowed o,
// so it is tried again as long as that helps.
func (m *meeting) meetEvery(o Constraint, clauses []Constraint) (Constraint, outcome) {
	for left := clauses; ; {
		var again []Constraint
		for _, c := range left {
			met, out := m.meet(o, c)
			switch out {
			case empty:
				return Constraint{}, empty
			case inexpressible:
				again = append(again, c)
			default:
				o = met
			}
		}
		switch len(again) {
		case 0:
			return o, whole
		case len(left):
			return Constraint{}, inexpressible
		}
		left = again
	}
}

// meetSome meets o with an any: what is left is a union, and has a form here only where one part holds all the others.
func (m *meeting) meetSome(o Constraint, clauses []Constraint) (Constraint, outcome) {
	var parts []Constraint
	lost := false
	for _, c := range clauses {
		met, out := m.meet(o, c)
		switch out {
		case inexpressible:
			lost = true
		case whole:
			parts = append(parts, met)
		}
	}
	for _, part := range parts {
		if Subsumes(part, o) {
			return o, whole // whatever the lost parts hold
		}
	}
	if lost {
		return Constraint{}, inexpressible
	}
	if len(parts) == 0 {
		return Constraint{}, empty
	}
	for _, part := range parts {
		if !slices.ContainsFunc(parts, func(other Constraint) bool { return !Subsumes(part, other) }) {
			return part, whole
		}
	}
	return Constraint{}, inexpressible
}

// meetList meets a range, not_one_of, contains or subset with a list. Of those only a range can become a single value.
func meetList(o, c Constraint) (Constraint, outcome) {
	kept := slices.DeleteFunc(slices.Clone(c.values), func(v string) bool { return !o.accepted(v) })
	switch {
	case len(kept) == 0:
		return Constraint{}, empty
	case len(kept) == 1 && o.typ == TypeRange:
		return Constraint{typ: TypeExact, values: kept}, whole
	}
	return Constraint{}, inexpressible
}

// meetWithout takes a list away from a range, contains or subset. A range can lose its ends.
func meetWithout(o, c Constraint) (Constraint, outcome) {
	for _, v := range c.values {
		if !o.accepted(v) {
			continue
		}
		if o.typ != TypeRange {
			return Constraint{}, inexpressible
		}
		switch num, _ := number(v); {
		case o.lo.text != "" && num == o.lo.num:
			o.lo.exclusive = true
		case o.hi.text != "" && num == o.hi.num:
			o.hi.exclusive = true
		default:
			return Constraint{}, inexpressible
		}
	}
	if o.typ == TypeRange && isEmptyRange(o) {
		return Constraint{}, empty
	}
	return o, whole
}

// meetSameKind meets what the table can only narrow within one type.
func meetSameKind(o, c Constraint) (Constraint, outcome) {
	switch {
	case o.typ == TypeRange && c.typ == TypeRange:
		if compareLower(c.lo, o.lo) > 0 {
			o.lo = c.lo
		}
		if compareUpper(c.hi, o.hi) < 0 {
			o.hi = c.hi
		}
		if isEmptyRange(o) {
			return Constraint{}, empty
		}
		return o, whole
	case o.typ == c.typ && (o.typ == TypeNotOneOf || o.typ == TypeContains):
		o.values = union(o.values, c.values)
		return o, whole
	case o.typ == TypeSubset && c.typ == TypeSubset:
		o.values = slices.DeleteFunc(slices.Clone(o.values), func(v string) bool { return !c.has(v) })
		return o, whole
	case o.typ == TypeContains && c.typ == TypeSubset:
		if !isSubset(o.values, c.values) {
			return Constraint{}, empty
		}
	case o.typ == TypeSubset && c.typ == TypeContains:
		if !isSubset(c.values, o.values) {
			return Constraint{}, empty
		}
	case o.typ == TypeRange || c.typ == TypeRange:
		if o.typ != TypeNotOneOf { // numbers on one side, arrays on the other
			return Constraint{}, empty
		}
	}
	return Constraint{}, inexpressible
}

func isEmptyRange(c Constraint) bool {
	if c.lo.text == "" || c.hi.text == "" {
		return false
	}
	return c.lo.num > c.hi.num || c.lo.num == c.hi.num && (c.lo.exclusive || c.hi.exclusive)
}

func union(a, b []string) []string {
	all := slices.Concat(a, b)
	slices.Sort(all)
	return slices.Compact(all)
}
