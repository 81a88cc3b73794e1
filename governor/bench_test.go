package governor_test

import (
	"fmt"
	"testing"

	"github.com/handoff-governor/handoff-governor/handoff/wire"
)

// BenchmarkOffer is the rate at which offers that wait in the stream are decided, recorded and delivered: everything on,
// one sender, one session, 1 KiB each, 2,000 for each receiver, at most 4,000 on their way. Signing is not in it.
func BenchmarkOffer(b *testing.B) {
	w := newWorld(b)
	sender := w.agent("a")
	root := sender.session(readFiles())
	body := string(make([]byte, 1024))
	offers := make([]*offering, b.N)
	for i := range offers {
		offers[i] = root.draft(nameOf(b, fmt.Sprint("b", i/2000)), body)
		root.seal(offers[i])
	}
	b.ReportAllocs()
	b.ResetTimer()
	done := 0
	receipted := func() {
		if r := <-sender.receipts; r.Effect != wire.EffectAllow {
			b.Fatalf("not allowed: %+v", r)
		}
		done++
	}
	for i, o := range offers {
		for i-done >= 4000 {
			receipted()
		}
		if err := sender.nc.PublishMsg(&natsMsg{Subject: o.subject, Header: o.header, Data: o.body}); err != nil {
			b.Fatal(err)
		}
	}
	for done < b.N {
		receipted()
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "offers/s")
}
