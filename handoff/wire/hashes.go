package wire

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"fmt"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
)

// NewSalt returns SaltSize fresh random bytes.
func NewSalt() []byte {
	salt := make([]byte, SaltSize)
	rand.Read(salt) // never fails: crypto/rand ends the process instead
	return salt
}

// EncodeSalt is the form of a salt in [HeaderSalt].
func EncodeSalt(salt []byte) string { return base64.RawURLEncoding.EncodeToString(salt) }

// ParseSalt reads the value of [HeaderSalt]: SaltSize bytes as canonical base64url without padding.
func ParseSalt(header string) ([]byte, error) {
	salt, err := base64.RawURLEncoding.Strict().DecodeString(header)
	if err != nil || len(salt) != SaltSize || EncodeSalt(salt) != header {
		return nil, Refuse(CodeSalt, fmt.Sprintf("%s must be %d bytes as base64url without padding", HeaderSalt, SaltSize))
	}
	return salt, nil
}

// TaskHash is the hash that an offer's task_hash and a result's body_hash carry: base64url(SHA-256(salt ‖ body)),
// without padding. The salt keeps a short body from being guessed from its hash once both are deleted.
func TaskHash(salt, body []byte) string {
	h := sha256.New()
	h.Write(salt)
	h.Write(body)
	return base64.RawURLEncoding.EncodeToString(h.Sum(nil))
}

// TaskHashMatches compares want with the [TaskHash] of salt and body.
func TaskHashMatches(want string, salt, body []byte) bool {
	return subtle.ConstantTimeCompare([]byte(want), []byte(TaskHash(salt, body))) == 1
}

// RequestHash is the hash that a [SessionProof] carries: base64url(SHA-256(RFC 8785 form of request)) with the member
// "proof" set to "". It works on the request's own bytes, so that members which one side leaves out and the other
// spells empty cannot make the two disagree.
func RequestHash(request []byte) (string, error) { return requestHash(request, false, false) }

// PrincipalRequestHash is the hash that a [PrincipalProof] carries: as [RequestHash], with "principal.proof" set to
// "", too, and without "svid_proof". The person signs first, then the process.
func PrincipalRequestHash(request []byte) (string, error) { return requestHash(request, true, true) }

// OpenerRequestHash is the hash that an opener's SVID signs: as [RequestHash], without "svid_proof". A person signs before, the
// process after.
func OpenerRequestHash(request []byte) (string, error) { return requestHash(request, false, true) }

func requestHash(request []byte, principal, opener bool) (string, error) {
	var members map[string]jsontext.Value
	if err := json.Unmarshal(request, &members); err != nil || members == nil {
		return "", Refuse(CodeMalformed, "the request is not a JSON object with distinct members")
	}
	if principal {
		var person map[string]jsontext.Value
		if err := json.Unmarshal(members["principal"], &person); err != nil || person == nil {
			return "", Refuse(CodeMalformed, `the request's "principal" is not a JSON object`)
		}
		person["proof"] = jsontext.Value(`""`)
		value, err := json.Marshal(person)
		if err != nil {
			return "", Refuse(CodeMalformed, "the request cannot be put into canonical form")
		}
		members["principal"] = value
	}
	if opener {
		delete(members, "svid_proof")
	}
	members["proof"] = jsontext.Value(`""`)
	canonical, err := json.Marshal(members)
	if err == nil {
		err = (*jsontext.Value)(&canonical).Canonicalize()
	}
	if err != nil {
		return "", Refuse(CodeMalformed, "the request cannot be put into canonical form")
	}
	sum := sha256.Sum256(canonical)
	return base64.RawURLEncoding.EncodeToString(sum[:]), nil
}
