package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/handoff-governor/handoff-governor/cmd/internal/cli"
	"github.com/handoff-governor/handoff-governor/handoff"
	"github.com/handoff-governor/handoff-governor/handoff/aat"
	"github.com/handoff-governor/handoff-governor/handoff/wire"
)

const (
	maxListed = 200
	claimWait = 30 * time.Second
)

func inboxCommand() *cobra.Command {
	var claim bool
	var wait time.Duration
	var file string
	cmd := &cobra.Command{
		Use:   "inbox",
		Short: "List what lies in the inbox, or claim the next task",
		Long: `List what lies in the inbox, up to 200 messages: tasks that can be claimed, and results and verdicts that nobody has
waited for yet ("handoff await"). Messages that another command has just looked at come back within half a minute.

With --claim, claim the next task. Its bytes go to standard output, and what is known of it to standard error; with
--out FILE the bytes go to that file, and the ID alone to standard output. A claimed task is yours for 30 seconds, and
for 30 more after each command that names it. Where no task comes in time, it ends with 1; --wait 0s looks once.`,
		Example: `  handoff inbox
  ID=$(handoff inbox --claim --wait 5m --out task.md)`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if wait < 0 {
				return cli.Usagef("--wait cannot be negative")
			}
			if file != "" && !claim {
				return cli.Usagef("--out is where the bytes of a task go that is claimed: add --claim")
			}
			if !claim {
				return as(cmd, limit{wait + answerWithin, soon.late}, func(ctx context.Context, a *agent) error {
					return listInbox(ctx, cmd, a, wait)
				})
			}
			if !cmd.Flags().Changed("wait") {
				wait = claimWait
			}
			if err := writable(file); err != nil {
				return err
			}
			return as(cmd, limit{}, func(ctx context.Context, a *agent) error { return claimNext(ctx, cmd, a, wait, file) })
		},
	}
	cmd.Flags().BoolVar(&claim, "claim", false, "claim the next task")
	cmd.Flags().DurationVar(&wait, "wait", 0, "how long to wait for something to come (default: 30s with --claim, else not at all)")
	cmd.Flags().StringVar(&file, "out", "", "file for the bytes of the claimed task")
	return cmd
}

func listInbox(ctx context.Context, cmd *cobra.Command, a *agent, wait time.Duration) error {
	list, err := a.Peek(ctx, maxListed, wait)
	if err != nil {
		return err
	}
	mine, err := a.tasks()
	if err != nil {
		return err
	}
	out := cli.For(cmd)
	type line struct {
		Kind        string        `json:"kind"`
		ID          string        `json:"id"`
		Session     string        `json:"session,omitempty"`
		From        string        `json:"from,omitempty"`
		ContentType string        `json:"content_type,omitempty"`
		Status      string        `json:"status,omitempty"`
		Verdict     *wire.Verdict `json:"verdict,omitempty"`
		Size        int           `json:"size,omitempty"`
		Entry       *uint64       `json:"entry,omitempty"`
		Claimed     bool          `json:"claimed,omitempty"` // by an earlier command
	}
	lines, rows := []line{}, [][]string{}
	for _, w := range list {
		l := line{w.Kind, w.ID, w.Session, w.From, w.ContentType, w.Status, w.Verdict, w.Size, w.Entry, slices.Contains(mine, w.ID)}
		lines = append(lines, l)
		state := w.Status
		switch {
		case w.Verdict != nil:
			state = w.Verdict.Effect
		case l.Claimed:
			state = "claimed"
		}
		from, entry := "", ""
		if w.From != "" {
			from = a.short(w.From)
		}
		if w.Entry != nil {
			entry = strconv.FormatUint(*w.Entry, 10)
		}
		rows = append(rows, []string{w.Kind, w.ID, state, from, w.ContentType, entry})
	}
	if out.JSON {
		return out.Value(lines)
	}
	return out.Table([]string{"KIND", "ID", "STATE", "FROM", "CONTENT TYPE", "ENTRY"}, rows)
}

// claimNext claims a task that no earlier command has claimed.
func claimNext(ctx context.Context, cmd *cobra.Command, a *agent, wait time.Duration, file string) error {
	mine, err := a.tasks()
	if err != nil {
		return err
	}
	task, err := a.next(ctx, wait, mine)
	if errors.Is(err, context.DeadlineExceeded) {
		if left := a.unfinished(ctx, mine); len(left) > 0 {
			err = fmt.Errorf("%w; claimed before and not done: %s", err, strings.Join(left, ", "))
		}
	}
	if err != nil {
		return err
	}
	if err := a.keepTask(task.ID, task.Session()); err != nil {
		return fmt.Errorf("the task %s could not be kept: %w; mend that and claim again, it comes back within a minute", task.ID, err)
	}
	if err := writeTask(cmd, a, task, file); err != nil {
		return fmt.Errorf("the task %s is claimed, but could not be written: %w; \"handoff task %s\" shows it again", task.ID, err, task.ID)
	}
	return nil
}

// next claims a task that is none of mine: those lie in the inbox until they are done.
func (a *agent) next(ctx context.Context, wait time.Duration, mine []string) (*handoff.Task, error) {
	if wait == 0 {
		return a.nextThere(ctx, mine)
	}
	ctx, cancel := limit{wait, fmt.Sprintf("no task came within %s", wait)}.on(ctx)
	defer cancel()
	for {
		task, err := a.Receive(ctx)
		switch {
		case errors.Is(err, context.DeadlineExceeded):
			return nil, context.Cause(ctx)
		case err != nil || !slices.Contains(mine, task.ID):
			return task, err
		}
	}
}

// nextThere does not wait for one to come.
func (a *agent) nextThere(ctx context.Context, mine []string) (*handoff.Task, error) {
	ctx, cancel := soon.on(ctx)
	defer cancel()
	list, err := a.Peek(ctx, maxListed, 0)
	if err != nil {
		return nil, because(ctx, err)
	}
	for _, w := range list {
		if w.Kind != wire.KindTask || slices.Contains(mine, w.ID) {
			continue
		}
		if task, err := a.Claim(ctx, w.Session, w.ID); !refused(err) {
			return task, because(ctx, err)
		}
	}
	return nil, &lateError{"there is no task to claim now"}
}

// refused tells whether the governor has said no.
func refused(err error) bool {
	_, denied := errors.AsType[*handoff.Denied](err)
	_, refusal := errors.AsType[*wire.Error](err)
	return denied || refusal
}

// unfinished are those of the tasks that are not known to be over. The others are forgotten.
func (a *agent) unfinished(ctx context.Context, ids []string) []string {
	ctx, cancel := soon.on(ctx)
	defer cancel()
	return slices.DeleteFunc(ids, func(id string) bool {
		_, err := a.task(ctx, id)
		return over(err)
	})
}

func taskCommand() *cobra.Command {
	var file string
	cmd := &cobra.Command{
		Use:     "task ID",
		Short:   "Show a task that you claimed again, and keep it for 30 more seconds",
		Example: "  handoff task $ID --out task.md",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := firstError(checkID("ID", args[0]), writable(file)); err != nil {
				return err
			}
			return as(cmd, soon, func(ctx context.Context, a *agent) error {
				task, err := a.task(ctx, args[0])
				if err != nil {
					return err
				}
				return writeTask(cmd, a, task, file)
			})
		},
	}
	cmd.Flags().StringVar(&file, "out", "", "file for the task's bytes")
	return cmd
}

// writeTask writes a task's bytes and, apart from them, what is known of it.
func writeTask(cmd *cobra.Command, a *agent, t *handoff.Task, file string) error {
	if file != "" {
		if err := writeFile(file, t.Body); err != nil {
			return err
		}
	}
	out := cli.For(cmd)
	if out.JSON {
		shown := struct {
			ID          string    `json:"id"`
			Session     string    `json:"session"`
			From        string    `json:"from"`
			Mode        string    `json:"mode"`
			Purpose     string    `json:"purpose,omitempty"`
			Labels      []string  `json:"labels,omitempty"`
			ContentType string    `json:"content_type"`
			Traceparent string    `json:"traceparent,omitempty"`
			Tools       aat.Tools `json:"tools"`
			Expires     time.Time `json:"expires"`
			Entry       uint64    `json:"entry"`
			Chain       []string  `json:"aat_chain"`
			Task        []byte    `json:"task,omitempty"` // without --out
		}{
			t.ID, t.Session(), t.From, t.Mode, t.Purpose, t.Labels, t.ContentType, t.Traceparent, t.Tools(), t.Expires(),
			t.Entry, t.Chain(), t.Body,
		}
		if file != "" {
			shown.Task = nil
		}
		return out.Value(shown)
	}
	err := cli.To(cmd.ErrOrStderr()).Pairs(
		"task", t.ID, "session", t.Session(), "from", a.short(t.From), "mode", t.Mode, "purpose", t.Purpose,
		"labels", strings.Join(t.Labels, ", "), "type", t.ContentType, "tools", strings.Join(cli.ToolTexts(t.Tools()), ", "),
		"until", cli.Time(t.Expires()))
	switch {
	case err != nil:
		return err
	case file != "":
		return out.Line("%s", t.ID)
	}
	return out.Bytes(t.Body)
}

func resultCommand() *cobra.Command {
	var file, contentType string
	var labels []string
	var failed bool
	cmd := &cobra.Command{
		Use:   "result ID --file FILE",
		Short: "Return the result of a task that you claimed",
		Long: `Return the result of a task that you claimed, to whoever waits for it. It ends the task's grant. With --failed, the file
says why the task could not be done.`,
		Example: `  handoff result $ID --file report.md --content-type text/markdown
  echo "no such quarter" | handoff result $ID --file - --failed`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if file == "" {
				return cli.Usagef("name the file with the result with --file; - is standard input")
			}
			if err := firstError(checkID("ID", args[0]), checkContentType(contentType), checkLabels(labels)); err != nil {
				return err
			}
			body, err := readInput(cmd.Context(), file)
			if err != nil {
				return err
			}
			var options []handoff.ResultOption
			if contentType != "" {
				options = append(options, handoff.ContentType(contentType))
			}
			if len(labels) > 0 {
				options = append(options, handoff.Labels(labels...))
			}
			return as(cmd, soon, func(ctx context.Context, a *agent) error {
				task, err := a.task(ctx, args[0])
				if err != nil {
					return err
				}
				status := wire.StatusCompleted
				if failed {
					status = wire.StatusFailed
					err = task.Fail(ctx, string(body), options...)
				} else {
					err = task.Complete(ctx, body, options...)
				}
				if err != nil {
					return err
				}
				if err := a.dropTask(task.ID); err != nil {
					return err
				}
				out := cli.For(cmd)
				if out.JSON {
					return out.Value(map[string]string{"id": task.ID, "status": status})
				}
				return out.Ended(status, "%s", task.ID)
			})
		},
	}
	f := cmd.Flags()
	f.StringVar(&file, "file", "", "file with the result, - for standard input (required)")
	f.StringVar(&contentType, "content-type", "", "media type (default application/octet-stream; with --failed, text/plain)")
	f.StringArrayVar(&labels, "label", nil, "label of the result's data; repeatable")
	f.BoolVar(&failed, "failed", false, "the task could not be done; the file says why")
	return cmd
}
