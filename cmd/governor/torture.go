package main

import (
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/handoff-governor/handoff-governor/cmd/governor/daemon"
	"github.com/handoff-governor/handoff-governor/cmd/governor/torture"
	"github.com/handoff-governor/handoff-governor/cmd/internal/cli"
	"github.com/handoff-governor/handoff-governor/governor/failpoint"
)

// tortured is what a daemon that is tortured is told at its start.
type tortured struct {
	listen, policy, logLevel string
	arm                      string
	clock                    time.Duration
	identities               []string
}

func tortureDaemonCommand() *cobra.Command {
	var t tortured
	cmd := &cobra.Command{
		Use:    "torture-daemon",
		Short:  "Run the governor that is tortured; it takes orders on its standard input",
		Hidden: true,
		Args:   cobra.NoArgs,
		RunE:   func(cmd *cobra.Command, _ []string) error { return t.run(cmd) },
	}
	f := cmd.Flags()
	f.StringVar(&t.listen, "listen", "127.0.0.1:0", "host:port for NATS")
	f.StringVar(&t.policy, "policy", "", "directory of the policy bundle")
	f.StringVar(&t.logLevel, "log-level", "warn", "debug, info, warn or error")
	f.StringVar(&t.arm, "arm", "", "failpoint at which it ends")
	f.DurationVar(&t.clock, "clock", 0, "how far its clock is ahead")
	f.StringArrayVar(&t.identities, "identity", nil, "path of a SPIFFE ID to make a socket for; repeatable")
	return cmd
}

func (t *tortured) run(cmd *cobra.Command) error {
	logger, err := newLogger(cmd, t.logLevel)
	if err != nil {
		return cli.Usagef("--log-level %v", err)
	}
	dir, err := cmd.Flags().GetString("data")
	if err != nil {
		return err
	}
	if dir, err = filepath.Abs(dir); err != nil {
		return err
	}
	if t.arm != "" {
		if err := failpoint.Arm(t.arm); err != nil {
			return err
		}
	}
	orders := torture.NewOrders(cmd.InOrStdin(), cmd.OutOrStdout(), t.clock)
	p := process{policy: t.policy, cfg: daemon.Config{Dir: dir, Listen: t.listen, Logger: logger, Now: orders.Clock.Now}}
	if t.policy != "" {
		if p.cfg.Bundle, err = readBundle(t.policy); err != nil {
			return err
		}
	}
	return p.run(cmd.Context(), func(d *daemon.Daemon) error {
		said := torture.Report{URL: d.Endpoint.URL, Sockets: map[string]string{}}
		for _, path := range t.identities {
			if said.Sockets[path], err = d.Socket(path); err != nil {
				return err
			}
		}
		go func() {
			_ = orders.Obey() // whatever ended it, nobody is there any more
			os.Exit(1)
		}()
		return orders.Say(said)
	})
}
