// Package issuer signs roots: the other key. It judges every request for itself, from the opener's own proofs and its own
// ceiling. Where it checks openers' SVIDs, it takes nothing on the word of the governor that carries the request; else the stamped
// sender alone. A stolen governor key can therefore make no root.
package issuer

import (
	"context"
	"crypto/ed25519"
	"errors"
	"net/url"
	"slices"
	"sync/atomic"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"

	"github.com/handoff-governor/handoff-governor/governor"
	"github.com/handoff-governor/handoff-governor/governor/keyring"
	"github.com/handoff-governor/handoff-governor/handoff/aat"
	"github.com/handoff-governor/handoff-governor/handoff/aat/jws"
	"github.com/handoff-governor/handoff-governor/handoff/aat/profile"
	"github.com/handoff-governor/handoff-governor/handoff/identity"
	"github.com/handoff-governor/handoff-governor/handoff/wire"
)

// Config of an issuer. URI, Keys and Governor must be there.
type Config struct {
	URI      string       // iss of every root
	Keys     keyring.Ring // sign roots
	Governor string       // the governor's URI, which openers name as aud of their proofs
	// Ceiling is the most that any root may hold. Nil: whatever the opener asks for and the governor's policy leaves.
	Ceiling aat.Tools
	// MaxTTL is the longest lifetime of a root. 0: a day.
	MaxTTL time.Duration
	// Bundles are the trust bundles that openers' SVIDs are checked with: each workload proves itself to the issuer, over the
	// very request. Nil: the issuer takes the governor's word for who opens a session.
	Bundles x509bundle.Source
	// People are the keys of human principals, by name. A person who is not here cannot be one.
	People map[string]aat.JWK
	// Now is the clock. Nil: time.Now.
	Now func() time.Time
}

// Issuer signs roots. Its methods are safe for use by several goroutines at once.
type Issuer struct {
	cfg  Config
	ring atomic.Pointer[keyring.Ring]
}

// skew is how far the clocks of openers may be off.
const skew = 30 * time.Second

// New checks the configuration.
func New(cfg Config) (*Issuer, error) {
	if u, err := url.Parse(cfg.URI); err != nil || u.Scheme == "" {
		return nil, errors.New("an issuer's URI must be absolute")
	}
	if cfg.Governor == "" {
		return nil, errors.New("an issuer needs the governor's URI")
	}
	for name, jwk := range cfg.People {
		if _, err := jwk.Key(); err != nil {
			return nil, errors.New("the key of the person " + name + ": " + err.Error())
		}
	}
	if cfg.MaxTTL == 0 {
		cfg.MaxTTL = 24 * time.Hour
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	i := &Issuer{cfg: cfg}
	return i, i.Replace(cfg.Keys)
}

// Replace takes other keys in place of those there are. What is signed from then on is signed with them.
func (i *Issuer) Replace(keys keyring.Ring) error {
	if len(keys) == 0 || slices.ContainsFunc(keys, func(k keyring.Key) bool { return len(k.Private) != ed25519.PrivateKeySize }) {
		return errors.New("an issuer needs an Ed25519 key")
	}
	keys = slices.Clone(keys)
	i.ring.Store(&keys)
	return nil
}

// Held is how many keys there are, with those that nobody trusts any more.
func (i *Issuer) Held() int { return len(*i.ring.Load()) }

// Ring are the keys that are trusted now, the current one first.
func (i *Issuer) Ring() keyring.Ring { return i.ring.Load().Live(i.cfg.Now()) }

// URI is the issuer's name.
func (i *Issuer) URI() string { return i.cfg.URI }

// Keys are the trust anchors.
func (i *Issuer) Keys() []aat.JWK {
	live := i.Ring()
	out := make([]aat.JWK, len(live))
	for n, key := range live {
		out[n] = key.JWK()
	}
	return out
}

// Issue judges a request and signs the root: what the opener asked for, within the governor's terms and the issuer's own
// ceiling. Refusals are *[wire.Error].
func (i *Issuer) Issue(_ context.Context, opener string, body []byte, terms governor.RootTerms) (string, error) {
	var request wire.OpenRequest
	if err := json.Unmarshal(body, &request, json.RejectUnknownMembers(true)); err != nil {
		return "", wire.Refuse(wire.CodeMalformed, "the request is not the JSON that docs/wire.md shows")
	}
	if !profile.IsID(request.ID) {
		return "", wire.Refuse(wire.CodeID, "a session's ID is a UUIDv7 in lower case with hyphens")
	}
	if err := i.checkOpener(opener, request, body); err != nil {
		return "", err
	}
	if err := i.checkPrincipal(opener, request.Principal, body); err != nil {
		return "", err
	}
	if err := i.checkSVID(opener, request.SVIDProof, body); err != nil {
		return "", err
	}
	if err := i.checkTerms(request, terms); err != nil {
		return "", err
	}
	note, err := json.Marshal(wire.HandoffClaim{Session: request.ID, To: opener})
	if err != nil {
		return "", err
	}
	return aat.Issue(aat.Claims{
		ID: request.ID, Issuer: i.cfg.URI, IssuedAt: terms.IssuedAt, ExpiresAt: terms.Expires, Holder: request.JWK,
		MaxDepth: terms.MaxDepth, Tools: terms.Tools, Extra: map[string]jsontext.Value{profile.ClaimName: note},
	}, i.ring.Load().Current(i.cfg.Now()).Private)
}

// checkOpener asks for the proof of the very process that will hold the root, over this very request.
func (i *Issuer) checkOpener(opener string, request wire.OpenRequest, body []byte) error {
	key, err := request.JWK.Key()
	if err != nil {
		return wire.Refuse(wire.CodeKey, "jwk: "+err.Error())
	}
	if slices.Contains(i.Keys(), request.JWK) {
		return wire.Refuse(wire.CodeKey, "this is the issuer's key; generate one of your own")
	}
	proof, err := jws.VerifyJSON[wire.SessionProof](request.Proof, wire.TypeSession, key, wire.MaxToken)
	if err != nil {
		return wire.Refuse(wire.CodeProof, "the request's proof: "+err.Error())
	}
	hash, err := wire.RequestHash(body)
	if err != nil {
		return err
	}
	if proof.Verb != wire.VerbSessionOpen {
		return wire.Refuse(wire.CodeProof, "the proof's verb must be "+wire.VerbSessionOpen)
	}
	return i.checkProof(wire.PrincipalProof{
		ID: proof.ID, IssuedAt: proof.IssuedAt, Expires: proof.Expires, Audience: proof.Audience, Subject: proof.Subject,
		RequestHash: proof.RequestHash,
	}, i.cfg.Governor, opener, hash)
}

// checkPrincipal keeps people and workloads apart: a workload is the opener, a person has signed this very request.
func (i *Issuer) checkPrincipal(opener string, p wire.Principal, body []byte) error {
	switch p.Kind {
	case wire.PrincipalWorkload:
		if p.Name != opener {
			return wire.Refuse(wire.CodeForbidden, "a workload can only be principal of its own sessions")
		}
	case wire.PrincipalHuman:
		jwk, known := i.cfg.People[p.Name]
		if !known {
			return wire.Refuse(wire.CodeForbidden, "the issuer knows no person of this name")
		}
		key, err := jwk.Key()
		if err != nil {
			return wire.Refuse(wire.CodeKey, "the person's key: "+err.Error())
		}
		proof, err := jws.VerifyJSON[wire.PrincipalProof](p.Proof, wire.TypePrincipal, key, wire.MaxToken)
		if err != nil {
			return wire.Refuse(wire.CodeProof, "the person's proof: "+err.Error())
		}
		hash, err := wire.PrincipalRequestHash(body)
		if err != nil {
			return err
		}
		return i.checkProof(proof, i.cfg.URI, p.Name, hash)
	default:
		return wire.Refuse(wire.CodeMalformed, "principal.kind must be human or workload")
	}
	return nil
}

// checkSVID has the opener's SVID prove who it is: else whoever has the governor could open sessions in anybody's name.
func (i *Issuer) checkSVID(opener, token string, body []byte) error {
	if i.cfg.Bundles == nil {
		return nil
	}
	if token == "" {
		return wire.Refuse(wire.CodeProof, "this issuer asks for svid_proof: sign the request with the key of your SVID, as docs/wire.md shows")
	}
	peer, payload, err := identity.VerifySigned(token, wire.TypeOpener, i.cfg.Bundles, i.cfg.Now())
	if err != nil {
		return wire.Refuse(wire.CodeProof, "svid_proof: "+err.Error())
	}
	if string(peer.Name) != opener {
		return wire.Refuse(wire.CodeProof, "svid_proof: the SVID is not the opener's")
	}
	var proof wire.PrincipalProof
	if err := json.Unmarshal(payload, &proof, json.RejectUnknownMembers(true)); err != nil {
		return wire.Refuse(wire.CodeProof, "svid_proof: what is signed must be the JSON that docs/wire.md shows")
	}
	hash, err := wire.OpenerRequestHash(body)
	if err != nil {
		return err
	}
	return i.checkProof(proof, i.cfg.URI, opener, hash)
}

// checkProof checks what the opener's proof and a person's have in common.
func (i *Issuer) checkProof(proof wire.PrincipalProof, audience, subject, hash string) error {
	now := i.cfg.Now()
	issued, expires := time.Unix(proof.IssuedAt, 0), time.Unix(proof.Expires, 0)
	switch {
	case proof.ID == "" || proof.Audience != audience || proof.Subject != subject:
		return wire.Refuse(wire.CodeProof, "the proof must name "+audience+" as aud and "+subject+" as sub, and have a jti")
	case proof.RequestHash != hash:
		return wire.Refuse(wire.CodeProof, "the proof was made for another request")
	case issued.After(now.Add(skew)) || expires.Before(now.Add(-skew)) || !expires.After(issued) ||
		expires.Sub(issued) > wire.ProofLifetime*time.Second:
		return wire.Refuse(wire.CodeProof, "the proof's time is off: iat must be now, and exp at most 60 seconds later")
	}
	return nil
}

// checkTerms refuses terms that are wider than the request or the ceiling: the governor may only narrow.
func (i *Issuer) checkTerms(request wire.OpenRequest, terms governor.RootTerms) error {
	now := i.cfg.Now().Unix()
	if err := aat.SubsumesTools(request.Tools, terms.Tools); err != nil {
		return wire.Refuse(wire.CodeWidened, "the governor asked for more than the opener: "+err.Error())
	}
	if i.cfg.Ceiling != nil {
		if granted, _ := aat.Meet(terms.Tools, i.cfg.Ceiling); !granted.Equal(terms.Tools) {
			above := slices.DeleteFunc(terms.Tools.Names(), func(tool string) bool {
				return granted[tool] != nil && granted[tool].Equal(terms.Tools[tool])
			})
			return &wire.Error{Code: wire.CodeCeiling, Message: "the issuer's ceiling does not allow all that is asked of " + above[0]}
		}
	}
	switch {
	case terms.IssuedAt > now+int64(skew.Seconds()) || terms.IssuedAt < now-int64(skew.Seconds()):
		return wire.Refuse(wire.CodeClock, "the governor's clock and the issuer's are apart")
	case terms.Expires <= terms.IssuedAt || terms.Expires-terms.IssuedAt > int64(request.TTL),
		terms.Expires-terms.IssuedAt > int64(i.cfg.MaxTTL.Seconds()):
		return wire.Refuse(wire.CodeWidened, "the lifetime is longer than was asked for, or than the issuer gives")
	case terms.MaxDepth < 0 || terms.MaxDepth > 2*min(request.MaxHops, wire.MaxHops):
		return wire.Refuse(wire.CodeHopLimit, "more hops than were asked for, or than the issuer gives")
	}
	return nil
}
