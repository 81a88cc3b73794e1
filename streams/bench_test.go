package streams_test

import (
	"fmt"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/handoff-governor/handoff-governor/handoff/wire"
	"github.com/handoff-governor/handoff-governor/streams"
)

// BenchmarkRelay is the price of the streams alone: 1 KiB offers of four agents, fetched, delivered to inboxes and
// acked, in batches. With waiting, they are in the queue before the clock starts; with arriving, the agents' publishing
// over TLS is in the price. On a machine that others use, cpu-µs/offer says more than the rate.
func BenchmarkRelay(b *testing.B) {
	for _, mode := range []string{"waiting", "arriving"} {
		b.Run(mode, func(b *testing.B) {
			w := newWorld(b, func(c *streams.Config) { c.Limits.IngressShare = 1 << 30 })
			var sending sync.WaitGroup
			send := func() {
				for i := range 4 {
					sending.Go(func() { sendOffers(b, w.join(fmt.Sprintf("agent/a%d", i)), i, 4) })
				}
			}
			if mode == "waiting" {
				send()
				sending.Wait()
			}
			b.ResetTimer()
			start, cpu := time.Now(), cpuTime(b)
			if mode == "arriving" {
				send()
			}
			batches := relay(b, w.Governor())
			sending.Wait()
			b.ReportMetric(float64(b.N)/time.Since(start).Seconds(), "offers/s")
			b.ReportMetric(float64((cpuTime(b)-cpu).Microseconds())/float64(b.N), "cpu-µs/offer")
			b.ReportMetric(float64(b.N)/float64(batches), "offers/batch")
		})
	}
}

func relay(b *testing.B, bus *streams.Bus) (batches int) {
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
	return batches
}

// sendOffers publishes every of-th of b.N offers, in 1,000 sessions and to 64 agents.
func sendOffers(b *testing.B, c *client, first, of int) {
	js, err := jetstream.New(c.Conn, jetstream.WithPublishAsyncMaxPending(1000))
	check(b, err)
	body := make([]byte, 1024)
	for n := first; n < b.N; n += of {
		subject := wire.OfferSubject(fmt.Sprintf("s%d", n%1000), fmt.Sprintf("b%d", n%64))
		_, err := js.PublishAsync(subject, body, jetstream.WithStallWait(10*time.Second))
		check(b, err)
	}
	<-js.PublishAsyncComplete()
}

func cpuTime(b *testing.B) time.Duration {
	var usage syscall.Rusage
	check(b, syscall.Getrusage(syscall.RUSAGE_SELF, &usage))
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
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
