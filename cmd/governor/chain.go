package main

import (
	"errors"
	"fmt"
	"io"
	"iter"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/handoff-governor/handoff-governor/cmd/governor/daemon"
	"github.com/handoff-governor/handoff-governor/cmd/internal/cli"
	"github.com/handoff-governor/handoff-governor/governor/ledger"
	"github.com/handoff-governor/handoff-governor/handoff/aat"
	"github.com/handoff-governor/handoff-governor/handoff/entry"
	"github.com/handoff-governor/handoff-governor/handoff/identity"
	"github.com/handoff-governor/handoff-governor/handoff/wire"
)

func chainCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "chain", Short: "Read and verify the chains of handoffs in the ledger"}
	cmd.AddCommand(chainListCommand(), chainShowCommand(), chainVerifyCommand(), chainCheckpointCommand())
	return cmd
}

func chainListCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "list",
		Short:   "List every session in the ledger, a line each",
		Example: "  governor chain list\n  governor chain list --json --data /var/lib/handoff",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return reading(cmd, func(p *place, r record) error {
				sessions, err := readSessions(r)
				if err != nil {
					return err
				}
				out := cli.For(cmd)
				if out.JSON {
					for _, s := range sessions {
						s.Handoffs = nil // chain show has the tree
					}
					return out.Value(append([]*session{}, sessions...))
				}
				rows := make([][]string, 0, len(sessions))
				for _, s := range sessions {
					rows = append(rows, []string{
						s.ID, s.State, cli.Time(s.Opened), p.short(s.Opener), p.principal(s.Principal), strconv.Itoa(s.Count),
						strconv.Itoa(s.Denied), strconv.Itoa(s.Open), strconv.Itoa(s.Entries),
					})
				}
				return out.Table(strings.Fields("SESSION STATE OPENED OPENER PRINCIPAL HANDOFFS DENIED UNFINISHED ENTRIES"), rows)
			})
		},
	}
}

func chainShowCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "show SESSION",
		Short: "Show who handed what to whom in a session, as a tree",
		Long: `Show who handed what to whom in a session, as a tree: under each handoff the tools that were granted, what was left
behind or taken away on the way, who claimed it, how it ended, and why where it was denied or held.`,
		Example: "  governor chain show 019a4b1c-0000-7000-8000-000000000000",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return reading(cmd, func(p *place, r record) error {
				s, err := sessionOf(r, args[0])
				if err != nil {
					return err
				}
				out := cli.For(cmd)
				if out.JSON {
					return out.Value(s)
				}
				return p.showChain(out, s)
			})
		},
	}
}

// showSession writes what a session is, without its handoffs; more are further pairs.
func (p *place) showSession(out *cli.Output, s *session, more ...string) error {
	if err := out.Ended(s.State, "session %s", s.ID); err != nil {
		return err
	}
	when := cli.Time(s.Opened) + " by " + p.short(s.Opener)
	opened, asked, closed, budget := when+", key "+shortKey(s.Key), "", "", ""
	if s.State == "denied" {
		opened, asked = "", when
	}
	if !s.Closed.IsZero() {
		closed = fmt.Sprintf("%s by %s: %s", cli.Time(s.Closed), p.short(s.ClosedBy), s.Reason)
	}
	if s.Budget != nil {
		budget = fmt.Sprintf("%d handoffs", s.Budget.Handoffs)
	}
	pairs := []string{
		"  objective", s.Objective, "  opened", opened, "  asked", asked, "  on behalf of", p.principal(s.Principal),
		"  expires", cli.Time(s.Expires), "  closed", closed, "  hops", strconv.Itoa(s.MaxHops), "  budget", budget,
		"  labels", strings.Join(s.Labels, ", "), "  entries", fmt.Sprintf("%d, from %d to %d", s.Entries, s.Entry, s.Newest),
	}
	for _, r := range s.Reasons {
		pairs = append(pairs, "  reason", cli.ReasonText(r))
	}
	return out.Pairs(append(pairs, more...)...)
}

// showChain writes a session with its tree of handoffs.
func (p *place) showChain(out *cli.Output, s *session) error {
	if err := p.showSession(out, s); err != nil {
		return err
	}
	return (&tree{p, out}).draw(s)
}

// showEntries writes the chain of a session from its entries, newest first.
func showEntries(w io.Writer, id string, entries iter.Seq2[[]byte, error]) error {
	s, err := readSession(entries, id)
	if err != nil {
		return err
	}
	opener, err := identity.Name(s.Opener).ID()
	if err != nil {
		return err
	}
	p := &place{Endpoint: daemon.Endpoint{TrustDomain: opener.TrustDomain().Name()}}
	return p.showChain(cli.To(w), s)
}

// tree draws a session's handoffs.
type tree struct {
	*place
	out *cli.Output
}

func (t *tree) draw(s *session) error {
	verb, tools := "holds", s.Tools
	if s.State == "denied" {
		verb, tools = "asked for", s.Asked
	}
	if err := t.out.Text("\n" + t.short(s.Opener) + " " + verb + "\n"); err != nil {
		return err
	}
	return t.below("", toolLines(tools), s.Handoffs)
}

// below draws what belongs to a node: its lines, then its handoffs.
func (t *tree) below(indent string, lines []string, handoffs []*hop) error {
	bar := "│  "
	if len(handoffs) == 0 {
		bar = "   "
	}
	for _, line := range lines {
		if err := t.out.Line("%s", indent+bar+line); err != nil {
			return err
		}
	}
	for i, h := range handoffs {
		branch, next := "├─ ", "│  "
		if i == len(handoffs)-1 {
			branch, next = "└─ ", "   "
		}
		head := fmt.Sprintf("%s%s%s → %s  %s  %s", indent, branch, t.short(h.From), t.short(h.To), h.Mode, h.ID)
		if err := t.out.Ended(h.State, "%s", head); err != nil {
			return err
		}
		if err := t.below(indent+next, t.about(h), h.Handoffs); err != nil {
			return err
		}
	}
	return nil
}

// about says in lines what happened to a handoff.
func (t *tree) about(h *hop) []string {
	lines := []string{fmt.Sprintf("offered %s, entry %d%s", cli.Time(h.Offered), h.Entry, quoted(h.Purpose))}
	tools := h.Granted
	waits := (h.State == "denied" || h.State == "held") && len(h.Claims) == 0
	if waits {
		tools = h.Asked
		lines = append(lines, "asked for")
	}
	lines = append(lines, toolLines(tools)...)
	if h.Granted != nil && !waits {
		lines = append(lines, narrowed("left behind", h.parent, h.Asked)...)
		lines = append(lines, narrowed("taken away by policy", h.Asked, h.Granted)...)
	}
	if len(h.Labels) > 0 {
		lines = append(lines, "labels "+strings.Join(h.Labels, ", "))
	}
	for _, r := range h.Reasons {
		lines = append(lines, "reason "+cli.ReasonText(r))
	}
	happened := map[uint64]string{} // :: entry → line
	for _, c := range h.Claims {
		word := "claimed"
		if c.TakesOver != "" {
			word = "taken over"
		}
		happened[c.Entry] = fmt.Sprintf("%s %s by key %s until %s, entry %d",
			word, cli.Time(c.Time), shortKey(c.Key), cli.Time(c.Expires), c.Entry)
	}
	for _, ev := range h.Events {
		happened[ev.Entry] = t.event(ev)
	}
	for _, index := range slices.Sorted(maps.Keys(happened)) {
		lines = append(lines, happened[index])
	}
	return lines
}

func (t *tree) event(ev event) string {
	line := ev.What
	if ev.Effect != "" {
		line += " (" + ev.Effect + ")"
	}
	line += " " + cli.Time(ev.Time)
	if ev.By != "" {
		line += " by " + t.short(ev.By)
	}
	line += fmt.Sprintf(", entry %d", ev.Entry)
	if len(ev.Labels) > 0 {
		line += ", labels " + strings.Join(ev.Labels, ", ")
	}
	if ev.Detail != "" {
		line += ": " + ev.Detail
	}
	return line
}

func toolLines(tools aat.Tools) []string {
	if len(tools) == 0 {
		return []string{"no tools"}
	}
	return cli.ToolTexts(tools)
}

// narrowed says how tools became fewer or smaller.
func narrowed(how string, from, to aat.Tools) []string {
	var lines []string
	for _, name := range from.Names() {
		before := cli.ToolTexts(aat.Tools{name: from[name]})[0]
		switch args, kept := to[name]; {
		case !kept:
			lines = append(lines, how+": "+before)
		case !args.Equal(from[name]):
			lines = append(lines, how+": part of "+before)
		}
	}
	return lines
}

func quoted(text string) string {
	if text == "" {
		return ""
	}
	return ": " + strconv.Quote(text)
}

// shortKey is enough of a thumbprint to tell processes apart.
func shortKey(thumbprint string) string { return thumbprint[:min(8, len(thumbprint))] }

// short is an agent's name as people type it; what is no name stays as it is.
func (p *place) short(name string) string {
	parsed, err := identity.ParseName(name)
	if err != nil {
		return name
	}
	home, err := spiffeid.TrustDomainFromString(p.TrustDomain)
	if err != nil {
		return name
	}
	return parsed.Short(home)
}

// principal is "" where the record names none.
func (p *place) principal(who wire.Principal) string {
	if who.Kind == "" {
		return ""
	}
	if who.Kind == wire.PrincipalWorkload {
		return p.short(who.Name)
	}
	return who.Name + " (" + who.Kind + ")"
}

func chainVerifyCommand() *cobra.Command {
	var seen []string
	cmd := &cobra.Command{
		Use:   "verify",
		Short: "Verify the whole ledger: hashes, signatures, narrowing and the life of every handoff",
		Long: `Verify the whole ledger: its Merkle tree and checkpoint, every signature of roots, offers and results, that no link is
wider than the one before it, and that nothing was claimed or answered that was not admitted. Where no governor runs, the
file is checked, too: its pages, its index of IDs, every body and bundle.

The checkpoint's key and the issuer's come from governor.json in the data directory. Whoever distrusts that directory
keeps checkpoints of earlier days elsewhere, as "governor chain checkpoint" writes them, and names them with --seen: a
ledger that was rewritten since does not hold them.`,
		Example: "  governor chain verify\n  governor chain verify --seen yesterday.checkpoint",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			err := reading(cmd, func(p *place, r record) error { return p.verify(cmd, r, seen) })
			if errors.Is(err, ledger.ErrDamaged) { // found when it was opened
				return unreadable(cli.For(cmd), err)
			}
			return err
		},
	}
	cmd.Flags().StringArrayVar(&seen, "seen", nil, "file with a checkpoint that \"governor chain checkpoint\" wrote before; repeatable")
	return cmd
}

func chainCheckpointCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "checkpoint",
		Short: "Write the ledger's newest signed checkpoint",
		Long: `Write the ledger's newest signed checkpoint: the log's name, the number of entries and the root of their tree, as a
signed note. Keep it somewhere else. "governor chain verify --seen FILE" then finds a ledger that was rewritten since.`,
		Example: "  governor chain checkpoint > today.checkpoint\n  governor chain checkpoint --data /var/lib/handoff",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return reading(cmd, func(_ *place, r record) error {
				checkpoint, err := r.Checkpoint()
				if err != nil {
					return err
				}
				out := cli.For(cmd)
				if out.JSON {
					return out.Value(map[string]string{"checkpoint": string(checkpoint)})
				}
				return out.Bytes(checkpoint)
			})
		},
	}
}

func (p *place) verify(cmd *cobra.Command, r record, seen []string) error {
	cfg, err := p.Trust()
	if err != nil {
		return err
	}
	for _, file := range seen {
		checkpoint, err := readSmall(file)
		if err != nil {
			return err
		}
		cfg.Seen = append(cfg.Seen, checkpoint)
	}
	begun := time.Now()
	report, err := daemon.Verify(cmd.Context(), r, cfg)
	var found *finding
	if problem, wrong := errors.AsType[*entry.Problem](err); wrong {
		found = &finding{&problem.Index, problem.Field, problem.Reason}
	} else if errors.Is(err, ledger.ErrDamaged) {
		found = &finding{Reason: err.Error()}
	} else if err != nil {
		return err
	}
	damaged := found != nil
	out := cli.For(cmd)
	if out.JSON {
		err = out.Value(struct {
			Verified bool                  `json:"verified"`
			Problem  *finding              `json:"problem,omitempty"`
			Entries  uint64                `json:"entries"`
			Unsigned uint64                `json:"unsigned"`
			Root     string                `json:"root"`
			Kinds    map[entry.Kind]uint64 `json:"kinds"`
			Links    uint64                `json:"links"`
			Results  uint64                `json:"results"`
			Bodies   uint64                `json:"bodies"`
			Gone     uint64                `json:"bodies_gone"`
		}{
			!damaged, found, report.Entries, report.Unsigned, report.Checkpoint.Root.String(), report.Kinds, report.Links,
			report.Results, report.Bodies, report.BodiesGone,
		})
	} else {
		err = p.showReport(out, report, time.Since(begun))
		if err == nil && damaged {
			err = out.Ended("damaged", "%s", found)
		} else if err == nil {
			err = out.Ended("verified", "the ledger of %s", p.Log)
		}
	}
	if err == nil && damaged {
		return cli.ErrShown
	}
	return err
}

// unreadable reports a ledger that is too damaged to be read.
func unreadable(out *cli.Output, err error) error {
	if out.JSON {
		err = out.Value(struct {
			Verified bool    `json:"verified"`
			Problem  finding `json:"problem"`
		}{false, finding{Reason: err.Error()}})
	} else {
		err = out.Ended("damaged", "%v", err)
	}
	if err != nil {
		return err
	}
	return cli.ErrShown
}

// finding is what is wrong with a ledger.
type finding struct {
	Entry  *uint64 `json:"entry,omitempty"`
	Field  string  `json:"field,omitempty"`
	Reason string  `json:"reason"`
}

func (f *finding) String() string {
	if f.Entry == nil {
		return f.Reason
	}
	return (&entry.Problem{Index: *f.Entry, Field: f.Field, Reason: f.Reason}).Error()
}

func (p *place) showReport(out *cli.Output, r entry.Report, took time.Duration) error {
	entries := strconv.FormatUint(r.Entries, 10)
	if r.Unsigned > 0 {
		entries += fmt.Sprintf(", %d of them newer than the checkpoint", r.Unsigned)
	}
	pairs := []string{"entries", entries}
	for _, kind := range []entry.Kind{
		entry.KindSession, entry.KindClosed, entry.KindDecided, entry.KindApproved, entry.KindClaimed, entry.KindResult,
		entry.KindRevoked, entry.KindBundle, entry.KindRejudged, entry.KindQuarantined, entry.KindIdentity, entry.KindRotated,
	} {
		if n := r.Kinds[kind]; n > 0 {
			pairs = append(pairs, "  "+string(kind), strconv.FormatUint(n, 10))
		}
	}
	pairs = append(pairs,
		"links", strconv.FormatUint(r.Links, 10), "results", strconv.FormatUint(r.Results, 10),
		"bodies", fmt.Sprintf("%d match, %d gone", r.Bodies, r.BodiesGone),
		"checkpoint", fmt.Sprintf("%d entries, root %s", r.Checkpoint.Size, r.Checkpoint.Root),
		"took", took.Round(time.Millisecond).String())
	return out.Pairs(pairs...)
}
