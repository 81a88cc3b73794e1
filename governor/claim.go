package governor

import (
	"context"
	"crypto/ed25519"
	"errors"
	"slices"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/google/uuid"

	"github.com/handoff-governor/handoff-governor/handoff/aat"
	"github.com/handoff-governor/handoff-governor/handoff/aat/jws"
	"github.com/handoff-governor/handoff-governor/handoff/aat/profile"
	"github.com/handoff-governor/handoff-governor/handoff/entry"
	"github.com/handoff-governor/handoff-governor/handoff/wire"
)

// This file is the way of a claim. A receiver that has seen a notice asks for the task; only now is the credential made,
// for the very process that asks:
//
//	verify the proof ─ judge again ─ sequence: one entry with the exact link, the superseded grant, the sender's end ─
//	record ─ revocations out ─ sign ─ answer

// claims answers one claim request.
func (g *Governor) claims(ctx context.Context, r wire.Request) wire.ClaimResponse {
	request, refusal := g.verifyClaim(r) // 1. who asks, with which key
	if refusal != nil {
		return wire.ClaimResponse{Error: refusal}
	}
	cs := make([]*claim, len(request.IDs))
	ps := make([]proposal, len(request.IDs))
	for i, id := range request.IDs {
		cs[i] = &claim{g: g, ctx: ctx, id: id, agent: r.Sender, session: r.Session, jwk: request.JWK, renew: request.Renew, done: make(chan error, 1)}
		cs[i].judge() // 2. the policy in force now: the task may have waited for hours
		ps[i] = cs[i]
	}
	if !g.propose(ctx, ps...) { // 3. sequence, record, revocations out: sequencer.go
		return wire.ClaimResponse{Error: unavailable(context.Cause(ctx))}
	}
	var out wire.ClaimResponse
	size := 0
	for _, c := range cs {
		if err := g.wait(c.done); err != nil {
			out.Claims = append(out.Claims, wire.Claimed{ID: c.id, Error: unavailable(err)})
			continue
		}
		answer := c.answer() // 4. sign what is recorded, and hand over the task
		if size += claimedSize(answer); size > maxClaimAnswer && len(out.Claims) > 0 {
			answer = wire.Claimed{ID: c.id, Error: wire.Refuse(wire.CodeUnavailable, "the answer is full; claim this one again alone")}
			size += claimedSize(answer)
		}
		out.Claims = append(out.Claims, answer)
	}
	return out
}

// maxClaimAnswer keeps an answer within a NATS message, with room for 64 refusals. One task with its chain always fits: 1
// MiB as base64 and the largest chain stay below it.
const maxClaimAnswer = wire.MaxPayload - wire.MaxPayload/8

// claimedSize is about how long an answer is: its large parts, and room for the small ones.
func claimedSize(c wire.Claimed) int {
	n := 1024 + len(c.Task)*4/3
	for _, token := range c.Chain {
		n += len(token) + 3
	}
	for _, r := range c.Reasons { // any text doubles in JSON at most, give or take control characters
		n += 2*(len(r.Message)+len(r.Nearest)+len(r.Argument)+len(r.Tool)) + 128
	}
	return n
}

// verifyClaim checks the proof: the very process that asks holds the key that the grants will be bound to.
func (g *Governor) verifyClaim(r wire.Request) (wire.ClaimRequest, *wire.Error) {
	var request wire.ClaimRequest
	if err := json.Unmarshal(r.Body, &request, json.RejectUnknownMembers(true)); err != nil {
		return request, wire.Refuse(wire.CodeMalformed, "the claim is not the JSON that docs/wire.md shows: "+err.Error())
	}
	if n := len(request.IDs); n == 0 || n > wire.MaxClaimIDs {
		return request, wire.Refuse(wire.CodeMalformed, "claim 1 to 64 IDs at once")
	}
	for i, id := range request.IDs {
		if refusal := checkID(id); refusal != nil {
			return request, refusal
		}
		if slices.Contains(request.IDs[:i], id) {
			return request, wire.Refuse(wire.CodeMalformed, "an ID stands twice in the claim")
		}
	}
	key, refusal := g.holderKey(request.JWK)
	if refusal != nil {
		return request, refusal
	}
	proof, err := jws.VerifyJSON[wire.ClaimProof](request.Proof, wire.TypeClaim, key, wire.MaxToken)
	if err != nil {
		return request, wire.Refuse(wire.CodeProof, "the claim's proof: "+err.Error())
	}
	if refusal := g.checkProof(proof.ID, proof.IssuedAt, proof.Expires, proof.Audience, proof.Subject, r.Sender); refusal != nil {
		return request, refusal
	}
	if !slices.Equal(proof.IDs, request.IDs) {
		return request, wire.Refuse(wire.CodeProof, "the proof must name exactly the IDs that are claimed, in their order")
	}
	return request, nil
}

// holderKey accepts a key that may hold grants: a proper one, and never the governor's or the issuer's.
func (g *Governor) holderKey(jwk aat.JWK) (ed25519.PublicKey, *wire.Error) {
	key, err := jwk.Key()
	if err != nil {
		return nil, wire.Refuse(wire.CodeKey, "jwk: "+err.Error())
	}
	if g.cfg.Keys.holds(jwk.Thumbprint()) || slices.Contains(g.cfg.Issuer.Keys(), jwk) {
		return nil, wire.Refuse(wire.CodeKey, "this is a key of the governor or the issuer; generate one of your own")
	}
	return key, nil
}

// checkProof checks what all our proofs have in common. A proof may be used again by the same agent for the same thing:
// what it asks for is answered as a repeat.
func (g *Governor) checkProof(id string, issued, expires int64, audience, subject, sender string) *wire.Error {
	reading, refusal := g.reading()
	if refusal != nil {
		return refusal
	}
	now, skew := reading.Unix(), int64(maxClockBehind/time.Second)
	switch {
	case id == "" || len(id) > 128:
		return wire.Refuse(wire.CodeProof, "the proof needs a jti")
	case audience != g.cfg.URI:
		return wire.Refuse(wire.CodeProof, "the proof's aud must be "+g.cfg.URI)
	case subject != sender:
		return wire.Refuse(wire.CodeProof, "the proof's sub must be the agent that the connection belongs to")
	case issued > now+skew || expires < now-skew || expires <= issued || expires-issued > wire.ProofLifetime:
		return wire.Refuse(wire.CodeProof, "the proof's time is off: iat must be now, and exp at most 60 seconds later")
	}
	return nil
}

// claim is one task being claimed.
type claim struct {
	g       *Governor
	ctx     context.Context
	id      string
	agent   string
	session string
	jwk     aat.JWK
	renew   bool // the lease alone is asked for
	done    chan error

	handoff  *handoff
	facts    offerFacts
	question decisionInput
	decision *entry.Decision
	verdict  wire.Answer
	reasons  []wire.Reason

	outcome wire.Claimed // without what answer adds
	granted *grant
	body    uint64
}

// 2. judge asks the policy again, before the claim's turn comes.
func (c *claim) judge() {
	st := c.g.state
	st.mu.RLock()
	h := st.handoffs[c.id]
	if h == nil || h.to != c.agent || h.status != statusAdmitted && h.status != statusClaimed {
		st.mu.RUnlock()
		return // sequence says why
	}
	c.consider(c.g.cfg.Policy.Current(), h)
	st.mu.RUnlock()
	c.ask()
}

// consider reads everything that the policy is to be told, under the state's lock.
func (c *claim) consider(judge Judge, h *handoff) {
	c.handoff, c.facts = h, claimFacts(judge, h)
	c.question = claimQuestion(c.facts, h, h.granted)
}

// ask needs no lock.
func (c *claim) ask() {
	c.decision, c.verdict, c.reasons = c.g.ask(c.ctx, c.facts.judge, "decision", c.question)
}

// claimFacts reads the facts of a claim from the state, which the caller has locked.
func claimFacts(judge Judge, h *handoff) offerFacts {
	f := factsOf(judge, h.parent, h.claim)
	f.labels = union(slices.Clone(f.labels), h.labels)
	if h.grant != nil { // who takes over knows what the agent knows
		f.labels = union(f.labels, h.grant.labels)
	}
	f.approvals = slices.Clone(h.approvals)
	f.budgetOK = true // admitted offers have their place in the budget
	return f
}

// 3. sequence. Exactly one process holds a task: the first to claim it, or the one that takes over once the lease has
// run out.
func (c *claim) sequence(b *batch) error {
	c.granted, c.outcome = nil, wire.Claimed{} // this may run again, where its batch fails
	h := b.st.handoffs[c.id]
	refuse := func(code wire.Code, message string) error {
		c.outcome = wire.Claimed{ID: c.id, Error: wire.Refuse(code, message)}
		return nil
	}
	if h == nil || h.to != c.agent || h.session.id != c.session {
		return refuse(wire.CodeHandoffUnknown, "there is no such task for this agent in this session")
	}
	if refusal := b.st.acts(c.agent); refusal != nil {
		return refuse(refusal.Code, refusal.Message)
	}
	print := c.jwk.Thumbprint()
	now := b.seconds()
	switch {
	case h.session.over != "":
		refusal := sessionOver(h.session)
		return refuse(refusal.Code, refusal.Message)
	case h.lost[print]:
		return refuse(wire.CodeSuperseded, "another process took this task over; stop working on it")
	case h.status == statusClaimed && h.grant.state == ended:
		return refuse(wire.CodeParentEnded, "the task was handed on for good; its new holder works on it")
	case h.status == statusClaimed && h.grant.key == print && now < h.grant.expires:
		h.leased = b.now + wire.Lease*1000
		c.grant(h, true)
		return nil
	case h.status == statusClaimed && h.result != nil && h.grant.key != print:
		return refuse(wire.CodeNotAdmitted, "the task's result waits for approval")
	case h.status == statusClaimed && now >= h.grant.expires:
		return refuse(wire.CodeExpired, "the grant for this task has expired")
	case h.status == statusClaimed && b.now < h.leased:
		c.outcome = wire.Claimed{ID: c.id, Error: &wire.Error{
			Code: wire.CodeAlreadyClaimed, Message: "another process of this agent works on the task",
			RetryAfter: int((h.leased-b.now)/1000) + 1,
		}}
		return nil
	case h.status == statusDenied, h.status == statusHeld, h.status == statusCompleted, h.status == statusFailed:
		c.outcome = wire.Claimed{ID: c.id, Reasons: h.reasons,
			Error: wire.Refuse(wire.CodeNotAdmitted, "the task is "+string(h.status))}
		return nil
	case h.status == statusExpired, now > h.deadline && h.status == statusAdmitted, now >= h.expires:
		return refuse(wire.CodeExpired, "the task's deadline has passed")
	case h.status == statusRevoked:
		return refuse(wire.CodeRevoked, "the task was revoked")
	}
	if refusal := h.parent.usable(now); refusal != nil && (refusal.Code != wire.CodeParentEnded || h.status != statusClaimed) {
		return refuse(refusal.Code, "the grant that the task was handed on from: "+refusal.Message)
	}
	if h.mode() == wire.ModeTransfer && h.status == statusAdmitted {
		switch sender := h.parent.handoff; {
		case h.parent.delegating(now):
			c.outcome = wire.Claimed{ID: c.id, Error: &wire.Error{
				Code: wire.CodeTransferOpen, Message: "the sender still awaits results of what it has delegated", RetryAfter: 1,
			}}
			return nil
		case sender != nil && sender.result != nil:
			return refuse(wire.CodeParentEnded, "the sender has returned a result, which waits for approval")
		}
	}
	if holder, bound := b.st.holders[print]; bound && holder.agent != c.agent {
		return refuse(wire.CodeKeyBound, "this key is bound to another agent; generate one of your own")
	}
	if facts := claimFacts(b.judge, h); c.handoff != h || !facts.equal(c.facts) {
		if b.judging > maxJudging {
			c.outcome = wire.Claimed{ID: c.id, Error: &wire.Error{
				Code: wire.CodeUnavailable, Message: "much has changed at once; claim again", RetryAfter: 1,
			}}
			return nil
		}
		c.consider(b.judge, h)
		b.unlocked(c.ask)
	}
	if c.verdict.Effect != wire.EffectAllow {
		return c.turnDown(b, h)
	}
	return c.mint(b, h)
}

// mint writes the credential down, exactly as it will be signed.
func (c *claim) mint(b *batch, h *handoff) error {
	granted, reasons, left := Narrow(h.granted, c.verdict.Ceiling, c.reasons)
	if c.reasons = reasons; !left {
		c.verdict.Effect = wire.EffectDeny
		return c.turnDown(b, h)
	}
	id, err := uuid.NewV7()
	if err != nil {
		return err
	}
	offer := h.offer
	now := b.seconds()
	expires, depth := h.expires, h.maxDepth
	if c.verdict.TTL > 0 {
		expires = min(expires, now+int64(c.verdict.TTL))
	}
	if h.grant != nil { // whoever takes over has what is left of the first claim's time
		expires = min(expires, h.grant.expires)
	}
	if c.verdict.MaxHops != wire.NoHopCap {
		depth = min(depth, offer.Claims.Depth+1+2*c.verdict.MaxHops)
	}
	note, err := json.Marshal(wire.HandoffClaim{
		ID: h.id, Session: h.session.id, From: h.from, To: h.to, Labels: c.facts.labels,
		Decision: &wire.EntryRef{Log: b.log, Index: h.decided}, Bundle: c.decision.Bundle,
	})
	if err != nil {
		return err
	}
	prepared, err := aat.Prepare(offer.Link, aat.Claims{
		ID: id.String(), IssuedAt: now, ExpiresAt: expires, Holder: c.jwk, MaxDepth: depth, Tools: granted,
		Extra: map[string]jsontext.Value{"handoff": note},
	}, offer.Holder())
	var link *profile.Link
	if err == nil {
		link, err = c.g.trust().profile.Child(offer, prepared)
	}
	if err != nil { // too long a chain, too many labels, no time left: it cannot be granted, now or later
		reason, _ := childReason(err)
		if refusal, ok := errors.AsType[*wire.Error](err); ok {
			reason = wire.Reason{Code: refusal.Code, Message: refusal.Message}
		}
		c.verdict.Effect, c.reasons = wire.EffectDeny, append(c.reasons, reason)
		return c.turnDown(b, h)
	}
	e := &entry.Entry{
		Kind: entry.KindClaimed, Session: h.session.id, Handoff: h.id, From: h.from, To: h.to, Grant: id.String(),
		Claimed: &entry.Claimed{
			Payload: link.Payload, Governor: offer.Claims.Holder.Thumbprint(), Labels: c.facts.labels, Decision: *c.decision,
		},
	}
	if old := h.grant; old != nil {
		e.Claimed.Supersedes = old.id
		b.effects.revoked = append(b.effects.revoked, revokedLink(old, wire.StateRevoked))
	}
	if h.mode() == wire.ModeTransfer && h.parent.state == live {
		e.Claimed.Ends = h.parent.id
		b.effects.revoked = append(b.effects.revoked, revokedLink(h.parent, wire.StateEnded))
	}
	if err := b.write(e, known{claim: link}, []string{id.String()}, nil); err != nil {
		return err
	}
	c.grant(h, false)
	return nil
}

// turnDown records that the policy in force now does not let the task go. A denial is final; a hold parks it.
func (c *claim) turnDown(b *batch, h *handoff) error {
	e := &entry.Entry{
		Kind: entry.KindDecided, Session: h.session.id, Handoff: h.id, From: h.from, To: h.to, Grant: h.parent.id,
		Decided: &entry.Decided{
			Stage: entry.StageClaim, Effect: c.verdict.Effect, Reasons: c.reasons, Labels: c.facts.labels, Decision: c.decision,
		},
	}
	if err := b.write(e, known{}, nil, nil); err != nil {
		return err
	}
	if h.status != statusClaimed {
		b.effects.inbox = append(b.effects.inbox, verdict(h))
	}
	code := wire.CodePolicyDenied
	if c.verdict.Effect == wire.EffectHold {
		code = wire.CodePolicyHeld
	}
	c.outcome = wire.Claimed{ID: c.id, Reasons: c.reasons, Entry: e.Index,
		Error: wire.Refuse(code, "the policy in force now does not let this task go; the reasons say why")}
	return nil
}

// grant remembers what to answer with once the batch is durable.
func (c *claim) grant(h *handoff, repeat bool) {
	_, governor := c.g.cfg.Keys.current()
	c.granted, c.body = h.grant, h.decided
	c.outcome = wire.Claimed{
		ID: h.id, GovernorJWK: &governor, ExpiresAt: h.grant.expires, Lease: wire.Lease, Repeat: repeat, From: h.from,
		Mode: h.mode(), Purpose: h.claim.Purpose, Labels: h.grant.labels, ContentType: h.claim.ContentType, Entry: h.grant.newest,
	}
}

func (c *claim) settle(err error) { c.done <- err }

// 4. answer signs what the ledger holds and adds the task.
func (c *claim) answer() wire.Claimed {
	if c.granted == nil || c.renew && c.outcome.Repeat {
		return c.outcome
	}
	c.g.state.mu.RLock()
	chain := c.granted.chain()
	c.g.state.mu.RUnlock()
	links, err := compact(chain)
	if err != nil {
		c.g.log.ErrorContext(c.ctx, "a granted claim could not be signed", "id", c.id, "err", err)
		return wire.Claimed{ID: c.id, Error: wire.Refuse(wire.CodeUnavailable, "the credential could not be signed; claim again")}
	}
	_, task, err := c.g.cfg.Log.Body(c.body)
	if err != nil {
		c.g.log.ErrorContext(c.ctx, "the body of a claimed task cannot be read", "id", c.id, "err", err)
		return wire.Claimed{ID: c.id, Error: wire.Refuse(wire.CodeUnavailable, "the task's bytes cannot be read; claim again")}
	}
	out := c.outcome
	out.Chain, out.Task = links, task
	return out
}

func unavailable(err error) *wire.Error {
	return wire.Refuse(wire.CodeUnavailable, "nothing was decided; send the same again later ("+err.Error()+")")
}
