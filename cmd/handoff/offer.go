package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/handoff-governor/handoff-governor/cmd/internal/cli"
	"github.com/handoff-governor/handoff-governor/handoff"
	"github.com/handoff-governor/handoff-governor/handoff/wire"
)

// offer is what "handoff offer" was asked for.
type offer struct {
	session, under        string
	to, task              string
	tools                 toolFlags
	mode, purpose         string
	contentType           string
	labels, audience      []string
	deadline, lifetime    time.Duration
	maxHops               int
	id, wait, traceparent string
	timeout               time.Duration
}

func offerCommand() *cobra.Command {
	var o offer
	cmd := &cobra.Command{
		Use:   "offer --session ID --to AGENT --task FILE",
		Short: "Offer a task to another agent, and print the handoff's ID",
		Long: `Offer a task to another agent, with as much of a grant as the task needs: the grant of a session that you opened
(--session), or of a task that you claimed (--handoff).

It returns when the governor has decided (--wait verdict, the default), already when the ledger holds the offer, whatever
was decided (--wait receipt), or when the task is done (--wait result). Then the result's bytes go to standard output, and
the ID to standard error. An offer that is held for a person's approval ends with 3, too; its ID is written all the same,
and can be awaited.

Without an answer in time it fails, and the task may have been handed on all the same. Offer it again with the same --id:
it is then accepted, or refused with id_conflict because the first was.`,
		Example: `  handoff offer --session $S --to writer --task brief.md --tool fs.read --content-type text/markdown
  handoff offer --handoff $ID --to checker --task - --mode transfer --deadline 10m < draft.md`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return o.run(cmd) },
	}
	f := cmd.Flags()
	f.StringVar(&o.session, "session", "", "session that you opened, to act under its grant")
	f.StringVar(&o.under, "handoff", "", "task that you claimed, to act under its grant")
	f.StringVar(&o.to, "to", "", "agent to hand the task to: a short name or a SPIFFE ID (required)")
	f.StringVar(&o.task, "task", "", "file with the task, - for standard input (required)")
	o.tools.add(cmd)
	f.StringVar(&o.mode, "mode", wire.ModeDelegate,
		"delegate, and the result comes back; or transfer, and your grant ends when it is claimed")
	f.StringArrayVar(&o.labels, "label", nil, "label of the task's data; repeatable")
	f.StringArrayVar(&o.audience, "audience", nil, "guard at which the tools may be used; repeatable (default: any)")
	f.DurationVar(&o.deadline, "deadline", 0, "how long the task may wait to be claimed (default: as long as it may take)")
	f.DurationVar(&o.lifetime, "lifetime", 0, "how long the work may take, from now (default: as long as the grant lives)")
	f.IntVar(&o.maxHops, "max-hops", -1, "how often the receiver may hand on (default: as often as the grant allows)")
	f.StringVar(&o.contentType, "content-type", "application/octet-stream", "media type of the task")
	f.StringVar(&o.purpose, "purpose", "", "what the task is for, for the record and the receiver")
	f.StringVar(&o.traceparent, "traceparent", os.Getenv("TRACEPARENT"), "W3C trace context to pass on")
	f.StringVar(&o.id, "id", "", "UUIDv7 of the handoff, to send one again (default: a new one)")
	f.StringVar(&o.wait, "wait", "verdict", "wait for: receipt, verdict or result")
	f.DurationVar(&o.timeout, "timeout", 0, "how long to wait (default: 30s for a receipt or verdict, no limit for a result)")
	return cmd
}

func (o *offer) run(cmd *cobra.Command) error {
	options, err := o.options(cmd)
	if err != nil {
		return err
	}
	task, err := readInput(cmd.Context(), o.task)
	if err != nil {
		return err
	}
	l := limit{o.timeout, fmt.Sprintf("no %s came within %s", o.wait, o.timeout)}
	if o.timeout == 0 && o.wait != "result" {
		l = soon
	}
	return as(cmd, l, func(ctx context.Context, a *agent) error {
		grant, err := a.grant(ctx, o.session, o.under)
		if err != nil {
			return err
		}
		narrowed, err := o.beyond(grant, time.Now())
		if err != nil {
			return err
		}
		h, err := grant.Offer(ctx, o.to, task, options...)
		if err != nil {
			if h != nil && ctx.Err() != nil {
				return fmt.Errorf("%w; to be sure, offer it again with --id %s", err, h.ID)
			}
			return err
		}
		if err := note(cmd, narrowed); err != nil {
			return err
		}
		if o.wait != "result" {
			return errors.Join(shown(cmd, h), held(h))
		}
		if err := cli.To(cmd.ErrOrStderr()).Line("%s", h.ID); err != nil {
			return err
		}
		err = awaited(ctx, cmd, a, h)
		if errors.Is(err, context.DeadlineExceeded) {
			err = fmt.Errorf("%w; \"handoff await %s\" goes on waiting", err, h.ID)
		}
		return err
	})
}

func (o *offer) options(cmd *cobra.Command) ([]handoff.OfferOption, error) {
	tools, err := o.tools.read(cmd.Context())
	if err != nil {
		return nil, err
	}
	switch {
	case o.to == "":
		return nil, cli.Usagef("name the receiver with --to")
	case o.task == "":
		return nil, cli.Usagef("name the file with the task with --task; - is standard input")
	case (o.session == "") == (o.under == ""):
		return nil, errNoGrant
	case len(o.purpose) > wire.MaxPurpose:
		return nil, cli.Usagef("--purpose has %d bytes; it may have %d", len(o.purpose), wire.MaxPurpose)
	}
	err = firstError(checkReceiver(o.to), checkTimes(cmd, "deadline", "lifetime"), checkTimeout(cmd), checkHops(cmd),
		checkID("--id", o.id), checkID("--session", o.session), checkID("--handoff", o.under), checkLabels(o.labels),
		checkContentType(o.contentType), checkTraceparent(cmd))
	if err != nil {
		return nil, err
	}
	options := []handoff.OfferOption{handoff.Tools(tools), handoff.ContentType(o.contentType)}
	switch o.mode {
	case wire.ModeDelegate:
	case wire.ModeTransfer:
		options = append(options, handoff.Transfer())
	default:
		return nil, cli.Usagef("--mode is %q; it must be delegate or transfer", o.mode)
	}
	switch o.wait {
	case "receipt", "result":
	case "verdict":
		options = append(options, handoff.AwaitVerdict())
	default:
		return nil, cli.Usagef("--wait is %q; it must be receipt, verdict or result", o.wait)
	}
	if len(o.labels) > 0 {
		options = append(options, handoff.Labels(o.labels...))
	}
	if len(o.audience) > 0 {
		options = append(options, handoff.Audience(o.audience...))
	}
	if o.deadline > 0 {
		options = append(options, handoff.Deadline(time.Now().Add(o.deadline)))
	}
	if o.lifetime > 0 {
		options = append(options, handoff.Lifetime(o.lifetime))
	}
	if o.maxHops >= 0 {
		options = append(options, handoff.MaxHops(o.maxHops))
	}
	if o.purpose != "" {
		options = append(options, handoff.Purpose(o.purpose))
	}
	if o.traceparent != "" {
		options = append(options, handoff.Traceparent(o.traceparent))
	}
	if o.id != "" {
		options = append(options, handoff.WithID(o.id))
	}
	return options, nil
}

// beyond says which limits that were asked for the grant itself cuts.
func (o *offer) beyond(grant *handoff.Grant, now time.Time) (narrowed []string, err error) {
	chain := grant.Chain()
	leaf, err := cli.ReadToken(chain[len(chain)-1])
	if err != nil {
		return nil, err
	}
	end := grant.Expires()
	if o.lifetime > 0 && now.Add(o.lifetime).After(end) {
		narrowed = append(narrowed, fmt.Sprintf("--lifetime %s: the grant ends at %s", o.lifetime, cli.Time(end)))
	} else if o.lifetime > 0 {
		end = now.Add(o.lifetime)
	}
	if o.deadline > 0 && now.Add(o.deadline).After(end) {
		narrowed = append(narrowed, fmt.Sprintf("--deadline %s: the work must end at %s", o.deadline, cli.Time(end)))
	}
	if hops := (leaf.MaxDepth - leaf.Depth - 2) / 2; o.maxHops > hops && hops >= 0 {
		narrowed = append(narrowed, fmt.Sprintf("--max-hops %d: the grant leaves the receiver %d", o.maxHops, hops))
	}
	return narrowed, nil
}

// shown writes the ID of an offer that was accepted, and what was granted where that is known.
func shown(cmd *cobra.Command, h *handoff.Handoff) error {
	out, v := cli.For(cmd), h.Verdict()
	if out.JSON {
		return out.Value(struct {
			ID      string        `json:"id"`
			Session string        `json:"session"`
			To      string        `json:"to"`
			Verdict *wire.Verdict `json:"verdict,omitempty"`
		}{h.ID, h.Session, h.To, v})
	}
	err := out.Line("%s", h.ID)
	if v != nil && v.Effect == wire.EffectAllow {
		var narrowed []string
		for _, r := range v.Reasons {
			narrowed = append(narrowed, cli.ReasonText(r))
		}
		err = errors.Join(err, note(cmd, narrowed))
	}
	return err
}

// held is an error where the task waits for a person's approval: it has not gone through, but may yet.
func held(h *handoff.Handoff) error {
	v := h.Verdict()
	if v == nil || v.Effect != wire.EffectHold {
		return nil
	}
	return &handoff.Denied{ID: v.ID, Effect: v.Effect, Reasons: v.Reasons, Entry: v.Entry}
}

func awaitCommand() *cobra.Command {
	var timeout time.Duration
	cmd := &cobra.Command{
		Use:   "await ID",
		Short: "Wait for the result of a task that you offered, and write its bytes",
		Long: `Wait for the result of a task that you offered, and write its bytes to standard output. A result is delivered once, to
the first command that awaits it. It is kept in the state directory until its bytes have been written: where that fails,
await it again.`,
		Example: "  handoff await $ID --timeout 10m > report.md",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := firstError(checkTimeout(cmd), checkID("ID", args[0])); err != nil {
				return err
			}
			late := limit{timeout, fmt.Sprintf("no result came within %s: wait longer; one that was taken already, or of a task that "+
				"this agent did not offer, never comes", timeout)}
			return as(cmd, late, func(ctx context.Context, a *agent) error {
				return awaited(ctx, cmd, a, a.Handoff(args[0]))
			})
		},
	}
	cmd.Flags().DurationVar(&timeout, "timeout", 0, "how long to wait (default: no limit)")
	return cmd
}

// result is what became of a task.
type result struct {
	ID          string `json:"id"`
	Status      string `json:"status"`
	From        string `json:"from"`
	ContentType string `json:"content_type"`
	Entry       uint64 `json:"entry"`
	Body        []byte `json:"body"`
}

// awaited writes the result of a handoff once it is there. It comes once: it is kept until it is written.
func awaited(ctx context.Context, cmd *cobra.Command, a *agent, h *handoff.Handoff) error {
	var unkept error
	r, err := a.result(h.ID)
	if errors.Is(err, fs.ErrNotExist) {
		var came *handoff.Result
		if came, err = h.Result(ctx); err == nil {
			r = &result{came.ID, came.Status, came.From, came.ContentType, came.Entry, came.Body}
			unkept = a.keepResult(r)
		}
	}
	if err != nil {
		return err
	}
	out := cli.For(cmd)
	if out.JSON {
		err = out.Value(r)
	} else {
		err = out.Bytes(r.Body)
	}
	switch {
	case err != nil && unkept != nil:
		return fmt.Errorf("the result is lost: %w; nor could it be kept: %w", err, unkept)
	case err != nil:
		return fmt.Errorf("the result could not be written: %w; it is kept, and \"handoff await %s\" writes it", err, r.ID)
	}
	if err := a.dropResult(r.ID); err != nil {
		return err
	}
	if r.Status == wire.StatusFailed {
		return fmt.Errorf("%s could not do the task; what it wrote is the output", a.short(r.From))
	}
	return nil
}

// maxInput is the most that is read of a file, in bytes. What is more than the governor takes, it refuses by itself.
const maxInput = wire.MaxBody + 1

// readInput reads a file, or standard input for "-", as long as ctx lets it.
func readInput(ctx context.Context, file string) ([]byte, error) {
	type input struct {
		bytes []byte
		err   error
	}
	read, in := make(chan input, 1), os.Stdin
	go func() { // no read of a terminal or a pipe ends by itself
		if file != "-" {
			f, err := os.Open(file)
			if err != nil {
				read <- input{nil, err}
				return
			}
			defer f.Close()
			in = f
		}
		all, err := io.ReadAll(io.LimitReader(in, maxInput))
		read <- input{all, err}
	}()
	select {
	case in := <-read:
		return in.bytes, in.err
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}
