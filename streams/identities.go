package streams

import (
	"cmp"
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats-server/v2/server"

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

// Authenticate says who is at the other end of a connection, by the certificates that it has proved to hold, leaf first, or
// by its connect token, which is "" for a client that sent none and must never be logged. It is called again for the same
// connection when a trust bundle has changed, or somebody was cut off meanwhile.
type Authenticate func(ctx context.Context, certs []*x509.Certificate, token string) (Identity, error)

// identities are those that have connected, and what is held against them.
type identities struct {
	limits       Limits
	authenticate Authenticate
	now          func() time.Time
	keyOf        func(role Role, name string) string // what the server calls an account
	// cuts counts those cut off, so that none is overtaken by a connection that is just being judged.
	cuts atomic.Uint64

	mu       sync.Mutex
	accounts map[string]*account // :: role and name → account
}

// account is one identity's account, once it has all its imports.
type account struct {
	role Role
	name string
	key  string // keyOf

	ready sync.Mutex // held while it is being made, and to make the limit of connections exact
	made  atomic.Bool
	nats  *server.Account // of an embedded server

	mu        sync.Mutex
	barred    time.Time // no connection before then
	throttled bool
	admitted  map[[sha256.Size]byte]admission
}

// admission is what connections were admitted with.
type admission struct {
	certs   []*x509.Certificate
	token   string
	expires time.Time
	at      time.Time       // the last of them
	servers map[string]bool // :: ID of the server → true, where there are several
}

// leaf is what servers call a connection's certificate: SHA-256 in hexadecimal.
func (a admission) leaf() string {
	if len(a.certs) == 0 {
		return ""
	}
	hash := sha256.Sum256(a.certs[0].Raw)
	return hex.EncodeToString(hash[:])
}

// holders says which certificates the connections of an identity have shown, by [admission.leaf], and which servers have
// said so.
type holders struct {
	leaves  map[string]bool
	servers map[string]bool
}

// used tells whether there may be a connection that was admitted so. One that was just admitted may not be among those that
// the servers know of yet, nor one that they are asking about again.
func (a admission) used(now time.Time, h holders) bool {
	for id := range a.servers {
		if !h.servers[id] {
			return true
		}
	}
	return len(a.certs) == 0 || now.Sub(a.at) < authTimeout || h.leaves[a.leaf()]
}

// maxAdmissions bounds what is kept of one identity: processes of one agent share an SVID or have one each, and each is
// renewed at half its life.
const maxAdmissions = 256

func newIdentities(limits Limits, authenticate Authenticate, now func() time.Time, keyOf func(Role, string) string) *identities {
	return &identities{limits: limits, authenticate: authenticate, now: now, keyOf: keyOf, accounts: make(map[string]*account)}
}

// judge authenticates whoever connects and finds its account, which may still have to be made.
func (r *identities) judge(ctx context.Context, certs []*x509.Certificate, token string) (Identity, *account, error) {
	id, err := r.authenticate(ctx, certs, token)
	if err != nil {
		return Identity{}, nil, err
	}
	if err := checkName(id.Name); err != nil {
		return Identity{}, nil, err
	}
	if !slices.Contains(roles, id.Role) {
		return id, nil, fmt.Errorf("role %q is not served", id.Role)
	}
	if len(certs) > 0 && certs[0].NotAfter.Before(id.Expires) {
		id.Expires = certs[0].NotAfter
	}
	if !id.Expires.After(r.now()) {
		return id, nil, errors.New("identity has expired: fetch a new SVID")
	}
	acc, err := r.account(id.Role, id.Name)
	if err != nil {
		return id, nil, err
	}
	if until := acc.barredUntil(); r.now().Before(until) {
		return id, nil, fmt.Errorf("cut off for flooding until %s", until.Format(time.TimeOnly))
	}
	return id, acc, nil
}

func (r *identities) account(role Role, name string) (*account, error) {
	index := accountName(role, name)
	r.mu.Lock()
	defer r.mu.Unlock()
	acc := r.accounts[index]
	if acc == nil {
		if len(r.accounts) >= r.limits.Agents {
			return nil, fmt.Errorf("more than %d identities: raise the limit", r.limits.Agents)
		}
		acc = &account{role: role, name: name, key: r.keyOf(role, name)}
		r.accounts[index] = acc
	}
	return acc, nil
}

// known is the account of an identity, or nil if it has never connected.
func (r *identities) known(role Role, name string) *account {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.accounts[accountName(role, name)]
}

// all are the accounts that are made.
func (r *identities) all() []*account {
	r.mu.Lock()
	all := slices.Collect(maps.Values(r.accounts))
	r.mu.Unlock()
	return slices.DeleteFunc(all, func(acc *account) bool { return !acc.made.Load() })
}

// recheck authenticates everybody again, and has cut end the connections of the identities of which one is not admitted any
// more. What nobody holds a connection with any more, as after a rotation, is no reason to.
func (r *identities) recheck(ctx context.Context, log *slog.Logger, holding func(context.Context, *account) (holders, error), cut func(context.Context, *account) error) error {
	r.cuts.Add(1)
	var errs []error
	for _, acc := range r.all() {
		doubtful := r.doubtful(ctx, acc)
		if len(doubtful) == 0 {
			continue
		}
		h, err := holding(ctx, acc)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		for _, a := range doubtful {
			if !a.used(r.now(), h) {
				continue
			}
			log.WarnContext(ctx, "identity cut off: its SVID is not valid any more", "name", acc.name, "role", acc.role)
			err = cut(ctx, acc)
			break
		}
		if err != nil {
			errs = append(errs, err)
			continue
		}
		acc.forget(doubtful)
	}
	return errors.Join(errs...)
}

// doubtful are the admissions of an account that would not be given any more.
func (r *identities) doubtful(ctx context.Context, acc *account) map[[sha256.Size]byte]admission {
	found := acc.admissions()
	maps.DeleteFunc(found, func(_ [sha256.Size]byte, a admission) bool {
		if !a.expires.After(r.now()) { // the server has ended it
			return true
		}
		id, err := r.authenticate(ctx, a.certs, a.token)
		return err == nil && id.Name == acc.name && id.Role == acc.role
	})
	return found
}

// admit notes what a connection was admitted with, and to which server, "" for the only one.
func (acc *account) admit(now time.Time, server string, a admission) error {
	hash := sha256.New()
	for _, cert := range a.certs {
		hash.Write(cert.Raw)
	}
	hash.Write([]byte(a.token))
	key := [sha256.Size]byte(hash.Sum(nil))
	acc.mu.Lock()
	defer acc.mu.Unlock()
	if acc.admitted == nil {
		acc.admitted = map[[sha256.Size]byte]admission{}
	}
	if _, again := acc.admitted[key]; !again && len(acc.admitted) >= maxAdmissions {
		maps.DeleteFunc(acc.admitted, func(_ [sha256.Size]byte, a admission) bool { return !a.expires.After(now) })
		if len(acc.admitted) >= maxAdmissions {
			return fmt.Errorf("already %d SVIDs of this identity are in use: share them between its processes", maxAdmissions)
		}
	}
	a.at = now
	a.servers = map[string]bool{}
	maps.Copy(a.servers, acc.admitted[key].servers)
	if server != "" {
		a.servers[server] = true
	}
	acc.admitted[key] = a
	return nil
}

func (acc *account) admissions() map[[sha256.Size]byte]admission {
	acc.mu.Lock()
	defer acc.mu.Unlock()
	return maps.Clone(acc.admitted)
}

// forget drops admissions, unless there is a newer connection of the same.
func (acc *account) forget(known map[[sha256.Size]byte]admission) {
	acc.mu.Lock()
	defer acc.mu.Unlock()
	for key, a := range known {
		if acc.admitted[key].at.Equal(a.at) {
			delete(acc.admitted, key)
		}
	}
}

func (acc *account) barredUntil() time.Time {
	acc.mu.Lock()
	defer acc.mu.Unlock()
	return acc.barred
}

func (acc *account) bar(until time.Time) {
	acc.mu.Lock()
	defer acc.mu.Unlock()
	acc.barred = until
}

// Limits bound what identities can make the server hold. A zero field has the default that its comment names.
type Limits struct {
	Agents          int           // identities that ever connected: 10,000
	Connections     int           // of one identity at a time: 32; with the next, it bounds how often one answer is sent
	Subscriptions   int           // of one connection: 32
	Rate            int           // messages of one identity a second, over ten seconds: 20,000; over it, it is cut off for a minute
	RateBytes       int64         // bytes of one identity a second, over ten seconds: 64 MiB; over it, likewise
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
	PendingAnswers  int           // answers an embedded server owes to all identities before who asks most is cut off: 200,000
}

// WithDefaults returns the limits that are held to when l is given.
func (l Limits) WithDefaults() Limits {
	return Limits{
		Agents:          cmp.Or(l.Agents, 10_000),
		Connections:     cmp.Or(l.Connections, 32),
		Subscriptions:   cmp.Or(l.Subscriptions, 32),
		Rate:            cmp.Or(l.Rate, 20_000),
		RateBytes:       cmp.Or(l.RateBytes, 64<<20),
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
