package governor

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/handoff-governor/handoff-governor/handoff/entry"
	"github.com/handoff-governor/handoff-governor/handoff/identity"
	"github.com/handoff-governor/handoff-governor/handoff/wire"
)

// This file is how an operator cuts an identity off, whoever issues its SVIDs and however long they are valid, and how it
// comes back: everything that it holds ends, then it may not act any more, then its connections go.

// identities keeps what [Config.Withdrawn] is told in the order of the ledger.
type identities struct {
	sync.Mutex
	untold map[string]bool // :: name → whether it is withdrawn, which is still to be told
}

// cutWithin is how long an answer waits for connections to be cut, before it says that they are not.
const cutWithin = 2 * time.Second

// acts is why an identity may do nothing, or be handed nothing; nil where it is not withdrawn.
func (st *State) acts(name string) *wire.Error {
	if _, withdrawn := st.withdrawn[name]; withdrawn {
		return wire.Refuse(wire.CodeWithdrawn, "this identity was withdrawn; an operator can restore it")
	}
	return nil
}

// setIdentity withdraws an identity, or restores it.
func (g *Governor) setIdentity(ctx context.Context, i entry.Identity) wire.OperatorResponse {
	if refusal := g.checkIdentity(i); refusal != nil {
		return wire.OperatorResponse{Error: refusal}
	}
	g.identities.Lock()
	defer g.identities.Unlock()
	var index uint64
	var refusal *wire.Error
	var already *uint64 // the entry that has withdrawn it
	durable, done := make(chan struct{}), make(chan error, 1)
	go func() {
		done <- g.do(ctx, func(b *batch) error {
			if refusal, already = g.identityRefusal(b, i); refusal != nil {
				return nil
			}
			if i.Effect == entry.Withdrawn {
				if err := g.endAll(b, i.Name, i.By); err != nil {
					return err
				}
			}
			e := &entry.Entry{Kind: entry.KindIdentity, Identity: &i}
			if err := b.write(e, known{}, nil, nil); err != nil {
				return err
			}
			index = e.Index
			b.durable = append(b.durable, func() { close(durable) })
			return nil
		})
	}()
	select {
	case err := <-done:
		select {
		case <-durable: // both came at once
			done <- err
		default:
			if err != nil {
				return wire.OperatorResponse{Error: unavailable(err)}
			}
			if already == nil || !g.withdrewBefore(*already, i.By) {
				return wire.OperatorResponse{Error: refusal}
			}
			index = *already
			done <- nil
		}
	case <-durable: // whoever waits for messages to leave does not keep a connection open for it
	}
	out := wire.OperatorResponse{Effect: wire.EffectWithdrawn}
	if i.Effect == entry.Restored {
		out.Effect = wire.EffectRestored
	}
	if withdrawn := i.Effect == entry.Withdrawn; !g.tell(ctx, i.Name, withdrawn) && withdrawn {
		out.Effect = wire.EffectCutting
	}
	if err := <-done; err != nil { // it is on record all the same
		g.log.WarnContext(ctx, "what a withdrawal leads to may not have got out; a start sends it again", "entry", index, "err", err)
	}
	out.Entry = index
	g.log.WarnContext(ctx, "identity "+i.Effect, "name", i.Name, "by", i.By, "entry", index)
	return out
}

// checkIdentity refuses what can be no identity here, and the governor's own.
func (g *Governor) checkIdentity(i entry.Identity) *wire.Error {
	malformed := func(format string, args ...any) *wire.Error {
		return wire.Refuse(wire.CodeMalformed, fmt.Sprintf(format, args...))
	}
	id, err := identity.Name(i.Name).ID()
	if err != nil {
		return malformed("name: %v", err)
	}
	own, err := spiffeid.FromString(g.cfg.URI)
	if err != nil {
		return wire.Refuse(wire.CodeUnavailable, "the governor's URI is no SPIFFE ID, and tells no home trust domain")
	}
	role, err := identity.RoleOf(id, own.TrustDomain())
	switch {
	case id == own || role == identity.RoleGovernor:
		return wire.Refuse(wire.CodeForbidden, "the governor cannot be withdrawn; stop it")
	case err != nil:
		return malformed("name: %v", err)
	case i.Name == i.By:
		return wire.Refuse(wire.CodeForbidden, "nobody can withdraw or restore itself; let another operator do it")
	case len(i.Reason) > wire.MaxPurpose:
		return malformed("reason must have at most %d bytes", wire.MaxPurpose)
	}
	return nil
}

// identityRefusal says why an identity cannot be withdrawn or restored. Where it is withdrawn already, it names the entry.
func (g *Governor) identityRefusal(b *batch, i entry.Identity) (refusal *wire.Error, already *uint64) {
	if refusal := b.st.acts(i.By); refusal != nil {
		return refusal, nil
	}
	at, withdrawn := b.st.withdrawn[i.Name]
	switch {
	case i.Effect == entry.Restored && !withdrawn:
		return wire.Refuse(wire.CodeNotWithdrawn, "this identity is not withdrawn"), nil
	case i.Effect == entry.Restored:
		return nil, nil
	case withdrawn:
		return wire.Refuse(wire.CodeWithdrawn, fmt.Sprintf("this identity was withdrawn already, by entry %d", at)), &at
	case len(b.st.withdrawn) >= g.cfg.MaxWithdrawn:
		return wire.Refuse(wire.CodeWithdrawnLimit,
			fmt.Sprintf("%d identities are withdrawn; first restore one that gets no SVID any more", len(b.st.withdrawn))), nil
	}
	return nil, nil
}

// endAll ends what an agent holds and was handed: its sessions, the tasks that it works on, those that it has transferred
// and those that wait for it. Whoever waits for a result of it is told.
func (g *Governor) endAll(b *batch, name, by string) error {
	id, err := identity.Name(name).ID()
	if err != nil {
		return err
	}
	reason := id.String() + " was withdrawn"
	for _, s := range b.st.opened() {
		if s.opener != name {
			continue
		}
		if err := g.close(b, s, by, reason, nil); err != nil {
			return err
		}
	}
	for _, h := range b.st.openTo(name) {
		if err := end(b, h, by, reason); err != nil {
			return err
		}
	}
	return nil
}

// end ends a handoff, if it has not ended with one above it.
func end(b *batch, h *handoff, by, reason string) error {
	switch {
	case h.session.over != "" || !openStatus(h.status):
		return nil
	case h.status == statusClaimed:
		return revokeClaimed(b, h, by, reason, nil)
	}
	return revokeEntry(b, nil, h, by, reason, nil)
}

// openTo are the handoffs to an agent that are not over, in the order in which they were decided.
func (st *State) openTo(name string) []*handoff {
	return st.openWhere(func(h *handoff) bool { return h.to == name })
}

// openWhere are the open handoffs of which something is so.
func (st *State) openWhere(is func(*handoff) bool) []*handoff {
	var out []*handoff
	for _, h := range st.handoffs {
		if h.session.over == "" && openStatus(h.status) && is(h) {
			out = append(out, h)
		}
	}
	slices.SortFunc(out, func(x, y *handoff) int { return int(int64(x.decided) - int64(y.decided)) })
	return out
}

// tell tells [Config.Withdrawn], again until it succeeds or cutWithin is over. The caller holds g.identities.
func (g *Governor) tell(ctx context.Context, name string, withdrawn bool) bool {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cutWithin)
	defer cancel()
	err := g.cfg.Withdrawn(ctx, name, withdrawn)
	for wait := 50 * time.Millisecond; err != nil && ctx.Err() == nil; wait *= 2 {
		g.log.WarnContext(ctx, "connections of a withdrawn identity may be left; trying again", "name", name, "err", err)
		select {
		case <-ctx.Done():
			continue
		case <-time.After(wait):
		}
		err = g.cfg.Withdrawn(ctx, name, withdrawn)
	}
	delete(g.identities.untold, name)
	if err != nil {
		g.identities.untold[name] = withdrawn
	}
	return err == nil
}

// tellWithdrawn tells [Config.Withdrawn] of all that the ledger says are withdrawn.
func (g *Governor) tellWithdrawn(ctx context.Context) {
	g.identities.Lock()
	defer g.identities.Unlock()
	g.identities.untold = map[string]bool{}
	for name := range g.state.withdrawn {
		g.identities.untold[name] = true
	}
	g.tellUntold(ctx)
}

// tellAgain tries again what has failed, with each heartbeat.
func (g *Governor) tellAgain(ctx context.Context) {
	if !g.identities.TryLock() {
		return // somebody is at it
	}
	defer g.identities.Unlock()
	g.tellUntold(ctx)
}

// tellUntold calls for all, however slow: those that it cannot cut any more are kept from connecting at least. The caller
// holds g.identities.
func (g *Governor) tellUntold(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	for name, withdrawn := range g.identities.untold {
		if err := g.cfg.Withdrawn(ctx, name, withdrawn); err != nil {
			g.log.ErrorContext(ctx, "connections of a withdrawn identity may be left; trying again", "name", name, "err", err)
			continue
		}
		delete(g.identities.untold, name)
	}
}

// withdrawnList is a page of the identities that are withdrawn, by name: those after one, or all. As with sessions, how
// they stand is told in turn.
func (g *Governor) withdrawnList(ctx context.Context, after string) any {
	at := map[string]uint64{}
	err := g.do(ctx, func(b *batch) error {
		clear(at) // this may run again
		for name, index := range b.st.withdrawn {
			if name > after {
				at[name] = index
			}
		}
		return nil
	})
	if err != nil {
		return refused(unavailable(err))
	}
	var out wire.OperatorResponse
	size := 0
	for _, name := range slices.Sorted(maps.Keys(at)) {
		e, err := g.entry(at[name])
		if err != nil {
			return refused(unavailable(err))
		}
		i := e.Identity
		if size += 512 + 6*len(i.Reason); size > entriesPage && len(out.Identities) > 0 { // JSON may have \u0000 for each byte
			out.More = true
			break
		}
		out.Identities = append(out.Identities, wire.Withdrawn{
			Name: i.Name, By: i.By, At: e.Time / 1000, Reason: i.Reason, Entry: e.Index,
		})
	}
	return out
}
