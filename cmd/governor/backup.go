package main

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/spf13/cobra"

	"github.com/handoff-governor/handoff-governor/cmd/governor/daemon"
	"github.com/handoff-governor/handoff-governor/cmd/internal/cli"
	"github.com/handoff-governor/handoff-governor/governor/ledger"
)

func backupCommand() *cobra.Command {
	var keys bool
	var keepBodies time.Duration
	cmd := &cobra.Command{
		Use:   "backup DIRECTORY",
		Short: "Bring a backup of the ledger up to date, while the governor runs or not",
		Long: `Bring a backup of the ledger up to date, while the governor runs or not. A new directory gets all of it, a backup what is new.
Nothing is added that the log has not signed, on top of what the backup has: a ledger that was rewritten is found here, and the
backup is the proof.

A backup is read as any data directory in which no governor runs: --data DIRECTORY, with "governor chain verify" for one. It has
tasks and results, until --keep-bodies deletes them, and no keys, unless --keys asks for them: who has those can sign in the
governor's name. "governor restore" brings a backup back.`,
		Example: "  governor backup /mnt/elsewhere/handoff\n  governor chain verify --data /mnt/elsewhere/handoff",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := daemon.CheckKeepBodies(keepBodies); err != nil {
				return cli.Usagef("--keep-bodies %v", err)
			}
			return reading(cmd, func(p *place, r record) error {
				var far atomic.Uint64
				stop := cli.Progress(func() string { return fmt.Sprintf("at entry %d", far.Load()) })
				copied, err := daemon.Backup(cmd.Context(), p.dir, args[0], r, keys, far.Store)
				stop()
				if errors.Is(err, ledger.ErrForked) {
					return fmt.Errorf("%w: keep %s as it is, and find out who has changed %s", err, args[0], p.dir)
				}
				if err != nil {
					return err
				}
				if keepBodies > 0 {
					if _, err := daemon.DropBodies(cmd.Context(), args[0], keepBodies); err != nil {
						return err
					}
				}
				l, err := ledger.Open(daemon.LedgerPath(args[0]), ledger.Config{ReadOnly: true})
				if err != nil {
					return err
				}
				defer l.Close()
				out := cli.For(cmd)
				if out.JSON {
					return out.Value(struct {
						Backup  string `json:"backup"`
						Entries uint64 `json:"entries"` // that it has
						Copied  uint64 `json:"copied"`  // of them, now
						Bodies  uint64 `json:"bodies"`  // copied
					}{args[0], l.Size(), copied.Entries, copied.Bodies})
				}
				return out.Ended("done", "%s has %d entries, %d of them new, with %d bodies", args[0], l.Size(), copied.Entries, copied.Bodies)
			})
		},
	}
	cmd.Flags().BoolVar(&keys, "keys", false, "with the private keys of the governor, the issuer and the log, and those of the built-in identities")
	cmd.Flags().DurationVar(&keepBodies, "keep-bodies", 0, "delete older tasks, results and objectives from the backup, as in 720h (default: never)")
	return cmd
}

func restoreCommand() *cobra.Command {
	var replace bool
	cmd := &cobra.Command{
		Use:   "restore BACKUP",
		Short: "Verify a backup, and put it into a data directory where no governor runs",
		Long: `Verify a backup, and put its ledger into the data directory that --data names. A ledger that is there is put aside with
--replace; the streams stay. Keys come from the data directory, or from the backup if it has them.

What was written after the backup is gone, and other records may still have it: whoever kept a newer checkpoint can prove that the
log has said more, and what was granted since is honoured by guards until it expires. "governor keys rotate issuer --stolen" ends
that: it ends every session.`,
		Example: "  governor restore /mnt/elsewhere/handoff --data ./handoff-data",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			dir, err := cmd.Flags().GetString("data")
			if err != nil {
				return err
			}
			done, err := daemon.Restore(cmd.Context(), args[0], dir, replace)
			if errors.Is(err, daemon.ErrLedgerThere) {
				return fmt.Errorf("%w: --replace puts it aside", err)
			}
			if err != nil {
				return err
			}
			out := cli.For(cmd)
			if out.JSON {
				return out.Value(struct {
					Restored string   `json:"restored"`
					Entries  uint64   `json:"entries"`
					Lost     uint64   `json:"lost"` // of the ledger before it, where that could be read
					Aside    string   `json:"aside,omitempty"`
					Missing  []string `json:"missing"` // keys that must be brought
				}{dir, done.Entries, done.Lost, done.Aside, append([]string{}, done.Missing...)})
			}
			lost := ""
			if done.Lost > 0 {
				lost = strconv.FormatUint(done.Lost, 10) + " entries that the ledger before it had"
			}
			if err := out.Pairs("put aside", done.Aside, "lost", lost, "bring these keys", strings.Join(done.Missing, ", ")); err != nil {
				return err
			}
			return out.Ended("restored", "%s has the ledger of %s: %d entries, verified", dir, args[0], done.Entries)
		},
	}
	cmd.Flags().BoolVar(&replace, "replace", false, "put a ledger aside that is there")
	return cmd
}
