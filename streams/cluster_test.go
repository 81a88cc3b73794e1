package streams_test

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/jwt/v2"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nkeys"

	"github.com/handoff-governor/handoff-governor/handoff/wire"
	"github.com/handoff-governor/handoff-governor/streams"
)

// Whoever sends more than its rate is cut off in both, and others are not.
func TestAttackMoreThanTheRate(t *testing.T) {
	t.Parallel()
	inBoth(t, func(t *testing.T, start func(...func(*streams.Config)) *world) {
		w := start(func(c *streams.Config) { c.Limits.Rate = 100 })
		w.serve(func(_ context.Context, req wire.Request) { _ = req.Respond(nil) })
		flood, calm := w.join("agent/flood", nats.NoReconnect()), w.join("agent/calm", nats.NoReconnect())
		for end := time.Now().Add(20 * time.Second); !flood.IsClosed(); {
			if time.Now().After(end) {
				t.Fatal("never cut off")
			}
			_ = flood.Publish("handoff.busy", nil)
			time.Sleep(time.Millisecond)
		}
		if _, err := w.dial("agent/flood"); err == nil {
			t.Error("the flooder came straight back")
		}
		if _, err := calm.Request(wire.SubjectKeys, nil, 5*time.Second); err != nil {
			t.Errorf("the calm one: %v", err)
		}
	})
}

// An agent can work through any server, and what it was promised stays when that one dies.
func TestClusterLosesAServer(t *testing.T) {
	t.Parallel()
	// What was on its way to the governor through the server that dies comes again after AckWait.
	w := newCluster(t, func(c *streams.Config) { c.Limits.AckWait = 2 * time.Second })
	urls := w.cluster.URLs
	a, err := w.dialAt(urls[0], w.issue("agent/a", time.Hour))
	check(t, err)
	defer a.Close()
	b, err := w.dialAt(urls[1], w.issue("agent/b", time.Hour))
	check(t, err)
	defer b.Close()
	for _, c := range []*nats.Conn{a, b} {
		_, err := ask(c, wire.OfferSubject("s", "x"), []byte("before"), 5*time.Second)
		check(t, err)
	}
	for _, in := range w.fetch(2) {
		check(t, in.Ack())
	}
	_, err = b.Request(wire.OfferSubject("s", "x"), []byte("kept"), 5*time.Second)
	check(t, err)
	w.cluster.Kill(0)
	// What was acknowledged through the server that died may come again.
	for got := ""; got != "kept"; {
		in := w.fetch(1)[0]
		got = string(in.Body)
		check(t, in.Ack())
		if got != "kept" && got != "before" {
			t.Errorf("got %q", got)
		}
	}
	for i, end := 0, time.Now().Add(20*time.Second); ; i++ {
		if _, err = b.Request(wire.OfferSubject("s", "x"), []byte("after"), time.Second); err == nil {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("nothing is taken by two of three servers: %v", err)
		}
	}
	w.fetch(1)
	w.cluster.Run(0)
	end := time.Now().Add(30 * time.Second)
	for {
		conn, err := w.dialAt(urls[0], w.issue("agent/a", time.Hour))
		if err == nil {
			conn.Close()
			break
		}
		if time.Now().After(end) {
			t.Fatalf("the server that came back lets nobody in: %v", err)
		}
	}
}

// Who waits for messages waits on while the governor is away: its start does not have the servers forget them.
func TestClusterGovernorComesBack(t *testing.T) {
	t.Parallel()
	w := newCluster(t)
	b := w.join("agent/b")
	got := make(chan string, 1)
	reading, err := b.inbox().Consume(func(msg jetstream.Msg) {
		_ = msg.Ack()
		got <- string(msg.Data())
	})
	check(t, err)
	defer reading.Stop()
	for _, body := range []string{"before", "after"} {
		check(t, w.Governor().Deliver(t.Context(), []wire.Outbound{{To: "b", Body: []byte(body)}}))
		select {
		case is := <-got:
			if is != body {
				t.Errorf("got %q, want %q", is, body)
			}
		case <-time.After(10 * time.Second): // a forgotten request is made again after thirty
			t.Fatalf("%q does not come", body)
		}
		check(t, w.Close())
		w.start()
	}
}

// SVIDs and bundles of the servers rotate, and no connection ends.
func TestClusterServersRotate(t *testing.T) {
	t.Parallel()
	w := newCluster(t)
	lost := make(chan error, 16)
	a := w.join("agent/a", nats.DisconnectErrHandler(func(_ *nats.Conn, err error) { lost <- err }))
	for i := range w.cluster.URLs {
		w.cluster.Write(i, w.files(fmt.Sprintf("nats-%d", i+1)))
		w.cluster.Reload(i)
	}
	a.offer("s", "b", "after the rotation")
	w.fetch(1)
	w.join("agent/c").offer("s", "b", "by a new one")
	w.fetch(1)
	select {
	case err := <-lost:
		t.Errorf("disconnected: %v", err)
	default:
	}
}

// An SVID makes nobody a server of the cluster, and no user of its own.
func TestAttackClusterFromOutside(t *testing.T) {
	t.Parallel()
	w := newCluster(t)
	w.join("agent/b").offer("s", "x", "b's")
	for name, opts := range map[string][]nats.Option{
		"a user and password":        {nats.UserInfo("routes", w.keys.Routes)},
		"a token":                    {nats.Token("governor")},
		"a user of another operator": {foreignUser(t)},
	} {
		conn, err := w.dial("stranger/x", opts...)
		if err == nil {
			conn.Close()
			t.Errorf("%s: connected", name)
		}
	}
	// With a good SVID those give nothing more.
	conn, err := w.dial("agent/a", nats.UserInfo("routes", w.keys.Routes))
	if err == nil {
		defer conn.Close()
		if _, err := conn.Request("$SYS.REQ.SERVER.PING", nil, 300*time.Millisecond); err == nil {
			t.Error("an agent has the system account")
		}
	}
	// Beside clients, only the routes are listened on, and they want the password.
	route := w.cluster.Routes[0]
	if got := w.greetRoute(route, "CONNECT {\"user\":\"routes\",\"pass\":\"guess\",\"name\":\"x\",\"cluster\":\"handoff\"}\r\nPING\r\n"); !strings.Contains(got, "Authorization Violation") {
		t.Errorf("a route with a guessed password: %q", got)
	}
}

// greetRoute speaks to the port of the routes with an agent's SVID, and returns what the server says to it.
func (w *world) greetRoute(addr, words string) string {
	w.t.Helper()
	conn, err := net.DialTimeout("tcp", addr, 5*time.Second)
	check(w.t, err)
	defer conn.Close()
	check(w.t, conn.SetDeadline(time.Now().Add(5*time.Second)))
	secure := tls.Client(conn, &tls.Config{
		Certificates: []tls.Certificate{w.issue("agent/a", time.Hour)}, RootCAs: w.roots(), ServerName: "127.0.0.1",
	})
	_, err = secure.Write([]byte(words))
	check(w.t, err)
	said, _ := io.ReadAll(secure) // until the server ends it, or the time is out
	return string(said)
}

// foreignUser is a user whom an account of somebody else's signed.
func foreignUser(t *testing.T) nats.Option {
	t.Helper()
	account, err := nkeys.CreateAccount()
	check(t, err)
	user, err := nkeys.CreateUser()
	check(t, err)
	public, err := user.PublicKey()
	check(t, err)
	token, err := jwt.NewUserClaims(public).Encode(account)
	check(t, err)
	return nats.UserJWT(func() (string, error) { return token, nil }, user.Sign)
}
