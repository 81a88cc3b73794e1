package main

import (
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/spf13/cobra"

	"github.com/handoff-governor/handoff-governor/cmd/governor/daemon"
	"github.com/handoff-governor/handoff-governor/cmd/internal/cli"
	"github.com/handoff-governor/handoff-governor/governor/keyring"
	"github.com/handoff-governor/handoff-governor/handoff/aat"
	"github.com/handoff-governor/handoff-governor/handoff/wire"
)

// This file is the issuer as a process of its own.

func issuerCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "issuer",
		Short: "Run the issuer as a process of its own, away from the governor",
		Long: `Run the issuer as a process of its own. It alone has the keys that sign the roots of sessions, and judges every request for
itself: by the proof that the opener's SVID signs, by a person's signature, and by its own ceiling. Whoever has the governor, with all
its keys, cannot make a root then, nor widen one.`,
	}
	cmd.PersistentFlags().String("dir", cli.Default("HANDOFF_ISSUER", "./issuer-data"), "directory of the issuer's keys; HANDOFF_ISSUER sets the default")
	cmd.AddCommand(issuerServeCommand(), issuerRotateCommand(), issuerJWKSCommand())
	return cmd
}

func issuerServeCommand() *cobra.Command {
	var cfg daemon.IssuerConfig
	var ceiling, level string
	var people []string
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Sign roots for the governor, until it is told to stop",
		Long: `Sign roots for the governor. A SPIFFE Workload API must know this process as spiffe://<trust domain>/issuer, and the governor
as /governor there: it alone has roots signed. governor.yaml names the address: "issuer: {url: https://host:8443}". The keys that sign
roots are at /v1/jwks, for everybody who has an SVID.

A new key that "governor issuer rotate" has made is taken over within a second.`,
		Example: `  governor issuer serve --dir /etc/handoff-issuer --listen 0.0.0.0:8443 --workload-api unix:///run/spire/agent.sock
  governor issuer serve --ceiling ceiling.json --person ada=ada.pem`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			if cfg.Dir, err = cmd.Flags().GetString("dir"); err != nil {
				return err
			}
			if cfg.Logger, err = newLogger(cmd, level); err != nil {
				return cli.Usagef("--log-level %v", err)
			}
			if err := checkListen(cfg.Listen); err != nil {
				return cli.Usagef("--listen %v", err)
			}
			if cfg.WorkloadAPI == "" {
				return cli.Usagef("--workload-api is missing, and SPIFFE_ENDPOINT_SOCKET is not set: name SPIRE's socket, as in unix:///run/spire/agent.sock")
			}
			if cfg.People, err = readPeople(people); err != nil {
				return err
			}
			if ceiling != "" {
				if cfg.Ceiling, err = readCeiling(ceiling); err != nil {
					return err
				}
			}
			return serveIssuer(cmd, cfg)
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&cfg.Listen, "listen", "127.0.0.1:8443", "host:port for the governor; port 0 takes a free one")
	flags.StringVar(&cfg.WorkloadAPI, "workload-api", os.Getenv("SPIFFE_ENDPOINT_SOCKET"), "SPIFFE Workload API; SPIFFE_ENDPOINT_SOCKET sets the default")
	flags.StringVar(&ceiling, "ceiling", "", "file with the most that any root may hold: tools and their constraints, in JSON as in a token")
	flags.StringArrayVar(&people, "person", nil, "NAME=FILE of a person's Ed25519 public key in PEM; may be repeated")
	flags.DurationVar(&cfg.MaxTTL, "max-ttl", 24*time.Hour, "longest life of a root")
	flags.StringVar(&level, "log-level", "info", "debug, info, warn or error")
	return cmd
}

func serveIssuer(cmd *cobra.Command, cfg daemon.IssuerConfig) error {
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	defer signal.Stop(signals)
	s, err := daemon.StartIssuer(cmd.Context(), cfg)
	if err != nil {
		return err
	}
	out := cli.For(cmd)
	if out.JSON {
		err = out.Value(map[string]string{"issuer": s.URI, "url": s.URL})
	} else if err = out.Pairs("issuer", s.URI, "url", s.URL, "keys", daemon.IssuerKeys(cfg.Dir)); err == nil {
		err = out.Line("ready; Ctrl-C stops")
	}
	if err == nil {
		select {
		case <-signals:
		case <-s.Done():
		}
	}
	return errors.Join(err, s.Close())
}

// readPeople reads NAME=FILE of public keys.
func readPeople(typed []string) (map[string]aat.JWK, error) {
	people := map[string]aat.JWK{}
	for _, person := range typed {
		name, file, ok := strings.Cut(person, "=")
		if !ok || name == "" || file == "" {
			return nil, cli.Usagef("--person is %q; it must be NAME=FILE", person)
		}
		var err error
		if people[name], err = publicKey(file); err != nil {
			return nil, err
		}
	}
	return people, nil
}

func readCeiling(file string) (aat.Tools, error) {
	raw, err := readBounded(file)
	if err != nil {
		return nil, err
	}
	tools := aat.Tools{}
	if err := json.Unmarshal(raw, &tools); err != nil {
		return nil, fmt.Errorf("%s is no ceiling, as in {\"fs.read\": {}}: %w", file, cli.JSONError(err))
	}
	return tools, nil
}

func issuerRotateCommand() *cobra.Command {
	var stolen bool
	announce := 24 * time.Hour
	cmd := &cobra.Command{
		Use:   "rotate",
		Short: "Make a new key, which takes the place of the one before",
		Long: `Make a new key. It is announced first, and signs roots after --announce: by then every guard that has the issuer's keys in its
configuration must have the new one, which "governor issuer jwks" prints. The key before it is trusted for a day longer, which is as
long as a root may live. With --stolen the keys before it end at once, and with them every session.`,
		Example: "  governor issuer rotate\n  governor issuer rotate --announce 1h\n  governor issuer rotate --stolen",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ring, file, err := issuerRing(cmd)
			if err != nil {
				return err
			}
			if announce < 0 {
				return cli.Usagef("--announce cannot be negative")
			}
			schedule := keyring.Schedule{Announce: announce, Keep: daemon.DefaultRotation.Keep}
			if stolen {
				schedule = keyring.Schedule{}
			}
			next, err := daemon.RotateRing(ring, time.Now(), schedule)
			if err != nil {
				return err
			}
			if err := daemon.SaveRing(file, next); err != nil {
				return err
			}
			out := cli.For(cmd)
			if out.JSON {
				return out.Value(map[string]any{"kid": next[0].JWK().Thumbprint(), "from": next[0].From})
			}
			return out.Ended("made", "%s, which signs from %s on", next[0].JWK().Thumbprint(), cli.Time(next[0].From))
		},
	}
	cmd.Flags().DurationVar(&announce, "announce", announce, "until the new key signs roots")
	cmd.Flags().BoolVar(&stolen, "stolen", false, "end the keys that there are at once")
	return cmd
}

// issuerRing reads the keys that are there.
func issuerRing(cmd *cobra.Command) (keyring.Ring, string, error) {
	dir, err := cmd.Flags().GetString("dir")
	if err != nil {
		return nil, "", err
	}
	file := filepath.Clean(daemon.IssuerKeys(dir))
	if _, err := os.Stat(file); err != nil {
		return nil, "", fmt.Errorf("%w: name the issuer's directory with --dir; \"governor issuer serve\" makes it", err)
	}
	ring, err := daemon.LoadRing(file)
	return ring, file, err
}

func issuerJWKSCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "jwks",
		Short:   "Print the keys that sign roots, for the configuration of guards",
		Long:    "Print the keys that sign roots, and those that will, as a JWK set (RFC 7517).",
		Example: "  governor issuer jwks > issuer.jwks",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ring, _, err := issuerRing(cmd)
			if err != nil {
				return err
			}
			return cli.For(cmd).Value(wire.NewJWKS(publicKeys(ring, time.Now())))
		},
	}
}

func publicKeys(ring keyring.Ring, now time.Time) []aat.JWK {
	var keys []aat.JWK
	for _, k := range ring.Live(now) {
		keys = append(keys, k.JWK())
	}
	return keys
}
