package governor_test

import (
	"strings"
	"testing"
	"time"

	"github.com/handoff-governor/handoff-governor/cmd/governor/daemon"
	"github.com/handoff-governor/handoff-governor/handoff/entry"
	"github.com/handoff-governor/handoff-governor/handoff/wire"
)

// An operator reads one session page by page, however many others there are: newest first, each entry once.
func TestSessionEntries(t *testing.T) {
	w := newWorld(t)
	a, b, op := w.agent("a"), w.agent("b"), w.operator()
	root, other := a.session(readFiles()), a.session(readFiles())
	const offers = 150
	ids := map[string]bool{root.session: true}
	var last *offering
	for i := range offers {
		last = root.offer(b.name, "work", func(o *offering) { o.handoff.Purpose = strings.Repeat("why ", 1000) })
		ids[last.id] = true
		if i%10 == 0 {
			a.receipt(other.offer(b.name, "else").id)
		}
	}
	a.receipt(last.id)

	var indexes []uint64
	pages := 0
	for q := (wire.OperatorRequest{Session: root.session}); ; pages++ {
		page := op.operate(wire.VerbChainEntries, q)
		if page.Error != nil {
			t.Fatal(page.Error)
		}
		for _, encoded := range page.Entries {
			e, err := entry.Decode(encoded)
			if err != nil {
				t.Fatal(err)
			}
			about := e.Handoff
			if e.Opened != nil {
				about = e.Session
			}
			if e.Session != root.session || !ids[about] {
				t.Fatalf("entry %d is of another session, or was sent before", e.Index)
			}
			delete(ids, about)
			indexes = append(indexes, e.Index)
		}
		if q.From = page.Next; q.From == 0 {
			break
		}
	}
	if len(ids) > 0 || pages == 0 {
		t.Errorf("%d entries are missing, after %d pages", len(ids), pages+1)
	}
	for i := 1; i < len(indexes); i++ {
		if indexes[i] >= indexes[i-1] {
			t.Fatalf("entry %d comes behind entry %d", indexes[i], indexes[i-1])
		}
	}
	for _, q := range []wire.OperatorRequest{
		{Session: "no ID"}, {Session: other.session, From: indexes[0]}, {Session: root.session, From: 1 << 40},
	} {
		if page := op.operate(wire.VerbChainEntries, q); page.Error == nil {
			t.Errorf("%+v is answered with %d entries", q, len(page.Entries))
		}
	}
	if page := op.operate(wire.VerbChainEntries, wire.OperatorRequest{Session: newID(t)}); page.Error != nil || len(page.Entries) > 0 {
		t.Errorf("a session that never was: %+v", page)
	}
}

// Who asks again for what it has brought about, since the answer was lost, is answered the same, and nothing more happens.
// Another operator is told that there is nothing to do.
func TestOperatorAsksAgain(t *testing.T) {
	w := newWorld(t, under(policyOf(t, holdOffers)))
	a, b, op := w.agent("a"), w.agent("b"), w.operator()
	other := &agent{w: w, t: t}
	other.connect("/operator/other")
	root := a.session(readFiles())
	offer := func() (id string, held uint64) {
		t.Helper()
		o := root.offer(b.name, "work")
		return o.id, *a.verdict(o.id).Entry
	}
	waiting, _ := offer()
	claimed, second := offer()
	_, denied := offer()
	yes := wire.OperatorRequest{Index: second, Approve: true}
	ask := func(what, verb string, q wire.OperatorRequest) {
		t.Helper()
		first := op.operate(verb, q)
		size := op.operate(wire.VerbHealth, wire.OperatorRequest{}).Health.Entries
		if again := op.operate(verb, q); first.Error != nil || again.Error != nil || again.Entry != first.Entry || again.Effect != first.Effect {
			t.Errorf("%s: %+v, then %+v", what, first, again)
		}
		if another := other.operate(verb, q); another.Error == nil {
			t.Errorf("%s, by another: %+v", what, another)
		}
		if after := op.operate(wire.VerbHealth, wire.OperatorRequest{}).Health.Entries; after != size {
			t.Errorf("%s: asking again has written %d entries", what, after-size)
		}
	}
	ask("approving", wire.VerbApprove, yes)
	ask("denying", wire.VerbApprove, wire.OperatorRequest{Index: denied})
	if out := op.operate(wire.VerbApprove, wire.OperatorRequest{Index: denied, Approve: true}); out.Error == nil {
		t.Errorf("approving what was denied: %+v", out)
	}
	grant, _ := b.claim(root.session, claimed)
	ask("revoking what is not claimed", wire.VerbRevoke, wire.OperatorRequest{ID: waiting, Reason: "test"})
	ask("revoking a task", wire.VerbRevoke, wire.OperatorRequest{ID: claimed, Reason: "test"})
	if out := op.operate(wire.VerbRevoke, wire.OperatorRequest{ID: grant.leaf().Claims.ID, Reason: "test"}); out.Error != nil {
		t.Errorf("revoking the grant of a revoked task: %+v", out)
	}
	ask("revoking a session", wire.VerbRevoke, wire.OperatorRequest{ID: root.session, Reason: "test"})
	ask("withdrawing", wire.VerbIdentityWithdraw, wire.OperatorRequest{Name: b.name, Reason: "test"})
}

// What is older than it should be kept is deleted while the governor runs, and nothing younger.
func TestOldBodiesAreDeleted(t *testing.T) {
	clock := newClock()
	w := newWorld(t, clock.use, func(cfg *daemon.Config) { cfg.KeepBodies = daemon.MinKeepBodies })
	a, b, op := w.agent("a"), w.agent("b"), w.operator()
	body := func(index uint64) wire.OperatorResponse {
		t.Helper()
		return op.operate(wire.VerbBody, wire.OperatorRequest{Index: index})
	}
	old := a.receipt(a.session(readFiles()).offer(b.name, "carry stones").id)
	if got := body(old); string(got.Body) != "carry stones" {
		t.Fatalf("%+v", got)
	}
	clock.advance(daemon.MinKeepBodies + time.Minute)
	opened := a.session(readFiles(), func(r *wire.OpenRequest) { r.ID = newIDAt(t, time.Now().Add(daemon.MinKeepBodies+time.Minute)) })
	page := op.operate(wire.VerbChainEntries, wire.OperatorRequest{Session: opened.session})
	first, err := entry.Decode(page.Entries[0])
	if err != nil {
		t.Fatal(err)
	}
	young := first.Index
	for end := time.Now().Add(20 * time.Second); body(old).Error == nil; {
		if time.Now().After(end) {
			t.Fatal("it is still there")
		}
		time.Sleep(50 * time.Millisecond)
	}
	if got := body(old); got.Error.Code != wire.CodeHandoffUnknown {
		t.Errorf("%+v", got.Error)
	}
	if got := body(young); got.Error != nil || len(got.Body) == 0 {
		t.Errorf("%+v", got)
	}
}
