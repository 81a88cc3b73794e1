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

// watchQueue keeps one agent from filling the ingress queue: over its share of messages or bytes, its offers and results
// are answered with an error until half of the messages are settled, or the queue is short again.
func (s *Server) watchQueue() {
	ctx, cancel := context.WithTimeout(s.ctx, authTimeout)
	defer cancel()
	stream, err := s.bus.writer.Stream(ctx, streamIngress)
	if err != nil {
		s.watchFailed("ingress queue", err)
		return
	}
	state := stream.CachedInfo().State
	heavy, err := s.heavySenders(state.Bytes)
	if err != nil {
		s.watchFailed("ingress queue", err)
		return
	}
	share := uint64(s.limits.IngressShare)
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
		acc.throttled = n > share || heavy[acc] || was && n > share/2
		now := acc.throttled
		acc.mu.Unlock()
		if now == was {
			continue
		}
		if err := setThrottled(acc.nats, now); err != nil {
			s.watchFailed("ingress queue", err)
		}
		s.log.WarnContext(s.ctx, "agent throttled", "name", acc.name, "on", now, "queued", n, "share", share, "bytes", heavy[acc])
	}
}

// heavySenders are the accounts that have sent a quarter of what the queue holds since it was short. Nothing tells the
// bytes of one agent in a stream; what it has sent is never less.
func (s *Server) heavySenders(queued uint64) (map[*account]bool, error) {
	quarter := s.limits.IngressBytes / 4
	if int64(queued) <= quarter/4 {
		s.shortQueue = nil
		return nil, nil
	}
	sent, err := s.sent()
	if err != nil {
		return nil, err
	}
	if s.shortQueue == nil {
		s.shortQueue = sent
	}
	heavy := map[*account]bool{}
	for _, acc := range s.madeAccounts() {
		key := accountName(acc.role, acc.name)
		heavy[acc] = sent[key].bytes-s.shortQueue[key].bytes >= quarter-quarter/4
	}
	return heavy, nil
}

// traffic is what an account has sent, ever.
type traffic struct{ messages, bytes int64 }

func (s *Server) sent() (map[string]traffic, error) {
	stats, err := s.nats.AccountStatz(&server.AccountStatzOptions{})
	if err != nil {
		return nil, err
	}
	sent := make(map[string]traffic, len(stats.Accounts))
	for _, a := range stats.Accounts {
		sent[a.Account] = traffic{a.Received.Msgs, a.Received.Bytes}
	}
	return sent, nil
}

// samples are what accounts had sent at two moments at least answerWithin apart. What is owed now was asked for since.
type samples struct {
	older, newer map[string]traffic
	at           time.Time // of newer
}

// watchAnswers keeps one identity from filling the server's table of answers owed. Each entry stays until it is
// answered or its time is out, so a client that asks without end and reads nothing grows it by tens of thousands a
// second, at 600 B each. Over the limit the one to blame is cut off and barred for a minute.
func (s *Server) watchAnswers() {
	pending := s.gov.NumPendingAllResponses()
	if pending <= s.limits.PendingAnswers/10 {
		s.samples = samples{}
		return
	}
	sent, err := s.sent()
	if err != nil {
		s.watchFailed("pending answers", err)
		return
	}
	if now := time.Now(); s.samples.newer == nil || now.Sub(s.samples.at) > answerWithin {
		s.samples = samples{older: s.samples.newer, newer: sent, at: now}
	}
	accounts := s.madeAccounts()
	if pending <= s.limits.PendingAnswers || len(accounts) == 0 {
		return
	}
	// The server counts, for each account, the reply subjects under which answers are owed.
	owed := func(acc *account) int { return acc.nats.NumPendingReverseResponses() }
	most := slices.MaxFunc(accounts, func(a, b *account) int { return cmp.Compare(owed(a), owed(b)) })
	if owed(most) >= s.limits.PendingAnswers/10 {
		s.bar(most)
		return
	}
	// Somebody uses one reply subject again and again, which no client library does. That one has sent most since, and
	// enough to have done it: nobody is cut off on suspicion.
	before := s.samples.older
	if before == nil {
		before = s.samples.newer
	}
	since := func(acc *account) int64 {
		key := accountName(acc.role, acc.name)
		return sent[key].messages - before[key].messages
	}
	most = slices.MaxFunc(accounts, func(a, b *account) int { return cmp.Compare(since(a), since(b)) })
	if since(most) >= int64(s.limits.PendingAnswers)/10 {
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
