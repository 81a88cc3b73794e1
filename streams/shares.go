package streams

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/handoff-governor/handoff-governor/handoff/wire"
)

// shares keeps one agent that does not read its inbox from taking what all inboxes have together: JetStream limits the
// messages of a subject, but not their bytes. What is kept here of an inbox is never less than what is in it. The server
// is asked, and only for a number of messages, when that is not enough to go by.
//
// Agents that have never connected share one share: anybody can invent names.
type shares struct {
	limit int64 // bytes of one inbox

	mu      sync.Mutex
	known   map[string]bool   // agents that have connected
	inboxes map[string]*share // :: agent, or nobody
}

// askAgain is how long the share of nobody stays full at least.
const askAgain = 5 * time.Second

// nobody stands for all agents that have never connected.
const nobody = ""

// owner is whose share the inbox of an agent is part of. The caller has locked.
func (s *shares) owner(agent string) string {
	if s.known[agent] {
		return agent
	}
	return nobody
}

// meet notes that an agent has connected. What lies in its inbox was counted with the others' and is no more than they all
// may have.
func (s *shares) meet(agent string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.known[agent] = true
}

// share is what one inbox may still have in it.
type share struct {
	sizes    map[int64]uint64 // :: size in KiB, rounded up → messages
	bytes    int64
	inFlight uint64    // published, and neither stored nor refused yet
	settled  uint64    // stored or refused, ever
	full     time.Time // until when it is not asked again
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

// take reserves room for a message of size KiB, and returns what to settle then. Pending asks the server how many messages
// an owner has.
func (s *shares) take(to string, size int64, pending func(owner string) (uint64, error)) (owner string, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	owner = s.owner(to)
	in := s.inboxes[owner]
	if in == nil {
		in = &share{sizes: map[int64]uint64{}}
		s.inboxes[owner] = in
	}
	if in.bytes+size<<10 > s.limit {
		if time.Now().Before(in.full) {
			return owner, wire.Refuse(wire.CodeInboxFull, inboxFull)
		}
		// Not under the lock: other inboxes must not wait for this one's answer. What settles meanwhile may or may not be
		// in it.
		before := in.settled
		s.mu.Unlock()
		n, err := pending(owner)
		s.mu.Lock()
		if err != nil {
			return owner, err
		}
		in.keep(n + in.inFlight + in.settled - before)
		if in.bytes+size<<10 > s.limit {
			if owner == nobody { // there may be a hundred thousand inboxes to look into
				in.full = time.Now().Add(askAgain)
			}
			return owner, wire.Refuse(wire.CodeInboxFull, inboxFull)
		}
	}
	in.add(size, 1)
	in.inFlight++
	return owner, nil
}

// settled notes that a message was stored, or was not.
func (s *shares) settled(owner string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.inboxes[owner].inFlight--
	s.inboxes[owner].settled++
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
	names := stream.ConsumerNames(ctx)
	for name := range names.Name() {
		s.known[name] = true
	}
	if err := names.Err(); err != nil {
		return err
	}
	info, err := stream.Info(ctx, jetstream.WithSubjectFilter(subjectInbox+">"))
	if err != nil {
		return err
	}
	if int64(info.State.Bytes) <= s.limit {
		return nil
	}
	const largest = wire.MaxPayload >> 10
	for subject, n := range info.State.Subjects {
		owner := s.owner(subject[len(subjectInbox):])
		in := s.inboxes[owner]
		if in == nil {
			in = &share{sizes: map[int64]uint64{}}
			s.inboxes[owner] = in
		}
		if int64(n)*largest<<10 > s.limit/2 || owner == nobody { // else there is room, whatever their sizes are
			for seq := info.State.FirstSeq; n > 0 && in.bytes <= s.limit; n-- {
				msg, err := stream.GetMsg(ctx, seq, jetstream.WithGetMsgSubject(subject))
				if err != nil {
					return err
				}
				in.add(sizeOf(wire.Outbound{Header: msg.Header, Body: msg.Data}), 1)
				seq = msg.Sequence + 1
			}
		}
		in.add(largest, n) // what is not counted, as what is beyond the share
	}
	return nil
}

// pending asks how many messages an owner has in its inbox, or in all of them.
func (s *shares) pending(ctx context.Context, stream jetstream.Stream, owner string) (n uint64, err error) {
	filter := subjectInbox + owner
	if owner == nobody {
		filter = subjectInbox + ">"
	}
	info, err := stream.Info(ctx, jetstream.WithSubjectFilter(filter))
	if err != nil {
		return 0, fmt.Errorf("streams: looking into an inbox: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for subject, of := range info.State.Subjects {
		if s.owner(subject[len(subjectInbox):]) == owner {
			n += of
		}
	}
	return n, nil
}
