package streams

import (
	"cmp"
	"context"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go/jetstream"
)

// JetStream and the server's import tables know streams and accounts, but no share of one account in another's. What one
// agent could take from all others is therefore watched here.
const (
	watchEvery = 250 * time.Millisecond
	rateOver   = 10 * time.Second
	barFor     = time.Minute
)

// watch looks at what the accounts of a server or of a cluster send.
type watch struct {
	*identities
	bus *Bus
	log *slog.Logger

	// sent is what accounts have sent, ever, by their keys.
	sent func(context.Context) (map[string]traffic, error)
	// throttle turns an agent's offers and results away from the queue, to be answered with an error, or back to it.
	throttle func(ctx context.Context, acc *account, on bool) error
	// cut ends all connections of an account.
	cut func(context.Context, *account) error
	// owed is how many answers the server owes to all, and to one. Nil for a cluster, which does not tell.
	owed    func() int
	owedTo  func(*account) int
	samples samples

	shortQueue map[string]traffic // what was sent when the queue was last short
	rates      []rateSample       // oldest first
}

// traffic is what an account has sent, ever.
type traffic struct{ messages, bytes int64 }

// watch is the embedded server's.
func (s *Server) watch() *watch {
	return &watch{
		identities: s.identities, bus: s.bus, log: s.log,
		sent: func(context.Context) (map[string]traffic, error) {
			stats, err := s.nats.AccountStatz(&server.AccountStatzOptions{IncludeUnused: true})
			if err != nil {
				return nil, err
			}
			sent := make(map[string]traffic, len(stats.Accounts))
			for _, a := range stats.Accounts {
				sent[a.Account] = traffic{a.Received.Msgs, a.Received.Bytes}
			}
			return sent, nil
		},
		throttle: func(_ context.Context, acc *account, on bool) error {
			for _, subject := range []string{localOffer, localResult} {
				if !on {
					acc.nats.RemoveMapping(subject)
				} else if err := acc.nats.AddMapping(subject, localBusy); err != nil {
					return err
				}
			}
			return nil
		},
		cut:  func(_ context.Context, acc *account) error { return s.cut(acc.key) },
		owed: s.gov.NumPendingAllResponses,
		// The server counts, for each account, the reply subjects under which answers are owed.
		owedTo: func(acc *account) int { return acc.nats.NumPendingReverseResponses() },
	}
}

// run watches until ctx ends. Rates are watched apart from the streams, which a flood makes slow to tell of themselves.
func (w *watch) run(ctx context.Context) {
	var both sync.WaitGroup
	defer both.Wait()
	both.Go(func() {
		every(ctx, func(n int) {
			// What servers tell of accounts has some 600 B for each.
			if n%(1+min(3, len(w.all())/1000)) == 0 {
				w.rate(ctx)
			}
		})
	})
	every(ctx, func(int) {
		w.queue(ctx)
		if w.owed != nil {
			w.answers(ctx)
		}
	})
}

// every calls look again and again until ctx ends.
func every(ctx context.Context, look func(n int)) {
	ticker := time.NewTicker(watchEvery)
	defer ticker.Stop()
	for n := 0; ; n++ {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
			look(n)
		}
	}
}

// queue keeps one agent from filling the ingress queue: over its share of messages or bytes, its offers and results are
// answered with an error until half of the messages are settled, or the queue is short again.
func (w *watch) queue(ctx context.Context) {
	try, cancel := context.WithTimeout(ctx, authTimeout)
	defer cancel()
	stream, err := w.bus.writer.Stream(try, streamIngress)
	if err != nil {
		w.failed(ctx, "ingress queue", err)
		return
	}
	state := stream.CachedInfo().State
	heavy, err := w.heavySenders(try, state.Bytes)
	if err != nil {
		w.failed(ctx, "ingress queue", err)
		return
	}
	share := uint64(w.limits.IngressShare)
	queued := map[string]uint64{}
	if state.Msgs > share/2 {
		info, err := stream.Info(try, jetstream.WithSubjectFilter(subjectIngress+">"))
		if err != nil {
			w.failed(ctx, "ingress queue", err)
			return
		}
		for subject, n := range info.State.Subjects {
			name, _, _ := strings.Cut(strings.TrimPrefix(subject, subjectIngress), ".")
			queued[name] += n
		}
	}
	for _, acc := range w.all() {
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
		if err := w.throttle(try, acc, now); err != nil {
			w.failed(ctx, "ingress queue", err)
		}
		w.log.WarnContext(ctx, "agent throttled", "name", acc.name, "on", now, "queued", n, "share", share, "bytes", heavy[acc])
	}
}

// heavySenders are the accounts that have sent a quarter of what the queue holds since it was short. Nothing tells the
// bytes of one agent in a stream; what it has sent is never less.
func (w *watch) heavySenders(ctx context.Context, queued uint64) (map[*account]bool, error) {
	quarter := w.limits.IngressBytes / 4
	if int64(queued) <= quarter/4 {
		w.shortQueue = nil
		return nil, nil
	}
	sent, err := w.sent(ctx)
	if err != nil {
		return nil, err
	}
	if w.shortQueue == nil {
		w.shortQueue = sent
	}
	heavy := map[*account]bool{}
	for _, acc := range w.all() {
		heavy[acc] = sent[acc.key].bytes-w.shortQueue[acc.key].bytes >= quarter-quarter/4
	}
	return heavy, nil
}

// rateSample is what accounts had sent at a moment.
type rateSample struct {
	at   time.Time
	sent map[string]traffic
}

// rate cuts off who sends more than anybody has to. Each may cost the server a place in its table of answers owed
// until it is answered or its time is out, at 600 B, and costs everybody time.
func (w *watch) rate(ctx context.Context) {
	try, cancel := context.WithTimeout(ctx, authTimeout)
	defer cancel()
	sent, err := w.sent(try)
	if err != nil {
		w.failed(ctx, "rates", err)
		return
	}
	now := time.Now()
	w.rates = append(w.rates, rateSample{now, sent})
	for len(w.rates) > 2 && now.Sub(w.rates[1].at) >= rateOver {
		w.rates = w.rates[1:]
	}
	most, mostBytes := int64(w.limits.Rate)*int64(rateOver/time.Second), w.limits.RateBytes*int64(rateOver/time.Second)
	for _, acc := range w.all() {
		if !acc.barredUntil().IsZero() && w.now().Before(acc.barredUntil()) {
			continue
		}
		before := w.rates[0].sent[acc.key]
		messages, bytes := sent[acc.key].messages-before.messages, sent[acc.key].bytes-before.bytes
		if messages > most || bytes > mostBytes {
			w.log.WarnContext(ctx, "too much traffic", "name", acc.name, "role", acc.role, "messages", messages, "bytes", bytes,
				"most_messages", most, "most_bytes", mostBytes)
			w.bar(ctx, acc)
		}
	}
}

// samples are what accounts had sent at two moments at least answerWithin apart. What is owed now was asked for since.
type samples struct {
	older, newer map[string]traffic
	at           time.Time // of newer
}

// answers keeps one identity from filling the server's table of answers owed. Each entry stays until it is answered or its
// time is out, so a client that asks without end and reads nothing grows it by tens of thousands a second, at 600 B each.
// Over the limit the one to blame is cut off and barred for a minute.
func (w *watch) answers(ctx context.Context) {
	pending := w.owed()
	if pending <= w.limits.PendingAnswers/10 {
		w.samples = samples{}
		return
	}
	sent, err := w.sent(ctx)
	if err != nil {
		w.failed(ctx, "pending answers", err)
		return
	}
	if now := time.Now(); w.samples.newer == nil || now.Sub(w.samples.at) > answerWithin {
		w.samples = samples{older: w.samples.newer, newer: sent, at: now}
	}
	accounts := w.all()
	if pending <= w.limits.PendingAnswers || len(accounts) == 0 {
		return
	}
	most := slices.MaxFunc(accounts, func(a, b *account) int { return cmp.Compare(w.owedTo(a), w.owedTo(b)) })
	if w.owedTo(most) >= w.limits.PendingAnswers/10 {
		w.bar(ctx, most)
		return
	}
	// Somebody uses one reply subject again and again, which no client library does. That one has sent most since, and
	// enough to have done it: nobody is cut off on suspicion.
	before := w.samples.older
	if before == nil {
		before = w.samples.newer
	}
	since := func(acc *account) int64 { return sent[acc.key].messages - before[acc.key].messages }
	most = slices.MaxFunc(accounts, func(a, b *account) int { return cmp.Compare(since(a), since(b)) })
	if since(most) >= int64(w.limits.PendingAnswers)/10 {
		w.bar(ctx, most)
	}
}

// bar cuts an identity off for a while.
func (w *watch) bar(ctx context.Context, acc *account) {
	until := w.now().Add(barFor)
	acc.bar(until)
	w.cuts.Add(1)
	w.log.WarnContext(ctx, "identity cut off for flooding", "name", acc.name, "role", acc.role, "until", until)
	if err := w.cut(ctx, acc); err != nil {
		w.failed(ctx, "floods", err)
	}
}

func (w *watch) failed(ctx context.Context, what string, err error) {
	if ctx.Err() == nil {
		w.log.WarnContext(ctx, "watching "+what, "error", err)
	}
}
