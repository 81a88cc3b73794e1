package streams

import (
	"context"
	"maps"
	"slices"
	"sync"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/handoff-governor/handoff-governor/handoff/wire"
)

// shares keeps one agent that does not read its inbox from taking what all inboxes have together: JetStream limits the
// messages of a subject, but not their bytes. What is kept here of an inbox is never less than what is in it. The server
// is asked, and only for a number of messages, when that is not enough to go by.
type shares struct {
	limit int64 // bytes of one inbox

	mu      sync.Mutex
	inboxes map[string]*share // :: agent
}

// share is what one inbox may still have in it.
type share struct {
	sizes    map[int64]uint64 // :: size in KiB, rounded up → messages
	bytes    int64
	inFlight uint64 // published, and neither stored nor refused yet
	settled  uint64 // stored or refused, ever
}

// sizeOf is what a message takes, in KiB, with its headers and what the stream writes beside them.
func sizeOf(o wire.Outbound) int64 {
	size := len(subjectInbox) + len(o.To) + len(o.Body) + 64
	for name, values := range o.Header {
		for _, value := range values {
			size += len(name) + len(value) + 4
		}
	}
	return int64(size+1023) >> 10
}

// take reserves room for a message of size KiB. Pending asks the server how many messages the inbox has.
func (s *shares) take(to string, size int64, pending func() (uint64, error)) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	in := s.inboxes[to]
	if in == nil {
		in = &share{sizes: map[int64]uint64{}}
		s.inboxes[to] = in
	}
	if in.bytes+size<<10 > s.limit {
		// Not under the lock: other inboxes must not wait for this one's answer. What settles meanwhile may or may not be
		// in it.
		before := in.settled
		s.mu.Unlock()
		n, err := pending()
		s.mu.Lock()
		if err != nil {
			return err
		}
		in.keep(n + in.inFlight + in.settled - before)
		if in.bytes+size<<10 > s.limit {
			return wire.Refuse(wire.CodeInboxFull, inboxFull)
		}
	}
	in.add(size, 1)
	in.inFlight++
	return nil
}

// settled notes that a message was stored, or was not.
func (s *shares) settled(to string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.inboxes[to].inFlight--
	s.inboxes[to].settled++
}

func (in *share) add(size int64, n uint64) {
	in.sizes[size] += n
	in.bytes += size << 10 * int64(n)
}

// keep forgets all but the n largest messages: no other n can be larger together.
func (in *share) keep(n uint64) {
	in.bytes = 0
	for _, size := range slices.Backward(slices.Sorted(maps.Keys(in.sizes))) {
		kept := min(in.sizes[size], n)
		n -= kept
		if kept == 0 {
			delete(in.sizes, size)
			continue
		}
		in.sizes[size] = kept
		in.bytes += size << 10 * int64(kept)
	}
}

// recall counts what an earlier process has left. As long as all inboxes together are within the limit of one, nobody
// needs to be counted: then no inbox can come to more than twice its share.
func (s *shares) recall(ctx context.Context, stream jetstream.Stream) error {
	info, err := stream.Info(ctx, jetstream.WithSubjectFilter(subjectInbox+">"))
	if err != nil {
		return err
	}
	if int64(info.State.Bytes) <= s.limit {
		return nil
	}
	const largest = wire.MaxPayload >> 10
	for subject, n := range info.State.Subjects {
		in := &share{sizes: map[int64]uint64{}}
		s.inboxes[subject[len(subjectInbox):]] = in
		if in.add(largest, n); in.bytes <= s.limit/2 {
			continue // whatever their sizes are, there is room
		}
		*in = share{sizes: map[int64]uint64{}}
		for seq := info.State.FirstSeq; n > 0 && in.bytes <= s.limit; n-- {
			msg, err := stream.GetMsg(ctx, seq, jetstream.WithGetMsgSubject(subject))
			if err != nil {
				return err
			}
			in.add(sizeOf(wire.Outbound{Header: msg.Header, Body: msg.Data}), 1)
			seq = msg.Sequence + 1
		}
		in.add(largest, n) // it is over its share already
	}
	return nil
}
