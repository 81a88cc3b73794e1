package aat

import (
	"errors"
	"fmt"
	"slices"
	"strconv"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/handoff-governor/handoff-governor/handoff/aat/jcs"
)

// MaxConstraintDepth is how deep constraints may nest (draft section 3.4). A constraint other than all and any has depth
// 1; these have one more than their deepest clause.
const MaxConstraintDepth = 32

// Type is a constraint's `constraint_type`.
type Type string

// The core constraint types (draft section 3.4). No extension type is implemented; every other name is refused.
const (
	TypeExact    Type = "exact"
	TypeRange    Type = "range"
	TypeOneOf    Type = "one_of"
	TypeNotOneOf Type = "not_one_of"
	TypeContains Type = "contains"
	TypeSubset   Type = "subset"
	TypeWildcard Type = "wildcard"
	TypeAll      Type = "all"
	TypeAny      Type = "any"
)

// Constraint is a predicate over one tool argument. Constraints come from the constructors below or from JSON; either
// way they are well-formed, and they do not change. The zero Constraint has no type: it accepts nothing, attenuates
// nothing, and cannot be encoded.
type Constraint struct {
	typ      Type
	optional bool
	// values has canonical JSON texts, sorted and each once: one for exact, the set for one_of, not_one_of, contains
	// and subset. Values are compared by canonical form (draft section 3.4), so texts are all that is needed.
	values  []string
	lo, hi  Bound // of a range
	clauses []Constraint
}

// Bound is one end of a range. The zero Bound leaves that end open.
type Bound struct {
	text string // canonical JSON number, "" where there is no bound
	// num is the double of text. Canonical numbers and doubles correspond one to one and in the same order, so
	// comparing doubles compares the numbers written.
	num       float64
	exclusive bool
}

// AtMost and AtLeast include the number; LessThan and MoreThan do not. They take a JSON number as text, such as "100"
// or "0.5", and panic where it is not an admissible one: bounds that come from elsewhere are read with
// [Constraint.UnmarshalJSON].
func AtMost(number string) Bound { return mustBound(number, false) }

// AtLeast is the lower bound that includes number; see [AtMost].
func AtLeast(number string) Bound { return mustBound(number, false) }

// LessThan is the upper bound that excludes number; see [AtMost].
func LessThan(number string) Bound { return mustBound(number, true) }

// MoreThan is the lower bound that excludes number; see [AtMost].
func MoreThan(number string) Bound { return mustBound(number, true) }

func mustBound(number string, exclusive bool) Bound {
	b, err := newBound([]byte(number), exclusive)
	if err != nil {
		panic("aat: bound: " + err.Error())
	}
	return b
}

func newBound(raw jsontext.Value, exclusive bool) (Bound, error) {
	text, err := jcs.Canonical(raw)
	if err != nil {
		return Bound{}, err
	}
	num, ok := number(string(text))
	if !ok {
		return Bound{}, errors.New("not a number")
	}
	return Bound{text: string(text), num: num, exclusive: exclusive}, nil
}

// number reads a canonical JSON text that is a number.
func number(text string) (num float64, ok bool) {
	if jsontext.Value(text).Kind() != '0' {
		return 0, false
	}
	num, err := strconv.ParseFloat(text, 64)
	return num, err == nil
}

// Exact accepts the one value given, a string, number, boolean or null. Like every constructor that takes Go values it
// panics where they have no JSON or the rules of draft section 3.4 forbid them; they are for values the program knows.
func Exact(value any) Constraint {
	return must(newSet(TypeExact, texts([]any{value})))
}

// OneOf accepts the values given. There must be at least one.
func OneOf(values ...any) Constraint { return must(newSet(TypeOneOf, texts(values))) }

// NotOneOf accepts everything but the values given.
func NotOneOf(excluded ...any) Constraint { return must(newSet(TypeNotOneOf, texts(excluded))) }

// Contains accepts arrays that have every one of the values given.
func Contains(required ...any) Constraint { return must(newSet(TypeContains, texts(required))) }

// Subset accepts arrays that have no value but those given.
func Subset(allowed ...any) Constraint { return must(newSet(TypeSubset, texts(allowed))) }

// Wildcard accepts every value.
func Wildcard() Constraint { return Constraint{typ: TypeWildcard} }

// Range accepts numbers from lo to hi; a zero [Bound] leaves its end open.
func Range(lo, hi Bound) Constraint { return must(newRange(lo, hi)) }

// All accepts what every clause accepts. There must be at least one, and none may be optional.
func All(clauses ...Constraint) Constraint { return must(newComposite(TypeAll, clauses)) }

// Any accepts what at least one clause accepts. There must be at least one, and none may be optional.
func Any(clauses ...Constraint) Constraint { return must(newComposite(TypeAny, clauses)) }

func must(c Constraint, err error) Constraint {
	if err != nil {
		panic("aat: " + err.Error())
	}
	return c
}

func texts(values []any) []string {
	out := make([]string, len(values))
	for i, v := range values {
		b, err := jcs.Marshal(v)
		if err != nil {
			panic("aat: " + err.Error())
		}
		out[i] = string(b)
	}
	return out
}

func newSet(typ Type, values []string) (Constraint, error) {
	slices.Sort(values)
	values = slices.Compact(values)
	switch {
	case typ == TypeOneOf && len(values) == 0:
		return Constraint{}, errors.New("one_of has no values; to permit nothing, leave the tool out")
	case typ == TypeExact && (values[0][0] == '{' || values[0][0] == '['):
		return Constraint{}, errors.New("the value of exact must be a string, number, boolean or null")
	}
	return Constraint{typ: typ, values: values}, nil
}

func newRange(lo, hi Bound) (Constraint, error) {
	if lo.text != "" && hi.text != "" && lo.num > hi.num {
		return Constraint{}, errors.New("min of range is greater than max")
	}
	return Constraint{typ: TypeRange, lo: lo, hi: hi}, nil
}

func newComposite(typ Type, clauses []Constraint) (Constraint, error) {
	if len(clauses) == 0 {
		return Constraint{}, fmt.Errorf("%s has no constraints", typ)
	}
	c := Constraint{typ: typ, clauses: slices.Clone(clauses)}
	for _, clause := range clauses {
		if clause.typ == "" {
			return Constraint{}, fmt.Errorf("a clause of %s has no type", typ)
		}
		if clause.optional {
			return Constraint{}, fmt.Errorf("a clause of %s is optional; only a whole argument can be", typ)
		}
	}
	if c.depth() > MaxConstraintDepth {
		return Constraint{}, fmt.Errorf("constraints nest deeper than %d", MaxConstraintDepth)
	}
	return c, nil
}

func (c Constraint) depth() int {
	deepest := 0
	for _, clause := range c.clauses {
		deepest = max(deepest, clause.depth())
	}
	return deepest + 1
}

// count is how many constraints c is, with all that are within it.
func (c Constraint) count() int {
	n := 1
	for _, clause := range c.clauses {
		n += clause.count()
	}
	return n
}

// Type returns the constraint's type, "" for the zero Constraint.
func (c Constraint) Type() Type { return c.typ }

// Optional says whether the argument may be left out.
func (c Constraint) Optional() bool { return c.optional }

// AsOptional returns the same constraint on an argument that may be left out. Where it is left out, the tool's own
// default applies, which no constraint sees (draft section 9.13).
func (c Constraint) AsOptional() Constraint {
	c.optional = true
	return c
}

// AsRequired returns the same constraint on an argument that must be there.
func (c Constraint) AsRequired() Constraint {
	c.optional = false
	return c
}

// Equal says whether both constraints are written alike, but for the order and repetition of set members.
func (c Constraint) Equal(d Constraint) bool {
	return c.typ == d.typ && c.optional == d.optional && c.lo == d.lo && c.hi == d.hi &&
		slices.Equal(c.values, d.values) && slices.EqualFunc(c.clauses, d.clauses, Constraint.Equal)
}

// String returns the constraint as JSON.
func (c Constraint) String() string {
	if c.typ == "" {
		return "(no constraint)"
	}
	return string(c.append(nil))
}

// MarshalJSON writes the constraint in canonical form, with sets sorted.
func (c Constraint) MarshalJSON() ([]byte, error) {
	if c.typ == "" {
		return nil, errors.New("aat: a zero Constraint cannot be encoded")
	}
	return c.append(nil), nil
}

// append writes canonical JSON: members stand here in the order that JCS gives them.
func (c Constraint) append(b []byte) []byte {
	b = append(b, '{')
	if c.typ == TypeSubset {
		b = append(appendSet(b, `"allowed":`, c.values), ',')
	}
	b = append(append(append(b, `"constraint_type":"`...), c.typ...), '"')
	switch c.typ {
	case TypeAll, TypeAny:
		b = append(b, `,"constraints":`...)
		for i, clause := range c.clauses {
			b = clause.append(append(b, "[,"[min(i, 1)]))
		}
		b = append(b, ']')
	case TypeNotOneOf:
		b = appendSet(b, `,"excluded":`, c.values)
	case TypeRange:
		b = c.hi.append(b, "max")
		b = c.lo.append(b, "min")
	}
	if c.optional {
		b = append(b, `,"optional":true`...)
	}
	switch c.typ {
	case TypeContains:
		b = appendSet(b, `,"required":`, c.values)
	case TypeExact:
		b = append(append(b, `,"value":`...), c.values[0]...)
	case TypeOneOf:
		b = appendSet(b, `,"values":`, c.values)
	}
	return append(b, '}')
}

func appendSet(b []byte, member string, values []string) []byte {
	b = append(append(b, member...), '[')
	for i, v := range values {
		if i > 0 {
			b = append(b, ',')
		}
		b = append(b, v...)
	}
	return append(b, ']')
}

func (e Bound) append(b []byte, member string) []byte {
	if e.text == "" {
		return b
	}
	b = append(append(append(b, `,"`...), member...), `":`...)
	b = append(b, e.text...)
	if e.exclusive {
		b = append(append(append(b, `,"`...), member...), `_inclusive":false`...)
	}
	return b
}

// UnmarshalJSON reads one constraint strictly: the members of its type and no others, each once.
func (c *Constraint) UnmarshalJSON(b []byte) error {
	return decodeWhole(b, func(dec *jsontext.Decoder) (err error) {
		*c, err = readConstraint(dec, 1, true)
		return err
	})
}

// readConstraint reads a constraint that nests depth deep, from 1. The member `optional` is refused where the draft
// forbids it: in clauses and under "*".
func readConstraint(dec *jsontext.Decoder, depth int, mayBeOptional bool) (Constraint, error) {
	if depth > MaxConstraintDepth {
		return Constraint{}, fmt.Errorf("constraints nest deeper than %d", MaxConstraintDepth)
	}
	var (
		c       Constraint
		members []string // that were seen and belong to one type
	)
	err := readObject(dec, func(name string) (err error) {
		if name != "constraint_type" && name != "optional" {
			members = append(members, name)
		}
		switch name {
		case "constraint_type":
			var s string
			s, err = readString(dec)
			c.typ = Type(s)
		case "optional":
			if !mayBeOptional {
				return errors.New("optional belongs to a named argument alone")
			}
			c.optional, err = readBool(dec)
		case "value":
			err = readValue(dec, &c.values)
		case "values", "excluded", "required", "allowed":
			err = readArray(dec, func() error { return readValue(dec, &c.values) })
		case "min":
			err = readBound(dec, &c.lo)
		case "max":
			err = readBound(dec, &c.hi)
		case "min_inclusive":
			c.lo.exclusive, err = readExclusive(dec)
		case "max_inclusive":
			c.hi.exclusive, err = readExclusive(dec)
		case "constraints":
			err = readArray(dec, func() error {
				clause, err := readConstraint(dec, depth+1, false)
				c.clauses = append(c.clauses, clause)
				return err
			})
		default:
			return fmt.Errorf("a constraint has no member %q", name)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		return nil
	})
	if err != nil {
		return Constraint{}, err
	}
	return c.wellFormed(members)
}

// wellFormed applies the rules of draft section 3.4 to a constraint as it was read, with these members.
func (c Constraint) wellFormed(members []string) (Constraint, error) {
	var (
		made Constraint
		err  error
	)
	switch c.typ {
	case TypeExact, TypeOneOf, TypeNotOneOf, TypeContains, TypeSubset, TypeAll, TypeAny:
		if want := onlyMember[c.typ]; len(members) != 1 || members[0] != want {
			return Constraint{}, fmt.Errorf("%s has exactly the member %s", c.typ, want)
		}
		if c.typ == TypeAll || c.typ == TypeAny {
			made, err = newComposite(c.typ, c.clauses)
		} else {
			made, err = newSet(c.typ, c.values)
		}
	case TypeRange:
		has := func(m string) bool { return slices.Contains(members, m) }
		for _, m := range members {
			switch {
			case m == "min", m == "max", m == "min_inclusive" && has("min"), m == "max_inclusive" && has("max"):
			default:
				return Constraint{}, fmt.Errorf("range cannot have %s here", m)
			}
		}
		made, err = newRange(c.lo, c.hi)
	case TypeWildcard:
		if len(members) != 0 {
			return Constraint{}, fmt.Errorf("wildcard has no member %s", members[0])
		}
		made = Wildcard()
	case "":
		return Constraint{}, errors.New("constraint_type is missing")
	default:
		return Constraint{}, fmt.Errorf("constraint type %q is not implemented", c.typ)
	}
	made.optional = c.optional
	return made, err
}

// onlyMember names the one member a type has beside constraint_type and optional.
var onlyMember = map[Type]string{ // :: type → member
	TypeExact: "value", TypeOneOf: "values", TypeNotOneOf: "excluded", TypeContains: "required", TypeSubset: "allowed",
	TypeAll: "constraints", TypeAny: "constraints",
}

func readBound(dec *jsontext.Decoder, b *Bound) error {
	raw, err := dec.ReadValue()
	if err != nil {
		return err
	}
	read, err := newBound(raw, b.exclusive)
	*b = read
	return err
}

func readExclusive(dec *jsontext.Decoder) (bool, error) {
	inclusive, err := readBool(dec)
	return !inclusive, err
}

func readBool(dec *jsontext.Decoder) (bool, error) {
	if kind := dec.PeekKind(); kind != 't' && kind != 'f' {
		return false, unexpected(dec, "true or false")
	}
	tok, err := dec.ReadToken()
	return err == nil && tok.Bool(), err
}

func readString(dec *jsontext.Decoder) (string, error) {
	if dec.PeekKind() != '"' {
		return "", unexpected(dec, "a string")
	}
	tok, err := dec.ReadToken()
	if err != nil {
		return "", err
	}
	return tok.String(), nil
}

// readValue appends the canonical text of the next value.
func readValue(dec *jsontext.Decoder, values *[]string) error {
	raw, err := dec.ReadValue()
	if err != nil {
		return err
	}
	text, err := jcs.Canonical(raw)
	*values = append(*values, string(text))
	return err
}
