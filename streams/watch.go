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
// answered or its time is out, so a client that asks without end and reads nothing grows it by hundreds of thousands a
// second. Over the limit the identity that sent most since the last look is cut off and barred for a minute.
func (s *Server) watchAnswers() {
	over := s.gov.NumPendingAllResponses() > s.limits.PendingAnswers
	stats, err := s.nats.AccountStatz(&server.AccountStatzOptions{})
	if err != nil {
		s.watchFailed("pending answers", err)
		return
	}
	received := make(map[string]int64, len(stats.Accounts))
	for _, a := range stats.Accounts {
		received[a.Account] = a.Received.Msgs
	}
	type sent struct {
		acc  *account
		msgs int64
	}
	var all []sent
	for _, acc := range s.madeAccounts() {
		acc.mu.Lock()
		now := received[accountName(acc.role, acc.name)]
		all = append(all, sent{acc, now - acc.received})
		acc.received = now
		acc.mu.Unlock()
	}
	if !over || len(all) == 0 {
		return
	}
	most := slices.MaxFunc(all, func(a, b sent) int { return cmp.Compare(a.msgs, b.msgs) })
	if most.msgs <= 0 {
		return
	}
	until := s.config.Now().Add(barFor)
	most.acc.mu.Lock()
	most.acc.barred = until
	most.acc.mu.Unlock()
	s.cuts.Add(1)
	s.log.WarnContext(s.ctx, "identity cut off for flooding", "name", most.acc.name, "role", most.acc.role,
		"messages", most.msgs, "until", until)
	if err := s.cut(accountName(most.acc.role, most.acc.name)); err != nil {
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
