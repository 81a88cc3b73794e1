package streams

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/subtle"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/handoff-governor/handoff-governor/handoff/wire"
)

// Role says which local names an identity has.
type Role string

// The roles.
const (
	RoleAgent    Role = "agent"
	RoleGuard    Role = "guard"
	RoleOperator Role = "operator"
)

var roles = []Role{RoleAgent, RoleGuard, RoleOperator}

// Identity is who holds a connection, once authenticated.
type Identity struct {
	Name    string // agent name: one subject token of at most 180 bytes of [A-Za-z0-9_=-]
	Role    Role
	Expires time.Time // the server ends the connection then, at the latest
}

// Limits bound what identities can make the server hold. A zero field has the default that its comment names.
type Limits struct {
	Agents          int           // agents that ever connected: 10,000
	Connections     int           // of one identity at a time: 32; with the next, it bounds how often one answer is sent
	Subscriptions   int           // of one connection: 32
	IngressBytes    int64         // offers and results that wait: 1 GiB; over it publishers get an error
	IngressShare    int           // of those, messages of one agent: 10,000, and a quarter of IngressBytes
	InFlight        int           // messages fetched and not yet settled: 16,384
	AckWait         time.Duration // until a message fetched and not settled comes again: 30 s
	InboxMessages   int64         // waiting for one agent: 10,000; over it Deliver answers inbox_full
	InboxShare      int64         // bytes waiting for one agent, or for all that never connected: 64 MiB; over it the same. At least wire.MaxPayload
	InboxAge        time.Duration // after which what nobody takes is gone: 7 days
	InboxBytes      int64         // waiting for all agents: 4 GiB
	QuarantineBytes int64         // 256 MiB; the oldest go first
	QuarantineAge   time.Duration // 30 days
	Workers         int           // requests served at a time: 256, of one identity a quarter of that
	Requests        int           // of one identity that wait for a worker: 256, and 8 MiB; over it: unavailable
	PendingAnswers  int           // answers owed to all identities before who asks most is cut off: 200,000
}

// WithDefaults returns the limits that a [Server] holds to when it is given l.
func (l Limits) WithDefaults() Limits {
	return Limits{
		Agents:          cmp.Or(l.Agents, 10_000),
		Connections:     cmp.Or(l.Connections, 32),
		Subscriptions:   cmp.Or(l.Subscriptions, 32),
		IngressBytes:    cmp.Or(l.IngressBytes, 1<<30),
		IngressShare:    cmp.Or(l.IngressShare, 10_000),
		InFlight:        cmp.Or(l.InFlight, 16_384),
		AckWait:         cmp.Or(l.AckWait, 30*time.Second),
		InboxMessages:   cmp.Or(l.InboxMessages, 10_000),
		InboxShare:      max(cmp.Or(l.InboxShare, 64<<20), wire.MaxPayload),
		InboxAge:        cmp.Or(l.InboxAge, 7*24*time.Hour),
		InboxBytes:      cmp.Or(l.InboxBytes, 4<<30),
		QuarantineBytes: cmp.Or(l.QuarantineBytes, 256<<20),
		QuarantineAge:   cmp.Or(l.QuarantineAge, 30*24*time.Hour),
		Workers:         cmp.Or(l.Workers, 256),
		Requests:        cmp.Or(l.Requests, 256),
		PendingAnswers:  cmp.Or(l.PendingAnswers, 200_000),
	}
}

// Config of a [Server].
type Config struct {
	// Dir holds the streams. Required; made with mode 0700.
	Dir string
	// Listen is host:port, "127.0.0.1:4222" if empty. Port 0 takes a free one.
	Listen string
	// TLS is the server's side of mTLS. Required. It decides whether a client may come without a certificate: such a
	// client must present a token that Authenticate accepts.
	TLS *tls.Config
	// Authenticate says who is at the other end. Required. It gets the TLS state and the client's connect token, which
	// is "" for a client that sent none and must never be logged. It may be called again for the same connection.
	Authenticate func(ctx context.Context, conn tls.ConnectionState, token string) (Identity, error)
	// Logger is slog.Default() if nil.
	Logger *slog.Logger
	// Now is time.Now if nil.
	Now    func() time.Time
	Limits Limits
}

// authTimeout bounds a connection's handshake, and with it Authenticate.
const authTimeout = 5 * time.Second

// Server is the embedded NATS server. Its methods may be called concurrently.
type Server struct {
	config Config
	limits Limits
	log    *slog.Logger
	nats   *server.Server
	gov    *server.Account
	bus    *Bus

	ctx    context.Context
	cancel context.CancelFunc
	owned  sync.WaitGroup

	// permissions is the function of that name; tests take it away to see that the accounts hold alone.
	permissions func(Role, string) *server.Permissions
	// secret is how the governor's own connections say who they are. It never leaves the process.
	secret string
	// cuts counts Disconnects, so that none is overtaken by a connection that is just being judged.
	cuts atomic.Uint64

	samples    samples            // of watchAnswers
	shortQueue map[string]traffic // what was sent when the queue was last short: of watchQueue

	mu       sync.Mutex
	accounts map[string]*account // :: account name → account
}

// account is one identity's account, once it has all its imports.
type account struct {
	role  Role
	name  string
	nats  *server.Account
	ready sync.Mutex // held while it is being made
	made  atomic.Bool

	registering sync.Mutex // makes the limit of connections exact

	mu        sync.Mutex
	barred    time.Time // no connection before then
	throttled bool
}

// Start runs the server and returns when the governor's streams are there and clients can connect. The context only
// bounds the start.
func Start(ctx context.Context, config Config) (*Server, error) {
	if config.Dir == "" || config.TLS == nil || config.Authenticate == nil {
		return nil, errors.New("streams: Dir, TLS and Authenticate are required")
	}
	config.Listen = cmp.Or(config.Listen, "127.0.0.1:4222")
	config.Logger = cmp.Or(config.Logger, slog.Default())
	if config.Now == nil {
		config.Now = time.Now
	}
	limits := config.Limits.WithDefaults()
	host, portText, err := net.SplitHostPort(config.Listen)
	if err != nil {
		return nil, fmt.Errorf("streams: Listen: %w", err)
	}
	port, err := strconv.ParseUint(portText, 10, 16)
	if err != nil {
		return nil, fmt.Errorf("streams: Listen: port %q: %w", portText, err)
	}
	if err := errors.Join(os.MkdirAll(config.Dir, 0o700), os.Chmod(config.Dir, 0o700)); err != nil {
		return nil, fmt.Errorf("streams: %w", err)
	}

	s := &Server{
		config:   config,
		limits:   limits,
		log:      config.Logger,
		secret:   rand.Text(),
		accounts: make(map[string]*account),

		permissions: permissions,
	}
	s.ctx, s.cancel = context.WithCancel(context.WithoutCancel(ctx))
	opts := &server.Options{
		ServerName:                 "handoff-governor",
		Host:                       host,
		Port:                       cmp.Or(int(port), server.RANDOM_PORT),
		DontListen:                 true, // until the streams are there
		NoSigs:                     true,
		JetStream:                  true,
		StoreDir:                   config.Dir,
		JetStreamMaxMemory:         64 << 20,
		JetStreamMaxStore:          limits.IngressBytes + limits.InboxBytes + limits.QuarantineBytes,
		MaxPayload:                 wire.MaxPayload,
		MaxSubs:                    limits.Subscriptions,
		TLSConfig:                  config.TLS,
		TLSTimeout:                 authTimeout.Seconds(),
		TLSHandshakeFirst:          true,
		AuthTimeout:                authTimeout.Seconds(),
		CustomClientAuthentication: authenticator{s},
	}
	if err := s.start(ctx, opts); err != nil {
		s.Close()
		return nil, fmt.Errorf("streams: %w", err)
	}
	return s, nil
}

func (s *Server) start(ctx context.Context, opts *server.Options) (err error) {
	if s.nats, err = server.NewServer(opts); err != nil {
		return err
	}
	s.nats.SetLoggerV2(serverLog{s.ctx, s.log}, false, false, false)
	s.nats.Start()
	if !s.nats.ReadyForConnections(authTimeout) {
		return errors.New("the server did not come up")
	}

	// 1. The governor's account, with what is stored from before, and its exports.
	if s.gov, err = s.nats.RegisterAccount(governorAccount); err != nil {
		return err
	}
	if err := s.gov.EnableJetStream(nil, nil); err != nil {
		return err
	}
	if err := exportAll(s.gov); err != nil {
		return err
	}

	// 2. The governor's streams.
	if s.bus, err = newBus(ctx, s); err != nil {
		return err
	}

	// 3. Everybody else.
	s.owned.Go(s.watch)
	s.nats.AcceptLoop(make(chan struct{}))
	if s.nats.Addr() == nil {
		return fmt.Errorf("cannot listen on %s: is another server there? Stop it, or listen elsewhere (governor up --listen 127.0.0.1:0)", s.config.Listen)
	}
	return nil
}

// connect makes one of the governor's own connections.
func (s *Server) connect(name string) (*nats.Conn, error) {
	return nats.Connect("",
		nats.InProcessServer(s.nats),
		nats.Name(name),
		nats.Token(s.secret),
		nats.MaxReconnects(-1),
		nats.ReconnectWait(10*time.Millisecond),
		nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) {
			s.log.WarnContext(s.ctx, "governor's connection", "connection", name, "error", err)
		}),
	)
}

// URL is where clients connect.
func (s *Server) URL() string { return "tls://" + s.nats.Addr().String() }

// Governor is the governor's own access to the streams.
func (s *Server) Governor() *Bus { return s.bus }

// Close stops everything that the server started and waits for it. Messages in the streams stay.
func (s *Server) Close() error {
	s.cancel()
	if s.bus != nil {
		s.bus.close()
	}
	if s.nats != nil {
		s.nats.Shutdown()
		s.nats.WaitForShutdown()
	}
	s.owned.Wait()
	return nil
}

// Disconnect cuts every connection of the identity named, whatever its role. Authenticate must refuse it from before
// the call on: the clients will try again.
func (s *Server) Disconnect(name string) error {
	s.cuts.Add(1)
	var errs []error
	for _, role := range roles {
		errs = append(errs, s.cut(accountName(role, name)))
	}
	return errors.Join(errs...)
}

func (s *Server) cut(account string) error {
	conns, err := s.nats.Connz(&server.ConnzOptions{Account: account, Username: true, Limit: 1 << 20})
	if err != nil {
		return fmt.Errorf("streams: listing connections of %s: %w", account, err)
	}
	for _, c := range conns.Conns {
		// An error says that it is gone already.
		_ = s.nats.DisconnectClientByID(c.Cid)
	}
	return nil
}

// authenticator judges every connection.
type authenticator struct{ *Server }

// Check implements server.Authentication.
func (s authenticator) Check(c server.ClientAuthentication) bool {
	conn := c.GetTLSConnectionState()
	if conn == nil {
		return s.checkGovernor(c)
	}
	for again := 0; ; again = 1 {
		// A Disconnect that comes while this connection is judged might not find it yet: judge again.
		cuts := s.cuts.Load()
		id, err := s.admit(c, *conn, again)
		if err != nil {
			s.log.WarnContext(s.ctx, "connection refused", "remote", c.RemoteAddress(), "name", id.Name, "error", err)
			return false
		}
		if s.cuts.Load() == cuts {
			s.log.InfoContext(s.ctx, "connected", "remote", c.RemoteAddress(), "name", id.Name, "role", id.Role)
			return true
		}
	}
}

// checkGovernor admits the governor's own connections. They alone have no TLS, since they never leave the process.
func (s authenticator) checkGovernor(c server.ClientAuthentication) bool {
	if subtle.ConstantTimeCompare([]byte(c.GetOpts().Token), []byte(s.secret)) != 1 {
		s.log.WarnContext(s.ctx, "connection refused", "error", "in-process, without the governor's secret")
		return false
	}
	c.RegisterUser(&server.User{Username: "governor", Account: s.gov})
	return true
}

// admit authenticates a client and puts it into its account, where there may be so many connections of it already.
func (s authenticator) admit(c server.ClientAuthentication, conn tls.ConnectionState, own int) (Identity, error) {
	ctx, cancel := context.WithTimeout(s.ctx, authTimeout)
	defer cancel()
	if c.Kind() != server.CLIENT {
		return Identity{}, fmt.Errorf("connections of kind %d are not served", c.Kind())
	}
	id, err := s.config.Authenticate(ctx, conn, c.GetOpts().Token)
	if err != nil {
		return Identity{}, err
	}
	if err := checkName(id.Name); err != nil {
		return Identity{}, err
	}
	if !slices.Contains(roles, id.Role) {
		return id, fmt.Errorf("role %q is not served", id.Role)
	}
	if len(conn.PeerCertificates) > 0 && conn.PeerCertificates[0].NotAfter.Before(id.Expires) {
		id.Expires = conn.PeerCertificates[0].NotAfter
	}
	left := id.Expires.Sub(s.config.Now())
	if left <= 0 {
		return id, errors.New("identity has expired: fetch a new SVID")
	}
	acc, err := s.account(ctx, id)
	if err != nil {
		return id, err
	}

	acc.registering.Lock()
	defer acc.registering.Unlock()
	if acc.nats.NumLocalConnections()-own >= s.limits.Connections {
		return id, fmt.Errorf("already %d connections: close one", s.limits.Connections)
	}
	if until := acc.barredUntil(); s.config.Now().Before(until) {
		return id, fmt.Errorf("cut off for flooding until %s", until.Format(time.TimeOnly))
	}
	c.RegisterUser(&server.User{
		Username:           id.Name,
		Account:            acc.nats,
		Permissions:        s.permissions(id.Role, id.Name),
		ConnectionDeadline: time.Now().Add(left),
	})
	return id, nil
}

// account finds the identity's account, or makes it with its imports and, for an agent, its inbox.
func (s *Server) account(ctx context.Context, id Identity) (*account, error) {
	key := accountName(id.Role, id.Name)
	s.mu.Lock()
	acc := s.accounts[key]
	if acc == nil {
		if len(s.accounts) >= s.limits.Agents {
			s.mu.Unlock()
			return nil, fmt.Errorf("more than %d identities: raise the limit", s.limits.Agents)
		}
		acc = &account{role: id.Role, name: id.Name}
		s.accounts[key] = acc
	}
	s.mu.Unlock()

	acc.ready.Lock()
	defer acc.ready.Unlock()
	if acc.made.Load() {
		return acc, nil
	}
	if id.Role == RoleAgent {
		if err := s.bus.ensureInbox(ctx, id.Name); err != nil {
			return nil, fmt.Errorf("making the inbox of %s: %w", id.Name, err)
		}
	}
	if acc.nats == nil {
		natsAcc, _ := s.nats.LookupOrRegisterAccount(key)
		if err := importInto(natsAcc, s.gov, id.Role, id.Name); err != nil {
			return nil, err
		}
		acc.nats = natsAcc
	}
	acc.made.Store(true)
	return acc, nil
}

// serverLog brings the server's log into ours. Its notices are chatty, so they are ours for debugging.
type serverLog struct {
	ctx context.Context
	log *slog.Logger
}

func (l serverLog) Noticef(f string, v ...any) { l.write(slog.LevelDebug, f, v) }
func (l serverLog) Debugf(f string, v ...any)  { l.write(slog.LevelDebug, f, v) }
func (l serverLog) Tracef(f string, v ...any)  { l.write(slog.LevelDebug, f, v) }
func (l serverLog) Warnf(f string, v ...any) {
	level := slog.LevelWarn
	if strings.HasPrefix(f, "Clients that are not using") {
		level = slog.LevelDebug // TLS first, and nothing else, is what we ask for
	}
	l.write(level, f, v)
}
func (l serverLog) Errorf(f string, v ...any) { l.write(slog.LevelError, f, v) }
func (l serverLog) Fatalf(f string, v ...any) { l.write(slog.LevelError, f, v) }

func (l serverLog) write(level slog.Level, format string, args []any) {
	if l.log.Enabled(l.ctx, level) {
		l.log.Log(l.ctx, level, "nats: "+fmt.Sprintf(format, args...))
	}
}

// ensureInbox makes the agent's consumer, or brings an older one up to the limits of today.
func (b *Bus) ensureInbox(ctx context.Context, name string) error {
	_, err := b.writer.CreateOrUpdateConsumer(ctx, streamInbox, inboxConsumer(b.limits, name))
	if errors.Is(err, jetstream.ErrConsumerNameAlreadyInUse) {
		return fmt.Errorf("another agent's inbox has that name: %w", err)
	}
	if err == nil {
		b.shares.meet(name)
	}
	return err
}
