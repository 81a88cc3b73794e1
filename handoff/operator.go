package handoff

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"time"

	"github.com/go-json-experiment/json"

	"github.com/handoff-governor/handoff-governor/handoff/wire"
)

// Operator is a person's or a program's hand on the governor: it reads the ledger, closes sessions, revokes, approves and
// changes policy. It has no inbox and no process key, and cannot hold authority. It is safe for use by several goroutines
// at once.
//
// Refusals are [*wire.Error]. A request that gets no answer is sent again until ctx ends, so give ctx a deadline.
type Operator struct{ client *Client }

// ConnectOperator connects as an operator, whose SPIFFE ID is below /operator/ in the governor's trust domain. Of Config,
// Key, MaxTasks and Prefetch mean nothing here.
func ConnectOperator(ctx context.Context, cfg Config) (_ *Operator, err error) {
	if cfg.URL == "" {
		return nil, errors.New("handoff: Config.URL is missing")
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	c := &Client{cfg: cfg, log: cfg.Logger}
	c.ctx, c.stop = context.WithCancelCause(context.Background())
	defer func() {
		if err != nil {
			c.Close()
		}
	}()
	if err := c.identify(ctx); err != nil {
		return nil, err
	}
	if err := c.connect(ctx); err != nil {
		return nil, err
	}
	if source, ok := c.cfg.Source.(interface{ Updated() <-chan struct{} }); ok {
		c.work.Go(func() { c.rotate(source.Updated()) })
	}
	return &Operator{client: c}, nil
}

// Name is the operator's full name, which the ledger records beside what is done here.
func (o *Operator) Name() string { return string(o.client.name) }

// Close disconnects. Closing twice is no error.
func (o *Operator) Close() error { return o.client.Close() }

// Health says how the governor is.
func (o *Operator) Health(ctx context.Context) (*wire.Health, error) {
	a, err := o.ask(ctx, wire.VerbHealth, wire.OperatorRequest{})
	if err != nil {
		return nil, err
	}
	if a.Health == nil {
		return nil, errors.New("handoff: the governor's answer says nothing of its health")
	}
	return a.Health, nil
}

// Sessions are all that the governor still knows without its ledger, newest first: those that are open, and those that are
// over and would not have expired yet.
func (o *Operator) Sessions(ctx context.Context) iter.Seq2[wire.SessionStatus, error] {
	return func(yield func(wire.SessionStatus, error) bool) {
		before := ""
		for {
			a, err := o.ask(ctx, wire.VerbSessionList, wire.OperatorRequest{Session: before})
			if err != nil {
				yield(wire.SessionStatus{}, err)
				return
			}
			for _, s := range a.Sessions {
				if !yield(s, nil) {
					return
				}
			}
			if !a.More {
				return
			}
			if len(a.Sessions) == 0 { // asked again, it would say the same
				yield(wire.SessionStatus{}, errors.New("handoff: the governor has more sessions and names none; list them again"))
				return
			}
			before = a.Sessions[len(a.Sessions)-1].Session
		}
	}
}

// CloseSession ends a session and revokes everything under it. Closing one that is over is no error.
func (o *Operator) CloseSession(ctx context.Context, id, reason string) (*wire.SessionStatus, error) {
	return request(ctx, o, wire.VerbSessionClose, wire.OperatorRequest{Session: id, Reason: reason},
		func(a *wire.SessionStatus) *wire.Error { return a.Error })
}

// Entries yields the ledger's encoded entries from an index on, to the last there is when it gets there.
func (o *Operator) Entries(ctx context.Context, from uint64) iter.Seq2[[]byte, error] {
	return func(yield func([]byte, error) bool) {
		for next := from; ; {
			page, err := o.ask(ctx, wire.VerbChainEntries, wire.OperatorRequest{From: next})
			if err != nil {
				yield(nil, err)
				return
			}
			if len(page.Entries) == 0 {
				return
			}
			for _, encoded := range page.Entries {
				if !yield(encoded, nil) {
					return
				}
			}
			if next += uint64(len(page.Entries)); next >= page.Size {
				return
			}
		}
	}
}

// Session yields the encoded entries of one session, newest first, and nothing for one that the ledger does not know.
func (o *Operator) Session(ctx context.Context, id string) iter.Seq2[[]byte, error] {
	return func(yield func([]byte, error) bool) {
		q := wire.OperatorRequest{Session: id}
		for {
			page, err := o.ask(ctx, wire.VerbChainEntries, q)
			if err != nil {
				yield(nil, err)
				return
			}
			for _, encoded := range page.Entries {
				if !yield(encoded, nil) {
					return
				}
			}
			if q.From = page.Next; q.From == 0 {
				return
			}
		}
	}
}

// Checkpoint returns the ledger's newest signed checkpoint.
func (o *Operator) Checkpoint(ctx context.Context) ([]byte, error) {
	a, err := o.ask(ctx, wire.VerbCheckpoint, wire.OperatorRequest{})
	if err != nil {
		return nil, err
	}
	return []byte(a.Checkpoint), nil
}

// Body returns the salt and the bytes kept beside an entry: a task, a result or an objective.
func (o *Operator) Body(ctx context.Context, index uint64) (salt, body []byte, err error) {
	a, err := o.ask(ctx, wire.VerbBody, wire.OperatorRequest{Index: index})
	if err != nil {
		return nil, nil, err
	}
	return a.Salt, a.Body, nil
}

// Bundle returns the bytes of a policy bundle that was in force.
func (o *Operator) Bundle(ctx context.Context, digest string) ([]byte, error) {
	a, err := o.ask(ctx, wire.VerbBundle, wire.OperatorRequest{Digest: digest})
	if err != nil {
		return nil, err
	}
	return a.Bundle, nil
}

// Activate puts a policy bundle in force, and has every live grant judged again under it. It returns the entry that says
// so. After an error the bundle before it is still in force.
func (o *Operator) Activate(ctx context.Context, bundle []byte) (entry uint64, err error) {
	a, err := o.ask(ctx, wire.VerbBundleActivate, wire.OperatorRequest{Bundle: bundle})
	if err != nil {
		return 0, err
	}
	return a.Entry, nil
}

// Revoke withdraws a grant and everything below it: id is a handoff's, a link's jti, or a session's. The reason is for
// the record and must be given.
func (o *Operator) Revoke(ctx context.Context, id, reason string) (entry uint64, err error) {
	a, err := o.ask(ctx, wire.VerbRevoke, wire.OperatorRequest{ID: id, Reason: reason})
	if err != nil {
		return 0, err
	}
	return a.Entry, nil
}

// Withdraw cuts an identity off by its full name, whoever issues its SVIDs: its connections end, all that it holds is
// revoked, and it gets in no more until [Operator.Restore]. Cut is false where a server could not be reached that may have
// a connection of it; the governor refuses it all the same, and tries again every second. What is withdrawn already is
// refused with [wire.CodeWithdrawn], the operator itself with [wire.CodeForbidden]. The reason may be empty, and has at
// most [wire.MaxPurpose] bytes.
func (o *Operator) Withdraw(ctx context.Context, name, reason string) (entry uint64, cut bool, err error) {
	a, err := o.ask(ctx, wire.VerbIdentityWithdraw, wire.OperatorRequest{Name: name, Reason: reason})
	if err != nil {
		return 0, false, err
	}
	return a.Entry, a.Effect == wire.EffectWithdrawn, nil
}

// Restore lets an identity in again that was withdrawn. It gets back nothing of what it had. What is not withdrawn is
// refused with [wire.CodeNotWithdrawn].
func (o *Operator) Restore(ctx context.Context, name, reason string) (entry uint64, err error) {
	a, err := o.ask(ctx, wire.VerbIdentityRestore, wire.OperatorRequest{Name: name, Reason: reason})
	if err != nil {
		return 0, err
	}
	return a.Entry, nil
}

// Withdrawn are the identities that are withdrawn, by name.
func (o *Operator) Withdrawn(ctx context.Context) iter.Seq2[wire.Withdrawn, error] {
	return func(yield func(wire.Withdrawn, error) bool) {
		for after := ""; ; {
			a, err := o.ask(ctx, wire.VerbIdentityList, wire.OperatorRequest{Name: after})
			if err != nil {
				yield(wire.Withdrawn{}, err)
				return
			}
			for _, i := range a.Identities {
				if !yield(i, nil) {
					return
				}
			}
			if !a.More {
				return
			}
			if len(a.Identities) == 0 { // asked again, it would say the same
				yield(wire.Withdrawn{}, errors.New("handoff: the governor has more identities and names none; list them again"))
				return
			}
			after = a.Identities[len(a.Identities)-1].Name
		}
	}
}

// Quarantined are the messages that were refused and kept, oldest first, without headers and bodies.
func (o *Operator) Quarantined(ctx context.Context) iter.Seq2[wire.Quarantined, error] {
	return func(yield func(wire.Quarantined, error) bool) {
		for from := uint64(0); ; {
			a, err := o.ask(ctx, wire.VerbQuarantineList, wire.OperatorRequest{From: from})
			if err != nil {
				yield(wire.Quarantined{}, err)
				return
			}
			for _, q := range a.Quarantined {
				if !yield(q, nil) {
					return
				}
				from = q.Number + 1
			}
			if !a.More || len(a.Quarantined) == 0 {
				return
			}
		}
	}
}

// QuarantinedMessage is one of them, with headers and body. Where there is none of that number, it is refused with
// [wire.CodeNotQuarantined].
func (o *Operator) QuarantinedMessage(ctx context.Context, number uint64) (*wire.Quarantined, error) {
	a, err := o.ask(ctx, wire.VerbQuarantineShow, wire.OperatorRequest{Index: number})
	if err != nil {
		return nil, err
	}
	if len(a.Quarantined) != 1 {
		return nil, errors.New("handoff: the governor's answer has no message")
	}
	return &a.Quarantined[0], nil
}

// RetryQuarantined has one of them judged again, as if its sender had sent it once more. What was kept in part is refused with
// [wire.CodeQuarantineCut].
func (o *Operator) RetryQuarantined(ctx context.Context, number uint64) error {
	_, err := o.ask(ctx, wire.VerbQuarantineRetry, wire.OperatorRequest{Index: number})
	return err
}

// DropQuarantined deletes one of them.
func (o *Operator) DropQuarantined(ctx context.Context, number uint64) error {
	_, err := o.ask(ctx, wire.VerbQuarantineDrop, wire.OperatorRequest{Index: number})
	return err
}

// RotateKey has the governor's key, or the issuer's where it is in the governor's process, replaced by a new one: of is
// "governor" or "issuer". With stolen, those there are end at once, and with them whatever was begun under them.
// While the last rotation is not over it is refused with [wire.CodeRotating].
func (o *Operator) RotateKey(ctx context.Context, of string, stolen bool, reason string) (entry uint64, err error) {
	a, err := o.ask(ctx, wire.VerbKeysRotate, wire.OperatorRequest{Of: of, Stolen: stolen, Reason: reason})
	if err != nil {
		return 0, err
	}
	return a.Entry, nil
}

// KeyTimes are the keys of the governor and the issuer, the newest of each first, with their times.
func (o *Operator) KeyTimes(ctx context.Context) ([]wire.KeyTimes, error) {
	a, err := o.ask(ctx, wire.VerbKeysList, wire.OperatorRequest{})
	if err != nil {
		return nil, err
	}
	return a.Keys, nil
}

// Approve answers the decision to hold that stands at an index of the ledger. The policy judges again, with the approval
// in its input, and may still say no: status says what the handoff is after that, such as "admitted" or "denied".
func (o *Operator) Approve(ctx context.Context, held uint64, approve bool) (entry uint64, status string, err error) {
	a, err := o.ask(ctx, wire.VerbApprove, wire.OperatorRequest{Index: held, Approve: approve})
	if err != nil {
		return 0, "", err
	}
	return a.Entry, a.Effect, nil
}

func (o *Operator) ask(ctx context.Context, verb string, q wire.OperatorRequest) (*wire.OperatorResponse, error) {
	return request(ctx, o, verb, q, func(a *wire.OperatorResponse) *wire.Error { return a.Error })
}

func request[T any](
	ctx context.Context, o *Operator, verb string, q wire.OperatorRequest, refusal func(*T) *wire.Error,
) (*T, error) {
	body, err := json.Marshal(q)
	if err != nil {
		return nil, fmt.Errorf("handoff: encoding the request: %w", err)
	}
	return call(ctx, o.client, wire.OperatorSubject(verb), func() ([]byte, error) { return body, nil }, refusal)
}
