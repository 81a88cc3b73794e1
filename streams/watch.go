package streams

import (
	"cmp"
	"context"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go/jetstream"
)

// JetStream and the server's import tables know streams and accounts, but no share of one account in another's. Two
// things that one agent could take from all others are therefore watched here.
const (
	watchEvery = 250 * time.Millisecond
	barFor     = time.Minute
)

func (s *Server) watch() {
	ticker := time.NewTicker(watchEvery)
	defer ticker.Stop()
	for {
		select {
		case <-s.ctx.Done():
			return
		case <-ticker.C:
			s.watchQueue()
			s.watchAnswers()
		}
	}
}

// watchQueue keeps one agent from filling the ingress queue: over its share, its offers and results are answered with
// an error until half of the share is settled.
func (s *Server) watchQueue() {
	ctx, cancel := context.WithTimeout(s.ctx, authTimeout)
	defer cancel()
	stream, err := s.bus.writer.Stream(ctx, streamIngress)
	if err != nil {
		s.watchFailed("ingress queue", err)
		return
	}
	state := stream.CachedInfo().State
	share := uint64(s.limits.IngressShare)
	if state.Msgs > 0 {
		// With large messages the quarter of the bytes is the smaller share.
		average := max(1, state.Bytes/state.Msgs)
		share = min(share, max(1, uint64(s.limits.IngressBytes)/4/average))
	}
	queued := map[string]uint64{}
	if state.Msgs > share/2 {
		info, err := stream.Info(ctx, jetstream.WithSubjectFilter(subjectIngress+">"))
		if err != nil {
			s.watchFailed("ingress queue", err)
			return
		}
		for subject, n := range info.State.Subjects {
			name, _, _ := strings.Cut(strings.TrimPrefix(subject, subjectIngress), ".")
			queued[name] += n
		}
	}
	for _, acc := range s.madeAccounts() {
		if acc.role != RoleAgent {
			continue
		}
		n := queued[acc.name]
		acc.mu.Lock()
		was := acc.throttled
		acc.throttled = n > share || was && n > share/2
		now := acc.throttled
		acc.mu.Unlock()
		if now == was {
			continue
		}
		if err := setThrottled(acc.nats, now); err != nil {
			s.watchFailed("ingress queue", err)
		}
		s.log.WarnContext(s.ctx, "agent throttled", "name", acc.name, "on", now, "queued", n, "share", share)
	}
}

// watchAnswers keeps one identity from filling the server's table of answers owed. Each entry stays until it is
// answered or its time is out, so a client that asks without end and reads nothing grows it by tens of thousands a
// second, at 600 B each. Over the limit the one to blame is cut off and barred for a minute.
func (s *Server) watchAnswers() {
	if s.gov.NumPendingAllResponses() <= s.limits.PendingAnswers {
		s.received = nil
		return
	}
	accounts := s.madeAccounts()
	if len(accounts) == 0 {
		return
	}
	// The server counts, for each account, the reply subjects under which answers are owed.
	owed := func(acc *account) int { return acc.nats.NumPendingReverseResponses() }
	most := slices.MaxFunc(accounts, func(a, b *account) int { return cmp.Compare(owed(a), owed(b)) })
	if owed(most) >= s.limits.PendingAnswers/10 {
		s.bar(most)
		return
	}
	// Somebody uses one reply subject again and again, which no client library does. Between two looks that one sends
	// most.
	before := s.received
	stats, err := s.nats.AccountStatz(&server.AccountStatzOptions{})
	if err != nil {
		s.watchFailed("pending answers", err)
		return
	}
	s.received = make(map[string]int64, len(stats.Accounts))
	for _, a := range stats.Accounts {
		s.received[a.Account] = a.Received.Msgs
	}
	if before == nil {
		return
	}
	sent := func(acc *account) int64 {
		key := accountName(acc.role, acc.name)
		return s.received[key] - before[key]
	}
	most = slices.MaxFunc(accounts, func(a, b *account) int { return cmp.Compare(sent(a), sent(b)) })
	if sent(most) > 0 {
		s.bar(most)
	}
}

// bar cuts an identity off for a while.
func (s *Server) bar(acc *account) {
	until := s.config.Now().Add(barFor)
	acc.mu.Lock()
	acc.barred = until
	acc.mu.Unlock()
	s.cuts.Add(1)
	s.log.WarnContext(s.ctx, "identity cut off for flooding", "name", acc.name, "role", acc.role, "until", until)
	if err := s.cut(accountName(acc.role, acc.name)); err != nil {
		s.watchFailed("pending answers", err)
	}
}

func (s *Server) watchFailed(what string, err error) {
	if s.ctx.Err() == nil {
		s.log.WarnContext(s.ctx, "watching "+what, "error", err)
	}
}

func (s *Server) madeAccounts() []*account {
	s.mu.Lock()
	all := make([]*account, 0, len(s.accounts))
	for _, acc := range s.accounts {
		all = append(all, acc)
	}
	s.mu.Unlock()
	return slices.DeleteFunc(all, func(acc *account) bool {
		return !acc.made.Load()
	})
}

func (acc *account) barredUntil() time.Time {
	acc.mu.Lock()
	defer acc.mu.Unlock()
	return acc.barred
}
