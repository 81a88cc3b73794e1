package handoff

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/nats-io/nats.go"

	"github.com/handoff-governor/handoff-governor/handoff/aat"
	"github.com/handoff-governor/handoff-governor/handoff/aat/profile"
	"github.com/handoff-governor/handoff-governor/handoff/identity"
	"github.com/handoff-governor/handoff-governor/handoff/wire"
)

// OfferOption says how a task is handed on.
type OfferOption interface{ offer(*offer) }

// ResultOption says how a result is returned.
type ResultOption interface{ result(*outgoing) }

// Option is both an [OfferOption] and a [ResultOption].
type Option func(*outgoing)

func (o Option) offer(to *offer)     { o(&to.outgoing) }
func (o Option) result(to *outgoing) { o(to) }

type offerOption func(*offer)

func (o offerOption) offer(to *offer) { o(to) }

// outgoing is what offers and results have in common.
type outgoing struct {
	contentType string
	labels      []string
	trace       string
}

type offer struct {
	outgoing
	id        string
	tools     aat.Tools
	mode      string
	purpose   string
	audience  []string
	inReplyTo string
	deadline  time.Time
	lifetime  time.Duration
	hops      int // -1: as many as the parent has left
	verdict   bool
	noWait    bool
}

// ContentType is the media type of the body. Default: application/octet-stream.
func ContentType(t string) Option { return func(o *outgoing) { o.contentType = t } }

// Labels adds to the labels that the governor finds by itself; none can be taken away.
func Labels(labels ...string) Option {
	return func(o *outgoing) { o.labels = append(o.labels, labels...) }
}

// Traceparent passes a trace on (W3C Trace Context, version 00); the receiver sees it.
func Traceparent(t string) Option { return func(o *outgoing) { o.trace = t } }

// Tools is the authority that the receiver gets, no wider than the grant's own. Default: none.
func Tools(t aat.Tools) OfferOption { return offerOption(func(o *offer) { o.tools = t }) }

// Transfer hands the task on for good: the grant ends when the receiver claims, and its result answers whoever waits for
// this agent's. Default: the grant lives on, and the result comes back here.
func Transfer() OfferOption { return offerOption(func(o *offer) { o.mode = wire.ModeTransfer }) }

// Purpose is what the task is for, up to 4096 bytes. Policy cannot read it. It stands in the signed link and so in the
// ledger, for ever: what must be deletable belongs into the task.
func Purpose(p string) OfferOption { return offerOption(func(o *offer) { o.purpose = p }) }

// Audience names the guards at which the receiver, and whoever it hands on to, may use the tools.
func Audience(guards ...string) OfferOption {
	return offerOption(func(o *offer) { o.audience = append(o.audience, guards...) })
}

// InReplyTo names an earlier handoff that this one is about.
func InReplyTo(id string) OfferOption { return offerOption(func(o *offer) { o.inReplyTo = id }) }

// Lifetime is how long the receiver may work, from now, if that is shorter than the grant's own. Whole seconds.
func Lifetime(d time.Duration) OfferOption { return offerOption(func(o *offer) { o.lifetime = d }) }

// Deadline is the last moment at which the receiver may begin. Default: as long as it may work.
func Deadline(t time.Time) OfferOption { return offerOption(func(o *offer) { o.deadline = t }) }

// MaxHops is how often the receiver may hand the task on, one after another. Default: as often as the grant allows.
func MaxHops(n int) OfferOption { return offerOption(func(o *offer) { o.hops = n }) }

// WithID makes id the handoff's: a UUIDv7 with about the present time. Default: a new one.
func WithID(id string) OfferOption { return offerOption(func(o *offer) { o.id = id }) }

// AwaitVerdict has Offer wait until the governor has decided for or against, or holds it for a person's approval; see
// [Handoff.Verdict]. Without it Offer may return, once receipted, before a denial is known.
func AwaitVerdict() OfferOption { return offerOption(func(o *offer) { o.verdict = true }) }

// NoWait has Offer return once the message is queued, which is not yet accepted: call [Handoff.Await] for that.
func NoWait() OfferOption { return offerOption(func(o *offer) { o.noWait = true }) }

// Handoff is a task that was offered.
type Handoff struct {
	ID      string
	To      string // the receiver's full name; "" after [Client.Handoff]
	Session string // "" after [Client.Handoff]

	client *Client
	grant  *Grant
	mode   string
	await  bool      // for a verdict, even if it is allow
	msg    *nats.Msg // nil after [Client.Handoff]
	state  *exchange
}

// Result is what became of a task.
type Result struct {
	ID          string // of the handoff that it answers
	From        string // full name of the agent that did the work; after transfers not the one it was offered to
	Status      string // wire.StatusCompleted or wire.StatusFailed
	Body        []byte
	ContentType string
	Traceparent string
	Entry       uint64 // in the ledger
}

// Offer hands a task of up to 1 MiB to another agent: to is its full name, its SPIFFE ID, or, where it is at home in the
// own trust domain under /agent/, what follows there. It returns when the governor's ledger holds the decision.
//
// A denial is a *[Denied]. Where an error leaves open what became of the offer, such as the end of ctx, the Handoff is
// returned beside it: [Handoff.Await] sends the same again.
func (g *Grant) Offer(ctx context.Context, to string, task []byte, options ...OfferOption) (*Handoff, error) {
	o := offer{mode: wire.ModeDelegate, hops: -1, outgoing: outgoing{contentType: "application/octet-stream"}}
	for _, option := range options {
		option.offer(&o)
	}
	h, err := g.sign(ctx, to, task, &o)
	if err != nil {
		return nil, err
	}
	if o.noWait {
		_, _, err := g.client.publish(ctx, h.msg)
		return h, err
	}
	return h, h.Await(ctx)
}

// sign makes the offer link and the message that carries it.
func (g *Grant) sign(ctx context.Context, to string, task []byte, o *offer) (*Handoff, error) {
	receiver, err := identity.Expand(to, g.client.id.TrustDomain())
	if err != nil {
		return nil, wire.Refuse(wire.CodeUnknownAgent, err.Error())
	}
	if len(task) > wire.MaxBody {
		return nil, wire.Refuse(wire.CodeTooLarge, "a task has at most 1 MiB; hand on a reference to it instead")
	}
	if o.id == "" {
		if o.id, err = newID(); err != nil {
			return nil, err
		}
	}
	k, err := g.client.trusted(ctx)
	if err != nil {
		return nil, err
	}
	now := g.client.cfg.Now()
	parent := g.leaf.Claims
	expires := parent.ExpiresAt
	if o.lifetime > 0 {
		expires = min(expires, now.Add(o.lifetime).Unix())
	}
	deadline := expires
	if !o.deadline.IsZero() {
		deadline = min(deadline, o.deadline.Unix())
	}
	depth := parent.MaxDepth
	if o.hops >= 0 {
		depth = min(depth, parent.Depth+2+2*o.hops)
	}
	if depth < parent.Depth+2 {
		return nil, wire.Refuse(wire.CodeHopLimit, "the grant cannot be handed on any further; ask for more hops when the session is opened")
	}
	if o.tools == nil {
		o.tools = aat.Tools{}
	}
	salt := wire.NewSalt()
	labels := append(slices.Clone(g.claim.Labels), o.labels...)
	slices.Sort(labels)
	claim, err := json.Marshal(wire.HandoffClaim{
		Session: g.Session(), To: string(receiver), Mode: o.mode, TaskHash: wire.TaskHash(salt, task),
		ContentType: o.contentType, Purpose: o.purpose, Labels: slices.Compact(labels), Deadline: deadline, InReplyTo: o.inReplyTo,
	})
	if err != nil {
		return nil, wire.Refuse(wire.CodeMalformed, "the offer cannot be encoded: "+err.Error())
	}
	token, err := aat.Derive(g.leaf, aat.Claims{
		ID: o.id, IssuedAt: now.Unix(), ExpiresAt: expires, Holder: k.GovernorKeys[0], Audience: o.audience, MaxDepth: depth,
		Tools: o.tools, Extra: map[string]jsontext.Value{profile.ClaimName: claim},
	}, g.client.key)
	if err != nil {
		return nil, underivable(err)
	}
	header := nats.Header{
		wire.HeaderToken:       {token},
		wire.HeaderSalt:        {wire.EncodeSalt(salt)},
		wire.HeaderContentType: {o.contentType},
	}
	if o.verdict {
		header[wire.HeaderVerdict] = []string{"always"}
	}
	if o.trace != "" {
		header[wire.HeaderTraceparent] = []string{o.trace}
	}
	return &Handoff{
		ID: o.id, To: string(receiver), Session: g.Session(), client: g.client, grant: g, mode: o.mode, await: o.verdict,
		msg:   &nats.Msg{Subject: wire.OfferSubject(g.Session(), string(receiver)), Header: header, Data: task},
		state: newExchange(o.id),
	}, nil
}

// underivable words why the offer would not attenuate the grant.
func underivable(err error) error {
	step, ok := errors.AsType[*aat.StepError](err)
	if !ok {
		return wire.Refuse(wire.CodeMalformed, "the offer cannot be made: "+err.Error())
	}
	e := &wire.Error{Code: wire.CodeToken, Step: step.Step, Message: "the offer cannot be made: " + step.Reason}
	switch {
	case strings.HasPrefix(step.Step, "4p"):
		e.Code, e.Message = wire.CodeWidened, step.Reason+"; ask for no more than the grant has"
	case step.Step == "4i" || step.Step == "4l":
		e.Code, e.Message = wire.CodeExpired, "the grant has expired, or the offer would before it begins"
	case step.Step == "2a" || step.Step == "2b":
		e.Code = wire.CodeTooLarge
	}
	return e
}

// Handoff returns the handoff of that ID, which this agent offered before, perhaps in another process: to wait for its
// result.
func (c *Client) Handoff(id string) *Handoff {
	return &Handoff{ID: id, client: c, state: newExchange(id)}
}

// Await sends the offer until the governor has it in its ledger, and returns a *[Denied] where it decided against it.
func (h *Handoff) Await(ctx context.Context) error {
	if h.msg == nil {
		return errors.New("handoff: this handoff was offered elsewhere; wait for its Result")
	}
	ctx, cancel := h.client.until(ctx)
	defer cancel()
	if err := h.client.startInbox(ctx); err != nil {
		return err
	}
	defer h.client.mail.open(h.state)()
	err := h.client.send(ctx, h.msg, h.state, h.decided)
	if err == nil && h.mode == wire.ModeTransfer && h.grant.task != nil {
		h.client.tasks.handOn(h.grant.task)
	}
	return err
}

// decided says whether enough is known of the offer. The caller has locked the state.
func (h *Handoff) decided() (bool, error) {
	r, v := h.state.receipt, h.state.verdict
	switch {
	case v != nil && v.Effect == wire.EffectDeny:
		return true, denied(v)
	case v != nil || h.state.result != nil:
		return true, nil
	case r == nil:
		return false, nil
	}
	// A receipt that does not say how it was decided is all there is to wait for, unless a verdict was asked for.
	return !h.await && (r.Effect == wire.EffectAllow || r.Effect == ""), nil
}

// Verdict is the newest verdict that has come, nil where none has. For an offer that was allowed one comes only with
// [AwaitVerdict].
func (h *Handoff) Verdict() *wire.Verdict {
	var v *wire.Verdict
	h.state.look(func() { v = h.state.verdict })
	return v
}

// Result waits for the result, as long as ctx allows; a failed one is no error. Several may wait. Where there will be
// none, because the offer was denied, revoked or ran out of time, the error is a *[Denied] with the reason.
func (h *Handoff) Result(ctx context.Context) (*Result, error) {
	ctx, cancel := h.client.until(ctx)
	defer cancel()
	if err := h.client.startInbox(ctx); err != nil {
		return nil, err
	}
	done := h.client.mail.open(h.state)
	var result *Result
	err := h.client.send(ctx, h.msg, h.state, func() (bool, error) {
		switch v := h.state.verdict; {
		case h.state.result != nil:
			result = h.state.result
			return true, nil
		case v != nil && v.Effect == wire.EffectDeny:
			return true, denied(v)
		}
		return false, nil
	})
	done()
	if err != nil && ctx.Err() != nil { // what came at the last moment has left the inbox
		h.state.look(func() { result = h.state.result })
	}
	if result != nil {
		return result, nil
	}
	return nil, err
}

// send publishes msg, the same bytes each time, until it is receipted, and waits until done says that all is known. With
// a nil msg it only waits.
func (c *Client) send(ctx context.Context, msg *nats.Msg, state *exchange, done func() (bool, error)) error {
	var retry <-chan time.Time
	var lost <-chan struct{} // ends with the connection that msg was published on
	timer := time.NewTimer(0)
	defer timer.Stop()
	if msg != nil {
		retry = timer.C
	}
	var last error
	for wait := firstResend; ; {
		var known, receipted bool
		var err error
		changed := state.look(func() {
			known, err = done()
			receipted = state.receipt != nil || state.verdict != nil || state.result != nil
		})
		if known || err != nil {
			return err
		}
		if receipted {
			retry, lost = nil, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			if last != nil && !receipted {
				return fmt.Errorf("handoff: no receipt came: %w (last: %w)", context.Cause(ctx), last)
			}
			return fmt.Errorf("handoff: %w", context.Cause(ctx))
		case <-lost:
			lost = nil
			timer.Reset(0)
		case <-retry:
			var permanent bool
			permanent, lost, err = c.publish(ctx, msg)
			if permanent {
				return err
			}
			last = err
			timer.Reset(wait)
			wait = min(2*wait, lastRetry)
		}
	}
}

// publish queues a message. It says whether trying again is pointless, and returns what is closed when the connection is
// gone that the receipt would come on.
func (c *Client) publish(ctx context.Context, msg *nats.Msg) (permanent bool, lost <-chan struct{}, err error) {
	ctx, cancel := context.WithTimeout(ctx, tryTimeout)
	defer cancel()
	life, err := c.line.wait(ctx)
	if err != nil {
		return false, nil, fmt.Errorf("handoff: queueing: %w", err)
	}
	lost = life.Done()
	ctx, done := during(ctx, life)
	defer done()
	_, err = c.js.PublishMsg(ctx, &nats.Msg{Subject: msg.Subject, Header: msg.Header, Data: msg.Data})
	switch {
	case err == nil:
		return false, lost, nil
	case errors.Is(err, nats.ErrMaxPayload):
		return true, nil, wire.Refuse(wire.CodeTooLarge, "the message is larger than the server takes")
	case errors.Is(err, nats.ErrConnectionClosed):
		return true, nil, ErrClosed
	}
	return false, lost, fmt.Errorf("handoff: queueing: %w", err)
}
