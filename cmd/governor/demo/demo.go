// Package demo is four agents at real work under the governor: a review of the dependencies of a Go module. Everything
// is real: five processes with identities and connections of their own, the module's own files, licences as classified
// by a library, a report that is true. Three things go wrong on the way, and are stopped.
//
// The agents are plain programs. demo.go starts everything and shows what happens, agents.go is the agents' work,
// trouble.go what goes wrong, tools.go the process that owns the files.
package demo

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/spf13/cobra"

	"github.com/handoff-governor/handoff-governor/cmd/governor/daemon"
	"github.com/handoff-governor/handoff-governor/cmd/internal/cli"
	"github.com/handoff-governor/handoff-governor/governor/ledger"
	"github.com/handoff-governor/handoff-governor/handoff/aat"
	"github.com/handoff-governor/handoff-governor/handoff/entry"
	"github.com/handoff-governor/handoff-governor/policies"
)

// Show writes the chain of a session as a tree, from the entries of a ledger.
type Show func(out io.Writer, session string, entries iter.Seq2[[]byte, error]) error

// Options of the demo.
type Options struct {
	Module string // directory of the module to review
	Data   string // where everything is kept; "" makes a directory for it
	JSON   bool
}

// Outcome is the last line of the demo, with --json.
type Outcome struct {
	OK       bool   `json:"ok"`
	Agents   int    `json:"agents"`
	Handoffs int    `json:"handoffs"` // that were admitted
	Denied   int    `json:"denied"`
	Entries  uint64 `json:"entries"`
	Verified bool   `json:"verified"`
	Report   string `json:"report"`
	Modules  int    `json:"modules"`
}

// Command is `governor demo`.
func Command(show Show) *cobra.Command {
	var o Options
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "Watch four agents review a module's dependencies under the governor",
		Long: `Four agents, each a process with an identity of its own, review the dependencies of a Go module: coordinator hands
to inventory (which may read exactly go.mod and go.sum), to licenses (which may read licence files of the modules
found, and nothing else) and to reporter (which may write exactly one report). Three things go wrong on the way, and
are stopped: an agent asks for more than it holds, an agent goes around the governor, and an agent uses its credential
after its task has ended.`,
		Example: "  governor demo\n  governor demo --module ../my-project --data ./review\n  governor demo --json | tail -n 1",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return Run(cmd.Context(), o, show, cmd.OutOrStdout())
		},
	}
	cmd.Flags().StringVar(&o.Module, "module", ".", "directory of the Go module to review")
	cmd.Flags().StringVar(&o.Data, "data", "", "keep everything in this directory (default: a new one)")
	cmd.Flags().BoolVar(&o.JSON, "json", false, "end with one line of JSON, and print nothing else")
	cmd.AddCommand(agentCommand())
	return cmd
}

// agentCommand runs one of the demo's processes. It is for the demo itself: see start.
func agentCommand() *cobra.Command {
	var c child
	cmd := &cobra.Command{
		Use: "agent ROLE", Hidden: true, Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx, cancel := context.WithCancelCause(cmd.Context())
			defer cancel(nil)
			go func() { // the demo holds the other end: when it goes, so do its agents
				_, _ = io.Copy(io.Discard, cmd.InOrStdin())
				cancel(errors.New("the demo has ended"))
			}()
			c.events = &events{out: cmd.OutOrStdout()}
			return c.run(ctx, args[0])
		},
	}
	cmd.Flags().StringVar(&c.url, "url", "", "")
	cmd.Flags().StringVar(&c.module, "module", "", "")
	cmd.Flags().StringVar(&c.report, "report", "", "")
	cmd.Flags().StringVar(&c.tools, "tools", "", "")
	cmd.Flags().StringVar(&c.trustDomain, "trust-domain", "", "")
	return cmd
}

// Agents of the demo, and the process in front of the files.
const (
	coordinator = "coordinator"
	inventory   = "inventory"
	licenses    = "licenses"
	reporter    = "reporter"
	files       = "files"
)

// Run shows the demo. It fails where anything is not as it should be: a handoff that is lost, an attack that gets
// through, a ledger that does not verify.
//
// Where its output goes away, it ends: its processes, too, and a directory that it has made for itself.
func Run(ctx context.Context, o Options, show Show, out io.Writer) error {
	pipe := make(chan os.Signal, 1) // so that a closed pipe is an error of a write, and not the end of this process alone
	signal.Notify(pipe, syscall.SIGPIPE)
	defer signal.Stop(pipe)
	own := o.Data == ""
	d, err := prepare(&o)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	watched := &watched{Writer: out, lost: cancel}
	s := &stage{out: watched, seen: map[string]bool{}}
	if o.JSON {
		s.out = io.Discard
	}
	outcome, err := d.run(ctx, o, s, show)
	if o.JSON {
		line, encodeErr := json.Marshal(outcome, json.Deterministic(true))
		if encodeErr != nil {
			return encodeErr
		}
		fmt.Fprintf(watched, "%s\n", line)
	}
	if watched.err == nil {
		return err
	}
	if own {
		err = os.RemoveAll(o.Data)
	}
	if err == nil && errors.Is(watched.err, syscall.EPIPE) {
		return cli.ErrShown // whoever closed it knows
	}
	return errors.Join(watched.err, err)
}

// watched is an output that tells when it is lost.
type watched struct {
	io.Writer
	lost context.CancelCauseFunc
	err  error
}

func (w *watched) Write(b []byte) (int, error) {
	if w.err != nil {
		return 0, w.err
	}
	n, err := w.Writer.Write(b)
	if err != nil {
		w.err = err
		w.lost(fmt.Errorf("the output is closed: %w", err))
	}
	return n, err
}

type demo struct {
	module string // its path
	report string
	logs   *os.File
}

// prepare makes the paths absolute and finds the module.
func prepare(o *Options) (*demo, error) {
	var err error
	if o.Module, err = filepath.Abs(o.Module); err != nil {
		return nil, err
	}
	mod, err := readModule(o.Module)
	if err != nil {
		return nil, err
	}
	if o.Data == "" {
		if o.Data, err = cli.TempDir("handoff-demo-", "ca/sock/=sagent=s"+coordinator+".sock"); err != nil {
			return nil, err
		}
	}
	if o.Data, err = filepath.Abs(o.Data); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(o.Data, 0o700); err != nil {
		return nil, err
	}
	logs, err := os.OpenFile(filepath.Join(o.Data, "demo.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	return &demo{module: mod, report: filepath.Join(o.Data, "report.md"), logs: logs}, nil
}

// limit bounds the demo: on a slow machine it takes a few seconds.
const limit = 3 * time.Minute

func (d *demo) run(ctx context.Context, o Options, s *stage, show Show) (outcome Outcome, err error) {
	outcome = Outcome{Agents: 4, Report: d.report}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	defer d.logs.Close()
	bundle, err := demoBundle()
	if err != nil {
		return outcome, err
	}
	s.title("Handoff Governor demo: a review of the dependencies of " + d.module)
	g, err := daemon.Start(ctx, daemon.Config{
		Dir: o.Data, Listen: "127.0.0.1:0", Bundle: bundle,
		Logger: slog.New(slog.NewTextHandler(d.logs, &slog.HandlerOptions{Level: slog.LevelInfo})),
	})
	if err != nil {
		return outcome, err
	}
	endpoint := g.Endpoint
	session, modules, err := d.perform(ctx, o, g, s)
	if closeErr := g.Close(); err == nil {
		err = closeErr
	}
	if err != nil {
		return outcome, fmt.Errorf("%w (the log is %s)", err, d.logs.Name())
	}
	outcome.Modules = modules
	err = d.prove(ctx, o.Data, endpoint, session, s, show, &outcome)
	outcome.OK = err == nil && outcome.Verified
	return outcome, err
}

// perform runs the agents until the coordinator has finished, and everything that goes wrong has been stopped.
func (d *demo) perform(ctx context.Context, o Options, g *daemon.Daemon, s *stage) (session string, modules int, err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	var processes sync.WaitGroup
	defer func() {
		cancel(nil)
		processes.Wait()
	}()
	happened := make(chan event)
	start := func(role, path string, args ...string) error {
		socket, err := g.Socket(path)
		if err != nil {
			return err
		}
		return d.start(ctx, &processes, happened, cancel, role, socket, append(args, "--url", g.Endpoint.URL,
			"--trust-domain", g.Endpoint.TrustDomain))
	}
	if err := start(files, "/guard/files", "--module", o.Module, "--report", d.report); err != nil {
		return "", 0, err
	}
	for {
		select {
		case <-ctx.Done():
			return "", 0, context.Cause(ctx)
		case e := <-happened:
			s.show(e)
			switch e.Kind {
			case eventTools: // the tools are there: now the agents
				for _, role := range []string{inventory, licenses, reporter, coordinator} {
					err := start(role, "/agent/"+role, "--tools", e.Text, "--module", d.module, "--report", d.report)
					if err != nil {
						return "", 0, err
					}
				}
			case eventSession:
				session = e.Text
			case eventDone:
				modules = e.Count
			}
			if modules > 0 && s.stopped() == troubles {
				return session, modules, nil
			}
		}
	}
}

// start runs one process of the demo. Should it end by itself, so does the demo.
func (d *demo) start(
	ctx context.Context, processes *sync.WaitGroup, happened chan<- event, fail context.CancelCauseFunc,
	role, socket string, args []string,
) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, self, append([]string{"demo", "agent", role}, args...)...)
	cmd.Env = append(os.Environ(), "SPIFFE_ENDPOINT_SOCKET="+socket)
	cmd.Stderr = d.logs
	stdin, err := cmd.StdinPipe() // held open until the process is to end: see agentCommand
	if err != nil {
		return err
	}
	cmd.Cancel, cmd.WaitDelay = stdin.Close, 5*time.Second
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	processes.Go(func() {
		lines := bufio.NewScanner(stdout)
		for lines.Scan() {
			var e event
			if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
				fmt.Fprintf(d.logs, "%s: %s\n", role, lines.Text())
				continue
			}
			select {
			case happened <- e:
			case <-ctx.Done():
			}
		}
		if err := cmd.Wait(); ctx.Err() == nil {
			fail(fmt.Errorf("the process %s has ended: %w", role, err))
		}
	})
	return nil
}

// prove reads the ledger as a stranger would: from the file, with the verifier.
func (d *demo) prove(
	ctx context.Context, dir string, e daemon.Endpoint, session string, s *stage, show Show, outcome *Outcome,
) error {
	path := daemon.LedgerPath(dir)
	l, err := ledger.Open(path, ledger.Config{ReadOnly: true})
	if err != nil {
		return err
	}
	defer l.Close()
	trust, err := e.Trust()
	if err != nil {
		return err
	}
	report, err := daemon.Verify(ctx, l, trust)
	if err != nil {
		return fmt.Errorf("the ledger does not verify: %w", err)
	}
	outcome.Verified, outcome.Entries = true, l.Size()
	for raw, err := range l.Session(session) {
		if err != nil {
			return err
		}
		e, err := entry.Decode(raw)
		if err != nil {
			return err
		}
		if e.Kind == entry.KindDecided {
			if e.Decided.Effect == "allow" {
				outcome.Handoffs++
			} else {
				outcome.Denied++
			}
		}
	}
	s.title("What the ledger says")
	if err := show(s.out, session, l.Session(session)); err != nil {
		return err
	}
	fmt.Fprintf(s.out, "\nverified  %d entries, root hash %s\n", outcome.Entries, report.Checkpoint.Root)
	fmt.Fprintf(s.out, "report    %s (%d modules)\nledger    %s\n", d.report, outcome.Modules, path)
	return nil
}

// demoBundle is the default bundle with this team's data: who is who, and what each may hold.
func demoBundle() (*policies.Bundle, error) {
	bundle := policies.Default()
	agent := func(name string) string { return "/agent/" + name }
	roles := func(names ...string) map[string]any { return map[string]any{"roles": names} }
	var err error
	for path, value := range map[string]any{
		"/agents": map[string]any{
			agent(coordinator): roles("lead"),
			agent(inventory):   roles("source-reader"),
			agent(licenses):    roles("license-reader"),
			agent(reporter):    roles("writer"),
		},
		"/roles": map[string]any{
			"lead":           map[string]any{"tools": "*"},
			"source-reader":  map[string]any{"tools": aat.Tools{toolRead: {"path": aat.OneOf("go.mod", "go.sum")}}},
			"license-reader": map[string]any{"tools": aat.Tools{toolLicense: {}}},
			"writer":         map[string]any{"tools": aat.Tools{toolWrite: {}}},
		},
	} {
		if bundle, err = bundle.WithData(path, value); err != nil {
			return nil, err
		}
	}
	return bundle, nil
}

// event is what a process of the demo tells the stage: one line of JSON on its standard output.
type event struct {
	Who   string `json:"who"`
	Kind  string `json:"kind"`
	Text  string `json:"text,omitempty"`
	More  string `json:"more,omitempty"`
	Count int    `json:"count,omitempty"`
}

// Kinds of events.
const (
	eventTools   = "tools"   // the tools listen at Text
	eventSession = "session" // a session with the ID Text was opened
	eventWork    = "work"
	eventStopped = "stopped" // something went wrong and was stopped; More is the governor's explanation
	eventDone    = "done"    // the review is complete; Count is the number of modules
)

// troubles is how many things go wrong.
const troubles = 3

// events writes events, one at a time.
type events struct {
	mu  sync.Mutex
	out io.Writer
}

func (e *events) send(ev event) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	line, err := json.Marshal(ev)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(e.out, "%s\n", line)
	return err
}

// stage shows events to people.
type stage struct {
	out  io.Writer
	seen map[string]bool // the troubles that were stopped
	gap  bool            // an empty line is due before what comes next
}

func (s *stage) title(text string) {
	fmt.Fprintf(s.out, "\n%s\n%s\n\n", text, strings.Repeat("─", len([]rune(text))))
}

func (s *stage) stopped() int { return len(s.seen) }

func (s *stage) show(e event) {
	if s.gap && e.Kind != eventStopped {
		fmt.Fprintln(s.out)
	}
	s.gap = e.Kind == eventStopped
	switch e.Kind {
	case eventTools:
		fmt.Fprintf(s.out, "  %-12s owns the files; its guard listens at %s\n", e.Who, e.Text)
	case eventSession:
		fmt.Fprintf(s.out, "  %-12s opens session %s\n", e.Who, e.Text)
	case eventWork, eventDone:
		fmt.Fprintf(s.out, "  %-12s %s\n", e.Who, e.Text)
	case eventStopped:
		s.seen[e.Text] = true
		fmt.Fprintf(s.out, "\n  ✗ %-10s %s\n    %-10s %s\n", e.Who, e.Text, "stopped:", e.More)
	}
}
