package entry

import (
	"crypto/ed25519"
	"fmt"
	"slices"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/google/uuid"

	"github.com/handoff-governor/handoff-governor/handoff/aat"
	"github.com/handoff-governor/handoff-governor/handoff/aat/jws"
	"github.com/handoff-governor/handoff-governor/handoff/aat/profile"
	"github.com/handoff-governor/handoff-governor/handoff/wire"
)

// chains follows what the entries of a log say of sessions, grants and handoffs, and finds the first that cannot be
// true. It looks at nothing but the entries, and reads each once.
type chains struct {
	report *Report
	index  IndexSource // beside the entries, or nil

	log    string
	time   int64  // of the newest entry, Unix milliseconds
	bundle string // in force

	used     map[uuid.UUID]uint64 // :: ID → entry that used it up
	session  map[uuid.UUID]uint64 // :: session → its newest entry
	grant    map[uuid.UUID]uint64 // :: grant → its newest entry
	sender   map[string]uint64    // :: agent → the newest entry from it
	receiver map[string]uint64    // :: agent → the newest entry to it

	open      map[string]*session // sessions that are not closed
	withdrawn map[string]uint64   // :: identity → the entry that withdrew it
	held      map[uint64]*held    // :: index of a decision to hold → what it holds

	verifier  aat.Verifier
	profile   profile.Profile
	believing bool // a governor's key is what offers name as one
}

// session is one that is open.
type session struct {
	id       string
	root     *grant
	budget   *wire.Budget
	admitted int
	grants   map[string]*grant
	handoffs map[string]*handoff
}

// grant is an even link: authority that an agent's process holds.
type grant struct {
	link    *profile.Link
	agent   string
	handoff *handoff // what it was claimed for; nil for a root
	labels  []string // of the link, and of results delivered to it
	ended   bool     // it may not be used any more; what was handed on lives
	revoked bool     // nothing below it may be used any more, either
	below   []*handoff
}

// handoff is one that was admitted or is held.
type handoff struct {
	id       string
	from, to string
	parent   *grant
	offer    *profile.Link
	index    uint64 // of its first decision, which has the task
	granted  aat.Tools
	labels   []string
	expires  int64 // Unix seconds
	deadline int64 // Unix seconds
	maxDepth int
	state    state
	grant    *grant // the live one, once claimed
	result   *Result
}

// state of a handoff.
type state string

const (
	isHeld     state = "held"
	isAdmitted state = "admitted"
	isClaimed  state = "claimed"
	isAnswered state = "answered"
	isDenied   state = "denied"
	isRevoked  state = "revoked"
)

type held struct {
	handoff *handoff
	stage   string
}

func newChains(cfg Config, report *Report) *chains {
	v := &chains{
		report: report, log: report.Checkpoint.Origin,
		used: map[uuid.UUID]uint64{}, session: map[uuid.UUID]uint64{}, grant: map[uuid.UUID]uint64{},
		sender: map[string]uint64{}, receiver: map[string]uint64{},
		open: map[string]*session{}, held: map[uint64]*held{}, withdrawn: map[string]uint64{},
		verifier:  aat.Verifier{Anchors: cfg.Issuers, MaxIATSkew: cfg.Skew},
		profile:   profile.Profile{Governors: map[string][]ed25519.PublicKey{}},
		believing: len(cfg.Governors) == 0,
	}
	if cfg.Skew == 0 {
		v.verifier.MaxIATSkew = time.Minute
	}
	v.verifier.Now = func() time.Time { return time.UnixMilli(v.time) }
	for _, anchor := range cfg.Issuers {
		v.profile.Issuers = append(v.profile.Issuers, anchor.Key)
		v.profile.Governors[anchor.Issuer] = cfg.Governors
	}
	return v
}

// step is one entry being read. Its methods report what is wrong as a [*Problem] of this entry.
type step struct {
	*chains
	e   *Entry
	now int64 // Unix seconds
}

func (s *step) bad(field, format string, args ...any) error {
	return &Problem{s.e.Index, field, fmt.Sprintf(format, args...)}
}

// read takes the next entry.
func (v *chains) read(index uint64, encoded []byte, bodies BodySource) error {
	e, err := Decode(encoded)
	if err != nil {
		return &Problem{index, "", err.Error()}
	}
	s := &step{chains: v, e: e, now: e.Time / 1000}
	switch {
	case e.Index != index:
		return &Problem{index, "index", fmt.Sprintf("is %d", e.Index)}
	case e.Log != v.log:
		return s.bad("log", "is %q; the checkpoint is of %q", e.Log, v.log)
	case e.Time < v.time:
		return s.bad("time", "is %d ms before the entry before it", v.time-e.Time)
	}
	v.time = e.Time
	if err := s.pointers(); err != nil {
		return err
	}
	if err := s.kind(); err != nil {
		return err
	}
	if err := s.body(bodies); err != nil {
		return err
	}
	if v.report.First.IsZero() {
		v.report.First = time.UnixMilli(e.Time)
	}
	v.report.Last = time.UnixMilli(e.Time)
	v.report.Kinds[e.Kind]++
	return nil
}

// pointers checks that the entry points to the newest one before it of its session, sender, receiver and grant.
func (s *step) pointers() error {
	if err := follow(s, "prev.sender", s.sender, s.e.From, s.e.From == "", s.e.Prev.Sender); err != nil {
		return err
	}
	if err := follow(s, "prev.receiver", s.receiver, s.e.To, s.e.To == "", s.e.Prev.Receiver); err != nil {
		return err
	}
	session, err := s.id("session", s.e.Session)
	if err == nil {
		err = follow(s, "prev.session", s.session, session, s.e.Session == "", s.e.Prev.Session)
	}
	if err != nil {
		return err
	}
	grant, err := s.id("grant", s.e.Grant)
	if err == nil {
		err = follow(s, "prev.grant", s.grant, grant, s.e.Grant == "", s.e.Prev.Grant)
	}
	if err != nil {
		return err
	}
	_, err = s.id("handoff", s.e.Handoff)
	return err
}

func follow[K comparable](s *step, field string, newest map[K]uint64, key K, none bool, pointer *uint64) error {
	before, known := newest[key]
	switch {
	case none && pointer != nil:
		return s.bad(field, "points to entry %d, but the entry has none", *pointer)
	case none:
		return nil
	case known && pointer == nil:
		return s.bad(field, "is missing: there is entry %d", before)
	case !known && pointer != nil:
		return s.bad(field, "points to entry %d, but this is the first", *pointer)
	case known && *pointer != before:
		return s.bad(field, "points to entry %d; the newest is %d", *pointer, before)
	}
	newest[key] = s.e.Index
	return nil
}

// id reads a UUID, or none.
func (s *step) id(field, id string) (uuid.UUID, error) {
	if id == "" {
		return uuid.Nil, nil
	}
	u, err := uuid.Parse(id)
	if err != nil || u.String() != id {
		return u, s.bad(field, "is not a lower-case UUID")
	}
	return u, nil
}

// use uses up an ID, for ever.
func (s *step) use(field, id string) error {
	u, err := s.id(field, id)
	switch before, used := s.used[u]; {
	case err != nil:
		return err
	case id == "":
		return s.bad(field, "is missing")
	case used:
		return s.bad(field, "was used before, by entry %d", before)
	}
	s.used[u] = s.e.Index
	if s.index != nil {
		if at, found, err := s.index.Lookup(id); err != nil || !found || at != s.e.Index {
			return s.bad(field, "is not found by its ID: the index of IDs beside the entries is damaged")
		}
	}
	return nil
}

// heads compares what the index has as each session's newest entry with what was read. Entries may have been added since.
func (v *chains) heads(read uint64) error {
	if v.index == nil {
		return nil
	}
	for id, newest := range v.session {
		at, found, err := v.index.Newest(id.String())
		if err != nil || !found || at != newest && at < read {
			return &Problem{newest, "session", "is not found by its session: the index of sessions beside the entries is damaged"}
		}
	}
	return nil
}

func (s *step) kind() error {
	switch e := s.e; e.Kind {
	case KindBundle:
		return s.activated(e.Bundle)
	case KindQuarantined:
		return s.quarantined(e.Quarantined)
	case KindSession:
		return s.opened(e.Opened)
	case KindDecided:
		return s.decided(e.Decided)
	case KindIdentity:
		return s.identity(e.Identity)
	case KindRotated:
		return s.rotated(e.Rotated)
	}
	in := s.open[s.e.Session]
	if in == nil {
		return s.bad("session", "is not open")
	}
	switch e := s.e; e.Kind {
	case KindClosed:
		if err := s.acts("closed.by", e.Closed.By); err != nil {
			return err
		}
		delete(s.open, in.id)
		return nil
	case KindApproved:
		return s.approved(in, e.Approved)
	case KindClaimed:
		return s.claimed(in, e.Claimed)
	case KindResult:
		return s.answered(in, e.Result)
	case KindRevoked:
		return s.revoked(in, e.Revoked)
	case KindRejudged:
		if in.grants[e.Grant] == nil {
			return s.bad("grant", "is unknown")
		}
		return s.decision("rejudged.decision", &e.Rejudged.Decision, e.Rejudged.Effect)
	}
	return s.bad("kind", "%q is unknown", s.e.Kind)
}

func (s *step) activated(b *Bundle) error {
	if b.Digest == "" || b.Size <= 0 {
		return s.bad("bundle", "names no bundle")
	}
	s.bundle = b.Digest
	if _, known := s.report.Bundles[b.Digest]; !known {
		s.report.Bundles[b.Digest] = s.e.Index
	}
	return s.acts("bundle.by", b.By)
}

func (s *step) quarantined(q *Quarantined) error {
	if q.Count <= 0 || q.Code == "" {
		return s.bad("quarantined", "counts nothing")
	}
	return nil
}

// rotated reads that a key takes the place of others. Whether the keys that are used later are to be trusted, the verifier's
// own configuration says.
func (s *step) rotated(r *Rotated) error {
	if _, err := r.JWK.Key(); err != nil {
		return s.bad("rotated.jwk", "is no key: %v", err)
	}
	switch {
	case r.Of != OfGovernor && r.Of != OfIssuer && r.Of != OfLog:
		return s.bad("rotated.of", "must be governor, issuer or log")
	case r.From <= 0 || r.Until < r.From:
		return s.bad("rotated.until", "is before the new key is used")
	case r.By == "":
		return s.bad("rotated.by", "is missing")
	}
	return s.acts("rotated.by", r.By)
}

// identity reads who is cut off, or let in again. Nothing of theirs may be left when they are cut off.
func (s *step) identity(i *Identity) error {
	at, withdrawn := s.withdrawn[i.Name]
	switch {
	case i.Name == "":
		return s.bad("identity.name", "is missing")
	case i.By == "":
		return s.bad("identity.by", "is missing")
	case i.By == i.Name:
		return s.bad("identity.by", "is the identity itself")
	case i.Effect == Restored && !withdrawn:
		return s.bad("identity.effect", "restores what was not withdrawn")
	case i.Effect == Withdrawn && withdrawn:
		return s.bad("identity.effect", "withdraws what entry %d has withdrawn", at)
	case i.Effect != Restored && i.Effect != Withdrawn:
		return s.bad("identity.effect", "must be withdrawn or restored")
	}
	if err := s.acts("identity.by", i.By); err != nil {
		return err
	}
	if i.Effect == Restored {
		delete(s.withdrawn, i.Name)
		return nil
	}
	for _, in := range s.open {
		if in.root.agent == i.Name {
			return s.bad("identity.name", "opened session %s, which is not closed", in.id)
		}
		for _, h := range in.handoffs {
			if h.to == i.Name && (h.state == isHeld || h.state == isAdmitted || h.state == isClaimed) {
				return s.bad("identity.name", "was handed %s, which is not revoked", h.id)
			}
		}
	}
	s.withdrawn[i.Name] = s.e.Index
	return nil
}

// acts refuses what somebody does who is withdrawn.
func (s *step) acts(field, name string) error {
	if at, withdrawn := s.withdrawn[name]; withdrawn {
		return s.bad(field, "is %q, which entry %d has withdrawn", name, at)
	}
	return nil
}

func (s *step) opened(o *Opened) error {
	if err := s.use("session", s.e.Session); err != nil {
		return err
	}
	root, err := s.root("opened.root", o.Root)
	if err != nil {
		return err
	}
	switch {
	case root.Claims.ID != s.e.Session:
		return s.bad("opened.root", "is of session %q", root.Claims.ID)
	case root.Handoff.To != o.Opener:
		return s.bad("opened.opener", "is %q; the root is %q's", o.Opener, root.Handoff.To)
	case s.e.Grant != "" && s.e.Grant != root.Claims.ID:
		return s.bad("grant", "is %q; the root is %q", s.e.Grant, root.Claims.ID)
	case root.Claims.MaxDepth > 2*o.MaxHops:
		return s.bad("opened.root", "allows a depth of %d; %d hops are %d", root.Claims.MaxDepth, o.MaxHops, 2*o.MaxHops)
	}
	if err := s.acts("opened.opener", o.Opener); err != nil {
		return err
	}
	if err := s.decision("opened.decision", &o.Decision, wire.EffectAllow); err != nil {
		return err
	}
	g := &grant{link: root, agent: o.Opener, labels: union(o.Labels, root.Handoff.Labels)}
	s.open[s.e.Session] = &session{
		id: s.e.Session, root: g, budget: o.Budget,
		grants: map[string]*grant{root.Claims.ID: g}, handoffs: map[string]*handoff{},
	}
	return nil
}

// sessionDecided reads that a session was not opened: its ID is used up, and nothing follows.
func (s *step) sessionDecided(d *Decided) error {
	if d.Effect != wire.EffectDeny && d.Effect != wire.EffectHold {
		return s.bad("decided.effect", "must be deny or hold; a session that opens is recorded as such")
	}
	if err := s.use("session", s.e.Session); err != nil {
		return err
	}
	return s.optional("decided.decision", d.Decision, d.Effect)
}

// decided reads the judgement of an offer, or of a claim that was not granted.
func (s *step) decided(d *Decided) error {
	in := s.open[s.e.Session]
	switch {
	case d.Stage == StageClaim:
		return s.claimDecided(in, d)
	case d.Stage == StageSession:
		return s.sessionDecided(d)
	case d.Stage != StageOffer:
		return s.bad("decided.stage", "must be session, offer or claim")
	case !slices.Contains([]string{wire.EffectAllow, wire.EffectDeny, wire.EffectHold}, d.Effect):
		return s.bad("decided.effect", "must be allow, deny or hold")
	}
	if err := s.use("handoff", s.e.Handoff); err != nil {
		return err
	}
	if d.Effect == wire.EffectDeny && (in == nil || d.Decision == nil) {
		// Denied before policy was asked, whatever the offer was, or after its session was over. Nothing follows from it.
		if d.Granted != nil {
			return s.bad("decided.granted", "is there though nothing was granted")
		}
		return s.optional("decided.decision", d.Decision, d.Effect)
	}
	if in == nil {
		return s.bad("session", "is not open")
	}
	parent := in.grants[s.e.Grant]
	if parent == nil {
		return s.bad("grant", "is unknown in this session")
	}
	offer, err := s.offer("decided.offer", d.Offer, parent.link)
	if err != nil {
		return err
	}
	switch {
	case parent.agent != s.e.From:
		return s.bad("from", "is %q; the grant is %q's", s.e.From, parent.agent)
	case offer.Claims.ID != s.e.Handoff:
		return s.bad("decided.offer", "has ID %q, not the handoff's", offer.Claims.ID)
	case offer.Handoff.To != s.e.To:
		return s.bad("to", "is %q; the offer names %q", s.e.To, offer.Handoff.To)
	case offer.Handoff.TaskHash != d.TaskHash:
		return s.bad("decided.task_hash", "is not the one that the sender signed")
	}
	if d.Effect == wire.EffectDeny {
		return s.decision("decided.decision", d.Decision, d.Effect)
	}
	if err := s.usable("grant", parent); err != nil {
		return err
	}
	if err := s.acts("to", s.e.To); err != nil {
		return err
	}
	h := &handoff{id: s.e.Handoff, from: s.e.From, to: s.e.To, parent: parent, offer: offer, index: s.e.Index}
	in.handoffs[h.id] = h
	parent.below = append(parent.below, h)
	return s.judged(in, h, "decided", d)
}

// judged gives an offer what was decided of it: in the first place, or when it was approved.
func (s *step) judged(in *session, h *handoff, field string, d *Decided) error {
	offer := h.offer.Claims
	if err := s.optional(field+".decision", d.Decision, d.Effect); err != nil {
		return err
	}
	if d.Effect == wire.EffectDeny {
		h.state = isDenied
		return nil
	}
	switch {
	case d.Expires > offer.ExpiresAt:
		return s.bad(field+".exp", "is after the offer's own")
	case d.Deadline > d.Expires:
		return s.bad(field+".deadline", "is after the last moment of the work")
	case h.offer.Handoff.Deadline > 0 && d.Deadline > h.offer.Handoff.Deadline:
		return s.bad(field+".deadline", "is after the offer's own")
	case d.MaxDepth > offer.MaxDepth:
		return s.bad(field+".max_depth", "is deeper than the offer's own")
	}
	if err := aat.SubsumesTools(offer.Tools, d.Granted); err != nil {
		return s.bad(field+".granted", "is wider than the offer: %v", err)
	}
	if err := s.covers(field+".labels", d.Labels, h.parent.labels, h.offer.Handoff.Labels); err != nil {
		return err
	}
	h.granted, h.labels, h.expires, h.deadline, h.maxDepth = d.Granted, d.Labels, d.Expires, d.Deadline, d.MaxDepth
	if d.Effect == wire.EffectHold {
		h.state = isHeld
		s.held[s.e.Index] = &held{h, StageOffer}
		return nil
	}
	h.state = isAdmitted
	in.admitted++
	switch {
	case in.budget != nil && in.admitted > in.budget.Handoffs:
		return s.bad("", "admits more than the session's budget of %d handoffs", in.budget.Handoffs)
	case h.offer.Handoff.Mode != wire.ModeTransfer:
		return nil
	}
	for _, other := range h.parent.below {
		if other != h && other.offer.Handoff.Mode == wire.ModeDelegate && other.pending(s.now) {
			return s.bad("", "transfers a task while handoff %s is still open", other.id)
		}
	}
	return nil
}

// claimDecided reads why a claim was not granted.
func (s *step) claimDecided(in *session, d *Decided) error {
	if err := s.optional("decided.decision", d.Decision, d.Effect); err != nil {
		return err
	}
	var h *handoff
	if in != nil {
		h = in.handoffs[s.e.Handoff]
	}
	switch {
	case d.Effect == wire.EffectDeny && h == nil:
		return nil
	case h == nil:
		return s.bad("handoff", "is unknown in this session")
	case h.state != isAdmitted && h.state != isClaimed:
		return s.bad("handoff", "is %s", h.state)
	case h.state == isClaimed && d.Effect != wire.EffectAllow:
		return nil // a take-over that was turned down: the process that has the task keeps it
	case d.Effect == wire.EffectDeny:
		h.state = isDenied
		return nil
	case d.Effect == wire.EffectHold:
		h.state = isHeld
		s.held[s.e.Index] = &held{h, StageClaim}
		return nil
	}
	return s.bad("decided.effect", "must be deny or hold; a claim that was granted is recorded as such")
}

// approved reads a person's answer to what was held.
func (s *step) approved(in *session, a *Approved) error {
	waiting := s.held[a.Of]
	switch {
	case waiting == nil:
		return s.bad("approved.of", "entry %d holds nothing, or was answered before", a.Of)
	case in.handoffs[waiting.handoff.id] != waiting.handoff, s.e.Handoff != waiting.handoff.id:
		return s.bad("approved.of", "entry %d holds handoff %s", a.Of, waiting.handoff.id)
	case a.By == "":
		return s.bad("approved.by", "is missing")
	case !a.Approve && a.Decided != nil && a.Decided.Effect != wire.EffectDeny:
		return s.bad("approved.decided", "is %q though the person said no", a.Decided.Effect)
	}
	if err := s.acts("approved.by", a.By); err != nil {
		return err
	}
	delete(s.held, a.Of)
	h := waiting.handoff
	effect := wire.EffectDeny
	if a.Decided != nil {
		if effect = a.Decided.Effect; a.Decided.Offer != "" && a.Decided.Offer != h.offer.Compact {
			return s.bad("approved.decided.offer", "is not the one that was held")
		}
	}
	if waiting.stage == StageOffer && a.Decided != nil {
		if effect != wire.EffectDeny {
			if err := s.usable("handoff", h.parent); err != nil {
				return err
			}
		}
		return s.judged(in, h, "approved.decided", a.Decided)
	}
	if a.Decided != nil {
		if err := s.optional("approved.decided.decision", a.Decided.Decision, effect); err != nil {
			return err
		}
	}
	switch {
	case effect == wire.EffectHold:
		s.held[s.e.Index] = waiting
	case waiting.stage == StageResult && effect == wire.EffectAllow:
		if h.result != nil { // what counts is counted again, under the bundle in force
			result := *h.result
			result.Labels = union(result.Labels, a.Decided.Labels)
			h.result = &result
		}
		return s.accept(in, h)
	case waiting.stage == StageResult:
		h.result = nil
	case effect == wire.EffectAllow:
		h.state = isAdmitted
	default:
		h.state = isDenied
	}
	return nil
}

// claimed reads a credential: what was about to be signed.
func (s *step) claimed(in *session, c *Claimed) error {
	h := in.handoffs[s.e.Handoff]
	switch {
	case h == nil:
		return s.bad("handoff", "is unknown in this session")
	case h.state != isAdmitted && h.state != isClaimed:
		return s.bad("handoff", "is %s, and cannot be claimed", h.state)
	case s.e.From != h.from || s.e.To != h.to:
		return s.bad("to", "the handoff is from %q to %q", h.from, h.to)
	case h.state == isAdmitted && s.now > h.deadline:
		return s.bad("time", "is after the deadline of the handoff")
	}
	transferred := h.state == isClaimed && h.offer.Handoff.Mode == wire.ModeTransfer // which ended the parent
	if err := s.usable("handoff", h.parent); err != nil && !(transferred && !h.parent.revoked) {
		return err
	}
	if err := s.decision("claimed.decision", &c.Decision, wire.EffectAllow); err != nil {
		return err
	}
	minted, err := s.claim("claimed.payload", c.Payload, h.offer)
	if err != nil {
		return err
	}
	claims, claim := minted.Claims, minted.Handoff
	if err := s.use("claimed.payload.jti", claims.ID); err != nil {
		return err
	}
	switch {
	case claims.ID != s.e.Grant:
		return s.bad("grant", "is %q; the payload's jti is %q", s.e.Grant, claims.ID)
	case c.Governor != h.offer.Claims.Holder.Thumbprint():
		return s.bad("claimed.governor", "is not the key that the offer names")
	case claims.ExpiresAt > h.expires:
		return s.bad("claimed.payload.exp", "is after what was decided")
	case claims.MaxDepth > h.maxDepth:
		return s.bad("claimed.payload.del_max_depth", "is deeper than what was decided")
	case claim.Decision.Log != s.log || claim.Decision.Index != h.index:
		return s.bad("claimed.payload.handoff.decision", "is not entry %d", h.index)
	case claim.Bundle != c.Decision.Bundle:
		return s.bad("claimed.payload.handoff.bundle", "is not the one that decided")
	}
	if err := aat.SubsumesTools(h.granted, claims.Tools); err != nil {
		return s.bad("claimed.payload.authorization_details", "is wider than what was decided: %v", err)
	}
	if err := s.covers("claimed.labels", c.Labels, h.labels); err != nil {
		return err
	}
	if err := s.covers("claimed.payload.handoff.labels", claim.Labels, c.Labels); err != nil {
		return err
	}
	supersedes, ends := "", ""
	if h.grant != nil {
		supersedes = h.grant.link.Claims.ID
	}
	if h.offer.Handoff.Mode == wire.ModeTransfer && !h.parent.ended {
		ends = h.parent.link.Claims.ID
	}
	switch {
	case c.Supersedes != supersedes:
		return s.bad("claimed.supersedes", "is %q; the handoff's live grant is %q", c.Supersedes, supersedes)
	case c.Ends != ends:
		return s.bad("claimed.ends", "is %q; by its mode it ends %q", c.Ends, ends)
	}
	if h.grant != nil {
		h.grant.revoke()
	}
	if ends != "" {
		h.parent.ended = true
	}
	h.grant = &grant{link: minted, agent: h.to, handoff: h, labels: c.Labels}
	h.state = isClaimed
	in.grants[claims.ID] = h.grant
	return nil
}

// answered reads a result: accepted, denied or held.
func (s *step) answered(in *session, r *Result) error {
	h := in.handoffs[s.e.Handoff]
	if err := s.optional("result.decision", r.Decision, r.Effect); err != nil {
		return err
	}
	if r.Effect == wire.EffectDeny {
		return nil
	}
	switch {
	case h == nil:
		return s.bad("handoff", "is unknown in this session")
	case h.result != nil:
		return s.bad("handoff", "has a result already")
	case h.state != isClaimed:
		return s.bad("handoff", "is %s, and has no result", h.state)
	case s.e.Grant != h.grant.link.Claims.ID:
		return s.bad("grant", "is not the one that the handoff was claimed with")
	case s.e.From != h.to:
		return s.bad("from", "is %q; the handoff was to %q", s.e.From, h.to)
	}
	if err := s.usable("grant", h.grant); err != nil {
		return err
	}
	said, err := jws.VerifyJSON[wire.ResultToken](r.Token, wire.TypeResult, h.grant.link.Holder(), wire.MaxToken)
	if err != nil {
		return s.bad("result.token", "%v", err)
	}
	s.report.Results++
	switch answers := h.answers(); {
	case said.Handoff != h.id:
		return s.bad("result.token", "is of handoff %q", said.Handoff)
	case said.Status != r.Status || r.Status != wire.StatusCompleted && r.Status != wire.StatusFailed:
		return s.bad("result.status", "is not what the token says")
	case said.BodyHash != r.BodyHash:
		return s.bad("result.body_hash", "is not the one that was signed")
	case r.Answers != answers.name():
		return s.bad("result.answers", "is %q; it answers %q", r.Answers, answers.name())
	}
	if err := s.use("result.token", said.ID); err != nil {
		return err
	}
	if err := s.covers("result.labels", r.Labels, h.grant.labels, said.Labels); err != nil {
		return err
	}
	h.result = r
	switch r.Effect {
	case wire.EffectAllow:
		return s.accept(in, h)
	case wire.EffectHold:
		s.held[s.e.Index] = &held{h, StageResult}
		return nil
	}
	return s.bad("result.effect", "must be allow, deny or hold")
}

// accept ends the work on h and on every handoff on the way to the one that is answered: what else is below each is revoked,
// then its grant ends, and it has its result.
func (s *step) accept(in *session, h *handoff) error {
	if h.grant == nil || h.result == nil {
		return s.bad("handoff", "has no result to accept")
	}
	answers := h.answers()
	receiver := in.root
	if answers != nil {
		receiver = answers.parent
	}
	receiver.labels = union(receiver.labels, h.result.Labels)
	var done *handoff
	for at := h; at != nil; at = at.parent.handoff {
		if at.state == isAnswered {
			return s.bad("handoff", "handoff %s, which it answers, has a result already", at.id)
		}
		for _, below := range at.grant.below {
			if below != done {
				below.revoke()
			}
		}
		at.grant.ended = true
		at.state, at.result = isAnswered, h.result
		if at == answers {
			break
		}
		done = at
	}
	return nil
}

// revoked reads which grants nothing may come of any more. It must name all that are live below each.
func (s *step) revoked(in *session, r *Revoked) error {
	if err := s.acts("revoked.by", r.By); err != nil {
		return err
	}
	for i, id := range r.Grants {
		if in.grants[id] == nil {
			return s.bad(fmt.Sprintf("revoked.grants.%d", i), "is no grant of this session")
		}
	}
	named := func(g *grant) bool { return slices.Contains(r.Grants, g.link.Claims.ID) }
	for _, id := range r.Grants {
		for below := range in.grants[id].descendants {
			if !below.revoked && !below.ended && !named(below) {
				return s.bad("revoked.grants", "lacks %s, which is live below %s", below.link.Claims.ID, id)
			}
		}
	}
	h := in.handoffs[s.e.Handoff]
	if h != nil && (s.e.Grant == "" || h.grant != nil && h.grant.link.Claims.ID == s.e.Grant) {
		if h.grant != nil && !h.grant.revoked && !named(h.grant) {
			return s.bad("revoked.grants", "lacks %s, the grant of the handoff", h.grant.link.Claims.ID)
		}
		h.revoke()
	} else if s.e.Grant == "" && len(r.Grants) == 0 {
		return s.bad("revoked", "names nothing")
	}
	if s.e.Grant != "" && !slices.Contains(r.Grants, s.e.Grant) {
		return s.bad("revoked.grants", "lacks %s, which the entry is about", s.e.Grant)
	}
	for _, id := range r.Grants {
		in.grants[id].revoke()
	}
	return nil
}

// body compares what is stored beside the entry with the hash in it.
func (s *step) body(bodies BodySource) error {
	field, want := s.e.BodyHash()
	if want == "" || bodies == nil {
		return nil
	}
	salt, data, err := bodies.Body(s.e.Index)
	if err != nil {
		s.report.BodiesGone++
		return nil
	}
	if len(salt) != wire.SaltSize || wire.TaskHash(salt, data) != want {
		return s.bad(field, "is not the hash of the body that is stored")
	}
	s.report.Bodies++
	return nil
}

// decision checks that the policy was asked, and said so.
func (s *step) decision(field string, d *Decision, effect string) error {
	if d == nil {
		return s.bad(field, "is missing")
	}
	switch {
	case s.bundle == "":
		return s.bad(field+".bundle", "no bundle was ever activated")
	case d.Bundle != s.bundle:
		return s.bad(field+".bundle", "is %q; %q was in force", d.Bundle, s.bundle)
	case d.Engine == "":
		return s.bad(field+".engine", "is missing")
	case d.Failure != "" && effect != wire.EffectDeny:
		return s.bad(field+".failure", "is %q, which must deny", d.Failure)
	case d.Failure != "":
		return nil
	}
	var answer struct {
		Effect string `json:"effect"`
	}
	if err := json.Unmarshal(d.Answer, &answer); err != nil {
		return s.bad(field+".answer", "is not an answer: %v", err)
	}
	if effect != wire.EffectDeny && answer.Effect != effect {
		return s.bad(field+".answer", "says %q, but the effect is %q", answer.Effect, effect)
	}
	return nil
}

// optional is decision where a denial may come without asking.
func (s *step) optional(field string, d *Decision, effect string) error {
	if d == nil && effect == wire.EffectDeny {
		return nil
	}
	return s.decision(field, d, effect)
}

// usable tells why nothing may be done under g any more.
func (s *step) usable(field string, g *grant) error {
	id := g.link.Claims.ID
	switch {
	case g.revoked:
		return s.bad(field, "its grant %s was revoked", id)
	case g.ended:
		return s.bad(field, "its grant %s had ended", id)
	case s.now >= g.link.Claims.ExpiresAt:
		return s.bad(field, "its grant %s had expired", id)
	}
	return nil
}

// covers tells which label was dropped on the way.
func (s *step) covers(field string, have []string, need ...[]string) error {
	for _, labels := range need {
		for _, l := range labels {
			if !slices.Contains(have, l) {
				return s.bad(field, "lacks %q, which cannot be shed", l)
			}
		}
	}
	return nil
}

// revoke revokes g and all that was handed on from it.
func (g *grant) revoke() {
	g.revoked = true
	for _, h := range g.below {
		h.revoke()
	}
}

func (h *handoff) revoke() {
	if h.grant != nil && !h.grant.revoked {
		h.grant.revoke()
	}
	if h.state == isHeld || h.state == isAdmitted || h.state == isClaimed {
		h.state = isRevoked
	}
}

// descendants yields the grants that were handed on from g, near ones first.
func (g *grant) descendants(yield func(*grant) bool) {
	for _, h := range g.below {
		if h.grant == nil {
			continue
		}
		if !yield(h.grant) {
			return
		}
		for below := range h.grant.descendants {
			if !yield(below) {
				return
			}
		}
	}
}

// answers is the handoff whose sender receives a result of h: h itself where it was delegated, else the nearest above
// that was; nil where only transfers lead to it from the session's opener.
func (h *handoff) answers() *handoff {
	for ; h != nil; h = h.parent.handoff {
		if h.offer.Handoff.Mode != wire.ModeTransfer {
			return h
		}
	}
	return nil
}

func (h *handoff) name() string {
	if h == nil {
		return ""
	}
	return h.id
}

// pending tells whether a result of h may still come.
func (h *handoff) pending(now int64) bool {
	switch h.state {
	case isAdmitted, isHeld:
		return now <= h.deadline && now < h.expires
	case isClaimed:
		return now < h.expires
	}
	return false
}

// root verifies a root link under the issuer's keys, at the time of the entry.
func (s *step) root(field, compact string) (*profile.Link, error) {
	l, err := s.verifier.Root(compact)
	if err != nil {
		return nil, s.bad(field, "%v", err)
	}
	if s.believing && s.profile.Governors[l.Claims.Issuer] == nil {
		s.profile.Governors[l.Claims.Issuer] = []ed25519.PublicKey{{}} // nobody's: none is known yet
	}
	root, err := s.profile.Root(l)
	return root, s.link(field, err)
}

// offer verifies an offer link under the key of its parent's holder, at the time of the entry.
func (s *step) offer(field, compact string, parent *profile.Link) (*profile.Link, error) {
	l, err := s.verifier.Child(parent.Link, compact)
	if err != nil {
		return nil, s.bad(field, "%v", err)
	}
	if s.believing {
		issuer := l.Chain()[0].Claims.Issuer
		known := s.profile.Governors[issuer]
		if !slices.ContainsFunc(known, func(k ed25519.PublicKey) bool { return k.Equal(l.Holder()) }) {
			s.profile.Governors[issuer] = append(known, l.Holder())
		}
	}
	offer, err := s.profile.Child(parent, l)
	return offer, s.link(field, err)
}

// claim checks the payload of a claim link, which was signed only after it had been written down.
func (s *step) claim(field string, payload []byte, offer *profile.Link) (*profile.Link, error) {
	l, err := aat.Restore(offer.Link, payload)
	if err != nil {
		return nil, s.bad(field, "%v", err)
	}
	switch skew := int64(s.verifier.MaxIATSkew / time.Second); {
	case l.Claims.ExpiresAt <= s.now:
		return nil, s.bad(field+".exp", "had passed when the entry was written")
	case l.Claims.IssuedAt > s.now+skew:
		return nil, s.bad(field+".iat", "is in the entry's future")
	}
	claim, err := s.profile.Child(offer, l)
	return claim, s.link(field, err)
}

func (s *step) link(field string, err error) error {
	if err != nil {
		return s.bad(field, "%v", err)
	}
	s.report.Links++
	return nil
}

func union(a, b []string) []string {
	out := slices.Concat(a, b)
	slices.Sort(out)
	return slices.Compact(out)
}
