// Package jws signs and verifies JSON Web Signatures in one strict form: compact serialization (RFC 7515), Ed25519
// (RFC 8032) under its fully specified name (RFC 9864), an explicit type (RFC 8725, section 3.11), and a key that never
// comes from the token.
//
// A token is read in three steps that cannot be taken out of order by accident: [Split] takes it apart, [Unverified.Header]
// checks its protected header, [Unverified.Verify] its signature. [Verify] does all three and only then gives the payload.
package jws

import (
	"crypto/ed25519"
	"encoding/base64"
	"fmt"
	"strings"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/handoff-governor/handoff-governor/handoff/aat/jcs"
)

// Algorithm is the only `alg` accepted.
const Algorithm = "Ed25519"

// maxHeader bounds the encoded protected header in bytes; ours have fewer than 60.
const maxHeader = 4096

// Part is the part of a token that an [Error] is about.
type Part string

// The parts, in the order they are checked.
const (
	Size      Part = "size"
	Form      Part = "form" // not three segments
	Payload   Part = "payload"
	Header    Part = "header"
	Signature Part = "signature"
)

// Error says why a token was refused.
type Error struct {
	Part   Part
	Reason string
}

func (e *Error) Error() string { return "jws " + string(e.Part) + ": " + e.Reason }

func refuse(part Part, format string, args ...any) error {
	return &Error{Part: part, Reason: fmt.Sprintf(format, args...)}
}

// strict refuses padding and non-zero trailing bits; decode also refuses the line breaks that Go's decoder skips.
var strict = base64.RawURLEncoding.Strict()

func decode(segment string) ([]byte, error) {
	if i := strings.IndexAny(segment, "\r\n"); i >= 0 {
		return nil, base64.CorruptInputError(i)
	}
	return strict.DecodeString(segment)
}

// Decode reads base64url as JOSE writes it (RFC 7515, appendix C) and refuses every other spelling of the same bytes:
// padding, line breaks, non-zero trailing bits.
func Decode(segment string) ([]byte, error) { return decode(segment) }

// Unverified is a token that was taken apart and not yet believed.
type Unverified struct {
	// SigningInput is the part of the token that its signature covers, as presented.
	SigningInput string
	// Payload is the decoded payload. Nothing may be concluded from it before Verify.
	Payload []byte

	header, signature string
}

// Split takes a token of at most max bytes apart. The errors are *[Error] of the parts Size, Form and Payload.
func Split(compact string, max int) (*Unverified, error) {
	if len(compact) > max {
		return nil, refuse(Size, "%d bytes, at most %d are accepted", len(compact), max)
	}
	dot1 := strings.IndexByte(compact, '.')
	dot2 := strings.LastIndexByte(compact, '.')
	if dot1 < 0 || dot1 == dot2 || strings.IndexByte(compact[dot1+1:dot2], '.') >= 0 {
		return nil, refuse(Form, "a compact JWS has three segments with dots between them")
	}
	payload, err := decode(compact[dot1+1 : dot2])
	if err != nil {
		return nil, refuse(Payload, "%v", err)
	}
	return &Unverified{
		SigningInput: compact[:dot2],
		Payload:      payload,
		header:       compact[:dot1],
		signature:    compact[dot2+1:],
	}, nil
}

// Header checks that the protected header has `alg` Ed25519 and exactly this `typ`, and no `crit`: this package
// understands no extension. Other parameters, and every key among them, are ignored. The error is an *[Error] of the
// part Header.
func (u *Unverified) Header(typ string) error {
	if u.header == encodedHeader(typ) {
		return nil
	}
	if len(u.header) > maxHeader {
		return refuse(Header, "%d bytes, at most %d are accepted", len(u.header), maxHeader)
	}
	raw, err := decode(u.header)
	if err != nil {
		return refuse(Header, "%v", err)
	}
	var h map[string]jsontext.Value
	if err := json.Unmarshal(raw, &h); err != nil || h == nil {
		return refuse(Header, "not one JSON object with distinct members: %v", err)
	}
	if _, ok := h["crit"]; ok {
		return refuse(Header, "crit names extensions, and none is understood")
	}
	if err := member(h, "alg", Algorithm); err != nil {
		return err
	}
	return member(h, "typ", typ)
}

func member(h map[string]jsontext.Value, name, want string) error {
	var got string
	if v, ok := h[name]; !ok || v.Kind() != '"' || json.Unmarshal(v, &got) != nil || got != want {
		return refuse(Header, "%s must be %q", name, want)
	}
	return nil
}

// Verify checks the signature over the signing input as presented. The error is an *[Error] of the part Signature.
func (u *Unverified) Verify(key ed25519.PublicKey) error {
	signature, err := decode(u.signature)
	if err != nil {
		return refuse(Signature, "%v", err)
	}
	if len(key) != ed25519.PublicKeySize || len(signature) != ed25519.SignatureSize ||
		!ed25519.Verify(key, []byte(u.SigningInput), signature) {
		return refuse(Signature, "does not verify under the expected key")
	}
	return nil
}

// Parse is Split and Header: what can be checked without a key.
func Parse(compact, typ string, max int) (*Unverified, error) {
	u, err := Split(compact, max)
	if err != nil {
		return nil, err
	}
	if err := u.Header(typ); err != nil {
		return nil, err
	}
	return u, nil
}

// Verify returns the payload of a token of at most max bytes that has exactly this type and was signed by key. It does
// not look into the payload. The errors are *[Error].
func Verify(compact, typ string, key ed25519.PublicKey, max int) (payload []byte, err error) {
	u, err := Parse(compact, typ, max)
	if err != nil {
		return nil, err
	}
	if err := u.Verify(key); err != nil {
		return nil, err
	}
	return u.Payload, nil
}

// VerifyJSON is [Verify] for a payload that is the JSON of a T and nothing more: members that T lacks, members that
// appear twice, trailing data and invalid UTF-8 are refused (an *[Error] of the part Payload). It cannot know which of
// T's members must be there.
func VerifyJSON[T any](compact, typ string, key ed25519.PublicKey, max int) (T, error) {
	var v T
	payload, err := Verify(compact, typ, key, max)
	if err != nil {
		return v, err
	}
	if err := json.Unmarshal(payload, &v, json.RejectUnknownMembers(true)); err != nil {
		return *new(T), refuse(Payload, "%v", err)
	}
	return v, nil
}

// Sign makes a token of the payload, byte for byte. Ed25519 is deterministic: the same call gives the same token.
func Sign(typ string, payload []byte, key ed25519.PrivateKey) (string, error) {
	if len(key) != ed25519.PrivateKeySize {
		return "", refuse(Signature, "a private key has %d bytes, this one %d", ed25519.PrivateKeySize, len(key))
	}
	input := SigningInput(typ, payload)
	return input + "." + strict.EncodeToString(ed25519.Sign(key, []byte(input))), nil
}

// SigningInput returns what [Sign] signs for this payload.
func SigningInput(typ string, payload []byte) string {
	return encodedHeader(typ) + "." + strict.EncodeToString(payload)
}

// SignJSON signs the canonical JSON (RFC 8785) of v.
func SignJSON(typ string, v any, key ed25519.PrivateKey) (string, error) {
	payload, err := jcs.Marshal(v)
	if err != nil {
		return "", fmt.Errorf("encoding the payload of %s: %w", typ, err)
	}
	return Sign(typ, payload, key)
}

// encodedHeader is the protected header this package writes. Types are constants of the program and need no escaping.
func encodedHeader(typ string) string {
	return strict.EncodeToString([]byte(`{"alg":"` + Algorithm + `","typ":"` + typ + `"}`))
}
