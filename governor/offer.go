package governor

import (
	"context"
	"errors"
	"slices"
	"time"
	"unicode/utf8"

	"github.com/google/uuid"

	"github.com/handoff-governor/handoff-governor/governor/ledger"
	"github.com/handoff-governor/handoff-governor/handoff/aat"
	"github.com/handoff-governor/handoff-governor/handoff/aat/profile"
	"github.com/handoff-governor/handoff-governor/handoff/entry"
	"github.com/handoff-governor/handoff-governor/handoff/identity"
	"github.com/handoff-governor/handoff-governor/handoff/wire"
)

// This file is the way of an offer, from the stream to the receiver's inbox:
//
//	fetch ─ verify ─ decide ─ attenuate ─ sequence ─ record ─ deliver ─ settle
//
// Results travel in the same stream and batches, so that none overtakes its own task's offers; their steps are in
// result.go. Steps 1 to 4 run for a whole batch in parallel and change nothing. Step 5 is the sequencer's, which takes
// batches in the order of the stream.

// ingress moves offers and results along until ctx ends.
func (g *Governor) ingress(ctx context.Context) {
	for ctx.Err() == nil {
		batch, err := g.cfg.Bus.Fetch(ctx, maxBatch, time.Second) // 1. a batch, as the server stamped it
		if err != nil {
			g.pause(ctx, "fetching offers", err)
			continue
		}
		prepared := parallel(batch, func(in wire.Inbound) proposal {
			if in.Kind == wire.InboundResult {
				return g.prepareResult(ctx, in)
			}
			return g.prepareOffer(ctx, in)
		})
		if !g.propose(ctx, prepared...) { // 5. sequence, 6. record, 7. deliver: sequencer.go
			return
		}
	}
}

// prepareOffer does what needs no order.
func (g *Governor) prepareOffer(ctx context.Context, in wire.Inbound) *offer {
	o := &offer{g: g, ctx: ctx, in: in}
	o.verify()    // 2. one signature, and what the parent grant allows
	o.decide()    // 3. what the policy in force says of it
	o.attenuate() // 4. Meet(offer, ceiling)
	return o
}

// offer is one offer on its way.
type offer struct {
	g   *Governor
	ctx context.Context
	in  wire.Inbound

	// From verify. An offer that cannot be trusted to be the sender's, or new, is refused: a verdict without an entry.
	// One that can is decided, for better or worse.
	read    time.Time // the clock that verify went by
	id      string
	token   string
	salt    []byte
	always  bool // the sender wants a verdict for allow, too
	trace   string
	refusal *wire.Error
	repeat  bool // the ID was used before; sequence compares
	later   bool // it must be looked at again once this batch is durable
	parent  *grant
	claim   wire.HandoffClaim
	link    *profile.Link // nil unless it verified and keeps the profile

	// From decide and attenuate; sequence does them again where a fact has changed.
	facts    offerFacts
	decision *entry.Decision
	answer   wire.Answer
	effect   string
	reasons  []wire.Reason
	granted  aat.Tools
}

// deny decides against the offer.
func (o *offer) deny(reasons ...wire.Reason) {
	o.effect, o.reasons, o.granted = wire.EffectDeny, reasons, nil
}

// 2. verify: what can be known from the message, the parent grant and the clock. It sets refusal, or a denial, or
// leaves the offer open for the policy.
func (o *offer) verify() {
	var p peeked
	var unread error
	if tokens := o.in.Header[wire.HeaderToken]; len(tokens) == 1 {
		p, unread = peek(tokens[0])
		o.id = p.ID // so that a refusal can say what it is about
	}
	head, refusal := readHeaders(o.in.Header, wire.HeaderToken, wire.HeaderSalt)
	if refusal != nil {
		o.refusal = refusal
		return
	}
	o.token, o.always, o.trace = head.get(wire.HeaderToken), head.get(wire.HeaderVerdict) == "always", head.traceparent()
	if o.read, o.refusal = o.g.reading(); o.refusal != nil {
		return
	}
	switch {
	case len(o.token) > wire.MaxToken:
		o.refusal = wire.Refuse(wire.CodeTooLarge, "the token is larger than 60 KiB; ask for fewer tools or constraints")
		return
	case len(o.in.Body) > wire.MaxBody:
		o.refusal = wire.Refuse(wire.CodeTooLarge, "the task is larger than 1 MiB; hand on a reference to it instead")
		return
	}
	var err error
	if o.salt, err = wire.ParseSalt(head.get(wire.HeaderSalt)); err != nil {
		o.refusal = wire.Refuse(wire.CodeSalt, "Handoff-Salt must be 32 random bytes as base64url without padding")
		return
	}
	if !utf8.ValidString(o.in.To) { // and so no entry could hold it
		o.refusal = wire.Refuse(wire.CodeUnknownAgent, "the subject names no agent")
		return
	}
	if unread != nil {
		o.refusal = wire.Refuse(wire.CodeToken, "the token cannot be read: "+unread.Error())
		return
	}
	o.claim = p.Claim
	if o.refusal = checkID(o.id); o.refusal != nil {
		return
	}
	if used, err := o.g.used(o.id); err != nil {
		o.refusal = wire.Refuse(wire.CodeUnavailable, "the ledger cannot be read; send the same again later")
		return
	} else if used {
		o.repeat = true
		return
	}
	if o.refusal = checkIDTime(o.id, o.read); o.refusal != nil {
		return
	}
	if o.parent, o.refusal = o.g.findParent(o.in.Sender, o.in.Session, p.ParentHash); o.refusal != nil {
		return
	}
	verified, err := verifierAt(o.g.trust().verifier, o.read).Child(o.parent.link.Link, o.token)
	if err != nil {
		reason, signed := childReason(err)
		if !signed {
			o.refusal = wire.Refuse(reason.Code, reason.Message)
			return
		}
		o.deny(reason) // the holder did sign this: it is its decision to answer for
		return
	}
	if !o.g.cfg.Keys.takes(verified.Claims.Holder.Thumbprint()) {
		_, current := o.g.cfg.Keys.current()
		o.deny(wire.Reason{Code: wire.CodeGovernorKey, Message: "cnf.jwk must be the governor_jwk of your last answer",
			Nearest: "cnf.jwk with thumbprint " + current.Thumbprint()})
		return
	}
	if o.link, err = o.g.trust().profile.Child(o.parent.link, verified); err != nil {
		o.deny(profileReason(err))
		return
	}
	o.claim = o.link.Handoff
	if reason := o.checkMessage(); reason != nil {
		o.deny(*reason)
	}
}

// checkMessage compares the link with the message that brought it, and with what the governor knows.
func (o *offer) checkMessage() *wire.Reason {
	_, err := identity.ParseName(o.in.To)
	switch {
	case o.claim.Session != o.in.Session || o.claim.To != o.in.To:
		return &wire.Reason{Code: wire.CodeSubjectMismatch,
			Message: "the subject and the token name different sessions or receivers; publish on " +
				wire.OfferSubject(o.claim.Session, o.claim.To)}
	case err != nil || !o.g.cfg.KnownAgent(o.in.To):
		return &wire.Reason{Code: wire.CodeUnknownAgent, Message: "no trust domain that is known here has such an agent"}
	case o.link.Claims.Depth+1 > evenDepth(o.link.Claims.MaxDepth):
		return &wire.Reason{Code: wire.CodeHopLimit, Message: "there is no room for another hop under this grant"}
	case !wire.TaskHashMatches(o.claim.TaskHash, o.salt, o.in.Body):
		return &wire.Reason{Code: wire.CodeTaskHash, Message: "task_hash is not SHA-256(salt ‖ body) of the bytes that came"}
	case contentType(o.in.Header) != o.claim.ContentType:
		return &wire.Reason{Code: wire.CodeContentType, Message: "the Content-Type header must equal the token's content_type"}
	}
	return nil
}

// 3. decide: the policy in force, on facts that are all resolved.
func (o *offer) decide() {
	if o.refusal != nil || o.repeat || o.effect == wire.EffectDeny {
		return
	}
	o.g.state.mu.RLock()
	o.facts = factsOf(o.g.cfg.Policy.Current(), o.parent, o.claim)
	o.g.state.mu.RUnlock()
	o.judge()
}

// judged tells whether the policy was asked: what verify has denied, no policy can mend.
func (o *offer) judged() bool { return o.decision != nil }

// judge asks the policy on o.facts.
func (o *offer) judge() {
	var reasons []wire.Reason
	o.decision, o.answer, reasons = o.g.ask(o.ctx, o.facts.judge, "decision",
		offerQuestion(o.facts, o.parent, o.in.To, o.claim, o.link))
	o.effect, o.reasons = o.answer.Effect, reasons
}

// 4. attenuate: what is granted is the offer, narrowed to the policy's ceiling; never more than either.
func (o *offer) attenuate() {
	if o.decision == nil || o.effect == wire.EffectDeny {
		return
	}
	granted, reasons, left := Narrow(o.link.Claims.Tools, o.answer.Ceiling, o.reasons)
	if !left {
		o.deny(reasons...)
		return
	}
	o.granted, o.reasons = granted, reasons
}

// 5. sequence: every fact that may have changed since, against the state as it is at this offer's turn.
func (o *offer) sequence(b *batch) error {
	if o.later = b.disagrees(o.read) || o.link != nil && b.before(o.link.Claims.IssuedAt); o.later {
		return nil
	}
	if refusal := b.st.acts(o.in.Sender); refusal != nil {
		o.refusal = refusal
	}
	if o.refusal != nil {
		o.refuse(b)
		return nil
	}
	if index, used := b.st.used[o.id]; used || o.repeat || b.ids[o.id] {
		return o.again(b, index, used)
	}
	s := b.st.sessions[o.in.Session]
	parent := b.st.byID[o.parent.id]
	if s == nil || parent == nil {
		o.refusal = wire.Refuse(wire.CodeSessionClosed, "the session is over; open another")
		o.refuse(b)
		return nil
	}
	o.parent = parent
	if parent.putOff == o.id {
		parent.putOff = ""
	}
	if o.judged() {
		if reason := o.mutable(b, s, parent); reason != nil {
			o.deny(*reason)
			o.decision = nil
		} else if now := factsOf(b.judge, parent, o.claim); !now.equal(o.facts) {
			if b.judging > maxJudging {
				o.later = true
				parent.putOff, parent.putOffUntil = o.id, b.now+putOffFor.Milliseconds()
				return nil
			}
			o.facts = now // a result came in, the budget ran out or another bundle is in force: decide again
			b.unlocked(func() { o.judge(); o.attenuate() })
		}
	}
	return o.write(b, parent)
}

// mutable checks the facts that other proposals change and the policy is not asked about.
func (o *offer) mutable(b *batch, s *session, parent *grant) *wire.Reason {
	switch {
	case b.seconds() >= o.link.Claims.ExpiresAt || (o.claim.Deadline > 0 && b.seconds() > o.claim.Deadline):
		return &wire.Reason{Code: wire.CodeExpired, Message: "the offer's deadline or exp has passed; make a new offer"}
	case len(countedLabels(b.judge, parent, o.claim.Labels)) > wire.MaxLabels:
		return &wire.Reason{Code: wire.CodeTooLarge, Message: "with what the grant carries these are more than 64 labels; declare fewer"}
	case b.st.acts(o.in.To) != nil:
		return &wire.Reason{Code: wire.CodeWithdrawn, Message: "the receiver was withdrawn; hand the task to another agent"}
	}
	switch most := o.g.cfg.MaxOpen; { // what is held has its place already
	case b.st.open[path{to: o.in.To}] >= most:
		return &wire.Reason{Code: wire.CodeInboxFull, Message: "the receiver has too many open handoffs; try later"}
	case b.st.open[path{o.in.Sender, o.in.To}] >= (most+1)/2: // one sender leaves room for others
		return &wire.Reason{Code: wire.CodeInboxFull,
			Message: "the receiver has too many open handoffs of yours; wait for their results"}
	}
	return admissible(b, o.claim.Mode, s, parent)
}

// admissible checks what an offer needs at the moment of its admission, be that at its turn or at an approval.
func admissible(b *batch, mode string, s *session, parent *grant) *wire.Reason {
	if refusal := parent.usable(b.seconds()); refusal != nil {
		return &wire.Reason{Code: refusal.Code, Message: refusal.Message}
	}
	switch {
	case mode == wire.ModeTransfer && parent.delegating(b.seconds()):
		return &wire.Reason{Code: wire.CodeTransferOpen,
			Message: "delegated handoffs are still open; wait for their results, then transfer"}
	case parent.handoff != nil && parent.handoff.result != nil:
		return &wire.Reason{Code: wire.CodeParentEnded, Message: "the task's result waits for approval; nothing more can be handed on"}
	case s.budget != nil && s.admitted >= s.budget.Handoffs:
		return &wire.Reason{Code: wire.CodeBudget, Message: "the session's budget of handoffs is used up"}
	}
	return nil
}

// write turns the judgement into an entry and, once that is durable, into messages.
func (o *offer) write(b *batch, parent *grant) error {
	d := &entry.Decided{
		Stage: entry.StageOffer, Offer: o.token, Effect: o.effect, Reasons: o.reasons, Labels: o.facts.labels,
		TaskHash: o.claim.TaskHash, Decision: o.decision,
	}
	var attach func(*ledger.Record)
	if o.effect != wire.EffectDeny {
		d.Granted = o.granted
		d.Expires, d.Deadline, d.MaxDepth = terms(o.link, o.claim, o.answer, b.seconds())
		attach = func(r *ledger.Record) { r.Body = &ledger.Body{Salt: o.salt, Data: o.in.Body} }
	}
	e := &entry.Entry{
		Kind: entry.KindDecided, Session: o.in.Session, Handoff: o.id, From: o.in.Sender, To: o.in.To, Grant: parent.id, Decided: d,
	}
	if o.effect == wire.EffectDeny && !o.g.cfg.KnownAgent(o.in.To) {
		e.To = "" // the link has it; the heads of agents' entries are kept for ever, and a sender can invent names without end
	}
	if err := b.write(e, known{offer: o.link, handoff: &o.claim}, []string{o.id}, attach); err != nil {
		return err
	}
	if h := b.st.handoffs[o.id]; h != nil {
		o.effects(b, h)
		return nil
	}
	denied(b, e)
	return nil
}

// denied tells the sender of a denied offer, now or when it asks again.
func denied(b *batch, e *entry.Entry) {
	b.effects.receipt(e.From, e.Handoff, e.Index, wire.EffectDeny)
	b.effects.inbox = append(b.effects.inbox, denial(e))
}

func denial(e *entry.Entry) wire.Outbound {
	return verdictMessage(e.From, e.Session, wire.Verdict{
		ID: e.Handoff, Effect: wire.EffectDeny, Reasons: e.Decided.Reasons, Entry: &e.Index,
	})
}

// terms are the bounds of an admitted offer: its own, or the policy's where they are narrower. Times are Unix seconds.
func terms(offer *profile.Link, claim wire.HandoffClaim, answer wire.Answer, now int64) (expires, deadline int64, depth int) {
	expires, depth = offer.Claims.ExpiresAt, evenDepth(offer.Claims.MaxDepth)
	if answer.TTL > 0 {
		expires = min(expires, now+int64(answer.TTL))
	}
	if answer.MaxHops != wire.NoHopCap {
		depth = min(depth, offer.Claims.Depth+1+2*answer.MaxHops)
	}
	deadline = expires
	if claim.Deadline > 0 {
		deadline = min(claim.Deadline, expires)
	}
	return expires, deadline, depth
}

// effects of a decided offer: a receipt to its sender, a notice to its receiver, a verdict where one is due.
func (o *offer) effects(b *batch, h *handoff) {
	b.effects.receipt(h.from, h.id, h.decided, h.effect())
	if h.status == statusAdmitted {
		b.tell(&h.noticed, func() wire.Outbound { return notice(h, o.trace) })
	}
	if o.always || h.effect() != wire.EffectAllow {
		b.effects.inbox = append(b.effects.inbox, verdict(h))
	}
}

// again answers an ID that was used before: the same offer by the same sender gets the same answer; everything else is a
// conflict, which never touches the first.
func (o *offer) again(b *batch, index uint64, inState bool) error {
	if h := b.st.handoffs[o.id]; inState && h != nil {
		if h.token == o.token && h.from == o.in.Sender && wire.TaskHashMatches(h.claim.TaskHash, o.salt, o.in.Body) {
			o.effects(b, h)
			return nil
		}
		o.refusal = wire.Refuse(wire.CodeIDConflict, "this ID was used for something else; make a new one")
		o.refuse(b)
		return nil
	}
	if inState && index >= b.next {
		o.later = true // the first is in this very batch
		return nil
	}
	if !inState && !b.ids[o.id] {
		var err error
		if index, inState, err = o.g.cfg.Log.Lookup(o.id); err != nil {
			o.later = o.g.unread(o.ctx, err)
			return nil
		}
	}
	if !inState {
		o.later = true // it was used by a batch that could not be written, or is by this one
		return nil
	}
	e, err := o.g.entry(index)
	if err != nil {
		o.later = o.g.unread(o.ctx, err)
		return nil
	}
	if e.Decided != nil && e.Decided.Offer == o.token && e.From == o.in.Sender && wire.TaskHashMatches(o.claim.TaskHash, o.salt, o.in.Body) {
		if e.Decided.Effect == wire.EffectDeny {
			denied(b, e)
		} else {
			b.effects.receipt(e.From, o.id, index, e.Decided.Effect)
		}
		return nil
	}
	o.refusal = wire.Refuse(wire.CodeIDConflict, "this ID was used for something else; make a new one")
	o.refuse(b)
	return nil
}

// unread logs that the ledger could not be read. What needed it is looked at again later: a fault of the disk is no verdict,
// and does not concern the rest of the batch.
func (g *Governor) unread(ctx context.Context, err error) (later bool) {
	g.log.ErrorContext(ctx, "the ledger cannot be read; what depends on it waits", "err", err)
	return true
}

// refuse tells the sender, who alone is certain, and writes nothing: an unproved message must not grow the ledger.
func (o *offer) refuse(b *batch) {
	if o.refusal.Code == wire.CodeUnavailable {
		return // it is tried again
	}
	b.effects.inbox = append(b.effects.inbox, refusalVerdict(o.in.Sender, o.in.Session, o.id, "", o.refusal))
}

// 8. settle: the message leaves the stream once its consequences are out.
func (o *offer) settle(err error) {
	if err == nil && o.later {
		err = errLater
	}
	o.g.settle(o.ctx, o.in, o.refusal, err)
	if err == nil && o.refusal == nil && !o.repeat {
		o.g.logOffer(o.ctx, o)
	}
}

// putOffFor is how long a result waits for an offer of its own task that was put off.
const putOffFor = 2 * time.Minute

// errLater has a message delivered again: what it depends on was being written in the same batch.
var errLater = errors.New("it is looked at again once the batch is durable")

// settle takes an inbound message out of the stream, sets it aside, or leaves it for another try.
func (g *Governor) settle(ctx context.Context, in wire.Inbound, refusal *wire.Error, err error) {
	if errors.Is(err, errPoison) && in.Deliveries >= maxDeliveries {
		err = nil
		refusal = wire.Refuse(wire.CodeQuarantineUnknown, "this message could not be decided, however often it was tried; the operator has it")
	}
	switch {
	case err != nil || refusal != nil && refusal.Code == wire.CodeUnavailable:
		err = in.Retry(retryDelay(in.Deliveries))
	case refusal != nil:
		g.quarantined(in.Sender, refusal.Code)
		err = g.cfg.Bus.Quarantine(context.WithoutCancel(ctx), in, refusal.Code, refusal.Message)
	default:
		err = in.Ack()
	}
	if err != nil { // it comes again, and is answered as a repeat
		g.log.WarnContext(ctx, "a message could not be settled", "from", in.Sender, "err", err)
	}
}

// maxDeliveries is how often a message is tried that breaks its batch by itself. Then it is set aside, so that it does
// not have the state read back for ever. Trouble of the infrastructure has no such limit.
const maxDeliveries = 20

// maxRetry is the longest time after which a message is tried again.
const maxRetry = time.Minute

// retryDelay grows with each delivery.
func retryDelay(deliveries int) time.Duration {
	return min(maxRetry, 250*time.Millisecond<<min(max(deliveries-1, 0), 8))
}

// checkID accepts lower-case UUIDv7 only.
func checkID(id string) *wire.Error {
	if !profile.IsID(id) {
		return wire.Refuse(wire.CodeID, "an ID is a UUIDv7 in lower case with hyphens")
	}
	return nil
}

// checkIDTime keeps unseen IDs near the clock, so that the index of all IDs ever seen grows at its right edge only.
func checkIDTime(id string, now time.Time) *wire.Error {
	u, err := uuid.Parse(id)
	if err != nil {
		return wire.Refuse(wire.CodeID, "an ID is a UUIDv7 in lower case with hyphens")
	}
	if off := idTime(u).Sub(now).Abs(); off > wire.IDWindow*time.Second {
		return wire.Refuse(wire.CodeIDTime, "the time in this ID is more than ten minutes from the governor's clock; make a new ID")
	}
	return nil
}

// used tells whether an ID stands in the ledger or the state. What the sequencer adds meanwhile, sequence sees.
func (g *Governor) used(id string) (bool, error) {
	g.state.mu.RLock()
	_, used := g.state.used[id]
	g.state.mu.RUnlock()
	if used {
		return true, nil
	}
	_, used, err := g.cfg.Log.Lookup(id)
	return used, err
}

// findParent finds the grant whose link has the hash par_hash, and tells why the sender may not use it.
func (g *Governor) findParent(sender, session, parHash string) (*grant, *wire.Error) {
	hash, err := parseHash(parHash)
	if err != nil {
		return nil, wire.Refuse(wire.CodeToken, "par_hash must be the base64url SHA-256 of the parent's signing input")
	}
	g.state.mu.RLock()
	defer g.state.mu.RUnlock()
	parent := g.state.grants[hash]
	switch {
	case parent != nil && parent.agent != sender:
		return nil, wire.Refuse(wire.CodeParentNotYours, "par_hash names a grant of another agent")
	case parent != nil && parent.session.id != session:
		return nil, wire.Refuse(wire.CodeSubjectMismatch, "the subject names another session than the grant's")
	case parent != nil:
		return parent, nil
	case g.state.sessions[session] != nil:
		return nil, wire.Refuse(wire.CodeParentUnknown, "par_hash names no grant of this session")
	}
	return nil, g.absentSession(session)
}

// absentSession tells a session that is over from one that never was.
func (g *Governor) absentSession(id string) *wire.Error {
	if checkID(id) == nil {
		if _, found, err := g.cfg.Log.Lookup(id); err == nil && found {
			return wire.Refuse(wire.CodeSessionClosed, "the session is over; open another")
		}
	}
	return wire.Refuse(wire.CodeSessionUnknown, "there is no such session; open one first")
}

// evenDepth rounds a depth down to even: a handoff is two links.
func evenDepth(d int) int { return d &^ 1 }

// childReason words a failed step of AAT section 8, and tells whether the link was signed by the parent's holder all the
// same.
func childReason(err error) (reason wire.Reason, signed bool) {
	step, ok := errors.AsType[*aat.StepError](err)
	if !ok {
		return wire.Reason{Code: wire.CodeToken, Message: err.Error()}, false
	}
	reason = wire.Reason{Code: wire.CodeToken, Message: step.Error()}
	switch {
	case slices.Contains([]string{"2a", "2b", "2c", "4a", "4b"}, step.Step):
		return reason, false
	case step.Step == "4p1" || step.Step == "4p2" || step.Step == "4p3" || step.Step == "4p4":
		reason.Code = wire.CodeWidened
		if wide, ok := errors.AsType[*aat.WidenedError](err); ok {
			reason.Tool, reason.Argument = wide.Tool, wide.Argument
		}
	case slices.Contains([]string{"4d", "4e", "4f", "4g", "4m"}, step.Step):
		reason.Code = wire.CodeHopLimit
	case slices.Contains([]string{"4h", "4i", "4j", "4k", "4l"}, step.Step):
		reason.Code = wire.CodeExpired
	}
	return reason, true
}

// profileReason words a breach of the governor profile.
func profileReason(err error) wire.Reason {
	if p, ok := errors.AsType[*wire.Error](err); ok {
		return wire.Reason{Code: p.Code, Message: p.Message}
	}
	return wire.Reason{Code: wire.CodeProfile, Message: err.Error()}
}
