package policies

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math"
	"strconv"
	"strings"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/open-policy-agent/opa/v1/ast"
)

// decodeValue reads JSON straight into OPA's own terms, without a Go value between. Repeated members, invalid UTF-8 and
// trailing data are refused; so are numbers beyond a double, which big-integer arithmetic would expand without bound.
func decodeValue(data []byte) (ast.Value, error) {
	d := jsontext.NewDecoder(bytes.NewReader(data))
	v, err := readValue(d)
	if err != nil {
		return nil, err
	}
	if _, err := d.ReadToken(); !errors.Is(err, io.EOF) {
		return nil, errors.New("data after the JSON value")
	}
	return v, nil
}

func readValue(d *jsontext.Decoder) (ast.Value, error) {
	t, err := d.ReadToken()
	if err != nil {
		return nil, err
	}
	switch t.Kind() {
	case 'n':
		return ast.NullValue, nil
	case 't':
		return ast.Boolean(true), nil
	case 'f':
		return ast.Boolean(false), nil
	case '"':
		return ast.String(t.String()), nil
	case '0':
		text := t.String()
		if f, err := strconv.ParseFloat(text, 64); err != nil || math.IsInf(f, 0) {
			return nil, fmt.Errorf("number %.40s is out of range", text)
		}
		return ast.Number(text), nil
	case '[':
		var items []*ast.Term
		for d.PeekKind() != ']' {
			v, err := readValue(d)
			if err != nil {
				return nil, err
			}
			items = append(items, ast.NewTerm(v))
		}
		_, err := d.ReadToken()
		return ast.NewArray(items...), err
	default: // '{': the decoder yields no closing bracket where a value must be
		var members [][2]*ast.Term
		for d.PeekKind() != '}' {
			name, err := d.ReadToken()
			if err != nil {
				return nil, err
			}
			key, ok := memberNames[name.String()]
			if !ok {
				key = ast.StringTerm(name.String())
			}
			v, err := readValue(d)
			if err != nil {
				return nil, err
			}
			members = append(members, [2]*ast.Term{key, ast.NewTerm(v)})
		}
		_, err := d.ReadToken()
		return ast.NewObject(members...), err
	}
}

// memberNames holds the terms of the names that every input repeats; terms are shared, as OPA's own interned ones are.
var memberNames = func() map[string]*ast.Term {
	names := map[string]*ast.Term{}
	for name := range strings.FieldsSeq(`agent approvals args budget budget_ok by chain constraint_type content_type
		deadline_ok depth facts from handoffs hops_left id kind labels max max_hops min mode name opener path principal
		receiver sender stage status to tool tools trust_domain ttl value values`) {
		names[name] = ast.StringTerm(name)
	}
	return names
}()

// encodeValue writes v as RFC 8785 JSON. Sets become arrays in OPA's order, as in OPA's own answers.
func encodeValue(v ast.Value) ([]byte, error) {
	out, err := appendValue(nil, v)
	if err != nil {
		return nil, err
	}
	canonical := jsontext.Value(out)
	if err := canonical.Canonicalize(); err != nil {
		return nil, err
	}
	return canonical, nil
}

func appendValue(b []byte, v ast.Value) ([]byte, error) {
	switch v := v.(type) {
	case ast.Null:
		return append(b, "null"...), nil
	case ast.Boolean:
		return strconv.AppendBool(b, bool(v)), nil
	case ast.Number:
		return append(b, v...), nil
	case ast.String:
		return jsontext.AppendQuote(b, string(v))
	case *ast.Array:
		return appendList(b, v)
	case ast.Set:
		return appendList(b, v)
	case ast.Object:
		b = append(b, '{')
		first := true
		err := v.Iter(func(name, member *ast.Term) error {
			key, ok := name.Value.(ast.String)
			if !ok {
				return fmt.Errorf("an object has the key %v, which is not a string", name)
			}
			if !first {
				b = append(b, ',')
			}
			first = false
			var err error
			if b, err = jsontext.AppendQuote(b, string(key)); err != nil {
				return err
			}
			b, err = appendValue(append(b, ':'), member.Value)
			return err
		})
		return append(b, '}'), err
	}
	return nil, fmt.Errorf("%s is no JSON value", ast.ValueName(v))
}

func appendList(b []byte, list interface {
	Iter(func(*ast.Term) error) error
}) ([]byte, error) {
	b = append(b, '[')
	first := true
	err := list.Iter(func(item *ast.Term) error {
		if !first {
			b = append(b, ',')
		}
		first = false
		var err error
		b, err = appendValue(b, item.Value)
		return err
	})
	return append(b, ']'), err
}
