package streams

import (
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
)

// A request that the server has forgotten is made again when its pulse is missing, not when its time would be out.
func TestPullerHearsSilence(t *testing.T) {
	t.Parallel()
	s, err := server.NewServer(&server.Options{DontListen: true, NoSigs: true})
	must(t, err)
	s.Start()
	t.Cleanup(s.Shutdown)
	conn, err := nats.Connect("", nats.InProcessServer(s))
	must(t, err)
	t.Cleanup(conn.Close)
	p, err := newPuller(conn)
	must(t, err)

	start := time.Now()
	ask := func(after time.Duration, want int) {
		t.Helper()
		must(t, p.ask(start.Add(after)))
		if p.count != want {
			t.Errorf("after %s it has asked %d times, want %d", after, p.count, want)
		}
	}
	ask(0, 1)
	ask(pullSilence, 1)
	p.heard = start.Add(pullPulse)
	ask(pullSilence+pullPulse, 1)
	ask(pullSilence+pullPulse+time.Millisecond, 2)

	// The pulse ends no request.
	p.ours(&nats.Msg{Subject: p.pulls[0].reply, Header: nats.Header{"Status": {"100"}}})
	if len(p.pulls) != 1 {
		t.Errorf("there are %d requests after a pulse, want 1", len(p.pulls))
	}
	p.ours(&nats.Msg{Subject: p.pulls[0].reply, Header: nats.Header{"Status": {"409"}}})
	if len(p.pulls) != 0 {
		t.Errorf("there are %d requests after the end of the one", len(p.pulls))
	}
}
