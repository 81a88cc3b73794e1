package main

import (
	"fmt"
	"iter"
	"slices"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/google/uuid"

	"github.com/handoff-governor/handoff-governor/cmd/internal/cli"
	"github.com/handoff-governor/handoff-governor/handoff/aat"
	"github.com/handoff-governor/handoff-governor/handoff/entry"
	"github.com/handoff-governor/handoff-governor/handoff/wire"
)

// summary is what the lists say of a session, running governor or not.
type summary struct {
	ID        string         `json:"session"`
	State     string         `json:"state"` // open | closed | expired | denied
	Opener    string         `json:"opener"`
	Principal wire.Principal `json:"principal"`
	Opened    time.Time      `json:"opened"`
	Expires   time.Time      `json:"expires,omitzero"`
	Count     int            `json:"handoffs"` // decided in it
	Denied    int            `json:"denied"`   // for good: at once, at the claim or by a person
	Open      int            `json:"unfinished"`
	Newest    uint64         `json:"newest"` // its newest entry
}

// summaryOf is what a running governor says.
func summaryOf(s wire.SessionStatus) summary {
	return summary{
		ID: s.Session, State: s.State, Opener: s.Opener, Principal: s.Principal, Opened: time.Unix(s.OpenedAt, 0).UTC(),
		Expires: time.Unix(s.ExpiresAt, 0).UTC(), Count: s.Handoffs, Denied: s.Denied, Open: s.Open, Newest: s.Entry,
	}
}

// session is a session as its entries tell it: a tree of handoffs.
type session struct {
	summary
	Objective string        `json:"objective,omitempty"` // "" where retention has deleted it
	Closed    time.Time     `json:"closed,omitzero"`
	ClosedBy  string        `json:"closed_by,omitempty"`
	Reason    string        `json:"reason,omitempty"`
	Key       string        `json:"key,omitempty"`     // thumbprint of the opener's process key
	Asked     aat.Tools     `json:"asked,omitempty"`   // where it was denied
	Reasons   []wire.Reason `json:"reasons,omitempty"` // where it was denied
	Tools     aat.Tools     `json:"tools,omitempty"`
	Labels    []string      `json:"labels,omitempty"`
	MaxHops   int           `json:"max_hops"`
	Budget    *wire.Budget  `json:"budget,omitempty"`
	Bundle    string        `json:"bundle"`
	Entry     uint64        `json:"entry"` // the one that opened it
	Entries   int           `json:"entries"`
	Handoffs  []*hop        `json:"tree,omitempty"` // by the opener

	grants   map[string]*hop // :: jti → the handoff that it was claimed for; nil for the root
	handoffs map[string]*hop // :: ID → handoff
}

// hop is one task passing from one agent to another.
type hop struct {
	ID       string        `json:"id"`
	State    string        `json:"state"` // held | denied | admitted | claimed | transferred | completed | failed | expired | revoked
	From     string        `json:"from"`
	To       string        `json:"to"`
	Mode     string        `json:"mode"`
	Purpose  string        `json:"purpose,omitempty"`
	Offered  time.Time     `json:"offered"`
	Deadline time.Time     `json:"deadline,omitzero"`
	Expires  time.Time     `json:"expires,omitzero"`
	Asked    aat.Tools     `json:"asked"`             // what the offer asks for
	Granted  aat.Tools     `json:"granted,omitempty"` // what it was narrowed to; by the newest claim, if there is one
	Held     *uint64       `json:"held,omitempty"`    // the entry that waits for a person
	Labels   []string      `json:"labels,omitempty"`
	Reasons  []wire.Reason `json:"reasons,omitempty"` // of the newest decision that gave some
	Bundle   string        `json:"bundle,omitempty"`
	Entry    uint64        `json:"entry"`
	Claims   []claim       `json:"claims,omitempty"`
	Events   []event       `json:"events,omitempty"` // all else that happened to it, in order
	Handoffs []*hop        `json:"tree,omitempty"`   // by its receiver

	above     *hop      // whose grant it was offered under; nil for the session's
	parent    aat.Tools // what the sender held
	heldStage string    // what waits for a person: entry.StageOffer, StageClaim or StageResult
	answered  bool      // a result was accepted, its own or that of whom it was transferred to
}

// claim is a process of the receiver beginning the work.
type claim struct {
	Grant     string    `json:"grant"`
	Key       string    `json:"key"` // thumbprint of the process key
	Time      time.Time `json:"time"`
	Expires   time.Time `json:"expires"`
	Tools     aat.Tools `json:"tools"`
	TakesOver string    `json:"takes_over,omitempty"` // the grant that it revoked
	Entry     uint64    `json:"entry"`
}

// event is an entry about a handoff that is neither its offer nor a claim.
type event struct {
	What   string    `json:"what"`
	Effect string    `json:"effect,omitempty"`
	By     string    `json:"by,omitempty"`
	Labels []string  `json:"labels,omitempty"` // of a result
	Detail string    `json:"detail,omitempty"`
	Time   time.Time `json:"time"`
	Entry  uint64    `json:"entry"`
}

// readSession reads one session with its tree from its entries, newest first.
func readSession(entries iter.Seq2[[]byte, error], id string) (*session, error) {
	var chain []*entry.Entry
	for encoded, err := range entries {
		if err != nil {
			return nil, err
		}
		e, err := entry.Decode(encoded)
		if err != nil {
			return nil, err
		}
		chain = append(chain, e)
	}
	if len(chain) == 0 {
		return nil, fmt.Errorf("the ledger has no session %s: \"governor chain list\" shows those it has", id)
	}
	first := len(chain) - 1
	found, err := beginSession(chain[first])
	if err != nil {
		return nil, err
	}
	for _, e := range slices.Backward(chain[:first]) {
		if err := found.add(e); err != nil {
			return nil, err
		}
	}
	found.settle(time.Now())
	return found, nil
}

// sessionOf reads one session from a record, with its objective where that is still kept.
func sessionOf(r record, id string) (*session, error) {
	if u, err := uuid.Parse(id); err != nil || u.String() != id {
		return nil, cli.Usagef("%q is no session's ID: \"governor chain list\" shows those that there are", id)
	}
	s, err := readSession(r.Session(id), id)
	if err != nil {
		return nil, err
	}
	if _, objective, err := r.Body(s.Entry); err == nil {
		s.Objective = string(objective)
	}
	return s, nil
}

// readSessions reads all sessions, oldest first.
func readSessions(r record) ([]*session, error) {
	byID := map[string]*session{}
	var list []*session
	for encoded, err := range r.Entries(0) {
		if err != nil {
			return nil, err
		}
		e, err := entry.Decode(encoded)
		if err != nil {
			return nil, err
		}
		switch s := byID[e.Session]; {
		case e.Kind == entry.KindSession, e.Decided != nil && e.Decided.Stage == entry.StageSession:
			if s, err = beginSession(e); err != nil {
				return nil, err
			}
			byID[e.Session] = s
			list = append(list, s)
		case s != nil:
			if err := s.add(e); err != nil {
				return nil, err
			}
		}
	}
	now := time.Now()
	for _, s := range list {
		s.settle(now)
	}
	return list, nil
}

func beginSession(e *entry.Entry) (*session, error) {
	if e.Decided != nil && e.Decided.Stage == entry.StageSession {
		return deniedSession(e)
	}
	if e.Opened == nil {
		return nil, fmt.Errorf("entry %d: session %s does not begin with its opening: run \"governor chain verify\"",
			e.Index, e.Session)
	}
	root, err := cli.ReadToken(e.Opened.Root)
	if err != nil {
		return nil, fmt.Errorf("entry %d: the root: %w", e.Index, err)
	}
	return &session{
		summary: summary{
			ID: e.Session, State: "open", Opener: e.Opened.Opener, Principal: e.Opened.Principal,
			Opened: time.Unix(root.IssuedAt, 0).UTC(), Expires: time.Unix(root.ExpiresAt, 0).UTC(), Newest: e.Index,
		},
		Key: root.Holder.Thumbprint(), Tools: root.Tools, Labels: e.Opened.Labels, MaxHops: e.Opened.MaxHops,
		Budget: e.Opened.Budget, Bundle: e.Opened.Decision.Bundle, Entry: e.Index, Entries: 1,
		grants: map[string]*hop{root.ID: nil}, handoffs: map[string]*hop{},
	}, nil
}

// deniedSession is one that was asked for and not opened: what was asked is in the policy's input.
func deniedSession(e *entry.Entry) (*session, error) {
	s := &session{
		summary: summary{ID: e.Session, State: "denied", Opener: e.From, Opened: time.UnixMilli(e.Time).UTC(), Newest: e.Index},
		Reasons: e.Decided.Reasons, Entry: e.Index, Entries: 1,
	}
	d := e.Decided.Decision
	if d == nil || d.Input == nil {
		return s, nil
	}
	var asked struct {
		Principal wire.Principal `json:"principal"`
		Tools     aat.Tools      `json:"tools"`
		Labels    []string       `json:"labels"`
		MaxHops   int            `json:"max_hops"`
		Budget    *wire.Budget   `json:"budget"`
	}
	if err := json.Unmarshal(d.Input, &asked); err != nil {
		return nil, fmt.Errorf("entry %d: what was asked: %w: run \"governor chain verify\"", e.Index, err)
	}
	s.Principal, s.Asked, s.Labels, s.MaxHops, s.Budget = asked.Principal, asked.Tools, asked.Labels, asked.MaxHops, asked.Budget
	s.Bundle = d.Bundle
	return s, nil
}

// add takes the session's next entry.
func (s *session) add(e *entry.Entry) error {
	s.Newest = e.Index
	s.Entries++
	at := time.UnixMilli(e.Time)
	if e.Kind == entry.KindClosed {
		s.State, s.Closed, s.ClosedBy, s.Reason = "closed", at, e.Closed.By, e.Closed.Reason
		if e.Closed.By == "expired" {
			s.State = "expired"
		}
		return nil
	}
	if e.Decided != nil && e.Decided.Stage == entry.StageOffer {
		return s.offered(e, at)
	}
	if e.Kind == entry.KindRejudged && e.Handoff == "" {
		return nil // of the session itself, which the next entry closes
	}
	h := s.handoffs[e.Handoff]
	if h == nil {
		return fmt.Errorf("entry %d: there is no offer of handoff %s before it: run \"governor chain verify\"", e.Index, e.Handoff)
	}
	ev := event{Time: at, Entry: e.Index}
	switch e.Kind {
	case entry.KindDecided:
		d := e.Decided
		ev.What, ev.Effect = d.Stage+" judged again", d.Effect
		h.because(d.Reasons)
		if h.State == "admitted" { // else a take-over that was turned down: who has the task keeps it
			h.decided(d.Effect, entry.StageClaim, e.Index)
		}
	case entry.KindClaimed:
		return h.claimed(s, e, at)
	case entry.KindApproved:
		a := e.Approved
		ev.What, ev.By, ev.Detail = "turned down", a.By, fmt.Sprintf("what entry %d held for %s", a.Of, codes(h.Reasons))
		if a.Approve {
			ev.What = "approved"
		}
		if a.Decided != nil {
			ev.Effect, ev.Labels = a.Decided.Effect, a.Decided.Labels
		}
		h.approved(a, e.Index)
	case entry.KindResult:
		r := e.Result
		ev.What, ev.Effect, ev.Labels = "result: "+r.Status, r.Effect, r.Labels
		h.because(r.Reasons)
		switch r.Effect {
		case wire.EffectAllow:
			h.accept(r.Status)
		case wire.EffectHold:
			h.decided(r.Effect, entry.StageResult, e.Index)
		}
		if r.Answers != "" && r.Answers != h.ID {
			ev.Detail = "answers " + r.Answers
		}
	case entry.KindRevoked:
		ev.What, ev.By, ev.Detail = "revoked", e.Revoked.By, e.Revoked.Reason
		h.revoke()
		h.State = "revoked"
		if e.Revoked.By == "expired" {
			h.State, ev.What, ev.By, ev.Detail = "expired", "expired", "", ""
		}
	case entry.KindRejudged:
		ev.What, ev.Effect = "judged again after a change of policy", e.Rejudged.Effect
		h.because(e.Rejudged.Reasons)
	default:
		ev.What = string(e.Kind)
	}
	h.Events = append(h.Events, ev)
	return nil
}

func (s *session) offered(e *entry.Entry, at time.Time) error {
	d := e.Decided
	link, err := cli.ReadToken(d.Offer)
	if err != nil {
		return fmt.Errorf("entry %d: the offer: %w", e.Index, err)
	}
	h := &hop{
		ID: e.Handoff, From: e.From, To: e.To, Mode: link.Handoff.Mode, Purpose: link.Handoff.Purpose, Offered: at,
		Asked: link.Tools, Labels: d.Labels, Reasons: d.Reasons, Entry: e.Index, parent: s.Tools,
	}
	h.decided(d.Effect, entry.StageOffer, e.Index)
	if d.Effect == wire.EffectAllow {
		h.Granted = d.Granted
	}
	if h.To == "" { // no agent that is known
		h.To = link.Handoff.To
	}
	h.bounded(d)
	if d.Decision != nil {
		h.Bundle = d.Decision.Bundle
	}
	s.handoffs[h.ID] = h
	if above := s.grants[e.Grant]; above != nil {
		h.above, h.parent = above, above.Granted
		above.Handoffs = append(above.Handoffs, h)
	} else {
		s.Handoffs = append(s.Handoffs, h)
	}
	return nil
}

func (h *hop) claimed(s *session, e *entry.Entry, at time.Time) error {
	link, err := cli.ReadPayload(e.Claimed.Payload)
	if err != nil {
		return fmt.Errorf("entry %d: the claim: %w", e.Index, err)
	}
	h.Claims = append(h.Claims, claim{
		Grant: link.ID, Key: link.Holder.Thumbprint(), Time: at, Expires: time.Unix(link.ExpiresAt, 0), Tools: link.Tools,
		TakesOver: e.Claimed.Supersedes, Entry: e.Index,
	})
	if e.Claimed.Supersedes != "" {
		h.revokeBelow(nil)
	}
	h.State, h.Granted, h.Labels, h.Expires = "claimed", link.Tools, e.Claimed.Labels, time.Unix(link.ExpiresAt, 0)
	s.grants[link.ID] = h
	if by := s.grants[e.Claimed.Ends]; by != nil {
		by.State = "transferred" // what comes of it is the new holder's
	}
	return nil
}

// bounded takes the times of a decision that has some.
func (h *hop) bounded(d *entry.Decided) {
	if d.Deadline > 0 {
		h.Deadline = time.Unix(d.Deadline, 0)
	}
	if d.Expires > 0 {
		h.Expires = time.Unix(d.Expires, 0)
	}
}

// decided takes a decision's effect; a hold is that of an entry, on what stage says.
func (h *hop) decided(effect, stage string, index uint64) {
	h.Held, h.heldStage = nil, ""
	switch effect {
	case wire.EffectDeny:
		h.State = "denied"
	case wire.EffectHold:
		h.State, h.Held, h.heldStage = "held", &index, stage
	default:
		h.State = "admitted"
	}
}

func (h *hop) approved(a *entry.Approved, index uint64) {
	effect := wire.EffectDeny
	if a.Decided != nil {
		effect = a.Decided.Effect
		if h.heldStage == entry.StageOffer {
			h.bounded(a.Decided)
		}
	}
	switch {
	case h.heldStage != entry.StageResult:
		if h.decided(effect, h.heldStage, index); effect == wire.EffectAllow && a.Decided.Granted != nil {
			h.Granted = a.Decided.Granted
		}
	case effect == wire.EffectHold:
		h.decided(effect, entry.StageResult, index)
	case effect == wire.EffectDeny: // of the result: who has the task may return another
		h.State, h.Held, h.heldStage = "claimed", nil, ""
	default:
		status := wire.StatusCompleted
		for _, ev := range h.Events {
			if ev.What == "result: "+wire.StatusFailed {
				status = wire.StatusFailed
			}
		}
		h.accept(status)
	}
	if effect == wire.EffectAllow {
		h.Reasons = a.Decided.Reasons // what held it is answered
	} else if a.Decided != nil {
		h.because(a.Decided.Reasons)
	}
}

// accept ends the work, and with it what was handed on from it; and so for every transfer that led to it.
func (h *hop) accept(status string) {
	h.State, h.Held, h.heldStage = status, nil, ""
	var below *hop
	for t := h; t != nil; t = t.above {
		t.revokeBelow(below)
		if t.answered = true; t.Mode != wire.ModeTransfer {
			return
		}
		below = t
	}
}

// revokeBelow revokes what was handed on, but for one.
func (h *hop) revokeBelow(spared *hop) {
	for _, below := range h.Handoffs {
		if below != spared {
			below.revoke()
		}
	}
}

// revoke ends what has not ended, with everything below it.
func (h *hop) revoke() {
	if h.unfinished() {
		h.State, h.Held, h.heldStage = "revoked", nil, ""
	}
	h.revokeBelow(nil)
}

// unfinished tells whether a result may still come.
func (h *hop) unfinished() bool {
	switch h.State {
	case "admitted", "claimed", "held":
		return true
	case "transferred":
		return !h.answered
	}
	return false
}

// codes are those of reasons, each once.
func codes(reasons []wire.Reason) string {
	var list []string
	for _, r := range reasons {
		if !slices.Contains(list, string(r.Code)) {
			list = append(list, string(r.Code))
		}
	}
	return strings.Join(list, ", ")
}

// because keeps the newest reasons.
func (h *hop) because(reasons []wire.Reason) {
	if len(reasons) > 0 {
		h.Reasons = reasons
	}
}

// settle counts, and says what time has ended since the last entry.
func (s *session) settle(now time.Time) {
	now = now.Truncate(time.Second) // as the governor counts
	if s.State == "open" && !now.Before(s.Expires) {
		s.State = "expired"
	}
	for _, h := range s.handoffs {
		s.Count++
		if h.unfinished() {
			begun := h.State == "claimed" || h.State == "transferred" || h.heldStage == entry.StageResult
			late := !begun && !h.Deadline.IsZero() && now.After(h.Deadline) || !h.Expires.IsZero() && !now.Before(h.Expires)
			over := ""
			switch {
			case s.State == "closed":
				over = "revoked"
			case s.State == "expired" || late:
				over = "expired"
			default:
				s.Open++
			}
			if over != "" && h.State != "transferred" {
				h.State, h.Held = over, nil
			}
		}
		if h.State == "denied" {
			s.Denied++
		}
	}
}
