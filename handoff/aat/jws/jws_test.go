package jws_test

import (
	"crypto/ed25519"
	"encoding/base64"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/handoff-governor/handoff-governor/handoff/aat/jws"
)

const typ = "handoff-claim+jwt"

var (
	private = ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize))
	public  = private.Public().(ed25519.PublicKey)
	other   = ed25519.NewKeyFromSeed([]byte("another seed of exactly 32 bytes"))
)

func b64(s string) string { return base64.RawURLEncoding.EncodeToString([]byte(s)) }

// forge signs whatever header and payload it is given.
func forge(header, payload string) string {
	input := b64(header) + "." + b64(payload)
	return input + "." + b64(string(ed25519.Sign(private, []byte(input))))
}

func TestVerify(t *testing.T) {
	const good = `{"alg":"Ed25519","typ":"handoff-claim+jwt"}`
	token, err := jws.Sign(typ, []byte(`{"a":1}`), private)
	if err != nil || token != forge(good, `{"a":1}`) {
		t.Fatalf("Sign wrote %s (%v)", token, err)
	}
	if again, _ := jws.Sign(typ, []byte(`{"a":1}`), private); again != token {
		t.Fatal("signing is not deterministic")
	}
	segments := strings.Split(token, ".")
	flipped := []byte(token)
	flipped[len(segments[0])+2] ^= 1
	last := func(s string) string { // the same bytes with other trailing bits
		const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
		i := strings.IndexByte(alphabet, s[len(s)-1])
		return s[:len(s)-1] + string(alphabet[i^1])
	}

	for name, c := range map[string]struct {
		token string
		part  jws.Part // "" where it verifies
	}{
		"as signed":         {token, ""},
		"other member":      {forge(`{"kid":"x","typ":"handoff-claim+jwt","alg":"Ed25519","jku":"https://evil"}`, `{}`), ""},
		"payload not JSON":  {forge(good, "\xff"), ""},
		"too large":         {token + strings.Repeat("A", 4096), jws.Size},
		"empty":             {"", jws.Form},
		"two segments":      {segments[0] + "." + segments[1], jws.Form},
		"four segments":     {token + ".", jws.Form},
		"newline":           {segments[0] + "." + segments[1][:3] + "\n" + segments[1][3:] + "." + segments[2], jws.Payload},
		"padding":           {segments[0] + "." + segments[1] + "==." + segments[2], jws.Payload},
		"trailing bits":     {segments[0] + "." + last(segments[1]) + "." + segments[2], jws.Payload},
		"standard alphabet": {segments[0] + ".+/+/." + segments[2], jws.Payload},
		"header newline":    {segments[0] + "\n." + segments[1] + "." + segments[2], jws.Header},
		"header not JSON":   {forge(`x`, `{}`), jws.Header},
		"header null":       {forge(`null`, `{}`), jws.Header},
		"header array":      {forge(`["Ed25519"]`, `{}`), jws.Header},
		"header trailing":   {forge(good+`{}`, `{}`), jws.Header},
		"header UTF-8":      {forge("{\"alg\":\"Ed25519\",\"typ\":\"handoff-claim+jwt\",\"x\":\"\xff\"}", `{}`), jws.Header},
		"header huge":       {forge(`{"alg":"Ed25519","typ":"handoff-claim+jwt","x":"`+strings.Repeat("x", 4000)+`"}`, `{}`), jws.Size},
		"member twice":      {forge(`{"alg":"none","alg":"Ed25519","typ":"handoff-claim+jwt"}`, `{}`), jws.Header},
		"no alg":            {forge(`{"typ":"handoff-claim+jwt"}`, `{}`), jws.Header},
		"alg none":          {forge(`{"alg":"none","typ":"handoff-claim+jwt"}`, `{}`), jws.Header},
		"alg EdDSA":         {forge(`{"alg":"EdDSA","typ":"handoff-claim+jwt"}`, `{}`), jws.Header},
		"alg in capitals":   {forge(`{"ALG":"Ed25519","typ":"handoff-claim+jwt"}`, `{}`), jws.Header},
		"alg array":         {forge(`{"alg":["Ed25519"],"typ":"handoff-claim+jwt"}`, `{}`), jws.Header},
		"no typ":            {forge(`{"alg":"Ed25519"}`, `{}`), jws.Header},
		"typ with prefix":   {forge(`{"alg":"Ed25519","typ":"application/handoff-claim+jwt"}`, `{}`), jws.Header},
		"crit":              {forge(`{"alg":"Ed25519","crit":["b64"],"b64":false,"typ":"handoff-claim+jwt"}`, `{}`), jws.Header},
		"crit empty":        {forge(`{"alg":"Ed25519","crit":[],"typ":"handoff-claim+jwt"}`, `{}`), jws.Header},
		"payload flipped":   {string(flipped), jws.Signature},
		"no signature":      {segments[0] + "." + segments[1] + ".", jws.Signature},
		"signature bits":    {segments[0] + "." + segments[1] + "." + last(segments[2]), jws.Signature},
		"signature newline": {token + "\r\n", jws.Signature},
		"signature short":   {token[:len(token)-4], jws.Signature},
	} {
		t.Run(name, func(t *testing.T) {
			payload, err := jws.Verify(c.token, typ, public, 4096)
			e, _ := errors.AsType[*jws.Error](err)
			switch {
			case c.part == "" && err != nil:
				t.Fatal(err)
			case c.part != "" && (e == nil || e.Part != c.part || payload != nil):
				t.Fatalf("%q, %v; want a refusal of the %s", payload, err, c.part)
			}
		})
	}
	if _, err := jws.Verify(token, typ, other.Public().(ed25519.PublicKey), 4096); err == nil {
		t.Error("verifies under another key")
	}
	for _, key := range []ed25519.PublicKey{nil, public[:31]} {
		if _, err := jws.Verify(token, typ, key, 4096); err == nil {
			t.Errorf("verifies under a key of %d bytes", len(key))
		}
	}
	if _, err := jws.Sign(typ, nil, private[:32]); err == nil {
		t.Error("signs with a seed")
	}
}

func TestJSON(t *testing.T) {
	type statement struct {
		ID    string `json:"id"`
		Index uint64 `json:"index"`
	}
	token, err := jws.SignJSON(typ, statement{"x", 7}, private)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := jws.VerifyJSON[statement](token, typ, public, 4096); err != nil || got != (statement{"x", 7}) {
		t.Fatalf("%v, %v", got, err)
	}
	if _, err := jws.SignJSON(typ, statement{Index: 1<<53 + 1}, private); err == nil {
		t.Error("signed a number that its canonical form changes")
	}
	for _, payload := range []string{
		`{"id":"x","index":7,"more":1}`, `{"id":"x","id":"y","index":7}`, `{"id":"x","index":7} ` + "x", `{"ID":"x"}`, "{\"id\":\"\xff\"}",
		`{"id":7}`, ``,
	} {
		got, err := jws.VerifyJSON[statement](forge(`{"alg":"Ed25519","typ":"handoff-claim+jwt"}`, payload), typ, public, 4096)
		if err == nil || got != (statement{}) {
			t.Errorf("%q was read as %v", payload, got)
		}
	}
}

func FuzzParse(f *testing.F) {
	token, _ := jws.Sign(typ, []byte(`{"a":1}`), private)
	for _, s := range []string{token, "", "..", token + "\n", strings.ReplaceAll(token, "e", "="), forge(`{"alg":"none"}`, "")} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		u, err := jws.Parse(s, typ, 1<<16)
		if err != nil {
			if _, ok := errors.AsType[*jws.Error](err); !ok {
				t.Fatalf("%T", err)
			}
			return
		}
		if u.Verify(public) == nil && s != token && !strings.HasPrefix(s, u.SigningInput+".") {
			t.Fatalf("%q verifies over another signing input", s)
		}
		// One token, one spelling: what was read writes back to the same segments.
		if parts := strings.Split(s, "."); len(parts) != 3 || base64.RawURLEncoding.EncodeToString(u.Payload) != parts[1] {
			t.Fatalf("%q has a payload with two spellings", s)
		}
	})
}

// FuzzVerifyJSON plays a holder who signs whatever it likes: what is read is all that was said.
func FuzzVerifyJSON(f *testing.F) {
	type statement struct {
		ID     string   `json:"id"`
		Index  uint64   `json:"index,omitzero"`
		Labels []string `json:"labels,omitempty"`
	}
	for _, s := range []string{
		`{"id":"x"}`, `{"id":"x","index":7,"labels":["a",""]}`, `{"id":"x","id":"y"}`, `{"id":"x","more":1}`, `{"ID":"x"}`,
		`{"index":1e3}`, `{"index":-0}`, `null`, `{} {}`, "{\"id\":\"\xff\"}", `{"id":"\ud800"}`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, payload []byte) {
		token, err := jws.Sign(typ, payload, private)
		if err != nil {
			t.Fatal(err)
		}
		got, err := jws.VerifyJSON[statement](token, typ, public, 1<<20)
		if err != nil {
			if e, ok := errors.AsType[*jws.Error](err); !ok || got.ID != "" || got.Index != 0 || got.Labels != nil {
				t.Fatalf("refused with %v, %v", got, e)
			}
			return
		}
		if got.Index > 1<<53 { // no canonical form
			return
		}
		again, err := jws.SignJSON(typ, got, private)
		if err != nil {
			t.Fatal(err)
		}
		back, err := jws.VerifyJSON[statement](again, typ, public, 1<<20)
		if err != nil || back.ID != got.ID || back.Index != got.Index || !slices.Equal(back.Labels, got.Labels) {
			t.Fatalf("%q was read as %v, which comes back as %v (%v)", payload, got, back, err)
		}
	})
}
