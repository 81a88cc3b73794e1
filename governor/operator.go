package governor

import (
	"context"
	"errors"
	"slices"
	"strings"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/handoff-governor/handoff-governor/governor/ledger"
	"github.com/handoff-governor/handoff-governor/handoff/entry"
	"github.com/handoff-governor/handoff-governor/handoff/wire"
)

// This file answers requests: the agents' (claim, session), the guards' (keys, revocations) and the operators'.

// serve answers one request, whatever happens.
func (g *Governor) serve(ctx context.Context, r wire.Request) {
	var answer []byte
	var err error
	switch v := g.respond(ctx, r).(type) {
	case statement:
		answer = []byte(v)
	default:
		answer, err = json.Marshal(v, json.Deterministic(true))
	}
	if err != nil {
		g.log.ErrorContext(ctx, "an answer could not be encoded", "verb", r.Verb, "err", err)
		answer = []byte(`{"error":{"code":"unavailable","message":"the answer could not be encoded; tell the operator"}}`)
	}
	if err := r.Respond(answer); err != nil {
		g.log.WarnContext(ctx, "an answer did not get out", "verb", r.Verb, "to", r.Sender, "err", err)
	}
}

func (g *Governor) respond(ctx context.Context, r wire.Request) any {
	verb, operators := strings.CutPrefix(r.Verb, wire.VerbOperator)
	g.state.mu.RLock()
	refusal := g.state.acts(r.Sender)
	g.state.mu.RUnlock()
	switch {
	case refusal != nil:
		return refused(refusal)
	case operators:
		return g.operate(ctx, verb, r)
	case len(r.Body) > wire.MaxRequest:
		return refused(wire.Refuse(wire.CodeTooLarge, "the request is larger than 64 KiB; ask for fewer tools or constraints"))
	}
	switch r.Verb {
	case wire.VerbClaim:
		return g.claims(ctx, r)
	case wire.VerbSessionOpen:
		return g.openSession(ctx, r)
	case wire.VerbSessionClose:
		return g.closeSession(ctx, r)
	case wire.VerbSessionStatus:
		return g.sessionStatus(ctx, r)
	case wire.VerbKeys:
		return g.keys()
	case wire.VerbRevocations:
		return g.revocations(r)
	}
	return refused(wire.Refuse(wire.CodeMalformed, "there is no such request"))
}

// refused is the answer that has nothing but a refusal.
func refused(e *wire.Error) any {
	return struct {
		Error *wire.Error `json:"error"`
	}{e}
}

// keys tells whom to trust.
func (g *Governor) keys() wire.Keys {
	logKey := g.cfg.LogKey
	if g.cfg.LogKeys != nil {
		logKey, _ = g.cfg.LogKeys()
	}
	return wire.Keys{
		Governor: g.cfg.URI, Issuer: g.cfg.Issuer.URI(), IssuerKeys: g.cfg.Issuer.Keys(), GovernorKeys: g.cfg.Keys.Public(),
		Ending: g.cfg.Keys.ending(), Log: g.cfg.LogName, LogKey: logKey,
	}
}

// revocations answers with one page of a snapshot: a signed statement, not JSON of ours around it.
func (g *Governor) revocations(r wire.Request) any {
	var request wire.RevocationsRequest
	if len(r.Body) > 0 {
		if err := json.Unmarshal(r.Body, &request, json.RejectUnknownMembers(true)); err != nil {
			return refused(wire.Refuse(wire.CodeMalformed, "the request is not the JSON that docs/wire.md shows"))
		}
	}
	token, err := g.feed.snapshot(request.After)
	if err != nil {
		return refused(unavailable(err))
	}
	return statement(token)
}

// statement is an answer that is a compact JWS, and no JSON around it.
type statement string

// operate answers an operator. Its account is what makes it one: no agent can send here.
func (g *Governor) operate(ctx context.Context, verb string, r wire.Request) any {
	var q wire.OperatorRequest
	if len(r.Body) > 0 {
		if err := json.Unmarshal(r.Body, &q, json.RejectUnknownMembers(true)); err != nil {
			return refused(wire.Refuse(wire.CodeMalformed, "the request is not the JSON that docs/wire.md shows: "+err.Error()))
		}
	}
	switch verb {
	case wire.VerbHealth:
		return g.health()
	case wire.VerbSessionList:
		return g.sessionList(ctx, q.Session)
	case wire.VerbSessionClose:
		return g.closeAs(ctx, q.Session, r.Sender, q.Reason)
	case wire.VerbChainEntries:
		return g.entries(q)
	case wire.VerbCheckpoint:
		checkpoint, err := g.cfg.Log.Checkpoint()
		if err != nil {
			return refused(unavailable(err))
		}
		return wire.OperatorResponse{Checkpoint: string(checkpoint)}
	case wire.VerbBody:
		salt, body, err := g.cfg.Log.Body(q.Index)
		if errors.Is(err, ledger.ErrNotFound) {
			return refused(wire.Refuse(wire.CodeHandoffUnknown, "no body is kept for this entry: "+err.Error()))
		}
		if err != nil {
			return refused(unavailable(err))
		}
		return wire.OperatorResponse{Salt: salt, Body: body}
	case wire.VerbBundle:
		bundle, err := g.cfg.Log.Bundle(q.Digest)
		if err != nil {
			return refused(wire.Refuse(wire.CodeBundle, "no such bundle: "+err.Error()))
		}
		return wire.OperatorResponse{Bundle: bundle}
	case wire.VerbBundleActivate:
		index, refusal := g.activate(ctx, q.Bundle, r.Sender)
		return wire.OperatorResponse{Error: refusal, Entry: index}
	case wire.VerbRevoke:
		if q.Reason == "" || q.Reason == reasonExpired || len(q.Reason) > wire.MaxPurpose {
			return refused(wire.Refuse(wire.CodeMalformed, "say why, in at most 4096 bytes"))
		}
		index, refusal := g.revokeGrant(ctx, q.ID, r.Sender, q.Reason)
		return wire.OperatorResponse{Error: refusal, Entry: index}
	case wire.VerbApprove:
		index, effect, refusal := g.approve(ctx, q.Index, r.Sender, q.Approve)
		return wire.OperatorResponse{Error: refusal, Entry: index, Effect: effect}
	case wire.VerbIdentityWithdraw:
		return g.setIdentity(ctx, entry.Identity{Name: q.Name, Effect: entry.Withdrawn, By: r.Sender, Reason: q.Reason})
	case wire.VerbIdentityRestore:
		return g.setIdentity(ctx, entry.Identity{Name: q.Name, Effect: entry.Restored, By: r.Sender, Reason: q.Reason})
	case wire.VerbKeysList:
		return g.keysList()
	case wire.VerbKeysRotate:
		index, refusal := g.rotate(ctx, q.Of, q.Stolen, r.Sender, q.Reason)
		return wire.OperatorResponse{Error: refusal, Entry: index}
	case wire.VerbQuarantineList, wire.VerbQuarantineShow, wire.VerbQuarantineRetry, wire.VerbQuarantineDrop:
		return g.quarantineVerb(ctx, verb, r.Sender, q)
	case wire.VerbIdentityList:
		return g.withdrawnList(ctx, q.Name)
	}
	return refused(wire.Refuse(wire.CodeMalformed, "there is no such operator's request"))
}

// quarantinePage keeps a page of what is in quarantine within a message: each has a reason of a KiB at most.
const quarantinePage = 200

// quarantineVerb has operators look at what was set aside. What becomes of a message is not of the record, as little as the message
// itself: it has changed nothing, and if it comes again it is judged as any other.
func (g *Governor) quarantineVerb(ctx context.Context, verb, by string, q wire.OperatorRequest) any {
	var out wire.OperatorResponse
	var err error
	switch verb {
	case wire.VerbQuarantineList:
		out.Quarantined, err = g.cfg.Bus.Quarantined(ctx, q.From, quarantinePage)
		out.More = len(out.Quarantined) == quarantinePage
	case wire.VerbQuarantineShow:
		var one *wire.Quarantined
		if one, err = g.cfg.Bus.QuarantinedMessage(ctx, q.Index); err == nil {
			out.Quarantined = []wire.Quarantined{*one}
		}
	case wire.VerbQuarantineRetry:
		err = g.cfg.Bus.Requeue(ctx, q.Index)
	case wire.VerbQuarantineDrop:
		err = g.cfg.Bus.DropQuarantined(ctx, q.Index)
	}
	refusal, refused := errors.AsType[*wire.Error](err)
	switch {
	case refused:
		out.Error = refusal
	case err != nil:
		out.Error = unavailable(err)
	case verb == wire.VerbQuarantineRetry || verb == wire.VerbQuarantineDrop:
		g.log.InfoContext(ctx, "quarantine", "verb", verb, "number", q.Index, "by", by)
	}
	return out
}

func (g *Governor) health() wire.OperatorResponse {
	troubles := g.troubled()
	g.state.mu.RLock()
	defer g.state.mu.RUnlock()
	return wire.OperatorResponse{Health: &wire.Health{
		Troubles: troubles,
		Log:      g.cfg.LogName, Entries: g.cfg.Log.Size(), Bundle: g.state.bundle, Sessions: len(g.state.sessions),
		Handoffs: len(g.state.handoffs), Held: len(g.state.held),
	}}
}

// sessionList is a page of sessions, the newest first: those before one, or all. How they stand is told in turn, as in
// every such answer: what is not on record has not happened. Which they are is found before, so that offers do not wait
// while many are sorted.
func (g *Governor) sessionList(ctx context.Context, before string) any {
	var ids []string
	g.state.mu.RLock()
	for id := range g.state.sessions {
		if before == "" || id < before {
			ids = append(ids, id)
		}
	}
	g.state.mu.RUnlock()
	slices.Sort(ids)
	slices.Reverse(ids)
	out := wire.OperatorResponse{More: len(ids) > sessionsPage}
	err := g.do(ctx, func(b *batch) error {
		out.Sessions = nil // this may run again
		for _, id := range ids[:min(len(ids), sessionsPage)] {
			if s := b.st.sessions[id]; s != nil {
				out.Sessions = append(out.Sessions, s.status(b.seconds()))
			}
		}
		return nil
	})
	if err != nil {
		return refused(unavailable(err))
	}
	return out
}

// sessionsPage keeps a page of sessions within a message, though each of them has a name of [wire.MaxPerson] bytes that
// JSON must escape.
const sessionsPage = 500

// entriesPage keeps a page of entries within a message.
const entriesPage = wire.MaxPayload / 2

// entries is a page of the ledger as it is, from an index on.
func (g *Governor) entries(q wire.OperatorRequest) any {
	out := wire.OperatorResponse{Entries: []jsontext.Value{}}
	if q.Session != "" {
		return g.sessionEntries(q)
	}
	size := 0
	last := g.cfg.Log.Size()
	for i := q.From; i < last && size < entriesPage; i++ {
		encoded, err := g.cfg.Log.Entry(i)
		if err != nil {
			return refused(unavailable(err))
		}
		if size += len(encoded); size > entriesPage && len(out.Entries) > 0 {
			break
		}
		out.Entries = append(out.Entries, encoded)
	}
	out.Size = last
	return out
}

// sessionEntries is a page of one session's entries, newest first: its cost is that of the session, not of the ledger.
func (g *Governor) sessionEntries(q wire.OperatorRequest) any {
	if refusal := checkID(q.Session); refusal != nil {
		return refused(refusal)
	}
	walk := g.cfg.Log.Session(q.Session)
	if q.From > 0 {
		walk = g.cfg.Log.SessionFrom(q.Session, q.From)
	}
	out := wire.OperatorResponse{Entries: []jsontext.Value{}, Size: g.cfg.Log.Size()}
	size := 0
	for encoded, err := range walk {
		if err != nil {
			return refused(unavailable(err))
		}
		if size += len(encoded); size > entriesPage && len(out.Entries) > 0 {
			e, err := entry.Decode(encoded)
			if err != nil {
				return refused(unavailable(err))
			}
			out.Next = e.Index
			break
		}
		out.Entries = append(out.Entries, encoded)
	}
	return out
}

// entry reads one entry back.
func (g *Governor) entry(index uint64) (*entry.Entry, error) {
	encoded, err := g.cfg.Log.Entry(index)
	if err != nil {
		return nil, err
	}
	return entry.Decode(encoded)
}
