package identity_test

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/handoff-governor/handoff-governor/handoff/identity"
)

// sources is both kinds of source, and its content can be replaced, as rotation does.
type sources struct {
	svid   atomic.Pointer[x509svid.SVID]
	bundle atomic.Pointer[x509bundle.Bundle]
}

func newSources(svid *x509svid.SVID, bundle *x509bundle.Bundle) *sources {
	s := new(sources)
	s.svid.Store(svid)
	s.bundle.Store(bundle)
	return s
}

func (s *sources) GetX509SVID() (*x509svid.SVID, error) { return s.svid.Load(), nil }

func (s *sources) GetX509BundleForTrustDomain(td spiffeid.TrustDomain) (*x509bundle.Bundle, error) {
	return s.bundle.Load().GetX509BundleForTrustDomain(td)
}

// connect has a client and a server shake hands over TCP, exchange a byte each way, and part. It returns what each
// saw; in TLS 1.3 a client learns that it was refused when it reads.
func connect(t *testing.T, server, client *tls.Config) (
	serverSaw, clientSaw tls.ConnectionState, serverErr, clientErr error,
) {
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
		serverSaw = conn.ConnectionState()
	}()
	raw, err := net.Dial("tcp", listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	conn := tls.Client(raw, client)
	clientErr = exchange(conn)
	clientSaw = conn.ConnectionState()
	_ = conn.Close()
	<-done
	return serverSaw, clientSaw, serverErr, clientErr
}

func exchange(conn *tls.Conn) error {
	if err := conn.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
		return err
	}
	if err := conn.Handshake(); err != nil {
		return err
	}
	if _, err := conn.Write([]byte{1}); err != nil {
		return err
	}
	_, err := io.ReadFull(conn, make([]byte, 1))
	return err
}

func expired(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Second) }

func TestTLSBothWays(t *testing.T) {
	acme := newAuthority(t, "acme.example")
	server, client := newSources(acme.svid(nil), acme.x509Bundle()), newSources(acme.svid(nil), acme.x509Bundle())
	id := server.svid.Load().ID
	var seen identity.Peer
	serverTLS := identity.ServerTLS(server, server, func(p identity.Peer) error { seen = p; return nil })
	clientTLS := identity.ClientTLS(client, client, identity.OnlyPeer(id))

	for range 2 { // the second time with other SVIDs, under the same configurations
		serverSaw, clientSaw, serverErr, clientErr := connect(t, serverTLS, clientTLS)
		if serverErr != nil || clientErr != nil {
			t.Fatal(serverErr, clientErr)
		}
		if !serverSaw.PeerCertificates[0].Equal(client.svid.Load().Certificates[0]) ||
			!clientSaw.PeerCertificates[0].Equal(server.svid.Load().Certificates[0]) {
			t.Error("a side showed another certificate than its current one")
		}
		if seen.ID != client.svid.Load().ID || serverSaw.Version != tls.VersionTLS13 {
			t.Errorf("the server saw %+v by TLS %x", seen, serverSaw.Version)
		}
		server.svid.Store(acme.svid(nil))
		client.svid.Store(acme.svid(nil))
	}
}

func TestTLSRefuses(t *testing.T) {
	acme, other := newAuthority(t, "acme.example"), newAuthority(t, "other.example")
	good := func() *sources { return newSources(acme.svid(nil), acme.x509Bundle()) }
	id := good().svid.Load().ID
	only, noOne := identity.OnlyPeer(id), identity.Authorizer(nil)
	refused := errors.New("refused by name")
	old := newSources(acme.svid(expired), acme.x509Bundle())
	foreign := newSources(other.svid(nil), acme.x509Bundle())
	tls12 := func(c *tls.Config) *tls.Config { c.MinVersion, c.MaxVersion = 0, tls.VersionTLS12; return c }
	server := func(s *sources, a identity.Authorizer) *tls.Config { return identity.ServerTLS(s, s, a) }
	client := func(s *sources, a identity.Authorizer) *tls.Config { return identity.ClientTLS(s, s, a) }

	for name, c := range map[string]struct {
		server, client *tls.Config
		side, why      string
	}{
		"the server's own SVID has expired": {server(old, only), client(good(), only), "server", "own X.509-SVID"},
		"the client's own SVID has expired": {server(good(), only), client(old, only), "client", "own X.509-SVID"},
		"the server has no SVID": {
			server(newSources(nil, acme.x509Bundle()), only), client(good(), only), "server", "own X.509-SVID",
		},
		"the server has no source": {identity.ServerTLS(nil, good(), only), client(good(), only), "server", "no source"},
		"the client has no source": {server(good(), only), identity.ClientTLS(nil, good(), only), "client", "no source"},
		"a foreign client":         {server(good(), identity.AnyPeer), client(foreign, only), "server", "not authenticated"},
		"a foreign server":         {server(foreign, only), client(good(), identity.AnyPeer), "client", "not authenticated"},
		"a server of another name": {
			server(good(), only), client(good(), identity.OnlyPeer(acme.td.ID())), "client", "expected",
		},
		"a client that is refused": {
			server(good(), func(identity.Peer) error { return refused }), client(good(), only), "server", refused.Error(),
		},
		"a server that authorizes nobody": {server(good(), noOne), client(good(), only), "server", "nobody"},
		"a client that authorizes nobody": {server(good(), only), client(good(), noOne), "client", "nobody"},
		"a client without a certificate": {
			server(good(), identity.AnyPeer), &tls.Config{InsecureSkipVerify: true}, "server", "client didn't provide",
		},
		"TLS 1.2 from the client": {server(good(), only), tls12(client(good(), only)), "server", "version"},
		"TLS 1.2 from the server": {tls12(server(good(), only)), client(good(), only), "client", "version"},
		"anonymous admitted, but a bad certificate": {
			identity.ServerTLSAllowAnonymous(good(), good(), only), client(foreign, only), "server", "not authenticated",
		},
		"anonymous admitted, but nobody named": {
			identity.ServerTLSAllowAnonymous(good(), good(), nil), client(good(), only), "server", "nobody",
		},
	} {
		_, _, serverErr, clientErr := connect(t, c.server, c.client)
		if serverErr == nil || clientErr == nil {
			t.Errorf("%s: server %v, client %v", name, serverErr, clientErr)
			continue
		}
		err := map[string]error{"server": serverErr, "client": clientErr}[c.side]
		if !strings.Contains(err.Error(), c.why) {
			t.Errorf("%s: the %s says %q, which does not tell %q", name, c.side, err, c.why)
		}
	}
}

// A client takes the governor and the NATS servers of its cluster for the server, and nobody else: not an agent whose name
// looks like theirs, nor those of another trust domain.
func TestServerOf(t *testing.T) {
	home := spiffeid.RequireTrustDomainFromString("acme.example")
	governor := spiffeid.RequireFromPath(home, "/governor")
	for id, want := range map[string]bool{
		"spiffe://acme.example/governor":         true,
		"spiffe://acme.example/nats/nats-1":      true,
		"spiffe://acme.example/nats/eu/1":        true,
		"spiffe://acme.example/nats":             false,
		"spiffe://acme.example/natsx/1":          false,
		"spiffe://acme.example/agent/governor":   false,
		"spiffe://acme.example/agent/nats/1":     false,
		"spiffe://acme.example/governor/nats/1":  false,
		"spiffe://other.example/governor":        false,
		"spiffe://other.example/nats/nats-1":     false,
		"spiffe://acme.example/Nats/nats-1":      false,
		"spiffe://acme.example.evil/nats/nats-1": false,
	} {
		err := identity.ServerOf(governor)(identity.Peer{ID: spiffeid.RequireFromString(id)})
		if (err == nil) != want || err != nil && !errors.Is(err, identity.ErrUnauthenticated) {
			t.Errorf("%s: %v", id, err)
		}
	}
}

func TestTLSAllowsAnonymousWhereAsked(t *testing.T) {
	acme := newAuthority(t, "acme.example")
	s := newSources(acme.svid(nil), acme.x509Bundle())
	server := identity.ServerTLSAllowAnonymous(s, s, identity.AnyPeer)
	anonymous := identity.ClientTLS(s, s, identity.OnlyPeer(s.svid.Load().ID))
	anonymous.GetClientCertificate = nil
	serverSaw, _, serverErr, clientErr := connect(t, server, anonymous)
	if serverErr != nil || clientErr != nil || len(serverSaw.PeerCertificates) != 0 {
		t.Errorf("an anonymous client: %v, %v, %d certificates", serverErr, clientErr, len(serverSaw.PeerCertificates))
	}
	named := identity.ClientTLS(s, s, identity.OnlyPeer(s.svid.Load().ID))
	serverSaw, _, serverErr, clientErr = connect(t, server, named)
	if serverErr != nil || clientErr != nil || len(serverSaw.PeerCertificates) != 1 {
		t.Errorf("a named client: %v, %v, %d certificates", serverErr, clientErr, len(serverSaw.PeerCertificates))
	}
}

func TestTLSSessionsAreNotResumed(t *testing.T) {
	acme, other := newAuthority(t, "acme.example"), newAuthority(t, "other.example")
	server, client := newSources(acme.svid(nil), acme.x509Bundle()), newSources(acme.svid(nil), acme.x509Bundle())
	clientTLS := identity.ClientTLS(client, client, identity.AnyPeer)
	clientTLS.ServerName = "governor" // the key of the cache
	clientTLS.ClientSessionCache = tls.NewLRUClientSessionCache(8)

	strict := identity.ServerTLS(server, server, identity.AnyPeer)
	for range 2 {
		serverSaw, clientSaw, serverErr, clientErr := connect(t, strict, clientTLS)
		if serverErr != nil || clientErr != nil || serverSaw.DidResume || clientSaw.DidResume {
			t.Fatalf("resumed: %v %v; %v, %v", serverSaw.DidResume, clientSaw.DidResume, serverErr, clientErr)
		}
	}

	// Even a server that was made to give out tickets checks again when they come back.
	lax := identity.ServerTLS(server, server, identity.AnyPeer)
	lax.SessionTicketsDisabled = false
	for i := range 2 {
		serverSaw, _, serverErr, clientErr := connect(t, lax, clientTLS)
		if serverErr != nil || clientErr != nil || serverSaw.DidResume != (i == 1) {
			t.Fatalf("connection %d resumed: %v; %v, %v", i, serverSaw.DidResume, serverErr, clientErr)
		}
	}
	server.bundle.Store(other.x509Bundle())
	if serverSaw, _, serverErr, _ := connect(t, lax, clientTLS); !errors.Is(serverErr, identity.ErrUnauthenticated) {
		t.Errorf("a peer that is trusted no more came back: %v (resumed %v)", serverErr, serverSaw.DidResume)
	}
}
