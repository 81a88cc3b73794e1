package wire_test

import (
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"testing"

	"github.com/handoff-governor/handoff-governor/handoff/wire"
)

func sum(s string) string {
	h := sha256.Sum256([]byte(s))
	return base64.RawURLEncoding.EncodeToString(h[:])
}

func TestRequestHash(t *testing.T) {
	t.Parallel()
	canonical := sum(`{"id":"x","labels":[],"principal":{"kind":"human","name":"ann","proof":"P"},"proof":"","ttl":60}`)
	person := sum(`{"id":"x","labels":[],"principal":{"kind":"human","name":"ann","proof":""},"proof":"","ttl":60}`)
	for name, request := range map[string]string{
		"as sent":        `{"id":"x","labels":[],"principal":{"kind":"human","name":"ann","proof":"P"},"ttl":60,"proof":"Q"}`,
		"spelled apart":  `{ "ttl": 60.0, "proof": "", "principal": {"name":"\u0061nn","proof":"P","kind":"human"}, "labels": [], "id":"x"}`,
		"proof left out": `{"id":"x","labels":[],"principal":{"kind":"human","name":"ann","proof":"P"},"ttl":60}`,
	} {
		if got, err := wire.RequestHash([]byte(request)); err != nil || got != canonical {
			t.Errorf("%s: RequestHash = %q, %v, want %q", name, got, err, canonical)
		}
		if got, err := wire.PrincipalRequestHash([]byte(request)); err != nil || got != person {
			t.Errorf("%s: PrincipalRequestHash = %q, %v, want %q", name, got, err, person)
		}
	}
	for _, bad := range []string{``, `null`, `[]`, `{"id":1,"id":1}`, `{"id":1} {}`, "{\"id\":\"\xff\"}"} {
		if _, err := wire.RequestHash([]byte(bad)); !errors.Is(err, &wire.Error{Code: wire.CodeMalformed}) {
			t.Errorf("RequestHash(%q) = %v, want malformed", bad, err)
		}
	}
	if _, err := wire.PrincipalRequestHash([]byte(`{"principal":null}`)); err == nil {
		t.Error("PrincipalRequestHash accepted a request without a principal")
	}
}

func TestSalt(t *testing.T) {
	t.Parallel()
	salt := wire.NewSalt()
	got, err := wire.ParseSalt(wire.EncodeSalt(salt))
	if err != nil || string(got) != string(salt) {
		t.Fatalf("ParseSalt(EncodeSalt(s)) = %x, %v", got, err)
	}
	good := wire.EncodeSalt(make([]byte, 32))
	for _, bad := range []string{"", good + "=", good[:42], good + "A", good[:42] + "B", good[:20] + "\n" + good[20:]} {
		if _, err := wire.ParseSalt(bad); !errors.Is(err, &wire.Error{Code: wire.CodeSalt}) {
			t.Errorf("ParseSalt(%q) = %v, want salt_invalid", bad, err)
		}
	}
	if wire.TaskHash([]byte("ab"), []byte("c")) != sum("abc") {
		t.Error("TaskHash is not SHA-256(salt ‖ body)")
	}
}
