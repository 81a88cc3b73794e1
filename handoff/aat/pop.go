package aat

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/handoff-governor/handoff-governor/handoff/aat/jcs"
	"github.com/handoff-governor/handoff-governor/handoff/aat/jws"
)

// PoP is a proof of possession: one invocation, signed by the leaf's holder (draft section 7.2).
type PoP struct {
	ID        string         // jti: fresh for each proof
	IssuedAt  int64          // iat, Unix seconds
	TokenID   string         // aat_id: the leaf's jti
	TokenHash string         // aat_hash: the leaf's [Link.HashString]
	Tool      string         // aat_tool
	Audience  string         // aat_aud: whom the proof is presented to; "" where the proof has none
	Nonce     string         // "" where the proof has none
	Args      jsontext.Value // hta: the arguments, an object
}

// Sign writes the proof as canonical JSON and signs it. It does not judge whether anybody would accept it.
func (p *PoP) Sign(key ed25519.PrivateKey) (string, error) {
	claims := map[string]any{
		"jti": p.ID, "iat": p.IssuedAt, "aat_id": p.TokenID, "aat_hash": p.TokenHash, "aat_tool": p.Tool, "hta": p.Args,
	}
	if p.Audience != "" {
		claims["aat_aud"] = p.Audience
	}
	if p.Nonce != "" {
		claims["nonce"] = p.Nonce
	}
	return jws.SignJSON(PoPType, claims, key)
}

// CreatePoP makes the proof for one call of a tool that the leaf grants. Args is the JSON object of arguments exactly as
// the tool will receive it, or in any other spelling of the same values. Audience and nonce may be "". It refuses
// a key that is not the leaf's and a tool that the leaf does not name; whether the arguments are within the constraints,
// [CheckInvocation] says.
func CreatePoP(
	leaf *Link, tool string, args []byte, audience, nonce string, now time.Time, key ed25519.PrivateKey,
) (string, error) {
	switch {
	case leaf == nil || leaf.holder == nil:
		return "", errUnchecked
	case len(key) != ed25519.PrivateKeySize || !leaf.holder.Equal(key.Public()):
		return "", errors.New("aat: only the holder of the leaf can prove possession of its key")
	case jsontext.Value(args).Kind() != '{':
		return "", errors.New("aat: arguments are a JSON object")
	}
	if _, ok := leaf.Claims.Tools[tool]; !ok {
		return "", fmt.Errorf("aat: the leaf does not grant tool %q", tool)
	}
	p := PoP{
		ID: rand.Text(), IssuedAt: now.Unix(),
		TokenID: leaf.Claims.ID, TokenHash: leaf.HashString(),
		Tool: tool, Audience: audience, Nonce: nonce, Args: args,
	}
	return p.Sign(key)
}

// Invocation is a call that was permitted. It can only come from [Verifier.Verify] or [Verifier.Present].
type Invocation struct {
	Links []*Link // root first
	Tool  string
	Args  jsontext.Value // canonical
	PoP   PoP
}

// Leaf is the link whose holder makes the call.
func (i *Invocation) Leaf() *Link { return i.Links[len(i.Links)-1] }

// Present decides over an invocation under a chain that [Verifier.Chain] verified before: steps 5 to 8, and again
// whatever time or configuration may have changed since: every link's expiry, and that the root's key is still a trust
// anchor. It costs one signature.
func (v *Verifier) Present(links []*Link, tool string, args []byte, pop string) (*Invocation, error) {
	return v.present(links, tool, args, pop, v.clock())
}

func (v *Verifier) present(links []*Link, tool string, args []byte, pop string, now *instant) (*Invocation, error) {
	if err := v.stillGood(links, now); err != nil {
		return nil, err
	}
	at := len(links) - 1
	leaf := links[at]

	// Steps 7a and 7b come first, so that who does not hold the leaf's key has nothing evaluated.
	token, err := jws.Parse(pop, PoPType, orDefault(v.MaxPoPSize, defaultPoPSize))
	if err != nil {
		return nil, refuseBecause("7a", at, err)
	}
	if err := token.Verify(leaf.holder); err != nil {
		return nil, refuseBecause("7b", at, err)
	}
	m, err := readPoP(token.Payload)
	if err != nil {
		return nil, refuseBecause("7b", at, err)
	}

	// Step 6: what the leaf grants, and where.
	if leaf.Claims.Tools == nil {
		return nil, refuse("6a", at, "the leaf has no capability entry")
	}
	allowed, ok := leaf.Claims.Tools[tool]
	if !ok {
		return nil, refuse("6b", at, "the leaf does not grant tool %q", tool)
	}
	canonical, err := checkInvocation(allowed, args)
	if err != nil {
		return nil, refuseBecause("6b", at, err)
	}
	if err := v.checkAudience(links); err != nil {
		return nil, err
	}

	// Step 7: the proof is for this very call, here and now.
	proof, err := m.proof()
	if err != nil {
		return nil, refuseBecause("7c", at, err)
	}
	if proof.TokenID != leaf.Claims.ID || proof.TokenHash != leaf.HashString() {
		return nil, refuse("7c", at, "the proof is for another leaf")
	}
	if m.audience == nil && v.RequirePoPAudience {
		return nil, refuse("7d", at, "the proof must name this enforcement point in aat_aud")
	}
	if aud, err := stringOf(m.audience); m.audience != nil && (err != nil || !slices.Contains(v.Audience, aud)) {
		return nil, refuse("7d", at, "aat_aud does not name this enforcement point")
	}
	if proof.Tool != tool {
		return nil, refuse("7e", at, "the proof is for another tool")
	}
	if !sameArguments(proof.Args, canonical) {
		return nil, refuse("7f", at, "the proof is for other arguments")
	}
	if proof.IssuedAt < now.popFrom || proof.IssuedAt > now.popTo {
		return nil, refuse("7g", at, "iat of the proof is too far from now: sign a new one")
	}
	if nonce, err := stringOf(m.nonce); v.Nonce != nil && (err != nil || !v.Nonce(nonce)) {
		return nil, refuse("7h", at, "the proof needs a nonce that this enforcement point issued")
	}
	if v.Seen != nil && v.Seen(proof.ID, v.popUntil(proof.IssuedAt)) {
		return nil, refuse("7i", at, "this proof was accepted before")
	}
	// Step 8.
	return &Invocation{Links: links, Tool: tool, Args: canonical, PoP: *proof}, nil
}

// popUntil is the first second in which step 7g refuses a proof of that iat by itself.
func (v *Verifier) popUntil(iat int64) time.Time {
	return time.Unix(iat, 0).Add(orDefault(v.PoPWindow, defaultPoPWindow)).Add(time.Nanosecond)
}

// stillGood checks of verified links what may have changed, and that they are one chain.
func (v *Verifier) stillGood(links []*Link, now *instant) error {
	if len(links) == 0 {
		return refuse("1", 0, "the chain is empty")
	}
	for i, l := range links {
		step := byte('4')
		if i == 0 {
			step = '3'
		}
		switch {
		case l == nil || l.holder == nil || !l.verified:
			return refuse(string(step)+"b", i, "the link was not verified")
		case i == 0 && l.parent != nil, i > 0 && l.parent != links[i-1]:
			return refuse("5", i, "the links are not one chain")
		case i == 0 && !v.trusts(l.Claims.Issuer, l.signer):
			return refuse("3b", i, "the root's key is not a trust anchor any more")
		case l.Claims.ExpiresAt <= now.second && i == 0:
			return refuse("3e", i, "it has expired")
		case l.Claims.ExpiresAt <= now.second:
			return refuse("4i", i, "it has expired")
		}
	}
	return nil
}

// checkAudience is step 6c.
func (v *Verifier) checkAudience(links []*Link) error {
	restricted := false
	for i, l := range links {
		if l.Claims.Audience == nil {
			continue
		}
		restricted = true
		if !slices.ContainsFunc(l.Claims.Audience, func(aud string) bool { return slices.Contains(v.Audience, aud) }) {
			return refuse("6c", i, "aud does not name this enforcement point")
		}
	}
	if v.RequireAudience && !restricted {
		return refuse("6c", len(links)-1, "no link has aud, and this enforcement point requires one")
	}
	return nil
}

// popMembers are the claims of a proof as they were written, each nil where it is absent.
type popMembers struct {
	jti, iat, id, hash, tool, audience, nonce, args jsontext.Value
}

func readPoP(payload []byte) (*popMembers, error) {
	m := &popMembers{}
	err := rawMembers(payload, func(name string, value jsontext.Value) {
		switch name {
		case "jti":
			m.jti = value
		case "iat":
			m.iat = value
		case "aat_id":
			m.id = value
		case "aat_hash":
			m.hash = value
		case "aat_tool":
			m.tool = value
		case "aat_aud":
			m.audience = value
		case "nonce":
			m.nonce = value
		case "hta":
			m.args = value
		}
	})
	return m, err
}

// proof is the first half of step 7c. An aat_aud or nonce that is no string is left to 7d and 7h: it names nobody.
func (m *popMembers) proof() (*PoP, error) {
	p := &PoP{Args: m.args}
	var errs [5]error
	p.ID, errs[0] = nonEmpty(m.jti)
	p.TokenID, errs[1] = nonEmpty(m.id)
	p.TokenHash, errs[2] = nonEmpty(m.hash)
	p.Tool, errs[3] = nonEmpty(m.tool)
	p.IssuedAt, errs[4] = integer(m.iat)
	for i, err := range errs {
		if err != nil {
			return nil, fmt.Errorf("%s: %w", [...]string{"jti", "aat_id", "aat_hash", "aat_tool", "iat"}[i], err)
		}
	}
	if m.args.Kind() != '{' {
		return nil, errors.New("hta: it must be an object")
	}
	p.Audience, _ = stringOf(m.audience)
	p.Nonce, _ = stringOf(m.nonce)
	return p, nil
}

// sameArguments is step 7f: hta in canonical form is the canonical form of the invocation's arguments. Admissible numbers
// are not asked of hta: step 6b asked it of the arguments, and those are what the tool receives.
func sameArguments(hta jsontext.Value, canonical []byte) bool {
	if bytes.Equal(hta, canonical) {
		return true
	}
	rounded, err := jcs.Rounded(hta)
	return err == nil && bytes.Equal(rounded, canonical)
}
