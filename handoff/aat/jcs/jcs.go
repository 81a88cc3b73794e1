// Package jcs puts JSON into its one canonical form, the JSON Canonicalization Scheme of RFC 8785, and refuses what that
// form would silently change.
//
// JCS writes every number as the double nearest to it, so 9007199254740993 and 9007199254740992 become the same text. A
// number is admissible when nothing is lost that way (AAT draft -02, section 3.4). A caller that compares canonical forms
// only of admissible JSON compares what was written.
package jcs

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
)

// ErrNumber is wrapped by the errors of [Canonical] that an inadmissible number causes.
var ErrNumber = errors.New("number is not exact as a double: send it as a string")

// Canonical returns the canonical form of one JSON value. It refuses what is not JSON, trailing data, invalid UTF-8, a
// member name that appears twice in an object, and inadmissible numbers. It does not change v; where v is canonical
// already, v itself comes back.
func Canonical(v []byte) ([]byte, error) {
	if err := Admissible(v); err != nil {
		return nil, err
	}
	// Numbers and escape-free strings need no rewriting; they are most of what constraints hold.
	if canonicalScalar(v) {
		return v, nil
	}
	return canonicalize(v)
}

// Rounded is [Canonical] by the letter of RFC 8785, which accepts inadmissible numbers and writes the doubles nearest to
// them. Numbers beyond the largest double it refuses: no double is nearest to them.
func Rounded(v []byte) ([]byte, error) {
	if err := eachNumber(v, finite); err != nil {
		return nil, err
	}
	return canonicalize(v)
}

func canonicalize(v []byte) ([]byte, error) {
	out := append(jsontext.Value(nil), v...)
	if err := out.Canonicalize(); err != nil {
		return nil, err
	}
	return out, nil
}

// Marshal returns the canonical JSON of a Go value.
func Marshal(v any) ([]byte, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return nil, err
	}
	return Canonical(b)
}

// Admissible refuses a JSON value that holds a number which its double does not represent. It trusts v to be JSON
// otherwise; on anything else it finishes without a useful answer.
func Admissible(v []byte) error { return eachNumber(v, admissibleNumber) }

// eachNumber refuses v where a number in it is not good.
func eachNumber(v []byte, good func(text string) bool) error {
	for i := 0; i < len(v); {
		switch c := v[i]; {
		case c == '"':
			for i++; i < len(v) && v[i] != '"'; i++ {
				if v[i] == '\\' {
					i++
				}
			}
			i++
		case c == '-' || '0' <= c && c <= '9':
			start := i
			for i < len(v) && strings.IndexByte("+-.0123456789Ee", v[i]) >= 0 {
				i++
			}
			if !good(string(v[start:i])) {
				return fmt.Errorf("%.40s: %w", v[start:i], ErrNumber)
			}
		default:
			i++
		}
	}
	return nil
}

func finite(text string) bool {
	_, err := strconv.ParseFloat(text, 64)
	return err == nil
}

// exactDigits is the length of an integer up to which every one is exact as a double.
const exactDigits = 15

// admissibleNumber says whether the double nearest to the JSON number text, written as JCS writes it, denotes the same
// number as text.
func admissibleNumber(text string) bool {
	if len(text) <= exactDigits && strings.Trim(text, "0123456789") == "" {
		return text != ""
	}
	f, err := strconv.ParseFloat(text, 64)
	if err != nil {
		return false
	}
	// The shortest text that reads back as f; JCS prints these very digits (RFC 8785, section 3.2.2.3).
	shortest := strconv.FormatFloat(f, 'e', -1, 64)
	d1, e1, ok1 := decimal(text)
	d2, e2, ok2 := decimal(shortest)
	return ok1 && ok2 && d1 == d2 && e1 == e2
}

// decimal returns the number as digits·10^exp, signed, where digits neither begin nor end with a zero. Zero is ("", 0).
func decimal(text string) (digits string, exp int, ok bool) {
	mantissa, e, hasExp := cutExponent(text)
	if hasExp {
		n, err := strconv.Atoi(e)
		if err != nil {
			// An exponent beyond int: fine for zero, no double for anything else.
			return "", 0, strings.Trim(mantissa, "-0.") == ""
		}
		exp = n
	}
	sign := ""
	if strings.HasPrefix(mantissa, "-") {
		sign, mantissa = "-", mantissa[1:]
	}
	whole, fraction, _ := strings.Cut(mantissa, ".")
	exp -= len(fraction)
	digits = strings.TrimLeft(whole+fraction, "0")
	trimmed := strings.TrimRight(digits, "0")
	if trimmed == "" {
		return "", 0, true
	}
	return sign + trimmed, exp + len(digits) - len(trimmed), true
}

func cutExponent(text string) (mantissa, exp string, found bool) {
	if i := strings.IndexAny(text, "eE"); i >= 0 {
		return text[:i], strings.TrimPrefix(text[i+1:], "+"), true
	}
	return text, "", false
}

// canonicalScalar recognizes, not completely, JSON scalars that are in canonical form.
func canonicalScalar(v []byte) bool {
	if len(v) == 0 {
		return false
	}
	switch v[0] {
	case '"':
		if len(v) < 2 || v[len(v)-1] != '"' {
			return false
		}
		for _, c := range v[1 : len(v)-1] {
			if c < ' ' || c == '"' || c == '\\' || c > '~' {
				return false
			}
		}
		return true
	case '1', '2', '3', '4', '5', '6', '7', '8', '9':
		return len(v) <= exactDigits && strings.Trim(string(v), "0123456789") == ""
	}
	switch string(v) {
	case "0", "true", "false", "null":
		return true
	}
	return false
}
