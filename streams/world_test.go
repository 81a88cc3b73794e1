package streams_test

import (
	"cmp"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"log/slog"
	"math/big"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/handoff-governor/handoff-governor/handoff/wire"
	"github.com/handoff-governor/handoff-governor/streams"
	"github.com/handoff-governor/handoff-governor/streams/clustertest"
)

// deployment is what an embedded server and a cluster have in common.
type deployment interface {
	Governor() *streams.Bus
	URL() string
	Disconnect(ctx context.Context, name string) error
	Recheck(ctx context.Context) error
	Close() error
}

// world is a deployment with its authority over names, and the clients that connect to it.
type world struct {
	deployment
	t       testing.TB
	config  streams.Config
	cluster *clustertest.Cluster // nil for an embedded server
	keys    *streams.ClusterKeys
	key     *ecdsa.PrivateKey
	ca      *x509.Certificate

	mu     sync.Mutex
	banned map[string]bool
	log    *logSink
}

// inBoth runs a test in an embedded server and in a cluster.
func inBoth(t *testing.T, test func(t *testing.T, start func(change ...func(*streams.Config)) *world)) {
	t.Run("embedded", func(t *testing.T) {
		t.Parallel()
		test(t, func(change ...func(*streams.Config)) *world { return newWorld(t, change...) })
	})
	t.Run("cluster", func(t *testing.T) {
		t.Parallel()
		test(t, func(change ...func(*streams.Config)) *world { return newCluster(t, change...) })
	})
}

// newWorld starts a server. Certificates name their holder as role/name; so do the tokens of those who have none.
func newWorld(t testing.TB, change ...func(*streams.Config)) *world {
	t.Helper()
	w := makeWorld(t, change)
	w.start()
	return w
}

// newCluster starts three servers, and joins them.
func newCluster(t testing.TB, change ...func(*streams.Config)) *world {
	t.Helper()
	w := makeWorld(t, change)
	var err error
	w.keys, _, err = streams.NewClusterKeys()
	check(t, err)
	w.cluster = clustertest.Start(t, 3, w.keys, w.files)
	w.start()
	return w
}

// files are a node's.
func (w *world) files(string) clustertest.Files {
	w.t.Helper()
	cert := w.issue("nats", time.Hour)
	key, err := x509.MarshalPKCS8PrivateKey(cert.PrivateKey)
	check(w.t, err)
	return clustertest.Files{
		Cert:   pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Certificate[0]}),
		Key:    pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key}),
		Bundle: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: w.ca.Raw}),
	}
}

func makeWorld(t testing.TB, change []func(*streams.Config)) *world {
	t.Helper()
	w := &world{t: t, banned: map[string]bool{}, log: &logSink{}}
	w.key = newKey(t)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test authority"}, IsCA: true,
		BasicConstraintsValid: true, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, w.key.Public(), w.key)
	check(t, err)
	w.ca, err = x509.ParseCertificate(der)
	check(t, err)
	w.config = streams.Config{
		Dir:    t.TempDir(),
		Listen: "127.0.0.1:0",
		TLS: &tls.Config{
			Certificates: []tls.Certificate{w.issue("governor", time.Hour)},
			ClientAuth:   tls.RequestClientCert, MinVersion: tls.VersionTLS13, SessionTicketsDisabled: true,
		},
		Authenticate: w.authenticate,
		Logger:       slog.New(slog.NewTextHandler(w.log, nil)),
	}
	for _, f := range change {
		f(&w.config)
	}
	return w
}

func (w *world) start() {
	w.t.Helper()
	if w.cluster == nil {
		server, err := streams.Start(w.t.Context(), w.config)
		check(w.t, err)
		w.deployment = server
	} else {
		own := &tls.Config{Certificates: []tls.Certificate{w.issue("governor", time.Hour)}, RootCAs: w.roots()}
		cluster, err := streams.Join(w.t.Context(), streams.ClusterConfig{
			URLs: w.cluster.URLs, TLS: own, Keys: w.keys, Authenticate: w.config.Authenticate, Logger: w.config.Logger,
			Now: w.config.Now, Limits: w.config.Limits,
		})
		if err != nil {
			w.t.Fatalf("%v\n%s\n%s", err, w.cluster.Log(0), w.log)
		}
		w.deployment = cluster
	}
	started := w.deployment
	w.t.Cleanup(func() { started.Close() })
}

func (w *world) roots() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(w.ca)
	return pool
}

func (w *world) authenticate(_ context.Context, certs []*x509.Certificate, token string) (streams.Identity, error) {
	who, expires := token, time.Now().Add(time.Hour)
	if len(certs) > 0 {
		leaf := certs[0]
		if err := leaf.CheckSignatureFrom(w.ca); err != nil {
			return streams.Identity{}, err
		}
		who, expires = leaf.Subject.CommonName, leaf.NotAfter
	}
	role, name, ok := strings.Cut(who, "/")
	w.mu.Lock()
	defer w.mu.Unlock()
	if !ok || w.banned[name] {
		return streams.Identity{}, errors.New("not known here")
	}
	return streams.Identity{Name: name, Role: streams.Role(role), Expires: expires}, nil
}

func (w *world) ban(name string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.banned[name] = true
}

func (w *world) issue(who string, lifetime time.Duration) tls.Certificate {
	w.t.Helper()
	key := newKey(w.t)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: who}, NotBefore: time.Now().Add(-time.Minute),
		NotAfter: time.Now().Add(lifetime), KeyUsage: x509.KeyUsageDigitalSignature,
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, DNSNames: []string{"localhost"},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, cmp.Or(w.ca, template), key.Public(), w.key)
	check(w.t, err)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// dial connects with a certificate for who, role/name.
func (w *world) dial(who string, opts ...nats.Option) (*nats.Conn, error) {
	return w.dialWith(w.issue(who, time.Hour), opts...)
}

func (w *world) dialWith(cert tls.Certificate, opts ...nats.Option) (*nats.Conn, error) {
	return w.dialTLS(&tls.Config{Certificates: []tls.Certificate{cert}}, opts...)
}

func (w *world) dialTLS(config *tls.Config, opts ...nats.Option) (*nats.Conn, error) {
	return w.dialURL(w.URL(), config, opts...)
}

// dialAt connects to one server of a cluster, and stays with it.
func (w *world) dialAt(url string, cert tls.Certificate) (*nats.Conn, error) {
	return w.dialURL(url, &tls.Config{Certificates: []tls.Certificate{cert}}, nats.IgnoreDiscoveredServers())
}

func (w *world) dialURL(url string, config *tls.Config, opts ...nats.Option) (*nats.Conn, error) {
	config.RootCAs = w.roots()
	opts = append([]nats.Option{nats.Secure(config), nats.TLSHandshakeFirst(), nats.Timeout(5 * time.Second),
		nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {})}, opts...)
	return nats.Connect(url, opts...)
}

// client is a connected identity. Its errors are what the server told it asynchronously.
type client struct {
	*nats.Conn
	t      testing.TB
	js     jetstream.JetStream
	errors chan error
	closed chan struct{}
}

func (w *world) join(who string, opts ...nats.Option) *client {
	w.t.Helper()
	c := &client{t: w.t, errors: make(chan error, 4096), closed: make(chan struct{})}
	opts = append([]nats.Option{
		nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) {
			select {
			case c.errors <- err:
			default:
			}
		}),
		nats.ClosedHandler(func(*nats.Conn) { close(c.closed) }),
	}, opts...)
	conn, err := w.dial(who, opts...)
	check(w.t, err)
	w.t.Cleanup(conn.Close)
	c.Conn = conn
	c.js, err = jetstream.NewWithAPIPrefix(conn, wire.InboxPrefix)
	check(w.t, err)
	return c
}

// Request asks as [ask] does.
func (c *client) Request(subject string, body []byte, wait time.Duration) (*nats.Msg, error) {
	return ask(c.Conn, subject, body, wait)
}

// ask asks again while nobody serves the subject: a server of a cluster hears a moment later who serves it at another one.
func ask(conn *nats.Conn, subject string, body []byte, wait time.Duration) (*nats.Msg, error) {
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		answer, err := conn.Request(subject, body, wait)
		if !errors.Is(err, nats.ErrNoResponders) || time.Now().After(end) {
			return answer, err
		}
	}
}

func (c *client) inbox() jetstream.Consumer {
	c.t.Helper()
	for tries := 1; ; tries++ { // a cluster may drop what is asked while an account of it is new
		inbox, err := c.js.Consumer(c.t.Context(), wire.InboxStream, wire.InboxConsumer)
		if tries < 4 && errors.Is(err, context.DeadlineExceeded) {
			continue
		}
		check(c.t, err)
		return inbox
	}
}

// offer publishes and waits for the server to have it.
func (c *client) offer(session, to, body string) {
	c.t.Helper()
	_, err := c.js.Publish(c.t.Context(), wire.OfferSubject(session, to), []byte(body))
	check(c.t, err)
}

// denied publishes what must be refused by the server's permissions.
func (c *client) denied(subject, reply string, body []byte) {
	c.t.Helper()
	check(c.t, c.PublishMsg(&nats.Msg{Subject: subject, Reply: reply, Data: body}))
	check(c.t, c.Flush())
	select {
	case err := <-c.errors:
		if !errors.Is(err, nats.ErrPermissionViolation) && !strings.Contains(err.Error(), "ermissions Violation") {
			c.t.Errorf("publish on %s: %v, want a permissions violation", subject, err)
		}
	case <-time.After(5 * time.Second):
		c.t.Errorf("publish on %s was not refused", subject)
	}
}

// fetch takes exactly n messages from the bus and fails if there are fewer.
func (w *world) fetch(n int) []wire.Inbound {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.t.Context(), 30*time.Second)
	defer cancel()
	var all []wire.Inbound
	for len(all) < n {
		batch, err := w.Governor().Fetch(ctx, n-len(all), time.Second)
		if err != nil {
			w.t.Fatalf("fetched %d of %d: %v", len(all), n, err)
		}
		all = append(all, batch...)
	}
	return all
}

// nothing fails if there is anything to fetch.
func (w *world) nothing() {
	w.t.Helper()
	batch, err := w.Governor().Fetch(w.t.Context(), 10, 50*time.Millisecond)
	check(w.t, err)
	if len(batch) > 0 {
		w.t.Errorf("fetched %+v, want nothing", batch[0])
	}
}

// serve answers requests with handle until the test ends.
func (w *world) serve(handle func(context.Context, wire.Request)) {
	ctx, cancel := context.WithCancel(context.Background())
	var serving sync.WaitGroup
	serving.Go(func() { _ = w.Governor().Serve(ctx, handle) })
	w.t.Cleanup(func() { cancel(); serving.Wait() })
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	check(t, err)
	return key
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// logSink keeps the server's log.
type logSink struct {
	mu  sync.Mutex
	all strings.Builder
}

func (l *logSink) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.all.Write(p)
}

func (l *logSink) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.all.String()
}
