package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/spf13/cobra"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"

	"github.com/handoff-governor/handoff-governor/cmd/internal/cli"
	"github.com/handoff-governor/handoff-governor/handoff"
	"github.com/handoff-governor/handoff-governor/handoff/aat"
	"github.com/handoff-governor/handoff-governor/handoff/identity"
	"github.com/handoff-governor/handoff-governor/handoff/wire"
)

const connectWithin = 5 * time.Second

// limit is how long a command may take, and what is said when it has taken longer. The zero limit is none.
type limit struct {
	within time.Duration
	late   string
}

// soon is for what needs no person and no other agent.
var soon = limit{answerWithin, fmt.Sprintf("the governor has not answered within %s; see whether it runs, and try again", answerWithin)}

// lateError ends a context in words for people.
type lateError struct{ text string }

func (e *lateError) Error() string { return e.text }

func (e *lateError) Is(target error) bool { return target == context.DeadlineExceeded }

func (l limit) on(ctx context.Context) (context.Context, context.CancelFunc) {
	if l.within == 0 {
		return context.WithCancel(ctx)
	}
	return context.WithTimeoutCause(ctx, l.within, &lateError{l.late})
}

// because says why ctx ended where err says only that it did.
func because(ctx context.Context, err error) error {
	cause := context.Cause(ctx)
	ended := errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled)
	if cause == nil || !ended || errors.Is(err, cause) {
		return err
	}
	return cause
}

// endpoint is what governor.json in a governor's data directory says.
type endpoint struct {
	TrustDomain string    `json:"trust_domain"`
	URL         string    `json:"url"`
	Issuer      string    `json:"issuer"`
	IssuerKeys  []aat.JWK `json:"issuer_keys"`
}

func readEndpoint(dir string) (endpoint, error) {
	var e endpoint
	raw, err := os.ReadFile(filepath.Join(dir, "governor.json"))
	if errors.Is(err, fs.ErrNotExist) {
		return e, fmt.Errorf("there is no governor's data in %s: name the directory with --data", dir)
	}
	if err != nil {
		return e, err
	}
	if err := json.Unmarshal(raw, &e); err != nil {
		return e, fmt.Errorf("governor.json in %s: %w", dir, err)
	}
	return e, nil
}

// agent is a connection as an agent, with what earlier commands have kept.
type agent struct {
	*handoff.Client
	*state
	source *workloadapi.X509Source
}

// as runs f as the agent that the command line names, within a limit.
func as(cmd *cobra.Command, l limit, f func(context.Context, *agent) error) (err error) {
	address, socket, err := whoAndWhere(cmd)
	if err != nil {
		return err
	}
	connecting := limit{connectWithin, fmt.Sprintf("nothing came within %s; see whether it is served", connectWithin)}
	ctx, cancel := connecting.on(cmd.Context())
	defer cancel()
	source, err := workloadapi.NewX509Source(ctx, workloadapi.WithClientOptions(workloadapi.WithAddr(socket)))
	if err != nil {
		return fmt.Errorf("no identity from %s: %w", socket, because(ctx, err))
	}
	defer func() { err = errors.Join(err, source.Close()) }()
	svid, err := source.GetX509SVID()
	if err != nil {
		return err
	}
	name, err := identity.NameOf(svid.ID)
	if err != nil {
		return err
	}
	dir, err := cmd.Flags().GetString("state")
	if err != nil {
		return err
	}
	kept, err := openState(dir, string(name))
	if err != nil {
		return err
	}
	key, err := handoff.LoadKey(kept.keyFile())
	if err != nil {
		return err
	}
	client, err := handoff.Connect(ctx, handoff.Config{URL: address, Source: source, Key: key})
	if err != nil {
		return fmt.Errorf("%w; see whether the governor runs", because(ctx, err))
	}
	defer func() { err = errors.Join(err, client.Close()) }()
	ctx, stop := l.on(cmd.Context())
	defer stop()
	keys, err := client.Keys(ctx)
	if err == nil {
		err = kept.under(keys)
	}
	if err != nil {
		return because(ctx, err)
	}
	return because(ctx, f(ctx, &agent{client, kept, source}))
}

// whoAndWhere finds the address of the governor and of the Workload API.
func whoAndWhere(cmd *cobra.Command) (address, socket string, err error) {
	who, err := cmd.Flags().GetString("agent")
	if err != nil {
		return "", "", err
	}
	if who == "" {
		address, socket = os.Getenv("HANDOFF_URL"), os.Getenv(workloadapi.SocketEnv)
		if address == "" || socket == "" {
			return "", "", cli.Usagef("say who you are: --agent NAME with --data DIR, or SPIFFE_ENDPOINT_SOCKET and HANDOFF_URL")
		}
		return address, socket, nil
	}
	dir, err := cmd.Flags().GetString("data")
	if err != nil {
		return "", "", err
	}
	if dir, err = filepath.Abs(dir); err != nil {
		return "", "", err
	}
	e, err := readEndpoint(dir)
	if err != nil {
		return "", "", err
	}
	home, err := spiffeid.TrustDomainFromString(e.TrustDomain)
	if err != nil {
		return "", "", fmt.Errorf("governor.json in %s: %w", dir, err)
	}
	name, err := identity.Expand(who, home)
	if err != nil {
		return "", "", cli.Usagef("--agent is %q; name an agent as planner or spiffe://…/agent/planner", who)
	}
	file := filepath.Join(dir, "ca", "sock", socketFile(name))
	conn, err := net.DialTimeout("unix", file, connectWithin)
	if err != nil {
		return "", "", fmt.Errorf("nobody serves the identity of %s in %s: run \"governor up --data %s --agent %s\"",
			who, dir, dir, who)
	}
	conn.Close()
	return e.URL, (&url.URL{Scheme: "unix", Path: file}).String(), nil
}

// socketFile is the name that the governor's development Workload API gives the socket of an agent.
func socketFile(name identity.Name) string {
	_, path, _ := strings.Cut(string(name), "=s")
	if short, ok := strings.CutPrefix(path, "agent=s"); ok && !strings.Contains(short, "=s") {
		return short + ".sock"
	}
	return "=s" + path + ".sock"
}

var errNoGrant = cli.Usagef(
	"name the grant to act under: --session ID of one that you opened, or --handoff ID of a task that you claimed")

// grant finds the grant to act under: a session's root, or that of a claimed task.
func (a *agent) grant(ctx context.Context, session, id string) (*handoff.Grant, error) {
	switch {
	case (session == "") == (id == ""):
		return nil, errNoGrant
	case session != "":
		chain, err := a.session(session)
		if err != nil {
			return nil, err
		}
		return a.Restore(ctx, chain)
	}
	task, err := a.task(ctx, id)
	if err != nil {
		return nil, err
	}
	return task.Grant, nil
}

// task goes on with a task that an earlier command has claimed, and renews its lease. One that is over is forgotten.
func (a *agent) task(ctx context.Context, id string) (*handoff.Task, error) {
	session, err := a.claimed(id)
	if err != nil {
		return nil, err
	}
	task, err := a.Claim(ctx, session, id)
	if over(err) {
		err = errors.Join(err, a.dropTask(id))
	}
	return task, err
}

// over tells whether a claim was refused because nothing is left to do for this process.
func over(err error) bool {
	for _, code := range []wire.Code{
		wire.CodeSuperseded, wire.CodeExpired, wire.CodeRevoked, wire.CodeHandoffUnknown, wire.CodeNotAdmitted,
		wire.CodeParentEnded, wire.CodeParentRevoked, wire.CodeSessionClosed, wire.CodeSessionExpired, wire.CodeSessionUnknown,
	} {
		if errors.Is(err, &wire.Error{Code: code}) {
			return true
		}
	}
	return false
}

// short is a name as people type it.
func (a *agent) short(name string) string { return identity.Name(name).Short(a.ID().TrustDomain()) }
