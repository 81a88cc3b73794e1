package main

import (
	"context"
	"crypto/ed25519"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unicode"

	"github.com/spf13/cobra"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/handoff-governor/handoff-governor/cmd/governor/daemon"
	"github.com/handoff-governor/handoff-governor/cmd/internal/cli"
	"github.com/handoff-governor/handoff-governor/governor/ledger"
	"github.com/handoff-governor/handoff-governor/handoff"
	"github.com/handoff-governor/handoff-governor/handoff/aat"
	"github.com/handoff-governor/handoff-governor/policies"
)

// up is what "governor up" was asked for.
type up struct {
	listen, trustDomain, policy, logLevel string
	agents, guards                        []string
	people                                []string
}

func upCommand() *cobra.Command {
	var u up
	cmd := &cobra.Command{
		Use:   "up",
		Short: "Run a governor with everything embedded: NATS, policy, ledger and identities",
		Long: `Run a governor with everything embedded: NATS with one account per agent, the policy engine, the ledger, and a
development Workload API that gives each agent its identity through a socket.

Holding a socket is holding the identity. The sockets can be opened by this user only, and by every process of this
user. In production, use SPIRE.

SIGINT and SIGTERM stop it in order: what was begun is finished first. A second one stops it at once; nothing that was
receipted is lost. SIGHUP puts the bundle of --policy in force again as it is now; one that does not compile leaves the
old one in force.`,
		Example: `  governor up --agent planner --agent writer
  governor up --data /var/lib/handoff --listen 0.0.0.0:4222 --policy ./policy --guard search
  governor up --person alice=alice.pub.pem`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return u.run(cmd) },
	}
	f := cmd.Flags()
	f.StringVar(&u.listen, "listen", cli.Default("HANDOFF_LISTEN", "127.0.0.1:4222"),
		"host:port for NATS; port 0 takes a free one; HANDOFF_LISTEN sets the default")
	f.StringVar(&u.trustDomain, "trust-domain", "", "home trust domain of a new data directory (default handoff.local)")
	f.StringVar(&u.policy, "policy", "", "directory of the policy bundle to put in force (default: the one before, or ours)")
	f.StringSliceVar(&u.agents, "agent", nil, "make the socket of an agent; repeatable")
	f.StringSliceVar(&u.guards, "guard", nil, "make the socket of a guard; repeatable")
	f.StringArrayVar(&u.people, "person", nil, "NAME=FILE: a person, with an Ed25519 public key in PEM; repeatable")
	f.StringVar(&u.logLevel, "log-level", "info", "debug, info, warn or error")
	return cmd
}

// socket is an identity that somebody can take.
type socket struct {
	Role    string `json:"role"`
	Name    string `json:"name"`
	Address string `json:"address"` // for SPIFFE_ENDPOINT_SOCKET
}

func (u *up) run(cmd *cobra.Command) (err error) {
	cfg, err := u.config(cmd)
	if err != nil {
		return err
	}
	// Taken before anything runs, so that none is missed.
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer signal.Stop(signals)

	d, err := daemon.Start(context.WithoutCancel(cmd.Context()), cfg)
	if err != nil {
		return explainStart(err, cfg.Dir)
	}
	closing := false
	defer func() {
		if !closing {
			err = errors.Join(err, d.Close())
		}
	}()
	sockets, err := u.sockets(d)
	if err != nil {
		return err
	}
	if err := announce(cmd, cfg.Dir, d.Endpoint, sockets); err != nil {
		return err
	}
	for {
		select {
		case <-d.Done():
			return nil // Close tells why
		case s := <-signals:
			if s == syscall.SIGHUP {
				u.reload(cmd.Context(), cfg.Logger, d)
				continue
			}
			closing = true
			return stop(cfg.Logger, d, signals)
		}
	}
}

// sameSignal is how long a second signal is taken for the first: timeout(1), and a shell with its process group, send two.
const sameSignal = 300 * time.Millisecond

// stop ends the daemon in order, or at once where it is asked a second time.
func stop(log *slog.Logger, d *daemon.Daemon, signals <-chan os.Signal) error {
	log.Info("stopping; a second signal stops at once")
	begun := time.Now()
	closed := make(chan error, 1)
	go func() { closed <- d.Close() }()
	for {
		select {
		case err := <-closed:
			return err
		case s := <-signals:
			if s != syscall.SIGHUP && time.Since(begun) > sameSignal {
				return errors.New("stopped at once; what was receipted is in the ledger")
			}
		}
	}
}

func (u *up) config(cmd *cobra.Command) (daemon.Config, error) {
	var level slog.Level
	if err := level.UnmarshalText([]byte(u.logLevel)); err != nil {
		return daemon.Config{}, cli.Usagef("--log-level is %q; it must be debug, info, warn or error", u.logLevel)
	}
	if err := u.check(); err != nil {
		return daemon.Config{}, err
	}
	dir, err := cmd.Flags().GetString("data")
	if err != nil {
		return daemon.Config{}, err
	}
	if dir, err = filepath.Abs(dir); err != nil { // sockets are found by it from anywhere
		return daemon.Config{}, err
	}
	cfg := daemon.Config{
		Dir: dir, TrustDomain: u.trustDomain, Listen: u.listen, People: map[string]aat.JWK{},
		Logger: slog.New(slog.NewTextHandler(cmd.ErrOrStderr(), &slog.HandlerOptions{Level: level})),
	}
	for _, person := range u.people {
		name, file, ok := strings.Cut(person, "=")
		if !ok || name == "" || file == "" {
			return daemon.Config{}, cli.Usagef("--person is %q; it must be NAME=FILE", person)
		}
		if cfg.People[name], err = publicKey(file); err != nil {
			return daemon.Config{}, err
		}
	}
	if u.policy != "" {
		cfg.Bundle, err = readBundle(u.policy)
	}
	return cfg, err
}

// check refuses what cannot be meant, before anything is made.
func (u *up) check() error {
	host, port, err := net.SplitHostPort(u.listen)
	if err == nil {
		_, err = strconv.ParseUint(port, 10, 16)
	}
	if err != nil {
		return cli.Usagef("--listen is %q; it must be host:port, as in 127.0.0.1:4222, with a port up to 65535", u.listen)
	}
	if strings.ContainsFunc(host, unicode.IsSpace) {
		return cli.Usagef("--listen is %q; a host has no spaces", u.listen)
	}
	if u.trustDomain != "" {
		if home, err := spiffeid.TrustDomainFromString(u.trustDomain); err != nil || home.Name() != u.trustDomain {
			return cli.Usagef("--trust-domain is %q; it must be a name as in acme.example: small letters, digits, dots, dashes and underscores", u.trustDomain)
		}
	}
	for role, names := range map[string][]string{"agent": u.agents, "guard": u.guards} {
		for _, name := range names {
			if spiffeid.ValidatePath("/"+role+"/"+name) != nil {
				return cli.Usagef("--%s is %q; it must be a name as in writer or eu/writer: letters, digits, dots, dashes and underscores", role, name)
			}
		}
	}
	return nil
}

// publicKey reads a person's key.
func publicKey(file string) (aat.JWK, error) {
	raw, err := os.ReadFile(file)
	if err != nil {
		return aat.JWK{}, err
	}
	block, _ := pem.Decode(raw)
	if block == nil || block.Type != "PUBLIC KEY" {
		return aat.JWK{}, fmt.Errorf("%s is not a public key in PEM: openssl pkey -in KEY -pubout makes one", file)
	}
	parsed, err := x509.ParsePKIXPublicKey(block.Bytes)
	if err != nil {
		return aat.JWK{}, fmt.Errorf("%s: %w", file, err)
	}
	key, ok := parsed.(ed25519.PublicKey)
	if !ok {
		return aat.JWK{}, fmt.Errorf("%s is not an Ed25519 key: openssl genpkey -algorithm ed25519 makes one", file)
	}
	return aat.NewJWK(key), nil
}

// explainStart says what to do about the ways in which starting fails.
func explainStart(err error, dir string) error {
	switch {
	case errors.Is(err, ledger.ErrInUse):
		return fmt.Errorf("another governor runs on %s: stop it first, or take another --data directory", dir)
	case errors.Is(err, ledger.ErrNewer):
		return fmt.Errorf("%s was written by a newer governor: run that version, or a later one (%w)", dir, err)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("%s cannot be written by this user: change its owner, or take another --data directory (%w)", dir, err)
	}
	return err
}

// sockets makes the identities that were asked for, and the operator's.
func (u *up) sockets(d *daemon.Daemon) ([]socket, error) {
	list := []socket{{Role: "operator", Name: filepath.Base(operatorPath)}}
	for _, name := range u.agents {
		list = append(list, socket{Role: "agent", Name: name})
	}
	for _, name := range u.guards {
		list = append(list, socket{Role: "guard", Name: name})
	}
	for i := range list {
		s := &list[i]
		var err error
		if s.Address, err = d.Socket("/" + s.Role + "/" + s.Name); err != nil {
			return nil, fmt.Errorf("%s %q: %w", s.Role, s.Name, err)
		}
	}
	return list, nil
}

func announce(cmd *cobra.Command, dir string, e daemon.Endpoint, sockets []socket) error {
	out := cli.For(cmd)
	if out.JSON {
		return out.Value(struct {
			daemon.Endpoint
			Data       string   `json:"data"`
			Identities []socket `json:"identities"`
		}{e, dir, sockets})
	}
	if err := out.Pairs("NATS", e.URL, "data", dir, "trust domain", e.TrustDomain); err != nil {
		return err
	}
	lines := []string{
		"", "HOLDING A SOCKET IS HOLDING THE IDENTITY. Every process of this user can take any of them.",
		"In production, use SPIRE.", "", "export HANDOFF_URL=" + e.URL,
	}
	for _, s := range sockets {
		lines = append(lines, "export SPIFFE_ENDPOINT_SOCKET="+s.Address+"  # "+s.Role+" "+s.Name)
	}
	for _, line := range append(lines, "", "ready; Ctrl-C stops") {
		if err := out.Line("%s", line); err != nil {
			return err
		}
	}
	return nil
}

// reload puts the bundle of --policy in force as it is now. Whatever goes wrong, the one before stays.
func (u *up) reload(ctx context.Context, log *slog.Logger, d *daemon.Daemon) {
	if u.policy == "" {
		log.WarnContext(ctx, "SIGHUP: there is nothing to reload, since --policy names no bundle")
		return
	}
	index, digest, err := u.activate(ctx, d)
	if err != nil {
		log.ErrorContext(ctx, "THE BUNDLE WAS NOT RELOADED; the one before stays in force", "policy", u.policy, "err", err)
		return
	}
	log.InfoContext(ctx, "bundle reloaded", "policy", u.policy, "digest", digest, "entry", index)
}

func (u *up) activate(ctx context.Context, d *daemon.Daemon) (index uint64, digest string, err error) {
	ctx, cancel := context.WithTimeout(ctx, answerWithin)
	defer cancel()
	bundle, err := loadBundle(u.policy, d.Endpoint.TrustDomain)
	if err != nil {
		return 0, "", err
	}
	source, err := d.Source(operatorPath)
	if err != nil {
		return 0, "", err
	}
	o, err := handoff.ConnectOperator(ctx, handoff.Config{URL: d.Endpoint.URL, Source: source})
	if err != nil {
		return 0, "", err
	}
	defer func() { err = errors.Join(err, o.Close()) }()
	index, err = o.Activate(ctx, bundle.Bytes())
	return index, bundle.Digest(), err
}

// readBundle reads a bundle from a directory.
func readBundle(dir string) (*policies.Bundle, error) {
	if info, err := os.Stat(dir); err != nil {
		return nil, err
	} else if !info.IsDir() {
		return nil, fmt.Errorf("%s is not a directory: name the one that holds the .rego files and data.json", dir)
	}
	return policies.Load(os.DirFS(dir))
}

// loadBundle reads a bundle and tells it which trust domain is at home, as the daemon does when it starts.
func loadBundle(dir, home string) (*policies.Bundle, error) {
	bundle, err := readBundle(dir)
	if err != nil {
		return nil, err
	}
	return bundle.WithData("/home", home)
}
