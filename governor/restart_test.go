package governor_test

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/handoff-governor/handoff-governor/handoff/aat"
	"github.com/handoff-governor/handoff-governor/handoff/wire"
)

// What was promised before a stop is published again after it, even where the streams have lost everything.
func TestRestartPublishesAgain(t *testing.T) {
	w := newWorld(t)
	a, b := w.agent("a"), w.agent("b")
	root := a.session(readFiles())
	waiting := root.offer(b.name, "still to do")
	a.receipt(waiting.id)
	finished := root.offer(b.name, "work")
	a.receipt(finished.id)
	grant, _ := b.claim(root.session, finished.id)
	b.receipt(grant.result("done"))
	denied := root.offer(b.name, "too much", func(o *offering) { o.claims.Tools = aat.Tools{"fs.write": {}} })
	a.receipt(denied.id)

	w.stop()
	if err := os.RemoveAll(filepath.Join(w.cfg.Dir, "streams")); err != nil {
		t.Fatal(err)
	}
	w.start()
	a2, b2 := w.agent("a"), w.agent("b")
	b2.next(wire.KindTask, waiting.id)
	if m := a2.next(wire.KindResult, finished.id); string(m.Data()) != "done" {
		t.Errorf("the result is %q", m.Data())
	}
	if v := a2.verdict(denied.id); v.Effect != wire.EffectDeny {
		t.Errorf("the verdict is %+v", v)
	}
	// The process that worked before still holds its key, and can go on.
	b2.key = b.key
	lives(t, held{a: &agent{w: w, t: t, name: a2.name, key: a.key, nc: a2.nc, js: a2.js, receipts: a2.receipts, passed: a2.passed, inbox: a2.inbox},
		links: root.links, governor: root.governor, session: root.session}, b2)
}

// A ledger whose last entry is a late offer under a session that is long over can be read.
func TestRestartAfterALateOffer(t *testing.T) {
	clock := newClock()
	w := newWorld(t, clock.use)
	a, b := w.agent("a"), w.agent("b")
	root := a.session(readFiles(), func(r *wire.OpenRequest) { r.TTL = 300 })
	var status wire.SessionStatus
	a.ask(wire.SubjectSessionClose, a.prove(wire.SessionRequest{Session: root.session}), &status)
	late := root.offer(b.name, "too late")
	if v := a.verdict(late.id); firstCode(v) != wire.CodeSessionClosed {
		t.Fatalf("the verdict is %+v", v)
	}
	w.stop()
	clock.advance(time.Hour)
	w.start()
	if h := w.operator().operate(wire.VerbHealth, wire.OperatorRequest{}); h.Health == nil || h.Health.Sessions != 0 {
		t.Errorf("the governor says %+v", h)
	}
}

// A subject that is no name sets aside its own message, and nobody else's.
func TestSubjectThatIsNoText(t *testing.T) {
	w := newWorld(t)
	a, b := w.agent("a"), w.agent("b")
	root := a.session(readFiles())
	o := root.offer(b.name, "work", func(o *offering) { o.subject = wire.OfferSubject(root.session, "\xff\xfe") })
	if v := a.verdict(o.id); firstCode(v) != wire.CodeUnknownAgent || v.Entry != nil {
		t.Errorf("the verdict is %+v", v)
	}
	lives(t, root, b)
}

// A bundle that leaves a session's opener less than its root holds ends the session.
func TestRootAboveTheCeiling(t *testing.T) {
	w := newWorld(t)
	a, b := w.agent("a"), w.agent("b")
	root := a.session(readFiles())
	less := policyOf(t, `session := {"effect": "allow", "ceiling": {"fs.list": {}}}

decision := {"effect": "allow"}

result := {"effect": "allow"}`)
	if out := w.operator().operate(wire.VerbBundleActivate, wire.OperatorRequest{Bundle: less.Bytes()}); out.Error != nil {
		t.Fatal(out.Error)
	}
	if !dead(w.feed(), root) {
		t.Error("the root still opens every guard")
	}
	lives(t, a.session(readFiles()), b)
}

// A clock that falls back stops decisions, not the governor: what comes meanwhile waits, and is decided when the clock is
// right again.
func TestClockThatFallsBack(t *testing.T) {
	clock := newClock()
	w := newWorld(t, clock.use)
	a, b := w.agent("a"), w.agent("b")
	clock.advance(2 * time.Minute)
	root := a.session(readFiles())
	o := root.draft(b.name, "work")
	root.seal(o)
	clock.advance(-time.Minute)
	request := a.openRequest(readFiles())
	if out := a.open(request); out.Error == nil || out.Error.Code != wire.CodeUnavailable {
		t.Errorf("a session was opened by a clock that is a minute behind the ledger: %+v", out.Error)
	}
	clock.advance(time.Minute)
	halted := w.d.Governor().Halt()
	clock.advance(-time.Minute)
	a.publishOnly(o)
	halted.Await(1, 0)
	clock.advance(time.Minute) // right again, after the offer was looked at by the wrong one
	halted.Resume()
	a.receipt(o.id)
	grant, _ := b.claim(root.session, o.id)
	b.receipt(grant.result("done"))
}

// What was looked at while the clock was hours ahead is looked at again by the one that is right: it has not expired.
func TestClockThatWasAhead(t *testing.T) {
	clock := newClock()
	w := newWorld(t, clock.use)
	a, b := w.agent("a"), w.agent("b")
	root := a.session(readFiles())
	grant := chainOf(t, root, wire.ModeDelegate, b)
	o := root.draft(b.name, "work")
	root.seal(o)
	halted := w.d.Governor().Halt()
	clock.advance(3 * time.Hour)
	a.publishOnly(o)
	done := grant.result("done")
	halted.Await(2, 0)
	clock.advance(-3 * time.Hour)
	halted.Resume()
	a.receipt(o.id)
	b.claim(root.session, o.id)
	b.receipt(done)
}

// What was out before a stop, or a second before a crash, is not published again.
func TestRestartRepeatsNothing(t *testing.T) {
	w := newWorld(t)
	a, b := w.agent("a"), w.agent("b")
	root := a.session(readFiles())
	grant := chainOf(t, root, wire.ModeDelegate, b)
	b.receipt(grant.result("done"))
	a.next(wire.KindResult, grant.handoff)
	denied := root.offer(b.name, "too much", func(o *offering) { o.claims.Tools = aat.Tools{"fs.write": {}} })
	a.verdict(denied.id)
	b.next(wire.KindTask, grant.handoff)
	waiting := root.offer(b.name, "still to do")
	a.receipt(waiting.id)

	w.heartbeat()
	size := w.operator().operate(wire.VerbHealth, wire.OperatorRequest{}).Health.Entries
	if out, err := w.d.Governor().OutUpTo(); err != nil || out != size {
		t.Errorf("after a crash, what is from entry %d of %d on would be repeated: %v", out, size, err)
	}
	last := root.offer(a.name, "in the second of the stop")
	a.receipt(last.id)
	if err := w.d.Close(); err != nil {
		t.Fatal(err)
	}
	w.start()
	for name, want := range map[string]string{"a": last.id, "b": waiting.id} {
		inbox := w.agent(name).inbox
		m, err := inbox.Next(jetstream.FetchMaxWait(20 * time.Second))
		if err != nil || m.Headers().Get(wire.HeaderID) != want {
			t.Fatalf("%s gets %v first, %v", name, m, err)
		}
		if again, err := inbox.Next(jetstream.FetchMaxWait(time.Second)); err == nil {
			t.Errorf("%s gets again %v", name, again.Headers())
		}
	}
}
