package devspiffe

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/jwtbundle"
	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/handoff-governor/handoff-governor/handoff/identity"
)

const (
	defaultTTL          = time.Hour
	defaultAuthorityTTL = 365 * 24 * time.Hour
)

var (
	// ErrWithdrawn is wrapped where an identity was withdrawn; [Authority.Restore] gives it back.
	ErrWithdrawn = errors.New("identity withdrawn")
	// ErrForeign is wrapped where an identity belongs to another trust domain than the authority.
	ErrForeign = errors.New("foreign trust domain")
	// ErrClosed is wrapped after [Authority.Close].
	ErrClosed = errors.New("development authority closed")
)

// Config says what an [Authority] is. The zero values of all but Dir and TrustDomain are fine.
type Config struct {
	// Dir is the directory of this authority and of nothing else, made 0700 if missing. One process at a time may
	// use it; the governor's lock on its data directory sees to that.
	Dir         string
	TrustDomain spiffeid.TrustDomain
	// TTL is the lifetime of X.509-SVIDs, at least a second; 0 means an hour. They are replaced at half of it.
	TTL time.Duration
	// AuthorityTTL is the lifetime of root keys, at least four times TTL; 0 means a year, or four times TTL where
	// that is longer. They are replaced at half of it.
	AuthorityTTL time.Duration
	// DNSNames are what the X.509-SVIDs of some have beside their ID: servers that others look for by host name.
	DNSNames map[spiffeid.ID][]string
	Now      func() time.Time // nil means time.Now
	Logger   *slog.Logger     // nil means slog.Default()
}

// Authority issues the SVIDs of one trust domain, and serves them on one socket for each identity. It implements
// x509bundle.Source and jwtbundle.Source. All methods may be called concurrently.
type Authority struct {
	config Config

	mu        sync.Mutex // guards the next two; held for moments, and while new roots are written
	roots     *roots
	withdrawn map[identity.Name]bool

	serving       sync.Mutex               // held while sockets come and go; never taken while mu is held
	registrations map[string]*registration // :: socket file name in lower case → registration
	warned        bool
	closed        bool
}

// New opens the authority in config.Dir, or makes one there. It refuses roots of another trust domain, and files that
// others may read or that it cannot make sense of; it never overwrites those.
func New(config Config) (*Authority, error) {
	if config.Dir == "" || config.TrustDomain.IsZero() {
		return nil, errors.New("development authority: Dir and TrustDomain are required")
	}
	dir, err := filepath.Abs(config.Dir)
	if err != nil {
		return nil, fmt.Errorf("development authority: %w", err)
	}
	config.Dir = dir
	if config.TTL == 0 {
		config.TTL = defaultTTL
	}
	if config.AuthorityTTL == 0 {
		config.AuthorityTTL = max(defaultAuthorityTTL, 4*config.TTL)
	}
	if config.TTL < time.Second || config.AuthorityTTL < 4*config.TTL {
		return nil, fmt.Errorf("development authority: a TTL of %s under roots of %s: make the TTL a second or more, and"+
			" AuthorityTTL at least four times as long", config.TTL, config.AuthorityTTL)
	}
	if config.Now == nil {
		config.Now = time.Now
	}
	if config.Logger == nil {
		config.Logger = slog.Default()
	}

	a := &Authority{config: config, registrations: map[string]*registration{}}
	for _, dir := range []string{config.Dir, a.socketDir()} {
		if err := privateDir(dir); err != nil {
			return nil, fmt.Errorf("development authority: %w", err)
		}
	}
	keys, err := loadKeys(a.keysFile(), config.TrustDomain)
	if err != nil {
		return nil, fmt.Errorf("development authority: %w", err)
	}
	a.roots = &roots{keys: keys}
	if a.withdrawn, err = loadNames(a.withdrawnFile()); err != nil {
		return nil, fmt.Errorf("development authority: %w", err)
	}
	if _, err := a.current(); err != nil {
		return nil, err
	}
	return a, nil
}

func (a *Authority) keysFile() string      { return filepath.Join(a.config.Dir, "authorities.pem") }
func (a *Authority) withdrawnFile() string { return filepath.Join(a.config.Dir, "withdrawn") }
func (a *Authority) socketDir() string     { return filepath.Join(a.config.Dir, "sock") }

// Socket serves the Workload API for id, if it is not served yet, and returns its address as SPIFFE_ENDPOINT_SOCKET
// wants it (unix:///…). It refuses identities that are withdrawn or of another trust domain, and paths longer than
// the operating system allows.
func (a *Authority) Socket(id spiffeid.ID) (addr string, err error) {
	a.serving.Lock()
	defer a.serving.Unlock()
	r, err := a.register(id)
	if err != nil {
		return "", err
	}
	if !a.warned {
		a.warned = true
		a.config.Logger.Warn("development Workload API: holding a socket is holding its identity; every process of"+
			" this user can take any of them; use SPIRE in production", slog.String("dir", a.socketDir()))
	}
	return r.serve()
}

// Source returns the SVIDs of id for use in this very process, without a socket. It refuses what [Authority.Socket]
// refuses.
func (a *Authority) Source(id spiffeid.ID) (*Source, error) {
	a.serving.Lock()
	defer a.serving.Unlock()
	r, err := a.register(id)
	if err != nil {
		return nil, err
	}
	return &Source{registration: r}, nil
}

// register returns the registration of id, new or not. The caller holds a.serving.
func (a *Authority) register(id spiffeid.ID) (*registration, error) {
	name, err := identity.NameOf(id)
	switch {
	case err != nil:
		return nil, err
	case a.closed:
		return nil, ErrClosed
	case !id.MemberOf(a.config.TrustDomain):
		return nil, fmt.Errorf("%w: %q is not of %q, the only one issued here", ErrForeign, id, a.config.TrustDomain)
	case a.Withdrawn(id):
		return nil, withdrawnError(id)
	}
	file := socketFile(name)
	// Some file systems do not tell case apart; there, the second of two such sockets would replace the first.
	key := strings.ToLower(file)
	r, ok := a.registrations[key]
	if !ok {
		ctx, stop := context.WithCancelCause(context.Background())
		r = &registration{authority: a, id: id, file: filepath.Join(a.socketDir(), file), ctx: ctx, stop: stop}
		a.registrations[key] = r
	}
	if r.id != id {
		return nil, fmt.Errorf("%w: %q differs from %q, already served here, in case only", identity.ErrName, id, r.id)
	}
	return r, nil
}

// Withdraw ends id: its socket goes away, its streams end, and nothing is issued to it until [Authority.Restore], also
// after a restart. It need not have been served. What was issued stays valid until it expires; whoever admits
// connections asks [Authority.Withdrawn].
func (a *Authority) Withdraw(id spiffeid.ID) error {
	a.serving.Lock()
	defer a.serving.Unlock()
	name, err := a.setWithdrawn(id, true)
	if err != nil {
		return err
	}
	key := strings.ToLower(socketFile(name))
	if r, ok := a.registrations[key]; ok && r.id == id {
		r.close(withdrawnError(id))
		delete(a.registrations, key)
	}
	a.config.Logger.Info("development identity withdrawn", slog.String("spiffe_id", id.String()))
	return nil
}

// Restore undoes [Authority.Withdraw]. The socket comes back with the next [Authority.Socket].
func (a *Authority) Restore(id spiffeid.ID) error {
	a.serving.Lock()
	defer a.serving.Unlock()
	_, err := a.setWithdrawn(id, false)
	return err
}

// Withdrawn reports whether id was withdrawn.
func (a *Authority) Withdrawn(id spiffeid.ID) bool {
	name, err := identity.NameOf(id)
	a.mu.Lock()
	defer a.mu.Unlock()
	return err == nil && a.withdrawn[name]
}

// setWithdrawn writes the new set before it is in force. The caller holds a.serving.
func (a *Authority) setWithdrawn(id spiffeid.ID, withdrawn bool) (identity.Name, error) {
	name, err := identity.NameOf(id)
	if err != nil {
		return "", err
	}
	if !id.MemberOf(a.config.TrustDomain) {
		return "", fmt.Errorf("%w: %q is not of %q", ErrForeign, id, a.config.TrustDomain)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	next := maps.Clone(a.withdrawn)
	delete(next, name)
	if withdrawn {
		next[name] = true
	}
	if err := saveNames(a.withdrawnFile(), slices.Sorted(maps.Keys(next))); err != nil {
		return "", fmt.Errorf("development authority: %w", err)
	}
	a.withdrawn = next
	return name, nil
}

// Close ends all sockets and streams. Sources stop issuing.
func (a *Authority) Close() error {
	a.serving.Lock()
	defer a.serving.Unlock()
	a.closed = true
	for key, r := range a.registrations {
		r.close(ErrClosed)
		delete(a.registrations, key)
	}
	return nil
}

// GetX509BundleForTrustDomain implements x509bundle.Source. Only the authority's own trust domain has a bundle.
func (a *Authority) GetX509BundleForTrustDomain(td spiffeid.TrustDomain) (*x509bundle.Bundle, error) {
	roots, err := a.current()
	if err != nil {
		return nil, err
	}
	return roots.x509.GetX509BundleForTrustDomain(td)
}

// GetJWTBundleForTrustDomain implements jwtbundle.Source. Only the authority's own trust domain has a bundle.
func (a *Authority) GetJWTBundleForTrustDomain(td spiffeid.TrustDomain) (*jwtbundle.Bundle, error) {
	roots, err := a.current()
	if err != nil {
		return nil, err
	}
	return roots.jwt.GetJWTBundleForTrustDomain(td)
}

// Source is one identity, used in the process of its authority. It implements x509svid.Source, x509bundle.Source and
// jwtbundle.Source.
type Source struct {
	registration *registration
}

// GetX509SVID implements x509svid.Source. It returns an X.509-SVID with half its life or more ahead.
func (s *Source) GetX509SVID() (*x509svid.SVID, error) {
	current, err := s.registration.current()
	if err != nil {
		return nil, err
	}
	return current.svid, nil
}

// GetX509BundleForTrustDomain implements x509bundle.Source as [Authority.GetX509BundleForTrustDomain] does.
func (s *Source) GetX509BundleForTrustDomain(td spiffeid.TrustDomain) (*x509bundle.Bundle, error) {
	return s.registration.authority.GetX509BundleForTrustDomain(td)
}

// GetJWTBundleForTrustDomain implements jwtbundle.Source as [Authority.GetJWTBundleForTrustDomain] does.
func (s *Source) GetJWTBundleForTrustDomain(td spiffeid.TrustDomain) (*jwtbundle.Bundle, error) {
	return s.registration.authority.GetJWTBundleForTrustDomain(td)
}

// socketFile names the socket of an identity: planner.sock for /agent/planner, and the whole path, encoded, for all
// else (=sguard=ssearch.sock). Agents' last segments never contain `=s`, so nobody else's file can look like theirs.
func socketFile(name identity.Name) string {
	_, path, _ := strings.Cut(string(name), "=s")
	if agent, ok := strings.CutPrefix(path, "agent=s"); ok && !strings.Contains(agent, "=s") {
		return agent + ".sock"
	}
	return "=s" + path + ".sock"
}

func withdrawnError(id spiffeid.ID) error {
	return fmt.Errorf("%w: %q gets no SVIDs until the operator restores it", ErrWithdrawn, id)
}

func privateDir(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	return os.Chmod(dir, 0o700) // MkdirAll leaves the mode of what exists
}
