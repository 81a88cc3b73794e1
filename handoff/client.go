package handoff

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"

	"github.com/handoff-governor/handoff-governor/handoff/aat"
	"github.com/handoff-governor/handoff-governor/handoff/identity"
	"github.com/handoff-governor/handoff-governor/handoff/wire"
)

// Config is what a [Client] needs to know.
type Config struct {
	URL string // of the NATS server, such as "tls://127.0.0.1:4222"; several with commas between them. Required.

	// Source gives the agent's X.509-SVID. The client reconnects with each new one, at once where Source has a method
	// Updated() <-chan struct{}, as [workloadapi.X509Source] has. Nil: the Workload API at the address in the
	// environment variable SPIFFE_ENDPOINT_SOCKET.
	Source x509svid.Source
	// Bundles are the trust bundles to check the server with. Nil: Source, which must have them, too.
	Bundles x509bundle.Source
	// Governor is the SPIFFE ID that the server must have. Zero: /governor in the trust domain of the agent's own ID.
	Governor spiffeid.ID

	// Key is the process key, which grants are bound to. Nil: a new one, which ends with this Client. See [LoadKey].
	Key ed25519.PrivateKey

	// MaxTasks is how many tasks may be claimed and neither finished nor transferred at once; [Client.Receive] waits beyond
	// it. Zero: 64.
	MaxTasks int
	// Prefetch is how many tasks are claimed ahead of a Receive. It spares waiting, but keeps the tasks from other
	// processes of the agent. Zero: none.
	Prefetch int

	Now    func() time.Time // nil: time.Now
	Logger *slog.Logger     // nil: none. Credentials and bodies are never logged
}

// Limits of time. They are short against wire.Lease and wire.ProofLifetime.
const (
	tryTimeout  = 5 * time.Second // of one request, before it is sent again
	firstRetry  = 250 * time.Millisecond
	lastRetry   = 10 * time.Second
	firstResend = time.Second // of an offer or a result that is not receipted yet
	keysAge     = time.Minute
	drainWithin = 5 * time.Second
	readFor     = 5 * time.Second // what one request for messages of the inbox waits at most

	renewAgain = 10 * time.Second // between two connections that are made because of a refusal
)

// ErrClosed is what is still waiting ends with when a [Client] is closed.
var ErrClosed = errors.New("the client is closed")

// Client is one process of an agent, connected to the governor. It is safe for use by several goroutines at once.
type Client struct {
	cfg  Config
	log  *slog.Logger
	id   spiffeid.ID
	name identity.Name
	key  ed25519.PrivateKey
	jwk  aat.JWK

	nc     *nats.Conn
	js     jetstream.JetStream
	line   *line // what requests are made on
	pulls  *line // what requests for messages are made on
	mail   *mail
	tasks  *tasks
	source *workloadapi.X509Source // nil where the caller owns it

	ctx  context.Context // ends with the client
	stop context.CancelCauseFunc
	work sync.WaitGroup // every goroutine of the client

	mu   sync.Mutex
	keys *keys

	reading sync.Mutex // held to start reading
	inbox   bool       // somebody needs it, and it is read
	reader  sync.WaitGroup
	asking  sync.Mutex // held while a request for messages is under way

	presented atomic.Value  // string: the SVID that the connection was made with
	renew     chan struct{} // has an item when the connection is to be made anew
}

// Connect authenticates to the governor's NATS server and returns once connected, or when ctx ends. From then on the
// client reconnects by itself, whatever happens, until it is closed.
func Connect(ctx context.Context, cfg Config) (_ *Client, err error) {
	if cfg.URL == "" {
		return nil, errors.New("handoff: Config.URL is missing")
	}
	if cfg.MaxTasks < 0 || cfg.Prefetch < 0 {
		return nil, errors.New("handoff: Config.MaxTasks and Config.Prefetch cannot be negative")
	}
	if cfg.MaxTasks == 0 {
		cfg.MaxTasks = 64
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	c := &Client{cfg: cfg, log: cfg.Logger, key: cfg.Key, renew: make(chan struct{}, 1)}
	c.ctx, c.stop = context.WithCancelCause(context.Background())
	defer func() {
		if err != nil {
			c.Close()
		}
	}()
	if c.key == nil {
		if _, c.key, err = ed25519.GenerateKey(rand.Reader); err != nil {
			return nil, err
		}
	}
	if len(c.key) != ed25519.PrivateKeySize {
		return nil, errors.New("handoff: Config.Key is not an Ed25519 private key")
	}
	c.jwk = aat.NewJWK(c.key.Public().(ed25519.PublicKey))
	if err := c.identify(ctx); err != nil {
		return nil, err
	}
	if err := c.connect(ctx); err != nil {
		return nil, err
	}
	c.mail = newMail()
	c.tasks = newTasks(c)
	if !c.guard() { // a guard sends nothing that there would be a receipt for
		if _, err := c.nc.Subscribe(wire.SubjectReceipt, c.mail.receipt); err != nil {
			return nil, fmt.Errorf("handoff: subscribing to receipts: %w", err)
		}
	}
	c.work.Go(c.tasks.claim)
	c.work.Go(c.tasks.renew)
	var updated <-chan struct{}
	if source, ok := c.cfg.Source.(interface{ Updated() <-chan struct{} }); ok {
		updated = source.Updated()
	}
	c.work.Go(func() { c.rotate(updated) })
	return c, nil
}

// guard tells whether the client is a guard's, not an agent's.
func (c *Client) guard() bool {
	role, err := identity.RoleOf(c.id, c.cfg.Governor.TrustDomain())
	return err == nil && role == identity.RoleGuard
}

// identify finds out who the agent is, and whom it talks to.
func (c *Client) identify(ctx context.Context) error {
	if c.cfg.Source == nil {
		source, err := workloadapi.NewX509Source(ctx)
		if err != nil {
			return fmt.Errorf("handoff: no SVID from the Workload API (is SPIFFE_ENDPOINT_SOCKET set?): %w", err)
		}
		c.source, c.cfg.Source = source, source
	}
	if c.cfg.Bundles == nil {
		bundles, ok := c.cfg.Source.(x509bundle.Source)
		if !ok {
			return errors.New("handoff: Config.Bundles is missing, and Config.Source has no bundles")
		}
		c.cfg.Bundles = bundles
	}
	svid, err := c.cfg.Source.GetX509SVID()
	if err != nil {
		return fmt.Errorf("handoff: no SVID: %w", err)
	}
	c.id = svid.ID
	if c.name, err = identity.NameOf(svid.ID); err != nil {
		return fmt.Errorf("handoff: %w", err)
	}
	if c.cfg.Governor.IsZero() {
		c.cfg.Governor, err = spiffeid.FromPath(svid.ID.TrustDomain(), "/governor")
	}
	return err
}

func (c *Client) connect(ctx context.Context) (err error) {
	timeout := tryTimeout
	if deadline, ok := ctx.Deadline(); ok {
		timeout = min(timeout, time.Until(deadline))
	}
	if err := ctx.Err(); err != nil || timeout <= 0 {
		return fmt.Errorf("handoff: connecting: %w", context.Cause(ctx))
	}
	config := identity.ClientTLS(c.cfg.Source, c.cfg.Bundles, identity.ServerOf(c.cfg.Governor))
	present := config.GetClientCertificate
	config.GetClientCertificate = func(info *tls.CertificateRequestInfo) (*tls.Certificate, error) {
		cert, err := present(info)
		if err == nil {
			c.presented.Store(string(cert.Certificate[0]))
		}
		return cert, err
	}
	c.line, c.pulls = newLine(), newLine()
	sockets := &sockets{dialer: net.Dialer{Timeout: timeout}, lost: func() { c.line.lost(); c.pulls.lost() }}
	c.nc, err = nats.Connect(c.cfg.URL,
		nats.Name(string(c.name)),
		nats.Secure(config),
		nats.TLSHandshakeFirst(),
		nats.Timeout(timeout),
		nats.SetCustomDialer(sockets),
		nats.MaxReconnects(-1),
		nats.ReconnectWait(firstRetry),
		nats.ReconnectJitter(firstRetry, firstRetry),
		nats.IgnoreAuthErrorAbort(), // an SVID that has expired may be renewed
		nats.DrainTimeout(drainWithin),
		nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) {
			c.log.WarnContext(c.ctx, "NATS reports an error", "error", err)
			if errors.Is(err, nats.ErrPermissionViolation) {
				c.refused(err)
			}
		}),
		nats.DisconnectErrHandler(func(_ *nats.Conn, err error) {
			c.log.InfoContext(c.ctx, "disconnected from the governor", "error", err)
		}),
		nats.ReconnectHandler(func(nc *nats.Conn) {
			c.log.InfoContext(c.ctx, "reconnected to the governor")
			sockets.use(nc.IsConnected, c.begin)
		}),
	)
	if err != nil {
		return fmt.Errorf("handoff: connecting to the governor: %w", err)
	}
	sockets.use(c.nc.IsConnected, c.begin)
	c.js, err = jetstream.NewWithAPIPrefix(c.nc, wire.InboxPrefix)
	return err
}

// begin has everything asked on the connection that there is now.
func (c *Client) begin() {
	c.line.begin()
	c.pulls.begin()
}

// rotate reconnects when renew says so, and with each new SVID, before the server ends the connection because the SVID that it began with expires.
// It waits until no request for messages is under way: servers of a cluster hold it for a moment after the connection has
// ended, and a message that they answer it with comes again only when they have waited for its acknowledgement.
func (c *Client) rotate(updated <-chan struct{}) {
	_, next := c.svid()
	var renewed time.Time
	var last string // that it reconnected with
	for {
		timer := time.NewTimer(next) // a source that tells of no updates is asked
		renew := false
		select {
		case <-c.ctx.Done():
			timer.Stop()
			return
		case <-updated:
		case <-timer.C:
		case <-c.renew:
			renew = time.Since(renewed) > renewAgain
			renewed = time.Now()
		}
		timer.Stop()
		var now string
		if now, next = c.svid(); (now == "" || now == last || now == c.presented.Load()) && !renew {
			continue
		}
		last = now
		c.asking.Lock()
		c.line.lost()
		c.pulls.lost()
		err := c.nc.ForceReconnect()
		c.asking.Unlock()
		if err != nil && c.ctx.Err() == nil {
			c.log.WarnContext(c.ctx, "making the connection anew failed", "error", err)
		}
	}
}

// refused is called when the server has refused something. While the servers of a cluster read their configuration again, as
// with each new SVID of theirs, they ask the governor about all clients once more, and a client may nothing until the answer
// is there. What was asked just then is asked again.
//
// A request for messages that was not refused must be left alone: the server would answer it all the same, to nobody.
func (c *Client) refused(err error) {
	what := c.line
	text := err.Error()
	switch {
	case strings.Contains(text, `"$JS.ACK`): // what is not acknowledged comes again
		return
	case strings.Contains(text, "for Subscription") && muxed.MatchString(text):
		select { // it stays refused as long as the connection
		case c.renew <- struct{}{}:
		default:
		}
		return
	case strings.Contains(text, "for Subscription"), strings.Contains(text, wire.InboxPrefix):
		what = c.pulls
	}
	what.refused(time.Now())
}

// muxed are the subscriptions that are made once: for answers, receipts and the feed.
var muxed = regexp.MustCompile(`"(_INBOX\.[^."]+\.\*|handoff\.[^"]+)"`)

// svid tells one SVID from the next, and says when to look again.
func (c *Client) svid() (raw string, next time.Duration) {
	svid, err := c.cfg.Source.GetX509SVID()
	if err != nil || len(svid.Certificates) == 0 {
		return "", time.Second
	}
	leaf := svid.Certificates[0]
	left := leaf.NotAfter.Sub(c.cfg.Now()) / 8
	return string(leaf.Raw), min(max(left, 100*time.Millisecond), time.Minute)
}

// Name is the agent's full name, as the wire and policies spell it.
func (c *Client) Name() string { return string(c.name) }

// ID is the agent's SPIFFE ID.
func (c *Client) ID() spiffeid.ID { return c.id }

// JWK is the public half of the process key.
func (c *Client) JWK() aat.JWK { return c.jwk }

// Close stops receiving, lets go of what was not claimed, flushes what was sent and disconnects. Tasks that are being
// worked on end with [ErrClosed]; once their leases have run out, other processes of the agent may take them over. It
// waits for every goroutine of the client. Closing twice is no error.
func (c *Client) Close() error {
	c.stop(ErrClosed)
	c.reading.Lock() // nobody begins to read any more
	c.reader.Wait()  // else what is given back would come here again
	c.reading.Unlock()
	var errs []error
	if c.tasks != nil {
		c.tasks.close()
		c.mail.close()
	}
	c.work.Wait()
	if c.nc != nil && !c.nc.IsClosed() {
		if c.nc.IsConnected() { // else nobody is there, and what counts is receipted
			if err := c.nc.FlushTimeout(drainWithin); err != nil && !errors.Is(err, nats.ErrConnectionClosed) {
				errs = append(errs, fmt.Errorf("handoff: flushing: %w", err))
			}
		}
		c.nc.Close()
	}
	if c.source != nil {
		errs = append(errs, c.source.Close())
		c.source = nil
	}
	return errors.Join(errs...)
}

// until returns a context that ends with ctx and with the client.
func (c *Client) until(ctx context.Context) (context.Context, context.CancelFunc) {
	return during(ctx, c.ctx)
}

// dispatch hands an inbox message to whoever waits for it.
func (c *Client) dispatch(msg delivery) {
	in, err := parseInbox(msg)
	if err != nil { // the governor alone writes here
		c.log.ErrorContext(c.ctx, "an inbox message cannot be read and is dropped", "error", err)
		c.settle(msg.Term())
		return
	}
	if in.kind == wire.KindTask {
		c.tasks.notice(in)
		return
	}
	if in.kind == wire.KindVerdict && slices.ContainsFunc(in.verdict.Reasons, func(r wire.Reason) bool { return r.Code == wire.CodeGovernorKey }) {
		c.replaced(nil) // by another, and that one is not taken any more
	}
	if in.id == "" {
		c.log.WarnContext(c.ctx, "the governor could not tell what it refuses", "reasons", in.verdict.Reasons)
	}
	ack, delay := c.mail.deliver(in, c.cfg.Now())
	switch {
	case ack:
		c.settle(msg.Ack())
	case delay > 0:
		c.settle(msg.NakWithDelay(delay))
	}
}

// settle notes that a message could not be settled: it comes again.
func (c *Client) settle(err error) {
	if err != nil {
		c.log.DebugContext(c.ctx, "an inbox message could not be settled", "error", err)
	}
}

// call sends a request until it is answered with anything but wire.CodeUnavailable, or ctx ends. The request is made
// anew each time: proofs are short-lived.
func call[T any](ctx context.Context, c *Client, subject string, request func() ([]byte, error), refusal func(*T) *wire.Error) (*T, error) {
	ctx, cancel := c.until(ctx)
	defer cancel()
	for wait := firstRetry; ; wait = min(2*wait, lastRetry) {
		body, err := request()
		if err != nil {
			return nil, err
		}
		answer, err := ask[T](ctx, c, subject, body)
		if errors.Is(err, errLost) {
			continue
		}
		if err == nil {
			e := refusal(answer)
			if e == nil {
				return answer, nil
			}
			if e.Code != wire.CodeUnavailable {
				return answer, e
			}
			err, wait = e, max(wait, time.Duration(e.RetryAfter)*time.Second)
		}
		if ctx.Err() == nil {
			c.log.DebugContext(ctx, "a request is sent again", "subject", subject, "error", err)
		}
		if !pause(ctx, wait) {
			return nil, fmt.Errorf("handoff: %s: %w (last: %w)", subject, context.Cause(ctx), err)
		}
	}
}

func ask[T any](ctx context.Context, c *Client, subject string, body []byte) (*T, error) {
	ctx, cancel := context.WithTimeout(ctx, tryTimeout)
	defer cancel()
	life, err := c.line.wait(ctx)
	if err != nil {
		return nil, fmt.Errorf("there is no connection: %w", err)
	}
	ctx, done := during(ctx, life)
	defer done()
	msg, err := c.nc.RequestWithContext(ctx, subject, body)
	if errors.Is(context.Cause(ctx), errLost) {
		return nil, errLost
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return nil, errors.New("there was no answer")
	}
	if err != nil {
		return nil, err
	}
	answer := new(T)
	if err := json.Unmarshal(msg.Data, answer); err != nil {
		return nil, fmt.Errorf("the answer cannot be read: %w", err)
	}
	return answer, nil
}

// pause waits, and says whether ctx is still alive.
func pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}
