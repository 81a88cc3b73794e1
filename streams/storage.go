package streams

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// storage watches whether the embedded server can write. A stream whose file could not be written takes nothing more until the
// server starts again, however much room there is by then, and says so in its log alone.
type storage struct {
	dir     string
	failure atomic.Pointer[error]
	stalled chan struct{}
	once    sync.Once
}

func newStorage(dir string) *storage { return &storage{dir: dir, stalled: make(chan struct{})} }

// heard looks for the words of nats-server; a test has it say them.
func (s *storage) heard(line string) {
	if strings.Contains(line, "ritical write error") {
		err := errors.New(line)
		s.failure.CompareAndSwap(nil, &err)
	}
}

// trouble is why the streams take nothing, or nil.
func (s *storage) trouble() error {
	if err := s.failure.Load(); err != nil {
		return fmt.Errorf("streams: %w", *err)
	}
	return nil
}

// probeEvery is how often it is tried whether there is room again.
const probeEvery = time.Second

// run closes stalled once a stream has failed and the disk can be written again.
func (s *storage) run(ctx context.Context) {
	tick := time.NewTicker(probeEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			if s.trouble() != nil && probe(s.dir) == nil {
				s.once.Do(func() { close(s.stalled) })
				return
			}
		}
	}
}

// probeSize is what must fit: less, and the streams fail again at once.
const probeSize = 1 << 20

// probe tells whether a file can be written.
func probe(dir string) (err error) {
	f, err := os.CreateTemp(dir, ".probe-*")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close(), os.Remove(f.Name())) }()
	if _, err := f.Write(make([]byte, probeSize)); err != nil {
		return err
	}
	return f.Sync()
}

// Stalled is closed when streams could not be written and take nothing any more, though the disk has room again: the server must be
// started anew.
func (s *Server) Stalled() <-chan struct{} { return s.storage.stalled }

// Stalled never is: the servers are somebody else's.
func (c *Cluster) Stalled() <-chan struct{} { return nil }

// Trouble is why the streams take nothing at the moment, or nil where that is not known.
func (b *Bus) Trouble() error {
	if b.trouble == nil {
		return nil
	}
	return b.trouble()
}
