package main

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/spf13/cobra"

	"github.com/handoff-governor/handoff-governor/cmd/governor/daemon"
	"github.com/handoff-governor/handoff-governor/cmd/governor/torture"
	"github.com/handoff-governor/handoff-governor/cmd/internal/cli"
	"github.com/handoff-governor/handoff-governor/governor/failpoint"
)

func tortureCommand() *cobra.Command {
	cfg := torture.Config{Kills: 200, Pause: time.Second, Drain: 3 * time.Minute}
	cmd := &cobra.Command{
		Use:   "torture",
		Short: "Kill a governor over and over under load, and prove that nothing is lost and nothing happens twice",
		Long: `A governor runs in a process of its own, and agents hand tasks on, do them and call tools all the while. It is killed, also
while it starts, and between two kills it is paused, cut off, denied the disk, given a wrong clock or another policy; workers
die in the midst of their tasks, and a page of the ledger is damaged. In the end everything that agents were told is compared
with what is in the ledger.

Nothing is lost if all that was receipted is in the ledger and came to its end. Nothing happens twice if each ID was decided
once, each task had one accepted result, and never two live grants. Guards must not let a call through more than three seconds
after what it stands on was over: they hear of it, or they hear nothing and refuse everything.

The same seed has the same done to the governor, at the same times after it serves. What the machine makes of it differs.`,
		Example: "  governor torture\n  governor torture --kills 20 --seed 7 --json\n  governor torture --kills 60 --pause 20s --ttl 2m --rate 50",
		Args:    cobra.NoArgs,
		RunE:    func(cmd *cobra.Command, _ []string) error { return runTorture(cmd, cfg) },
	}
	f := cmd.Flags()
	f.IntVar(&cfg.Kills, "kills", cfg.Kills, "how often it is killed")
	f.Uint64Var(&cfg.Seed, "seed", 0, "of what is done when (default: another one each time)")
	f.DurationVar(&cfg.Pause, "pause", cfg.Pause, "longest time between two faults; half of it on average")
	f.Float64Var(&cfg.Rate, "rate", 0, "offers a second at the most (default: as many as six sessions at a time make)")
	f.DurationVar(&cfg.TTL, "ttl", 0, "lifetime of sessions (default: an hour); the governor has them in memory until then")
	f.DurationVar(&cfg.Drain, "drain", cfg.Drain, "how long what is under way may take in the end; what is not there by then is lost")
	f.StringVar(&cfg.Dir, "keep", "", "keep everything in this new directory (default: one that is removed where nothing was wrong)")
	return cmd
}

// runTorture fails where anything was lost, or happened twice.
func runTorture(cmd *cobra.Command, cfg torture.Config) (err error) {
	if cfg.Kills < 0 || cfg.Pause <= 0 || cfg.Rate < 0 || cfg.Drain <= 0 || cfg.TTL < 0 {
		return cli.Usagef("--kills, --rate and --ttl cannot be negative, --pause and --drain must be longer than nothing")
	}
	if !cmd.Flags().Changed("seed") {
		cfg.Seed = rand.Uint64N(1_000_000) // short enough to be typed again
	}
	if cfg.Program, err = os.Executable(); err != nil {
		return err
	}
	keep := cfg.Dir != ""
	if keep {
		err = os.Mkdir(cfg.Dir, 0o700)
	} else {
		cfg.Dir, err = cli.TempDir("torture-", "data/ca/sock/=sagent=sreviewer.sock")
	}
	if err != nil {
		return err
	}
	if cfg.Dir, err = filepath.Abs(cfg.Dir); err != nil {
		return err
	}
	var far atomic.Pointer[torture.Progress]
	cfg.Show = func(p torture.Progress) { far.Store(&p) }
	stop := cli.Progress(func() string {
		p := far.Load()
		if p == nil {
			return "starting"
		}
		return fmt.Sprintf("%d of %d kills   %d offers, %d claimed, %d results   %s", p.Kills, cfg.Kills, p.Offers, p.Delivered, p.Results, p.Fault)
	})
	outcome, err := torture.Run(cmd.Context(), cfg)
	stop()
	if err != nil {
		return fmt.Errorf("%w; everything is in %s", err, cfg.Dir)
	}
	ok := outcome.OK()
	if ok && !keep {
		if err := os.RemoveAll(cfg.Dir); err != nil {
			return err
		}
	}
	if err := showTorture(cli.For(cmd), outcome); err != nil {
		return err
	}
	if !ok {
		return fmt.Errorf("seed %d was not survived; everything is in %s", cfg.Seed, cfg.Dir)
	}
	return nil
}

func showTorture(out *cli.Output, o *torture.Outcome) error {
	if out.JSON {
		return out.Value(o)
	}
	var faults []string
	for _, kind := range slices.Sorted(maps.Keys(o.Faults)) {
		faults = append(faults, fmt.Sprintf("%d %s", o.Faults[kind], kind))
	}
	ledger := "verifies"
	if !o.LedgerOK {
		ledger = "DOES NOT VERIFY"
	}
	err := out.Pairs(
		"seed", strconv.FormatUint(o.Seed, 10),
		"faults", strings.Join(faults, ", "),
		"offers", fmt.Sprintf("%d receipted, %d claimed, %d results", o.Offers, o.Delivered, o.Results),
		"lost", strconv.Itoa(o.Lost),
		"duplicated", strconv.Itoa(o.Duplicated),
		"double granted", strconv.Itoa(o.DoubleGranted),
		"ledger", fmt.Sprintf("%s, %d entries", ledger, o.Entries),
		"calls", fmt.Sprintf("%d permitted, %d refused as revoked, %d permitted though revoked (the last one after %.0f ms)", o.Permitted, o.Refused, o.Late, o.Lag),
		"slowest", fmt.Sprintf("%.1f s from an offer to its result", o.Slowest/1000),
		"memory", fmt.Sprintf("in the first quarter of it, the third and the last: governor %.1f, %.1f, %.1f MB; agents %.1f, %.1f, %.1f MB",
			o.Governor.FirstMB, o.Governor.ThirdMB, o.Governor.LastMB, o.Agents.FirstMB, o.Agents.ThirdMB, o.Agents.LastMB),
		"goroutines", fmt.Sprintf("governor %d, %d, %d; agents %d, %d, %d", o.Governor.FirstGoroutines, o.Governor.ThirdGoroutines,
			o.Governor.LastGoroutines, o.Agents.FirstGoroutines, o.Agents.ThirdGoroutines, o.Agents.LastGoroutines),
		"took", fmt.Sprintf("%.0f s", o.Seconds),
	)
	for _, wrong := range o.Wrong {
		err = errors.Join(err, out.Line("wrong: %s", wrong))
	}
	return err
}

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
	return p.run(cmd.Context(), func(d *daemon.Daemon, again bool) error {
		said := torture.Report{URL: d.Endpoint.URL, Sockets: map[string]string{}}
		for _, path := range t.identities {
			if said.Sockets[path], err = d.Socket(path); err != nil {
				return err
			}
		}
		if again {
			return nil // at the same addresses
		}
		go func() {
			_ = orders.Obey() // whatever ended it, nobody is there any more
			os.Exit(1)
		}()
		return orders.Say(said)
	})
}
