// Package daemon plugs the rooms together: one data directory, one process. NATS and identities are embedded, or somebody
// else's.
//
// The data directory:
//
//	governor.json   trust domain and names; what a client must know to connect
//	ledger.db       the record; its lock is the lock of the whole directory
//	streams/        what has not been decided or fetched yet, where NATS is embedded
//	keys/           governor, issuer and log: three private keys, 0600
//	ca/             the development Workload API, where there is no other: its roots
//	ca/sock/        one socket per identity; holding it is holding the identity
package daemon

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/handoff-governor/handoff-governor/governor"
	"github.com/handoff-governor/handoff-governor/governor/devspiffe"
	"github.com/handoff-governor/handoff-governor/governor/issuer"
	"github.com/handoff-governor/handoff-governor/governor/keyring"
	"github.com/handoff-governor/handoff-governor/governor/ledger"
	"github.com/handoff-governor/handoff-governor/handoff/aat"
	"github.com/handoff-governor/handoff-governor/handoff/identity"
	"github.com/handoff-governor/handoff-governor/handoff/wire"
	"github.com/handoff-governor/handoff-governor/policies"
	"github.com/handoff-governor/handoff-governor/streams"
)

// Config of a daemon. Only Dir must be there.
type Config struct {
	// Dir is the data directory; it is made with mode 0700.
	Dir string
	// TrustDomain is the home trust domain. Empty: the directory's, or handoff.local for a new one.
	TrustDomain string
	// Listen is host:port for an embedded NATS server. Empty: 127.0.0.1:4222. Port 0 takes a free one.
	Listen string
	// Cluster to serve in, instead of an embedded server. It needs WorkloadAPI: the servers prove themselves, too.
	Cluster *Cluster
	// WorkloadAPI is the address of a SPIFFE Workload API, as in unix:///run/spire/agent.sock. It knows this process as
	// /governor of the home trust domain, and has the trust bundles for all who may connect. Empty: the built-in one, for
	// development.
	WorkloadAPI string
	// Limits hold for each identity, or for all together.
	Limits Limits
	// Bundle is put in force at the start. Nil: the one in force before, or the default bundle.
	Bundle *policies.Bundle
	// Ceiling is the issuer's: the most that any root may hold. Nil: none.
	Ceiling aat.Tools
	// People are the keys of human principals, by name.
	People map[string]aat.JWK
	// Issuer is where roots are signed, if not here. It needs WorkloadAPI.
	Issuer *RemoteIssuer
	// Rotation says how long the replacement of a key takes. Zero: [DefaultRotation].
	Rotation keyring.Schedule
	// KeepBodies is how long tasks, results and objectives are kept, at least [MinKeepBodies]. 0: for ever.
	KeepBodies time.Duration
	// SVIDTTL is the lifetime of X.509-SVIDs of the development Workload API. 0: an hour.
	SVIDTTL time.Duration
	// Now is the governor's clock. Nil: time.Now.
	Now func() time.Time
	// Logger hears what an operator must know. Nil: nobody does.
	Logger *slog.Logger
}

// Cluster is one of NATS servers that run by themselves.
type Cluster struct {
	URLs     []string // tls://host:port of each server
	Keys     *streams.ClusterKeys
	Replicas int // of each stream; 0: 3
}

// Limits of what may be sent, and may wait. What is 0 is as it says.
type Limits struct {
	streams.Limits
	Sessions int // open at once of one agent: [governor.DefaultMaxSessions]
	Handoffs int // open at once to one agent: [governor.DefaultMaxOpen]; a sender has half of them
	// Withdrawn identities at a time: [governor.DefaultMaxWithdrawn].
	Withdrawn int
}

// Endpoint is what a client must know to connect: the content of governor.json.
type Endpoint struct {
	TrustDomain string   `json:"trust_domain"`
	Log         string   `json:"log"`
	LogKey      string   `json:"log_key"`                 // note verifier key
	PastLogKeys []string `json:"past_log_keys,omitempty"` // that signed checkpoints before it
	Issuer      string   `json:"issuer"`
	Governor    string   `json:"governor"`
	// IssuerKeys are all that ever signed roots, the newest first: the record has roots of each.
	IssuerKeys []aat.JWK `json:"issuer_keys"`
	URL        string    `json:"url,omitempty"`     // of the daemon that ran last
	Sockets    string    `json:"sockets,omitempty"` // directory of the sockets of the built-in Workload API
}

// Anchors are the keys that sign roots, and those that did.
func (e Endpoint) Anchors() ([]aat.Anchor, error) {
	anchors := make([]aat.Anchor, len(e.IssuerKeys))
	for i, jwk := range e.IssuerKeys {
		key, err := jwk.Key()
		if err != nil {
			return nil, fmt.Errorf("an issuer's key in %s: %w", endpointFile, err)
		}
		anchors[i] = aat.Anchor{Issuer: e.Issuer, Key: key}
	}
	return anchors, nil
}

// Daemon is a running governor with everything around it.
type Daemon struct {
	Endpoint Endpoint

	governor  *governor.Governor
	authority *devspiffe.Authority // or
	workload  *workload
	svid      x509svid.Source
	trust     trust
	bus       bus
	ledger    *ledger.Ledger
	home      spiffeid.TrustDomain
	cutOff    *cutOff
	keys      *keys
	root      governor.Issuer
	remote    *issuer.Remote // where roots are signed elsewhere
	closers   []func() error // to be called from the last to the first
	cancel    context.CancelCauseFunc
	done      chan struct{}
	err       error
}

// bus is NATS, embedded or not.
type bus interface {
	Governor() *streams.Bus
	URL() string
	Recheck(ctx context.Context) error
	Disconnect(ctx context.Context, name string) error
	Stalled() <-chan struct{}
	Close() error
}

const (
	ledgerFile   = "ledger.db"
	endpointFile = "governor.json"
	caDir        = "ca"
)

// ErrLost is a data directory that has lost a part of its record.
var ErrLost = errors.New("the record is not whole")

// CheckLedger refuses a directory whose governor.json tells of a record that is not there: another one under the same
// log key would be a second history. A directory without governor.json is a new one.
func CheckLedger(dir string) error {
	_, err := os.Stat(filepath.Join(dir, endpointFile))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	full, err := hasLedger(dir)
	if err == nil && !full {
		err = fmt.Errorf("%w: %s names the key of a record that was begun, and %s is gone or empty; \"governor restore\" brings a backup back, or begin anew in another directory",
			ErrLost, filepath.Join(dir, endpointFile), LedgerPath(dir))
	}
	return err
}

// checkWhole refuses a directory that has lost its ledger, or the keys of the ledger that it has.
func checkWhole(dir string, files []string) error {
	if err := CheckLedger(dir); err != nil {
		return err
	}
	full, err := hasLedger(dir)
	if err != nil || !full {
		return err
	}
	for _, name := range files {
		file := filepath.Join(dir, keysDir, name)
		_, err := os.Stat(file)
		if name == logFile && errors.Is(err, os.ErrNotExist) {
			_, err = os.Stat(filepath.Join(dir, keysDir, oldLogFile))
		}
		if errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("%w: there is a ledger in %s, and its key %s is missing; restore it from a copy, or begin anew in another directory",
				ErrLost, dir, file)
		}
	}
	return nil
}

// hasLedger tells whether there is a ledger with anything in it: an empty file is what a killed first start may leave.
func hasLedger(dir string) (bool, error) {
	info, err := os.Stat(LedgerPath(dir))
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	return err == nil && info.Size() > 0, err
}

// LedgerPath is where the ledger of a data directory lies.
func LedgerPath(dir string) string { return filepath.Join(dir, ledgerFile) }

// Start opens the data directory and serves. Stop it with Close.
func Start(ctx context.Context, cfg Config) (_ *Daemon, err error) {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if err := CheckKeepBodies(cfg.KeepBodies); err != nil {
		return nil, fmt.Errorf("the time for which bodies are kept %w", err)
	}
	d := &Daemon{done: make(chan struct{}), cutOff: newCutOff()}
	defer func() {
		if err != nil {
			err = errors.Join(err, d.close())
		}
	}()
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("the data directory cannot be made: %w", err)
	}
	if info, err := os.Stat(cfg.Dir); err != nil {
		return nil, err
	} else if info.Mode().Perm()&0o022 != 0 {
		return nil, fmt.Errorf("others can write into %s, and so put keys and a record of their own there: chmod 700 it, or name another directory", cfg.Dir)
	}
	if cfg.WorkloadAPI != "" {
		if d.workload, err = newWorkload(ctx, cfg.WorkloadAPI, "/governor", cfg.Logger); err != nil {
			return nil, err
		}
		d.closers = append(d.closers, d.workload.Close)
	}
	if err := d.name(cfg); err != nil {
		return nil, err
	}

	// Keys before the record, the record before governor.json: what a start that was killed has left is either whole, or
	// may be made anew. The record's lock keeps a second daemon out of the directory.
	if err := checkWhole(cfg.Dir, keyFiles(cfg)); err != nil {
		return nil, err
	}
	if d.keys, err = loadKeys(cfg, d.Endpoint.Log); err != nil {
		return nil, err
	}
	signers, logKey, err := d.keys.logSigners()
	if err != nil {
		return nil, err
	}
	d.Endpoint.PastLogKeys = pastKeys(d.Endpoint, logKey)
	d.Endpoint.LogKey = logKey
	if d.ledger, err = ledger.Open(LedgerPath(cfg.Dir), ledger.Config{LogName: d.Endpoint.Log, Signer: signers[0], Logger: cfg.Logger}); err != nil {
		return nil, err
	}
	d.closers = append(d.closers, d.ledger.Close)
	if err := d.ledger.SignWith(signers...); err != nil {
		return nil, err
	}

	store, err := d.policy(cfg)
	if err != nil {
		return nil, err
	}
	if err := d.identify(cfg); err != nil {
		return nil, err
	}
	if err := d.listen(ctx, cfg); err != nil {
		return nil, err
	}
	d.closers = append(d.closers, d.bus.Close)
	root, err := d.issuer(ctx, cfg)
	if err != nil {
		return nil, err
	}
	governorKeys, err := d.keys.open(cfg.Now)
	if err != nil {
		return nil, err
	}
	d.Endpoint.IssuerKeys = allKeys(root.Keys(), d.Endpoint.IssuerKeys)
	d.governor, err = governor.New(ctx, governor.Config{
		Bus: d.bus.Governor(), Log: d.ledger, Policy: policy{store, d.home.Name()}, Issuer: root, PastIssuerKeys: d.Endpoint.IssuerKeys, Keys: governorKeys,
		URI: d.Endpoint.Governor, LogName: d.Endpoint.Log, LogKey: d.Endpoint.LogKey, LogKeys: d.keys.logKeys, KnownAgent: d.knownAgent,
		Rotate: d.rotate, Withdrawn: d.setWithdrawn, MaxWithdrawn: cfg.Limits.Withdrawn, MaxSessions: cfg.Limits.Sessions, MaxOpen: cfg.Limits.Handoffs, Now: cfg.Now, Logger: cfg.Logger,
	})
	if err != nil {
		return nil, err
	}
	d.cutOff.complete()
	if err := saveEndpoint(cfg.Dir, d.Endpoint); err != nil {
		return nil, err
	}
	d.keys.mu.Lock() // an operator may be here already
	d.keys.endpoint, d.keys.signing = d.Endpoint, len(signers)
	d.keys.mu.Unlock()
	d.run(context.WithoutCancel(ctx), cfg)
	select {
	case <-d.governor.Ready():
		return d, nil
	case <-d.done:
		d.cancel(nil)
		return nil, fmt.Errorf("the governor did not start: %w", d.err)
	}
}

// run serves until cancel is called, or the governor stops by itself.
func (d *Daemon) run(ctx context.Context, cfg Config) {
	ctx, d.cancel = context.WithCancelCause(ctx)
	log := cfg.Logger
	var owned sync.WaitGroup
	if d.workload != nil {
		owned.Go(func() { d.workload.recheck(ctx, d.bus, log) })
	}
	owned.Go(func() { d.keepKeys(ctx, log) })
	if cfg.KeepBodies > 0 {
		owned.Go(func() { d.keepBodies(ctx, cfg.KeepBodies, cfg.Now, log) })
	}
	if d.remote != nil {
		owned.Go(func() { d.followIssuer(ctx, log) })
	}
	owned.Go(func() {
		select {
		case <-ctx.Done():
		case <-d.bus.Stalled():
			d.cancel(errStalled)
		}
	})
	go func() {
		defer close(d.done)
		d.err = d.governor.Run(ctx)
		d.cancel(d.err)
		owned.Wait()
		if d.err == nil && errors.Is(context.Cause(ctx), errStalled) {
			d.err = errStalled
		}
	}()
}

var errStalled = errors.New("the streams could not be written, and there is room again")

// Again tells whether another start helps where a daemon has stopped by itself: what is in memory, or in NATS, is not what is on the
// disk.
func Again(err error) bool {
	return errors.Is(err, errStalled) || errors.Is(err, wire.ErrStreamsLost) || errors.Is(err, ledger.ErrBroken)
}

// close ends what was started, the last first.
func (d *Daemon) close() error {
	var errs []error
	for _, end := range slices.Backward(d.closers) {
		errs = append(errs, end())
	}
	d.closers = nil
	return errors.Join(errs...)
}

// Governor is the governor that runs here.
func (d *Daemon) Governor() *governor.Governor { return d.governor }

// Activate puts a bundle in force, as the governor's own doing. What does not compile leaves the one before in force.
func (d *Daemon) Activate(ctx context.Context, bundle *policies.Bundle) (index uint64, err error) {
	id, err := spiffeid.FromPath(d.home, "/governor")
	if err != nil {
		return 0, err
	}
	name, err := identity.NameOf(id)
	if err != nil {
		return 0, err
	}
	return d.governor.Activate(ctx, bundle.Bytes(), string(name))
}

// Done is closed when the governor has stopped, by itself or by Close.
func (d *Daemon) Done() <-chan struct{} { return d.done }

// Close drains: what was begun is finished, then the governor, NATS, the ledger and the identities end.
func (d *Daemon) Close() error {
	d.cancel(errors.New("the governor is stopping"))
	<-d.done
	return errors.Join(d.err, d.close())
}

// errNoSockets says why an identity cannot be had here.
var errNoSockets = errors.New("identities come from another Workload API, not from the governor: register the workload there")

// Socket makes an identity available through the Workload API, and returns the address for SPIFFE_ENDPOINT_SOCKET. Path
// is that of the SPIFFE ID, as in /agent/planner.
func (d *Daemon) Socket(path string) (string, error) {
	if d.authority == nil {
		return "", errNoSockets
	}
	id, err := spiffeid.FromPath(d.home, path)
	if err != nil {
		return "", err
	}
	return d.authority.Socket(id)
}

// Source is an identity for use in this very process.
func (d *Daemon) Source(path string) (*devspiffe.Source, error) {
	if d.authority == nil {
		return nil, errNoSockets
	}
	id, err := spiffeid.FromPath(d.home, path)
	if err != nil {
		return nil, err
	}
	return d.authority.Source(id)
}

// name settles who this is, for the life of the directory.
func (d *Daemon) name(cfg Config) error {
	if d.workload != nil {
		home := d.workload.id.TrustDomain().Name()
		if cfg.TrustDomain != "" && cfg.TrustDomain != home {
			return fmt.Errorf("the Workload API is of the trust domain %s, not of %s: name that one, or register the governor there", home, cfg.TrustDomain)
		}
		cfg.TrustDomain = home
	}
	known, err := LoadEndpoint(cfg.Dir)
	switch {
	case errors.Is(err, os.ErrNotExist):
		known.TrustDomain = cfg.TrustDomain
		if known.TrustDomain == "" {
			known.TrustDomain = "handoff.local"
		}
	case err != nil:
		return err
	case cfg.TrustDomain != "" && cfg.TrustDomain != known.TrustDomain:
		return fmt.Errorf("the data directory belongs to the trust domain %s; take that one, or another directory", known.TrustDomain)
	}
	if d.home, err = spiffeid.TrustDomainFromString(known.TrustDomain); err != nil {
		return fmt.Errorf("the trust domain: %w", err)
	}
	td := d.home.Name()
	d.Endpoint = Endpoint{
		TrustDomain: td, Log: td + "/handoff", Issuer: "spiffe://" + td + "/issuer", Governor: "spiffe://" + td + "/governor",
		IssuerKeys: known.IssuerKeys, LogKey: known.LogKey, PastLogKeys: known.PastLogKeys,
	}
	if d.workload == nil {
		d.Endpoint.Sockets = filepath.Join(cfg.Dir, caDir, "sock")
	}
	return nil
}

// policy compiles the bundle to start with.
func (d *Daemon) policy(cfg Config) (*policies.Store, error) {
	bundle := cfg.Bundle
	if bundle == nil {
		var err error
		if bundle, err = newestBundle(d.ledger); err != nil {
			return nil, err
		}
	}
	bundle, err := bundle.WithData("/home", d.home.Name())
	if err != nil {
		return nil, err
	}
	return policies.NewStore(bundle, policies.Config{Logger: cfg.Logger})
}

// newestBundle is the one that was in force last, or the default.
func newestBundle(l *ledger.Ledger) (*policies.Bundle, error) {
	raw, err := l.NewestBundle()
	if errors.Is(err, ledger.ErrNotFound) {
		return policies.Default(), nil
	}
	if err != nil {
		return nil, err
	}
	return policies.Parse(raw)
}

// identify finds out what the governor proves itself with, and who vouches for the others.
func (d *Daemon) identify(cfg Config) (err error) {
	if d.workload != nil {
		d.svid, d.trust = d.workload.svids, d.workload
		return nil
	}
	d.authority, err = devspiffe.New(devspiffe.Config{
		Dir: filepath.Join(cfg.Dir, caDir), TrustDomain: d.home, TTL: cfg.SVIDTTL, Logger: cfg.Logger,
	})
	if err != nil {
		return err
	}
	d.closers = append(d.closers, d.authority.Close)
	id, err := spiffeid.FromPath(d.home, "/governor")
	if err != nil {
		return err
	}
	d.trust = d.authority
	d.svid, err = d.authority.Source(id)
	return err
}

// listen starts NATS, or joins it, behind these identities.
func (d *Daemon) listen(ctx context.Context, cfg Config) (err error) {
	if cfg.Cluster == nil {
		server, err := streams.Start(ctx, streams.Config{
			Dir: filepath.Join(cfg.Dir, "streams"), Listen: cfg.Listen, Logger: cfg.Logger, Limits: cfg.Limits.Limits,
			TLS:          identity.ServerTLSAllowAnonymous(d.svid, d.trust, d.authorize),
			Authenticate: d.authenticate,
		})
		if err != nil {
			return err
		}
		d.bus = server
	} else {
		if d.workload == nil {
			return errors.New("a cluster needs a Workload API: its servers prove themselves, and must be believed")
		}
		cluster, err := streams.Join(ctx, streams.ClusterConfig{
			URLs: cfg.Cluster.URLs, Keys: cfg.Cluster.Keys, Replicas: cfg.Cluster.Replicas, Logger: cfg.Logger, Limits: cfg.Limits.Limits,
			TLS:          identity.ClientTLS(d.svid, d.trust, identity.ServerOf(d.workload.id)),
			Authenticate: d.authenticate,
		})
		if err != nil {
			return err
		}
		d.bus = cluster
	}
	d.Endpoint.URL = d.bus.URL()
	return nil
}

// authorize refuses the identities that were withdrawn: their certificates live on until they expire.
func (d *Daemon) authorize(p identity.Peer) error {
	if d.withdrawn(p.ID) || d.cutOff.has(p.Name) {
		return fmt.Errorf("%s was withdrawn", p.ID)
	}
	return nil
}

func (d *Daemon) withdrawn(id spiffeid.ID) bool {
	return d.authority != nil && d.authority.Withdrawn(id)
}

// authenticate says who holds a connection: by its X.509-SVID, or by a JWT-SVID for the governor.
func (d *Daemon) authenticate(ctx context.Context, certs []*x509.Certificate, token string) (streams.Identity, error) {
	if err := d.cutOff.wait(ctx); err != nil {
		return streams.Identity{}, err
	}
	var peer identity.Peer
	var err error
	if len(certs) > 0 {
		peer, err = identity.VerifyX509(certs, d.trust, time.Now())
	} else {
		peer, err = identity.VerifyJWT(token, d.Endpoint.Governor, d.trust, time.Now())
	}
	if err != nil {
		return streams.Identity{}, err
	}
	if err := d.authorize(peer); err != nil {
		return streams.Identity{}, err
	}
	role, err := identity.RoleOf(peer.ID, d.home)
	if err != nil {
		return streams.Identity{}, err
	}
	return streams.Identity{Name: string(peer.Name), Role: streams.Role(role), Expires: peer.Expires}, nil
}

// knownAgent tells whether a name is an agent of a trust domain that can connect here.
func (d *Daemon) knownAgent(name string) bool {
	parsed, err := identity.ParseName(name)
	if err != nil {
		return false
	}
	id, err := parsed.ID()
	if err != nil || d.withdrawn(id) {
		return false
	}
	if _, err := d.trust.GetX509BundleForTrustDomain(id.TrustDomain()); err != nil {
		return false
	}
	role, err := identity.RoleOf(id, d.home)
	return err == nil && role == identity.RoleAgent
}

func saveEndpoint(dir string, e Endpoint) error {
	encoded, err := json.Marshal(e, json.Deterministic(true), jsontext.WithIndent("  "))
	if err != nil {
		return err
	}
	return replaceFile(filepath.Join(dir, endpointFile), append(encoded, '\n'))
}

// LoadEndpoint reads governor.json of a data directory. A directory without one is [os.ErrNotExist].
func LoadEndpoint(dir string) (Endpoint, error) {
	var e Endpoint
	raw, err := os.ReadFile(filepath.Join(dir, endpointFile))
	if err != nil {
		return e, err
	}
	if err := json.Unmarshal(raw, &e); err != nil {
		return e, fmt.Errorf("%s: %w", filepath.Join(dir, endpointFile), err)
	}
	return e, nil
}

// policy is the governor's view of the policy store.
type policy struct {
	store *policies.Store
	home  string // trust domain, which every bundle is told: the same after a restart
}

func (p policy) Current() governor.Judge { return judge{p.store.Current()} }

func (p policy) Compile(raw []byte) (governor.Judge, error) {
	bundle, err := policies.Parse(raw)
	if err != nil {
		return nil, err
	}
	if bundle, err = bundle.WithData("/home", p.home); err != nil {
		return nil, err
	}
	snapshot, err := p.store.Prepare(bundle)
	if err != nil {
		return nil, err
	}
	return judge{snapshot}, nil
}

func (p policy) Activate(j governor.Judge) {
	if snapshot, ok := j.(judge); ok {
		p.store.Use(snapshot.Snapshot)
	}
}

type judge struct{ *policies.Snapshot }

func (j judge) Engine() string { return policies.Engine() }
func (j judge) Bytes() []byte  { return j.Bundle().Bytes() }
