package streams_test

import (
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/handoff-governor/handoff-governor/handoff/wire"
	"github.com/handoff-governor/handoff-governor/streams"
)

// BenchmarkRelay is the price of the streams alone: 1 KiB offers from four agents, fetched, delivered to an inbox and
// acked, in batches.
func BenchmarkRelay(b *testing.B) {
	w := newWorld(b, func(c *streams.Config) { c.Limits.IngressShare = 1 << 30 })
	body := make([]byte, 1024)
	var senders []*client
	for i := range 4 {
		senders = append(senders, w.join(fmt.Sprintf("agent/a%d", i)))
	}
	b.ResetTimer()
	start := time.Now()
	var sending sync.WaitGroup
	for i, c := range senders {
		sending.Go(func() {
			js, err := jetstream.New(c.Conn, jetstream.WithPublishAsyncMaxPending(1000))
			check(b, err)
			for n := i; n < b.N; n += len(senders) {
				subject := wire.OfferSubject(fmt.Sprintf("s%d", n%1000), fmt.Sprintf("b%d", n%64))
				_, err := js.PublishAsync(subject, body, jetstream.WithStallWait(10*time.Second))
				check(b, err)
			}
			<-js.PublishAsyncComplete()
		})
	}
	bus := w.Governor()
	batches := 0
	for done := 0; done < b.N; batches++ {
		in, err := bus.Fetch(b.Context(), 512, time.Second)
		check(b, err)
		out := make([]wire.Outbound, len(in))
		for i, m := range in {
			out[i] = wire.Outbound{To: m.To, Header: m.Header, Body: m.Body}
		}
		check(b, bus.Deliver(b.Context(), out))
		for _, m := range in {
			check(b, m.Ack())
		}
		done += len(in)
	}
	b.ReportMetric(float64(b.N)/time.Since(start).Seconds(), "offers/s")
	b.ReportMetric(float64(b.N)/float64(batches), "offers/batch")
	sending.Wait()
}

// BenchmarkConnect is a first connection: TLS, account, imports and inbox.
func BenchmarkConnect(b *testing.B) {
	w := newWorld(b)
	for i := range b.N {
		b.StopTimer()
		who := fmt.Sprintf("agent/a%d", i)
		cert := w.issue(who, time.Hour)
		b.StartTimer()
		conn, err := w.dialWith(cert)
		check(b, err)
		b.StopTimer()
		conn.Close()
		b.StartTimer()
	}
}
