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
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/handoff-governor/handoff-governor/handoff/wire"
)

// Config of a [Server].
type Config struct {
	// Dir holds the streams. Required; made with mode 0700.
	Dir string
	// Listen is host:port, "127.0.0.1:4222" if empty. Port 0 takes a free one.
	Listen string
	// TLS is the server's side of mTLS. Required. It decides whether a client may come without a certificate: such a
	// client must present a token that Authenticate accepts.
	TLS *tls.Config
	// Authenticate is required.
	Authenticate Authenticate
	// Logger is slog.Default() if nil.
	Logger *slog.Logger
	// Now is time.Now if nil.
	Now    func() time.Time
	Limits Limits
}

// authTimeout bounds a connection's handshake, and with it Authenticate.
const authTimeout = 5 * time.Second

// governorAccount is the name of the governor's account in an embedded server.
const governorAccount = "GOVERNOR"

// Server is the embedded NATS server. Its methods may be called concurrently.
type Server struct {
	*identities
	config Config
	log    *slog.Logger
	nats   *server.Server
	gov    *server.Account
	bus    *Bus

	storage *storage

	ctx    context.Context
	cancel context.CancelFunc
	owned  sync.WaitGroup

	// permissions is the function of that name; tests take it away to see that the accounts hold alone.
	permissions func(role Role, name, gov string) *allowed
	// secret is how the governor's own connections say who they are. It never leaves the process.
	secret string
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
		storage:    newStorage(config.Dir),
		identities: newIdentities(limits, config.Authenticate, config.Now, accountName),
		config:     config,
		log:        config.Logger,
		secret:     rand.Text(),

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
	s.nats.SetLoggerV2(serverLog{s.ctx, s.log, s.storage.heard}, false, false, false)
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
	if s.bus, err = newBus(ctx, s.limits, 1, s.log, s.connect); err != nil {
		return err
	}
	s.bus.trouble = s.storage.trouble
	s.owned.Go(func() { s.storage.run(s.ctx) })

	// 3. Everybody else.
	s.owned.Go(func() { s.watch().run(s.ctx) })
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
func (s *Server) Disconnect(_ context.Context, name string) error {
	s.cuts.Add(1)
	var errs []error
	for _, role := range roles {
		errs = append(errs, s.cut(accountName(role, name)))
	}
	return errors.Join(errs...)
}

// Recheck authenticates all connections again, and cuts those of the identities of which one is not admitted any more. It
// is to be called when a trust bundle has changed.
func (s *Server) Recheck(ctx context.Context) error {
	return s.recheck(ctx, s.log, s.holding, func(_ context.Context, acc *account) error { return s.cut(acc.key) })
}

// holding says what the connections of an account are made with.
func (s *Server) holding(_ context.Context, acc *account) (holders, error) {
	conns, err := s.nats.Connz(&server.ConnzOptions{Account: acc.key, Username: true, Limit: 1 << 20})
	if err != nil {
		return holders{}, fmt.Errorf("streams: listing connections of %s: %w", acc.key, err)
	}
	return holders{leaves: leavesOf(conns.Conns)}, nil
}

// leavesOf are the certificates of connections, as admission.leaf has them.
func leavesOf(conns []*server.ConnInfo) map[string]bool {
	leaves := map[string]bool{}
	for _, c := range conns {
		if len(c.TLSPeerCerts) > 0 {
			leaves[c.TLSPeerCerts[0].CertSha256] = true
		}
	}
	return leaves
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
	token := c.GetOpts().Token
	id, acc, err := s.judge(ctx, conn.PeerCertificates, token)
	if err != nil {
		return id, err
	}
	acc.ready.Lock()
	defer acc.ready.Unlock()
	if err := s.make(ctx, acc); err != nil {
		return id, err
	}
	if acc.nats.NumLocalConnections()-own >= s.limits.Connections {
		return id, fmt.Errorf("already %d connections: close one", s.limits.Connections)
	}
	now := s.now()
	if err := acc.admit(now, "", admission{certs: conn.PeerCertificates, token: token, expires: id.Expires}); err != nil {
		return id, err
	}
	user := &server.User{Username: id.Name, Account: acc.nats, ConnectionDeadline: time.Now().Add(id.Expires.Sub(now))}
	if may := s.permissions(id.Role, id.Name, governorAccount); may != nil {
		user.Permissions = &server.Permissions{
			Publish:   &server.SubjectPermission{Allow: may.publish},
			Subscribe: &server.SubjectPermission{Allow: may.subscribe},
		}
	}
	c.RegisterUser(user)
	return id, nil
}

// make gives an account its imports and, for an agent, its inbox, once. The caller holds ready.
func (s *Server) make(ctx context.Context, acc *account) error {
	if acc.made.Load() {
		return nil
	}
	if acc.role == RoleAgent {
		if err := s.bus.ensureInbox(ctx, acc.name); err != nil {
			return fmt.Errorf("making the inbox of %s: %w", acc.name, err)
		}
	}
	if acc.nats == nil {
		natsAcc, _ := s.nats.LookupOrRegisterAccount(acc.key)
		if err := importInto(natsAcc, s.gov, acc.role, acc.name); err != nil {
			return err
		}
		acc.nats = natsAcc
	}
	acc.made.Store(true)
	return nil
}

// exportAll offers the governor's services and streams.
func exportAll(gov *server.Account) error {
	for _, e := range exports(governorAccount) {
		var err error
		if e.stream {
			err = gov.AddStreamExport(e.subject, nil)
		} else {
			response := server.Singleton
			if e.streamed {
				response = server.Streamed
			}
			err = errors.Join(gov.AddServiceExportWithResponse(e.subject, response, nil),
				gov.SetServiceExportResponseThreshold(e.subject, e.within))
		}
		if err != nil {
			return fmt.Errorf("exporting %s: %w", e.subject, err)
		}
	}
	return nil
}

// importInto gives an identity's new account its local names.
func importInto(acc, gov *server.Account, role Role, name string) error {
	for _, i := range imports(role, name, governorAccount) {
		var err error
		if i.stream {
			err = acc.AddMappedStreamImport(gov, i.theirs, i.local)
		} else {
			err = acc.AddServiceImport(gov, i.local, i.theirs)
		}
		if err != nil {
			return fmt.Errorf("importing %s: %w", i.local, err)
		}
	}
	return nil
}

// serverLog brings the server's log into ours. Its notices are chatty, so they are ours for debugging.
type serverLog struct {
	ctx   context.Context
	log   *slog.Logger
	heard func(line string) // of errors
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
func (l serverLog) Errorf(f string, v ...any) {
	l.heard(fmt.Sprintf(f, v...))
	l.write(slog.LevelError, f, v)
}
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
