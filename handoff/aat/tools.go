package aat

import (
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/go-json-experiment/json/jsontext"
)

// Tools is a capability claim: what may be called, and with what. Tool identifiers are compared as exact strings; URIs
// are best (draft section 3.3.1). An empty map permits nothing. A nil map is encoded as null and stands for no claim at
// all; where a decision hangs on it, it permits nothing either.
type Tools map[string]Arguments // :: tool → its arguments

// Arguments has a constraint for each argument of a tool. An argument it does not name is refused, unless it has the
// entry [Unnamed]. An empty map means {"*": wildcard}: every argument is accepted (draft section 3.3).
type Arguments map[string]Constraint // :: argument → what it must satisfy

// Unnamed is the key of the entry for every argument that a map does not name. Its constraint is a wildcard.
const Unnamed = "*"

var anyArguments = Arguments{Unnamed: Wildcard()}

// normalized spells the empty map out.
func (a Arguments) normalized() Arguments {
	if len(a) == 0 {
		return anyArguments
	}
	return a
}

// Equal says whether both maps are written alike, but for the order and repetition of set members. A map that is empty
// and one that spells "*" out mean the same but are not equal.
func (a Arguments) Equal(b Arguments) bool { return maps.EqualFunc(a, b, Constraint.Equal) }

// Equal says whether both claims are written alike; see [Arguments.Equal]. Nil and empty are not equal.
func (t Tools) Equal(u Tools) bool {
	return (t == nil) == (u == nil) && maps.EqualFunc(t, u, Arguments.Equal)
}

// Names returns the tool identifiers in order.
func (t Tools) Names() []string { return slices.Sorted(maps.Keys(t)) }

// Constraints counts the constraints of all arguments, those within all and any among them. The time that [SubsumesTools]
// and [Meet] take grows with the product of both sides' counts, so who compares claims of strangers bounds it.
func (t Tools) Constraints() int {
	n := 0
	for _, args := range t {
		for _, c := range args {
			n += c.count()
		}
	}
	return n
}

// MarshalJSON writes the tools in the order of their names, null where t is nil.
func (t Tools) MarshalJSON() ([]byte, error) {
	if t == nil {
		return []byte("null"), nil
	}
	return appendMap(nil, t, func(b []byte, name string, a Arguments) ([]byte, error) {
		b, err := a.append(b)
		if err != nil {
			return nil, fmt.Errorf("tool %q: %w", name, err)
		}
		return b, nil
	})
}

// MarshalJSON writes the arguments in the order of their names.
func (a Arguments) MarshalJSON() ([]byte, error) { return a.append(nil) }

func (a Arguments) append(b []byte) ([]byte, error) {
	return appendMap(b, a, func(b []byte, name string, c Constraint) ([]byte, error) {
		if err := c.mayStandAt(name); err != nil {
			return nil, fmt.Errorf("argument %q: %w", name, err)
		}
		return c.append(b), nil
	})
}

func appendMap[V any](b []byte, m map[string]V, value func([]byte, string, V) ([]byte, error)) (_ []byte, err error) {
	b = append(b, '{')
	for i, name := range slices.Sorted(maps.Keys(m)) {
		if i > 0 {
			b = append(b, ',')
		}
		if b, err = jsontext.AppendQuote(b, name); err != nil {
			return nil, fmt.Errorf("name %q: %w", name, err)
		}
		if b, err = value(append(b, ':'), name, m[name]); err != nil {
			return nil, err
		}
	}
	return append(b, '}'), nil
}

// mayStandAt refuses what no constraint map may hold.
func (c Constraint) mayStandAt(argument string) error {
	switch {
	case c.typ == "":
		return errors.New("a zero Constraint cannot be used")
	case argument == Unnamed && (c.typ != TypeWildcard || c.optional):
		return errors.New("it must be a wildcard and not optional")
	}
	return nil
}

// UnmarshalJSON reads a map of tools strictly; null makes t nil.
func (t *Tools) UnmarshalJSON(b []byte) error {
	if jsontext.Value(b).Kind() == 'n' {
		*t = nil
		return nil
	}
	return decodeWhole(b, func(dec *jsontext.Decoder) (err error) {
		*t, err = readTools(dec)
		return err
	})
}

// UnmarshalJSON reads a constraint map strictly.
func (a *Arguments) UnmarshalJSON(b []byte) error {
	return decodeWhole(b, func(dec *jsontext.Decoder) (err error) {
		*a, err = readArguments(dec)
		return err
	})
}

func readTools(dec *jsontext.Decoder) (Tools, error) {
	tools := Tools{}
	err := readObject(dec, func(name string) (err error) {
		tools[name], err = readArguments(dec)
		if err != nil {
			return fmt.Errorf("tool %q: %w", name, err)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return tools, nil
}

func readArguments(dec *jsontext.Decoder) (Arguments, error) {
	args := Arguments{}
	err := readObject(dec, func(name string) (err error) {
		c, err := readConstraint(dec, 1, name != Unnamed)
		if err == nil {
			err = c.mayStandAt(name)
		}
		if err != nil {
			return fmt.Errorf("argument %q: %w", name, err)
		}
		args[name] = c
		return nil
	})
	if err != nil {
		return nil, err
	}
	return args, nil
}
