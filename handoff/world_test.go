package handoff_test

import (
	"context"
	"errors"
	"log/slog"
	"sync/atomic"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/handoff-governor/handoff-governor/cmd/governor/daemon"
	"github.com/handoff-governor/handoff-governor/governor/devspiffe"
	"github.com/handoff-governor/handoff-governor/handoff"
	"github.com/handoff-governor/handoff-governor/handoff/aat"
)

// The tests run against the real thing: the daemon with its embedded NATS server, mTLS, OPA and bbolt.

// world is a running governor.
type world struct {
	t       testing.TB
	cfg     daemon.Config
	d       *daemon.Daemon
	running atomic.Pointer[daemon.Daemon] // d, for other goroutines
	log     *slog.Logger
}

func newWorld(t testing.TB, change ...func(*daemon.Config)) *world {
	t.Helper()
	level := slog.LevelWarn
	if testing.Verbose() {
		level = slog.LevelInfo
	}
	w := &world{t: t, log: slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: level}))}
	w.cfg = daemon.Config{Dir: t.TempDir(), Listen: "127.0.0.1:0"}
	for _, f := range change {
		f(&w.cfg)
	}
	w.start()
	t.Cleanup(w.stop)
	return w
}

func (w *world) start() {
	w.t.Helper()
	d, err := daemon.Start(context.Background(), w.cfg)
	if err != nil {
		w.t.Fatal(err)
	}
	w.d = d
	w.running.Store(d)
	w.cfg.Listen = d.Endpoint.URL[len("tls://"):] // the same port after a restart
}

func (w *world) stop() {
	w.t.Helper()
	if w.d == nil {
		return
	}
	w.running.Store(nil)
	if err := w.d.Close(); err != nil {
		w.t.Errorf("closing the daemon: %v", err)
	}
	w.d = nil
}

// source is an identity that outlives the daemon, as one from a Workload API of its own would.
type source struct {
	path string
	d    *atomic.Pointer[daemon.Daemon]
}

func (w *world) source(path string) source { return source{path, &w.running} }

func (s source) now() (*devspiffe.Source, error) {
	d := s.d.Load()
	if d == nil {
		return nil, errors.New("the Workload API is down")
	}
	return d.Source(s.path)
}

func (s source) GetX509SVID() (*x509svid.SVID, error) {
	now, err := s.now()
	if err != nil {
		return nil, err
	}
	return now.GetX509SVID()
}

func (s source) GetX509BundleForTrustDomain(td spiffeid.TrustDomain) (*x509bundle.Bundle, error) {
	now, err := s.now()
	if err != nil {
		return nil, err
	}
	return now.GetX509BundleForTrustDomain(td)
}

// connect connects a process with the SPIFFE ID of that path.
func (w *world) connect(path string, change ...func(*handoff.Config)) *handoff.Client {
	w.t.Helper()
	cfg := handoff.Config{URL: w.d.Endpoint.URL, Source: w.source(path), Logger: w.log.With("process", path)}
	for _, f := range change {
		f(&cfg)
	}
	c, err := handoff.Connect(w.ctx(), cfg)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() {
		if err := c.Close(); err != nil {
			w.t.Errorf("closing %s: %v", path, err)
		}
	})
	return c
}

func (w *world) agent(short string, change ...func(*handoff.Config)) *handoff.Client {
	w.t.Helper()
	return w.connect("/agent/"+short, change...)
}

// ctx is long enough for anything but a hang.
func (w *world) ctx() context.Context { return within(w.t, 90*time.Second) }

func within(t testing.TB, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), d)
	t.Cleanup(cancel)
	return ctx
}

// session opens a session with tools for reading two files.
func (w *world) session(c *handoff.Client, change ...func(*handoff.SessionRequest)) *handoff.Session {
	w.t.Helper()
	r := handoff.SessionRequest{Objective: "test", Tools: readFiles("/a", "/b"), MaxHops: 4}
	for _, f := range change {
		f(&r)
	}
	s, err := c.OpenSession(w.ctx(), r)
	if err != nil {
		w.t.Fatal(err)
	}
	return s
}

func (w *world) receive(c *handoff.Client) *handoff.Task {
	w.t.Helper()
	task, err := c.Receive(w.ctx())
	if err != nil {
		w.t.Fatal(err)
	}
	return task
}

func readFiles(paths ...any) aat.Tools {
	return aat.Tools{"fs.read": {"path": aat.OneOf(paths...)}, "fs.list": {}}
}

func must[T any](v T, err error) func(testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}
