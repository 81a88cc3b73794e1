package guard_test

import (
	"crypto/ed25519"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/handoff-governor/handoff-governor/handoff/guard"
)

// The benchmarks report their time in verifications of one Ed25519 signature over a kilobyte, measured in turns with
// them: "verifies" is the median over short runs, so that other load on the machine cancels out.

// A call under a chain that was seen before. The target is 1.3 verifies.
func BenchmarkSeenBefore(b *testing.B) {
	for _, hops := range []int{1, 4} {
		b.Run(fmt.Sprintf("links=%d", 2*hops+1), func(b *testing.B) {
			w, h := chainOf(b, hops)
			w.permits(h)
			measure(b, func() func() {
				p := h.present()
				return func() { mustPermit(b, w, h, p) }
			})
		})
	}
}

// The first call under a chain. The target is 1.3 × (links + 1) verifies.
func BenchmarkFirstSight(b *testing.B) {
	for _, hops := range []int{0, 3} {
		b.Run(fmt.Sprintf("links=%d", 2*hops+3), func(b *testing.B) {
			w, h := chainOf(b, hops, func(c *guard.Config) { c.SeenChains = 1 })
			held := []holding{h.to("x"), h.to("y")} // each takes the one place in memory from the other
			i := 0
			measure(b, func() func() {
				i++
				h := held[i%2]
				p := h.present()
				return func() { mustPermit(b, w, h, p) }
			})
		})
	}
}

func chainOf(b *testing.B, hops int, change ...func(*guard.Config)) (*world, holding) {
	w := newWorld(b, append(change, func(c *guard.Config) { c.MaxProofs = 1 << 30 })...)
	h := w.root()
	for i := range hops {
		h = h.to(fmt.Sprint("b", i))
	}
	return w, h
}

func mustPermit(b *testing.B, w *world, h holding, p guard.Presentation) {
	if _, err := w.guard.Check(b.Context(), p, "read", []byte(readA), h.agent); err != nil {
		b.Fatal(err)
	}
}

// measure runs what prepare returns.
func measure(b *testing.B, prepare func() func()) {
	key := seedKey("x")
	message := make([]byte, 1024)
	signature := ed25519.Sign(key, message)
	const run = 8
	var ratios []float64
	steps := make([]func(), run)
	for b.Loop() {
		b.StopTimer()
		for i := range steps {
			steps[i] = prepare()
		}
		start := time.Now()
		for range run {
			ed25519.Verify(public(key), message, signature)
		}
		unit := time.Since(start)
		b.StartTimer()
		start = time.Now()
		for _, step := range steps {
			step()
		}
		ratios = append(ratios, float64(time.Since(start))/float64(unit))
	}
	slices.Sort(ratios)
	b.ReportMetric(ratios[len(ratios)/2], "verifies")
	b.ReportMetric(float64(b.Elapsed())/float64(b.N)/run, "ns/op")
}
