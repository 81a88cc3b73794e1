package governor

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/google/uuid"

	"github.com/handoff-governor/handoff-governor/handoff/aat/jws"
	"github.com/handoff-governor/handoff-governor/handoff/entry"
	"github.com/handoff-governor/handoff-governor/handoff/wire"
)

// This file is how authority ends: by a person's hand, with a session, or with time. Entry first, then the feed, then
// everything else.

// revokeGrant revokes a grant, or a handoff that is not claimed yet, and everything below. id is a link's jti or a
// handoff's.
func (g *Governor) revokeGrant(ctx context.Context, id, by, reason string) (index uint64, refusal *wire.Error) {
	err := g.do(ctx, func(b *batch) error {
		if refusal = b.st.acts(by); refusal != nil {
			return nil
		}
		target := b.st.byID[id]
		h := b.st.handoffs[id]
		if target == nil && h != nil && h.grant != nil {
			target = h.grant
		}
		switch {
		case target != nil && target.session.over != "":
			refusal = sessionOver(target.session)
			return nil
		case target != nil && target.handoff == nil:
			return g.close(b, target.session, by, reason, &index)
		case target != nil && target.state != revoked && target.handoff.status == statusClaimed:
			// Also where a transfer has ended it: what came of it lives.
			return revokeClaimed(b, target.handoff, by, reason, &index)
		case target == nil && h != nil && h.session.over == "" && openStatus(h.status):
			return revokeEntry(b, nil, h, by, reason, &index)
		}
		refusal = wire.Refuse(wire.CodeHandoffUnknown, "there is no live grant or handoff with this ID")
		return nil
	})
	if err != nil {
		return 0, unavailable(err)
	}
	if refusal != nil && refusal.Code != wire.CodeWithdrawn {
		if at, found := g.revokedBefore(id, by); found {
			return at, nil
		}
	}
	return index, refusal
}

// revokeClaimed writes the end of a task that is being worked on. Where it was transferred, it was the only hope of the
// tasks that it was transferred from: they end with it, and the one who awaits their result is told.
func revokeClaimed(b *batch, h *handoff, by, reason string, index *uint64) error {
	for h.mode() == wire.ModeTransfer && h.parent.handoff != nil && h.parent.handoff.status == statusClaimed {
		h = h.parent.handoff
	}
	return revokeEntry(b, h.grant, h, by, reason, index)
}

// revokeEntry writes the end of a grant, or of a handoff without one.
func revokeEntry(b *batch, target *grant, h *handoff, by, reason string, index *uint64) error {
	if target != nil && len(grantsBelow(target)) > maxNamed { // in pieces, from below
		for _, c := range target.children {
			if c.grant != nil && c.status == statusClaimed {
				if err := revokeEntry(b, c.grant, c, by, reason, nil); err != nil {
					return err
				}
			}
		}
	}
	e := &entry.Entry{
		Kind: entry.KindRevoked, Session: h.session.id, Handoff: h.id, From: h.from, To: h.to,
		Revoked: &entry.Revoked{By: by, Reason: reason, Grants: []string{}},
	}
	if target != nil {
		e.Grant = target.id
		e.Revoked.Grants = grantsBelow(target)
		b.effects.revoked = append(b.effects.revoked, revokedLink(target, wire.StateRevoked))
	}
	if err := b.write(e, known{}, nil, nil); err != nil {
		return err
	}
	if index != nil {
		*index = e.Index
	}
	b.effects.inbox = append(b.effects.inbox, verdict(h))
	return nil
}

// close writes the end of a session and revokes everything under it. Naming the root is enough: guards look at every
// even link of a chain.
func (g *Governor) close(b *batch, s *session, by, reason string, index *uint64) error {
	e := &entry.Entry{
		Kind: entry.KindClosed, Session: s.id, From: s.opener, Grant: s.root.id, Closed: &entry.Closed{By: by, Reason: reason},
	}
	var open []*handoff
	for _, h := range s.handoffs {
		if openStatus(h.status) {
			open = append(open, h)
		}
	}
	if err := b.write(e, known{}, nil, nil); err != nil {
		return err
	}
	b.effects.revoked = append(b.effects.revoked, revokedLink(s.root, wire.StateRevoked))
	for _, h := range open { // whoever waits for a result need wait no longer
		b.effects.inbox = append(b.effects.inbox, verdict(h))
	}
	if index != nil {
		*index = e.Index
	}
	return nil
}

// expire ends whatever time has ended by the batch's clock. It is proposed every second, and decided by comparison: a
// timer that fires late ends nothing late, since every claim, offer and call compares for itself.
//
// At most maxEnded end in one turn, so that nobody waits for all that somebody let end together; more says that some are left.
func (g *Governor) expire(b *batch) (more bool, err error) {
	now := b.seconds()
	for first := b.st.next; ; {
		if b.st.next-first >= uint64(maxEnded) {
			return true, nil
		}
		due, ok := b.st.due(now)
		if !ok {
			break
		}
		switch h := due.handoff; {
		case due.session != nil:
			if s := due.session; s.over == "" && b.st.sessions[s.id] == s {
				err = g.close(b, s, reasonExpired, reasonExpired, nil)
			}
		case b.st.handoffs[h.id] != h || h.session.over != "":
		case h.status == statusClaimed && now >= h.grant.expires:
			err = revokeClaimed(b, h, reasonExpired, reasonExpired, nil)
		case (h.status == statusAdmitted || h.status == statusHeld) && (now > h.deadline || now >= h.expires):
			err = revokeEntry(b, nil, h, reasonExpired, reasonExpired, nil)
		}
		if err != nil {
			return false, err
		}
	}
	b.st.sweep(now)
	return false, nil
}

// maxEnded is a variable for tests.
var maxEnded = 1000

// grantsBelow lists the grant, and all that were handed on from it and are live.
func grantsBelow(g *grant) []string {
	ids := []string{g.id}
	for _, h := range g.children {
		if h.grant == nil || h.grant.state == revoked {
			continue
		}
		below := grantsBelow(h.grant)
		if h.grant.state == ended {
			below = below[1:]
		}
		ids = append(ids, below...)
	}
	return ids
}

// maxNamed is how many grants one entry names, so that it stays well below entry.MaxSize. A variable for tests.
var maxNamed = 20_000

// endedLinks are what an accepted result ends: the grant that made it and those that transfers led through, as leaves, and
// what else was handed on from them, whole, also where a transfer has ended it already.
func endedLinks(h *handoff) []wire.RevokedLink {
	var links []wire.RevokedLink
	target := h.answers()
	var done *handoff
	for t := h; t != nil; t = t.parent.handoff {
		if t.grant.state == live {
			links = append(links, revokedLink(t.grant, wire.StateEnded))
		}
		for _, c := range t.grant.children {
			if c != done && c.grant != nil && c.grant.state != revoked {
				links = append(links, revokedLink(c.grant, wire.StateRevoked))
			}
		}
		if t == target {
			break
		}
		done = t
	}
	return links
}

func revokedLink(g *grant, state string) wire.RevokedLink {
	return wire.RevokedLink{Hash: g.link.HashString(), State: state, Expires: g.expires}
}

// feed is the revocation feed: what guards must know besides a chain itself. Within an epoch its numbers have no gap; a
// guard that sees one, or a new epoch, asks for a snapshot.
type feed struct {
	keys    *Keys
	uri     string
	now     func() time.Time
	publish func([]byte) error

	mu    sync.Mutex
	epoch string
	seq   uint64
	links map[string]wire.RevokedLink // by hash
}

func newFeed(cfg Config) (*feed, error) {
	epoch, err := uuid.NewV7()
	if err != nil {
		return nil, err
	}
	return &feed{
		keys: cfg.Keys, uri: cfg.URI, now: cfg.Now, publish: cfg.Bus.Revoke, epoch: epoch.String(),
		links: map[string]wire.RevokedLink{},
	}, nil
}

// load fills the feed from a state, before anything is served.
func (f *feed) load(st *State) {
	f.mu.Lock()
	defer f.mu.Unlock()
	clear(f.links)
	for _, g := range st.grants {
		switch g.state {
		case revoked:
			f.keep(revokedLink(g, wire.StateRevoked))
		case ended:
			f.keep(revokedLink(g, wire.StateEnded))
		}
	}
}

// keep remembers the stronger of what is said of a link.
func (f *feed) keep(l wire.RevokedLink) {
	if old, ok := f.links[l.Hash]; !ok || old.State == wire.StateEnded {
		f.links[l.Hash] = l
	}
}

// feedPage bounds the links of one statement, so that it fits a message. A variable for tests.
var feedPage = 4096

// revoke publishes links, in as many statements as they need.
func (f *feed) revoke(links []wire.RevokedLink) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, l := range links { // before any is published: a snapshot must have them all
		f.keep(l)
	}
	for len(links) > 0 {
		page := links[:min(len(links), feedPage)]
		links = links[len(page):]
		if err := f.send(page); err != nil {
			return err
		}
	}
	return nil
}

// beat publishes a heartbeat and forgets links that have expired: no guard accepts them any more.
func (f *feed) beat() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	limit := f.now().Unix() - int64(2*maxClockBehind/time.Second)
	for hash, l := range f.links {
		if l.Expires < limit {
			delete(f.links, hash)
		}
	}
	return f.send(nil)
}

// snapshot is one page of everything in force: the links whose hash sorts after after.
func (f *feed) snapshot(after string) (string, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	hashes := make([]string, 0, len(f.links))
	for hash := range f.links {
		if hash > after {
			hashes = append(hashes, hash)
		}
	}
	slices.Sort(hashes)
	page := wire.RevocationFeed{
		Governor: f.uri, Epoch: f.epoch, Sequence: f.seq, Time: f.now().Unix(), Snapshot: true, After: after,
	}
	if len(hashes) > feedPage {
		hashes = hashes[:feedPage]
		page.Next = hashes[feedPage-1]
	}
	for _, hash := range hashes {
		page.Links = append(page.Links, f.links[hash])
	}
	signer, _ := f.keys.current()
	return jws.SignJSON(wire.TypeRevocation, page, signer)
}

func (f *feed) send(links []wire.RevokedLink) error {
	f.seq++
	signer, _ := f.keys.current()
	token, err := jws.SignJSON(wire.TypeRevocation, wire.RevocationFeed{
		Governor: f.uri, Epoch: f.epoch, Sequence: f.seq, Time: f.now().Unix(), Links: links,
	}, signer)
	if err != nil {
		return err
	}
	return f.publish([]byte(token))
}
