package streams

import (
	"context"
	"fmt"
	"sync"

	"github.com/go-json-experiment/json"
	"github.com/nats-io/nats.go"

	"github.com/handoff-governor/handoff-governor/handoff/wire"
)

// waitingBytes bounds the requests of one identity that wait for a worker, and those of all.
const (
	waitingBytes    = 8 << 20
	waitingBytesAll = 256 << 20
)

// Serve hands requests to handle, several at a time, until ctx ends; then it waits for those that run. Identities
// take turns: one that floods has its own requests wait, and over its limits answered with unavailable. handle must
// Respond once, and gets a context that ends with ctx.
func (b *Bus) Serve(ctx context.Context, handle func(context.Context, wire.Request)) error {
	turns := newTurns(max(1, b.limits.Workers/4), b.limits.Requests)
	sub, err := b.answers.Subscribe(subjectCall+"*.>", func(msg *nats.Msg) {
		if msg.Reply == "" {
			return // nobody would hear the answer
		}
		req, err := parseCall(msg.Subject)
		if err != nil {
			b.log.ErrorContext(ctx, "request dropped", "error", err)
			return
		}
		req.Body = msg.Data
		req.Respond = msg.Respond
		if !turns.add(req) {
			b.refuse(ctx, req)
		}
	})
	if err != nil {
		return fmt.Errorf("streams: serving requests: %w", err)
	}
	// What the client library holds in between is bounded as well; the callback never waits, so it stays empty.
	if err := sub.SetPendingLimits(64<<10, waitingBytesAll); err != nil {
		return fmt.Errorf("streams: serving requests: %w", err)
	}

	var workers sync.WaitGroup
	for range b.limits.Workers {
		workers.Go(func() {
			for {
				req, done := turns.next()
				if done == nil {
					return
				}
				handle(ctx, req)
				done()
			}
		})
	}
	select {
	case <-ctx.Done():
		err = ctx.Err()
	case <-b.closing:
		err = errClosed
	}
	_ = sub.Unsubscribe()
	turns.end()
	workers.Wait()
	return err
}

// refuse answers a request that found its sender's queue full.
func (b *Bus) refuse(ctx context.Context, req wire.Request) {
	body, err := json.Marshal(struct {
		Error *wire.Error `json:"error"`
	}{&wire.Error{
		Code:       wire.CodeUnavailable,
		Message:    "too many requests of yours are waiting: send this one again later",
		RetryAfter: 1,
	}})
	if err == nil {
		err = req.Respond(body)
	}
	if err != nil {
		b.log.WarnContext(ctx, "refusing a request", "sender", req.Sender, "verb", req.Verb, "error", err)
	}
}

// turns is a queue in which senders take turns.
type turns struct {
	perSender int // requests of one sender that run at a time
	limit     int // requests of one sender that wait

	mu      sync.Mutex
	work    sync.Cond
	ended   bool
	bytes   int
	senders map[string]*sender // :: name → those with requests waiting or running
	ready   []*sender          // those whose turn comes, in order
}

type sender struct {
	name    string
	waiting []wire.Request
	bytes   int
	running int
	ready   bool // in turns.ready
}

func newTurns(perSender, limit int) *turns {
	t := &turns{perSender: perSender, limit: limit, senders: make(map[string]*sender)}
	t.work.L = &t.mu
	return t
}

// add queues a request, or says that there is no room for it.
func (t *turns) add(req wire.Request) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := t.senders[req.Sender]
	if s == nil {
		s = &sender{name: req.Sender}
	}
	if t.ended || len(s.waiting) >= t.limit || s.bytes+len(req.Body) > waitingBytes ||
		t.bytes+len(req.Body) > waitingBytesAll {
		return false
	}
	t.senders[req.Sender] = s
	s.waiting = append(s.waiting, req)
	s.bytes += len(req.Body)
	t.bytes += len(req.Body)
	t.line(s)
	return true
}

// line puts a sender in the line if it may have a turn. The lock is held.
func (t *turns) line(s *sender) {
	if !s.ready && len(s.waiting) > 0 && s.running < t.perSender {
		s.ready = true
		t.ready = append(t.ready, s)
		t.work.Signal()
	}
}

// next waits for the next request. The caller must call done after it; done is nil when there will be no more.
func (t *turns) next() (req wire.Request, done func()) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for len(t.ready) == 0 && !t.ended {
		t.work.Wait()
	}
	if t.ended {
		return wire.Request{}, nil
	}
	s := t.ready[0]
	t.ready[0] = nil
	t.ready = t.ready[1:]
	s.ready = false
	req = s.waiting[0]
	s.waiting[0] = wire.Request{}
	s.waiting = s.waiting[1:]
	s.bytes -= len(req.Body)
	t.bytes -= len(req.Body)
	s.running++
	t.line(s)
	return req, func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		s.running--
		t.line(s)
		if s.running == 0 && len(s.waiting) == 0 {
			delete(t.senders, s.name)
		}
	}
}

// end lets the workers go. Requests that wait are dropped: their senders time out and ask again.
func (t *turns) end() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.ended = true
	t.work.Broadcast()
}

// answerBusy answers the offers and results of throttled agents, in the form of a JetStream error.
func (b *Bus) answerBusy() error {
	_, err := b.answers.Subscribe(subjectBusy+"*", func(msg *nats.Msg) {
		if msg.Reply != "" {
			_ = msg.Respond(busyAnswer)
		}
	})
	return err
}

var busyAnswer = []byte(`{"type":"io.nats.jetstream.api.v1.pub_ack_response","error":{"code":503,"err_code":10077,` +
	`"description":"unavailable: too many of your offers and results are queued: wait for their receipts"},` +
	`"stream":"` + streamIngress + `","seq":0}`)
