package guard

import (
	"bytes"
	"crypto/ed25519"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/handoff-governor/handoff-governor/handoff/aat"
	"github.com/handoff-governor/handoff-governor/handoff/aat/jws"
	"github.com/handoff-governor/handoff-governor/handoff/aat/profile"
	"github.com/handoff-governor/handoff-governor/handoff/wire"
)

// trust is whom the guard believes, and what it has found out under that belief. It is replaced as a whole, so that
// nothing that was verified under a key outlives the trust in it.
type trust struct {
	issuers  []Issuer
	lapses   time.Time    // when the next of the governors' keys is not trusted any more; zero: never
	verifier aat.Verifier // without Seen
	profile  profile.Profile
	feeds    map[string]*feed // :: issuer's URI → its governor's feed
	chains   *chains
}

// Trust replaces the trust anchors. What was verified under the old ones is forgotten, and calls are refused until
// [Guard.Feed] has brought a new snapshot: a key that is not trusted any more may have left something out.
func (g *Guard) Trust(issuers ...Issuer) error {
	if err := checkIssuers(issuers); err != nil {
		return err
	}
	g.trusting.Lock()
	defer g.trusting.Unlock()
	g.trust.Store(g.newTrust(cloned(issuers), nil, g.now()))
	return nil
}

// Update replaces the keys of an issuer and its governor that the guard trusts already, as after a rotation. Where every key of the
// governor's is trusted on, what it has revoked is known on; else this is as [Guard.Trust].
func (g *Guard) Update(issuer Issuer) error {
	g.trusting.Lock()
	defer g.trusting.Unlock()
	now := g.now()
	old := g.trust.Load()
	issuers := cloned(old.issuers)
	i := slices.IndexFunc(issuers, func(known Issuer) bool { return known.URI == issuer.URI && known.Governor == issuer.Governor })
	if i < 0 {
		return fmt.Errorf("guard: the issuer %q with the governor %q is not trusted", issuer.URI, issuer.Governor)
	}
	before := issuers[i]
	same := func(x, y ed25519.PublicKey) bool { return bytes.Equal(x, y) }
	if slices.EqualFunc(before.Keys, issuer.Keys, same) && maps.Equal(keysOf(before.GovernorKeys), keysOf(issuer.GovernorKeys)) {
		return nil // what was found out under these keys is good
	}
	issuers[i] = issuer
	for n := range issuers { // one governor, one set of keys
		if issuers[n].Governor == issuer.Governor {
			issuers[n].GovernorKeys = issuer.GovernorKeys
		}
	}
	if err := checkIssuers(issuers); err != nil {
		return err
	}
	feeds := old.feeds
	for _, k := range before.GovernorKeys {
		if _, kept := keysOf(issuer.GovernorKeys)[string(k.Key)]; !kept {
			feeds = nil // it may have left something out
		}
	}
	g.trust.Store(g.newTrust(cloned(issuers), feeds, now))
	return nil
}

// cloned are issuers that nobody changes: they are read again when a key lapses.
func cloned(issuers []Issuer) []Issuer {
	issuers = slices.Clone(issuers)
	for i := range issuers {
		issuers[i].Keys = slices.Clone(issuers[i].Keys)
		issuers[i].GovernorKeys = slices.Clone(issuers[i].GovernorKeys)
	}
	return issuers
}

func checkIssuers(issuers []Issuer) error {
	known := map[string]bool{}
	governors := map[string]map[string]int64{} // :: governor's URI → keysOf its issuer
	for _, issuer := range issuers {
		switch {
		case issuer.URI == "" || issuer.Governor == "":
			return errors.New("guard: an issuer needs a URI and the URI of its governor")
		case known[issuer.URI]:
			return fmt.Errorf("guard: the issuer %q stands twice", issuer.URI)
		case len(issuer.Keys) == 0:
			return fmt.Errorf("guard: the issuer %q has no key", issuer.URI)
		}
		known[issuer.URI] = true
		for _, key := range issuer.Keys {
			if err := checkKey(key); err != nil {
				return fmt.Errorf("guard: the issuer %q: %w", issuer.URI, err)
			}
			for _, governor := range issuer.GovernorKeys {
				if bytes.Equal(governor.Key, key) {
					return fmt.Errorf("guard: the issuer %q and its governor have one key between them", issuer.URI)
				}
			}
		}
		for _, governor := range issuer.GovernorKeys {
			if err := checkKey(governor.Key); err != nil {
				return fmt.Errorf("guard: the governor %q: %w", issuer.Governor, err)
			}
		}
		keys := keysOf(issuer.GovernorKeys)
		if others, ok := governors[issuer.Governor]; ok && !maps.Equal(keys, others) {
			return fmt.Errorf("guard: the issuer %q and another have the governor %q, but not the same keys of it, "+
				"each until the same time: a governor has one feed, so give both issuers all of its keys", issuer.URI, issuer.Governor)
		}
		governors[issuer.Governor] = keys
	}
	return nil
}

// keysOf returns a governor's keys with the times when they lapse. Issuers that name the same governor share its feed, so
// they must agree: else a key that only one of them trusts would say what is revoked under the other, too.
func keysOf(keys []GovernorKey) map[string]int64 {
	set := map[string]int64{} // :: key → when it lapses, Unix nanoseconds; 0: never
	for _, k := range keys {
		until := int64(0)
		if !k.Until.IsZero() {
			until = k.Until.UnixNano()
		}
		set[string(k.Key)] = until
	}
	return set
}

func checkKey(key ed25519.PublicKey) error {
	_, err := aat.NewJWK(key).Key()
	return err
}

// newTrust leaves out the keys that have lapsed by now. It takes over the feeds where it is given them.
func (g *Guard) newTrust(issuers []Issuer, feeds map[string]*feed, now time.Time) *trust {
	t := &trust{
		verifier: aat.Verifier{
			Audience: g.cfg.Audience, Now: g.now, MaxIATSkew: g.cfg.Skew, MaxLifetime: g.cfg.MaxLifetime,
			PoPWindow: g.cfg.ProofWindow, RequirePoPAudience: true,
		},
		profile: profile.Profile{Governors: map[string][]ed25519.PublicKey{}},
		feeds:   map[string]*feed{},
		chains:  newChains(g.cfg.SeenChains),
	}
	byGovernor := map[string]*feed{}
	for _, issuer := range issuers {
		var keys []GovernorKey
		for _, k := range issuer.GovernorKeys {
			if !k.Until.IsZero() && !now.Before(k.Until) {
				continue
			}
			keys = append(keys, k)
			t.profile.Governors[issuer.URI] = append(t.profile.Governors[issuer.URI], k.Key)
			if !k.Until.IsZero() && (t.lapses.IsZero() || k.Until.Before(t.lapses)) {
				t.lapses = k.Until
			}
		}
		issuer.GovernorKeys = keys
		t.issuers = append(t.issuers, issuer)
		for _, key := range issuer.Keys {
			t.verifier.Anchors = append(t.verifier.Anchors, aat.Anchor{Issuer: issuer.URI, Key: key})
			t.profile.Issuers = append(t.profile.Issuers, key)
		}
		f := feeds[issuer.URI]
		if f == nil {
			f = byGovernor[issuer.Governor]
		}
		if f == nil {
			f = newFeed(issuer.Governor, g.cfg)
		}
		byGovernor[issuer.Governor], t.feeds[issuer.URI] = f, f
	}
	return t
}

// admit applies the governor profile to a chain that has been verified, and reads off it whose call this is.
func (t *trust) admit(chain []*aat.Link) (*verified, error) {
	links, err := t.profile.Chain(chain)
	if err != nil {
		return nil, err
	}
	leaf := links[len(links)-1]
	return &verified{links: chain, call: Call{
		Agent: leaf.Handoff.To, Session: leaf.Handoff.Session, Handoff: leaf.Handoff.ID, Labels: leaf.Handoff.Labels,
		Issuer: chain[0].Claims.Issuer, Expires: time.Unix(leaf.Claims.ExpiresAt, 0), Links: chain,
	}}, nil
}

// trusted returns the trust in force now: without the governors' keys whose time is over.
func (g *Guard) trusted(now time.Time) *trust {
	t := g.trust.Load()
	if t.lapses.IsZero() || now.Before(t.lapses) {
		return t
	}
	g.trusting.Lock()
	defer g.trusting.Unlock()
	if t = g.trust.Load(); !t.lapses.IsZero() && !now.Before(t.lapses) {
		t = g.newTrust(t.issuers, t.feeds, now)
		g.trust.Store(t)
	}
	return t
}

// Feed takes one statement of a governor's revocation feed: a compact JWS of type wire.TypeRevocation, signed by one of
// the governor's keys, over a [wire.RevocationFeed]. Statements may come late, twice or not at all: the guard finds out
// what it lacks, and [Guard.NeedSnapshot] says what to ask for. An error means that the statement was not believed, or
// cannot be used now; the guard stays as strict as it was.
func (g *Guard) Feed(token string) error {
	now := g.now()
	unverified, err := jws.Parse(token, wire.TypeRevocation, wire.MaxPayload)
	if err != nil {
		return fmt.Errorf("revocation feed: %w", err)
	}
	t := g.trusted(now)
	for _, issuer := range t.issuers {
		for _, k := range issuer.GovernorKeys {
			if unverified.Verify(k.Key) != nil {
				continue
			}
			statement, err := readStatement(unverified.Payload)
			if err != nil {
				return fmt.Errorf("revocation feed: %w", err)
			}
			if statement.Governor != issuer.Governor {
				continue
			}
			if err := t.feeds[issuer.URI].apply(statement, now); err != nil {
				return fmt.Errorf("revocation feed: %w", err)
			}
			return nil
		}
	}
	return errors.New("revocation feed: no trusted governor has signed this statement")
}

// NeedSnapshot says whether the guard lacks something of what the governor (a URI) has revoked. Where it does, ask
// wire.SubjectRevocations for the page after that hash, give the answer to [Guard.Feed], and ask again.
func (g *Guard) NeedSnapshot(governor string) (after string, needed bool) {
	for _, f := range g.trusted(g.now()).feeds {
		if f.governor == governor {
			return f.need()
		}
	}
	return "", false
}
