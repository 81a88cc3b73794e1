package governor_test

import (
	"fmt"
	"strings"
	"testing"
	"text/tabwriter"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/handoff-governor/handoff-governor/cmd/governor/daemon"
	"github.com/handoff-governor/handoff-governor/cmd/governor/daemon/daemontest"
	"github.com/handoff-governor/handoff-governor/handoff/wire"
)

// The attack suite. Agents that were let in, with SVIDs of their own, try to get at what is others' or the governor's. Every
// attack is made in each deployment, against one governor that serves others meanwhile; after each, those others must work
// as before. The tests in attack_test.go and its like are attacks, too, each with a governor of its own.

// attack is one thing that an agent tries.
type attack struct {
	name string
	wins string // what it would get by that
	// try makes the attempt, fails the test where it gets through, and returns what refused it, in a few words.
	try func(*arena) string
}

// arena is where attacks are made.
type arena struct {
	*world
	in      daemontest.Deployment
	n       int    // of the attack
	mallory *agent // who attacks
	planner *agent // who works, and holds root
	writer  *agent // who works for planner
	root    held   // planner's
}

// attacks are all of them, each group from its own file.
func attacks() []attack {
	var all []attack
	for _, group := range [][]attack{wireAttacks} {
		all = append(all, group...)
	}
	return all
}

// leastAttacks is how many the suite has promised to make.
const leastAttacks = 1

func TestAttack(t *testing.T) {
	all := attacks()
	names := map[string]bool{}
	for _, a := range all {
		if names[a.name] || a.wins == "" {
			t.Fatalf("the attack %q is there twice, or would win nothing", a.name)
		}
		names[a.name] = true
	}
	if len(all) < leastAttacks {
		t.Fatalf("there are %d attacks", len(all))
	}
	daemontest.InEach(t, func(t *testing.T, in daemontest.Deployment) {
		w := newWorldIn(t, in, arenaLimits)
		base := &arena{world: w, in: in, planner: w.agent("planner"), writer: w.agent("writer")}
		base.root = base.planner.session(readFiles())
		var table strings.Builder
		rows := tabwriter.NewWriter(&table, 0, 0, 2, ' ', 0)
		fmt.Fprintf(rows, "attack\twould have won\trefused by\n")
		for n, a := range all {
			t.Run(a.name, func(t *testing.T) {
				here := base.at(t, n)
				here.mallory = here.agent(fmt.Sprintf("mallory-%d", n))
				refused := a.try(here)
				if refused == "" {
					t.Fatal("nothing refused it")
				}
				if !t.Failed() {
					fmt.Fprintf(rows, "%s\t%s\t%s\n", a.name, a.wins, refused)
				}
				here.work()
			})
		}
		_ = rows.Flush()
		t.Logf("%d attacks in the deployment %q\n%s", len(all), in, table.String())
	})
}

// arenaLimits are low, so that floods are soon over.
func arenaLimits(c *daemon.Config) {
	c.Limits.Rate = 2000
}

// at is the arena during one attack.
func (a *arena) at(t *testing.T, n int) *arena {
	here := *a
	w := *a.world
	w.t = t
	here.world, here.n = &w, n
	for _, who := range []**agent{&here.planner, &here.writer} {
		same := **who
		same.w, same.t = &w, t
		*who = &same
	}
	here.root.a = here.planner
	return &here
}

// work is what those do whom nothing of this concerns: a task goes to the writer, and its result comes back.
func (a *arena) work() {
	a.t.Helper()
	begun := time.Now()
	o := a.root.offer(a.writer.name, "work")
	a.planner.receipt(o.id)
	a.writer.next(wire.KindTask, o.id)
	h, claimed := a.writer.claim(a.root.session, o.id)
	if string(claimed.Task) != "work" {
		a.t.Errorf("the writer was given %q", claimed.Task)
	}
	a.writer.receipt(h.result("done"))
	if got := a.planner.next(wire.KindResult, o.id); string(got.Data()) != "done" {
		a.t.Errorf("the planner was given %q", got.Data())
	}
	if took := time.Since(begun); took > 5*time.Second {
		a.t.Errorf("others waited %s for what takes milliseconds", took)
	}
}

// forbidden publishes what the server must refuse by its permissions, and returns that it did.
func (a *agent) forbidden(subject string, body []byte) string {
	a.t.Helper()
	errs := make(chan error, 16)
	a.nc.SetErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) {
		select {
		case errs <- err:
		default:
		}
	})
	if err := a.nc.Publish(subject, body); err != nil {
		a.t.Fatal(err)
	}
	select {
	case err := <-errs:
		if strings.Contains(strings.ToLower(err.Error()), "permissions violation") {
			return "NATS: permissions violation"
		}
		a.t.Errorf("publishing on %s: %v", subject, err)
	case <-time.After(10 * time.Second):
		a.t.Errorf("publishing on %s was not refused", subject)
	}
	return ""
}
