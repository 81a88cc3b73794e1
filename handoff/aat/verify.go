package aat

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/handoff-governor/handoff-governor/handoff/aat/jws"
)

// What a zero field of [Verifier] means: the values the draft recommends, and depth 32.
const (
	defaultIATSkew   = 30 * time.Second    // section 4.4
	defaultLifetime  = 90 * 24 * time.Hour // section 4.4
	defaultPoPWindow = 30 * time.Second    // section 9.10
	defaultDepth     = 32                  // section 4.3 wants at least 8
	defaultTokenSize = 64 << 10            // section 4.3.1
	defaultChainSize = 256 << 10           // section 4.3.1
	defaultPoPSize   = 1 << 20
)

// Anchor is a key trusted to sign roots, together with the only issuer URI it may sign them as.
type Anchor struct {
	Issuer string
	Key    ed25519.PublicKey
}

// Verifier is an enforcement point's configuration. It keeps no state of its own; its methods may be called at the same
// time from many goroutines as long as nobody changes its fields and Nonce and Seen allow it.
type Verifier struct {
	Anchors  []Anchor // none: every chain is refused
	Audience []string // what aud and aat_aud may call this enforcement point

	Now func() time.Time // nil: time.Now

	MaxIATSkew   time.Duration // how far ahead of Now a link's iat may be; 0: 30 seconds
	MaxLifetime  time.Duration // longest exp − iat; 0: 90 days
	PoPWindow    time.Duration // how far from Now a proof's iat may be, either way; 0: 30 seconds
	MaxDepth     int           // largest del_max_depth; 0: 32
	MaxTokenSize int           // bytes of one link; 0: 64 KiB
	MaxChainSize int           // bytes of all links; 0: 256 KiB
	MaxPoPSize   int           // bytes of a proof, which carries the arguments of the call; 0: 1 MiB

	RequireAudience    bool // refuse a chain in which no link has aud
	RequirePoPAudience bool // refuse a proof without aat_aud

	// Nonce says whether this enforcement point issued the nonce and still accepts it. Nil: none is required.
	Nonce func(nonce string) bool
	// Seen records a proof's jti as accepted, to be remembered until that time, and says whether it had been already: one
	// atomic step. It is called last, when all else permits the invocation. Nil: proofs can be replayed within PoPWindow,
	// which only tools without side effects and secrets can afford (draft section 7.3).
	Seen func(jti string, until time.Time) bool
}

// StepError is a refusal. Step is the step of draft section 8 that failed, spelled as in "4p2".
type StepError struct {
	Step   string
	Link   int // position of the token at fault, 0 for the root; that of the leaf for steps 5 to 7
	Reason string
	// Err says more where there is more to say: a [*WidenedError], an [*InvocationError] or a [*jws.Error].
	Err error
}

func (e *StepError) Error() string {
	return fmt.Sprintf("step %s, link %d: %s", e.Step, e.Link, e.Reason)
}

func (e *StepError) Unwrap() error { return e.Err }

func refuse(step string, link int, format string, args ...any) *StepError {
	return &StepError{Step: step, Link: link, Reason: fmt.Sprintf(format, args...)}
}

func refuseBecause(step string, link int, err error) *StepError {
	return &StepError{Step: step, Link: link, Reason: err.Error(), Err: err}
}

// Verify decides over one invocation: it runs the whole of draft section 8. Args is the JSON object of the call as it was
// received, chain and pop are `aat_chain` and `aat_pop`. An error is a [*StepError], and means no.
func (v *Verifier) Verify(chain []string, tool string, args []byte, pop string) (*Invocation, error) {
	now := v.clock()
	links, err := v.chain(chain, now)
	if err != nil {
		return nil, err
	}
	return v.present(links, tool, args, pop, now)
}

// Chain verifies a chain, root first: steps 1 to 5.
func (v *Verifier) Chain(chain []string) ([]*Link, error) { return v.chain(chain, v.clock()) }

// Root verifies a root alone: steps 1 to 3.
func (v *Verifier) Root(compact string) (*Link, error) {
	links, err := v.chain([]string{compact}, v.clock())
	if err != nil {
		return nil, err
	}
	return links[0], nil
}

// Child verifies one more link under a parent that was verified before: steps 2 and 4. It costs one signature. The
// parent's own expiry is not looked at again, but the child's may not be later.
func (v *Verifier) Child(parent *Link, compact string) (*Link, error) {
	if parent == nil || parent.holder == nil {
		return nil, errUnchecked
	}
	at := parent.Claims.Depth + 1
	if err := v.checkTokenSize(len(compact), at); err != nil {
		return nil, err
	}
	if err := v.checkChainSize(parent.size+len(compact), at); err != nil {
		return nil, err
	}
	token, err := jws.Split(compact, len(compact))
	if err != nil {
		return nil, refuseBecause("2c", at, err)
	}
	l, err := v.child(parent, compact, token, v.clock())
	if err != nil {
		return nil, err
	}
	if err := l.checkID(); err != nil {
		return nil, err
	}
	return l, nil
}

func (v *Verifier) chain(chain []string, now *instant) ([]*Link, error) {
	// Step 1.
	if len(chain) == 0 {
		return nil, refuse("1", 0, "the chain is empty")
	}
	// Step 2. It costs no cryptography, and bounds what the rest costs.
	size := 0
	for i, compact := range chain {
		if err := v.checkTokenSize(len(compact), i); err != nil {
			return nil, err
		}
		size += len(compact)
	}
	if err := v.checkChainSize(size, len(chain)-1); err != nil {
		return nil, err
	}
	tokens := make([]*jws.Unverified, len(chain))
	ids := make(map[string]bool, len(chain))
	for i, compact := range chain {
		token, err := jws.Split(compact, len(compact))
		if err != nil {
			return nil, refuseBecause("2c", i, err)
		}
		id, ok := peekID(token.Payload)
		if !ok {
			return nil, refuse("2c", i, "no jti can be read")
		}
		if ids[id] {
			return nil, refuse("2c", i, "its jti appears twice in the chain")
		}
		ids[id], tokens[i] = true, token
	}
	// Steps 3 and 4.
	links := make([]*Link, len(chain))
	for i, token := range tokens {
		var err error
		if i == 0 {
			links[i], err = v.root(chain[i], token, now)
		} else {
			links[i], err = v.child(links[i-1], chain[i], token, now)
		}
		if err != nil {
			return nil, err
		}
	}
	// Step 5 holds by induction, since 3c and 4d passed; the draft asks for it all the same.
	if leaf := len(links) - 1; links[leaf].Claims.Depth != leaf {
		return nil, refuse("5", leaf, "del_depth does not fit the length of the chain")
	}
	return links, nil
}

func (v *Verifier) checkTokenSize(size, at int) error {
	if limit := orDefault(v.MaxTokenSize, defaultTokenSize); size > limit {
		return refuse("2a", at, "the token has %d bytes, at most %d are accepted", size, limit)
	}
	return nil
}

func (v *Verifier) checkChainSize(size, at int) error {
	if limit := orDefault(v.MaxChainSize, defaultChainSize); size > limit {
		return refuse("2b", at, "the chain has %d bytes, at most %d are accepted", size, limit)
	}
	return nil
}

// root is step 3: header and signature here, claims in read.
func (v *Verifier) root(compact string, token *jws.Unverified, now *instant) (*Link, error) {
	if err := token.Header(TokenType); err != nil {
		return nil, refuseBecause("3a", 0, err)
	}
	for _, anchor := range v.Anchors {
		if token.Verify(anchor.Key) == nil {
			return v.link(nil, anchor.Key, compact, token, now)
		}
	}
	return nil, refuse("3b", 0, "the signature does not verify under any trust anchor")
}

// child is step 4, likewise.
func (v *Verifier) child(parent *Link, compact string, token *jws.Unverified, now *instant) (*Link, error) {
	if err := token.Header(TokenType); err != nil {
		return nil, refuseBecause("4a", parent.Claims.Depth+1, err)
	}
	if err := token.Verify(parent.holder); err != nil {
		return nil, refuseBecause("4b", parent.Claims.Depth+1, err)
	}
	return v.link(parent, parent.holder, compact, token, now)
}

// link makes the Link of a token whose signature was verified under signer.
func (v *Verifier) link(
	parent *Link, signer ed25519.PublicKey, compact string, token *jws.Unverified, now *instant,
) (*Link, error) {
	l := &Link{
		Compact: compact, Payload: token.Payload, Hash: sha256.Sum256([]byte(token.SigningInput)),
		parent: parent, signer: signer, size: len(compact), verified: true,
	}
	if parent != nil {
		l.size += parent.size
	}
	if err := v.read(l, now); err != nil {
		return nil, err
	}
	return l, nil
}

// read fills l.Claims from l.Payload and checks them: steps 3b to 3n or 4b to 4q. The signature was checked before, or
// will be made after. Without a clock it leaves out what depends on one, and the trust anchors.
func (v *Verifier) read(l *Link, now *instant) error {
	m, err := readMembers(l.Payload)
	if l.parent == nil {
		if err != nil {
			return refuseBecause("3b", 0, err)
		}
		err = v.readRoot(l, m, now)
	} else {
		if err != nil {
			return refuseBecause("4b", l.at(), err)
		}
		err = v.readChild(l, m, now)
	}
	if err != nil {
		return err
	}
	l.Claims.Audience = m.readAudience()
	l.Claims.Extra = m.extra
	return nil
}

func (v *Verifier) readRoot(l *Link, m *members, now *instant) (err error) {
	c := &l.Claims
	deny := func(step, claim string, err error) error { return refuse(step, 0, "%s: %v", claim, err) }

	if c.IssuedAt, err = integer(m.iat); err != nil {
		return deny("3b", "iat", err)
	}
	if c.ExpiresAt, err = integer(m.exp); err != nil {
		return deny("3b", "exp", err)
	}
	if c.Depth, err = count(m.depth); err != nil || c.Depth != 0 {
		return refuse("3c", 0, "del_depth of a root must be 0")
	}
	if m.parHash != nil {
		return refuse("3d", 0, "a root has no par_hash")
	}
	if now != nil && c.ExpiresAt <= now.second {
		return refuse("3e", 0, "it has expired")
	}
	if now != nil && c.IssuedAt > now.latestIAT {
		return refuse("3f", 0, "iat is in the future")
	}
	if c.ExpiresAt <= c.IssuedAt {
		return refuse("3g", 0, "exp must be after iat")
	}
	if tooLong(c.IssuedAt, c.ExpiresAt, orDefault(v.MaxLifetime, defaultLifetime)) {
		return refuse("3h", 0, "its lifetime is longer than %v", orDefault(v.MaxLifetime, defaultLifetime))
	}
	limit := orDefault(v.MaxDepth, defaultDepth)
	if c.MaxDepth, err = count(m.maxDepth); err != nil || c.MaxDepth > limit {
		return refuse("3i", 0, "del_max_depth must be an integer from 0 to %d", limit)
	}
	if c.ID, err = nonEmpty(m.jti); err != nil {
		return deny("3j", "jti", err)
	}
	if c.Issuer, err = nonEmpty(m.iss); err != nil {
		return deny("3k", "iss", err)
	}
	if !isURI(c.Issuer) {
		return refuse("3k", 0, "iss must be a URI")
	}
	// Without a clock this is a root in the making, whose issuer is whoever signs it.
	if now != nil && !v.trusts(c.Issuer, l.signer) {
		return refuse("3k", 0, "the key that signed it is no trust anchor of the issuer it names")
	}
	holder, key, err := m.readHolder()
	if err != nil {
		return deny("3l", "cnf", err)
	}
	c.Holder = holder
	c.Tools, err = m.readTools()
	switch {
	case errors.Is(err, errDetails), errors.Is(err, errEntry), errors.Is(err, errTwice):
		return deny("3m", "authorization_details", err)
	case err != nil:
		return deny("3n", "authorization_details", err)
	case c.Tools == nil:
		return refuse("3m", 0, "authorization_details of a root must have an entry of type %s", detailsType)
	}
	l.holder = key
	return nil
}

func (v *Verifier) readChild(l *Link, m *members, now *instant) (err error) {
	c, parent := &l.Claims, &l.parent.Claims
	at := l.at()
	deny := func(step, claim string, err error) error { return refuse(step, at, "%s: %v", claim, err) }

	if c.ID, err = nonEmpty(m.jti); err != nil {
		return deny("4b1", "jti", err)
	}
	holder, key, err := m.readHolder()
	if err != nil {
		return deny("4b2", "cnf", err)
	}
	c.Holder = holder
	if m.details.Kind() != '[' {
		return deny("4b3", "authorization_details", errDetails)
	}
	if c.Depth, err = count(m.depth); err != nil {
		return deny("4b4", "del_depth", err)
	}
	if c.MaxDepth, err = count(m.maxDepth); err != nil {
		return deny("4b4", "del_max_depth", err)
	}
	if c.Issuer, err = stringOf(m.iss); err != nil {
		return deny("4b5", "iss", err)
	}
	if c.ParentHash, err = stringOf(m.parHash); err != nil {
		return deny("4b5", "par_hash", err)
	}
	if c.IssuedAt, err = integer(m.iat); err != nil {
		return deny("4b5", "iat", err)
	}
	if c.ExpiresAt, err = integer(m.exp); err != nil {
		return deny("4b5", "exp", err)
	}
	if c.Issuer != parent.Holder.ThumbprintURI() {
		return refuse("4c", at, "iss is not the thumbprint of the parent's holder")
	}
	if c.Depth != at {
		return refuse("4d", at, "del_depth is %d and must be %d", c.Depth, at)
	}
	if c.Depth > parent.MaxDepth {
		return refuse("4e", at, "the parent allows no depth beyond %d", parent.MaxDepth)
	}
	if limit := orDefault(v.MaxDepth, defaultDepth); c.Depth > limit {
		return refuse("4f", at, "no chain may be deeper than %d", limit)
	}
	if c.MaxDepth > parent.MaxDepth {
		return refuse("4g", at, "del_max_depth is larger than the parent's")
	}
	if c.ExpiresAt > parent.ExpiresAt {
		return refuse("4h", at, "exp is later than the parent's")
	}
	if now != nil && c.ExpiresAt <= now.second {
		return refuse("4i", at, "it has expired")
	}
	if c.IssuedAt < parent.IssuedAt {
		return refuse("4j", at, "iat is earlier than the parent's")
	}
	if now != nil && c.IssuedAt > now.latestIAT {
		return refuse("4k", at, "iat is in the future")
	}
	if c.ExpiresAt <= c.IssuedAt {
		return refuse("4l", at, "exp must be after iat")
	}
	if c.Depth > c.MaxDepth {
		return refuse("4m", at, "del_depth is larger than del_max_depth")
	}
	c.Tools, err = m.readTools()
	switch {
	case errors.Is(err, errEntry), errors.Is(err, errTwice):
		return deny("4n", "authorization_details", err)
	case err != nil:
		return deny("4o", "authorization_details", err)
	}
	if wider := widest(parent.Tools, c.Tools); wider != nil {
		return refuseBecause(wider.Rule, at, wider)
	}
	if c.ParentHash != l.parent.HashString() {
		return refuse("4q", at, "par_hash does not name this parent")
	}
	l.holder = key
	return nil
}

// checkID is step 2c for a link that joins a chain alone: no ancestor has its jti.
func (l *Link) checkID() error {
	for at := l.parent; at != nil; at = at.parent {
		if at.Claims.ID == l.Claims.ID {
			return refuse("2c", l.Claims.Depth, "its jti appears twice in the chain")
		}
	}
	return nil
}

func (v *Verifier) trusts(issuer string, key ed25519.PublicKey) bool {
	return slices.ContainsFunc(v.Anchors, func(a Anchor) bool { return a.Issuer == issuer && bytes.Equal(a.Key, key) })
}

// peekID extracts the jti and nothing else from a payload that nobody verified (step 2c). Duplicates and all other faults
// are found when the payload is read in full.
func peekID(payload []byte) (id string, ok bool) {
	dec := jsontext.NewDecoder(bytes.NewBuffer(payload), jsontext.AllowDuplicateNames(true))
	if tok, err := dec.ReadToken(); err != nil || tok.Kind() != '{' {
		return "", false
	}
	for dec.PeekKind() == '"' {
		name, err := dec.ReadToken()
		if err != nil {
			return "", false
		}
		if name.String() == "jti" {
			id, err := readString(dec)
			return id, err == nil
		}
		if dec.SkipValue() != nil {
			return "", false
		}
	}
	return "", false
}

// isURI says whether s begins with a scheme and has only characters that a URI may have (RFC 3986).
func isURI(s string) bool {
	scheme, _, ok := strings.Cut(s, ":")
	if !ok || scheme == "" || !isLetter(rune(scheme[0])) {
		return false
	}
	return !strings.ContainsFunc(scheme, func(r rune) bool {
		return !isLetter(r) && !('0' <= r && r <= '9') && !strings.ContainsRune("+-.", r)
	}) && !strings.ContainsFunc(s, func(r rune) bool {
		return r <= ' ' || r >= 0x7f || strings.ContainsRune("<>\"\\^`{|}", r)
	})
}

func isLetter(r rune) bool { return 'a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' }

// instant is one reading of the clock, as the comparisons need it. Seconds since the epoch.
type instant struct {
	second    int64 // the whole second that has begun
	latestIAT int64
	popFrom   int64
	popTo     int64
}

func (v *Verifier) clock() *instant {
	now := time.Now
	if v.Now != nil {
		now = v.Now
	}
	t, window := now(), orDefault(v.PoPWindow, defaultPoPWindow)
	from := t.Add(-window)
	i := &instant{
		second:    t.Unix(),
		latestIAT: t.Add(orDefault(v.MaxIATSkew, defaultIATSkew)).Unix(),
		popFrom:   from.Unix(),
		popTo:     t.Add(window).Unix(),
	}
	if from.Nanosecond() > 0 {
		i.popFrom++
	}
	return i
}

// tooLong says whether exp > iat + limit, whatever the numbers.
func tooLong(iat, exp int64, limit time.Duration) bool {
	seconds := int64(limit / time.Second)
	return iat <= math.MaxInt64-seconds && exp > iat+seconds
}

func orDefault[T int | time.Duration](value, otherwise T) T {
	if value == 0 {
		return otherwise
	}
	return value
}
