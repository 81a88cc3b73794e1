package daemon_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/handoff-governor/handoff-governor/cmd/governor/daemon"
	"github.com/handoff-governor/handoff-governor/cmd/governor/daemon/daemontest"
	"github.com/handoff-governor/handoff-governor/handoff"
	"github.com/handoff-governor/handoff-governor/handoff/aat"
)

func connect(t *testing.T, w *daemontest.World, name string) *handoff.Client {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	c, err := handoff.Connect(ctx, handoff.Config{URL: w.Endpoint.URL, Source: w.Source("/agent/" + name)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// pass hands one task from an agent to another, and its result back.
func pass(ctx context.Context, session *handoff.Session, receiver *handoff.Client, text string) error {
	waiting, err := session.Offer(ctx, receiver.Name(), []byte(text), handoff.Tools(aat.Tools{"search": {}}))
	if err != nil {
		return fmt.Errorf("offering: %w", err)
	}
	task, err := receiver.Receive(ctx)
	if err != nil {
		return fmt.Errorf("receiving: %w", err)
	}
	if string(task.Body) != text {
		return fmt.Errorf("received %q, not %q", task.Body, text)
	}
	if err := task.Complete(ctx, []byte("done "+text)); err != nil {
		return fmt.Errorf("returning a result: %w", err)
	}
	result, err := waiting.Result(ctx)
	if err != nil {
		return fmt.Errorf("waiting for the result: %w", err)
	}
	if string(result.Body) != "done "+text {
		return fmt.Errorf("the result is %q", result.Body)
	}
	return nil
}

// A governor serves agents, stops and goes on, in every deployment.
func TestServes(t *testing.T) {
	daemontest.InEach(t, func(t *testing.T, in daemontest.Deployment) {
		w := daemontest.Start(t, in)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		planner, writer := connect(t, w, "planner"), connect(t, w, "writer")
		session, err := planner.OpenSession(ctx, handoff.SessionRequest{Objective: "test", Tools: aat.Tools{"search": {}}, MaxHops: 4})
		if err != nil {
			t.Fatal(err)
		}
		for i := range 20 {
			if err := pass(ctx, session, writer, fmt.Sprint(i)); err != nil {
				t.Fatal(i, err)
			}
		}
		if in == daemontest.Cluster { // where the identities outlive the governor
			w.Stop()
			w.Start()
			if err := pass(ctx, session, writer, "after a restart"); err != nil {
				t.Fatal(err)
			}
		}
	})
}

// Whoever has not the right SVID is no governor.
func TestWorkloadAPIRefuses(t *testing.T) {
	w := daemontest.New(t, daemontest.Cluster)
	other, err := w.Identities.Socket(spiffeid.RequireFromPath(daemontest.TrustDomain, "/agent/planner"))
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		change func(*daemon.Config)
		why    string
	}{
		"an agent":                       {func(c *daemon.Config) { c.WorkloadAPI = other }, "knows this process as spiffe://handoff.local/agent/planner"},
		"no address":                     {func(c *daemon.Config) { c.WorkloadAPI = "/run/spire/agent.sock" }, "must be as in unix:///"},
		"another trust domain":           {func(c *daemon.Config) { c.TrustDomain = "acme.example" }, "is of the trust domain handoff.local"},
		"a cluster, and no Workload API": {func(c *daemon.Config) { c.WorkloadAPI = "" }, "needs a Workload API"},
	} {
		cfg := w.Config
		cfg.Dir = t.TempDir()
		c.change(&cfg)
		d, err := daemon.Start(t.Context(), cfg)
		if err == nil {
			d.Close()
		}
		if err == nil || !strings.Contains(err.Error(), c.why) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
