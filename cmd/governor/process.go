package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/handoff-governor/handoff-governor/cmd/governor/daemon"
	"github.com/handoff-governor/handoff-governor/governor/ledger"
	"github.com/handoff-governor/handoff-governor/policies"
)

// process is a governor that runs until it is told to stop.
type process struct {
	cfg    daemon.Config
	policy string // directory of the bundle that SIGHUP puts in force again; "" for none
}

// run starts the governor, and calls ready when it serves: again where it has stopped by itself and another start helps.
func (p *process) run(ctx context.Context, ready func(d *daemon.Daemon, again bool) error) error {
	// Taken before anything runs, so that none is missed.
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer signal.Stop(signals)

	started, err := p.serve(ctx, signals, func(d *daemon.Daemon) error {
		if p.cfg.Cluster == nil {
			p.cfg.Listen = strings.TrimPrefix(d.Endpoint.URL, "tls://") // where clients look for it
		}
		p.cfg.Bundle = nil // from now on the one in force before: it may have been replaced since
		return ready(d, false)
	})
	if !started {
		return explainStart(err, p.cfg.Dir)
	}
	for pause := time.Second; daemon.Again(err); pause = time.Second {
		for started = false; !started; pause = min(2*pause, maxPause) {
			p.cfg.Logger.ErrorContext(ctx, "the governor has stopped by itself, and starts again", "err", err, "in", pause)
			reload, stopped := p.wait(pause, signals)
			if stopped {
				return err
			}
			started, err = p.serve(ctx, signals, func(d *daemon.Daemon) error {
				if reload {
					p.reload(ctx, d)
				}
				return ready(d, true)
			})
			if errors.Is(err, ledger.ErrInUse) { // by what is left of the one before, which only the end of the process removes
				return explainStart(err, p.cfg.Dir)
			}
		}
	}
	return err
}

// maxPause is the longest time between two starts.
const maxPause = 30 * time.Second

// wait waits before another start, and tells which signals came.
func (p *process) wait(pause time.Duration, signals <-chan os.Signal) (reload, stopped bool) {
	timer := time.NewTimer(pause)
	defer timer.Stop()
	for {
		select {
		case <-timer.C:
			return reload, false
		case s := <-signals:
			if s != syscall.SIGHUP {
				return false, true
			}
			reload = true
		}
	}
}

// serve runs the governor once.
func (p *process) serve(ctx context.Context, signals <-chan os.Signal, ready func(*daemon.Daemon) error) (started bool, err error) {
	d, err := daemon.Start(context.WithoutCancel(ctx), p.cfg)
	if err != nil {
		return false, err
	}
	closing := false
	defer func() {
		if !closing {
			err = errors.Join(err, d.Close())
		}
	}()
	if err := ready(d); err != nil {
		return true, err
	}
	for {
		select {
		case <-d.Done():
			return true, nil // Close tells why
		case s := <-signals:
			if s == syscall.SIGHUP {
				p.reload(ctx, d)
				continue
			}
			closing = true
			return true, stop(p.cfg.Logger, d, signals)
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

// reload puts the bundle in force as it is now. Whatever goes wrong, the one before stays.
func (p *process) reload(ctx context.Context, d *daemon.Daemon) {
	log := p.cfg.Logger
	if p.policy == "" {
		log.WarnContext(ctx, "SIGHUP: there is nothing to reload, since no directory of a bundle was named at the start")
		return
	}
	ctx, cancel := context.WithTimeout(ctx, answerWithin)
	defer cancel()
	bundle, err := loadBundle(p.policy, d.Endpoint.TrustDomain)
	if err == nil {
		var index uint64
		if index, err = d.Activate(ctx, bundle); err == nil {
			log.InfoContext(ctx, "bundle reloaded", "policy", p.policy, "digest", bundle.Digest(), "entry", index)
			return
		}
	}
	log.ErrorContext(ctx, "THE BUNDLE WAS NOT RELOADED; the one before stays in force", "policy", p.policy, "err", err)
}

// newLogger writes to standard error from a level on.
func newLogger(cmd *cobra.Command, level string) (*slog.Logger, error) {
	var from slog.Level
	if err := from.UnmarshalText([]byte(level)); err != nil {
		return nil, fmt.Errorf("is %q; it must be debug, info, warn or error", level)
	}
	return slog.New(slog.NewTextHandler(cmd.ErrOrStderr(), &slog.HandlerOptions{Level: from})), nil
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
