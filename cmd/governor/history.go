package main

import (
	"fmt"
	"iter"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/handoff-governor/handoff-governor/cmd/internal/cli"
	"github.com/handoff-governor/handoff-governor/handoff/aat"
	"github.com/handoff-governor/handoff-governor/handoff/entry"
	"github.com/handoff-governor/handoff-governor/handoff/wire"
)

// session is a session as its entries tell it: a tree of handoffs.
type session struct {
	ID        string         `json:"session"`
	State     string         `json:"state"` // open | closed | expired
	Opener    string         `json:"opener"`
	Principal wire.Principal `json:"principal"`
	Objective string         `json:"objective,omitempty"` // "" where retention has deleted it
	Opened    time.Time      `json:"opened"`
	Expires   time.Time      `json:"expires"`
	Closed    time.Time      `json:"closed,omitzero"`
	ClosedBy  string         `json:"closed_by,omitempty"`
	Reason    string         `json:"reason,omitempty"`
	Key       string         `json:"key"` // thumbprint of the opener's process key
	Tools     aat.Tools      `json:"tools"`
	Labels    []string       `json:"labels,omitempty"`
	MaxHops   int            `json:"max_hops"`
	Budget    *wire.Budget   `json:"budget,omitempty"`
	Bundle    string         `json:"bundle"`
	Entry     uint64         `json:"entry"`  // the one that opened it
	Newest    uint64         `json:"newest"` // its newest entry
	Entries   int            `json:"entries"`
	Count     int            `json:"handoffs"` // decided in it
	Denied    int            `json:"denied"`
	Open      int            `json:"unfinished"`
	Handoffs  []*hop         `json:"tree,omitempty"` // by the opener

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
	Labels   []string      `json:"labels,omitempty"`
	Reasons  []wire.Reason `json:"reasons,omitempty"` // of the newest decision that gave some
	Bundle   string        `json:"bundle,omitempty"`
	Entry    uint64        `json:"entry"`
	Claims   []claim       `json:"claims,omitempty"`
	Events   []event       `json:"events,omitempty"` // all else that happened to it, in order
	Handoffs []*hop        `json:"tree,omitempty"`   // by its receiver

	parent aat.Tools // what the sender held
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
	if d := e.Decided; d != nil && d.Stage == entry.StageSession {
		at := time.UnixMilli(e.Time)
		return &session{
			ID: e.Session, State: "denied", Opener: e.From, Opened: at, Expires: at, Closed: at, ClosedBy: "policy",
			Reason: codes(d.Reasons), Entry: e.Index, Newest: e.Index, Entries: 1, grants: map[string]*hop{}, handoffs: map[string]*hop{},
		}, nil
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
		ID: e.Session, State: "open", Opener: e.Opened.Opener, Principal: e.Opened.Principal, Opened: time.UnixMilli(e.Time),
		Expires: time.Unix(root.ExpiresAt, 0), Key: root.Holder.Thumbprint(), Tools: root.Tools, Labels: e.Opened.Labels,
		MaxHops: e.Opened.MaxHops, Budget: e.Opened.Budget, Bundle: e.Opened.Decision.Bundle, Entry: e.Index, Newest: e.Index,
		Entries: 1, grants: map[string]*hop{root.ID: nil}, handoffs: map[string]*hop{},
	}, nil
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
		h.State = stateAfter(d.Effect, h.State)
	case entry.KindClaimed:
		return h.claimed(s, e, at)
	case entry.KindApproved:
		a := e.Approved
		ev.What, ev.By, ev.Detail = "turned down", a.By, fmt.Sprintf("what entry %d held for %s", a.Of, codes(h.Reasons))
		if a.Approve {
			ev.What = "approved"
		}
		h.approved(a)
		if a.Decided != nil {
			ev.Effect = a.Decided.Effect
		}
	case entry.KindResult:
		r := e.Result
		ev.What, ev.Effect = "result: "+r.Status, r.Effect
		h.because(r.Reasons)
		switch r.Effect {
		case wire.EffectAllow:
			h.State = r.Status
		case wire.EffectHold:
			h.State = "held"
		}
		if r.Answers != "" && r.Answers != h.ID {
			ev.Detail = "answers " + r.Answers
		}
	case entry.KindRevoked:
		ev.What, ev.By, ev.Detail = "revoked", e.Revoked.By, e.Revoked.Reason
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
		Asked: link.Tools, Granted: d.Granted, Labels: d.Labels, Reasons: d.Reasons, Entry: e.Index,
		State: stateAfter(d.Effect, "admitted"), parent: s.Tools,
	}
	if h.To == "" { // no agent that is known
		h.To = link.Handoff.To
	}
	if d.Deadline > 0 {
		h.Deadline = time.Unix(d.Deadline, 0)
	}
	if d.Expires > 0 {
		h.Expires = time.Unix(d.Expires, 0)
	}
	if d.Decision != nil {
		h.Bundle = d.Decision.Bundle
	}
	s.handoffs[h.ID] = h
	if above := s.grants[e.Grant]; above != nil {
		h.parent = above.Granted
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
	h.State, h.Granted, h.Labels, h.Expires = "claimed", link.Tools, e.Claimed.Labels, time.Unix(link.ExpiresAt, 0)
	s.grants[link.ID] = h
	if by := s.grants[e.Claimed.Ends]; by != nil {
		by.State = "transferred" // what comes of it is the new holder's
	}
	return nil
}

func (h *hop) approved(a *entry.Approved) {
	d := a.Decided
	switch {
	case !a.Approve:
		h.State = "denied"
	case d == nil:
	case d.Stage == entry.StageResult && d.Effect == wire.EffectAllow:
		h.State = wire.StatusCompleted
		for _, ev := range h.Events {
			if ev.What == "result: "+wire.StatusFailed {
				h.State = wire.StatusFailed
			}
		}
	default:
		h.State = stateAfter(d.Effect, "admitted")
		if d.Granted != nil {
			h.Granted = d.Granted
		}
	}
	if d != nil && d.Effect == wire.EffectAllow {
		h.Reasons = d.Reasons // what held it is answered
	} else if d != nil {
		h.because(d.Reasons)
	}
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

func stateAfter(effect, allowed string) string {
	switch effect {
	case wire.EffectDeny:
		return "denied"
	case wire.EffectHold:
		return "held"
	}
	return allowed
}

// settle counts, and says what time has ended since the last entry.
func (s *session) settle(now time.Time) {
	if s.State == "open" && !now.Before(s.Expires) {
		s.State = "expired"
	}
	for _, h := range s.handoffs {
		s.Count++
		if slices.Contains([]string{"admitted", "claimed", "held"}, h.State) {
			late := h.State != "claimed" && !h.Deadline.IsZero() && now.After(h.Deadline) ||
				!h.Expires.IsZero() && !now.Before(h.Expires)
			switch {
			case s.State == "closed":
				h.State = "revoked"
			case s.State == "expired" || late:
				h.State = "expired"
			default:
				s.Open++
			}
		}
		if h.State == "denied" {
			s.Denied++
		}
	}
}

// status is the session as the governor itself lists it.
func (s *session) status() wire.SessionStatus {
	return wire.SessionStatus{
		Session: s.ID, State: s.State, Opener: s.Opener, Principal: s.Principal, OpenedAt: s.Opened.Unix(),
		ExpiresAt: s.Expires.Unix(), Handoffs: s.Count, Open: s.Open, Denied: s.Denied, Entry: s.Newest,
	}
}
