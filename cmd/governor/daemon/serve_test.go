package daemon_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"

	"github.com/handoff-governor/handoff-governor/cmd/governor/daemon"
	"github.com/handoff-governor/handoff-governor/cmd/governor/daemon/daemontest"
	"github.com/handoff-governor/handoff-governor/handoff"
	"github.com/handoff-governor/handoff-governor/handoff/aat"
	"github.com/handoff-governor/handoff-governor/handoff/identity"
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

// While SVIDs are replaced over and over, of agents, of the governor and of the servers, tasks pass as always: none fails, and
// none waits for a connection to come back.
func TestRotation(t *testing.T) {
	daemontest.InEach(t, func(t *testing.T, in daemontest.Deployment) {
		ttl, lives := 6*time.Second, time.Duration(2)
		if in != daemontest.Embedded && in != daemontest.Cluster { // SPIRE's agent looks for new SVIDs once in some seconds
			ttl, lives = 20*time.Second, 2
		}
		w := daemontest.New(t, in, func(c *daemon.Config) { c.SVIDTTL = ttl })
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
		defer cancel()
		w.RenewEvery(ttl / 6)
		w.Start()
		planner, writer := connect(t, w, "planner"), connect(t, w, "writer")
		session, err := planner.OpenSession(ctx, handoff.SessionRequest{
			Objective: "test", Tools: aat.Tools{"search": {}}, MaxHops: 4, TTL: time.Hour,
		})
		if err != nil {
			t.Fatal(err)
		}
		var slowest time.Duration
		passed := 0
		for end := time.Now().Add(lives * ttl); time.Now().Before(end); passed++ {
			begun := time.Now()
			if err := pass(ctx, session, writer, fmt.Sprint(passed)); err != nil {
				t.Fatalf("handoff %d: %v", passed, err)
			}
			slowest = max(slowest, time.Since(begun))
		}
		t.Logf("%d handoffs in %d lives of an SVID; the slowest took %s", passed, lives, slowest)
		if slowest > longestWait {
			t.Errorf("a handoff took %s: it waited for a connection", slowest)
		}
	})
}

// longestWait is how long a task may take while SVIDs are replaced. A request whose answer is lost is made anew after five
// seconds; a message of an inbox that is lost comes again after thirty, and must never be.
const longestWait = 10 * time.Second

// Who connects with a JWT-SVID, where the server is embedded, is who it says; a token for somebody else is nothing.
func TestJWTSVID(t *testing.T) {
	w := daemontest.Start(t, daemontest.Embedded)
	address, err := w.Socket("/agent/planner")
	if err != nil {
		t.Fatal(err)
	}
	source, err := workloadapi.NewJWTSource(t.Context(), workloadapi.WithClientOptions(workloadapi.WithAddr(address)))
	if err != nil {
		t.Fatal(err)
	}
	defer source.Close()
	dial := func(audience string) (*nats.Conn, error) {
		svid, err := source.FetchJWTSVID(t.Context(), jwtsvid.Params{Audience: audience})
		if err != nil {
			t.Fatal(err)
		}
		bundles := w.Source("/agent/planner")
		config := identity.ClientTLS(bundles, bundles, identity.OnlyPeer(spiffeid.RequireFromPath(daemontest.TrustDomain, "/governor")))
		config.GetClientCertificate = nil
		return nats.Connect(w.Endpoint.URL, nats.Secure(config), nats.TLSHandshakeFirst(), nats.Token(svid.Marshal()))
	}
	conn, err := dial(w.Endpoint.Governor)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := conn.Request("handoff.keys", []byte("{}"), 10*time.Second); err != nil {
		t.Error(err)
	}
	if conn, err := dial("spiffe://handoff.local/other"); err == nil {
		conn.Close()
		t.Error("a token for somebody else was taken")
	}
}
