package main

import (
	"context"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/handoff-governor/handoff-governor/cmd/internal/cli"
	"github.com/handoff-governor/handoff-governor/handoff/wire"
)

func quarantineCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "quarantine",
		Short: "List, show, retry and drop messages that were refused",
		Long: `List, show, retry and drop messages that were refused: offers and results that the governor could not take for their
sender's, or could not decide however often it tried. They are kept for a time, with the reason.`,
	}
	cmd.AddCommand(
		&cobra.Command{
			Use:     "list",
			Short:   "List what is in quarantine, a line each",
			Example: "  governor quarantine list\n  governor quarantine list --json",
			Args:    cobra.NoArgs,
			RunE:    func(cmd *cobra.Command, _ []string) error { return listQuarantine(cmd) },
		},
		&cobra.Command{
			Use:     "show NUMBER",
			Short:   "Show a message in quarantine with its headers and its body",
			Example: "  governor quarantine show 7",
			Args:    cobra.ExactArgs(1),
			RunE:    func(cmd *cobra.Command, args []string) error { return showQuarantined(cmd, args[0]) },
		},
		quarantineVerb("retry", "Have messages judged again, as if their senders had sent them once more", "retried", (*operator).RetryQuarantined),
		quarantineVerb("drop", "Delete messages from the quarantine", "dropped", (*operator).DropQuarantined),
	)
	return cmd
}

func quarantineVerb(verb, short, ended string, do func(*operator, context.Context, uint64) error) *cobra.Command {
	return &cobra.Command{
		Use:     verb + " NUMBER...",
		Short:   short,
		Example: "  governor quarantine " + verb + " 7 8",
		Args:    cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			numbers := make([]uint64, len(args))
			for i, arg := range args {
				var err error
				if numbers[i], err = quarantineNumber(arg); err != nil {
					return err
				}
			}
			return operating(cmd, func(ctx context.Context, _ *place, o *operator) error {
				out := cli.For(cmd)
				for _, n := range numbers {
					if err := do(o, ctx, n); err != nil {
						return err
					}
					if out.JSON {
						continue
					}
					if err := out.Ended(ended, "message %d", n); err != nil {
						return err
					}
				}
				if out.JSON {
					return out.Value(map[string][]uint64{ended: numbers})
				}
				return nil
			})
		},
	}
}

func quarantineNumber(arg string) (uint64, error) {
	n, err := strconv.ParseUint(arg, 10, 64)
	if err != nil || n == 0 {
		return 0, cli.Usagef("%q is no number: \"governor quarantine list\" shows them", arg)
	}
	return n, nil
}

func listQuarantine(cmd *cobra.Command) error {
	return operating(cmd, func(ctx context.Context, p *place, o *operator) error {
		list := []wire.Quarantined{}
		for q, err := range o.Quarantined(ctx) {
			if err != nil {
				return err
			}
			list = append(list, q)
		}
		out := cli.For(cmd)
		if out.JSON {
			return out.Value(list)
		}
		rows := make([][]string, 0, len(list))
		for _, q := range list {
			rows = append(rows, []string{
				strconv.FormatUint(q.Number, 10), cli.Time(time.Unix(q.At, 0)), p.short(q.Agent), q.Kind, string(q.Code), strconv.Itoa(q.Bytes), q.Reason,
			})
		}
		return out.Table(strings.Fields("NUMBER REFUSED SENDER KIND CODE BYTES WHY"), rows)
	})
}

func showQuarantined(cmd *cobra.Command, arg string) error {
	number, err := quarantineNumber(arg)
	if err != nil {
		return err
	}
	return operating(cmd, func(ctx context.Context, p *place, o *operator) error {
		q, err := o.QuarantinedMessage(ctx, number)
		if err != nil {
			return err
		}
		out := cli.For(cmd)
		if out.JSON {
			return out.Value(q)
		}
		to, cut := "", ""
		if q.To != "" {
			to = p.short(q.To)
		}
		if q.Cut {
			cut = "it is not all here, and cannot be tried again"
		}
		pairs := []string{
			"number", strconv.FormatUint(q.Number, 10), "refused", cli.Time(time.Unix(q.At, 0)), "sender", p.short(q.Agent), "kind", q.Kind,
			"session", q.Session, "to", to, "code", string(q.Code), "why", q.Reason, "bytes", strconv.Itoa(q.Bytes), "cut", cut,
		}
		for _, name := range slices.Sorted(maps.Keys(q.Headers)) {
			for _, value := range q.Headers[name] {
				pairs = append(pairs, name, value)
			}
		}
		if err := out.Pairs(pairs...); err != nil {
			return err
		}
		return out.Text("\n" + strings.ToValidUTF8(string(q.Body), "�") + "\n")
	})
}
