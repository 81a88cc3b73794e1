package ledger_test

import (
	"crypto/rand"
	"encoding/binary"
	"fmt"
	mrand "math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/uuid"

	"github.com/handoff-governor/handoff-governor/governor/ledger"
	"github.com/handoff-governor/handoff-governor/governor/ledger/ledgertest"
)

// filler makes records as a busy governor's: entries of 1.2 KiB, two IDs made within two seconds of each other, one of a
// thousand sessions.
type filler struct {
	millis   int64 // the clock
	entry    []byte
	sessions []string
}

func newFiller() *filler {
	f := &filler{millis: 1_800_000_000_000, entry: make([]byte, 1200), sessions: make([]string, 1000)}
	rand.Read(f.entry)
	for i := range f.sessions {
		f.sessions[i] = f.id()
	}
	return f
}

func (f *filler) id() string {
	var u uuid.UUID
	rand.Read(u[6:])
	binary.BigEndian.PutUint64(u[:8], uint64(f.millis-mrand.Int64N(2000))<<16|uint64(u[6])<<8|uint64(u[7]))
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

// BenchmarkAppend is the time of a commit, fsync included, by the size of its batch and of the ledger.
func BenchmarkAppend(b *testing.B) {
	for _, entries := range []int{10_000, 100_000, 1_000_000} {
		l, path := benchLedger(b)
		f := newFiller()
		for l.Size() < uint64(entries) {
			if err := l.Append(b.Context(), l.Size(), f.batch(5000)); err != nil {
				b.Fatal(err)
			}
		}
		if info, err := os.Stat(path); err == nil {
			b.Logf("%d entries of %d bytes: %d bytes each in the file", entries, len(f.entry), info.Size()/int64(l.Size()))
		}
		for _, size := range []int{1, 16, 256} {
			b.Run(fmt.Sprintf("entries=%d/batch=%d", entries, size), func(b *testing.B) {
				var batches [][]ledger.Record
				for range 64 {
					batches = append(batches, f.batch(size))
				}
				i := 0
				for b.Loop() {
					if i == len(batches) {
						b.StopTimer()
						for i = range batches {
							batches[i] = f.batch(size)
						}
						i = 0
						b.StartTimer()
					}
					if err := l.Append(b.Context(), l.Size(), batches[i]); err != nil {
						b.Fatal(err)
					}
					i++
				}
				b.ReportMetric(float64(b.Elapsed().Microseconds())/float64(b.N*size), "µs/entry")
			})
		}
		l.Close()
	}
}
