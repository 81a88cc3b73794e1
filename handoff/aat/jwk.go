package aat

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"sync/atomic"

	"filippo.io/edwards25519"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/handoff-governor/handoff-governor/handoff/aat/jws"
)

// JWK is an Ed25519 public key as RFC 8037 writes it. Its JSON is exactly {"kty":"OKP","crv":"Ed25519","x":…}; any other
// member, and a private key's `d` first of all, is refused. The zero JWK is no key.
type JWK struct {
	Kty string `json:"kty"`
	Crv string `json:"crv"`
	X   string `json:"x"` // 32 bytes, base64url without padding
}

// NewJWK writes a public key as a JWK.
func NewJWK(key ed25519.PublicKey) JWK {
	return JWK{Kty: "OKP", Crv: "Ed25519", X: base64.RawURLEncoding.EncodeToString(key)}
}

// UnmarshalJSON refuses everything but the one form of a JWK. Whether X is a point that may be trusted, [JWK.Key] says.
func (j *JWK) UnmarshalJSON(b []byte) error {
	var read JWK
	err := decodeWhole(b, func(dec *jsontext.Decoder) error {
		return readObject(dec, func(name string) (err error) {
			switch name {
			case "kty":
				read.Kty, err = readString(dec)
			case "crv":
				read.Crv, err = readString(dec)
			case "x":
				read.X, err = readString(dec)
			default:
				err = fmt.Errorf("member %q does not belong to a public key", name)
			}
			return err
		})
	})
	if err != nil {
		return fmt.Errorf("jwk: %w", err)
	}
	if _, err := read.bytes(); err != nil {
		return err
	}
	*j = read
	return nil
}

func (j JWK) bytes() ([]byte, error) {
	if j.Kty != "OKP" || j.Crv != "Ed25519" {
		return nil, errors.New(`jwk: want kty "OKP" and crv "Ed25519"`)
	}
	x, err := jws.Decode(j.X)
	if err != nil || len(x) != ed25519.PublicKeySize {
		return nil, fmt.Errorf("jwk: x must be %d bytes in base64url without padding", ed25519.PublicKeySize)
	}
	return x, nil
}

// Key returns the public key. It refuses an x that is not the canonical encoding of a point on the curve, and points of
// small order, under which a signature proves nothing.
func (j JWK) Key() (ed25519.PublicKey, error) {
	x, err := j.bytes()
	if err != nil {
		return nil, err
	}
	slot := &goodKeys[x[0]]
	if known := slot.Load(); known != nil && bytes.Equal(known[:], x) {
		return x, nil
	}
	point, err := new(edwards25519.Point).SetBytes(x)
	if err != nil || !bytes.Equal(point.Bytes(), x) {
		return nil, errors.New("jwk: x is not the canonical encoding of a point of edwards25519")
	}
	if new(edwards25519.Point).MultByCofactor(point).Equal(edwards25519.NewIdentityPoint()) == 1 {
		return nil, errors.New("jwk: x is a point of small order")
	}
	slot.Store((*[ed25519.PublicKeySize]byte)(bytes.Clone(x)))
	return x, nil
}

// goodKeys remembers keys that passed, each in the one slot that its first byte names. The check is a sixth of a
// signature's cost, and most links name a key that was just seen: the governor's, or that of an agent at work.
var goodKeys [256]atomic.Pointer[[ed25519.PublicKeySize]byte]

// Thumbprint is the SHA-256 JWK thumbprint (RFC 7638), base64url without padding.
func (j JWK) Thumbprint() string {
	sum := sha256.Sum256([]byte(`{"crv":"` + j.Crv + `","kty":"` + j.Kty + `","x":"` + j.X + `"}`))
	return base64.RawURLEncoding.EncodeToString(sum[:])
}

// thumbprintURI is the prefix of a JWK thumbprint URI (RFC 9278).
const thumbprintURI = "urn:ietf:params:oauth:jwk-thumbprint:sha-256:"

// ThumbprintURI names the key as the `iss` of the links it signs (RFC 9278).
func (j JWK) ThumbprintURI() string { return thumbprintURI + j.Thumbprint() }
