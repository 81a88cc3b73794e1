package wire

import "github.com/handoff-governor/handoff-governor/handoff/aat"

// JWKS is a set of public keys (RFC 7517, section 5).
type JWKS struct {
	Keys []PublishedKey `json:"keys"`
}

// PublishedKey is a public key as JWKS readers expect it, with what it is for.
type PublishedKey struct {
	Kty string `json:"kty"`
	Crv string `json:"crv"`
	X   string `json:"x"`
	Kid string `json:"kid"` // RFC 7638 thumbprint
	Use string `json:"use"` // sig
}

// NewJWKS publishes keys, in their order.
func NewJWKS(keys []aat.JWK) JWKS {
	set := JWKS{Keys: []PublishedKey{}}
	for _, k := range keys {
		set.Keys = append(set.Keys, PublishedKey{Kty: k.Kty, Crv: k.Crv, X: k.X, Kid: k.Thumbprint(), Use: "sig"})
	}
	return set
}

// JWKs are the keys of a set that are Ed25519 keys for signatures; others are left out.
func (s JWKS) JWKs() []aat.JWK {
	var keys []aat.JWK
	for _, k := range s.Keys {
		jwk := aat.JWK{Kty: k.Kty, Crv: k.Crv, X: k.X}
		if _, err := jwk.Key(); err == nil && (k.Use == "" || k.Use == "sig") {
			keys = append(keys, jwk)
		}
	}
	return keys
}
