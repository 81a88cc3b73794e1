package governor

import (
	"context"
	"errors"
	"slices"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/handoff-governor/handoff-governor/handoff/aat"
	"github.com/handoff-governor/handoff-governor/handoff/aat/profile"
	"github.com/handoff-governor/handoff-governor/handoff/entry"
	"github.com/handoff-governor/handoff-governor/handoff/identity"
	"github.com/handoff-governor/handoff-governor/handoff/wire"
)

// What policy is told. The shapes are documented in docs/policy.md and policies/input.schema.json. Facts are resolved
// and compared here, so that like handoffs have equal inputs: no IDs, no times, no free text.

// agentFact is an agent as policy sees it.
type agentFact struct {
	Name        string `json:"name"`
	ID          string `json:"id"`
	TrustDomain string `json:"trust_domain"`
	Path        string `json:"path"`
}

func agentOf(name string) agentFact {
	id, err := identity.Name(name).ID()
	if err != nil { // stamped names and names in entries are always valid; policy denies an agent without an ID
		return agentFact{Name: name}
	}
	return agentFact{Name: name, ID: id.String(), TrustDomain: id.TrustDomain().Name(), Path: id.Path()}
}

// principalFact is on whose behalf a session runs; the proof stays out.
type principalFact struct {
	Kind string `json:"kind"`
	Name string `json:"name"`
}

// hopFact is one handoff that led to the sender.
type hopFact struct {
	From   agentFact `json:"from"`
	To     agentFact `json:"to"`
	Tools  []string  `json:"tools"`
	Labels []string  `json:"labels"`
}

type approvalFact struct {
	By string `json:"by"`
}

type sessionInput struct {
	Agent     agentFact     `json:"agent"`
	Principal principalFact `json:"principal"`
	Tools     aat.Tools     `json:"tools"`
	Labels    []string      `json:"labels"`
	TTL       int           `json:"ttl"`
	MaxHops   int           `json:"max_hops"`
	Budget    *wire.Budget  `json:"budget"`
}

type decisionInput struct {
	Stage       string         `json:"stage"`
	Mode        string         `json:"mode"`
	Sender      agentFact      `json:"sender"`
	Receiver    agentFact      `json:"receiver"`
	Opener      agentFact      `json:"opener"`
	Principal   principalFact  `json:"principal"`
	ContentType string         `json:"content_type"`
	Tools       aat.Tools      `json:"tools"`
	Labels      []string       `json:"labels"`
	Chain       []hopFact      `json:"chain"`
	Depth       int            `json:"depth"`
	MaxHops     int            `json:"max_hops"`
	Facts       comparedFacts  `json:"facts"`
	Approvals   []approvalFact `json:"approvals"`
}

type comparedFacts struct {
	DeadlineOK bool `json:"deadline_ok"`
	BudgetOK   bool `json:"budget_ok"`
	HopsLeft   int  `json:"hops_left"`
}

type resultInput struct {
	Stage       string         `json:"stage"`
	Sender      agentFact      `json:"sender"`
	Receiver    agentFact      `json:"receiver"`
	Opener      agentFact      `json:"opener"`
	Principal   principalFact  `json:"principal"`
	Status      string         `json:"status"`
	ContentType string         `json:"content_type"`
	Labels      []string       `json:"labels"`
	Chain       []hopFact      `json:"chain"`
	Approvals   []approvalFact `json:"approvals"`
}

// offerFacts are the facts of an offer or claim that may change between looking and deciding.
type offerFacts struct {
	judge     Judge
	labels    []string // those that count
	budgetOK  bool
	approvals []string
}

func (f offerFacts) equal(g offerFacts) bool {
	return f.judge != nil && g.judge != nil && f.judge.Digest() == g.judge.Digest() && f.budgetOK == g.budgetOK &&
		slices.Equal(f.labels, g.labels) && slices.Equal(f.approvals, g.approvals)
}

// factsOf reads them from the state, which the caller has locked.
func factsOf(judge Judge, parent *grant, claim wire.HandoffClaim) offerFacts {
	s := parent.session
	return offerFacts{
		judge:    judge,
		labels:   countedLabels(judge, parent, claim.Labels),
		budgetOK: s.budget == nil || s.admitted < s.budget.Handoffs,
	}
}

// countedLabels are the labels that count for what a grant hands on: those declared, those it carries already, and those
// that the bundle's data give to any tool it holds. A declaration can only add.
func countedLabels(judge Judge, from *grant, declared []string) []string {
	labels := slices.Clone(declared)
	for tool := range from.link.Claims.Tools {
		labels = append(labels, judge.ToolLabels(tool)...)
	}
	labels = append(labels, from.labels...)
	slices.Sort(labels)
	return nonNil(slices.Compact(labels))
}

// offerQuestion is what policy is asked about an offer.
func offerQuestion(f offerFacts, parent *grant, to string, claim wire.HandoffClaim, link *profile.Link) decisionInput {
	return decisionFor(entry.StageOffer, f, parent, to, claim, link.Claims.Tools, evenDepth(link.Claims.MaxDepth))
}

// claimQuestion is what policy is asked about a claim, or about a live grant once more.
func claimQuestion(f offerFacts, h *handoff, tools aat.Tools) decisionInput {
	return decisionFor(entry.StageClaim, f, h.parent, h.to, h.claim, tools, h.maxDepth)
}

func decisionFor(
	stage string, f offerFacts, parent *grant, to string, claim wire.HandoffClaim, tools aat.Tools, depth int,
) decisionInput {
	s := parent.session
	if tools == nil {
		tools = aat.Tools{}
	}
	in := decisionInput{
		Stage: stage, Mode: claim.Mode, Sender: agentOf(parent.agent), Receiver: agentOf(to), Opener: agentOf(s.opener),
		Principal:   principalFact{Kind: s.principal.Kind, Name: s.principal.Name},
		ContentType: claim.ContentType, Tools: tools, Labels: nonNil(f.labels), Chain: chainFacts(parent),
		Depth: parent.hops, MaxHops: s.maxHops,
		Facts: comparedFacts{DeadlineOK: true, BudgetOK: f.budgetOK, HopsLeft: max(0, depth/2-parent.hops-1)},
	}
	in.Approvals = approvalFacts(f.approvals)
	return in
}

func approvalFacts(by []string) []approvalFact {
	out := make([]approvalFact, 0, len(by))
	for _, name := range by {
		out = append(out, approvalFact{By: name})
	}
	return out
}

// chainFacts are the hops from the session's opener to the grant's holder.
func chainFacts(g *grant) []hopFact {
	out := make([]hopFact, 0, g.hops)
	for _, a := range g.chain() {
		if h := a.handoff; h != nil {
			out = append(out, hopFact{
				From: agentOf(h.from), To: agentOf(h.to), Tools: toolNames(h.granted), Labels: nonNil(h.labels),
			})
		}
	}
	return out
}

func toolNames(tools aat.Tools) []string {
	names := make([]string, 0, len(tools))
	for name := range tools {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// nonNil keeps an empty set an empty array in JSON.
func nonNil(labels []string) []string {
	if labels == nil {
		return []string{}
	}
	return labels
}

// ask puts one question to the policy and returns what the ledger must hold of it. It fails closed: an error, a time-out,
// no answer or one of the wrong shape is a denial, and recorded as what it was.
func (g *Governor) ask(ctx context.Context, judge Judge, entrypoint string, input any) (*entry.Decision, wire.Answer, []wire.Reason) {
	d := &entry.Decision{Entrypoint: entrypoint, Bundle: judge.Digest(), Engine: judge.Engine()}
	fail := func(err error) (*entry.Decision, wire.Answer, []wire.Reason) {
		refusal, ok := errors.AsType[*wire.Error](err)
		if !ok {
			refusal = wire.Refuse(wire.CodePolicyError, "the policy failed; the operator's log says how")
		}
		d.Failure, d.Answer = refusal.Code, nil
		g.log.ErrorContext(ctx, "the policy gave no usable answer; denied", "entrypoint", entrypoint, "bundle", d.Bundle, "err", err)
		return d, wire.Answer{Effect: wire.EffectDeny}, []wire.Reason{{Code: refusal.Code, Message: refusal.Message}}
	}
	encoded, err := canonical(input)
	if err != nil {
		return fail(err)
	}
	d.Input = encoded
	answered, err := judge.Evaluate(context.WithoutCancel(ctx), entrypoint, encoded)
	if err != nil {
		return fail(err)
	}
	d.Answer = answered
	answer, err := wire.ParseAnswer(answered)
	if err != nil {
		return fail(wire.Refuse(wire.CodePolicyAnswer, "the policy's answer has the wrong shape: "+err.Error()))
	}
	return d, answer, ReasonsOf(answer)
}

// canonical is the RFC 8785 form of v.
func canonical(v any) (jsontext.Value, error) {
	encoded, err := json.Marshal(v, json.Deterministic(true))
	if err != nil {
		return nil, err
	}
	value := jsontext.Value(encoded)
	return value, value.Canonicalize()
}
