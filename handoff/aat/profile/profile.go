// Package profile is what the Handoff Governor asks of a chain beyond the AAT draft. The governor and the guard apply the
// same rules, and so can anyone who holds a chain.
//
// An AAT chain proves that authority only narrowed. The profile proves that a governor stood between every two agents
// (alternation), and that what the links say of the handoffs, in their claim `handoff`, is one coherent story: one session,
// each claim made for its own offer, and labels that nobody dropped.
//
//	depth 0  root   signed by the issuer, held by the session's opener      {session, to}
//	depth 1  offer  signed by an agent, held by a governor's key            {session, to, mode, task_hash, content_type, …}
//	depth 2  claim  signed by that governor's key, held by the next agent   {id, session, from, to, decision, bundle, …}
//	depth 3  offer  …
package profile

import (
	"bytes"
	"crypto/ed25519"
	"fmt"
	"slices"
	"strings"

	"github.com/go-json-experiment/json"

	"github.com/handoff-governor/handoff-governor/handoff/aat"
	"github.com/handoff-governor/handoff-governor/handoff/aat/jws"
	"github.com/handoff-governor/handoff-governor/handoff/wire"
)

// ClaimName is the top-level claim that holds a [wire.HandoffClaim].
const ClaimName = "handoff"

const (
	// maxName bounds an agent's name in bytes; identity says what is in one.
	maxName = 180
	hashLen = 32
)

// Profile knows whose links may stand where. Its methods only read it.
type Profile struct {
	// Governors has, for each root issuer, the keys that may hold odd links under it. An issuer without any is refused.
	Governors map[string][]ed25519.PublicKey // :: root's iss → keys
	// Issuers are the keys that sign roots. Neither they nor any governor's key may hold an even link.
	Issuers []ed25519.PublicKey
}

// Link is a link that keeps the profile, as does every link above it.
type Link struct {
	*aat.Link
	Handoff wire.HandoffClaim

	parent *Link
}

// Parent is the link above, nil for a root.
func (l *Link) Parent() *Link { return l.parent }

// Root applies the profile to a verified root. Errors of this package are [*wire.Error] with one of the codes
// [wire.CodeGuardGovernor], [wire.CodeAlternation], [wire.CodeHopLimit] and [wire.CodeProfile].
func (p *Profile) Root(root *aat.Link) (*Link, error) {
	if root.Parent() != nil || root.Claims.Depth != 0 {
		return nil, refuse(wire.CodeProfile, root, "it is not a root")
	}
	return p.link(nil, root)
}

// Child applies the profile to one more verified link. It looks at the child and its parent alone: what it asks of
// ancestors held for the parent already.
func (p *Profile) Child(parent *Link, child *aat.Link) (*Link, error) {
	if parent == nil || child.Parent() != parent.Link {
		return nil, refuse(wire.CodeProfile, child, "it was verified under another parent")
	}
	return p.link(parent, child)
}

// Chain applies the profile to a whole chain, root first, that ends where an agent holds it: what a guard is presented
// with.
func (p *Profile) Chain(chain []*aat.Link) ([]*Link, error) {
	links := make([]*Link, 0, len(chain))
	for i, l := range chain {
		var (
			link *Link
			err  error
		)
		if i == 0 {
			link, err = p.Root(l)
		} else {
			link, err = p.Child(links[i-1], l)
		}
		if err != nil {
			return nil, err
		}
		links = append(links, link)
	}
	if len(links)%2 == 0 { // also refuses the empty chain
		return nil, wire.Refuse(wire.CodeAlternation, "a presented chain ends with a root or a claim: a link of even depth")
	}
	return links, nil
}

func (p *Profile) link(parent *Link, l *aat.Link) (*Link, error) {
	issuer := l
	for issuer.Parent() != nil {
		issuer = issuer.Parent()
	}
	if err := p.holder(l, issuer.Claims.Issuer); err != nil {
		return nil, err
	}
	if n := len(l.Claims.Tools); n > wire.MaxTools {
		return nil, refuse(wire.CodeProfile, l, "%d tools, at most %d are accepted", n, wire.MaxTools)
	}
	// A token has room for half as many again, and to compare them would cost twice as much.
	if n := l.Claims.Tools.Constraints(); n > wire.MaxConstraints {
		return nil, refuse(wire.CodeProfile, l, "%d constraints, at most %d are accepted", n, wire.MaxConstraints)
	}
	if !IsID(l.Claims.ID) {
		return nil, refuse(wire.CodeProfile, l, "jti must be a lower-case UUIDv7")
	}
	link := &Link{Link: l, parent: parent}
	raw, ok := l.Claims.Extra[ClaimName]
	if !ok || raw.Kind() != '{' {
		return nil, refuse(wire.CodeProfile, l, "the claim %q is missing", ClaimName)
	}
	if err := json.Unmarshal(raw, &link.Handoff, json.RejectUnknownMembers(true)); err != nil {
		return nil, refuse(wire.CodeProfile, l, "the claim %q: %v", ClaimName, err)
	}
	if err := link.check(); err != nil {
		return nil, err
	}
	return link, nil
}

// holder is alternation, for one link.
func (p *Profile) holder(l *aat.Link, issuer string) error {
	governors := p.Governors[issuer]
	if len(governors) == 0 {
		return refuse(wire.CodeGuardGovernor, l, "no governor's key is trusted under issuer %q", issuer)
	}
	if l.Claims.Depth%2 == 1 {
		if !has(governors, l.Holder()) {
			return refuse(wire.CodeAlternation, l, "its holder must be a trusted governor's key")
		}
		return nil
	}
	if has(p.Issuers, l.Holder()) {
		return refuse(wire.CodeAlternation, l, "its holder is an issuer's key")
	}
	for _, keys := range p.Governors {
		if has(keys, l.Holder()) {
			return refuse(wire.CodeAlternation, l, "its holder is a governor's key and must be an agent's")
		}
	}
	return nil
}

func has(keys []ed25519.PublicKey, key ed25519.PublicKey) bool {
	return slices.ContainsFunc(keys, func(k ed25519.PublicKey) bool { return bytes.Equal(k, key) })
}

// check compares the handoff claim with the link it stands in and with the links above.
func (l *Link) check() error {
	h := &l.Handoff
	if h.To == "" || len(h.To) > maxName {
		return l.refuse("to must name an agent")
	}
	if err := l.checkMembers(); err != nil {
		return err
	}
	if err := l.checkLabels(); err != nil {
		return err
	}
	switch {
	case l.parent == nil:
		if h.Session != l.Claims.ID {
			return l.refuse("session must be the root's jti")
		}
	case h.Session != l.parent.Handoff.Session:
		return l.refuse("session must be that of the root")
	case l.Claims.Depth%2 == 1:
		return l.checkOffer()
	default:
		return l.checkClaim()
	}
	return nil
}

func (l *Link) checkOffer() error {
	h := &l.Handoff
	if l.Claims.MaxDepth <= l.Claims.Depth {
		return refuse(wire.CodeHopLimit, l.Link, "del_max_depth %d leaves no room for the claim link", l.Claims.MaxDepth)
	}
	if h.Mode != wire.ModeDelegate && h.Mode != wire.ModeTransfer {
		return l.refuse("mode must be %q or %q", wire.ModeDelegate, wire.ModeTransfer)
	}
	if hash, err := jws.Decode(h.TaskHash); err != nil || len(hash) != hashLen {
		return l.refuse("task_hash must be a SHA-256 in base64url without padding")
	}
	if h.Deadline > l.Claims.ExpiresAt {
		return l.refuse("deadline is after exp: nobody could work on what was claimed then")
	}
	if h.Deadline < l.Claims.IssuedAt {
		return l.refuse("deadline is before iat")
	}
	if len(h.Purpose) > wire.MaxPurpose {
		return l.refuse("purpose has %d bytes, at most %d are accepted", len(h.Purpose), wire.MaxPurpose)
	}
	if h.InReplyTo != "" && !IsID(h.InReplyTo) {
		return l.refuse("in_reply_to must be a lower-case UUIDv7")
	}
	return nil
}

func (l *Link) checkClaim() error {
	h, offer, before := &l.Handoff, l.parent, l.parent.parent
	switch {
	case h.ID != offer.Claims.ID:
		return l.refuse("id must be the jti of the offer above")
	case h.To != offer.Handoff.To:
		return l.refuse("to must be the offer's")
	case h.From != before.Handoff.To:
		return l.refuse("from must be who held the link before the offer")
	}
	return nil
}

// checkMembers asks for the members that the link's place in the chain requires, and for no others.
func (l *Link) checkMembers() error {
	const root, offer, claim, optional = 1, 2, 4, 8
	h := &l.Handoff
	place, name := root, "a root"
	switch {
	case l.parent != nil && l.Claims.Depth%2 == 1:
		place, name = offer, "an offer"
	case l.parent != nil:
		place, name = claim, "a claim"
	}
	for _, m := range []struct {
		name  string
		there bool
		in    int
	}{
		{"mode", h.Mode != "", offer},
		{"task_hash", h.TaskHash != "", offer},
		{"content_type", h.ContentType != "", offer},
		{"deadline", h.Deadline != 0, offer},
		{"purpose", h.Purpose != "", offer | optional},
		{"in_reply_to", h.InReplyTo != "", offer | optional},
		{"id", h.ID != "", claim},
		{"from", h.From != "", claim},
		{"decision", h.Decision != nil, claim},
		{"bundle", h.Bundle != "", claim},
	} {
		switch {
		case m.there && m.in&place == 0:
			return l.refuse("%s has no %s", name, m.name)
		case !m.there && m.in&place != 0 && m.in&optional == 0:
			return l.refuse("%s must have %s", name, m.name)
		}
	}
	return nil
}

// checkLabels refuses a link that drops a label of the link above; by induction none of any ancestor is dropped.
func (l *Link) checkLabels() error {
	labels := l.Handoff.Labels
	if len(labels) > wire.MaxLabels {
		return l.refuse("%d labels, at most %d are accepted", len(labels), wire.MaxLabels)
	}
	for _, label := range labels {
		if label == "" || len(label) > wire.MaxLabel {
			return l.refuse("a label has 1 to %d bytes", wire.MaxLabel)
		}
	}
	if l.parent == nil {
		return nil
	}
	for _, label := range l.parent.Handoff.Labels {
		if !slices.Contains(labels, label) {
			return l.refuse("the label %q of the link above is missing", label)
		}
	}
	return nil
}

// IsID says whether s is a UUIDv7 in lower case with hyphens (RFC 9562), the only form of ID in our links.
func IsID(s string) bool {
	if len(s) != 36 || s[14] != '7' || strings.IndexByte("89ab", s[19]) < 0 {
		return false
	}
	for i := range len(s) {
		if hyphen := i == 8 || i == 13 || i == 18 || i == 23; hyphen != (s[i] == '-') {
			return false
		} else if !hyphen && strings.IndexByte("0123456789abcdef", s[i]) < 0 {
			return false
		}
	}
	return true
}

func (l *Link) refuse(format string, args ...any) error {
	return refuse(wire.CodeProfile, l.Link, format, args...)
}

func refuse(code wire.Code, l *aat.Link, format string, args ...any) error {
	return wire.Refuse(code, fmt.Sprintf("link %d: ", l.Claims.Depth)+fmt.Sprintf(format, args...))
}
