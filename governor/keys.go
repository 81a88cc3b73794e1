package governor

import (
	"crypto/ed25519"
	"errors"

	"github.com/handoff-governor/handoff-governor/handoff/aat"
)

// Keys are the governor's own: the holders of odd links. The first is the one that new offers must name; the others
// are in their overlap, and sign the claims of offers that still name them.
type Keys struct {
	private []ed25519.PrivateKey
	public  []aat.JWK
	byPrint map[string]int
}

// NewKeys takes the current key first.
func NewKeys(private ...ed25519.PrivateKey) (*Keys, error) {
	if len(private) == 0 {
		return nil, errors.New("the governor needs at least one key")
	}
	k := &Keys{private: private, byPrint: map[string]int{}}
	for i, p := range private {
		if len(p) != ed25519.PrivateKeySize {
			return nil, errors.New("a governor key is not an Ed25519 private key")
		}
		jwk := aat.NewJWK(p.Public().(ed25519.PublicKey))
		k.public = append(k.public, jwk)
		k.byPrint[jwk.Thumbprint()] = i
	}
	return k, nil
}

// Public are the keys that guards must trust, the current one first.
func (k *Keys) Public() []aat.JWK { return k.public }

func (k *Keys) current() (ed25519.PrivateKey, aat.JWK) { return k.private[0], k.public[0] }

// signer is the private half of the key with that thumbprint, or nil once it is destroyed.
func (k *Keys) signer(thumbprint string) ed25519.PrivateKey {
	if i, ok := k.byPrint[thumbprint]; ok {
		return k.private[i]
	}
	return nil
}

func (k *Keys) holds(thumbprint string) bool {
	_, ok := k.byPrint[thumbprint]
	return ok
}

func (k *Keys) publicKeys() []ed25519.PublicKey {
	out := make([]ed25519.PublicKey, 0, len(k.private))
	for _, p := range k.private {
		out = append(out, p.Public().(ed25519.PublicKey))
	}
	return out
}
