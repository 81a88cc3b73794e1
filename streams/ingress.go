package streams

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/nats-io/nats.go"

	"github.com/handoff-governor/handoff-governor/handoff/wire"
)

// This file reads offers and results from their stream. It asks for them by itself, since client libraries tell the
// server's own status messages from others by their headers, and here strangers write the headers: one message with
// `Status: 409` would end the reading for good.
const (
	pullMessages = 1024
	pullBytes    = 8 << 20
	pullFor      = 5 * time.Second
	pullPulse    = time.Second            // how often the server says that it has not forgotten a request
	pullSilence  = 5 * pullPulse / 2      // after which it has: its leader is gone, or the connection was another one
	pullAgain    = 100 * time.Millisecond // after a request that brought nothing
)

// pull is a request for messages that the server has not ended yet.
type pull struct {
	reply string
	asked time.Time
	left  int // messages
}

// puller asks for messages, so that some are always on their way and never more than there is room for.
type puller struct {
	conn    *nats.Conn
	inbox   string // prefix of the reply subjects
	arrived chan *nats.Msg
	count   int
	pulls   []pull    // oldest first, which is the order in which the server serves them
	heard   time.Time // when the server sent something last
	resting time.Time // until when nothing is asked
}

func newPuller(conn *nats.Conn) (*puller, error) {
	// The client drops what finds the channel full: there is room for two requests and how they end.
	p := &puller{conn: conn, inbox: conn.NewInbox() + ".", arrived: make(chan *nats.Msg, 4*pullMessages)}
	_, err := conn.ChanSubscribe(p.inbox+"*", p.arrived)
	return p, err
}

// ask asks for more, if little is on its way.
func (p *puller) ask(now time.Time) error {
	// The server ends a request in time and says so. What it says may get lost with a connection.
	p.pulls = slices.DeleteFunc(p.pulls, func(q pull) bool {
		return now.Sub(q.asked) > pullFor+time.Second || now.Sub(q.asked) > pullSilence && now.Sub(p.heard) > pullSilence
	})
	if len(p.pulls) > 1 || len(p.pulls) == 1 && p.pulls[0].left > pullMessages/2 || now.Before(p.resting) {
		return nil
	}
	p.count++
	next := pull{reply: p.inbox + strconv.Itoa(p.count), asked: now, left: pullMessages}
	body, err := json.Marshal(map[string]int64{
		"batch": pullMessages, "max_bytes": pullBytes, "expires": int64(pullFor), "idle_heartbeat": int64(pullPulse),
	})
	if err != nil {
		return err
	}
	if err := p.conn.PublishRequest(pullIngress, next.reply, body); err != nil {
		return err
	}
	p.pulls = append(p.pulls, next)
	return nil
}

// ours tells whether a message is one of the stream. The server alone writes the subject: of a message it is the
// stream's, of a status it is the one that was asked with.
func (p *puller) ours(msg *nats.Msg) bool {
	p.heard = time.Now()
	if strings.HasPrefix(msg.Subject, subjectIngress) {
		if len(p.pulls) > 0 {
			if p.pulls[0].left--; p.pulls[0].left == 0 {
				p.pulls = p.pulls[1:]
			}
		}
		return true
	}
	if msg.Header.Get("Status") == "100" { // the pulse
		return false
	}
	p.pulls = slices.DeleteFunc(p.pulls, func(q pull) bool {
		if q.reply == msg.Subject && q.left == pullMessages {
			p.resting = p.heard.Add(pullAgain)
		}
		return q.reply == msg.Subject
	})
	return false
}

// pump moves messages from the ingress stream to those who fetch.
func (b *Bus) pump() {
	tick := time.NewTicker(pullAgain)
	defer tick.Stop()
	for {
		if b.waiting.Load() < pullBytes {
			if err := b.puller.ask(time.Now()); err != nil {
				b.log.Warn("reading offers and results", "error", err)
			}
		}
		select {
		case <-tick.C:
		case <-b.drained:
		case <-b.closing:
			return
		case msg := <-b.puller.arrived:
			if !b.puller.ours(msg) {
				continue
			}
			in, err := b.inbound(msg)
			if err != nil {
				b.log.Error("message dropped", "error", err)
				_ = b.puller.conn.Publish(msg.Reply, []byte("+TERM not an ingress message"))
				continue
			}
			b.waiting.Add(size(in))
			select {
			case b.fetched <- in:
			case <-b.closing:
				return
			}
		}
	}
}

// size is what a message that is read ahead takes, in bytes.
func size(in wire.Inbound) int64 {
	n := len(in.Body)
	for name, values := range in.Header {
		for _, value := range values {
			n += len(name) + len(value)
		}
	}
	return int64(n)
}

// inbound reads a message, with what the server wrote into its reply subject (ADR-15), the first form of which is
// $JS.ACK.<stream>.<consumer>.<deliveries>.<stream seq>.<consumer seq>.<time>.<pending>.
func (b *Bus) inbound(msg *nats.Msg) (wire.Inbound, error) {
	in, err := parseIngress(msg.Subject)
	if err != nil {
		return in, err
	}
	meta, err := msg.Metadata()
	if err != nil {
		return in, fmt.Errorf("message on %q: %w", msg.Subject, err)
	}
	settle := func(how string) error { return b.puller.conn.Publish(msg.Reply, []byte(how)) }
	in.Header = msg.Header
	in.Body = msg.Data
	in.Queued = meta.Timestamp
	in.Deliveries = int(meta.NumDelivered)
	in.Ack = func() error { return settle("+ACK") }
	in.Retry = func(after time.Duration) error { return settle(fmt.Sprintf(`-NAK {"delay": %d}`, after)) }
	in.Term = func(reason string) error { return settle("+TERM " + reason) }
	return in, nil
}
