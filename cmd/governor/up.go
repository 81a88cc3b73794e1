package main

import (
	"fmt"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/handoff-governor/handoff-governor/cmd/governor/daemon"
	"github.com/handoff-governor/handoff-governor/cmd/internal/cli"
)

// up is what "governor up" was asked for.
type up struct {
	listen, trustDomain, policy, logLevel string
	agents, guards                        []string
	people                                []string
	keepBodies                            time.Duration
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
	f.DurationVar(&u.keepBodies, "keep-bodies", 0, "delete tasks, results and objectives after this time, as in 720h (default: never)")
	f.StringVar(&u.logLevel, "log-level", "info", "debug, info, warn or error")
	return cmd
}

// socket is an identity that somebody can take.
type socket struct {
	Role    string `json:"role"`
	Name    string `json:"name"`
	Address string `json:"address"` // for SPIFFE_ENDPOINT_SOCKET
}

func (u *up) run(cmd *cobra.Command) error {
	cfg, err := u.config(cmd)
	if err != nil {
		return err
	}
	p := process{cfg: cfg, policy: u.policy}
	return p.run(cmd.Context(), func(d *daemon.Daemon, again bool) error {
		sockets, err := u.sockets(d)
		if err != nil || again {
			return err
		}
		return announce(cmd, cfg.Dir, d.Endpoint, sockets)
	})
}

func (u *up) config(cmd *cobra.Command) (daemon.Config, error) {
	logger, err := newLogger(cmd, u.logLevel)
	if err != nil {
		return daemon.Config{}, cli.Usagef("--log-level %v", err)
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
		Dir: dir, TrustDomain: u.trustDomain, Listen: u.listen, Logger: logger, KeepBodies: u.keepBodies,
	}
	if cfg.People, err = readPeople(u.people); err != nil {
		return daemon.Config{}, err
	}
	if u.policy != "" {
		cfg.Bundle, err = readBundle(u.policy)
	}
	return cfg, err
}

// check refuses what cannot be meant, before anything is made.
func (u *up) check() error {
	if err := checkListen(u.listen); err != nil {
		return cli.Usagef("--listen %v", err)
	}
	if u.trustDomain != "" {
		if err := checkTrustDomain(u.trustDomain); err != nil {
			return cli.Usagef("--trust-domain %v", err)
		}
	}
	if err := daemon.CheckKeepBodies(u.keepBodies); err != nil {
		return cli.Usagef("--keep-bodies %v", err)
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
