package streams

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/handoff-governor/handoff-governor/handoff/wire"
)

// Bounds of what the quarantine keeps of a message: with both, and the server's own headers, it stays below
// wire.MaxPayload and below JetStream's limit of 64 KiB for all headers together.
const (
	quarantineBody   = wire.MaxBody
	quarantineHeader = 32 << 10
	quarantineReason = 1 << 10
)

// Quarantine keeps a copy of in with the reason, then removes in from the queue. A body above 1 MiB is cut, and
// headers beyond 32 KiB are left out. When it fails, in comes again; after a crash in between, it may be kept twice.
func (b *Bus) Quarantine(ctx context.Context, in wire.Inbound, code wire.Code, reason string) error {
	msg := &nats.Msg{Subject: subjectQuarantine + in.Sender, Data: in.Body, Header: nats.Header{
		headerCode:      {string(code)},
		headerReason:    {oneLine(reason)},
		headerSubject:   {ingressSubject(in)},
		wire.HeaderFrom: {in.Sender},
	}}
	whole := len(in.Body) <= quarantineBody
	if !whole {
		msg.Data = in.Body[:quarantineBody]
	}
	room := quarantineHeader
	for _, name := range slices.Sorted(maps.Keys(in.Header)) {
		for _, value := range in.Header[name] {
			if size := len(headerOriginal) + len(name) + len(value) + 4; size <= room {
				room -= size
				msg.Header[headerOriginal+name] = append(msg.Header[headerOriginal+name], value)
			} else {
				whole = false
			}
		}
	}
	if !whole {
		msg.Header[headerTruncated] = []string{strconv.Itoa(len(in.Body))}
	}
	if _, err := b.writer.PublishMsg(ctx, msg); err != nil {
		return fmt.Errorf("streams: keeping a message in quarantine: %w", err)
	}
	return in.Term(string(code))
}

// oneLine makes text fit for a header. Cutting comes first, dropping what is no UTF-8 second, since replacing it would
// make the text longer again.
func oneLine(text string) string {
	text = strings.ToValidUTF8(text[:min(len(text), quarantineReason)], "")
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return ' '
		}
		return r
	}, text)
}

// Quarantined lists what is in quarantine, from a number on, the oldest first, at most n of them, without headers and bodies.
func (b *Bus) Quarantined(ctx context.Context, from uint64, n int) (list []wire.Quarantined, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("streams: listing the quarantine: %w", err)
		}
	}()
	stream, err := b.writer.Stream(ctx, streamQuarantine)
	if err != nil {
		return nil, err
	}
	// Bodies stay where they are: a listing of large ones must not move all of them.
	consumer, err := stream.CreateConsumer(ctx, jetstream.ConsumerConfig{
		AckPolicy: jetstream.AckNonePolicy, HeadersOnly: true, MemoryStorage: true, Replicas: 1, InactiveThreshold: listFor,
		DeliverPolicy: jetstream.DeliverByStartSequencePolicy, OptStartSeq: max(from, 1),
	})
	if err != nil {
		return nil, err
	}
	defer func() {
		err = errors.Join(err, stream.DeleteConsumer(context.WithoutCancel(ctx), consumer.CachedInfo().Name))
	}()
	batch, err := consumer.FetchNoWait(n)
	if err != nil {
		return nil, err
	}
	for msg := range batch.Messages() {
		meta, err := msg.Metadata()
		if err != nil {
			return nil, err
		}
		size, _ := strconv.Atoi(msg.Headers().Get(nats.MsgSize))
		q := quarantined(msg.Headers(), size)
		q.Number, q.At = meta.Sequence.Stream, meta.Timestamp.Unix()
		list = append(list, q)
	}
	return list, batch.Error()
}

// QuarantinedMessage is what is in quarantine under a number, with headers and body.
func (b *Bus) QuarantinedMessage(ctx context.Context, number uint64) (*wire.Quarantined, error) {
	msg, err := b.quarantinedMessage(ctx, number)
	if err != nil {
		return nil, err
	}
	q := quarantined(msg.Header, len(msg.Data))
	q.Number, q.At, q.Body, q.Headers = msg.Sequence, msg.Time.Unix(), msg.Data, map[string][]string{}
	for name, values := range msg.Header {
		if original, ok := strings.CutPrefix(name, headerOriginal); ok {
			for _, value := range values {
				name := strings.ToValidUTF8(original, "�")
				q.Headers[name] = append(q.Headers[name], strings.ToValidUTF8(value, "�"))
			}
		}
	}
	return &q, nil
}

// Requeue has the message under a number come once more, as its sender has sent it, and takes it out of the quarantine. After a crash
// in between, it comes and is kept.
func (b *Bus) Requeue(ctx context.Context, number uint64) error {
	msg, err := b.quarantinedMessage(ctx, number)
	if err != nil {
		return err
	}
	if len(msg.Header[headerTruncated]) > 0 {
		return wire.Refuse(wire.CodeQuarantineCut, "it was too large to be kept whole, and cannot be tried again: have its sender send it anew")
	}
	again := &nats.Msg{Subject: msg.Header.Get(headerSubject), Data: msg.Data, Header: nats.Header{}}
	if _, err := parseIngress(again.Subject); err != nil {
		return fmt.Errorf("streams: trying message %d of the quarantine again: %w", number, err)
	}
	for name, values := range msg.Header {
		if original, ok := strings.CutPrefix(name, headerOriginal); ok && !strings.HasPrefix(original, "Nats-") {
			again.Header[original] = values // what begins with Nats- JetStream has heeded when it came
		}
	}
	if _, err := b.writer.PublishMsg(ctx, again); err != nil {
		return fmt.Errorf("streams: trying message %d of the quarantine again: %w", number, err)
	}
	return b.DropQuarantined(ctx, number)
}

// DropQuarantined deletes what is in quarantine under a number.
func (b *Bus) DropQuarantined(ctx context.Context, number uint64) error {
	if _, err := b.quarantinedMessage(ctx, number); err != nil {
		return err // the server's error for deleting what is not there says only that it failed
	}
	stream, err := b.writer.Stream(ctx, streamQuarantine)
	if err == nil {
		err = stream.DeleteMsg(ctx, number)
	}
	return quarantineError(number, err)
}

func (b *Bus) quarantinedMessage(ctx context.Context, number uint64) (*jetstream.RawStreamMsg, error) {
	stream, err := b.writer.Stream(ctx, streamQuarantine)
	if err != nil {
		return nil, quarantineError(number, err)
	}
	msg, err := stream.GetMsg(ctx, number)
	return msg, quarantineError(number, err)
}

// listFor is how long the server keeps what a listing left behind that was cut off.
const listFor = time.Minute

func quarantineError(number uint64, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, jetstream.ErrMsgNotFound):
		return wire.Refuse(wire.CodeNotQuarantined, "no such message is in quarantine: list them again")
	}
	return fmt.Errorf("streams: message %d of the quarantine: %w", number, err)
}

// quarantined reads what the quarantine says of a message with a body of some size.
func quarantined(h nats.Header, size int) wire.Quarantined {
	q := wire.Quarantined{
		Agent: h.Get(wire.HeaderFrom), Code: wire.Code(h.Get(headerCode)), Reason: h.Get(headerReason), Bytes: size,
	}
	if cut := h.Get(headerTruncated); cut != "" {
		q.Cut = true
		q.Bytes, _ = strconv.Atoi(cut)
	}
	if in, err := parseIngress(h.Get(headerSubject)); err == nil {
		q.Kind, q.Session, q.To = in.Kind, in.Session, in.To
	}
	return q
}
