package streams_test

import (
	"errors"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/handoff-governor/handoff-governor/handoff/wire"
	"github.com/handoff-governor/handoff-governor/streams"
)

// Numbers are skipped whether there is something in the inboxes or not, and what is there stays.
func TestSkip(t *testing.T) {
	inBoth(t, func(t *testing.T, start func(...func(*streams.Config)) *world) {
		w := start(func(c *streams.Config) { c.Limits.InboxMessages = 100 })
		inbox, bus := w.join("agent/a").inbox(), w.Governor()
		stored := func(want uint64) {
			t.Helper()
			got, err := bus.Stored(t.Context())
			check(t, err)
			if got != want {
				t.Errorf("the newest number is %d, not %d", got, want)
			}
		}
		check(t, bus.Skip(t.Context(), 1_000_000_000)) // at once, where nothing is there
		stored(1_000_000_000)
		check(t, bus.Deliver(t.Context(), []wire.Outbound{{To: "a", Body: []byte("first")}}))
		stored(1_000_000_001)
		check(t, bus.Skip(t.Context(), 1_000_002_500))
		stored(1_000_002_500)
		check(t, bus.Skip(t.Context(), 7))
		check(t, bus.Deliver(t.Context(), []wire.Outbound{{To: "a", Body: []byte("second")}}))
		stored(1_000_002_501)
		for _, want := range []struct {
			body   string
			number uint64
		}{{"first", 1_000_000_001}, {"second", 1_000_002_501}} {
			msg, err := inbox.Next(jetstream.FetchMaxWait(5 * time.Second))
			check(t, err)
			meta, err := msg.Metadata()
			check(t, err)
			if string(msg.Data()) != want.body || meta.Sequence.Stream != want.number {
				t.Errorf("%q has number %d, not %q number %d", msg.Data(), meta.Sequence.Stream, want.body, want.number)
			}
		}
	})
}

// A server that comes back without what it had stored is found out, by what is put next or without.
func TestInboxesLost(t *testing.T) {
	inBoth(t, func(t *testing.T, start func(...func(*streams.Config)) *world) {
		bus := start().Governor()
		put := func() error {
			return bus.Deliver(t.Context(), []wire.Outbound{{To: "a", Body: []byte("a")}, {To: "b", Body: []byte("b")}})
		}
		check(t, put())
		check(t, put())
		streams.TestingLoseInboxes(t, bus)
		if _, err := bus.Stored(t.Context()); err == nil || errors.Is(err, wire.ErrStreamsLost) {
			t.Errorf("asked once, the inboxes are believed to have lost messages, or to have them: %v", err)
		}
		if _, err := bus.Stored(t.Context()); !errors.Is(err, wire.ErrStreamsLost) {
			t.Errorf("the inboxes are asked for their newest number: %v", err)
		}
		if err := put(); !errors.Is(err, wire.ErrStreamsLost) {
			t.Errorf("messages are put: %v", err)
		}
	})
}

// A stream that is gone has lost everything.
func TestInboxesGone(t *testing.T) {
	inBoth(t, func(t *testing.T, start func(...func(*streams.Config)) *world) {
		bus := start().Governor()
		if _, err := bus.Stored(t.Context()); err != nil {
			t.Fatal(err)
		}
		streams.TestingDeleteInboxes(t, bus)
		_, _ = bus.Stored(t.Context())
		if _, err := bus.Stored(t.Context()); !errors.Is(err, wire.ErrStreamsLost) {
			t.Errorf("the inboxes are gone: %v", err)
		}
	})
}
