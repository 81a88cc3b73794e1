package streams

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"reflect"
	"strings"
	"sync"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/nats-io/jwt/v2"
	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nkeys"

	"github.com/handoff-governor/handoff-governor/handoff/wire"
)

// ClusterConfig of a [Cluster].
type ClusterConfig struct {
	// URLs of the cluster's servers, tls://host:port. Required.
	URLs []string
	// TLS is the governor's side of mTLS with the servers. Required.
	TLS *tls.Config
	// Keys are those that the servers' configuration was made with. Required.
	Keys *ClusterKeys
	// Replicas of each stream: 0 means 3. A cluster of one server can hold 1 only.
	Replicas int
	// Authenticate is required.
	Authenticate Authenticate
	// Logger is slog.Default() if nil.
	Logger *slog.Logger
	// Now is time.Now if nil.
	Now    func() time.Time
	Limits Limits
}

// Cluster is a cluster of NATS servers that run elsewhere, in operator mode. The governor answers their auth callout, and
// makes an account for each identity that connects, with the same subjects as an embedded [Server] has. Its methods may be
// called concurrently.
type Cluster struct {
	*identities
	config ClusterConfig
	log    *slog.Logger
	keys   *clusterKeys
	bus    *Bus
	sys    *nats.Conn
	auth   *nats.Conn

	ctx    context.Context
	cancel context.CancelFunc
	owned  sync.WaitGroup

	// permissions is the function of that name; tests take it away to see that the accounts hold alone.
	permissions func(role Role, name, gov string) *allowed

	tally *tally

	mu     sync.Mutex
	closed map[*account]bool // accounts that were cut and not opened again
}

const (
	subjectClaims = "$SYS.REQ.CLAIMS.UPDATE"
	subjectStatz  = "$SYS.REQ.ACCOUNT.PING.STATZ"
	subjectLookup = "$SYS.REQ.ACCOUNT.%s.CLAIMS.LOOKUP"
	subjectConnz  = "$SYS.REQ.ACCOUNT.%s.CONNZ"

	maxListed = 4096 // connections of one identity, far above any limit of them

	// Each server of a cluster answers. Nothing says how many there are.
	gatherFor   = 2 * time.Second
	gatherQuiet = 150 * time.Millisecond
)

// Join connects to a cluster and returns when the governor's streams are there and clients can connect. The context only
// bounds the start.
func Join(ctx context.Context, config ClusterConfig) (*Cluster, error) {
	if len(config.URLs) == 0 || config.TLS == nil || config.Keys == nil || config.Authenticate == nil {
		return nil, errors.New("streams: URLs, TLS, Keys and Authenticate are required")
	}
	keys, err := config.Keys.parse()
	if err != nil {
		return nil, fmt.Errorf("streams: %w", err)
	}
	config.Replicas = cmp.Or(config.Replicas, 3)
	config.Logger = cmp.Or(config.Logger, slog.Default())
	if config.Now == nil {
		config.Now = time.Now
	}
	c := &Cluster{
		identities:  newIdentities(config.Limits.WithDefaults(), config.Authenticate, config.Now, keys.accountKey),
		config:      config,
		log:         config.Logger,
		keys:        keys,
		permissions: permissions,
		closed:      map[*account]bool{},
		tally:       newTally(),
	}
	c.ctx, c.cancel = context.WithCancel(context.WithoutCancel(ctx))
	if err := c.start(ctx); err != nil {
		c.Close()
		return nil, fmt.Errorf("streams: %w", err)
	}
	return c, nil
}

func (c *Cluster) start(ctx context.Context) (err error) {
	// 1. The governor's accounts, as they are today.
	if c.sys, err = c.connect("governor-system", c.keys.system); err != nil {
		return fmt.Errorf("connecting to the cluster: %w", err)
	}
	if got := c.sys.MaxPayload(); got < wire.MaxPayload {
		return fmt.Errorf("the servers take messages of %d bytes: set max_payload to %d in their configuration", got, wire.MaxPayload)
	}
	for _, claims := range c.keys.ownAccounts() {
		if err := c.update(ctx, claims); err != nil {
			return fmt.Errorf("updating the account %s: %w", claims.Name, err)
		}
	}

	// 2. The governor's streams.
	connect := func(name string) (*nats.Conn, error) { return c.connect(name, c.keys.governor) }
	if c.bus, err = newBus(ctx, c.limits, c.config.Replicas, c.log, connect); err != nil {
		return err
	}

	// 3. Everybody else.
	if err := c.adopt(ctx); err != nil {
		return fmt.Errorf("looking for who is connected already: %w", err)
	}
	if c.auth, err = c.connect("governor-callout", c.keys.callout); err != nil {
		return fmt.Errorf("connecting to the cluster: %w", err)
	}
	if err := c.answerCallout(); err != nil {
		return err
	}
	c.owned.Go(func() { c.watch().run(c.ctx) })
	return nil
}

// connect makes one of the governor's own connections, as a user of one of its accounts. Users are made for each connection
// and live as long as it does.
func (c *Cluster) connect(name string, account nkeys.KeyPair) (*nats.Conn, error) {
	user, err := nkeys.CreateUser()
	if err != nil {
		return nil, err
	}
	if account == c.keys.callout {
		user = c.keys.calloutUser // the account's claims name it
	}
	public, err := user.PublicKey()
	if err != nil {
		return nil, err
	}
	claims := jwt.NewUserClaims(public)
	claims.Name = name
	claims.AllowedConnectionTypes = jwt.StringList{jwt.ConnectionTypeStandard}
	token, err := claims.Encode(account)
	if err != nil {
		return nil, err
	}
	return nats.Connect(strings.Join(c.config.URLs, ","),
		nats.Name(name),
		nats.UserJWT(func() (string, error) { return token, nil }, user.Sign),
		nats.Secure(c.config.TLS.Clone()),
		nats.TLSHandshakeFirst(),
		nats.Timeout(authTimeout),
		nats.MaxReconnects(-1),
		nats.ReconnectWait(100*time.Millisecond),
		nats.IgnoreAuthErrorAbort(),
		nats.DisconnectErrHandler(func(_ *nats.Conn, err error) {
			if err != nil {
				c.log.WarnContext(c.ctx, "governor's connection lost", "connection", name, "error", err)
			}
		}),
		nats.ReconnectHandler(func(conn *nats.Conn) {
			c.log.InfoContext(c.ctx, "governor's connection is back", "connection", name, "server", conn.ConnectedServerName())
		}),
		nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) {
			c.log.WarnContext(c.ctx, "governor's connection", "connection", name, "error", err)
		}),
	)
}

// URL is where clients connect.
func (c *Cluster) URL() string { return strings.Join(c.config.URLs, ",") }

// Governor is the governor's own access to the streams.
func (c *Cluster) Governor() *Bus { return c.bus }

// Close leaves the cluster. Connections of others stay until their SVIDs expire; what they publish waits.
func (c *Cluster) Close() error {
	c.cancel()
	if c.auth != nil {
		c.auth.Close()
	}
	c.owned.Wait()
	if c.bus != nil {
		c.bus.close()
	}
	if c.sys != nil {
		c.sys.Close()
	}
	return nil
}

// Disconnect cuts every connection of the identity named, whatever its role. Authenticate must refuse it from before
// the call on: the clients will try again.
func (c *Cluster) Disconnect(ctx context.Context, name string) error {
	if err := checkName(name); err != nil {
		return err
	}
	c.cuts.Add(1)
	var errs []error
	for _, role := range roles {
		if acc := c.known(role, name); acc != nil {
			errs = append(errs, c.cut(ctx, acc))
		}
	}
	return errors.Join(errs...)
}

// Recheck authenticates all connections again, and cuts those of the identities of which one is not admitted any more. It
// is to be called when a trust bundle has changed. Connections that an earlier process admitted it knows by name only: they
// end with their SVIDs.
func (c *Cluster) Recheck(ctx context.Context) error {
	return c.recheck(ctx, c.log, c.holding, c.cut)
}

// holding says what the connections of an account are made with, on all servers that answer.
func (c *Cluster) holding(ctx context.Context, acc *account) (holders, error) {
	h := holders{leaves: map[string]bool{}, servers: map[string]bool{}}
	body, err := json.Marshal(map[string]any{"auth": true, "limit": maxListed})
	if err != nil {
		return h, err
	}
	err = c.gather(ctx, fmt.Sprintf(subjectConnz, acc.key), body, func(body []byte) (bool, error) {
		var answer struct {
			Server struct {
				ID string `json:"id"`
			} `json:"server"`
			Data server.Connz `json:"data"`
		}
		if err := json.Unmarshal(body, &answer); err != nil {
			return false, err
		}
		if answer.Data.Total > len(answer.Data.Conns) {
			return false, nil // not all of it: as if it had not answered
		}
		h.servers[answer.Server.ID] = true
		maps.Copy(h.leaves, leavesOf(answer.Data.Conns))
		return false, nil
	})
	if err != nil {
		return h, fmt.Errorf("streams: listing connections of %s: %w", accountName(acc.role, acc.name), err)
	}
	return h, nil
}

// cut takes all connections from an account. All servers end those that there are, and none takes another, until somebody
// is admitted again.
func (c *Cluster) cut(ctx context.Context, acc *account) error {
	acc.ready.Lock()
	defer acc.ready.Unlock()
	if err := c.push(ctx, c.claims(acc, true), ""); err != nil {
		return fmt.Errorf("streams: cutting off %s: %w", accountName(acc.role, acc.name), err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed[acc] = true
	return nil
}

// claims are those of an identity's account, as they should be now.
func (c *Cluster) claims(acc *account, closed bool) *jwt.AccountClaims {
	acc.mu.Lock()
	throttled := acc.throttled
	acc.mu.Unlock()
	return c.keys.identityAccount(acc.role, acc.name, c.limits, throttled, closed)
}

// make gives an account its imports and, for an agent, its inbox, unless it has them. The caller holds ready. The server
// asks for it, and is told first.
func (c *Cluster) make(ctx context.Context, acc *account, server string) error {
	c.mu.Lock()
	closed := c.closed[acc]
	c.mu.Unlock()
	if acc.made.Load() && !closed {
		return nil
	}
	if acc.role == RoleAgent && !acc.made.Load() {
		if err := c.bus.ensureInbox(ctx, acc.name); err != nil {
			return fmt.Errorf("making the inbox of %s: %w", acc.name, err)
		}
	}
	if err := c.push(ctx, c.claims(acc, false), server); err != nil {
		return fmt.Errorf("making the account of %s: %w", acc.name, err)
	}
	c.mu.Lock()
	delete(c.closed, acc)
	c.mu.Unlock()
	acc.made.Store(true)
	return nil
}

// update gives a governor's own account its claims, unless it has them: with each update the servers forget to whom they owe
// answers, and so who waits for messages.
func (c *Cluster) update(ctx context.Context, claims *jwt.AccountClaims) error {
	have, err := c.lookup(ctx, claims.Subject)
	if err != nil {
		return err
	}
	if have != nil && have.Name == claims.Name && reflect.DeepEqual(have.Account, settled(claims).Account) {
		return nil
	}
	return c.push(ctx, claims, "")
}

// settled are claims as they are after their way through a token.
func settled(claims *jwt.AccountClaims) *jwt.AccountClaims {
	// The key is of no account: nobody would take this token.
	pair, err := nkeys.CreateOperator()
	if err != nil {
		return claims
	}
	token, err := claims.Encode(pair)
	if err != nil {
		return claims
	}
	same, err := jwt.DecodeAccountClaims(token)
	if err != nil {
		return claims
	}
	return same
}

// lookup is what the servers have of an account, nil for nothing.
func (c *Cluster) lookup(ctx context.Context, account string) (*jwt.AccountClaims, error) {
	msg, err := c.sys.RequestWithContext(ctx, fmt.Sprintf(subjectLookup, account), nil)
	if err != nil {
		return nil, err
	}
	claims, err := jwt.DecodeAccountClaims(string(msg.Data))
	if err != nil {
		return nil, nil //nolint:nilerr // the answer is empty, or an error, where there is none
	}
	return claims, nil
}

// push gives an account's claims to all servers. It returns when the one named has them, or where none is named, when those
// have that answered at once; the others fetch them from these.
func (c *Cluster) push(ctx context.Context, claims *jwt.AccountClaims, server string) error {
	token, err := claims.Encode(c.keys.operator)
	if err != nil {
		return err
	}
	var failed error
	taken := 0
	err = c.gather(ctx, subjectClaims, []byte(token), func(body []byte) (bool, error) {
		var answer struct {
			Server struct {
				ID string `json:"id"`
			} `json:"server"`
			Error *struct {
				Description string `json:"description"`
			} `json:"error"`
		}
		if err := json.Unmarshal(body, &answer); err != nil {
			return false, err
		}
		if answer.Error != nil {
			failed = errors.New(answer.Error.Description)
		} else {
			taken++
		}
		return server != "" && answer.Server.ID == server, nil
	})
	if err == nil {
		err = failed
	}
	if err == nil && taken == 0 {
		err = errors.New("no server took the account's claims: is the resolver of type full?")
	}
	return err
}

// gather asks all servers, and hands over their answers until one is the last, or no more come.
func (c *Cluster) gather(ctx context.Context, subject string, body []byte, take func([]byte) (last bool, err error)) error {
	ctx, cancel := context.WithTimeout(ctx, gatherFor)
	defer cancel()
	inbox := c.sys.NewInbox()
	sub, err := c.sys.SubscribeSync(inbox)
	if err != nil {
		return err
	}
	defer func() { _ = sub.Unsubscribe() }()
	if err := c.sys.PublishRequest(subject, inbox, body); err != nil {
		return err
	}
	quiet := gatherFor
	for {
		wait, stop := context.WithTimeout(ctx, quiet)
		msg, err := sub.NextMsgWithContext(wait)
		stop()
		switch {
		case err == nil && len(msg.Data) == 0 && msg.Header.Get("Status") != "":
			return nats.ErrNoResponders
		case err == nil:
			last, err := take(msg.Data)
			if err != nil || last {
				return err
			}
			quiet = gatherQuiet
		case errors.Is(err, context.DeadlineExceeded) && quiet == gatherQuiet:
			return nil
		default:
			return fmt.Errorf("asking the servers: %w", err)
		}
	}
}

// sent is what accounts have sent since the start, on all servers.
func (c *Cluster) sent(ctx context.Context) (map[string]traffic, error) {
	answers := map[string]map[string]traffic{}
	err := c.gather(ctx, subjectStatz, []byte(`{"include_unused":true}`), func(body []byte) (bool, error) {
		var answer struct {
			Server struct {
				ID string `json:"id"`
			} `json:"server"`
			Data server.AccountStatz `json:"data"`
		}
		if err := json.Unmarshal(body, &answer); err != nil {
			return false, err
		}
		accounts := make(map[string]traffic, len(answer.Data.Accounts))
		for _, a := range answer.Data.Accounts {
			// What came over routes was counted where it came in.
			all, routed := a.Received, cmp.Or(a.Received.Routes, &server.MsgBytes{})
			accounts[a.Account] = traffic{all.Msgs - routed.Msgs, all.Bytes - routed.Bytes}
		}
		answers[answer.Server.ID] = accounts
		return false, nil
	})
	if err != nil {
		return nil, err
	}
	return c.tally.add(answers, time.Now()), nil
}

// adopt finds the identities that connected while an earlier process was here: they may flood like any other.
func (c *Cluster) adopt(ctx context.Context) error {
	if _, err := c.sent(ctx); err != nil {
		return err
	}
	for key := range c.tally.accounts() {
		if !nkeys.IsValidPublicAccountKey(key) {
			continue
		}
		claims, err := c.lookup(ctx, key)
		if err != nil {
			return err
		}
		if claims == nil {
			continue // an account that is gone
		}
		role, name, _ := strings.Cut(claims.Name, "-")
		if c.keys.accountKey(Role(role), name) != key {
			continue // not an identity's
		}
		acc, err := c.account(Role(role), name)
		if err != nil {
			return err
		}
		if acc.role == RoleAgent {
			if err := c.bus.ensureInbox(ctx, acc.name); err != nil {
				return err
			}
		}
		acc.made.Store(true)
	}
	return nil
}

// watch is the cluster's.
func (c *Cluster) watch() *watch {
	return &watch{
		identities: c.identities, bus: c.bus, log: c.log, sent: c.sent, cut: c.cut,
		throttle: func(ctx context.Context, acc *account, _ bool) error {
			acc.ready.Lock()
			defer acc.ready.Unlock()
			c.mu.Lock()
			closed := c.closed[acc]
			c.mu.Unlock()
			return c.push(ctx, c.claims(acc, closed), "")
		},
	}
}
