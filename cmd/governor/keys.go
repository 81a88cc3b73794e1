package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/handoff-governor/handoff-governor/cmd/governor/daemon"
	"github.com/handoff-governor/handoff-governor/cmd/internal/cli"
	"github.com/handoff-governor/handoff-governor/handoff/aat"
	"github.com/handoff-governor/handoff-governor/handoff/entry"
	"github.com/handoff-governor/handoff-governor/handoff/wire"
)

// This file has the verbs about the keys that sign links and roots.

var signers = []string{entry.OfGovernor, entry.OfIssuer, entry.OfLog}

func keysCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "keys",
		Short: "List, replace and publish the governor's and the issuer's keys",
	}
	cmd.AddCommand(
		&cobra.Command{
			Use:     "list",
			Short:   "List the keys and their times, a line each",
			Example: "  governor keys list\n  governor keys list --json",
			Args:    cobra.NoArgs,
			RunE:    func(cmd *cobra.Command, _ []string) error { return listKeys(cmd) },
		},
		keysRotateCommand(),
		&cobra.Command{
			Use:   "jwks governor|issuer|log",
			Short: "Print the keys that are trusted, as a JWK set",
			Long: `Print the keys that are trusted now, the current one first, as a JWK set (RFC 7517): those of the governor, which hold odd links
and sign the revocation feed, those of the issuer, which sign roots, or those of the log, which sign checkpoints.`,
			Example:   "  governor keys jwks issuer > issuer.jwks",
			Args:      cobra.MatchAll(cobra.ExactArgs(1), cobra.OnlyValidArgs),
			ValidArgs: signers,
			RunE: func(cmd *cobra.Command, args []string) error {
				keys, err := keyTimes(cmd)
				if err != nil {
					return err
				}
				var jwks []aat.JWK
				for _, k := range keys {
					if k.Of == args[0] {
						jwks = append(jwks, k.JWK)
					}
				}
				return cli.For(cmd).Value(wire.NewJWKS(jwks))
			},
		},
	)
	return cmd
}

func keysRotateCommand() *cobra.Command {
	var stolen bool
	var reason string
	cmd := &cobra.Command{
		Use:   "rotate governor|issuer|log",
		Short: "Make a new key, which takes the place of the one before",
		Long: `Make a new key, on record and without a restart. It is announced first, and used two minutes later: agents and guards ask for
keys every minute. Offers that name the governor's key before it are taken for ten minutes more, and what was taken is good as long
as it lives, a day at the most. Then the old key is destroyed.

With --stolen the keys before it end at once. What was handed out under them is worth nothing then: tasks that are claimed, and for the
issuer's key every session.

The log's key is announced for a day, and for thirty more both sign each checkpoint: so long has whoever holds the old one against
checkpoints to take the new one, which "handoff keys" shows.

The issuer's key can be replaced here where the issuer is in the governor's process; "governor issuer rotate" does it elsewhere.`,
		Example:   "  governor keys rotate governor --reason 'every quarter'\n  governor keys rotate issuer --stolen",
		Args:      cobra.MatchAll(cobra.ExactArgs(1), cobra.OnlyValidArgs),
		ValidArgs: signers,
		RunE: func(cmd *cobra.Command, args []string) error {
			return operating(cmd, func(ctx context.Context, _ *place, o *operator) error {
				index, err := o.RotateKey(ctx, args[0], stolen, reason)
				if err != nil {
					return err
				}
				return done(cmd, "rotated", "the key of the "+args[0], index)
			})
		},
	}
	cmd.Flags().BoolVar(&stolen, "stolen", false, "end the keys that there are at once")
	cmd.Flags().StringVar(&reason, "reason", "", "why, for the record")
	return cmd
}

// keyTimes asks the running governor, or reads the keys of one that does not run.
func keyTimes(cmd *cobra.Command) (keys []wire.KeyTimes, err error) {
	p, err := findPlace(cmd)
	if err != nil {
		return nil, err
	}
	if !p.runs() {
		return daemon.ReadKeyTimes(p.dir, time.Now())
	}
	err = operating(cmd, func(ctx context.Context, _ *place, o *operator) error {
		keys, err = o.KeyTimes(ctx)
		return err
	})
	return keys, err
}

func listKeys(cmd *cobra.Command) error {
	keys, err := keyTimes(cmd)
	if err != nil {
		return err
	}
	out := cli.For(cmd)
	if out.JSON {
		return out.Value(keys)
	}
	now := time.Now().Unix()
	var rows [][]string
	inUse := map[string]bool{}
	slices.SortStableFunc(keys, func(x, y wire.KeyTimes) int { return strings.Compare(x.Of, y.Of) })
	for _, k := range keys {
		state := "ends"
		switch {
		case k.From > now:
			state = "announced"
		case !inUse[k.Of]:
			state, inUse[k.Of] = "in use", true
		}
		rows = append(rows, []string{k.Of, k.JWK.Thumbprint(), state, when(k.From), when(k.Taken), when(k.Until)})
	}
	if err := out.Table(strings.Fields("OF KID STATE FROM TAKEN-UNTIL TRUSTED-UNTIL"), rows); err != nil {
		return err
	}
	return nil
}

// when is a time of a key.
func when(unix int64) string {
	if unix == 0 {
		return "-"
	}
	return fmt.Sprint(cli.Time(time.Unix(unix, 0)))
}
