package governor_test

import (
	"testing"
)

// BenchmarkOffer is the rate at which offers that wait in the stream are decided, recorded and delivered: everything on,
// one sender, one receiver, one session, 1 KiB each. Signing and publishing them is not in it.
func BenchmarkOffer(b *testing.B) {
	w := newWorld(b)
	sender, receiver := w.agent("a"), w.agent("b")
	root := sender.session(readFiles())
	body := string(make([]byte, 1024))
	offers := make([]*offering, b.N)
	for i := range offers {
		offers[i] = root.draft(receiver.name, body)
		root.seal(offers[i])
	}
	b.ReportAllocs()
	b.ResetTimer()
	for _, o := range offers {
		if err := sender.nc.PublishMsg(&natsMsg{Subject: o.subject, Header: o.header, Data: o.body, Reply: ""}); err != nil {
			b.Fatal(err)
		}
	}
	last := offers[b.N-1].id
	for r := range sender.receipts {
		if r.ID == last {
			break
		}
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "offers/s")
}
