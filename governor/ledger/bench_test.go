//go:build unix

package ledger_test

import (
	"crypto/rand"
	"encoding/binary"
	"fmt"
	mrand "math/rand/v2"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/handoff-governor/handoff-governor/governor/ledger"
	"github.com/handoff-governor/handoff-governor/governor/ledger/ledgertest"
)

// filler makes records as a busy governor's: entries of 1.2 KiB, two IDs made a little before by clocks that differ, one
// of a thousand sessions.
type filler struct {
	millis   int64 // the clock
	spread   int64 // of the IDs' times, in milliseconds
	entry    []byte
	sessions []string
}

func newFiller(spread int64) *filler {
	f := &filler{millis: 1_800_000_000_000, spread: spread, entry: make([]byte, 1200), sessions: make([]string, 1000)}
	rand.Read(f.entry)
	for i := range f.sessions {
		f.sessions[i] = f.id()
	}
	return f
}

func (f *filler) id() string {
	var u uuid.UUID
	rand.Read(u[6:])
	binary.BigEndian.PutUint64(u[:8], uint64(f.millis-mrand.Int64N(f.spread))<<16|uint64(u[6])<<8|uint64(u[7]))
	u[6], u[8] = 0x70|u[6]&0x0f, 0x80|u[8]&0x3f
	return u.String()
}

func (f *filler) batch(n int) []ledger.Record {
	out := make([]ledger.Record, n)
	for i := range out {
		if i%10 == 0 {
			f.millis++ // ten thousand a second
			f.sessions[mrand.IntN(len(f.sessions))] = f.id()
		}
		out[i] = ledger.Record{
			Entry: f.entry, IDs: []string{f.id(), f.id()}, Session: f.sessions[mrand.IntN(len(f.sessions))],
		}
	}
	return out
}

func benchLedger(b *testing.B) (*ledger.Ledger, string) {
	path := filepath.Join(b.TempDir(), "ledger.db")
	signer, _ := ledgertest.Key(b)
	l, err := ledger.Open(path, ledger.Config{LogName: ledgertest.Name, Signer: signer})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { l.Close() })
	return l, path
}

// BenchmarkAppend measures commits of 256, fsync included, by the size of the ledger and by how far the IDs' times differ:
// on a busy machine the CPU time and the bytes written tell more than the wall's clock.
func BenchmarkAppend(b *testing.B) {
	for _, spread := range []int64{50, 2000} {
		l, path := benchLedger(b)
		f := newFiller(spread)
		for _, entries := range []int{10_000, 100_000, 1_000_000} {
			for l.Size() < uint64(entries) {
				if err := l.Append(b.Context(), l.Size(), f.batch(5000)); err != nil {
					b.Fatal(err)
				}
			}
			if info, err := os.Stat(path); err == nil {
				b.Logf("%d entries of %d bytes: %d bytes each in the file", entries, len(f.entry),
					info.Size()/int64(l.Size()))
			}
			for _, size := range []int{1, 16, 256} {
				b.Run(fmt.Sprintf("spread=%dms/entries=%d/batch=%d", spread, entries, size), func(b *testing.B) {
					batches := make([][]ledger.Record, b.N)
					for i := range batches {
						batches[i] = f.batch(size)
					}
					cpu, written := usage(b)
					b.ResetTimer()
					for _, batch := range batches {
						if err := l.Append(b.Context(), l.Size(), batch); err != nil {
							b.Fatal(err)
						}
					}
					b.StopTimer()
					cpuAfter, writtenAfter := usage(b)
					n := float64(b.N * size)
					b.ReportMetric(float64((cpuAfter-cpu).Nanoseconds())/1000/n, "cpu-µs/entry")
					b.ReportMetric((writtenAfter-written)/n, "written-B/entry")
				})
			}
		}
		l.Close()
	}
}

// usage is the CPU time of the process and the bytes that it has written.
func usage(b *testing.B) (cpu time.Duration, written float64) {
	var r syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &r); err != nil {
		b.Fatal(err)
	}
	return time.Duration(r.Utime.Nano() + r.Stime.Nano()), float64(r.Oublock) * 512
}

// BenchmarkDurability is a commit of some entries with its two syncs, and the same without: what it costs that a loss of power takes
// nothing that was receipted. They take turns, so that they compare.
func BenchmarkDurability(b *testing.B) {
	for _, entries := range []int{1, 16, 256} {
		b.Run(fmt.Sprintf("entries=%d", entries), func(b *testing.B) {
			signer, _ := ledgertest.Key(b)
			cfg := ledger.Config{LogName: signer.Name(), Signer: signer}
			var took [2]time.Duration
			var ledgers [2]*ledger.Ledger
			for i, open := range []func(string, ledger.Config) (*ledger.Ledger, error){ledger.Open, ledger.OpenWithoutSync} {
				l, err := open(filepath.Join(b.TempDir(), "ledger.db"), cfg)
				if err != nil {
					b.Fatal(err)
				}
				defer l.Close()
				ledgers[i] = l
			}
			f := newFiller(50)
			for b.Loop() {
				batch := f.batch(entries)
				for i, l := range ledgers {
					begun := time.Now()
					if err := l.Append(b.Context(), l.Size(), batch); err != nil {
						b.Fatal(err)
					}
					took[i] += time.Since(begun)
				}
			}
			b.ReportMetric(float64(took[0].Microseconds())/float64(b.N), "synced_us")
			b.ReportMetric(float64(took[1].Microseconds())/float64(b.N), "unsynced_us")
			b.ReportMetric(float64(took[0])/float64(took[1]), "ratio")
		})
	}
}
