package handoff

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/handoff-governor/handoff-governor/handoff/wire"
)

// This file is for programs that run one after another as one process of their agent, such as shell commands: they keep
// their key in a file ([LoadKey]) and their grants' chains beside it.

// Restore makes a grant of the chain that [Grant.Chain] returned to an earlier program with the same process key. Whether
// the grant still lives, the governor says when it is used. To go on with a claimed task, use [Client.Claim] instead.
func (c *Client) Restore(ctx context.Context, chain []string) (*Grant, error) {
	if len(chain) == 0 {
		return nil, errors.New("handoff: there is no chain to restore a grant from")
	}
	g, err := c.grant(ctx, chain)
	if err != nil {
		return nil, fmt.Errorf("handoff: restoring a grant: %w", err)
	}
	return g, nil
}

// Waiting is a message that lies in the agent's inbox.
type Waiting struct {
	Kind        string // wire.KindTask, wire.KindResult or wire.KindVerdict
	ID          string // of the handoff
	Session     string
	From        string // full name of the sender; "" for a verdict
	ContentType string
	Status      string        // of a result
	Verdict     *wire.Verdict // of a verdict
	Size        int           // bytes of the body; 0 for a task, whose body comes with its claim
	Entry       *uint64       // in the ledger; nil where nothing was recorded: see [Denied]
}

// Peek looks at up to limit messages that lie in the agent's inbox, and leaves them there; where there are none it waits
// for one. What another program has been given and has not settled yet is not among them, for up to half a minute. Do not
// use it beside [Client.Receive] in the same process: they would take turns.
func (c *Client) Peek(ctx context.Context, limit int, wait time.Duration) ([]Waiting, error) {
	ctx, cancel := c.until(ctx)
	defer cancel()
	consumer, err := c.js.Consumer(ctx, wire.InboxStream, wire.InboxConsumer)
	if err != nil {
		return nil, fmt.Errorf("handoff: the agent's inbox cannot be reached: %w", err)
	}
	var list []Waiting
	var fetched []jetstream.Msg
	defer func() {
		for _, msg := range fetched { // at the end, or the same would be fetched twice
			c.settle(msg.NakWithDelay(time.Millisecond))
		}
	}()
	look := func(batch jetstream.MessageBatch, err error) error {
		if err != nil {
			return err
		}
		for msg := range batch.Messages() {
			fetched = append(fetched, msg)
			in, err := parseInbox(msg)
			if err != nil {
				c.log.WarnContext(ctx, "an inbox message cannot be read", "error", err)
				continue
			}
			var entry *uint64
			if msg.Headers().Get(wire.HeaderEntry) != "" {
				entry = &in.entry
			}
			list = append(list, Waiting{
				Kind: in.kind, ID: in.id, Session: in.session, From: in.from, ContentType: in.contentType, Status: in.status,
				Verdict: in.verdict, Size: len(msg.Data()), Entry: entry,
			})
		}
		return batch.Error()
	}
	err = look(consumer.FetchNoWait(limit))
	if err == nil && len(list) == 0 && wait > 0 {
		err = look(consumer.Fetch(1, jetstream.FetchMaxWait(wait)))
	}
	if err != nil {
		return list, fmt.Errorf("handoff: reading the agent's inbox: %w", err)
	}
	return list, nil
}
