package wire

import (
	"errors"
	"strings"
	"testing"
)

func TestParseAnswer(t *testing.T) {
	a, err := ParseAnswer([]byte(`{"effect":"allow"}`))
	if err != nil || a.Ceiling != nil || a.TTL != 0 || a.MaxHops != NoHopCap {
		t.Errorf("an allowance without bounds is %+v, %v", a, err)
	}
	a, err = ParseAnswer([]byte(`{"effect":"hold","reasons":[{"code":"x_1","message":"m","hop":2}],"ceiling":{},"ttl":5,
		"max_hops":0,"obligations":{"a":[1]}}`))
	if err != nil || a.Ceiling == nil || len(a.Ceiling) != 0 || a.TTL != 5 || a.MaxHops != 0 || a.Reasons[0].Hop != 2 ||
		string(a.Obligations["a"]) != "[1]" {
		t.Errorf("got %+v, %v", a, err)
	}
	reason := `{"code":"x","message":"m"}`
	for name, text := range map[string]string{
		"nothing":            ``,
		"no object":          `[]`,
		"no effect":          `{}`,
		"null effect":        `{"effect":null}`,
		"other effect":       `{"effect":"permit"}`,
		"other case":         `{"Effect":"allow"}`,
		"repeated":           `{"effect":"allow","effect":"deny"}`,
		"unknown":            `{"effect":"allow","x":1}`,
		"trailing":           `{"effect":"allow"} {}`,
		"silent denial":      `{"effect":"deny"}`,
		"silent hold":        `{"effect":"hold","reasons":null}`,
		"reason of no code":  `{"effect":"deny","reasons":[{"message":"m"}]}`,
		"reason of bad code": `{"effect":"deny","reasons":[{"code":"A","message":"m"}]}`,
		"reason of no words": `{"effect":"deny","reasons":[{"code":"x"}]}`,
		"reason of many":     `{"effect":"deny","reasons":[{"code":"x","message":"` + strings.Repeat("m", 1025) + `"}]}`,
		"reason of bad hop":  `{"effect":"deny","reasons":[{"code":"x","message":"m","hop":-1}]}`,
		"unknown in reason":  `{"effect":"deny","reasons":[{"code":"x","message":"m","x":1}]}`,
		"too many reasons":   `{"effect":"deny","reasons":[` + strings.Repeat(reason+",", 64) + reason + `]}`,
		"fractional ttl":     `{"effect":"allow","ttl":1.5}`,
		"negative ttl":       `{"effect":"allow","ttl":-1}`,
		"large ttl":          `{"effect":"allow","ttl":2147483648}`,
		"hops below -1":      `{"effect":"allow","max_hops":-2}`,
		"unknown constraint": `{"effect":"allow","ceiling":{"t":{"a":{"constraint_type":"regex"}}}}`,
		"obligations list":   `{"effect":"allow","obligations":[]}`,
		"too large":          `{"effect":"allow","obligations":{"a":"` + strings.Repeat("a", MaxAnswer) + `"}}`,
	} {
		if a, err := ParseAnswer([]byte(text)); !errors.Is(err, &Error{Code: CodePolicyAnswer}) {
			t.Errorf("%s: got %+v, %v", name, a, err)
		}
	}
}

func FuzzParseAnswer(f *testing.F) {
	f.Add([]byte(`{"effect":"deny","reasons":[{"code":"x","message":"m","tool":"t"}],"ceiling":{"t":{}},"ttl":5}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		a, err := ParseAnswer(text)
		if err == nil && a.Effect != EffectAllow && len(a.Reasons) == 0 {
			t.Fatalf("%s is a denial without a reason", text)
		}
	})
}
