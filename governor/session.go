package governor

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/google/uuid"

	"github.com/handoff-governor/handoff-governor/governor/ledger"
	"github.com/handoff-governor/handoff-governor/handoff/aat"
	"github.com/handoff-governor/handoff-governor/handoff/aat/jws"
	"github.com/handoff-governor/handoff-governor/handoff/entry"
	"github.com/handoff-governor/handoff-governor/handoff/wire"
)

// This file is how a session begins, is asked about, and is closed by its opener.

// openSession answers a session.open request: verify ─ judge ─ have the issuer sign ─ sequence ─ record ─ answer.
func (g *Governor) openSession(ctx context.Context, r wire.Request) wire.OpenResponse {
	request, refusal := g.verifyOpen(r) // 1. who opens, with which key, for whom
	if refusal != nil {
		return wire.OpenResponse{Error: refusal}
	}
	if used, err := g.used(request.ID); err != nil {
		return wire.OpenResponse{Error: unavailable(err)}
	} else if used {
		return g.openAgain(ctx, r.Sender, request)
	}
	now, refusal := g.reading()
	if refusal == nil {
		refusal = checkIDTime(request.ID, now)
	}
	if refusal != nil {
		return wire.OpenResponse{Error: refusal}
	}
	judge := g.cfg.Policy.Current()
	decision, answer, reasons := g.ask(ctx, judge, "session", sessionInput{ // 2. the policy in force
		Agent: agentOf(r.Sender), Principal: principalFact{Kind: request.Principal.Kind, Name: request.Principal.Name},
		Tools: request.Tools, Labels: nonNil(request.Labels), TTL: request.TTL, MaxHops: request.MaxHops, Budget: request.Budget,
	})
	if answer.Effect != wire.EffectAllow {
		return g.denySession(ctx, r.Sender, request.ID, answer.Effect, decision, reasons)
	}
	granted, reasons, left := Narrow(request.Tools, answer.Ceiling, reasons)
	if !left {
		return g.denySession(ctx, r.Sender, request.ID, wire.EffectDeny, decision, reasons)
	}
	terms := RootTerms{Tools: granted, IssuedAt: now.Unix(), MaxDepth: 2 * request.MaxHops}
	terms.Expires = terms.IssuedAt + int64(request.TTL)
	if answer.TTL > 0 {
		terms.Expires = min(terms.Expires, terms.IssuedAt+int64(answer.TTL))
	}
	if answer.MaxHops != wire.NoHopCap {
		terms.MaxDepth = min(terms.MaxDepth, 2*answer.MaxHops)
	}
	root, err := g.cfg.Issuer.Issue(ctx, r.Sender, r.Body, terms) // 3. the issuer, who judges for itself
	if step, ok := errors.AsType[*aat.StepError](err); ok && step.Step == "2a" || len(root) > wire.MaxToken {
		return wire.OpenResponse{Error: wire.Refuse(wire.CodeTooLarge, "the root would be larger than 60 KiB; ask for fewer tools or constraints")}
	}
	if err != nil {
		return wire.OpenResponse{Error: asRefusal(err)}
	}
	if err := g.retrust(); err != nil { // the issuer may have signed with a new key
		g.log.ErrorContext(ctx, "what the issuer has for keys cannot be used", "err", err)
	}
	if _, err := verifierAt(g.trust().verifier, now).Root(root); err != nil {
		g.log.ErrorContext(ctx, "the issuer signed a root that does not verify", "err", err)
		return wire.OpenResponse{Error: wire.Refuse(wire.CodeUnavailable, "the issuer's answer does not verify; tell the operator")}
	}
	salt := wire.NewSalt()
	e := &entry.Entry{
		Kind: entry.KindSession, Session: request.ID, From: r.Sender, Grant: request.ID,
		Opened: &entry.Opened{
			Root: root, Opener: r.Sender, Principal: wire.Principal{Kind: request.Principal.Kind, Name: request.Principal.Name},
			ObjectiveHash: wire.TaskHash(salt, []byte(request.Objective)), Labels: request.Labels, MaxHops: terms.MaxDepth / 2,
			Budget: request.Budget, Decision: *decision,
		},
	}
	err = g.do(ctx, func(b *batch) error { // 4. sequence, record
		if refusal = b.st.acts(r.Sender); refusal != nil { // nil: this may run again, where its batch fails
			return nil
		}
		if used, err := g.usedBefore(b, request.ID); err != nil {
			refusal = unavailable(err)
			return nil
		} else if used {
			refusal = wire.Refuse(wire.CodeUnavailable, "the same session is being opened at this moment; ask again")
			return nil
		}
		if holder, bound := b.st.holders[request.JWK.Thumbprint()]; bound && holder.agent != r.Sender {
			refusal = wire.Refuse(wire.CodeKeyBound, "this key is bound to another agent; generate one of your own")
			return nil
		}
		if b.st.opens[r.Sender] >= g.cfg.MaxSessions {
			refusal = wire.Refuse(wire.CodeSessionLimit,
				fmt.Sprintf("this agent has %d open sessions; close one first", g.cfg.MaxSessions))
			return nil
		}
		if terms.Expires <= b.seconds() {
			refusal = wire.Refuse(wire.CodeExpired, "the session would be over before it begins; ask for a longer ttl")
			return nil
		}
		if b.judge.Digest() != decision.Bundle {
			refusal = wire.Refuse(wire.CodeUnavailable, "the policy has just changed; ask again")
			return nil
		}
		return b.write(e, known{}, []string{request.ID}, func(rec *ledger.Record) {
			rec.Body = &ledger.Body{Salt: salt, Data: []byte(request.Objective)}
		})
	})
	if err != nil {
		return wire.OpenResponse{Error: unavailable(err)}
	}
	if refusal != nil {
		return wire.OpenResponse{Error: refusal}
	}
	return g.opened(root, terms.Expires, e.Index, false, reasons) // 5. only now is there a session
}

// usedBefore tells whether an ID is used up, also by a session that was not opened: no state has that one.
func (g *Governor) usedBefore(b *batch, id string) (bool, error) {
	if b.used(id) {
		return true, nil
	}
	_, found, err := g.cfg.Log.Lookup(id)
	return found, err
}

// denySession records that a session was not opened, and answers so.
func (g *Governor) denySession(
	ctx context.Context, opener, id, effect string, decision *entry.Decision, reasons []wire.Reason,
) (out wire.OpenResponse) {
	e := &entry.Entry{
		Kind: entry.KindDecided, Session: id, From: opener,
		Decided: &entry.Decided{Stage: entry.StageSession, Effect: effect, Reasons: reasons, Decision: decision},
	}
	err := g.do(ctx, func(b *batch) error {
		out = wire.OpenResponse{}
		if used, err := g.usedBefore(b, id); err != nil {
			out.Error = unavailable(err)
			return nil
		} else if used || b.judge.Digest() != decision.Bundle {
			out.Error = wire.Refuse(wire.CodeUnavailable, "the policy has just changed, or the same is being asked; ask again")
			return nil
		}
		if err := b.write(e, known{}, []string{id}, nil); err != nil {
			return err
		}
		out = deniedSession(e)
		return nil
	})
	if err != nil {
		return wire.OpenResponse{Error: unavailable(err)}
	}
	return out
}

// deniedSession is the answer to whoever asked for it, now or again.
func deniedSession(e *entry.Entry) wire.OpenResponse {
	code := wire.CodePolicyDenied
	if e.Decided.Effect == wire.EffectHold {
		code = wire.CodePolicyHeld
	}
	return wire.OpenResponse{
		Error:   wire.Refuse(code, "the policy does not let this session open; the reasons say why"),
		Reasons: e.Decided.Reasons, Entry: e.Index,
	}
}

// opened is the answer that hands the root over.
func (g *Governor) opened(root string, expires int64, index uint64, repeat bool, reasons []wire.Reason) wire.OpenResponse {
	_, governor := g.cfg.Keys.current()
	return wire.OpenResponse{
		Chain: []string{root}, GovernorJWK: &governor, ExpiresAt: expires, Repeat: repeat, Entry: index, Reasons: reasons,
	}
}

// openAgain gives the same process the same root again. It takes its turn, since a session that is still being written
// is none.
func (g *Governor) openAgain(ctx context.Context, opener string, request wire.OpenRequest) (out wire.OpenResponse) {
	var root *grant
	var index uint64
	err := g.do(ctx, func(b *batch) error {
		s := b.st.sessions[request.ID]
		if s == nil {
			e, err := g.usedBy(request.ID)
			if err != nil {
				out.Error = unavailable(err)
				return nil
			}
			if e.Decided != nil && e.Decided.Stage == entry.StageSession && e.From == opener {
				out = deniedSession(e)
				return nil
			}
		}
		switch {
		case s == nil || s.opener != opener || s.root.key != request.JWK.Thumbprint():
			out.Error = wire.Refuse(wire.CodeIDConflict, "this ID was used for something else; make a new one")
		case s.over != "":
			out.Error = sessionOver(s)
		default:
			root, index = s.root, b.st.used[s.id]
		}
		return nil
	})
	switch {
	case err != nil:
		return wire.OpenResponse{Error: unavailable(err)}
	case out.Error != nil:
		return out
	}
	token, err := root.token()
	if err != nil {
		return wire.OpenResponse{Error: unavailable(err)}
	}
	return g.opened(token, root.expires, index, true, nil)
}

// usedBy reads the entry that used an ID up. One whose batch could not be written is in no entry.
func (g *Governor) usedBy(id string) (*entry.Entry, error) {
	index, found, err := g.cfg.Log.Lookup(id)
	if err != nil {
		return nil, err
	}
	if !found {
		return nil, errLater
	}
	return g.entry(index)
}

// MaxTTL is the longest a session may be asked for, in seconds: a day.
const MaxTTL = 24 * 60 * 60

// verifyOpen checks the form and the proof of a request to open a session.
func (g *Governor) verifyOpen(r wire.Request) (wire.OpenRequest, *wire.Error) {
	var request wire.OpenRequest
	if err := json.Unmarshal(r.Body, &request, json.RejectUnknownMembers(true)); err != nil {
		return request, wire.Refuse(wire.CodeMalformed, "the request is not the JSON that docs/wire.md shows: "+err.Error())
	}
	if request.Tools == nil {
		request.Tools = aat.Tools{}
	}
	if refusal := checkID(request.ID); refusal != nil {
		return request, refusal
	}
	if refusal := checkLabels(request.Labels); refusal != nil {
		return request, refusal
	}
	slices.Sort(request.Labels)
	request.Labels = slices.Compact(request.Labels)
	switch {
	case request.Objective == "" || len(request.Objective) > wire.MaxPurpose:
		return request, wire.Refuse(wire.CodeMalformed, "objective must have 1 to 4096 bytes")
	case request.TTL <= 0 || request.TTL > MaxTTL:
		return request, wire.Refuse(wire.CodeMalformed, "ttl must be 1 to 86400 seconds")
	case request.MaxHops < 0 || request.MaxHops > wire.MaxHops:
		return request, wire.Refuse(wire.CodeMalformed, "max_hops must be 0 to 16")
	case request.Tools.Constraints() > wire.MaxConstraints:
		return request, wire.Refuse(wire.CodeMalformed, fmt.Sprintf("a session's tools have at most %d constraints together", wire.MaxConstraints))
	case len(request.Tools) > wire.MaxTools:
		return request, wire.Refuse(wire.CodeTooLarge, "at most 256 tools")
	case request.Budget != nil && request.Budget.Handoffs < 0:
		return request, wire.Refuse(wire.CodeMalformed, "a budget cannot be negative")
	case request.Principal.Kind == wire.PrincipalWorkload && request.Principal.Name != r.Sender:
		return request, wire.Refuse(wire.CodeForbidden, "a workload can only be principal of its own sessions")
	case request.Principal.Kind != wire.PrincipalWorkload && request.Principal.Kind != wire.PrincipalHuman:
		return request, wire.Refuse(wire.CodeMalformed, "principal.kind must be human or workload")
	case request.Principal.Name == "" || len(request.Principal.Name) > wire.MaxPerson:
		return request, wire.Refuse(wire.CodeMalformed, "principal.name must have 1 to 256 bytes")
	}
	if _, refusal := g.holderKey(request.JWK); refusal != nil {
		return request, refusal
	}
	return request, g.verifySessionProof(request.JWK, request.Proof, r)
}

// verifySessionProof checks that the holder of jwk signed this very request.
func (g *Governor) verifySessionProof(jwk aat.JWK, token string, r wire.Request) *wire.Error {
	key, err := jwk.Key()
	if err != nil {
		return wire.Refuse(wire.CodeKey, "jwk: "+err.Error())
	}
	proof, err := jws.VerifyJSON[wire.SessionProof](token, wire.TypeSession, key, wire.MaxToken)
	if err != nil {
		return wire.Refuse(wire.CodeProof, "the request's proof: "+err.Error())
	}
	if refusal := g.checkProof(proof.ID, proof.IssuedAt, proof.Expires, proof.Audience, proof.Subject, r.Sender); refusal != nil {
		return refusal
	}
	hash, err := wire.RequestHash(r.Body)
	if err != nil || hash != proof.RequestHash || proof.Verb != r.Verb {
		return wire.Refuse(wire.CodeProof, "the proof was made for another request")
	}
	return nil
}

// ownSession finds a session for its opener's own process.
func (g *Governor) ownSession(r wire.Request) (*session, wire.SessionRequest, *wire.Error) {
	var request wire.SessionRequest
	if err := json.Unmarshal(r.Body, &request, json.RejectUnknownMembers(true)); err != nil {
		return nil, request, wire.Refuse(wire.CodeMalformed, "the request is not the JSON that docs/wire.md shows: "+err.Error())
	}
	g.state.mu.RLock()
	s := g.state.sessions[request.Session]
	g.state.mu.RUnlock()
	if s == nil {
		return nil, request, g.absentSession(request.Session)
	}
	if s.opener != r.Sender {
		return nil, request, wire.Refuse(wire.CodeNotYours, "only the session's opener may ask this")
	}
	return s, request, g.verifySessionProof(s.root.link.Claims.Holder, request.Proof, r)
}

// closeSession answers a session.close request by the opener.
func (g *Governor) closeSession(ctx context.Context, r wire.Request) wire.SessionStatus {
	s, request, refusal := g.ownSession(r)
	if refusal != nil {
		return wire.SessionStatus{Error: refusal}
	}
	return g.closeAs(ctx, s.id, r.Sender, request.Reason)
}

// closeAs closes a session and answers with what became of it; closing it twice is no error.
func (g *Governor) closeAs(ctx context.Context, id, by, reason string) wire.SessionStatus {
	if reason == "" || reason == reasonExpired {
		reason = "closed"
	}
	if len(reason) > wire.MaxPurpose {
		return wire.SessionStatus{Error: wire.Refuse(wire.CodeMalformed, "reason must have at most 4096 bytes")}
	}
	var status wire.SessionStatus
	err := g.do(ctx, func(b *batch) error {
		if status.Error = b.st.acts(by); status.Error != nil {
			return nil
		}
		s := b.st.sessions[id]
		if s == nil {
			status.Error = g.absentSession(id)
			return nil
		}
		if s.over == "" {
			if err := g.close(b, s, by, reason, nil); err != nil {
				return err
			}
		}
		status = s.status(b.seconds())
		return nil
	})
	if err != nil {
		return wire.SessionStatus{Error: unavailable(err)}
	}
	return status
}

// sessionStatus answers a session.status request by the opener.
func (g *Governor) sessionStatus(ctx context.Context, r wire.Request) (status wire.SessionStatus) {
	s, request, refusal := g.ownSession(r)
	if refusal != nil {
		return wire.SessionStatus{Error: refusal}
	}
	err := g.do(ctx, func(b *batch) error {
		if s := b.st.sessions[s.id]; s != nil {
			status = s.status(b.seconds())
		} else {
			status.Error = g.absentSession(request.Session)
		}
		return nil
	})
	if err != nil {
		return wire.SessionStatus{Error: unavailable(err)}
	}
	return status
}

// status is what may be said of a session at the time now (Unix seconds). The caller has locked the state.
func (s *session) status(now int64) wire.SessionStatus {
	out := wire.SessionStatus{
		Session: s.id, State: s.over, Opener: s.opener, Principal: s.principal, OpenedAt: s.openedAt, ExpiresAt: s.expires,
		Handoffs: s.decided, Denied: s.denied, Entry: s.newest,
	}
	switch {
	case s.over == "" && now >= s.expires:
		out.State = reasonExpired
	case s.over == "":
		out.State = "open"
	}
	for _, h := range s.handoffs {
		if openStatus(h.status) && !h.done(now) {
			out.Open++
		}
	}
	return out
}

// asRefusal passes a refusal on as it is, and calls everything else unavailable.
func asRefusal(err error) *wire.Error {
	if refusal, ok := errors.AsType[*wire.Error](err); ok {
		return refusal
	}
	return unavailable(err)
}

// idTime is the time a UUIDv7 was made.
func idTime(u uuid.UUID) time.Time {
	var ms int64
	for _, b := range u[:6] {
		ms = ms<<8 | int64(b)
	}
	return time.UnixMilli(ms)
}
