package devspiffe_test

import (
	"context"
	"crypto/tls"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"

	"github.com/handoff-governor/handoff-governor/governor/devspiffe"
	"github.com/handoff-governor/handoff-governor/handoff/identity"
)

var (
	home     = spiffeid.RequireTrustDomainFromString("acme.example")
	planner  = spiffeid.RequireFromPath(home, "/agent/planner")
	coder    = spiffeid.RequireFromPath(home, "/agent/coder")
	governor = spiffeid.RequireFromPath(home, "/governor")
	stranger = spiffeid.RequireFromString("spiffe://other.example/agent/planner")
)

// start opens an authority that is closed with the test. Dir, TrustDomain and Logger default to a fresh directory,
// home, and silence.
func start(t testing.TB, config devspiffe.Config) *devspiffe.Authority {
	t.Helper()
	a, err := devspiffe.New(defaults(t, config))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := a.Close(); err != nil {
			t.Error(err)
		}
	})
	return a
}

func defaults(t testing.TB, config devspiffe.Config) devspiffe.Config {
	if config.Dir == "" {
		config.Dir = t.TempDir()
	}
	if config.TrustDomain.IsZero() {
		config.TrustDomain = home
	}
	if config.Logger == nil {
		config.Logger = slog.New(slog.DiscardHandler)
	}
	return config
}

func socket(t testing.TB, a *devspiffe.Authority, id spiffeid.ID) string {
	t.Helper()
	addr, err := a.Socket(id)
	if err != nil {
		t.Fatal(err)
	}
	return addr
}

// file returns the path of a socket's address.
func file(addr string) string { return strings.TrimPrefix(addr, "unix://") }

func withAddr(addr string) workloadapi.SourceOption {
	return workloadapi.WithClientOptions(workloadapi.WithAddr(addr))
}

// x509Source is go-spiffe's own client.
func x509Source(t testing.TB, addr string) *workloadapi.X509Source {
	t.Helper()
	source, err := workloadapi.NewX509Source(deadline(t), withAddr(addr))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = source.Close() })
	return source
}

// rawClient is a client without go-spiffe's manners.
func rawClient(t testing.TB, addr string) workload.SpiffeWorkloadAPIClient {
	t.Helper()
	conn, err := grpc.NewClient(addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return workload.NewSpiffeWorkloadAPIClient(conn)
}

func deadline(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func withHeader(ctx context.Context) context.Context {
	return metadata.AppendToOutgoingContext(ctx, "workload.spiffe.io", "true")
}

func svidOf(t testing.TB, source x509svid.Source) *x509svid.SVID {
	t.Helper()
	svid, err := source.GetX509SVID()
	if err != nil {
		t.Fatal(err)
	}
	return svid
}

func bundleOf(t testing.TB, source x509bundle.Source) *x509bundle.Bundle {
	t.Helper()
	bundle, err := source.GetX509BundleForTrustDomain(home)
	if err != nil {
		t.Fatal(err)
	}
	return bundle.Clone()
}

// x509Both is a source of SVIDs and of bundles.
type x509Both interface {
	x509svid.Source
	x509bundle.Source
}

// handshake connects a client to a server over TCP, both with mTLS, and has them exchange a byte each way.
func handshake(t testing.TB, server, client *tls.Config) (saw tls.ConnectionState, serverErr, clientErr error) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	done := make(chan struct{})
	go func() {
		defer close(done)
		raw, err := listener.Accept()
		if err != nil {
			serverErr = err
			return
		}
		conn := tls.Server(raw, server)
		defer conn.Close()
		serverErr = exchange(conn)
		saw = conn.ConnectionState()
	}()
	raw, err := net.Dial("tcp", listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	conn := tls.Client(raw, client)
	clientErr = exchange(conn)
	_ = conn.Close()
	<-done
	return saw, serverErr, clientErr
}

func exchange(conn *tls.Conn) error {
	if err := conn.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
		return err
	}
	if _, err := conn.Write([]byte{1}); err != nil {
		return err
	}
	_, err := io.ReadFull(conn, make([]byte, 1))
	return err
}

// mTLS returns the configurations of a server and a client that insist on each other's identity.
func mTLS(t testing.TB, server, client x509Both) (s, c *tls.Config) {
	t.Helper()
	return identity.ServerTLS(server, server, identity.OnlyPeer(svidOf(t, client).ID)),
		identity.ClientTLS(client, client, identity.OnlyPeer(svidOf(t, server).ID))
}

// clock is a clock that tests set.
type clock struct {
	mu  sync.Mutex
	now time.Time
}

func newClock() *clock { return &clock{now: time.Now()} }

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *clock) Move(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}
