package governor

import (
	"context"
	"slices"
	"time"

	"github.com/handoff-governor/handoff-governor/governor/ledger"
	"github.com/handoff-governor/handoff-governor/handoff/aat/jws"
	"github.com/handoff-governor/handoff-governor/handoff/entry"
	"github.com/handoff-governor/handoff-governor/handoff/wire"
)

// This file is the way of a result: a handoff of data backwards. Like an offer it is verified and judged first, then
// takes its turn; unlike one it ends the grant that made it, and everything below.

// prepareResult does what needs no order.
func (g *Governor) prepareResult(ctx context.Context, in wire.Inbound) *result {
	r := &result{g: g, ctx: ctx, in: in}
	r.verify() // 2. whose work this is
	r.judge()  // 3. labels flow backwards, too
	return r
}

// result is one result on its way.
type result struct {
	g   *Governor
	ctx context.Context
	in  wire.Inbound

	read    time.Time // the clock that verify went by
	id      string    // of the handoff
	token   string
	salt    []byte
	trace   string
	refusal *wire.Error
	claim   wire.ResultToken
	key     string // thumbprint of the key that signed it
	repeat  bool   // the token's ID stands in the ledger or state
	later   bool   // it must be looked at again once this batch is durable
	over    bool   // its task is unknown, or forgotten: only the ledger can tell

	facts    resultFacts
	decision *entry.Decision
	effect   string
	reasons  []wire.Reason
}

// resultFacts are the facts that may change between looking and deciding.
type resultFacts struct {
	judge     Judge
	grant     *grant
	receiver  string
	labels    []string
	approvals []string
}

func (f resultFacts) equal(g resultFacts) bool {
	return f.judge != nil && f.judge.Digest() == g.judge.Digest() && f.grant == g.grant && f.receiver == g.receiver &&
		slices.Equal(f.labels, g.labels) && slices.Equal(f.approvals, g.approvals)
}

func (g *Governor) resultFacts(judge Judge, h *handoff, declared []string) resultFacts {
	return resultFacts{
		judge: judge, grant: h.grant, receiver: h.resultTo(), labels: countedLabels(judge, h.grant, declared),
	}
}

// resultTo is the agent that a result of h goes to.
func (h *handoff) resultTo() string {
	if target := h.answers(); target != nil {
		return target.from
	}
	return h.session.opener
}

// resultLabels are those that the receiver of a result of h carries already: it must still be able to hand on what it has.
func (h *handoff) resultLabels() []string {
	if target := h.answers(); target != nil {
		return target.parent.labels
	}
	return h.session.root.labels
}

// verify finds the task and checks the signature of a grant that it was given to. A superseded process is told so.
func (r *result) verify() {
	if ids := r.in.Header[wire.HeaderID]; len(ids) == 1 {
		r.id = ids[0] // so that a refusal can say what it is about
	}
	head, refusal := readHeaders(r.in.Header, wire.HeaderID, wire.HeaderToken, wire.HeaderSalt)
	if refusal != nil {
		r.refusal = refusal
		return
	}
	r.token, r.trace = head.get(wire.HeaderToken), head.traceparent()
	if r.read, r.refusal = r.g.reading(); r.refusal != nil {
		return
	}
	var err error
	switch {
	case len(r.token) > wire.MaxToken:
		r.refusal = wire.Refuse(wire.CodeTooLarge, "the token is larger than 60 KiB")
		return
	case len(r.in.Body) > wire.MaxBody:
		r.refusal = wire.Refuse(wire.CodeTooLarge, "the result is larger than 1 MiB; return a reference to it instead")
		return
	}
	if r.salt, err = wire.ParseSalt(head.get(wire.HeaderSalt)); err != nil {
		r.refusal = wire.Refuse(wire.CodeSalt, "Handoff-Salt must be 32 random bytes as base64url without padding")
		return
	}
	if r.refusal = checkID(r.id); r.refusal != nil {
		return
	}
	if r.refusal = r.findGrant(); r.refusal != nil {
		if p, err := peekResult(r.token); r.refusal.Code == wire.CodeHandoffUnknown && err == nil && checkID(p.ID) == nil {
			// The same may have been accepted in a session that is forgotten by now. Then its receipt is still due.
			r.claim.ID, r.refusal, r.over = p.ID, nil, true
		}
		return
	}
	switch {
	case r.claim.Audience != r.g.cfg.URI:
		r.refusal = wire.Refuse(wire.CodeToken, "the result token's aud must be "+r.g.cfg.URI)
	case r.claim.Handoff != r.id:
		r.refusal = wire.Refuse(wire.CodeSubjectMismatch, "Handoff-Id and the result token name different handoffs")
	case r.claim.Status != wire.StatusCompleted && r.claim.Status != wire.StatusFailed:
		r.refusal = wire.Refuse(wire.CodeMalformed, "status must be completed or failed")
	case !wire.TaskHashMatches(r.claim.BodyHash, r.salt, r.in.Body):
		r.refusal = wire.Refuse(wire.CodeTaskHash, "body_hash is not SHA-256(salt ‖ body) of the bytes that came")
	case contentType(r.in.Header) != r.claim.ContentType:
		r.refusal = wire.Refuse(wire.CodeContentType, "the Content-Type header must equal the token's content_type")
	default:
		r.refusal = checkLabels(r.claim.Labels)
	}
	if r.refusal == nil {
		r.refusal = checkID(r.claim.ID)
	}
	if r.refusal != nil {
		return
	}
	if r.repeat, err = r.g.used(r.claim.ID); err != nil {
		r.refusal = wire.Refuse(wire.CodeUnavailable, "the ledger cannot be read; send the same again later")
	} else if !r.repeat {
		r.refusal = checkIDTime(r.claim.ID, r.read)
	}
}

const unknownTask = "there is no such task for this agent in this session, or it was never claimed"

// findGrant finds the grant whose key signed the token: the task's current one, or one that was superseded.
func (r *result) findGrant() *wire.Error {
	r.g.state.mu.RLock()
	h := r.g.state.handoffs[r.id]
	var candidates []*grant
	if h != nil && h.to == r.in.Sender && h.session.id == r.in.Session {
		for _, g := range h.session.grants {
			if g.handoff == h {
				candidates = append(candidates, g)
			}
		}
	}
	r.g.state.mu.RUnlock()
	if len(candidates) == 0 {
		return wire.Refuse(wire.CodeHandoffUnknown, unknownTask)
	}
	var last error
	for _, g := range slices.Backward(candidates) {
		claim, err := jws.VerifyJSON[wire.ResultToken](r.token, wire.TypeResult, g.link.Holder(), wire.MaxToken)
		if err == nil {
			r.claim, r.key = claim, g.key
			return nil
		}
		last = err
	}
	return wire.Refuse(wire.CodeToken, "the result token is not signed by the process that claimed the task: "+last.Error())
}

// judge asks the policy whether these labels may flow back.
func (r *result) judge() {
	if r.refusal != nil || r.repeat || r.over {
		return
	}
	st := r.g.state
	st.mu.RLock()
	h := st.handoffs[r.id]
	if h == nil || h.grant == nil {
		st.mu.RUnlock()
		return
	}
	r.facts = r.g.resultFacts(r.g.cfg.Policy.Current(), h, r.claim.Labels)
	st.mu.RUnlock()
	r.ask(h)
}

func (r *result) ask(h *handoff) {
	var answer wire.Answer
	r.decision, answer, r.reasons = r.g.ask(r.ctx, r.facts.judge, "result", resultQuestion(h, r.facts, r.claim))
	r.effect = answer.Effect
}

func resultQuestion(h *handoff, f resultFacts, claim wire.ResultToken) resultInput {
	return resultInput{
		Stage: entry.StageResult, Sender: agentOf(h.to), Receiver: agentOf(f.receiver), Opener: agentOf(h.session.opener),
		Principal: principalFact{Kind: h.session.principal.Kind, Name: h.session.principal.Name},
		Status:    claim.Status, ContentType: claim.ContentType, Labels: nonNil(f.labels), Chain: chainFacts(f.grant),
		Approvals: approvalFacts(f.approvals),
	}
}

// sequence: the first valid result wins.
func (r *result) sequence(b *batch) error {
	if r.later = b.disagrees(r.read); r.later {
		return nil
	}
	if refusal := b.st.acts(r.in.Sender); refusal != nil {
		r.refusal = refusal
	}
	if r.refusal == nil && r.over {
		return r.forgotten(b)
	}
	if r.refusal == nil {
		h := b.st.handoffs[r.id]
		if again, err := r.again(b); again || err != nil {
			return err
		}
		if r.refusal = r.mutable(b, h); r.refusal == nil {
			if h.result != nil { // an identical repeat: mutable refused everything else
				return r.effects(b, h)
			}
			if h.grant.putOff != "" && b.now < h.grant.putOffUntil {
				r.later = true // it must not overtake its own task's offers
				return nil
			}
			if facts := r.g.resultFacts(b.judge, h, r.claim.Labels); !r.facts.equal(facts) {
				if b.judging > maxJudging {
					r.later = true
					return nil
				}
				r.facts = facts
				b.unlocked(func() { r.ask(h) })
			}
			if len(union(r.facts.labels, h.resultLabels())) > wire.MaxLabels {
				r.refusal = wire.Refuse(wire.CodeTooLarge,
					"with what the grant and the one that awaits it carry these are more than 64 labels; declare fewer")
				r.tell(b)
				return nil
			}
			return r.write(b, h)
		}
	}
	if r.refusal.Code != wire.CodeUnavailable { // that one is tried again
		r.tell(b)
	}
	return nil
}

// tell lets the worker know that this result was not taken. The verdict names the result also where its token could not be
// trusted, as long as it can be read: the worker must not take it for one about the handoff, or about another result.
func (r *result) tell(b *batch) {
	id := r.claim.ID
	if id == "" {
		if claim, err := peekResult(r.token); err == nil && checkID(claim.ID) == nil {
			id = claim.ID
		}
	}
	b.effects.inbox = append(b.effects.inbox, refusalVerdict(r.in.Sender, r.in.Session, r.id, id, r.refusal))
}

// again answers a denied result that is sent again with the same denial. (Accepted ones are found by their handoff.)
func (r *result) again(b *batch) (bool, error) {
	index, used := b.st.used[r.claim.ID]
	if !used && r.repeat {
		var err error
		if index, used, err = r.g.cfg.Log.Lookup(r.claim.ID); err != nil {
			r.later = r.g.unread(r.ctx, err)
			return true, nil
		}
		if !used {
			r.later = true // it was used by a batch that could not be written
			return true, nil
		}
	}
	h := b.st.handoffs[r.id]
	if !used || h == nil || h.result != nil && h.result.token == r.token {
		return false, nil
	}
	if index >= b.next {
		r.later = true // the first is in this very batch
		return true, nil
	}
	e, err := r.g.entry(index)
	if err != nil {
		r.later = r.g.unread(r.ctx, err)
		return true, nil
	}
	if e.Result == nil || e.Result.Token != r.token || e.From != r.in.Sender {
		return false, nil
	}
	effect, verdict := e.Result.Effect, e
	if effect == wire.EffectHold {
		if at, turnedDown := h.refused[r.claim.ID]; turnedDown {
			if verdict, err = r.g.entry(at); err != nil {
				r.later = r.g.unread(r.ctx, err)
				return true, nil
			}
		}
		effect = wire.EffectDeny // it is held no more
	}
	b.effects.receipt(e.From, r.claim.ID, index, effect)
	b.effects.inbox = append(b.effects.inbox, resultVerdict(verdict, r.claim.ID))
	return true, nil
}

// forgotten answers a result whose session is in memory no more: with the receipt that it had, or not at all.
func (r *result) forgotten(b *batch) error {
	refuse := func() error {
		r.refusal = wire.Refuse(wire.CodeHandoffUnknown, unknownTask)
		r.tell(b)
		return nil
	}
	index, found, err := r.g.cfg.Log.Lookup(r.claim.ID)
	if err == nil && !found {
		return refuse()
	}
	var e *entry.Entry
	if err == nil {
		e, err = r.g.entry(index)
	}
	if err != nil {
		r.later = r.g.unread(r.ctx, err)
		return nil
	}
	if e.Result == nil || e.Result.Token != r.token || e.From != r.in.Sender || e.Result.Effect == wire.EffectHold {
		return refuse() // of what was held, only the ledger can tell what a person's answer was, if there was one
	}
	b.effects.receipt(e.From, r.claim.ID, index, e.Result.Effect)
	if e.Result.Effect == wire.EffectDeny {
		b.effects.inbox = append(b.effects.inbox, resultVerdict(e, r.claim.ID))
	}
	return nil
}

// resultVerdict tells the worker what became of a result with this ID that was denied or held, or what a person's answer
// made of it.
func resultVerdict(e *entry.Entry, id string) wire.Outbound {
	v := wire.Verdict{ID: e.Handoff, Result: id, Effect: wire.EffectDeny, Reasons: []wire.Reason{notApproved}, Entry: &e.Index}
	to := e.To
	switch {
	case e.Result != nil:
		to, v.Effect, v.Reasons = e.From, e.Result.Effect, e.Result.Reasons
	case e.Approved.Decided != nil:
		v.Effect, v.Reasons = e.Approved.Decided.Effect, e.Approved.Decided.Reasons
	}
	return verdictMessage(to, e.Session, v)
}

func (r *result) mutable(b *batch, h *handoff) *wire.Error {
	if h == nil || h.grant == nil {
		return wire.Refuse(wire.CodeSessionClosed, "the session of this task is over")
	}
	switch {
	case h.lost[r.key]:
		return wire.Refuse(wire.CodeSuperseded, "another process took this task over; its result counts")
	case h.result != nil && h.result.token != r.token:
		return wire.Refuse(wire.CodeResultConflict, "another result was accepted first")
	case h.result != nil && h.result.effect == wire.EffectAllow:
		return nil
	case h.result == nil && (r.repeat || b.used(r.claim.ID)):
		return wire.Refuse(wire.CodeIDConflict, "the result token's ID was used for something else; make a new one")
	case h.session.over != "":
		return sessionOver(h.session)
	case h.status == statusExpired || h.status == statusClaimed && b.seconds() >= h.grant.expires:
		return wire.Refuse(wire.CodeExpired, "the task's lifetime ran out before its result")
	case h.status != statusClaimed || h.grant.state == revoked:
		return wire.Refuse(wire.CodeRevoked, "the task was revoked")
	case h.grant.state == ended:
		return wire.Refuse(wire.CodeParentEnded, "the task was handed on; its new holder gives the result")
	}
	return nil
}

// write records the result, and what it ends.
func (r *result) write(b *batch, h *handoff) error {
	g := h.grant
	e := &entry.Entry{
		Kind: entry.KindResult, Session: h.session.id, Handoff: h.id, From: h.to, To: r.facts.receiver, Grant: g.id,
		Result: &entry.Result{
			Token: r.token, Status: r.claim.Status, Effect: r.effect, Reasons: r.reasons, Labels: r.facts.labels,
			BodyHash: r.claim.BodyHash, Decision: r.decision,
		},
	}
	if target := h.answers(); target != nil {
		e.Result.Answers = target.id
	}
	attach := func(rec *ledger.Record) {
		if r.effect != wire.EffectDeny {
			rec.Body = &ledger.Body{Salt: r.salt, Data: r.in.Body}
		}
	}
	var below []wire.RevokedLink
	if r.effect == wire.EffectAllow {
		below = endedLinks(h)
	}
	if err := b.write(e, known{}, []string{r.claim.ID}, attach); err != nil {
		return err
	}
	b.effects.revoked = append(b.effects.revoked, below...)
	if r.effect == wire.EffectAllow {
		return r.effects(b, h)
	}
	b.effects.receipt(r.in.Sender, r.claim.ID, e.Index, r.effect)
	b.effects.inbox = append(b.effects.inbox, resultVerdict(e, r.claim.ID))
	return nil
}

// effects of the result that stands: a receipt to the worker; the result to the one who waits for it, or the verdict that
// it waits for approval.
func (r *result) effects(b *batch, h *handoff) error {
	if h.result.effect == wire.EffectAllow {
		b.effects.receipt(r.in.Sender, r.claim.ID, h.result.index, wire.EffectAllow)
		b.tell(&h.result.told, func() wire.Outbound { return resultMessage(h, r.in.Body, r.trace) })
		return nil
	}
	if h.result.index >= b.next {
		r.later = true // the first is in this very batch
		return nil
	}
	e, err := r.g.entry(h.result.index)
	if err != nil {
		r.later = r.g.unread(r.ctx, err)
		return nil
	}
	b.effects.receipt(r.in.Sender, r.claim.ID, h.result.index, h.result.effect)
	b.effects.inbox = append(b.effects.inbox, resultVerdict(e, r.claim.ID))
	return nil
}

// resultMessage carries a result to the sender of the handoff that it answers, or to the session's opener.
func resultMessage(h *handoff, body []byte, trace string) wire.Outbound {
	target := h.answers()
	if target == nil { // only transfers lead here: it answers the first of them, which the opener sent
		for target = h; target.parent.handoff != nil; target = target.parent.handoff {
		}
	}
	id, to := target.id, target.from
	out := envelope(to, h.to, id, h.session.id, wire.KindResult, h.result.index)
	out.Header[wire.HeaderStatus] = []string{h.result.claim.Status}
	if h.result.claim.ContentType != "" {
		out.Header[wire.HeaderContentType] = []string{h.result.claim.ContentType}
	}
	if trace != "" {
		out.Header[wire.HeaderTraceparent] = []string{trace}
	}
	out.Body = body
	return out
}

func (r *result) settle(err error) {
	if err == nil && r.later {
		err = errLater
	}
	r.g.settle(r.ctx, r.in, r.refusal, err)
}

func checkLabels(labels []string) *wire.Error {
	if len(labels) > wire.MaxLabels {
		return wire.Refuse(wire.CodeMalformed, "at most 64 labels")
	}
	for _, l := range labels {
		if l == "" || len(l) > wire.MaxLabel {
			return wire.Refuse(wire.CodeMalformed, "a label has 1 to 128 bytes")
		}
	}
	return nil
}
