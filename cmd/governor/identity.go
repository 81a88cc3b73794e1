package main

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/handoff-governor/handoff-governor/cmd/internal/cli"
	"github.com/handoff-governor/handoff-governor/handoff/entry"
	"github.com/handoff-governor/handoff-governor/handoff/identity"
)

// This file has the verbs about who may be here at all.

func identityCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "identity",
		Short: "Withdraw identities, restore and list them",
		Long: `Withdraw identities, restore and list them. An identity is an agent, a guard or an operator. NAME is that of an agent in
the home trust domain, as in planner, or a SPIFFE ID.`,
	}
	cmd.AddCommand(
		identityVerb("withdraw", "Cut an identity off, and end all that it holds",
			`Cut an identity off, whoever issues its SVIDs and however long they are valid. Its connections end within a second, and it
cannot connect again; what it holds, what was handed on from it and what waits for it is revoked, and its sessions are
closed. So it stays, also over restarts, until it is restored.`,
			func(ctx context.Context, o *operator, name, reason string) (string, uint64, error) {
				index, cut, err := o.Withdraw(ctx, name, reason)
				if err == nil && !cut {
					err = fmt.Errorf("entry %d withdraws it, and nothing it asks for is done; but a connection of it may be left: not all NATS servers can be reached, and the governor tries again every second", index)
				}
				return entry.Withdrawn, index, err
			}),
		identityVerb("restore", "Let an identity in again that was withdrawn",
			"Let an identity in again that was withdrawn. It gets back nothing of what it had.",
			func(ctx context.Context, o *operator, name, reason string) (string, uint64, error) {
				index, err := o.Restore(ctx, name, reason)
				return entry.Restored, index, err
			}),
		&cobra.Command{
			Use:     "list",
			Short:   "List the identities that are withdrawn, a line each",
			Example: "  governor identity list\n  governor identity list --json",
			Args:    cobra.NoArgs,
			RunE:    func(cmd *cobra.Command, _ []string) error { return listIdentities(cmd) },
		},
	)
	return cmd
}

func identityVerb(
	verb, short, long string, do func(ctx context.Context, o *operator, name, reason string) (string, uint64, error),
) *cobra.Command {
	var reason string
	cmd := &cobra.Command{
		Use:   verb + " NAME",
		Short: short,
		Long:  long,
		Example: "  governor identity " + verb + " planner --reason \"its key was published\"\n  governor identity " + verb +
			" spiffe://acme.example/guard/files",
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			p, err := findPlace(cmd)
			if err != nil {
				return err
			}
			name, err := p.identity(args[0])
			if err != nil {
				return err
			}
			return operating(cmd, func(ctx context.Context, _ *place, o *operator) error {
				status, index, err := do(ctx, o, string(name), reason)
				if err != nil {
					return err
				}
				id, err := name.ID()
				if err != nil {
					return err
				}
				return done(cmd, status, id.String(), index)
			})
		},
	}
	cmd.Flags().StringVar(&reason, "reason", "", "why, for the record")
	return cmd
}

// identity reads what a person typed.
func (p *place) identity(typed string) (identity.Name, error) {
	home, err := spiffeid.TrustDomainFromString(p.TrustDomain)
	if err != nil {
		return "", err
	}
	name, err := identity.Expand(typed, home)
	if err != nil {
		return "", cli.Usagef("%v", err)
	}
	return name, nil
}

// withdrawn is an identity that is.
type withdrawn struct {
	ID     string    `json:"id"` // SPIFFE ID
	Name   string    `json:"name"`
	At     time.Time `json:"withdrawn"`
	By     string    `json:"by"`
	Reason string    `json:"reason,omitempty"`
	Entry  uint64    `json:"entry"`
}

func listIdentities(cmd *cobra.Command) error {
	p, err := findPlace(cmd)
	if err != nil {
		return err
	}
	list := []withdrawn{}
	add := func(name, by, reason string, at time.Time, index uint64) {
		w := withdrawn{Name: name, At: at.UTC(), By: by, Reason: reason, Entry: index}
		if id, err := identity.Name(name).ID(); err == nil {
			w.ID = id.String()
		}
		list = append(list, w)
	}
	if p.runs() {
		err = operating(cmd, func(ctx context.Context, _ *place, o *operator) error {
			for w, err := range o.Withdrawn(ctx) {
				if err != nil {
					return err
				}
				add(w.Name, w.By, w.Reason, time.Unix(w.At, 0), w.Entry)
			}
			return nil
		})
	} else {
		err = reading(cmd, func(_ *place, r record) error {
			for encoded, err := range r.Entries(0) {
				if err != nil {
					return err
				}
				e, err := entry.Decode(encoded)
				if err != nil {
					return err
				}
				if i := e.Identity; i != nil {
					list = slices.DeleteFunc(list, func(w withdrawn) bool { return w.Name == i.Name })
					if i.Effect == entry.Withdrawn {
						add(i.Name, i.By, i.Reason, time.Unix(e.Time/1000, 0), e.Index)
					}
				}
			}
			return nil
		})
	}
	if err != nil {
		return err
	}
	slices.SortFunc(list, func(a, b withdrawn) int { return strings.Compare(a.Name, b.Name) })
	out := cli.For(cmd)
	if out.JSON {
		return out.Value(list)
	}
	rows := make([][]string, 0, len(list))
	for _, w := range list {
		rows = append(rows, []string{p.short(w.Name), cli.Time(w.At), p.short(w.By), strconv.FormatUint(w.Entry, 10), w.Reason})
	}
	return out.Table(strings.Fields("IDENTITY WITHDRAWN BY ENTRY WHY"), rows)
}
