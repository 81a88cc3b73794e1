package governor

import "github.com/handoff-governor/handoff-governor/handoff/entry"

// This file answers operators who ask again, since an answer was lost: what somebody has brought about is not refused to the
// same person as done already. What another has brought about is.

// maxLookedBack is how many entries of a session are read to find what an operator has brought about in it.
const maxLookedBack = 1000

// find returns the newest entry of a session for which is holds, among the last that there are.
func (g *Governor) find(session string, is func(*entry.Entry) bool) (*entry.Entry, error) {
	n := 0
	for encoded, err := range g.cfg.Log.Session(session) {
		if err != nil {
			return nil, err
		}
		e, err := entry.Decode(encoded)
		if err != nil {
			return nil, err
		}
		if is(e) {
			return e, nil
		}
		if n++; n == maxLookedBack {
			break
		}
	}
	return nil, nil
}

// revokedBefore finds the entry by which an operator has revoked what has an ID, or closed its session.
func (g *Governor) revokedBefore(id, by string) (index uint64, found bool) {
	at, used, err := g.cfg.Log.Lookup(id)
	if err != nil || !used {
		return 0, false
	}
	named, err := g.entry(at)
	if err != nil || named.Session == "" {
		return 0, false
	}
	root := named.Kind == entry.KindSession
	e, err := g.find(named.Session, func(e *entry.Entry) bool {
		switch {
		case e.Revoked != nil:
			return e.Revoked.By == by && named.Handoff != "" && e.Handoff == named.Handoff
		case e.Closed != nil:
			return e.Closed.By == by && root
		}
		return false
	})
	if err != nil || e == nil {
		return 0, false
	}
	return e.Index, true
}

// approvedBefore finds the entry by which an operator has answered a decision to hold, and what became of the handoff.
func (g *Governor) approvedBefore(of uint64, by string, yes bool) (index uint64, effect string, found bool) {
	held, err := g.entry(of)
	if err != nil || held.Session == "" {
		return 0, "", false
	}
	e, err := g.find(held.Session, func(e *entry.Entry) bool {
		return e.Approved != nil && e.Approved.Of == of && e.Approved.By == by && e.Approved.Approve == yes
	})
	if err != nil || e == nil {
		return 0, "", false
	}
	g.state.mu.RLock()
	defer g.state.mu.RUnlock()
	if h := g.state.handoffs[held.Handoff]; h != nil {
		effect = string(h.status)
	}
	return e.Index, effect, true
}

// withdrewBefore tells whether the entry that has withdrawn an identity is an operator's.
func (g *Governor) withdrewBefore(at uint64, by string) bool {
	e, err := g.entry(at)
	return err == nil && e.Identity != nil && e.Identity.By == by
}
