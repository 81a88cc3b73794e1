// Pipeline is two agents: a planner that hands a task on, and a writer that works on it with a tool.
//
//	pipeline planner
//	pipeline writer
//
// Each has its identity from the Workload API at SPIFFE_ENDPOINT_SOCKET; HANDOFF_URL is the governor, and TOOLS_URL the tool
// of examples/tool, whose guard is /guard/files in the same trust domain.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"

	"github.com/handoff-governor/handoff-governor/handoff"
	"github.com/handoff-governor/handoff-governor/handoff/aat"
	"github.com/handoff-governor/handoff-governor/handoff/identity"
	"github.com/handoff-governor/handoff-governor/handoff/wire"
)

func main() {
	every := flag.Duration("every", 0, "planner: again and again, with so much time between; 0: once")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	roles := map[string]func(context.Context, *handoff.Client, *workloadapi.X509Source) error{
		"planner": func(ctx context.Context, c *handoff.Client, _ *workloadapi.X509Source) error {
			return plan(ctx, c, *every)
		},
		"writer": write,
	}
	role := roles[flag.Arg(0)]
	if role == nil || flag.NArg() != 1 {
		fmt.Fprintln(os.Stderr, "usage: pipeline [--every 10s] planner|writer")
		os.Exit(2)
	}
	if err := run(ctx, role); err != nil && ctx.Err() == nil {
		fmt.Fprintln(os.Stderr, "pipeline:", err)
		os.Exit(1)
	}
}

// run connects, and does what the role does.
func run(ctx context.Context, role func(context.Context, *handoff.Client, *workloadapi.X509Source) error) error {
	source, err := workloadapi.NewX509Source(ctx)
	if err != nil {
		return err
	}
	defer source.Close()
	client, err := handoff.Connect(ctx, handoff.Config{URL: os.Getenv("HANDOFF_URL"), Source: source})
	if err != nil {
		return err
	}
	return errors.Join(role(ctx, client, source), client.Close())
}

// plan has the writer read a file, as often as it was asked to.
func plan(ctx context.Context, client *handoff.Client, every time.Duration) error {
	for {
		if err := once(ctx, client); err != nil {
			return err
		}
		if every == 0 {
			return nil
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(every):
		}
	}
}

// once opens a session that may read two files, and hands on one of them.
func once(ctx context.Context, client *handoff.Client) (err error) {
	session, err := client.OpenSession(ctx, handoff.SessionRequest{
		Objective: "what the third quarter was like", MaxHops: 1, TTL: 10 * time.Minute,
		Tools: aat.Tools{"fs.read": {"path": aat.OneOf("/q3.txt", "/q4.txt")}},
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, session.Close(context.WithoutCancel(ctx), "done")) }()
	offered, err := session.Offer(ctx, "writer", []byte("/q3.txt"), handoff.Tools(aat.Tools{"fs.read": {"path": aat.Exact("/q3.txt")}}))
	if err != nil {
		return err
	}
	result, err := offered.Result(ctx)
	if err != nil {
		return err
	}
	fmt.Printf("%s by %s: %s\n", result.Status, result.From, result.Body)
	return nil
}

// write reads the file that a task names, through the guard, until the context ends.
func write(ctx context.Context, client *handoff.Client, source *workloadapi.X509Source) error {
	guard, err := spiffeid.FromPath(client.ID().TrustDomain(), "/guard/files")
	if err != nil {
		return err
	}
	tools := tool{url: os.Getenv("TOOLS_URL"), client: &http.Client{Transport: &http.Transport{
		TLSClientConfig: identity.ClientTLS(source, source, identity.OnlyPeer(guard)),
	}}}
	fmt.Println("ready")
	for task, err := range client.Tasks(ctx) {
		if err != nil {
			return err
		}
		text, err := tools.read(ctx, task, string(task.Body))
		if err == nil {
			err = task.Complete(ctx, []byte(strings.ToUpper(strings.TrimSpace(text))))
		} else {
			err = task.Fail(ctx, err.Error())
		}
		if err != nil {
			return err
		}
	}
	return nil
}

type tool struct {
	url    string
	client *http.Client
}

// read calls the tool under the grant of a task. A guard that has just started, or has not heard from the governor, says how
// long it takes until it can know.
func (t tool) read(ctx context.Context, task *handoff.Task, path string) (string, error) {
	answer, err := task.CallHTTP(ctx, t.client, t.url, "fs.read", map[string]string{"path": path})
	if refusal, ok := errors.AsType[*wire.Error](err); ok && refusal.RetryAfter > 0 {
		select {
		case <-ctx.Done():
			return "", err
		case <-time.After(time.Duration(refusal.RetryAfter) * time.Second):
			return t.read(ctx, task, path)
		}
	}
	if err != nil {
		return "", err
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(io.LimitReader(answer.Body, 1<<20))
	if err == nil && answer.StatusCode != http.StatusOK {
		err = fmt.Errorf("the tool answers %s", answer.Status)
	}
	return string(text), err
}
