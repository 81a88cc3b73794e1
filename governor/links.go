package governor

import (
	"crypto/ed25519"
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/handoff-governor/handoff-governor/handoff/aat"
	"github.com/handoff-governor/handoff-governor/handoff/aat/jws"
	"github.com/handoff-governor/handoff-governor/handoff/aat/profile"
	"github.com/handoff-governor/handoff-governor/handoff/wire"
)

// signedOnce signs a claim link at first use. The ledger holds it unsigned, and Ed25519 is deterministic: however often
// it is signed, the bytes are the same.
func signedOnce(link *aat.Link, signer ed25519.PrivateKey) func() (string, error) {
	return sync.OnceValues(func() (string, error) {
		if signer == nil {
			return "", errors.New("the governor key that this link needs has been destroyed")
		}
		signed, err := link.Sign(signer)
		if err != nil {
			return "", err
		}
		return signed.Compact, nil
	})
}

// verifierAt is v with its clock stopped, so that one reading decides about everything.
func verifierAt(v *aat.Verifier, at time.Time) *aat.Verifier {
	stopped := *v
	stopped.Now = func() time.Time { return at }
	return &stopped
}

// restoreRoot verifies a root again, at the time its entry was written (Unix milliseconds): under a key that was trusted then.
func (st *State) restoreRoot(compact string, at int64) (*profile.Link, error) {
	t := st.trust()
	v := *verifierAt(t.verifier, time.UnixMilli(at))
	v.Anchors = t.past
	root, err := v.Root(compact)
	if err != nil {
		return nil, err
	}
	st.profile.Issuers = t.profile.Issuers
	return st.profile.Root(root)
}

// restoreOffer reads an offer back that was admitted or held, and so named a key that was the governor's then.
func (st *State) restoreOffer(parent *profile.Link, compact string) (*profile.Link, error) {
	link, err := aat.RestoreToken(parent.Link, compact)
	if err != nil {
		return nil, err
	}
	issuer := link.Chain()[0].Claims.Issuer
	if keys := st.profile.Governors[issuer]; !slices.ContainsFunc(keys, func(k ed25519.PublicKey) bool { return k.Equal(link.Holder()) }) {
		st.profile.Governors[issuer] = append(slices.Clip(keys), link.Holder())
	}
	return st.profile.Child(parent, link)
}

// restoreClaim reads a claim link back from the payload that the ledger holds of it.
func (st *State) restoreClaim(offer *profile.Link, payload []byte) (*profile.Link, error) {
	link, err := aat.Restore(offer.Link, payload)
	if err != nil {
		return nil, err
	}
	return st.profile.Child(offer, link)
}

// peeked is what an offer says of itself before anybody has vouched for it.
type peeked struct {
	ID         string
	ParentHash string
	Claim      wire.HandoffClaim // empty where it is missing or malformed: denied offers may carry anything
}

// peek reads an offer link that is not verified. Nothing it returns may be believed.
func peek(compact string) (peeked, error) {
	u, err := jws.Parse(compact, aat.TokenType, wire.MaxToken)
	if err != nil {
		return peeked{}, err
	}
	var claims struct {
		ID         string         `json:"jti"`
		ParentHash string         `json:"par_hash"`
		Handoff    jsontext.Value `json:"handoff"`
	}
	if err := json.Unmarshal(u.Payload, &claims); err != nil {
		return peeked{}, err
	}
	p := peeked{ID: claims.ID, ParentHash: claims.ParentHash}
	if err := json.Unmarshal(claims.Handoff, &p.Claim, json.RejectUnknownMembers(true)); err != nil {
		p.Claim = wire.HandoffClaim{}
	}
	return p, nil
}

// peekResult reads a result token that was verified before the ledger took it.
func peekResult(compact string) (wire.ResultToken, error) {
	var claim wire.ResultToken
	u, err := jws.Split(compact, wire.MaxToken)
	if err != nil {
		return claim, err
	}
	return claim, json.Unmarshal(u.Payload, &claim)
}

// parseHash reads a base64url SHA-256 without padding.
func parseHash(s string) (h [32]byte, err error) {
	raw, err := base64.RawURLEncoding.Strict().DecodeString(s)
	if err == nil && len(raw) != len(h) {
		err = fmt.Errorf("a hash of %d bytes", len(raw))
	}
	copy(h[:], raw)
	return h, err
}
