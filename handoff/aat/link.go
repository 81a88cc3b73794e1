package aat

import (
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"

	"github.com/handoff-governor/handoff-governor/handoff/aat/jws"
)

// TokenType is the `typ` of a link, PoPType that of a proof of possession (draft section 3.5).
const (
	TokenType = "aat+jwt"
	PoPType   = "aat-pop+jwt"
)

// Link is one token of a chain that was checked against its parent, which was checked against its own, up to a root. It
// comes from a [Verifier] or, before it is signed, from [Prepare]; a Link made in any other way is refused everywhere.
// Its fields are for reading.
type Link struct {
	Claims Claims
	// Compact is the token. It is "" for a link that was prepared and not signed: such a link can parent others, and
	// cannot be presented. Nor can one from [RestoreToken].
	Compact string
	// Payload is the signed JSON, byte for byte.
	Payload []byte
	// Hash is the SHA-256 of the signing input: what par_hash and aat_hash name.
	Hash [sha256.Size]byte

	parent *Link             // nil for a root
	signer ed25519.PublicKey // a trust anchor's for a root, else the parent's holder
	holder ed25519.PublicKey // nil in a Link that nobody checked
	size   int               // bytes of all tokens from the root to here
	// verified says that Compact's signature was checked, or made, here. Only such links can be presented.
	verified bool
}

// HashString is Hash as par_hash and aat_hash spell it: base64url without padding.
func (l *Link) HashString() string { return base64.RawURLEncoding.EncodeToString(l.Hash[:]) }

// Holder is the key of Claims.Holder.
func (l *Link) Holder() ed25519.PublicKey { return l.holder }

// Signer is the key that the link's signature is checked with.
func (l *Link) Signer() ed25519.PublicKey { return l.signer }

// Parent is the link that this one was checked against, nil for a root.
func (l *Link) Parent() *Link { return l.parent }

// Chain returns the links from the root to l.
func (l *Link) Chain() []*Link {
	chain := make([]*Link, l.Claims.Depth+1)
	for at := l; at != nil; at = at.parent {
		chain[at.Claims.Depth] = at
	}
	return chain
}

// Tokens returns the compact tokens from the root to l: `aat_chain` of a presentation (draft section 7.4).
func (l *Link) Tokens() []string {
	tokens := make([]string, 0, l.Claims.Depth+1)
	for _, link := range l.Chain() {
		tokens = append(tokens, link.Compact)
	}
	return tokens
}

var errUnchecked = errors.New("aat: this Link does not come from a Verifier or from Prepare")

// Prepare makes a link that is complete but for its signature, so that a program can record what it is about to sign.
//
// Without a parent it makes a root (draft section 6.1.3) and takes the claims as they are. With a parent it makes a
// derived token (section 6.2), signed by the parent's holder: it sets Issuer, ParentHash and Depth, and raises IssuedAt to
// the parent's where a clock lags. It refuses what [Verifier.Chain] would refuse at every time, with the same
// [*StepError]: a claim that widens the parent's, an exp after the parent's, and so on. What is about the clock of the
// enforcement point, it cannot know.
func Prepare(parent *Link, c Claims, signer ed25519.PublicKey) (*Link, error) {
	if parent != nil {
		if parent.holder == nil {
			return nil, errUnchecked
		}
		c.Issuer = parent.Claims.Holder.ThumbprintURI()
		c.ParentHash = parent.HashString()
		c.Depth = parent.Claims.Depth + 1
		c.IssuedAt = max(c.IssuedAt, parent.Claims.IssuedAt)
		if !parent.holder.Equal(signer) {
			return nil, refuse("4b", c.Depth, "only the parent's holder can sign a link under it")
		}
	}
	payload, err := c.payload()
	if err != nil {
		return nil, fmt.Errorf("encoding claims: %w", err)
	}
	return prepare(parent, payload, signer)
}

// Restore makes the link that [Prepare] made, from its recorded payload. Nothing but the caller's word says that the
// parent's holder signed it, or was going to.
func Restore(parent *Link, payload []byte) (*Link, error) {
	if parent == nil || parent.holder == nil {
		return nil, errUnchecked
	}
	return prepare(parent, payload, parent.holder)
}

// RestoreToken makes a link of a token that a [Verifier] accepted under this parent before, without its clock and without
// the cost of its signature: for programs that read back what they recorded. A recorded root, which has no parent to
// vouch for it, is verified again. Not every token has the header that [SignPayload] writes, so Restore on its payload
// could give another hash.
func RestoreToken(parent *Link, compact string) (*Link, error) {
	if parent == nil || parent.holder == nil {
		return nil, errUnchecked
	}
	token, err := jws.Parse(compact, TokenType, defaultTokenSize)
	if err != nil {
		return nil, refuseBecause("4a", parent.Claims.Depth+1, err)
	}
	l := &Link{
		Compact: compact, Payload: token.Payload, Hash: sha256.Sum256([]byte(token.SigningInput)),
		parent: parent, signer: parent.holder, size: parent.size + len(compact),
	}
	return l.complete()
}

func prepare(parent *Link, payload []byte, signer ed25519.PublicKey) (*Link, error) {
	input := jws.SigningInput(TokenType, payload)
	l := &Link{
		Payload: payload, Hash: sha256.Sum256([]byte(input)), parent: parent, signer: signer,
		size: len(input) + 1 + base64.RawURLEncoding.EncodedLen(ed25519.SignatureSize),
	}
	if err := new(Verifier).checkTokenSize(l.size, l.at()); err != nil {
		return nil, err
	}
	if parent != nil {
		l.size += parent.size
	}
	return l.complete()
}

// complete fills in and checks what needs neither clock nor signature, under the limits the draft recommends.
func (l *Link) complete() (*Link, error) {
	limits := &Verifier{}
	if err := limits.checkChainSize(l.size, l.at()); err != nil {
		return nil, err
	}
	if err := limits.read(l, nil); err != nil {
		return nil, err
	}
	if err := l.checkID(); err != nil {
		return nil, err
	}
	return l, nil
}

// at is the link's place in its chain, before its claims were read.
func (l *Link) at() int {
	if l.parent == nil {
		return 0
	}
	return l.parent.Claims.Depth + 1
}

// Sign returns the link with its token. It refuses every key but the one that the link was prepared for.
func (l *Link) Sign(key ed25519.PrivateKey) (*Link, error) {
	if l.holder == nil {
		return nil, errUnchecked
	}
	if len(key) != ed25519.PrivateKeySize || !l.signer.Equal(key.Public()) {
		return nil, refuse("4b", l.Claims.Depth, "this is not the key that the link was prepared for")
	}
	compact, err := SignPayload(l.Payload, key)
	if err != nil {
		return nil, err
	}
	signed := *l
	signed.Compact, signed.verified = compact, true
	return &signed, nil
}

// SignPayload signs a payload as a link, without a look at it: what is left to do after [Prepare]. The same payload and key
// give the same token.
func SignPayload(payload []byte, key ed25519.PrivateKey) (string, error) {
	return jws.Sign(TokenType, payload, key)
}

// Issue makes a root token; see [Prepare].
func Issue(c Claims, key ed25519.PrivateKey) (string, error) { return Derive(nil, c, key) }

// Derive makes a derived token, signed by the parent's holder; see [Prepare].
func Derive(parent *Link, c Claims, key ed25519.PrivateKey) (string, error) {
	if len(key) != ed25519.PrivateKeySize {
		return "", fmt.Errorf("aat: a private key has %d bytes, this one %d", ed25519.PrivateKeySize, len(key))
	}
	l, err := Prepare(parent, c, key.Public().(ed25519.PublicKey))
	if err != nil {
		return "", err
	}
	return SignPayload(l.Payload, key)
}
