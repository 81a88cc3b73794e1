package governor

import (
	"crypto/ed25519"
	"errors"
	"slices"
	"sync/atomic"
	"time"

	"github.com/handoff-governor/handoff-governor/governor/keyring"
	"github.com/handoff-governor/handoff-governor/handoff/aat"
	"github.com/handoff-governor/handoff-governor/handoff/wire"
)

// Keys are the governor's own: the holders of odd links. One is the current one, which new offers must name. Others are on their
// way in, and guards get to know them; or on their way out, and sign the claims of offers that name them. Its methods are safe for
// use by several goroutines at once.
type Keys struct {
	now  func() time.Time
	ring atomic.Pointer[ring]
}

// ring is a keyring with what is looked for in it.
type ring struct {
	keyring.Ring
	jwks    []aat.JWK      // of each
	byPrint map[string]int // :: thumbprint → index
}

// NewKeys takes the keys, and the clock that says which of them is current; nil: time.Now.
func NewKeys(keys keyring.Ring, now func() time.Time) (*Keys, error) {
	k := &Keys{now: now}
	if now == nil {
		k.now = time.Now
	}
	return k, k.Replace(keys)
}

// Replace takes other keys in place of those there are. What is signed from then on is signed with them.
func (k *Keys) Replace(keys keyring.Ring) error {
	if len(keys) == 0 {
		return errors.New("the governor needs at least one key")
	}
	r := &ring{Ring: slices.Clone(keys), byPrint: map[string]int{}}
	for i, key := range keys {
		if len(key.Private) != ed25519.PrivateKeySize {
			return errors.New("a governor key is not an Ed25519 private key")
		}
		jwk := key.JWK()
		r.jwks = append(r.jwks, jwk)
		r.byPrint[jwk.Thumbprint()] = i
	}
	k.ring.Store(r)
	return nil
}

// Live are the keys that guards must trust now, the current one first.
func (k *Keys) Live() keyring.Ring { return k.ring.Load().Live(k.now()) }

// Public are their public halves.
func (k *Keys) Public() []aat.JWK {
	live := k.Live()
	out := make([]aat.JWK, len(live))
	for i, key := range live {
		out[i] = key.JWK()
	}
	return out
}

// ending are those of them that are not trusted for ever, and until when.
func (k *Keys) ending() []wire.EndingKey {
	var out []wire.EndingKey
	for _, key := range k.Live() {
		if !key.Until.IsZero() {
			out = append(out, wire.EndingKey{JWK: key.JWK(), Until: key.Until.Unix()})
		}
	}
	return out
}

func (k *Keys) current() (ed25519.PrivateKey, aat.JWK) {
	r := k.ring.Load()
	current := r.Current(k.now())
	for i, key := range r.Ring {
		if key.Private.Equal(current.Private) {
			return key.Private, r.jwks[i]
		}
	}
	return nil, aat.JWK{} // it is one of them
}

// signer is the private half of the key with that thumbprint, or nil once it is destroyed.
func (k *Keys) signer(thumbprint string) ed25519.PrivateKey {
	r := k.ring.Load()
	if i, ok := r.byPrint[thumbprint]; ok && !r.Ring[i].Dead(k.now()) {
		return r.Ring[i].Private
	}
	return nil
}

// takes tells whether a new offer may name the key with that thumbprint.
func (k *Keys) takes(thumbprint string) bool {
	r := k.ring.Load()
	i, ok := r.byPrint[thumbprint]
	return ok && r.Ring[i].Takes(k.now())
}

// holds tells whether the key with that thumbprint is the governor's.
func (k *Keys) holds(thumbprint string) bool {
	_, ok := k.ring.Load().byPrint[thumbprint]
	return ok
}
