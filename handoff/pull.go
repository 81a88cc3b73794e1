package handoff

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/handoff-governor/handoff-governor/handoff/wire"
)

// This file reads the agent's inbox. It asks for messages by itself: the jetstream package listens for each request anew, and
// a message that comes when it does not listen comes again only when the server has waited for its acknowledgement, half a minute.
// So there is one subscription as long as the client lives, and whatever comes on it is taken.

// delivery is a message of the inbox, to be settled.
type delivery interface {
	Data() []byte
	Headers() nats.Header
	Metadata() (*jetstream.MsgMetadata, error)
	Ack() error
	Nak() error
	NakWithDelay(delay time.Duration) error
	InProgress() error
	Term() error
}

// What one request brings at most: messages of up to 2 MiB each, and bytes.
const (
	maxRead      = 64
	maxReadBytes = 16 << 20

	nextMessage = wire.InboxPrefix + ".CONSUMER.MSG.NEXT." + wire.InboxStream + "." + wire.InboxConsumer
)

// startInbox begins to read the agent's inbox, once. Guards and operators have none, so it waits until it is needed.
func (c *Client) startInbox(ctx context.Context) error {
	c.reading.Lock()
	defer c.reading.Unlock()
	if c.ctx.Err() != nil {
		return ErrClosed
	}
	if c.inbox {
		return nil
	}
	for wait := firstRetry; ; wait = min(2*wait, lastRetry) {
		try, cancel := context.WithTimeout(ctx, tryTimeout)
		_, err := c.js.Consumer(try, wire.InboxStream, wire.InboxConsumer)
		cancel()
		if err == nil {
			break
		}
		// What the server has answered stays so; anything else is the connection, or a server that is not up yet.
		if _, answered := errors.AsType[*jetstream.APIError](err); answered || !pause(ctx, wait) {
			return fmt.Errorf("handoff: the agent's inbox cannot be reached: %w", err)
		}
	}
	c.inbox = true
	c.reader.Go(c.read)
	return nil
}

// read reads the inbox until the client is closed.
func (c *Client) read() {
	// What finds the channel full is dropped: there is room for what several requests bring, and how they end.
	came := make(chan *nats.Msg, 16*maxRead)
	for c.ctx.Err() == nil {
		if err := c.readLife(came); err != nil && c.ctx.Err() == nil {
			c.log.DebugContext(c.ctx, "reading the inbox", "error", err)
			pause(c.ctx, firstRetry)
		}
	}
	// Whatever comes now goes back: nobody listens any more.
	for {
		select {
		case msg := <-came:
			if msg.Header.Get("Status") == "" {
				c.settle(msg.Nak())
			}
		default:
			return
		}
	}
}

// readLife reads the inbox as long as there is one connection. On the next one, the server must not take the requests of this one
// for heard.
func (c *Client) readLife(came chan *nats.Msg) error {
	life, err := c.pulls.wait(c.ctx)
	if err != nil {
		return err
	}
	prefix := c.nc.NewInbox() + "."
	sub, err := c.nc.ChanSubscribe(prefix+"*", came)
	if err != nil {
		return fmt.Errorf("subscribing to the agent's inbox: %w", err)
	}
	defer func() {
		if err := sub.Unsubscribe(); err == nil && life.Err() == nil {
			_ = c.nc.FlushTimeout(tryTimeout) // so that nothing that is given back comes here
		}
	}()
	for n := 0; c.ctx.Err() == nil && life.Err() == nil; n++ {
		if err := c.readSome(life, came, prefix+strconv.Itoa(n)); err != nil {
			c.log.DebugContext(c.ctx, "reading the inbox", "error", err)
			pause(c.ctx, firstRetry)
		}
	}
	return nil
}

// readSome makes one request for messages, which ends by itself or with its connection.
func (c *Client) readSome(life context.Context, came <-chan *nats.Msg, reply string) error {
	c.asking.Lock()
	defer c.asking.Unlock()
	ctx, cancel := during(c.ctx, life)
	defer cancel()
	if ctx.Err() != nil { // lost while another request was under way
		return nil
	}
	if !c.nc.IsConnected() { // lost, and the callback is on its way: the request would be sent on the next connection, unheard
		pause(ctx, firstRetry)
		return nil
	}
	_, soon := c.svid()
	wait := min(readFor, soon)
	body, err := json.Marshal(map[string]int64{"batch": maxRead, "max_bytes": maxReadBytes, "expires": int64(wait)})
	if err != nil {
		return err
	}
	if err := c.nc.PublishRequest(nextMessage, reply, body); err != nil {
		return err
	}
	// The server says how the request has ended. Where that is lost, the next one is made all the same, and in time for the
	// next SVID.
	end := time.NewTimer(wait + min(wait, time.Second))
	defer end.Stop()
	for left := maxRead; left > 0; {
		select {
		case <-ctx.Done():
			return nil
		case <-end.C:
			return nil
		case msg := <-came:
			if status := msg.Header.Get("Status"); status == "" { // the governor alone writes the headers here
				c.dispatch(pulled{msg})
				left--
			} else if msg.Subject == reply {
				if description := msg.Header.Get("Description"); description != batchCompleted {
					return endedWith(status, description)
				}
			}
		}
	}
	return nil
}

// batchCompleted is what the server says before the last message of a request that it has fulfilled.
const batchCompleted = "Batch Completed"

// endedWith is what to make of a request that the server has ended: an error where the next one had better wait.
func endedWith(status, description string) error {
	switch status {
	case "404", "408", "409": // there was none, the time is over, the bytes are
		if status != "409" || description == "Message Size Exceeds MaxBytes" {
			return nil
		}
	}
	return fmt.Errorf("the server says %s %s", status, description)
}

// pulled is a message as it comes on the subscription.
type pulled struct{ *nats.Msg }

func (p pulled) Data() []byte         { return p.Msg.Data }
func (p pulled) Headers() nats.Header { return p.Header }

func (p pulled) Metadata() (*jetstream.MsgMetadata, error) {
	m, err := p.Msg.Metadata()
	if err != nil {
		return nil, err
	}
	return &jetstream.MsgMetadata{
		Sequence: jetstream.SequencePair(m.Sequence), NumDelivered: m.NumDelivered, NumPending: m.NumPending, Timestamp: m.Timestamp,
		Stream: m.Stream, Consumer: m.Consumer, Domain: m.Domain,
	}, nil
}

func (p pulled) Ack() error                         { return p.Msg.Ack() }
func (p pulled) Nak() error                         { return p.Msg.Nak() }
func (p pulled) NakWithDelay(d time.Duration) error { return p.Msg.NakWithDelay(d) }
func (p pulled) InProgress() error                  { return p.Msg.InProgress() }
func (p pulled) Term() error                        { return p.Msg.Term() }
