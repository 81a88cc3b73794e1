package governor

import (
	"container/heap"
	"fmt"
	"maps"

	"slices"
	"sync"
	"time"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/handoff-governor/handoff-governor/handoff/aat"
	"github.com/handoff-governor/handoff-governor/handoff/aat/profile"
	"github.com/handoff-governor/handoff-governor/handoff/entry"
	"github.com/handoff-governor/handoff-governor/handoff/wire"
)

// State is what is true now: the sessions that are not over, and everything in them. It is derived from the entries
// alone, by apply, and from nothing else, so that a restart ends up with the same state.
//
// The sequencer writes it under mu; everybody else reads it under mu.RLock, and copies what it needs.
type State struct {
	mu sync.RWMutex

	next   uint64 // index of the next entry
	clock  int64  // time of the newest entry, Unix milliseconds
	bundle string // digest of the bundle in force

	sessions  map[string]*session
	handoffs  map[string]*handoff    // by ID
	grants    map[[32]byte]*grant    // by hash of the link's signing input
	byID      map[string]*grant      // by the link's jti
	holders   map[string]holder      // thumbprint of live grants' key → whose it is
	sender    map[string]uint64      // agent → newest entry it sent
	receiver  map[string]uint64      // agent → newest entry to it
	open      map[path]int           // handoffs admitted, without a result
	withdrawn map[string]uint64      // identity → the entry that withdrew it
	opens     map[string]int         // agent → sessions that it has opened, and that are not over
	used      map[string]uint64      // every ID of these sessions → its entry
	held      map[uint64]*heldRecord // index of a held decision → what waits
	expiries  expiries               // what to end when, soonest first
	touched   map[string]bool        // keys of the live bucket that are out of date: live.go
	out       outMark                // of the live bucket that this was read from: republish.go

	keys    *Keys
	trust   func() *trust
	profile *profile.Profile // with the governor keys of entries that are read back, also those that are retired
}

func newState(keys *Keys, trust func() *trust) *State {
	return &State{
		keys:      keys,
		trust:     trust,
		profile:   &profile.Profile{Governors: maps.Clone(trust().profile.Governors)},
		sessions:  map[string]*session{},
		handoffs:  map[string]*handoff{},
		grants:    map[[32]byte]*grant{},
		byID:      map[string]*grant{},
		holders:   map[string]holder{},
		sender:    map[string]uint64{},
		receiver:  map[string]uint64{},
		open:      map[path]int{},
		withdrawn: map[string]uint64{},
		opens:     map[string]int{},
		used:      map[string]uint64{},
		held:      map[uint64]*heldRecord{},
		touched:   map[string]bool{},
	}
}

// path is the way from one agent to another; from is empty for all who send to it together.
type path struct{ from, to string }

// session is one bounded security transaction.
type session struct {
	id        string
	opener    string
	principal wire.Principal
	root      *grant
	openedAt  int64 // Unix seconds
	expires   int64 // Unix seconds
	maxHops   int
	budget    *wire.Budget
	over      string // "" while open, else why: closed | expired | revoked
	admitted  int
	decided   int
	denied    int
	newest    uint64
	handoffs  []*handoff
	grants    []*grant
	results   []string       // IDs of result tokens
	refused   []string       // IDs of denied offers
	input     jsontext.Value // what the policy was asked when it was opened
}

// status of a handoff.
type status string

const (
	statusDenied    status = "denied"
	statusHeld      status = "held"
	statusAdmitted  status = "admitted"
	statusClaimed   status = "claimed"
	statusCompleted status = "completed"
	statusFailed    status = "failed"
	statusRevoked   status = "revoked"
	statusExpired   status = "expired"
)

// handoff is one task on its way.
type handoff struct {
	id        string
	session   *session
	from, to  string
	parent    *grant            // the grant it was offered under
	token     string            // the offer link, compact
	offer     *profile.Link     // nil where the offer was denied and is no valid link
	claim     wire.HandoffClaim // of the offer link
	granted   aat.Tools
	labels    []string
	expires   int64 // Unix seconds: last moment of the work
	deadline  int64 // Unix seconds: last moment to claim
	maxDepth  int
	status    status
	reasons   []wire.Reason
	decided   uint64          // the entry that holds its body
	newest    uint64          // the entry that made its status
	grant     *grant          // the current one, once claimed
	lost      map[string]bool // thumbprints of keys that were superseded
	leased    int64           // Unix milliseconds until which the grant's process is protected from take-over
	result    *resultRecord
	approvals []string          // who approved it
	held      *uint64           // the entry that holds it, or its result
	refused   map[string]uint64 // IDs of results that were held → the entry that turned each down

	noticed told // not of the ledger
}

func (h *handoff) mode() string { return h.claim.Mode }

// effect is what its receipt says of an offer.
func (h *handoff) effect() string {
	switch h.status {
	case statusDenied, statusRevoked, statusExpired:
		return wire.EffectDeny
	case statusHeld:
		return wire.EffectHold
	default:
		return wire.EffectAllow
	}
}

// done tells whether nothing more can come of the handoff at the time now (Unix seconds).
func (h *handoff) done(now int64) bool {
	switch h.status {
	case statusAdmitted, statusHeld:
		return now > h.deadline || now >= h.expires
	case statusClaimed:
		return now >= h.expires
	default:
		return true
	}
}

// resultRecord is a result that was accepted or is held.
type resultRecord struct {
	index     uint64 // of the entry that accepted it
	body      uint64 // of the entry that it came with
	token     string
	effect    string
	claim     wire.ResultToken
	labels    []string
	approvals []string

	told told // not of the ledger
}

// grantState tells what may still be done with a grant.
type grantState uint8

const (
	live    grantState = iota
	ended              // not as a leaf, and it parents no new claim; what was handed on lives
	revoked            // nothing through it
)

// grant is authority held by one agent process for one task.
type grant struct {
	id       string // jti
	agent    string
	session  *session
	handoff  *handoff // nil for a root
	parent   *grant   // the grant the handoff was offered under; nil for a root
	link     *profile.Link
	token    func() (string, error) // the link, compact; a claim link is signed at first use
	key      string                 // thumbprint of the holder's key
	labels   []string               // of its link, and of the results delivered to it
	state    grantState
	expires  int64 // Unix seconds
	hops     int   // handoffs between the root and this
	newest   uint64
	children []*handoff // admitted or held under it

	// Not of the ledger: an offer that was put off for a moment, so that the grant's result waits for it.
	putOff      string // its ID
	putOffUntil int64  // Unix milliseconds: by then it has come again, or will not
}

// usable tells why the grant may not act as a leaf or parent at the time now (Unix seconds), or nil.
func (g *grant) usable(now int64) *wire.Error {
	switch {
	case g.session.over != "":
		return sessionOver(g.session)
	case now >= g.session.expires:
		return wire.Refuse(wire.CodeSessionExpired, "the session has expired; open another with a longer ttl")
	case g.state == revoked: // and so is everything below a revoked grant
		return wire.Refuse(wire.CodeParentRevoked, "this grant was revoked, or one above it; open another session")
	case g.state == ended:
		return wire.Refuse(wire.CodeParentEnded, "this grant ended with its task; act under one that is live")
	case now >= g.expires:
		return wire.Refuse(wire.CodeExpired, "this grant has expired; ask for a longer lifetime when it is offered")
	}
	return nil
}

func sessionOver(s *session) *wire.Error {
	if s.over == reasonExpired {
		return wire.Refuse(wire.CodeSessionExpired, "the session has expired; open another with a longer ttl")
	}
	return wire.Refuse(wire.CodeSessionClosed, "the session is closed; open another")
}

// delegating tells whether the grant awaits results at the time now.
func (g *grant) delegating(now int64) bool {
	for _, h := range g.children {
		if h.mode() == wire.ModeDelegate && !h.done(now) {
			return true
		}
	}
	return false
}

// chain lists the grants from the root to g.
func (g *grant) chain() []*grant {
	out := make([]*grant, 0, g.hops+1)
	for a := g; a != nil; a = a.parent {
		out = append(out, a)
	}
	slices.Reverse(out)
	return out
}

// compact lists the links of a chain, as a holder presents them.
func compact(chain []*grant) ([]string, error) {
	var out []string
	for _, g := range chain {
		if g.handoff != nil {
			out = append(out, g.handoff.token)
		}
		token, err := g.token()
		if err != nil {
			return nil, err
		}
		out = append(out, token)
	}
	return out, nil
}

// heldRecord is what waits for a person.
type heldRecord struct {
	handoff *handoff
	stage   string
	entries []uint64 // that held it, and still do: the newest answers for all
}

// reasonExpired is the reason of a closing or revocation that only time brought about.
const reasonExpired = "expired"

// known carries what the path has parsed already into apply, which would otherwise parse it from the entry. It never
// holds anything that the entry does not determine.
type known struct {
	offer   *profile.Link      // of a decided offer that verified
	handoff *wire.HandoffClaim // of a decided offer
	claim   *profile.Link      // of a claim
}

// apply makes e true. It must not fail on an entry that the governor wrote, and it looks at nothing but e, what e
// determines, and the state that the entries before it made.
func (st *State) apply(e *entry.Entry, k known) error {
	if e.Index != st.next {
		return fmt.Errorf("entry %d where %d was expected", e.Index, st.next)
	}
	if err := st.applySession(e, k); err != nil {
		return err
	}
	st.next, st.clock = e.Index+1, e.Time
	if e.Kind == entry.KindBundle {
		st.bundle = e.Bundle.Digest
		st.touch(liveBundle)
	}
	if e.Kind == entry.KindIdentity {
		if e.Identity.Effect == entry.Withdrawn {
			st.withdrawn[e.Identity.Name] = e.Index
		} else {
			delete(st.withdrawn, e.Identity.Name)
		}
		st.touch(liveWithdrawn + e.Identity.Name)
	}
	if e.From != "" {
		st.sender[e.From] = e.Index
		st.touch(liveAgent + e.From)
	}
	if e.To != "" {
		st.receiver[e.To] = e.Index
		st.touch(liveAgent + e.To)
	}
	return nil
}

// applySession makes true what e says of its session. It touches nothing that belongs to another.
func (st *State) applySession(e *entry.Entry, k known) error {
	var err error
	switch e.Kind {
	case entry.KindSession:
		err = st.applyOpened(e)
	case entry.KindClosed:
		err = st.applyClosed(e)
	case entry.KindDecided:
		err = st.applyDecided(e, e.Decided, k)
	case entry.KindApproved:
		err = st.applyApproved(e, k)
	case entry.KindClaimed:
		err = st.applyClaimed(e, k)
	case entry.KindResult:
		err = st.applyResult(e)
	case entry.KindRevoked:
		err = st.applyRevoked(e)
	case entry.KindRejudged, entry.KindQuarantined, entry.KindBundle, entry.KindIdentity, entry.KindRotated:
		// What a re-judgement did to a grant is in the entries that follow it; the others are of no session.
	default:
		err = fmt.Errorf("unknown kind %q", e.Kind)
	}
	if err != nil {
		return fmt.Errorf("applying entry %d (%s): %w", e.Index, e.Kind, err)
	}
	if s := st.sessions[e.Session]; s != nil {
		s.newest = e.Index
	}
	if g := st.byID[e.Grant]; g != nil {
		g.newest = e.Index
	}
	return nil
}

func (st *State) applyOpened(e *entry.Entry) error {
	o := e.Opened
	link, err := st.restoreRoot(o.Root, e.Time)
	if err != nil {
		return err
	}
	claims := link.Claims
	s := &session{
		id: e.Session, opener: o.Opener, principal: o.Principal, openedAt: claims.IssuedAt, expires: claims.ExpiresAt,
		maxHops: o.MaxHops, budget: o.Budget, input: o.Decision.Input,
	}
	s.root = &grant{
		id: claims.ID, agent: o.Opener, session: s, link: link, token: func() (string, error) { return o.Root, nil },
		key: claims.Holder.Thumbprint(), labels: o.Labels, expires: claims.ExpiresAt,
	}
	st.sessions[s.id] = s
	st.opens[s.opener]++
	st.touch(liveSession + s.id)
	st.used[s.id] = e.Index
	st.addGrant(s.root)
	heap.Push(&st.expiries, expiry{at: s.expires, session: s})
	return nil
}

func (st *State) addGrant(g *grant) {
	g.session.grants = append(g.session.grants, g)
	st.grants[g.link.Hash] = g
	st.byID[g.id] = g
	st.holders[g.key] = holder{g.agent, st.holders[g.key].grants + 1}
}

// holder is the agent that a key is bound to, for as long as it has live grants.
type holder struct {
	agent  string
	grants int
}

// retire takes a grant out of the live ones.
func (st *State) retire(g *grant, to grantState) {
	if g.state == live {
		if h := st.holders[g.key]; h.grants > 1 {
			st.holders[g.key] = holder{h.agent, h.grants - 1}
		} else {
			delete(st.holders, g.key)
		}
	}
	g.state = to
}

func (st *State) applyClosed(e *entry.Entry) error {
	s := st.sessions[e.Session]
	if s == nil {
		return fmt.Errorf("no such session")
	}
	if st.opens[s.opener]--; st.opens[s.opener] == 0 {
		delete(st.opens, s.opener)
	}
	s.over = "closed"
	if e.Closed.Reason == reasonExpired {
		s.over = reasonExpired
	}
	over := sessionOver(s)
	for _, h := range s.handoffs {
		if openStatus(h.status) {
			h.newest = e.Index
			h.reasons = append(slices.Clip(h.reasons), wire.Reason{Code: over.Code, Message: over.Message})
		}
	}
	st.revokeBelow(s.root, nil)
	return nil
}

// revokeBelow revokes g and everything that was handed on from it. Why is what the senders of that are told, unless they are told
// something else.
func (st *State) revokeBelow(g *grant, why *wire.Reason) {
	st.retire(g, revoked)
	for _, h := range g.children {
		st.revokeChild(h, why)
	}
}

func (st *State) revokeChild(h *handoff, why *wire.Reason) {
	if why != nil && openStatus(h.status) {
		h.reasons = append(slices.Clip(h.reasons), *why)
	}
	st.revokeHandoff(h, why)
}

func (st *State) revokeHandoff(h *handoff, below *wire.Reason) {
	if h.grant != nil {
		st.revokeBelow(h.grant, below)
	}
	if openStatus(h.status) {
		st.setStatus(h, statusRevoked)
	}
}

// Why a handoff was revoked that nobody has revoked by itself.
var (
	aboveRevoked   = &wire.Reason{Code: wire.CodeParentRevoked, Message: "what it was handed on from was revoked"}
	aboveTakenOver = &wire.Reason{
		Code: wire.CodeParentRevoked, Message: "the task that it was handed on from was taken over by another process",
	}
	aboveEnded = &wire.Reason{Code: wire.CodeParentEnded, Message: "the task that it was handed on from is over"}
)

// hold has an entry wait for a person.
func (st *State) hold(index uint64, rec *heldRecord) {
	rec.entries = append(rec.entries, index)
	st.held[index] = rec
	rec.handoff.held = &index
}

// unhold forgets what waits for a person about a handoff.
func (st *State) unhold(h *handoff) {
	if h.held != nil {
		delete(st.held, *h.held)
		h.held = nil
	}
}

// setStatus keeps the counts: the receivers' of open handoffs, the session's of denied ones. Nothing waits for a person
// about one that is over.
func (st *State) setStatus(h *handoff, to status) {
	was, is := openStatus(h.status), openStatus(to)
	h.status = to
	if to == statusDenied {
		h.session.denied++
	}
	if !is {
		st.unhold(h)
	}
	if is == was {
		return
	}
	for _, p := range []path{{from: h.from, to: h.to}, {to: h.to}} {
		if is {
			st.open[p]++
		} else if st.open[p]--; st.open[p] == 0 {
			delete(st.open, p)
		}
	}
}

func openStatus(s status) bool { return s == statusAdmitted || s == statusClaimed || s == statusHeld }

func (st *State) applyDecided(e *entry.Entry, d *entry.Decided, k known) error {
	if d.Stage == entry.StageSession {
		return nil // nothing follows: whoever asks again is answered from the ledger
	}
	if d.Stage == entry.StageClaim {
		h := st.handoffs[e.Handoff]
		if h == nil {
			return fmt.Errorf("no handoff %s", e.Handoff)
		}
		h.newest = e.Index
		if h.status == statusClaimed {
			return nil // a take-over that was turned down: the process that has the task keeps it
		}
		h.reasons = d.Reasons
		if d.Effect == wire.EffectHold {
			st.setStatus(h, statusHeld)
			st.hold(e.Index, &heldRecord{handoff: h, stage: entry.StageClaim})
		} else {
			st.setStatus(h, statusDenied)
		}
		return nil
	}
	s := st.sessions[e.Session]
	parent := st.byID[e.Grant]
	if s == nil || parent == nil {
		if d.Effect == wire.EffectDeny {
			return nil // its session is over, and by now forgotten: nothing follows
		}
		return fmt.Errorf("no session %s or grant %s", e.Session, e.Grant)
	}
	h := st.handoffs[e.Handoff]
	if h == nil {
		if k.handoff == nil {
			p, err := peek(d.Offer)
			if err != nil {
				return err
			}
			k.handoff = &p.Claim
			if d.Effect != wire.EffectDeny {
				if k.offer, err = st.restoreOffer(parent.link, d.Offer); err != nil {
					return err
				}
			}
		}
		h = &handoff{
			id: e.Handoff, session: s, from: e.From, to: e.To, parent: parent, token: d.Offer, offer: k.offer, claim: *k.handoff,
			decided: e.Index,
		}
		st.used[h.id] = e.Index
		s.decided++
		if d.Effect == wire.EffectDeny {
			s.denied++
			s.refused = append(s.refused, h.id)
			return nil // nothing can follow: a repeat is answered from the ledger
		}
		st.handoffs[h.id] = h
		s.handoffs = append(s.handoffs, h)
	}
	h.granted, h.labels, h.expires, h.deadline = d.Granted, d.Labels, d.Expires, d.Deadline
	h.maxDepth, h.reasons, h.newest = d.MaxDepth, d.Reasons, e.Index
	switch d.Effect {
	case wire.EffectAllow:
		if h.status != statusHeld {
			parent.children = append(parent.children, h)
		}
		s.admitted++
		st.setStatus(h, statusAdmitted)
		heap.Push(&st.expiries, expiry{at: min(h.deadline+1, h.expires), handoff: h})
	case wire.EffectHold:
		parent.children = append(parent.children, h)
		st.setStatus(h, statusHeld)
		st.hold(e.Index, &heldRecord{handoff: h, stage: entry.StageOffer})
		heap.Push(&st.expiries, expiry{at: min(h.deadline+1, h.expires), handoff: h})
	default:
		st.setStatus(h, statusDenied)
	}
	return nil
}

func (st *State) applyApproved(e *entry.Entry, k known) error {
	rec := st.held[e.Approved.Of]
	if rec == nil {
		return fmt.Errorf("entry %d holds nothing", e.Approved.Of)
	}
	h, a := rec.handoff, e.Approved
	st.unhold(h)
	h.newest = e.Index
	if a.Approve {
		if rec.stage == entry.StageResult {
			h.result.approvals = append(h.result.approvals, a.By)
		} else {
			h.approvals = append(h.approvals, a.By)
		}
	}
	effect := wire.EffectDeny
	if a.Decided != nil {
		effect = a.Decided.Effect
	}
	switch {
	case effect == wire.EffectHold: // more people are asked
		if d := a.Decided; rec.stage == entry.StageOffer {
			h.granted, h.labels, h.expires, h.deadline, h.maxDepth = d.Granted, d.Labels, d.Expires, d.Deadline, d.MaxDepth
			heap.Push(&st.expiries, expiry{at: min(h.deadline+1, h.expires), handoff: h})
		}
		st.hold(e.Index, rec)
	case rec.stage == entry.StageResult && effect == wire.EffectAllow:
		h.result.labels = union(h.result.labels, a.Decided.Labels)
		st.accept(h, e.Index, h.result)
	case rec.stage == entry.StageResult:
		if h.refused == nil {
			h.refused = map[string]uint64{}
		}
		h.refused[h.result.claim.ID] = e.Index
		h.result = nil
	case effect != wire.EffectAllow:
		h.reasons = []wire.Reason{{Code: wire.CodeApprovalDenied, Message: "a person was asked, and said no"}}
		if a.Decided != nil {
			h.reasons = a.Decided.Reasons
		}
		st.setStatus(h, statusDenied)
	case rec.stage == entry.StageOffer:
		return st.applyDecided(e, a.Decided, k)
	default:
		st.setStatus(h, statusAdmitted)
	}
	return nil
}

func (st *State) applyClaimed(e *entry.Entry, k known) error {
	h := st.handoffs[e.Handoff]
	if h == nil {
		return fmt.Errorf("no handoff %s", e.Handoff)
	}
	c := e.Claimed
	link := k.claim
	if link == nil {
		var err error
		if link, err = st.restoreClaim(h.offer, c.Payload); err != nil {
			return err
		}
	}
	if old := h.grant; old != nil {
		if h.lost == nil {
			h.lost = map[string]bool{}
		}
		h.lost[old.key] = true
		st.revokeBelow(old, aboveTakenOver)
	}
	g := &grant{
		id: link.Claims.ID, agent: h.to, session: h.session, handoff: h, parent: h.parent, link: link,
		token: signedOnce(link.Link, st.keys.signer(c.Governor)), key: link.Claims.Holder.Thumbprint(), labels: c.Labels,
		expires: link.Claims.ExpiresAt, hops: h.parent.hops + 1,
	}
	st.addGrant(g)
	st.used[g.id] = e.Index
	h.grant = g
	h.newest = e.Index
	h.leased = e.Time + wire.Lease*1000
	st.setStatus(h, statusClaimed)
	heap.Push(&st.expiries, expiry{at: g.expires, handoff: h})
	if c.Ends != "" {
		st.end(h.parent)
	}
	return nil
}

// end ends g: what was handed on from it lives.
func (st *State) end(g *grant) {
	if g.state == live {
		st.retire(g, ended)
	}
}

func (st *State) applyResult(e *entry.Entry) error {
	h := st.handoffs[e.Handoff]
	if h == nil {
		return fmt.Errorf("no handoff %s", e.Handoff)
	}
	r := e.Result
	claim, err := peekResult(r.Token)
	if err != nil {
		return err
	}
	h.session.results = append(h.session.results, claim.ID)
	st.used[claim.ID] = e.Index
	if r.Effect == wire.EffectDeny {
		return nil
	}
	h.result = &resultRecord{index: e.Index, body: e.Index, token: r.Token, effect: r.Effect, claim: claim, labels: r.Labels}
	if r.Effect == wire.EffectHold {
		st.hold(e.Index, &heldRecord{handoff: h, stage: entry.StageResult})
		return nil
	}
	st.accept(h, e.Index, h.result)
	return nil
}

// accept ends the work on h: what is below is revoked, then the grant ends, and with it every transfer that led to it.
func (st *State) accept(h *handoff, index uint64, r *resultRecord) {
	r.effect, r.index = wire.EffectAllow, index
	to := statusCompleted
	if r.claim.Status == wire.StatusFailed {
		to = statusFailed
	}
	target := h.answers()
	var done *handoff
	for t := h; t != nil; t = t.parent.handoff {
		for _, c := range t.grant.children {
			if c != done {
				st.revokeChild(c, aboveEnded)
			}
		}
		st.end(t.grant)
		t.newest, t.result = index, r
		st.setStatus(t, to)
		if t == target {
			break
		}
		done = t
	}
	if target != nil {
		target.parent.labels = union(target.parent.labels, r.labels)
	} else {
		h.session.root.labels = union(h.session.root.labels, r.labels)
	}
}

// answers is the handoff that a result of h answers: h itself where it was delegated, else the nearest above that was;
// nil where only transfers lead from the session's opener.
func (h *handoff) answers() *handoff {
	for t := h; t != nil; t = t.parent.handoff {
		if t.mode() != wire.ModeTransfer {
			return t
		}
	}
	return nil
}

func (st *State) applyRevoked(e *entry.Entry) error {
	if h := st.handoffs[e.Handoff]; h != nil {
		h.reasons = append(slices.Clip(h.reasons), revokedReason(e.Revoked.Reason))
	}
	if e.Handoff != "" && e.Grant == "" {
		h := st.handoffs[e.Handoff]
		if h == nil {
			return fmt.Errorf("no handoff %s", e.Handoff)
		}
		h.newest = e.Index
		st.revokeHandoff(h, aboveRevoked)
		if e.Revoked.Reason == reasonExpired {
			h.status = statusExpired
		}
		return nil
	}
	g := st.byID[e.Grant]
	if g == nil || g.handoff == nil {
		return fmt.Errorf("no grant %s of a handoff", e.Grant)
	}
	st.revokeBelow(g, aboveRevoked)
	if h := g.handoff; h.grant == g {
		h.newest = e.Index
		st.revokeHandoff(h, aboveRevoked)
		if e.Revoked.Reason == reasonExpired {
			h.status = statusExpired
		}
	}
	return nil
}

// revokedReason is what the sender of a handoff is told of its end.
func revokedReason(reason string) wire.Reason {
	if reason == reasonExpired {
		return wire.Reason{Code: wire.CodeExpired, Message: "the handoff's time ran out"}
	}
	return wire.Reason{Code: wire.CodeRevoked, Message: "the handoff was revoked: " + reason}
}

// forget drops a session that is over from memory, once nothing that the feed must still name is in it.
func (st *State) forget(s *session) {
	for _, h := range s.handoffs {
		if openStatus(h.status) {
			st.setStatus(h, statusRevoked)
		}
		delete(st.handoffs, h.id)
		delete(st.used, h.id)
	}
	for _, g := range s.grants {
		delete(st.grants, g.link.Hash)
		delete(st.byID, g.id)
		delete(st.used, g.id)
		st.retire(g, revoked)
	}
	for _, id := range slices.Concat(s.results, s.refused, []string{s.id}) {
		delete(st.used, id)
	}
	delete(st.sessions, s.id)
	st.touch(liveSession + s.id)
}

// sweep forgets the sessions whose links have all expired, with time to spare for the clocks of others, at the time now
// (Unix seconds).
func (st *State) sweep(now int64) {
	for _, s := range st.sessions {
		if s.over != "" && s.expires+int64(2*maxClockBehind/time.Second) < now {
			st.forget(s)
		}
	}
}

// due takes the next expiry that has come at the time now (Unix seconds).
func (st *State) due(now int64) (expiry, bool) {
	if len(st.expiries) == 0 || st.expiries[0].at > now {
		return expiry{}, false
	}
	return heap.Pop(&st.expiries).(expiry), true
}

// replace makes fresh, which nobody else has seen, the state.
func (st *State) replace(fresh *State) {
	st.mu.Lock()
	defer st.mu.Unlock()
	st.next, st.clock, st.bundle = fresh.next, fresh.clock, fresh.bundle
	st.sessions, st.handoffs, st.grants, st.byID = fresh.sessions, fresh.handoffs, fresh.grants, fresh.byID
	st.holders, st.sender, st.receiver, st.open = fresh.holders, fresh.sender, fresh.receiver, fresh.open
	st.opens, st.out, st.withdrawn = fresh.opens, fresh.out, fresh.withdrawn
	st.used, st.held, st.expiries, st.touched = fresh.used, fresh.held, fresh.expiries, fresh.touched
}

// prev points back from an entry that is about to be written.
func (st *State) prev(e *entry.Entry) entry.Prev {
	var p entry.Prev
	if s := st.sessions[e.Session]; s != nil {
		p.Session = new(s.newest)
	}
	if i, ok := st.sender[e.From]; ok && e.From != "" {
		p.Sender = new(i)
	}
	if i, ok := st.receiver[e.To]; ok && e.To != "" {
		p.Receiver = new(i)
	}
	if g := st.byID[e.Grant]; g != nil {
		p.Grant = new(g.newest)
	}
	return p
}

// expiry is a moment at which something ends. Whether it has come is decided by comparison when its turn comes: the
// handoff may have been claimed, answered or revoked meanwhile.
type expiry struct {
	at      int64 // Unix seconds
	session *session
	handoff *handoff
}

type expiries []expiry

func (x expiries) Len() int           { return len(x) }
func (x expiries) Less(i, j int) bool { return x[i].at < x[j].at }
func (x expiries) Swap(i, j int)      { x[i], x[j] = x[j], x[i] }
func (x *expiries) Push(v any)        { *x = append(*x, v.(expiry)) }
func (x *expiries) Pop() any {
	last := (*x)[len(*x)-1]
	(*x)[len(*x)-1] = expiry{}
	*x = (*x)[:len(*x)-1]
	return last
}

// union is the sorted union of two sorted sets of labels.
func union(a, b []string) []string {
	if len(b) == 0 {
		return a
	}
	out := slices.Concat(a, b)
	slices.Sort(out)
	return slices.Compact(out)
}
