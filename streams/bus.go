package streams

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/handoff-governor/handoff-governor/handoff/wire"
)

// Bus is the governor's access to the streams. Its methods may be called concurrently.
type Bus struct {
	limits Limits
	log    *slog.Logger
	shares shares

	// Reading, writing, answering and telling have a connection each: a pipe has one reader and one writer, and neither
	// large messages nor answers that go to many must keep a revocation waiting.
	conns   []*nats.Conn
	writer  jetstream.JetStream
	inboxes jetstream.Stream
	newest  atomic.Uint64 // number of a message that was stored in an inbox; none was lower that came after it
	behind  atomic.Bool   // the server that was asked last knew of less
	answers *nats.Conn
	feed    *nats.Conn
	puller  *puller
	fetched chan wire.Inbound
	waiting atomic.Int64  // bytes in fetched
	drained chan struct{} // has an item when something was taken from it
	pumping sync.WaitGroup
	closing chan struct{}
	shut    func()
	trouble func() error // nil: nobody knows
}

// newBus connects the governor and makes its streams, or brings older ones up to the limits of today.
func newBus(ctx context.Context, limits Limits, replicas int, log *slog.Logger, connect func(name string) (*nats.Conn, error)) (*Bus, error) {
	b := &Bus{
		limits:  limits,
		log:     log,
		shares:  shares{limit: limits.InboxShare, known: map[string]bool{}, inboxes: map[string]*share{}},
		fetched: make(chan wire.Inbound, pullMessages),
		drained: make(chan struct{}, 1),
		closing: make(chan struct{}),
	}
	b.shut = sync.OnceFunc(func() { close(b.closing) })
	for _, name := range []string{"governor-reader", "governor-writer", "governor-answers", "governor-feed"} {
		conn, err := connect(name)
		if err != nil {
			b.close()
			return nil, fmt.Errorf("connecting the governor: %w", err)
		}
		b.conns = append(b.conns, conn)
	}
	if err := b.open(ctx, replicas); err != nil {
		b.close()
		return nil, err
	}
	return b, nil
}

func (b *Bus) open(ctx context.Context, replicas int) (err error) {
	b.answers, b.feed = b.conns[2], b.conns[3]
	if err := b.answerBusy(); err != nil {
		return err
	}
	if b.writer, err = jetstream.New(b.conns[1], jetstream.WithPublishAsyncMaxPending(8192)); err != nil {
		return err
	}
	for _, config := range streamConfigs(b.limits, replicas) {
		if err := b.makeStream(ctx, config); err != nil {
			return fmt.Errorf("making stream %s: %w", config.Name, err)
		}
	}
	if b.inboxes, err = b.writer.Stream(ctx, streamInbox); err != nil {
		return fmt.Errorf("opening stream %s: %w", streamInbox, err)
	}
	if err := b.shares.recall(ctx, b.inboxes); err != nil {
		return fmt.Errorf("counting what is in stream %s: %w", streamInbox, err)
	}
	reader, err := jetstream.New(b.conns[0])
	if err != nil {
		return err
	}
	// The consumer is made anew: what an earlier process fetched and did not settle then comes at once and in order,
	// not when AckWait is over and behind newer messages.
	if err := reader.DeleteConsumer(ctx, streamIngress, consumerIngress); err != nil &&
		!errors.Is(err, jetstream.ErrConsumerNotFound) {
		return fmt.Errorf("removing the old consumer of %s: %w", streamIngress, err)
	}
	if _, err := reader.CreateConsumer(ctx, streamIngress, ingressConsumer(b.limits)); err != nil {
		return fmt.Errorf("making the consumer of %s: %w", streamIngress, err)
	}
	if b.puller, err = newPuller(b.conns[0]); err != nil {
		return fmt.Errorf("reading %s: %w", streamIngress, err)
	}
	b.pumping.Go(b.pump)
	return nil
}

// A cluster that has just been started has no leader for its streams yet, or does not know all of its servers.
const (
	streamsWithin = time.Minute
	streamTry     = 2 * time.Second
	streamPause   = 100 * time.Millisecond
)

// makeStream makes a stream, or brings it up to date, as soon as the servers can.
func (b *Bus) makeStream(ctx context.Context, config jetstream.StreamConfig) error {
	ctx, cancel := context.WithTimeout(ctx, streamsWithin)
	defer cancel()
	for told := false; ; told = true {
		try, stop := context.WithTimeout(ctx, streamTry)
		_, err := b.writer.CreateOrUpdateStream(try, config)
		stop()
		if err == nil || !notReady(err) {
			return err
		}
		if !told {
			b.log.InfoContext(ctx, "waiting for JetStream", "stream", config.Name, "error", err)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("JetStream is not ready: %w", err)
		case <-time.After(streamPause):
		}
	}
}

// notReady tells whether an answer of JetStream may be another one in a moment.
func notReady(err error) bool {
	if api, ok := errors.AsType[*jetstream.APIError](err); ok {
		switch api.ErrorCode {
		case 10004, // cluster incomplete
			10005, // no suitable peers for placement
			10008, // JetStream system temporarily unavailable
			10039: // JetStream not enabled for the account: not yet, where the server has just been started
			return true
		}
		return false
	}
	return errors.Is(err, context.DeadlineExceeded) || errors.Is(err, nats.ErrNoResponders) || errors.Is(err, nats.ErrTimeout)
}

func (b *Bus) close() {
	b.shut()
	b.pumping.Wait()
	for _, conn := range b.conns {
		conn.Close()
	}
}

// Fetch returns up to max offers and results, oldest first: as soon as one is there, all that are there. With none
// within wait it returns none and no error. A message not settled within the limit AckWait comes again.
func (b *Bus) Fetch(ctx context.Context, max int, wait time.Duration) ([]wire.Inbound, error) {
	select {
	case <-b.closing:
		return nil, errClosed
	default:
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case first := <-b.fetched:
		batch := append(make([]wire.Inbound, 0, min(max, len(b.fetched)+1)), first)
		defer func() {
			for _, in := range batch {
				b.waiting.Add(-size(in))
			}
			select {
			case b.drained <- struct{}{}:
			default:
			}
		}()
		for len(batch) < max {
			select {
			case in := <-b.fetched:
				batch = append(batch, in)
			default:
				return batch, nil
			}
		}
		return batch, nil
	case <-timer.C:
		return nil, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-b.closing:
		return nil, errClosed
	}
}

var errClosed = errors.New("streams: closed")

// stallWait lets a batch larger than what may be unanswered wait for answers, also on a busy machine.
var stallWait = jetstream.WithStallWait(5 * time.Second)

// Deliver puts messages into inboxes and returns when the server has stored them all. An inbox keeps messages for an
// agent that has never connected. On failure the error is a [wire.UndeliveredError], which wraps
// [wire.CodeInboxFull] for an inbox at its limit, or [wire.ErrStreamsLost]. Headers whose names begin with "Nats-" are
// JetStream's; the caller must not take them from a sender.
func (b *Bus) Deliver(ctx context.Context, out []wire.Outbound) error {
	failed := make(map[int]error)
	before, highest, lost := b.newest.Load(), uint64(0), false
	acks, owners := make([]jetstream.PubAckFuture, len(out)), make([]string, len(out))
	for i, o := range out {
		var err error
		if acks[i], owners[i], err = b.put(ctx, o); err != nil {
			failed[i] = err
		}
	}
	for i, ack := range acks {
		if ack == nil {
			continue
		}
		if number, err := b.await(ctx, ack); err != nil {
			failed[i] = inboxError(err)
		} else {
			highest, lost = max(highest, number), lost || number <= before
		}
		b.shares.settled(owners[i])
	}
	if lost {
		return fmt.Errorf("streams: %w", wire.ErrStreamsLost)
	}
	b.seen(highest)
	if len(failed) > 0 {
		return &wire.UndeliveredError{Failed: failed}
	}
	return nil
}

// Stored is the sequence number that the newest message in an inbox was given, whether it is still there or not, or that was
// skipped last. After a loss of power it may be smaller than before.
//
// Where it is smaller than this Bus has seen, or the stream is not there, and still so when it is asked next, the error is
// [wire.ErrStreamsLost]: a server that leads since a moment may be behind what was stored.
func (b *Bus) Stored(ctx context.Context) (uint64, error) {
	before := b.newest.Load()
	info, err := b.inboxes.Info(ctx)
	gone := errors.Is(err, jetstream.ErrStreamNotFound)
	switch {
	case err != nil && !gone:
		return 0, fmt.Errorf("streams: looking at the inboxes: %w", err)
	case !gone && info.State.LastSeq >= before:
		b.behind.Store(false)
		b.seen(info.State.LastSeq)
		return info.State.LastSeq, nil
	case b.behind.Swap(true):
		return 0, fmt.Errorf("streams: %w", wire.ErrStreamsLost)
	}
	return 0, errors.New("streams: a server has less in the inboxes than was stored; it is asked again")
}

// seen notes that a number was given.
func (b *Bus) seen(number uint64) {
	for {
		old := b.newest.Load()
		if number <= old || b.newest.CompareAndSwap(old, number) {
			return
		}
	}
}

// skipAtOnce is how many numbers are used up before their messages are removed: below what one inbox may hold.
const skipAtOnce = 1024

// Skip has no message in an inbox given a sequence number up to upTo. JetStream moves the number of a stream that is empty; else
// each takes a message, which is removed at once: a million takes some seconds.
func (b *Bus) Skip(ctx context.Context, upTo uint64) error {
	failed := func(err error) error { return fmt.Errorf("streams: skipping numbers of the inboxes: %w", err) }
	for {
		if err := b.inboxes.Purge(ctx, jetstream.WithPurgeSubject(subjectSkipped)); err != nil {
			return failed(err)
		}
		info, err := b.inboxes.Info(ctx)
		if err != nil {
			return failed(err)
		}
		switch missing := upTo - info.State.LastSeq; {
		case info.State.LastSeq >= upTo:
			return nil
		case info.State.Msgs == 0:
			err = b.inboxes.Purge(ctx, jetstream.WithPurgeSequence(upTo+1))
		default:
			err = b.fill(ctx, min(missing, skipAtOnce, uint64(b.limits.InboxMessages)))
		}
		if err != nil {
			return failed(err)
		}
	}
}

// fill uses up n sequence numbers.
func (b *Bus) fill(ctx context.Context, n uint64) error {
	acks := make([]jetstream.PubAckFuture, n)
	for i := range acks {
		var err error
		if acks[i], err = b.writer.PublishMsgAsync(&nats.Msg{Subject: subjectSkipped}, stallWait); err != nil {
			return err
		}
	}
	for _, ack := range acks {
		if _, err := b.await(ctx, ack); err != nil {
			return err
		}
	}
	return nil
}

// await waits until a message is stored, and returns its sequence number.
func (b *Bus) await(ctx context.Context, ack jetstream.PubAckFuture) (uint64, error) {
	select {
	case stored := <-ack.Ok():
		return stored.Sequence, nil
	case err := <-ack.Err():
		return 0, err
	case <-ctx.Done():
		return 0, ctx.Err()
	case <-b.closing:
		return 0, errClosed
	}
}

// put publishes a message to an inbox that has room for it. It does not wait for the answer; owner is what is then settled.
func (b *Bus) put(ctx context.Context, o wire.Outbound) (ack jetstream.PubAckFuture, owner string, err error) {
	if err := checkName(o.To); err != nil {
		return nil, "", err
	}
	owner, err = b.shares.take(o.To, sizeOf(o), func(owner string) (uint64, error) {
		return b.shares.pending(ctx, b.inboxes, owner)
	})
	if err != nil {
		return nil, "", err
	}
	ack, err = b.writer.PublishMsgAsync(&nats.Msg{Subject: subjectInbox + o.To, Header: o.Header, Data: o.Body}, stallWait)
	if err != nil {
		b.shares.settled(owner)
	}
	return ack, owner, err
}

const inboxFull = "the receiver's inbox is full: try later"

// inboxError gives the server's refusal of a full inbox its code. The server has no number for it.
func inboxError(err error) error {
	if strings.Contains(err.Error(), "maximum messages per subject exceeded") {
		return wire.Refuse(wire.CodeInboxFull, inboxFull)
	}
	return err
}

// Receipt tells every connection of the agent that listens. Nothing is stored; a sender that misses it asks again.
func (b *Bus) Receipt(agent string, body []byte) error {
	if err := checkName(agent); err != nil {
		return fmt.Errorf("streams: %w", err)
	}
	return b.feed.Publish(subjectReceipt+agent, body)
}

// Revoke publishes on the feed that guards follow.
func (b *Bus) Revoke(body []byte) error { return b.feed.Publish(subjectRevoked, body) }
