package jcs_test

import (
	"bytes"
	"errors"
	"math/big"
	"strconv"
	"testing"

	"github.com/go-json-experiment/json/jsontext"
	"pgregory.net/rapid"

	"github.com/handoff-governor/handoff-governor/handoff/aat/jcs"
)

func TestCanonical(t *testing.T) {
	for in, want := range map[string]string{
		` { "b" : 1.0, "a" : [ true , null ] } `: `{"a":[true,null],"b":1}`,
		`"\u002fa\u00e9"`:                        `"/aé"`,
		`"\u0007\/"`:                             `"\u0007/"`,
		`1e2`:                                    `100`,
		`-0`:                                     `0`,
		`0e99999999999999999999`:                 `0`,
		`1E+20`:                                  `100000000000000000000`,
		`1e21`:                                   `1e+21`,
		`9007199254740994`:                       `9007199254740994`,
		`{"\ufb33":1,"😀":2}`:                     "{\"😀\":2,\"\uFB33\":1}", // UTF-16 order, RFC 8785 section 3.2.3
	} {
		got, err := jcs.Canonical([]byte(in))
		if err != nil || string(got) != want {
			t.Errorf("Canonical(%s) = %s, %v; want %s", in, got, err, want)
		}
	}
	for _, in := range []string{
		``, `{`, `{"a":1,"a":1}`, `{"a":1,"\u0061":1}`, `1 2`, "\"\xff\"", `"\ud800"`, `01`, `+1`, `.5`, `nul`, `'a'`, `{"a":1,}`,
	} {
		if got, err := jcs.Canonical([]byte(in)); err == nil {
			t.Errorf("Canonical(%q) = %s; want an error", in, got)
		}
	}
	for _, in := range []string{
		`9007199254740993`, `1.00000000000000001`, `1e400`, `-1e400`, `1e-400`, `[{"a":"1","b":[0.1000000000000000001]}]`,
		`123456789012345678901`, `1e99999999999999999999`,
	} {
		if got, err := jcs.Canonical([]byte(in)); !errors.Is(err, jcs.ErrNumber) {
			t.Errorf("Canonical(%s) = %s, %v; want ErrNumber", in, got, err)
		}
	}
	for in, want := range map[string]string{
		`[9007199254740993,1.00000000000000001,1e-400,"1e400"]`: `[9007199254740992,1,0,"1e400"]`,
		`{"b":1.7976931348623158e308,"a":-0}`:                   `{"a":0,"b":1.7976931348623157e+308}`,
		`1e400`:                                                 "", `{"a":[-1e400]}`: "", `{"a":1,"a":1}`: "",
	} {
		if got, err := jcs.Rounded([]byte(in)); string(got) != want || (err == nil) != (want != "") {
			t.Errorf("Rounded(%s) = %s, %v; want %s", in, got, err, want)
		}
	}
	if jcs.Admissible([]byte(`"1e400 \" 9007199254740993"`)) != nil {
		t.Error("numbers within a string are text")
	}
}

// TestAdmissibleNumbers compares with exact arithmetic: text and its canonical form denote one rational number.
func TestAdmissibleNumbers(t *testing.T) {
	number := rapid.StringMatching(`-?(0|[1-9][0-9]{0,20})(\.[0-9]{1,20})?([eE][-+]?[0-9]{1,3})?`)
	rapid.Check(t, func(t *rapid.T) {
		text := number.Draw(t, "number")
		want := false
		if _, err := strconv.ParseFloat(text, 64); err == nil {
			canonical := jsontext.Value(text)
			if err := canonical.Canonicalize(); err != nil {
				t.Fatal(err)
			}
			written, _ := new(big.Rat).SetString(text)
			rounded, _ := new(big.Rat).SetString(string(canonical))
			want = written.Cmp(rounded) == 0
		}
		if got := jcs.Admissible([]byte(text)) == nil; got != want {
			t.Fatalf("Admissible(%s) is %v", text, got)
		}
	})
}

func FuzzCanonical(f *testing.F) {
	for _, s := range []string{`{"b":1.0,"a":"\u002f"}`, `[9007199254740993]`, `-0`, "\"\xff\"", `{"a":{"a":{}}}`, `1e-7`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		before := bytes.Clone(in)
		out, err := jcs.Canonical(in)
		if !bytes.Equal(in, before) {
			t.Fatal("Canonical changed its input")
		}
		if err != nil {
			return
		}
		again, err := jcs.Canonical(out)
		if err != nil || !bytes.Equal(again, out) {
			t.Fatalf("%s canonicalizes to %s, that to %s (%v)", in, out, again, err)
		}
		reference := jsontext.Value(bytes.Clone(in))
		if err := reference.Canonicalize(); err != nil || !bytes.Equal(reference, out) {
			t.Fatalf("%q: %s, jsontext says %s (%v)", in, out, reference, err)
		}
	})
}
