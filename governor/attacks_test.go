package governor_test

import (
	"fmt"
	"strings"
	"testing"
	"text/tabwriter"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/handoff-governor/handoff-governor/cmd/governor/daemon"
	"github.com/handoff-governor/handoff-governor/cmd/governor/daemon/daemontest"
	"github.com/handoff-governor/handoff-governor/handoff/aat/jws"
	"github.com/handoff-governor/handoff-governor/handoff/entry"
	"github.com/handoff-governor/handoff-governor/handoff/guard"
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
	in       daemontest.Deployment
	n        int    // of the attack
	mallory  *agent // who attacks
	planner  *agent // who works, and holds root
	writer   *agent // who works for planner
	root     held   // planner's
	operator *agent // who looks at what has come of it

	guard      *guard.Guard // in front of the tools of readFiles
	accomplice *agent       // see bob
	patience   time.Duration
}

// attacks are all of them, each group from its own file.
func attacks() []attack {
	var all []attack
	for _, group := range [][]attack{wireAttacks, credentialAttacks, guardAttacks, floodAttacks} {
		all = append(all, group...)
	}
	return all
}

// leastAttacks is how many the suite has promised to make.
const leastAttacks = 206

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
		paths := []string{"/guard/tools", "/guard/mallory", "/service/billing", "/agent/mallory", "/agent/mallory-comes", "/agent/mallory-many"}
		for n := range all {
			for _, who := range []string{"mallory", "bob", "employer", "latecomer"} {
				paths = append(paths, fmt.Sprintf("/agent/%s-%d", who, n))
			}
		}
		w.place.Register(paths...)
		base := &arena{world: w, in: in, planner: w.agent("planner"), writer: w.agent("writer"), operator: w.operator(), guard: guarded(t, w)}
		base.root = base.planner.session(readFiles())
		var table strings.Builder
		rows := tabwriter.NewWriter(&table, 0, 0, 2, ' ', 0)
		fmt.Fprintf(rows, "attack\twould have won\trefused by\n")
		for n, a := range all {
			t.Run(a.name, func(t *testing.T) {
				here := base.at(t, n)
				here.patience = 5 * time.Second
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
	c.Limits.Rate, c.Limits.RateBytes = arenaRate, arenaRateBytes
	c.Limits.Sessions, c.Limits.Handoffs = arenaSessions, arenaHandoffs
}

// at is the arena during one attack.
func (a *arena) at(t *testing.T, n int) *arena {
	here := *a
	w := *a.world
	w.t = t
	here.world, here.n = &w, n
	for _, who := range []**agent{&here.planner, &here.writer, &here.operator} {
		same := **who
		same.w, same.t = &w, t
		*who = &same
	}
	here.root.a = here.planner
	return &here
}

// payloadOf is what a token says.
func payloadOf(a *arena, token string) []byte {
	a.t.Helper()
	u, err := jws.Split(token, wire.MaxToken)
	if err != nil {
		a.t.Fatal(err)
	}
	return u.Payload
}

// entriesOfWork is what work adds to the ledger: offered, claimed, finished.
const entriesOfWork = 3

// work is what those do whom nothing of this concerns: a task goes to the writer, and its result comes back. Nothing else
// has come to either.
func (a *arena) work() {
	a.t.Helper()
	begun := time.Now()
	o := a.root.offer(a.writer.name, "work")
	a.planner.receipt(o.id)
	a.only(a.writer, wire.KindTask, o.id)
	h, claimed := a.writer.claim(a.root.session, o.id)
	if string(claimed.Task) != "work" {
		a.t.Errorf("the writer was given %q", claimed.Task)
	}
	a.writer.receipt(h.result("done"))
	if got := a.only(a.planner, wire.KindResult, o.id); string(got.Data()) != "done" {
		a.t.Errorf("the planner was given %q", got.Data())
	}
	if took := time.Since(begun); took > a.patience {
		a.t.Errorf("others waited %s for what takes milliseconds", took)
	}
}

// only takes the next message from an inbox, which must be the one expected.
func (a *arena) only(of *agent, kind, id string) jetstream.Msg {
	a.t.Helper()
	for end := time.Now().Add(60 * time.Second); time.Now().Before(end); {
		m, err := of.inbox.Next(jetstream.FetchMaxWait(time.Second))
		if err != nil {
			continue
		}
		if err := m.Ack(); err != nil {
			a.t.Fatal(err)
		}
		if m.Headers().Get(wire.HeaderKind) == kind && m.Headers().Get(wire.HeaderID) == id {
			return m
		}
		a.t.Errorf("%s was sent a %s about %s: %s", of.name, m.Headers().Get(wire.HeaderKind), m.Headers().Get(wire.HeaderID), m.Data())
	}
	a.t.Fatalf("no %s about %s in the inbox of %s", kind, id, of.name)
	return nil
}

// bob is an agent that does as mallory says, or is her next victim. It is not one of those who work.
func (a *arena) bob() *agent {
	if a.accomplice == nil {
		a.accomplice = a.agent(fmt.Sprintf("bob-%d", a.n))
	}
	return a.accomplice
}

// entries is how many the ledger has.
func (a *arena) entries() uint64 {
	a.t.Helper()
	return a.operator.operate(wire.VerbHealth, wire.OperatorRequest{}).Health.Entries
}

// wrote checks how many entries the ledger has since it had so many; but for counts of what was set aside unread.
func (a *arena) wrote(before uint64, want int) {
	a.t.Helper()
	out := a.operator.operate(wire.VerbChainEntries, wire.OperatorRequest{From: before})
	if out.Error != nil {
		a.t.Fatal(out.Error)
	}
	for _, raw := range out.Entries {
		e, err := entry.Decode(raw)
		if err != nil {
			a.t.Fatal(err)
		}
		if e.Kind != entry.KindQuarantined {
			want--
		}
	}
	if want != 0 {
		a.t.Errorf("the ledger has %d entries too many: %s", -want, out.Entries)
	}
}

// offerRefused makes an offer to bob that must be denied with a code, and which bob cannot claim then.
func (a *arena) offerRefused(h held, code wire.Code, change func(*offering)) string {
	a.t.Helper()
	o := h.offer(a.bob().name, "do this", change)
	var v wire.Verdict
	if err := json.Unmarshal(h.a.next(wire.KindVerdict, "").Data(), &v); err != nil {
		a.t.Fatal(err)
	}
	if v.Effect != wire.EffectDeny || len(v.Reasons) == 0 || v.Reasons[0].Code != code || v.Reasons[0].Message == "" {
		a.t.Fatalf("the verdict is %+v, not a denial with %s", v, code)
	}
	if c := a.bob().tryClaim(h.session, o.id); c.Error == nil || c.Chain != nil || c.Task != nil {
		a.t.Errorf("bob has claimed it: %+v", c)
	}
	return "governor: " + string(v.Reasons[0].Code)
}

// complaints are what the server tells a client of what it may not.
func (a *agent) complaints() <-chan error {
	errs := make(chan error, 16)
	a.nc.SetErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) {
		select {
		case errs <- err:
		default:
		}
	})
	return errs
}

// violation waits for the server to say that something is not permitted.
func (a *agent) violation(what string, errs <-chan error) string {
	a.t.Helper()
	if err := a.nc.Flush(); err != nil {
		a.t.Fatal(err)
	}
	select {
	case err := <-errs:
		if strings.Contains(strings.ToLower(err.Error()), "permissions violation") {
			return "NATS: permissions violation"
		}
		a.t.Errorf("%s: %v", what, err)
	case <-time.After(10 * time.Second):
		a.t.Errorf("%s was not refused", what)
	}
	return ""
}

// forbidden publishes what the server must refuse by its permissions.
func (a *agent) forbidden(subject string, body []byte) string {
	a.t.Helper()
	errs := a.complaints()
	if err := a.nc.Publish(subject, body); err != nil {
		a.t.Fatal(err)
	}
	return a.violation("publishing on "+subject, errs)
}
