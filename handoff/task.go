package handoff

import (
	"bytes"
	"context"
	"errors"
	"iter"
	"slices"
	"sync"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/handoff-governor/handoff-governor/handoff/aat/jws"
	"github.com/handoff-governor/handoff-governor/handoff/wire"
)

// Task is a task that this process has claimed, with the grant to work on it. It is this process's alone while the
// process lives and keeps in touch with the governor: the client renews the lease until the task is completed, failed,
// handed on or over.
type Task struct {
	*Grant

	ID          string // of the handoff
	From        string // full name of the agent that offered it
	Mode        string // wire.ModeDelegate or wire.ModeTransfer
	Purpose     string
	Labels      []string // those that count, not only what the sender declared
	ContentType string
	Traceparent string
	Body        []byte
	Entry       uint64 // of the claim, in the ledger

	ctx  context.Context
	stop context.CancelCauseFunc

	mu     sync.Mutex
	notice *inboxMessage // nil where the task was claimed by its ID
	sent   *sentResult   // once a result was sent
	state  *exchange
}

// sentResult is the one result that is ever sent for a task, however often.
type sentResult struct {
	token wire.ResultToken
	body  []byte
	msg   *nats.Msg
}

// ErrDone is the cause of a [Task.Context] that ended because the result was accepted.
var ErrDone = errors.New("the task is done")

// Context ends when the work should stop: the result was accepted, the lifetime is over, the task was revoked or taken
// over, the receiver of a transfer has claimed, or the client is closed. [context.Cause] says why: [ErrDone],
// [context.DeadlineExceeded], a *[wire.Error] or [ErrClosed].
func (t *Task) Context() context.Context { return t.ctx }

// Receive returns the next task of the agent's inbox once this process holds it. Tasks that the policy does not let go
// any more, that have run out of time or that another process works on are passed over. What came to this process and
// was not asked for goes back to the inbox, for others of the agent, five seconds after the last Receive.
func (c *Client) Receive(ctx context.Context) (*Task, error) {
	ctx, cancel := c.until(ctx)
	defer cancel()
	if err := c.startInbox(ctx); err != nil {
		return nil, err
	}
	return c.tasks.next(ctx)
}

// Tasks receives tasks until ctx ends or the loop does. The last pair has an error and no task.
func (c *Client) Tasks(ctx context.Context) iter.Seq2[*Task, error] {
	return func(yield func(*Task, error) bool) {
		for {
			t, err := c.Receive(ctx)
			if !yield(t, err) || err != nil {
				return
			}
		}
	}
}

// Claim claims a task by its ID, without a notice: to go on with one that this process, by the same key, has claimed
// before. A refusal is a *[Denied] where there are reasons, else a *[wire.Error].
func (c *Client) Claim(ctx context.Context, session, id string) (*Task, error) {
	ctx, cancel := c.until(ctx)
	defer cancel()
	if t := c.tasks.find(id); t != nil {
		return t, nil
	}
	for wait := firstRetry; ; wait = min(2*wait, lastRetry) {
		answers, err := c.claim(ctx, session, []string{id}, false)
		if err != nil {
			return nil, err
		}
		a := answers[0]
		switch {
		case a.Error == nil:
			return c.tasks.begin(ctx, a, nil)
		case a.Error.Code != wire.CodeUnavailable:
			return nil, refusedWith(id, a.Error, a.Reasons, a.Entry)
		case !pause(ctx, wait):
			return nil, errors.Join(context.Cause(ctx), a.Error)
		}
	}
}

// Complete returns the result of the task, of up to 1 MiB, to whoever waits for it, and ends the grant. It returns once
// the result is in the governor's ledger. A result that the policy denies, or holds for a person's approval, is a
// *[Denied]; a held one has been sent all the same.
//
// There is one result of a task. Where an error leaves open what became of it, such as the end of ctx, or it was held,
// call Complete again with the same body and options: it returns what has become of it by then.
func (t *Task) Complete(ctx context.Context, body []byte, options ...ResultOption) error {
	return t.finish(ctx, wire.StatusCompleted, body, options)
}

// Fail says that the task cannot be done, and why. Otherwise it is as [Task.Complete].
func (t *Task) Fail(ctx context.Context, reason string, options ...ResultOption) error {
	options = append([]ResultOption{ContentType("text/plain; charset=utf-8")}, options...)
	return t.finish(ctx, wire.StatusFailed, []byte(reason), options)
}

func (t *Task) finish(ctx context.Context, status string, body []byte, options []ResultOption) error {
	c := t.client
	ctx, cancel := c.until(ctx)
	defer cancel()
	if err := c.startInbox(ctx); err != nil {
		return err
	}
	sent, state, err := t.seal(ctx, status, body, options)
	if err != nil {
		return err
	}
	defer c.mail.open(state)()
	err = c.send(ctx, sent.msg, state, func() (bool, error) {
		switch r, v := state.receipt, state.verdict; {
		case v != nil && v.Effect != wire.EffectAllow:
			return true, denied(v)
		case v != nil:
			return true, nil
		default:
			return r != nil && (r.Effect == wire.EffectAllow || r.Effect == ""), nil
		}
	})
	d, refused := errors.AsType[*Denied](err)
	switch {
	case err == nil:
		c.tasks.end(t, ErrDone)
	case refused && d.Entry == nil && slices.ContainsFunc(d.Reasons, func(r wire.Reason) bool { return over(r.Code) }):
		c.tasks.end(t, err)
	case refused && d.Effect == wire.EffectDeny: // the task is still there, for another result
		t.unseal(sent)
	case refused: // held, by now: the next call asks again
		t.mu.Lock()
		if t.sent == sent {
			t.state = newExchange(state.id)
		}
		t.mu.Unlock()
	}
	return err
}

// over says whether a code means that the task is no longer this process's to work on.
func over(code wire.Code) bool {
	switch code {
	case wire.CodeSuperseded, wire.CodeExpired, wire.CodeRevoked, wire.CodeResultConflict, wire.CodeHandoffUnknown,
		wire.CodeNotAdmitted, wire.CodeParentEnded, wire.CodeParentRevoked, wire.CodeSessionClosed, wire.CodeSessionExpired,
		wire.CodeSessionUnknown, wire.CodeKeyBound, wire.CodePolicyDenied:
		return true
	}
	return false
}

// seal makes the result's token and message, once: a second result would be refused.
func (t *Task) seal(ctx context.Context, status string, body []byte, options []ResultOption) (*sentResult, *exchange, error) {
	o := outgoing{contentType: "application/octet-stream"}
	for _, option := range options {
		option.result(&o)
	}
	slices.Sort(o.labels)
	o.labels = slices.Compact(o.labels)
	t.mu.Lock()
	defer t.mu.Unlock()
	if s := t.sent; s != nil {
		if s.token.Status != status || s.token.ContentType != o.contentType || !slices.Equal(s.token.Labels, o.labels) ||
			!bytes.Equal(s.body, body) {
			return nil, nil, wire.Refuse(wire.CodeResultConflict, "another result of this task was sent already; send that one again")
		}
		return s, t.state, nil
	}
	if len(body) > wire.MaxBody {
		return nil, nil, wire.Refuse(wire.CodeTooLarge, "a result has at most 1 MiB; return a reference to it instead")
	}
	id, err := newID()
	if err != nil {
		return nil, nil, err
	}
	k, err := t.client.trusted(ctx)
	if err != nil {
		return nil, nil, err
	}
	salt := wire.NewSalt()
	s := &sentResult{body: slices.Clone(body), token: wire.ResultToken{
		ID: id, IssuedAt: t.client.cfg.Now().Unix(), Audience: k.Governor, Handoff: t.ID, Status: status,
		BodyHash: wire.TaskHash(salt, body), ContentType: o.contentType, Labels: o.labels,
	}}
	token, err := jws.SignJSON(wire.TypeResult, s.token, t.client.key)
	if err != nil {
		return nil, nil, err
	}
	header := nats.Header{
		wire.HeaderID:          {t.ID},
		wire.HeaderToken:       {token},
		wire.HeaderSalt:        {wire.EncodeSalt(salt)},
		wire.HeaderContentType: {o.contentType},
	}
	if o.trace == "" {
		o.trace = t.Traceparent
	}
	if o.trace != "" {
		header[wire.HeaderTraceparent] = []string{o.trace}
	}
	s.msg = &nats.Msg{Subject: wire.ResultSubject(t.Session()), Header: header, Data: s.body}
	t.sent, t.state = s, newExchange(id)
	return s, t.state, nil
}

func (t *Task) unseal(s *sentResult) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.sent == s {
		t.sent, t.state = nil, nil
	}
}

// announced is the newest delivery of the task's notice, nil where there is none to settle.
func (t *Task) announced() *inboxMessage {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.notice
}

// noticed takes another delivery of the notice, and returns the one before.
func (t *Task) noticed(in *inboxMessage) (old *inboxMessage) {
	t.mu.Lock()
	defer t.mu.Unlock()
	old, t.notice = t.notice, in
	return old
}

// completed says whether a result was sent from here.
func (t *Task) completed() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.sent != nil
}

// expireAt ends ctx at the end of the grant, by the given clock.
func expireAt(ctx context.Context, at time.Time, now time.Time) (context.Context, context.CancelFunc) {
	return context.WithTimeout(ctx, at.Sub(now))
}
