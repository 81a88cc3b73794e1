package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/spf13/cobra"

	"github.com/handoff-governor/handoff-governor/cmd/internal/cli"
	"github.com/handoff-governor/handoff-governor/handoff/wire"
)

// This file has the verbs of an operator that are a request or two each.

func sessionCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "session", Short: "List, show and close sessions"}
	cmd.AddCommand(
		&cobra.Command{
			Use:     "list",
			Short:   "List sessions that have not run out of time, newest first",
			Example: "  governor session list",
			Args:    cobra.NoArgs,
			RunE:    func(cmd *cobra.Command, _ []string) error { return listSessions(cmd) },
		},
		&cobra.Command{
			Use:     "show SESSION",
			Short:   "Show a session: whose, for what, with which tools",
			Example: "  governor session show 019a4b1c-0000-7000-8000-000000000000",
			Args:    cobra.ExactArgs(1),
			RunE:    func(cmd *cobra.Command, args []string) error { return showSession(cmd, args[0]) },
		},
		closeCommand(),
	)
	return cmd
}

func listSessions(cmd *cobra.Command) error {
	p, err := findPlace(cmd)
	if err != nil {
		return err
	}
	var list []summary
	if p.runs() {
		err = operating(cmd, func(ctx context.Context, _ *place, o *operator) error {
			for s, err := range o.Sessions(ctx) {
				if err != nil {
					return err
				}
				list = append(list, summaryOf(s))
			}
			return nil
		})
	} else {
		err = reading(cmd, func(_ *place, r record) error {
			sessions, err := readSessions(r)
			for _, s := range sessions {
				list = append(list, s.summary)
			}
			return err
		})
	}
	if err != nil {
		return err
	}
	list = slices.DeleteFunc(list, func(s summary) bool { return !time.Now().Before(s.Expires) })
	slices.SortFunc(list, func(a, b summary) int { return strings.Compare(b.ID, a.ID) })
	out := cli.For(cmd)
	if out.JSON {
		return out.Value(append([]summary{}, list...))
	}
	rows := make([][]string, 0, len(list))
	for _, s := range list {
		rows = append(rows, []string{
			s.ID, s.State, cli.Time(s.Opened), cli.Time(s.Expires), p.short(s.Opener),
			p.principal(s.Principal), strconv.Itoa(s.Count), strconv.Itoa(s.Denied), strconv.Itoa(s.Open),
		})
	}
	return out.Table(strings.Fields("SESSION STATE OPENED EXPIRES OPENER PRINCIPAL HANDOFFS DENIED UNFINISHED"), rows)
}

func showSession(cmd *cobra.Command, id string) error {
	return reading(cmd, func(p *place, r record) error {
		s, err := sessionOf(r, id)
		if err != nil {
			return err
		}
		out := cli.For(cmd)
		if out.JSON {
			s.Handoffs = nil // chain show has the tree
			return out.Value(s)
		}
		var more []string
		name, tools := "  tools", s.Tools
		if s.State == "denied" {
			name, tools = "  asked for", s.Asked
		}
		for _, tool := range toolLines(tools) {
			more = append(more, name, tool)
			name = ""
		}
		handoffs := fmt.Sprintf("%d, %d denied, %d unfinished", s.Count, s.Denied, s.Open)
		return p.showSession(out, s, append(more, "  handoffs", handoffs)...)
	})
}

func closeCommand() *cobra.Command {
	var reason string
	cmd := &cobra.Command{
		Use:     "close SESSION",
		Short:   "Close a session, and revoke everything under it",
		Example: "  governor session close 019a4b1c-0000-7000-8000-000000000000 --reason \"wrong data\"",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return operating(cmd, func(ctx context.Context, _ *place, o *operator) error {
				status, err := o.CloseSession(ctx, args[0], reason)
				if err != nil {
					return err
				}
				out := cli.For(cmd)
				if out.JSON {
					return out.Value(summaryOf(*status))
				}
				return out.Ended(status.State, "session %s, entry %d", status.Session, status.Entry)
			})
		},
	}
	cmd.Flags().StringVar(&reason, "reason", "", "why, for the record")
	return cmd
}

func revokeCommand() *cobra.Command {
	var reason string
	cmd := &cobra.Command{
		Use:   "revoke ID --reason WHY",
		Short: "Revoke a handoff, a grant or a session, with everything below it",
		Long: `Revoke a handoff (its ID), a grant (the jti of its link) or a session, with everything below it. Guards refuse it from
then on, and whoever waits for a result is told.`,
		Example: "  governor revoke 019a4b1c-0000-7000-8000-000000000000 --reason \"key lost\"",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if reason == "" {
				return cli.Usagef("say why with --reason: it is what the record and the agents are told")
			}
			return operating(cmd, func(ctx context.Context, _ *place, o *operator) error {
				index, err := o.Revoke(ctx, args[0], reason)
				if err != nil {
					return err
				}
				return done(cmd, "revoked", args[0], index)
			})
		},
	}
	cmd.Flags().StringVar(&reason, "reason", "", "why, for the record (required)")
	return cmd
}

// waiting is a handoff, or its result, that waits for a person.
type waiting struct {
	Entry   uint64        `json:"entry"` // for "governor approve"
	Session string        `json:"session"`
	Handoff string        `json:"handoff"`
	Stage   string        `json:"stage"` // offer | claim | result
	From    string        `json:"from"`
	To      string        `json:"to"`
	Reasons []wire.Reason `json:"reasons,omitempty"`
}

func heldCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "held",
		Short: "List what waits for a person, over all sessions, a line each",
		Long: `List what waits for a person, over all sessions, oldest first: offers, claims and results that the policy holds. Answer
each with "governor approve ENTRY", or with --deny.`,
		Example: "  governor held\n  governor held --json",
		Args:    cobra.NoArgs,
		RunE:    func(cmd *cobra.Command, _ []string) error { return listHeld(cmd) },
	}
}

func listHeld(cmd *cobra.Command) error {
	return reading(cmd, func(p *place, r record) error {
		sessions, err := unfinished(cmd.Context(), r)
		if err != nil {
			return err
		}
		list := []waiting{}
		for _, s := range sessions {
			for _, h := range s.handoffs {
				if h.Held != nil {
					list = append(list, waiting{*h.Held, s.ID, h.ID, h.heldStage, h.From, h.To, h.Reasons})
				}
			}
		}
		slices.SortFunc(list, func(a, b waiting) int { return cmp.Compare(a.Entry, b.Entry) })
		out := cli.For(cmd)
		if out.JSON {
			return out.Value(list)
		}
		rows := make([][]string, 0, len(list))
		for _, w := range list {
			var why []string
			for _, r := range w.Reasons {
				why = append(why, cli.ReasonText(r))
			}
			rows = append(rows, []string{
				strconv.FormatUint(w.Entry, 10), w.Session, w.Handoff, w.Stage, p.short(w.From) + " → " + p.short(w.To),
				strings.Join(why, "; "),
			})
		}
		return out.Table(strings.Fields("ENTRY SESSION HANDOFF STAGE WHO WHY"), rows)
	})
}

// unfinished reads the sessions in which something is unfinished. A running governor names them; else all are read.
func unfinished(ctx context.Context, r record) ([]*session, error) {
	running, ok := r.(*remote)
	if !ok {
		return readSessions(r)
	}
	ctx, cancel := context.WithTimeout(ctx, answerWithin)
	defer cancel()
	var ids []string // first, since to read them may take longer than they may be named
	for k, err := range running.Sessions(ctx) {
		if err != nil {
			return nil, err
		}
		if k.Open > 0 {
			ids = append(ids, k.Session)
		}
	}
	var list []*session
	for _, id := range ids {
		s, err := readSession(r.Session(id), id)
		if err != nil {
			return nil, err
		}
		list = append(list, s)
	}
	return list, nil
}

func approveCommand() *cobra.Command {
	var deny bool
	cmd := &cobra.Command{
		Use:   "approve ENTRY",
		Short: "Approve a decision that is held, or turn it down",
		Long: `Approve a decision that is held, or turn it down. ENTRY is the index of the decision in the ledger: "governor held"
lists what waits. The policy judges again with the approval in its input, and may still say no; then the exit code is 3.`,
		Example: "  governor approve 17\n  governor approve 17 --deny",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			held, err := parseIndex(args[0])
			if err != nil {
				return err
			}
			return operating(cmd, func(ctx context.Context, _ *place, o *operator) error {
				index, status, err := o.Approve(ctx, held, !deny)
				if err != nil {
					return err
				}
				if err := done(cmd, status, fmt.Sprintf("the handoff held by entry %d", held), index); err != nil {
					return err
				}
				if status == "denied" && !deny {
					return wire.Refuse(wire.CodePolicyDenied,
						fmt.Sprintf("the policy denies it all the same: \"governor entry show %d\" says why", index))
				}
				return nil
			})
		},
	}
	cmd.Flags().BoolVar(&deny, "deny", false, "turn it down")
	return cmd
}

// done says what an entry has done.
func done(cmd *cobra.Command, status, what string, index uint64) error {
	out := cli.For(cmd)
	if out.JSON {
		return out.Value(struct {
			Status string `json:"status"`
			Entry  uint64 `json:"entry"`
		}{status, index})
	}
	return out.Ended(status, "%s, entry %d", what, index)
}

func entryCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "entry", Short: "Read single entries of the ledger"}
	cmd.AddCommand(&cobra.Command{
		Use:     "show INDEX",
		Short:   "Show an entry of the ledger; with --json, the very bytes that are hashed",
		Example: "  governor entry show 17\n  governor entry show 17 --json",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			index, err := parseIndex(args[0])
			if err != nil {
				return err
			}
			return reading(cmd, func(_ *place, r record) error {
				for encoded, err := range r.Entries(index) {
					if err != nil {
						return err
					}
					out := cli.For(cmd)
					if out.JSON {
						return out.Bytes(append(encoded, '\n'))
					}
					text := jsontext.Value(encoded)
					if err := text.Indent(jsontext.WithIndent("  ")); err != nil {
						return err
					}
					return out.Text(string(text))
				}
				return fmt.Errorf("the ledger has no entry %d yet", index)
			})
		},
	})
	return cmd
}

func healthCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "health",
		Short:   "Ask the running governor how it is; exit code 1 where there is trouble",
		Example: "  governor health",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return operating(cmd, func(ctx context.Context, p *place, o *operator) error {
				h, err := o.Health(ctx)
				if err != nil {
					return err
				}
				out := cli.For(cmd)
				var bad error
				if len(h.Troubles) > 0 {
					bad = cli.ErrShown
				}
				if out.JSON {
					return errors.Join(out.Value(h), bad)
				}
				pairs := []string{
					"NATS", p.URL, "log", h.Log, "entries", strconv.FormatUint(h.Entries, 10), "bundle", h.Bundle,
					"sessions", strconv.Itoa(h.Sessions), "handoffs", strconv.Itoa(h.Handoffs), "held", strconv.Itoa(h.Held),
				}
				for _, t := range h.Troubles {
					pairs = append(pairs, "trouble", fmt.Sprintf("%s, since %s: %s", t.Of, cli.Time(time.Unix(t.Since, 0)), t.Message))
				}
				return errors.Join(out.Pairs(pairs...), bad)
			})
		},
	}
}

func parseIndex(text string) (uint64, error) {
	index, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		return 0, cli.Usagef("%q is not the index of an entry; it is a number from 0", text)
	}
	return index, nil
}

// maxSmall bounds files that are read whole, in bytes.
const maxSmall = 1 << 20

func readSmall(file string) ([]byte, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, maxSmall))
}
