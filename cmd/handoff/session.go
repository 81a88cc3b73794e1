package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/spf13/cobra"

	"github.com/handoff-governor/handoff-governor/cmd/internal/cli"
	"github.com/handoff-governor/handoff-governor/handoff"
	"github.com/handoff-governor/handoff-governor/handoff/aat"
	"github.com/handoff-governor/handoff-governor/handoff/wire"
)

const (
	answerWithin = 30 * time.Second // of what needs no person and no other agent
	maxTTL       = 24 * time.Hour   // of a session, as the governor has it
)

func sessionCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "session", Short: "Open, look at and close sessions"}
	cmd.AddCommand(openCommand(), statusCommand(), closeCommand())
	return cmd
}

// toolFlags are the tools that a command asks for.
type toolFlags struct {
	tools []string
	file  string
}

func (t *toolFlags) add(cmd *cobra.Command) {
	cmd.Flags().StringArrayVar(&t.tools, "tool", nil, `NAME, with any arguments, or NAME:{"argument":{constraint}}; repeatable`)
	cmd.Flags().StringVar(&t.file, "tools", "", "file with all tools as JSON: {name: {argument: {constraint}}}")
}

func (t *toolFlags) read(ctx context.Context) (aat.Tools, error) {
	tools := aat.Tools{}
	if t.file != "" {
		raw, err := readInput(ctx, t.file)
		if err != nil {
			return nil, err
		}
		if err := json.Unmarshal(raw, &tools); err != nil {
			return nil, fmt.Errorf("the tools in %s: %w", t.file, cli.JSONError(err))
		}
	}
	for _, text := range t.tools {
		name, args, err := readTool(text)
		if err != nil {
			return nil, err
		}
		if _, twice := tools[name]; twice || name == "" {
			return nil, cli.Usagef("--tool %s: each tool needs a name, and may be named once", text)
		}
		tools[name] = args
	}
	return tools, nil
}

func openCommand() *cobra.Command {
	var (
		r             handoff.SessionRequest
		tools         toolFlags
		budget        int
		person, key   string
		withoutBudget = -1
	)
	cmd := &cobra.Command{
		Use:   "open --objective TEXT [--tool TOOL]…",
		Short: "Open a session, and print its ID",
		Long: `Open a session: one objective on somebody's behalf, with the tools that all its tasks together may use. The policy may
grant less: what it has left out or cut is written to standard error, and with --json, what was granted.

The session runs on the agent's own behalf, or on a person's, who proves it with a key that the governor knows for that
name ("governor up --person").`,
		Example: `  handoff session open --objective "read the logs" --tool fs.list --tool 'fs.read:{"path":{"constraint_type":"exact","value":"/x"}}'
  handoff session open --objective report --tools tools.json --ttl 2h --max-hops 3 --principal alice --principal-key alice.pem`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			switch {
			case r.Objective == "" || len(r.Objective) > wire.MaxPurpose:
				return cli.Usagef("say what the session is for with --objective, in 1 to %d bytes", wire.MaxPurpose)
			case r.TTL > maxTTL:
				return cli.Usagef("--ttl is %s; a session lives for %s at most", r.TTL, maxTTL)
			case cmd.Flags().Changed("budget") && budget < 0:
				return cli.Usagef("--budget is %d; it cannot be negative", budget)
			}
			err = firstError(checkTimes(cmd, "ttl"), checkHops(cmd), checkID("--id", r.ID), checkLabels(r.Labels))
			if err != nil {
				return err
			}
			if r.Tools, err = tools.read(cmd.Context()); err != nil {
				return err
			}
			if budget != withoutBudget {
				r.Budget = &wire.Budget{Handoffs: budget}
			}
			if err := onBehalf(&r, person, key); err != nil {
				return err
			}
			return as(cmd, soon, func(ctx context.Context, a *agent) error { return open(ctx, cmd, a, r) })
		},
	}
	f := cmd.Flags()
	tools.add(cmd)
	f.StringVar(&r.Objective, "objective", "", "what the session is for (required)")
	f.StringVar(&r.ID, "id", "", "UUIDv7 of the session, to ask again for one that got no answer (default: a new one)")
	f.DurationVar(&r.TTL, "ttl", time.Hour, "how long the session lives")
	f.IntVar(&r.MaxHops, "max-hops", 1, "how many handoffs may follow one another")
	f.StringArrayVar(&r.Labels, "label", nil, "label that everything in the session carries; repeatable")
	f.IntVar(&budget, "budget", withoutBudget, "how many handoffs the session may have in all (default: no limit)")
	f.StringVar(&person, "principal", "", "person on whose behalf it runs (default: the agent itself)")
	f.StringVar(&key, "principal-key", "", "file with that person's private key, PKCS #8 in PEM")
	return cmd
}

func onBehalf(r *handoff.SessionRequest, person, file string) error {
	if (person == "") != (file == "") {
		return cli.Usagef("--principal and --principal-key belong together")
	}
	if person == "" {
		return nil
	}
	if _, err := os.Stat(file); errors.Is(err, fs.ErrNotExist) { // LoadKey would make one
		return fmt.Errorf("there is no key in %s: openssl genpkey -algorithm ed25519 -out %s makes one", file, file)
	}
	key, err := handoff.LoadKey(file)
	if err != nil {
		return err
	}
	r.Principal = wire.Principal{Kind: wire.PrincipalHuman, Name: person}
	r.Person = handoff.PersonKey(person, key)
	return nil
}

func open(ctx context.Context, cmd *cobra.Command, a *agent, r handoff.SessionRequest) error {
	s, err := a.OpenSession(ctx, r)
	if err != nil {
		return err
	}
	if err := a.keepSession(s.Session(), s.Chain()); err != nil {
		return fmt.Errorf("the session %s is open, but its grant could not be kept: %w", s.Session(), err)
	}
	root, err := cli.ReadToken(s.Chain()[0])
	if err != nil {
		return err
	}
	ttl, hops := time.Duration(root.ExpiresAt-root.IssuedAt)*time.Second, root.MaxDepth/2
	out := cli.For(cmd)
	if out.JSON {
		return out.Value(struct {
			Session string        `json:"session"`
			Tools   aat.Tools     `json:"tools"`
			Expires time.Time     `json:"expires"`
			TTL     int64         `json:"ttl"` // seconds
			MaxHops int           `json:"max_hops"`
			Reasons []wire.Reason `json:"reasons,omitempty"`
			Chain   []string      `json:"aat_chain"`
		}{s.Session(), s.Tools(), s.Expires(), int64(ttl / time.Second), hops, s.Reasons, s.Chain()})
	}
	var narrowed []string
	if ttl < r.TTL.Truncate(time.Second) {
		narrowed = append(narrowed, fmt.Sprintf("--ttl %s: the session lives for %s", r.TTL, ttl))
	}
	if hops < r.MaxHops {
		narrowed = append(narrowed, fmt.Sprintf("--max-hops %d: %d may follow one another", r.MaxHops, hops))
	}
	for _, reason := range s.Reasons {
		narrowed = append(narrowed, cli.ReasonText(reason))
	}
	return errors.Join(note(cmd, narrowed), out.Line("%s", s.Session()))
}

// note says what came out narrower than asked.
func note(cmd *cobra.Command, narrowed []string) (err error) {
	notes := cli.To(cmd.ErrOrStderr())
	for _, text := range narrowed {
		err = errors.Join(err, notes.Line("narrowed: %s", text))
	}
	return err
}

func statusCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "status SESSION",
		Short:   "Say how a session stands that you opened",
		Example: "  handoff session status $S",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := checkID("SESSION", args[0]); err != nil {
				return err
			}
			return as(cmd, soon, func(ctx context.Context, a *agent) error {
				s, err := a.SessionStatus(ctx, args[0])
				if err != nil {
					return err
				}
				out := cli.For(cmd)
				if out.JSON {
					return out.Value(s)
				}
				return errors.Join(out.Ended(s.State, "session %s", s.Session), out.Pairs(
					"  opened", cli.Time(time.Unix(s.OpenedAt, 0)), "  expires", cli.Time(time.Unix(s.ExpiresAt, 0)),
					"  handoffs", strconv.Itoa(s.Handoffs), "  denied", strconv.Itoa(s.Denied), "  unfinished", strconv.Itoa(s.Open)))
			})
		},
	}
}

func closeCommand() *cobra.Command {
	var reason string
	cmd := &cobra.Command{
		Use:     "close SESSION",
		Short:   "Close a session that you opened, and revoke everything under it",
		Example: "  handoff session close $S --reason \"report is done\"",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := checkID("SESSION", args[0]); err != nil {
				return err
			}
			return as(cmd, soon, func(ctx context.Context, a *agent) error {
				if err := a.CloseSession(ctx, args[0], reason); err != nil {
					return err
				}
				if err := a.dropSession(args[0]); err != nil {
					return err
				}
				out := cli.For(cmd)
				if out.JSON {
					return out.Value(map[string]string{"session": args[0], "state": "closed"})
				}
				return out.Ended("closed", "session %s", args[0])
			})
		},
	}
	cmd.Flags().StringVar(&reason, "reason", "", "why, for the record")
	return cmd
}
