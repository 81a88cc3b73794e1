package handoff_test

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/handoff-governor/handoff-governor/handoff"
	"github.com/handoff-governor/handoff-governor/handoff/guard"
	"github.com/handoff-governor/handoff-governor/handoff/identity"
	"github.com/handoff-governor/handoff-governor/handoff/wire"
)

// toolServer starts a tool behind a guard that watches the governor's revocations.
func (w *world) toolServer() *httptest.Server {
	w.t.Helper()
	watcher := w.connect("/guard/tools")
	issuer, err := guard.IssuerOf(must(watcher.Keys(w.ctx()))(w.t))
	if err != nil {
		w.t.Fatal(err)
	}
	var g *guard.Guard
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		guard.Handler(g, http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
			call, _ := guard.FromContext(r.Context())
			if string(call.Args) == `{"path":"/b"}` {
				http.Error(rw, "no such file", http.StatusForbidden)
				return
			}
			io.WriteString(rw, call.Agent+" reads "+string(call.Args))
		}), guard.Options{RequireCaller: true}).ServeHTTP(rw, r)
	}))
	source := w.source("/guard/tools")
	server.Listener = tls.NewListener(server.Listener, identity.ServerTLS(source, source, identity.AnyPeer))
	server.Config.ErrorLog = slog.NewLogLogger(w.log.Handler(), slog.LevelInfo)
	server.Start()
	server.URL = "https://" + server.Listener.Addr().String()
	w.t.Cleanup(server.Close)
	// The guard was there before, as guards are when agents call.
	started := time.Now().Add(-time.Minute)
	now := func() time.Time { return started }
	g, err = guard.New(guard.Config{Audience: []string{server.URL}, Issuers: []guard.Issuer{issuer}, Logger: w.log,
		Now: func() time.Time { return now() }})
	if err != nil {
		w.t.Fatal(err)
	}
	now = time.Now
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- watcher.WatchRevocations(ctx, g) }()
	w.t.Cleanup(func() {
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			w.t.Errorf("watching ended with %v", err)
		}
	})
	return server
}

func (w *world) as(path string) *http.Client {
	w.t.Helper()
	source := w.source(path)
	return &http.Client{Transport: &http.Transport{TLSClientConfig: identity.ClientTLS(source, source, identity.AnyPeer)}}
}

func call(w *world, g *handoff.Grant, client *http.Client, url, path string) (string, error) {
	r, err := g.CallHTTP(w.ctx(), client, url, "fs.read", map[string]string{"path": path})
	if err != nil {
		return "", err
	}
	defer r.Body.Close()
	body, err := io.ReadAll(r.Body)
	return string(body), err
}

// eventually waits for the first answer with that code; "" is none.
func eventually(t testing.TB, code wire.Code, try func() error) {
	t.Helper()
	var err error
	for deadline := time.Now().Add(15 * time.Second); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		if err = try(); err == nil && code == "" || errors.Is(err, &wire.Error{Code: code}) {
			return
		}
	}
	t.Fatalf("got %v, want %q", err, code)
}

// A grant is good at the guard for as long as the task, and no longer.
func TestCallTools(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	tools := w.toolServer()
	a, b := w.agent("a"), w.agent("b")
	session := w.session(a)
	asA, asB := w.as("/agent/a"), w.as("/agent/b")

	eventually(t, "", func() error { _, err := call(w, session.Grant, asA, tools.URL, "/a"); return err })
	must(session.Offer(w.ctx(), "b", []byte("read"), handoff.Tools(readFiles("/a", "/b"))))(t)
	task := w.receive(b)
	if got := must(call(w, task.Grant, asB, tools.URL, "/a"))(t); got != b.Name()+` reads {"path":"/a"}` {
		t.Errorf("the tool says %q", got)
	}
	if got, err := call(w, task.Grant, asB, tools.URL, "/b"); err != nil || got != "no such file\n" {
		t.Errorf("the tool's own refusal: %q, %v", got, err)
	}
	_, err := call(w, task.Grant, asA, tools.URL, "/a")
	wantCode(t, err, wire.CodeCaller)
	_, err = call(w, task.Grant, asB, tools.URL, "/c")
	wantCode(t, err, wire.CodeNotGranted)
	if _, err := task.Call(w.ctx(), tools.URL, "fs.write", nil); !errors.Is(err, &wire.Error{Code: wire.CodeNotGranted}) {
		t.Errorf("a tool that was not granted: %v", err)
	}
	elsewhere, err := task.Call(w.ctx(), "https://else.example.com", "fs.read", map[string]string{"path": "/a"})
	if err != nil || elsewhere.PoP == "" {
		t.Error(err)
	}

	if err := task.Complete(w.ctx(), nil); err != nil {
		t.Fatal(err)
	}
	eventually(t, wire.CodeParentEnded, func() error { _, err := call(w, task.Grant, asB, tools.URL, "/a"); return err })
	must(call(w, session.Grant, asA, tools.URL, "/a"))(t)

	must(session.Offer(w.ctx(), "b", []byte("again"), handoff.Tools(readFiles("/a"))))(t)
	task = w.receive(b)
	must(call(w, task.Grant, asB, tools.URL, "/a"))(t)
	if err := session.Close(w.ctx(), ""); err != nil {
		t.Fatal(err)
	}
	eventually(t, wire.CodeRevoked, func() error { _, err := call(w, task.Grant, asB, tools.URL, "/a"); return err })
	_, err = call(w, session.Grant, asA, tools.URL, "/a")
	wantCode(t, err, wire.CodeRevoked)
}

// A guard that loses its governor closes, and opens again by itself.
func TestGuardOutlivesTheGovernor(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	tools := w.toolServer()
	a := w.agent("a")
	asA := w.as("/agent/a")
	kept, closed := w.session(a), w.session(a)
	try := func(s *handoff.Session) func() error {
		return func() error { _, err := call(w, s.Grant, asA, tools.URL, "/a"); return err }
	}
	eventually(t, "", try(kept))
	eventually(t, "", try(closed))
	if err := closed.Close(w.ctx(), ""); err != nil {
		t.Fatal(err)
	}
	w.stop()
	eventually(t, wire.CodeGuardFeed, try(kept))
	w.start()
	eventually(t, "", try(kept))
	eventually(t, wire.CodeRevoked, try(closed))
}
