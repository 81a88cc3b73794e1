package governor_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/nats-io/nats.go"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/handoff-governor/handoff-governor/cmd/governor/daemon"
	"github.com/handoff-governor/handoff-governor/cmd/governor/daemon/daemontest"
	"github.com/handoff-governor/handoff-governor/handoff"
	"github.com/handoff-governor/handoff-governor/handoff/aat"
	"github.com/handoff-governor/handoff-governor/handoff/entry"
	"github.com/handoff-governor/handoff-governor/handoff/guard"
	"github.com/handoff-governor/handoff-governor/handoff/identity"
	"github.com/handoff-governor/handoff-governor/handoff/wire"
)

// cutWithin is how long an identity that was withdrawn may stay connected, and its grants pass a guard.
const cutWithin = time.Second

// dial connects as an identity, once.
func (w *world) dial(path string, options ...nats.Option) (*nats.Conn, error) {
	w.t.Helper()
	source := w.place.Source(path)
	server := identity.ServerOf(spiffeid.RequireFromPath(daemontest.TrustDomain, "/governor"))
	conn, err := nats.Connect(w.d.Endpoint.URL, append([]nats.Option{
		nats.Secure(identity.ClientTLS(source, source, server)), nats.TLSHandshakeFirst(), nats.NoReconnect(), nats.Timeout(10 * time.Second),
	}, options...)...)
	if err == nil {
		w.t.Cleanup(conn.Close)
	}
	return conn, err
}

// line is a connection that notes when it was closed.
func (w *world) line(path string) (closed <-chan time.Time) {
	w.t.Helper()
	at := make(chan time.Time, 1)
	if _, err := w.dial(path, nats.ClosedHandler(func(*nats.Conn) { at <- time.Now() })); err != nil {
		w.t.Fatal(err)
	}
	return at
}

// barred checks that an identity cannot connect.
func (w *world) barred(path string) {
	w.t.Helper()
	if _, err := w.dial(path); err == nil {
		w.t.Errorf("%s is withdrawn, and has connected", path)
	}
}

// knock tries to connect as an identity, over and over, also while the governor stops and starts; the function that it
// returns ends that, and fails the test where it has got in.
func (w *world) knock(path string) (end func()) {
	w.t.Helper()
	source := w.place.Source(path)
	svid, err := source.GetX509SVID()
	if err != nil {
		w.t.Fatal(err)
	}
	bundle, err := source.GetX509BundleForTrustDomain(daemontest.TrustDomain)
	if err != nil {
		w.t.Fatal(err)
	}
	server := identity.ServerOf(spiffeid.RequireFromPath(daemontest.TrustDomain, "/governor"))
	url := w.d.Endpoint.URL
	stop := make(chan struct{})
	var knocking sync.WaitGroup
	var tries, got int
	knocking.Go(func() {
		for ; ; tries++ {
			select {
			case <-stop:
				return
			case <-time.After(5 * time.Millisecond): // leaves room for who is let in
			}
			conn, err := nats.Connect(url, nats.Secure(identity.ClientTLS(svid, bundle, server)), nats.TLSHandshakeFirst(),
				nats.NoReconnect(), nats.Timeout(10*time.Second))
			if err == nil {
				got++
				conn.Close()
			}
		}
	})
	return func() {
		w.t.Helper()
		close(stop)
		knocking.Wait()
		if w.t.Logf("%s has knocked %d times", path, tries); got > 0 || tries == 0 {
			w.t.Errorf("%s is withdrawn, and has connected %d of %d times", path, got, tries)
		}
	}
}

const tools = "https://tools.example"

// guard is a real one, with its feed.
func (w *world) guard() *guard.Guard {
	w.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	c, err := handoff.Connect(ctx, handoff.Config{URL: w.d.Endpoint.URL, Source: w.place.Source("/guard/tools"), Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		w.t.Fatal(err)
	}
	keys, err := c.Keys(ctx)
	if err != nil {
		w.t.Fatal(err)
	}
	issuer, err := guard.IssuerOf(keys)
	if err != nil {
		w.t.Fatal(err)
	}
	g, err := guard.New(guard.Config{Audience: []string{tools}, Issuers: []guard.Issuer{issuer}, Skew: time.Second})
	if err != nil {
		w.t.Fatal(err)
	}
	watched := make(chan error, 1)
	go func() { watched <- c.WatchRevocations(ctx, g) }()
	w.t.Cleanup(func() {
		cancel()
		<-watched
		c.Close()
	})
	return g
}

// call calls a tool under a grant.
func (h held) call(g *guard.Guard) error {
	const args = `{"path":"/a"}`
	chain := h.leaf().Tokens()
	p := aat.PoP{
		ID: newID(h.a.t), IssuedAt: time.Now().Unix(), TokenID: h.leaf().Claims.ID, TokenHash: h.leaf().HashString(),
		Tool: "fs.read", Audience: tools, Args: jsontext.Value(args),
	}
	proof, err := p.Sign(h.a.key)
	if err != nil {
		return err
	}
	_, err = g.Check(context.Background(), guard.Presentation{Chain: chain, PoP: proof}, "fs.read", []byte(args), h.a.name)
	return err
}

// calling calls over and over, until the guard refuses: then it tells when that was, and why.
func (h held) calling(g *guard.Guard) (refused <-chan time.Time, why *error) {
	h.a.t.Helper()
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) { // it has just started
		err := h.call(g)
		if err == nil {
			break
		}
		if time.Now().After(deadline) {
			h.a.t.Fatalf("the guard refuses what is granted: %v", err)
		}
	}
	at := make(chan time.Time, 1)
	why = new(error)
	go func() {
		for ; *why == nil; time.Sleep(5 * time.Millisecond) { // a guard remembers so many calls, and no more
			*why = h.call(g)
		}
		at <- time.Now()
	}()
	return at, why
}

// soon checks that something has come, at most cutWithin after a moment.
func soon(t testing.TB, what string, came <-chan time.Time, after time.Time) {
	t.Helper()
	select {
	case at := <-came:
		t.Logf("%s: %s after the answer", what, at.Sub(after))
		if late := at.Sub(after); late > cutWithin {
			t.Errorf("%s: %s after the answer", what, late)
		}
	case <-time.After(10 * time.Second):
		t.Fatalf("%s: not after ten seconds", what)
	}
}

func (a *agent) withdraw(name, reason string) uint64 {
	a.t.Helper()
	out := a.operate(wire.VerbIdentityWithdraw, wire.OperatorRequest{Name: name, Reason: reason})
	if out.Error != nil || out.Effect != wire.EffectWithdrawn {
		a.t.Fatalf("withdrawing %s: %+v", name, out)
	}
	return out.Entry
}

func (a *agent) restore(name string) uint64 {
	a.t.Helper()
	out := a.operate(wire.VerbIdentityRestore, wire.OperatorRequest{Name: name})
	if out.Error != nil || out.Effect != wire.EffectRestored {
		a.t.Fatalf("restoring %s: %+v", name, out)
	}
	return out.Entry
}

func (a *agent) withdrawn() (names []string) {
	a.t.Helper()
	for _, i := range a.operate(wire.VerbIdentityList, wire.OperatorRequest{}).Identities {
		names = append(names, i.Name)
	}
	return names
}

// A withdrawn agent is cut off within a second though its SVID is valid, in every deployment: its connections, the calls it
// makes, all that it holds and that was handed on from it. So it stays, over a restart, until it is restored; and then it
// has nothing of what it had.
func TestWithdrawnIdentityIsCutOff(t *testing.T) {
	daemontest.InEach(t, func(t *testing.T, in daemontest.Deployment) {
		w := newWorldIn(t, in)
		a, b, c, op := w.agent("a"), w.agent("b"), w.agent("c"), w.operator()
		root, own := a.session(readFiles()), b.session(readFiles())
		ofB := chainOf(t, root, wire.ModeDelegate, b)
		belowB := chainOf(t, ofB, wire.ModeDelegate, c)
		belowOwn := chainOf(t, own, wire.ModeDelegate, c)
		waiting := root.offer(b.name, "not claimed yet")
		a.receipt(waiting.id)
		untouched := chainOf(t, root, wire.ModeDelegate, c)
		g := w.guard()
		closed := w.line("/agent/b")
		refused, why := ofB.calling(g)

		at := op.withdraw(b.name, "its key was published")
		answered := time.Now()
		soon(t, "the connection is closed", closed, answered)
		soon(t, "the guard refuses", refused, answered)
		if e, ok := errors.AsType[*wire.Error](*why); !ok || e.Code != wire.CodeRevoked {
			t.Errorf("the guard refuses with %v", *why)
		}
		w.barred("/agent/b")
		feed := w.feed()
		for what, h := range map[string]held{
			"what it held": ofB, "what it handed on": belowB, "its own session": own, "what it handed on of its own": belowOwn,
		} {
			if !dead(feed, h) {
				t.Errorf("%s still opens every guard", what)
			}
		}
		if dead(feed, untouched) || untouched.call(g) != nil {
			t.Error("a grant of another agent was revoked with it")
		}
		for _, id := range []string{ofB.handoff, waiting.id} {
			if v := a.verdict(id); firstCode(v) != wire.CodeRevoked || !strings.Contains(v.Reasons[0].Message, idOf(t, b.name).String()+" was withdrawn") {
				t.Errorf("who waits for a result is told %+v", v)
			}
		}
		denied := root.offer(b.name, "more work")
		if v := a.verdict(denied.id); firstCode(v) != wire.CodeWithdrawn || v.Entry == nil || v.Effect != wire.EffectDeny {
			t.Errorf("an offer to it: %+v", v)
		}
		lives(t, root, c)
		e := w.entryAt(op, at)
		want := entry.Identity{Name: b.name, Effect: entry.Withdrawn, By: op.name, Reason: "its key was published"}
		if e.Identity == nil || *e.Identity != want {
			t.Errorf("the record says %+v", e.Identity)
		}

		end := w.knock("/agent/b")
		w.stop()
		w.start()
		w.barred("/agent/b")
		end()
		a, c, op = w.agent("a"), w.agent("c"), w.operator()
		list := op.operate(wire.VerbIdentityList, wire.OperatorRequest{})
		if len(list.Identities) != 1 || list.More || list.Identities[0] != (wire.Withdrawn{
			Name: b.name, By: op.name, At: e.Time / 1000, Reason: want.Reason, Entry: at,
		}) {
			t.Errorf("after a restart the list is %+v", list)
		}
		root = a.session(readFiles())
		denied = root.offer(b.name, "more work")
		if v := a.verdict(denied.id); firstCode(v) != wire.CodeWithdrawn {
			t.Errorf("an offer to it after a restart: %+v", v)
		}

		op.restore(b.name)
		if names := op.withdrawn(); len(names) > 0 {
			t.Errorf("withdrawn: %v", names)
		}
		again := w.agent("b")
		lives(t, root, again)
		again.key = b.key // the process that worked before
		for _, h := range []held{ofB, own} {
			h.a = again
			o := h.offer(c.name, "as before")
			if v := again.verdict(o.id); v.Effect != wire.EffectDeny {
				t.Errorf("an offer under what it had: %+v", v)
			}
		}
		if out := again.tryClaim(waiting.handoff.Session, waiting.id); out.Error == nil {
			t.Error("it has claimed what was revoked")
		}
		if !dead(w.feed(), ofB) || !dead(w.feed(), own) {
			t.Error("what it had opens guards again")
		}
		lives(t, again.session(readFiles()), c)
	})
}

// Whoever was withdrawn does nothing from its entry on, though it was asked for before: it is refused at its turn.
func TestWithdrawnBeforeItsTurn(t *testing.T) {
	w := newWorld(t)
	a, b, c, op := w.agent("a"), w.agent("b"), w.agent("c"), w.operator()
	root, own := a.session(readFiles()), b.session(readFiles())
	ofB := chainOf(t, root, wire.ModeDelegate, b)
	waiting := root.offer(b.name, "not claimed yet")
	a.receipt(waiting.id)

	halted := w.d.Governor().Halt()
	request := func(nc *nats.Conn, subject string, body []byte) {
		t.Helper()
		if err := nc.PublishRequest(subject, nats.NewInbox(), body); err != nil {
			t.Fatal(err)
		}
		if err := nc.Flush(); err != nil {
			t.Fatal(err)
		}
	}
	request(op.nc, wire.OperatorSubject(wire.VerbIdentityWithdraw), encode(t, wire.OperatorRequest{Name: b.name}))
	halted.Await(0, 1)
	toB := root.offer(c.name, "before it")
	ofB.offer(c.name, "by what it holds")
	halted.Await(2, 0)
	request(b.nc, wire.ClaimSubject(root.session), encode(t, b.claimRequest(root.session, []string{waiting.id})))
	halted.Await(1, 0)
	ofB.result("done")
	late := root.offer(b.name, "to it")
	halted.Await(2, 0)
	request(b.nc, wire.SubjectSessionOpen, b.prove(b.openRequest(readFiles())))
	request(b.nc, wire.SubjectSessionClose, b.prove(wire.SessionRequest{Session: own.session}))
	halted.Await(0, 2)
	halted.Resume()
	a.receipt(toB.id)
	if v := a.verdict(late.id); firstCode(v) != wire.CodeWithdrawn {
		t.Errorf("an offer to it: %+v", v)
	}
	var after []string
	withdrawn := false
	for i := uint64(0); ; i++ {
		out := op.operate(wire.VerbChainEntries, wire.OperatorRequest{From: i})
		if len(out.Entries) == 0 {
			break
		}
		e, err := entry.Decode(out.Entries[0])
		if err != nil {
			t.Fatal(err)
		}
		if e.Kind == entry.KindIdentity {
			withdrawn = true
		} else if withdrawn && (e.From == b.name || e.Kind == entry.KindClaimed || e.Closed != nil) {
			after = append(after, fmt.Sprintf("%d %s", i, e.Kind))
		}
	}
	if !withdrawn || len(after) > 0 {
		t.Errorf("withdrawn: %v; what it did afterwards: %v", withdrawn, after)
	}
	lives(t, root, c)
}

// An agent that has handed its task on for good, or works for one that did, has that task in its hands all the same.
func TestWithdrawnAfterATransfer(t *testing.T) {
	w := newWorld(t)
	a, b, c, d, op := w.agent("a"), w.agent("b"), w.agent("c"), w.agent("d"), w.operator()
	root := a.session(readFiles())
	given := chainOf(t, chainOf(t, root, wire.ModeDelegate, b), wire.ModeTransfer, c)
	kept := chainOf(t, root, wire.ModeDelegate, d)
	taken := chainOf(t, kept, wire.ModeTransfer, b)
	op.withdraw(b.name, "")
	feed := w.feed()
	if !dead(feed, given) {
		t.Error("what it handed on for good still opens every guard")
	}
	if !dead(feed, taken) {
		t.Error("what it was handed for good still opens every guard")
	}
	if v := a.verdict(kept.handoff); firstCode(v) != wire.CodeRevoked {
		t.Errorf("who waits for the result of what was transferred to it is told %+v", v)
	}
	lives(t, root, c)
}

// Guards and operators can be withdrawn, too. An operator that was withdrawn decides nothing any more.
func TestWithdrawGuardsAndOperators(t *testing.T) {
	w := newWorld(t)
	a, op, other := w.agent("a"), w.operator(), &agent{w: w, t: t}
	root := a.session(readFiles())
	other.connect("/operator/other")
	guardClosed, otherClosed := w.line("/guard/tools"), w.line("/operator/other")
	op.withdraw(daemontest.Name(t, "/guard/tools"), "")
	soon(t, "the guard's connection is closed", guardClosed, time.Now())
	w.barred("/guard/tools")

	halted := w.d.Governor().Halt()
	for i, ask := range []func() (*agent, string, wire.OperatorRequest){
		func() (*agent, string, wire.OperatorRequest) {
			return op, wire.VerbIdentityWithdraw, wire.OperatorRequest{Name: other.name}
		},
		func() (*agent, string, wire.OperatorRequest) {
			return other, wire.VerbRevoke, wire.OperatorRequest{ID: root.session, Reason: "mine"}
		},
		func() (*agent, string, wire.OperatorRequest) {
			return other, wire.VerbSessionClose, wire.OperatorRequest{Session: root.session}
		},
		func() (*agent, string, wire.OperatorRequest) {
			return other, wire.VerbApprove, wire.OperatorRequest{Index: 1, Approve: true}
		},
	} {
		who, verb, q := ask()
		if err := who.nc.PublishRequest(wire.OperatorSubject(verb), nats.NewInbox(), encode(t, q)); err != nil {
			t.Fatal(err)
		}
		halted.Await(0, 1)
		_ = i
	}
	halted.Resume()
	soon(t, "the operator's connection is closed", otherClosed, time.Now())
	w.barred("/operator/other")
	var status wire.SessionStatus
	a.ask(wire.SubjectSessionStatus, a.proveFor(wire.VerbSessionStatus, wire.SessionRequest{Session: root.session}), &status)
	if status.State != "open" {
		t.Errorf("a withdrawn operator has ended a session: %+v", status)
	}
	if out := op.operate(wire.VerbIdentityWithdraw, wire.OperatorRequest{Name: op.name}); code(out) != wire.CodeForbidden {
		t.Errorf("an operator withdraws itself: %+v", out)
	}
	if names := op.withdrawn(); !slices.Equal(names, []string{daemontest.Name(t, "/guard/tools"), other.name}) {
		t.Errorf("withdrawn: %v", names)
	}
	op.restore(other.name)
	op.restore(daemontest.Name(t, "/guard/tools"))
	other.connect("/operator/other")
	if out := other.operate(wire.VerbRevoke, wire.OperatorRequest{ID: root.session, Reason: "mine"}); out.Error != nil {
		t.Errorf("a restored operator: %+v", out.Error)
	}
	w.feed()
}

func code(out wire.OperatorResponse) wire.Code {
	if out.Error == nil {
		return ""
	}
	return out.Error.Code
}

// What cannot be withdrawn, and how many can.
func TestWithdrawRefuses(t *testing.T) {
	w := newWorld(t, func(c *daemon.Config) { c.Limits.Withdrawn = 3 })
	op := w.operator()
	op.withdraw(daemontest.Name(t, "/agent/a"), "")
	foreign, err := identity.NameOf(spiffeid.RequireFromString("spiffe://other.example/agent/a"))
	if err != nil {
		t.Fatal(err)
	}
	op.withdraw(string(foreign), "") // whoever it may be
	before := op.operate(wire.VerbHealth, wire.OperatorRequest{}).Health.Entries
	for _, c := range []struct {
		verb string
		q    wire.OperatorRequest
		want wire.Code
	}{
		{wire.VerbIdentityWithdraw, wire.OperatorRequest{}, wire.CodeMalformed},
		{wire.VerbIdentityWithdraw, wire.OperatorRequest{Name: "planner"}, wire.CodeMalformed},
		{wire.VerbIdentityWithdraw, wire.OperatorRequest{Name: "spiffe://handoff.local/agent/a"}, wire.CodeMalformed},
		{wire.VerbIdentityWithdraw, wire.OperatorRequest{Name: daemontest.Name(t, "/nats/nats-1")}, wire.CodeMalformed},
		{wire.VerbIdentityWithdraw, wire.OperatorRequest{Name: strings.ReplaceAll(string(foreign), "=sagent", "=sguard")}, wire.CodeMalformed},
		{wire.VerbIdentityWithdraw, wire.OperatorRequest{Name: daemontest.Name(t, "/governor")}, wire.CodeForbidden},
		{wire.VerbIdentityWithdraw, wire.OperatorRequest{Name: op.name}, wire.CodeForbidden},
		{wire.VerbIdentityRestore, wire.OperatorRequest{Name: op.name}, wire.CodeForbidden},
		{wire.VerbIdentityWithdraw, wire.OperatorRequest{Name: daemontest.Name(t, "/agent/b"), Reason: strings.Repeat("x", wire.MaxPurpose+1)}, wire.CodeMalformed},
		{wire.VerbIdentityRestore, wire.OperatorRequest{Name: daemontest.Name(t, "/agent/b")}, wire.CodeNotWithdrawn},
		{wire.VerbIdentityRestore, wire.OperatorRequest{Name: "x"}, wire.CodeMalformed},
	} {
		if out := op.operate(c.verb, c.q); code(out) != c.want || out.Entry != 0 {
			t.Errorf("%s %.60q: %+v, want %s", c.verb, c.q.Name, out, c.want)
		}
	}
	if after := op.operate(wire.VerbHealth, wire.OperatorRequest{}).Health.Entries; after != before {
		t.Errorf("what was refused has written %d entries", after-before)
	}
	op.withdraw(daemontest.Name(t, "/agent/c"), "")
	if out := op.operate(wire.VerbIdentityWithdraw, wire.OperatorRequest{Name: daemontest.Name(t, "/agent/d")}); code(out) != wire.CodeWithdrawnLimit {
		t.Errorf("one more than the limit: %+v", out)
	}
	op.restore(daemontest.Name(t, "/agent/a"))
	op.withdraw(daemontest.Name(t, "/agent/d"), "")
}

// The list comes in pages, each of which fits a message.
func TestWithdrawnListInPages(t *testing.T) {
	w := newWorld(t)
	op := w.operator()
	var want []string
	for i := range 60 {
		name := daemontest.Name(t, fmt.Sprintf("/agent/a%02d", i))
		op.withdraw(name, strings.Repeat("\x01", wire.MaxPurpose)) // six bytes each as JSON
		want = append(want, name)
	}
	var got []string
	pages := 0
	for q := (wire.OperatorRequest{}); ; pages++ {
		page := op.operate(wire.VerbIdentityList, q)
		if page.Error != nil {
			t.Fatal(page.Error)
		}
		for _, i := range page.Identities {
			got = append(got, i.Name)
		}
		if !page.More {
			break
		}
		q.Name = got[len(got)-1]
	}
	if !slices.Equal(got, want) || pages == 0 {
		t.Errorf("%d of %d identities, in %d pages", len(got), len(want), pages+1)
	}
}

// Where the servers cannot be told, the answer says so, and they are told as soon as they can be.
func TestWithdrawnAndNotYetCut(t *testing.T) {
	w := newWorld(t)
	a, b, op := w.agent("a"), w.agent("b"), w.operator()
	root := a.session(readFiles())
	closed := w.line("/agent/a")
	var fail atomic.Bool
	fail.Store(true)
	w.d.Governor().OnWithdrawn(func(next func(context.Context, string, bool) error) func(context.Context, string, bool) error {
		return func(ctx context.Context, name string, withdrawn bool) error {
			if fail.Load() {
				return errors.New("the servers are away")
			}
			return next(ctx, name, withdrawn)
		}
	})
	out := op.operate(wire.VerbIdentityWithdraw, wire.OperatorRequest{Name: daemontest.Name(t, "/agent/a")})
	if out.Error != nil || out.Effect != wire.EffectCutting || w.entryAt(op, out.Entry).Identity == nil {
		t.Fatalf("the answer is %+v", out)
	}
	select {
	case <-closed:
		t.Fatal("it was cut off though nobody could be told")
	default:
	}
	// What it asks for meanwhile is refused, whatever it is.
	for subject, body := range map[string][]byte{
		wire.SubjectKeys:                {},
		wire.SubjectSessionOpen:         a.prove(a.openRequest(readFiles())),
		wire.SubjectSessionStatus:       a.proveFor(wire.VerbSessionStatus, wire.SessionRequest{Session: root.session}),
		wire.ClaimSubject(root.session): encode(t, a.claimRequest(root.session, []string{newID(t)})),
	} {
		var answer wire.OperatorResponse // of which every answer has the member error
		if a.ask(subject, body, &answer); answer.Error == nil || answer.Error.Code != wire.CodeWithdrawn {
			t.Errorf("%s is answered with %v", subject, answer.Error)
		}
	}
	o := root.offer(b.name, "work")
	if v := a.verdict(o.id); firstCode(v) != wire.CodeWithdrawn || v.Entry != nil {
		t.Errorf("its offer: %+v", v)
	}
	fail.Store(false)
	select {
	case <-closed:
	case <-time.After(10 * time.Second):
		t.Fatal("it is still connected")
	}
	w.barred("/agent/a")
}
