package governor

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/handoff-governor/handoff-governor/governor/ledger"
	"github.com/handoff-governor/handoff-governor/handoff/entry"
	"github.com/handoff-governor/handoff-governor/handoff/wire"
)

// This file is what a change of mind does: another bundle judges every live grant again, and a person's approval has a
// held decision judged again.

// Activate puts a bundle in force, as an operator's request does, and returns the index of its entry. By is the name of who
// does it. Refusals are [*wire.Error]; the bundle before stays in force then.
func (g *Governor) Activate(ctx context.Context, bundle []byte, by string) (uint64, error) {
	index, refusal := g.activate(ctx, bundle, by)
	if refusal != nil {
		return 0, refusal
	}
	return index, nil
}

// activate puts a bundle in force and judges every live grant under it. A bundle that does not compile changes nothing.
func (g *Governor) activate(ctx context.Context, bundle []byte, by string) (index uint64, refusal *wire.Error) {
	judge, err := g.cfg.Policy.Compile(bundle)
	if err != nil {
		g.log.ErrorContext(ctx, "a bundle does not compile; the one before stays in force", "by", by, "err", err)
		return 0, wire.Refuse(wire.CodeBundle, "the bundle does not compile; the one before stays in force: "+strings.TrimPrefix(err.Error(), string(wire.CodeBundle)+": "))
	}
	bundle = judge.Bytes() // what is in force, and no other spelling of it
	early := g.prejudge(ctx, judge)
	err = g.do(ctx, func(b *batch) error {
		if refusal = b.st.acts(by); refusal != nil {
			return nil
		}
		before := b.judge
		e := &entry.Entry{Kind: entry.KindBundle, Bundle: &entry.Bundle{Digest: judge.Digest(), By: by, Size: len(bundle)}}
		err := b.write(e, known{}, nil, func(r *ledger.Record) {
			r.Bundle = &ledger.Bundle{Digest: judge.Digest(), Bytes: bundle}
		})
		if err != nil {
			return err
		}
		index = e.Index
		// In force from this entry on, so that every later one names it; not in force if this batch is not written.
		b.undo = append(b.undo, func() { g.cfg.Policy.Activate(before) })
		g.cfg.Policy.Activate(judge)
		b.judge = judge
		return g.rejudge(ctx, b, early)
	})
	if err != nil {
		return 0, unavailable(err)
	}
	if refusal != nil {
		return 0, refusal
	}
	g.log.InfoContext(ctx, "bundle in force", "digest", judge.Digest(), "by", by, "entry", index)
	return index, nil
}

// judgement is what a bundle says of a live grant.
type judgement struct {
	facts    offerFacts
	decision *entry.Decision
	answer   wire.Answer
	reasons  []wire.Reason
}

// judgeSession asks again what was asked when a session was opened.
func (g *Governor) judgeSession(ctx context.Context, judge Judge, input jsontext.Value) judgement {
	decision, answer, reasons := g.ask(ctx, judge, "session", input)
	return judgement{decision: decision, answer: answer, reasons: reasons}
}

// prejudge asks about every session and every live grant before the bundle's turn comes, in parallel and out of everybody's way.
func (g *Governor) prejudge(ctx context.Context, judge Judge) map[string]judgement {
	type question struct {
		id    string
		facts offerFacts
		input decisionInput
	}
	var questions []question
	g.state.mu.RLock()
	for _, gr := range g.state.working() {
		facts := claimFacts(judge, gr.handoff)
		questions = append(questions, question{gr.id, facts, claimQuestion(facts, gr.handoff, gr.link.Claims.Tools)})
	}
	sessions := g.state.opened()
	g.state.mu.RUnlock()
	answers := parallel(questions, func(q question) judgement {
		decision, answer, reasons := g.ask(ctx, judge, "decision", q.input)
		return judgement{q.facts, decision, answer, reasons}
	})
	roots := parallel(sessions, func(s *session) judgement { return g.judgeSession(ctx, judge, s.input) })
	out := make(map[string]judgement, len(questions)+len(sessions))
	for i, q := range questions {
		out[q.id] = answers[i]
	}
	for i, s := range sessions { // a root's jti is its session's ID, and no claim's
		out[s.id] = roots[i]
	}
	return out
}

// working are the grants that somebody works under, parents before children.
func (st *State) working() []*grant {
	var out []*grant
	for _, gr := range st.byID {
		if gr.handoff != nil && gr.state == live && gr.handoff.grant == gr && gr.handoff.status == statusClaimed {
			out = append(out, gr)
		}
	}
	slices.SortFunc(out, func(x, y *grant) int { return cmp.Or(x.hops-y.hops, strings.Compare(x.id, y.id)) })
	return out
}

// opened are the sessions that are not over, in order.
func (st *State) opened() []*session {
	var out []*session
	for _, s := range st.sessions {
		if s.over == "" {
			out = append(out, s)
		}
	}
	slices.SortFunc(out, func(x, y *session) int { return strings.Compare(x.id, y.id) })
	return out
}

// rejudge judges every session and every live grant again, and revokes those that would not be granted now. What early says
// holds where no fact has changed since.
func (g *Governor) rejudge(ctx context.Context, b *batch, early map[string]judgement) error {
	for _, s := range b.st.opened() {
		j, ok := early[s.id]
		if !ok { // opened since
			b.unlocked(func() { j = g.judgeSession(ctx, b.judge, s.input) })
		}
		effect, reasons := StillAllowed(j.answer, j.reasons, s.root.link.Claims.Tools)
		if effect == wire.EffectAllow {
			continue
		}
		err := b.write(&entry.Entry{
			Kind: entry.KindRejudged, Session: s.id, From: s.opener, Grant: s.root.id,
			Rejudged: &entry.Rejudged{Effect: effect, Reasons: reasons, Decision: *j.decision},
		}, known{}, nil, nil)
		if err != nil {
			return err
		}
		if err := g.close(b, s, "policy", "the policy in force does not allow it any more", nil); err != nil {
			return err
		}
	}
	for _, gr := range b.st.working() {
		if gr.state != live || gr.usable(b.seconds()) != nil {
			continue // an entry above has revoked it
		}
		h := gr.handoff
		held := gr.link.Claims.Tools
		j, ok := early[gr.id]
		if facts := claimFacts(b.judge, h); !ok || !facts.equal(j.facts) {
			question := claimQuestion(facts, h, held)
			b.unlocked(func() {
				decision, answer, reasons := g.ask(ctx, b.judge, "decision", question)
				j = judgement{facts, decision, answer, reasons}
			})
		}
		effect, reasons := StillAllowed(j.answer, j.reasons, held)
		if effect == wire.EffectAllow {
			continue
		}
		err := b.write(&entry.Entry{
			Kind: entry.KindRejudged, Session: h.session.id, Handoff: h.id, From: h.from, To: h.to, Grant: gr.id,
			Rejudged: &entry.Rejudged{Effect: effect, Reasons: reasons, Decision: *j.decision},
		}, known{}, nil, nil)
		if err != nil {
			return err
		}
		if err := revokeClaimed(b, h, "policy", "the policy in force does not allow it any more", nil); err != nil {
			return err
		}
	}
	return nil
}

// approve answers a held decision. An approval binds that entry, and the policy judges again with the approval in its
// input: it may still say no.
func (g *Governor) approve(ctx context.Context, of uint64, by string, yes bool) (index uint64, effect string, refusal *wire.Error) {
	err := g.do(ctx, func(b *batch) error {
		if refusal = b.st.acts(by); refusal != nil {
			return nil
		}
		of, rec := b.st.waiting(of)
		if rec == nil {
			refusal = wire.Refuse(wire.CodeHandoffUnknown, fmt.Sprintf("entry %d holds nothing that waits for approval", of))
			return nil
		}
		h := rec.handoff
		if refusal = g.approvable(b, rec, by, yes); refusal != nil {
			return nil
		}
		a := &entry.Approved{Of: of, By: by, Approve: yes}
		e := &entry.Entry{
			Kind: entry.KindApproved, Session: h.session.id, Handoff: h.id, From: h.from, To: h.to, Grant: h.parent.id, Approved: a,
		}
		var body []byte
		resultID := ""
		if rec.stage == entry.StageResult {
			resultID = h.result.claim.ID
		}
		if yes {
			b.unlocked(func() { a.Decided = g.judgeApproved(ctx, b, rec, by) })
			if rec.stage == entry.StageResult {
				var err error
				if _, body, err = g.cfg.Log.Body(h.result.body); err != nil {
					refusal = wire.Refuse(wire.CodeUnavailable, "the result's bytes are not there any more: "+err.Error())
					return nil
				}
			}
		}
		var below []wire.RevokedLink
		if rec.stage == entry.StageResult && a.Decided != nil && a.Decided.Effect == wire.EffectAllow {
			below = endedLinks(h)
		}
		if err := b.write(e, known{}, nil, nil); err != nil {
			return err
		}
		index, effect = e.Index, string(h.status)
		if rec := b.st.held[e.Index]; rec != nil {
			return nil // more people are asked; whoever waits knows that already
		}
		b.effects.revoked = append(b.effects.revoked, below...)
		afterApproval(b, e, rec, resultID, body)
		return nil
	})
	if err != nil {
		return 0, "", unavailable(err)
	}
	if refusal != nil && refusal.Code == wire.CodeHandoffUnknown {
		if at, became, found := g.approvedBefore(of, by, yes); found {
			return at, became, nil
		}
	}
	return index, effect, refusal
}

// notApproved is the reason that a person's no gives.
var notApproved = wire.Reason{Code: wire.CodeApprovalDenied, Message: "a person was asked, and said no"}

// waiting finds what an entry holds, also where an approval since has not been enough.
func (st *State) waiting(of uint64) (newest uint64, rec *heldRecord) {
	if rec = st.held[of]; rec != nil {
		return of, rec
	}
	for newest, rec := range st.held {
		if slices.Contains(rec.entries, of) {
			return newest, rec
		}
	}
	return of, nil
}

// approvable tells why a person's answer comes too late or for nothing: what is approved must still be possible.
func (g *Governor) approvable(b *batch, rec *heldRecord, by string, yes bool) *wire.Error {
	h := rec.handoff
	over := wire.Refuse(wire.CodeExpired, "the handoff is over")
	switch {
	case h.session.over != "":
		return sessionOver(h.session)
	case rec.stage == entry.StageResult:
		if h.status != statusClaimed || h.grant.state != live || b.seconds() >= h.grant.expires {
			return over
		}
		if yes && len(union(h.result.labels, h.resultLabels())) > wire.MaxLabels {
			return wire.Refuse(wire.CodeTooLarge, "whoever awaits the result would carry more than 64 labels; turn it down")
		}
		if yes && slices.Contains(h.result.approvals, by) {
			return wire.Refuse(wire.CodePolicyHeld, "you have approved this already; the policy asks for somebody else, too")
		}
		return nil
	case h.status != statusHeld || h.done(b.seconds()):
		return over
	case !yes:
		return nil
	case slices.Contains(h.approvals, by):
		return wire.Refuse(wire.CodePolicyHeld, "you have approved this already; the policy asks for somebody else, too")
	}
	if rec.stage == entry.StageOffer {
		if reason := admissible(b, h.mode(), h.session, h.parent); reason != nil {
			return wire.Refuse(reason.Code, reason.Message)
		}
		return nil
	}
	return h.parent.usable(b.seconds())
}

// judgeApproved asks the policy again with one more approval.
func (g *Governor) judgeApproved(ctx context.Context, b *batch, rec *heldRecord, by string) *entry.Decided {
	h := rec.handoff
	if rec.stage == entry.StageResult {
		f := g.resultFacts(b.judge, h, h.result.claim.Labels)
		f.approvals = append(slices.Clone(h.result.approvals), by)
		decision, answer, reasons := g.ask(ctx, b.judge, "result", resultQuestion(h, f, h.result.claim))
		return &entry.Decided{
			Stage: rec.stage, Effect: answer.Effect, Reasons: reasons, Labels: f.labels, Decision: decision,
		}
	}
	approvals := append(slices.Clone(h.approvals), by)
	var f offerFacts
	var question decisionInput
	tools := h.granted
	if rec.stage == entry.StageClaim {
		f = claimFacts(b.judge, h)
		f.approvals = approvals
		question = claimQuestion(f, h, tools)
	} else {
		f = factsOf(b.judge, h.parent, h.claim)
		f.approvals = approvals
		tools = h.offer.Claims.Tools
		question = offerQuestion(f, h.parent, h.to, h.claim, h.offer)
	}
	decision, answer, reasons := g.ask(ctx, b.judge, "decision", question)
	d := &entry.Decided{Stage: rec.stage, Effect: answer.Effect, Reasons: reasons, Labels: f.labels, TaskHash: h.claim.TaskHash, Decision: decision}
	if d.Effect == wire.EffectAllow {
		var left bool
		if d.Granted, d.Reasons, left = Narrow(tools, answer.Ceiling, reasons); !left {
			d.Effect = wire.EffectDeny
			return d
		}
	}
	if d.Effect != wire.EffectDeny {
		d.Expires, d.Deadline, d.MaxDepth = terms(h.offer, h.claim, answer, b.seconds())
	}
	return d
}

// afterApproval lets out what the held message would have led to. resultID and body are those of a result.
func afterApproval(b *batch, e *entry.Entry, rec *heldRecord, resultID string, body []byte) {
	h := rec.handoff
	switch {
	case rec.stage == entry.StageResult:
		b.effects.inbox = append(b.effects.inbox, resultVerdict(e, resultID))
		if h.result == nil {
			return
		}
		b.tell(&h.result.told, func() wire.Outbound { return resultMessage(h, body, "") })
	default:
		b.effects.inbox = append(b.effects.inbox, verdict(h))
		if h.status == statusAdmitted {
			b.tell(&h.noticed, func() wire.Outbound { return notice(h, "") })
		}
	}
}
