package governor_test

import (
	"crypto/ed25519"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/handoff-governor/handoff-governor/cmd/governor/daemon"
	"github.com/handoff-governor/handoff-governor/governor"
	"github.com/handoff-governor/handoff-governor/governor/ledger"
	"github.com/handoff-governor/handoff-governor/handoff/aat"
	"github.com/handoff-governor/handoff-governor/handoff/entry"
	"github.com/handoff-governor/handoff-governor/handoff/wire"
)

// What guards, senders, operators and the record are told.

// heartbeat waits until the governor has given a sign of life to guards.
func (w *world) heartbeat() {
	w.t.Helper()
	g := &agent{w: w, t: w.t}
	g.connect("/guard/listener")
	beats := make(chan *nats.Msg, 16)
	if _, err := g.nc.ChanSubscribe(wire.SubjectRevoked, beats); err != nil {
		w.t.Fatal(err)
	}
	for range 2 {
		select {
		case <-beats:
		case <-time.After(20 * time.Second):
			w.t.Fatal("no heartbeat")
		}
	}
}

// withoutStreams restarts the daemon as after a loss of power that took the streams along.
func (w *world) withoutStreams() {
	w.t.Helper()
	w.stop()
	if err := os.RemoveAll(filepath.Join(w.cfg.Dir, "streams")); err != nil {
		w.t.Fatal(err)
	}
	w.start()
}

// Everything that ended or was revoked is on the feed, page by page, before and after a restart, and until it has expired.
func TestFeedAfterARestart(t *testing.T) {
	defer governor.PageOf(2)()
	w := newWorld(t)
	a, b, c, d := w.agent("a"), w.agent("b"), w.agent("c"), w.agent("d")
	root, closed := a.session(readFiles()), a.session(readFiles())

	completed := chainOf(t, root, wire.ModeDelegate, b)
	below := chainOf(t, completed, wire.ModeDelegate, c)
	transferred := chainOf(t, root, wire.ModeDelegate, b)
	taken := chainOf(t, transferred, wire.ModeTransfer, c)
	revoked := chainOf(t, root, wire.ModeDelegate, b)
	beneath := chainOf(t, revoked, wire.ModeDelegate, d)
	underClosed := chainOf(t, closed, wire.ModeDelegate, b)
	lives := chainOf(t, root, wire.ModeDelegate, d)

	b.receipt(completed.result("done"))
	op := w.operator()
	if out := op.operate(wire.VerbRevoke, wire.OperatorRequest{ID: revoked.handoff, Reason: "test"}); out.Error != nil {
		t.Fatal(out.Error)
	}
	if out := op.operate(wire.VerbSessionClose, wire.OperatorRequest{Session: closed.session}); out.Error != nil {
		t.Fatal(out.Error)
	}
	check := func(when string) map[string]string {
		t.Helper()
		feed := w.feed()
		for name, h := range map[string]held{"completed": completed, "below a completed one": below, "transferred": transferred,
			"revoked": revoked, "below a revoked one": beneath, "of a closed session": underClosed, "a closed root": closed} {
			if !dead(feed, h) {
				t.Errorf("%s: guards accept a grant that is %s", when, name)
			}
		}
		for name, h := range map[string]held{"live": lives, "what a transfer led to": taken, "an open root": root} {
			if dead(feed, h) {
				t.Errorf("%s: guards refuse %s", when, name)
			}
		}
		return feed
	}
	before := check("before")
	w.heartbeat()
	if diff := cmp.Diff(before, w.feed()); diff != "" {
		t.Errorf("a heartbeat has changed what guards are told:\n%s", diff)
	}
	w.stop()
	w.start()
	after := check("after a restart")
	for hash := range maps.Keys(before) {
		if after[hash] == "" || before[hash] == wire.StateRevoked && after[hash] != wire.StateRevoked {
			t.Errorf("a restart has made %s of what was %s", after[hash], before[hash])
		}
	}
}

// A grant that has ended can still be revoked, and is more than ended then. The record names what was live.
func TestRevokeWhatHasEnded(t *testing.T) {
	w := newWorld(t)
	a, b, c, op := w.agent("a"), w.agent("b"), w.agent("c"), w.operator()
	root := a.session(readFiles())
	revoke := func(h held) []string {
		t.Helper()
		out := op.operate(wire.VerbRevoke, wire.OperatorRequest{ID: h.handoff, Reason: "test"})
		if out.Error != nil {
			t.Fatal(out.Error)
		}
		return w.entryAt(op, out.Entry).Revoked.Grants
	}
	ended := chainOf(t, root, wire.ModeDelegate, b)
	below := chainOf(t, ended, wire.ModeTransfer, c)
	revoke(ended)
	feed := w.feed()
	if state := feed[ended.leaf().HashString()]; state != wire.StateRevoked {
		t.Errorf("the revoked grant is %q for guards", state)
	}
	if !dead(feed, below) {
		t.Error("what is below the revoked grant lives")
	}

	above := chainOf(t, root, wire.ModeDelegate, c)
	ended = chainOf(t, above, wire.ModeDelegate, b)
	below = chainOf(t, ended, wire.ModeTransfer, a)
	want := []string{above.leaf().Claims.ID, below.leaf().Claims.ID}
	if got := revoke(above); !slices.Equal(got, want) {
		t.Errorf("the record names %v; live were %v", got, want)
	}
}

// A revocation that is too large for one entry comes in pieces, each of which a verifier accepts.
func TestRevocationInPieces(t *testing.T) {
	defer governor.NameAtOnce(3)()
	w := newWorld(t)
	a, b, c, d := w.agent("a"), w.agent("b"), w.agent("c"), w.agent("d")
	root := a.session(readFiles())
	top := chainOf(t, root, wire.ModeDelegate, b)
	all := []held{top}
	for range 3 {
		h := chainOf(t, top, wire.ModeDelegate, c)
		all = append(all, h, chainOf(t, h, wire.ModeDelegate, d))
	}
	gone := chainOf(t, top, wire.ModeDelegate, c)
	more := chainOf(t, gone, wire.ModeTransfer, d)
	op := w.operator()
	out := op.operate(wire.VerbRevoke, wire.OperatorRequest{ID: top.handoff, Reason: "test"})
	if out.Error != nil {
		t.Fatal(out.Error)
	}
	feed := w.feed()
	for _, h := range append(all, gone, more) {
		if !dead(feed, h) {
			t.Errorf("the grant for %s lives", h.handoff)
		}
	}
	named := map[string]int{}
	for index := out.Entry; ; index-- {
		e := w.entryAt(op, index)
		if e.Kind != entry.KindRevoked {
			break
		}
		if len(e.Revoked.Grants) > 4 { // the one it is about, and three
			t.Errorf("entry %d names %d grants", index, len(e.Revoked.Grants))
		}
		for _, id := range e.Revoked.Grants {
			named[id]++
		}
	}
	for _, h := range append(all, more) {
		if n := named[h.leaf().Claims.ID]; n != 1 {
			t.Errorf("the grant for %s is named %d times", h.handoff, n)
		}
	}
} // and the verifier reads the ledger

// Whoever waits for a result is told when the session ends, also where the message got lost with the power.
func TestClosingTellsSenders(t *testing.T) {
	w := newWorld(t)
	a, b := w.agent("a"), w.agent("b")
	root := a.session(readFiles())
	grant := chainOf(t, root, wire.ModeDelegate, b)
	waiting := root.offer(b.name, "work")
	a.receipt(waiting.id)
	if out := w.operator().operate(wire.VerbSessionClose, wire.OperatorRequest{Session: root.session, Reason: "enough"}); out.Error != nil {
		t.Fatal(out.Error)
	}
	told := func(a *agent) {
		t.Helper()
		ids := []string{grant.handoff, waiting.id}
		for len(ids) > 0 {
			v := a.verdict("")
			if firstCode(v) == wire.CodeSessionClosed {
				ids = slices.DeleteFunc(ids, func(id string) bool { return id == v.ID })
			}
		}
	}
	told(a)
	w.withoutStreams()
	told(w.agent("a"))
}

// A hold that got lost with the power is told again; what is long past is not.
func TestWhatIsToldAgainAfterALoss(t *testing.T) {
	clock := newClock()
	w := newWorld(t, clock.use, under(policyOf(t, `session := {"effect": "allow"}

result := {"effect": "allow"}

default decision := {"effect": "allow"}

decision := {"effect": "hold", "reasons": [{"code": "wait", "message": "ask"}]} if "wait" in input.labels`)))
	a, b := w.agent("a"), w.agent("b")
	root := a.session(readFiles())
	old := chainOf(t, root, wire.ModeDelegate, b)
	b.receipt(old.result("long ago"))
	a.next(wire.KindResult, old.handoff)
	clock.advance(8 * time.Minute)
	o := root.offer(b.name, "work", func(o *offering) { o.handoff.Labels = []string{"wait"} })
	a.receipt(o.id)
	w.withoutStreams()
	a2 := w.agent("a")
	m, err := a2.inbox.Next(jetstream.FetchMaxWait(20 * time.Second)) // the oldest entry's would be first
	if err != nil {
		t.Fatal(err)
	}
	if id, kind := m.Headers().Get(wire.HeaderID), m.Headers().Get(wire.HeaderKind); id != o.id || kind != wire.KindVerdict {
		t.Errorf("a %s about %s is told again, before the hold", kind, id)
	}
}

// A denied ID belongs to its sender, too, for ever.
func TestDeniedIDIsUsedUp(t *testing.T) {
	w := newWorld(t)
	a, b := w.agent("a"), w.agent("b")
	root := a.session(readFiles())
	o := root.offer(b.name, "work", func(o *offering) { o.claims.Tools = aat.Tools{"fs.write": {}} })
	a.verdict(o.id)
	other := *o
	other.body = []byte("other")
	a.publish(&other)
	if v := a.verdict(o.id); firstCode(v) != wire.CodeIDConflict {
		t.Errorf("the same ID with another body: %+v", v)
	}
	thief := w.agent("thief")
	thief.publish(o)
	if v := thief.verdict(o.id); firstCode(v) != wire.CodeIDConflict {
		t.Errorf("the same offer from another agent: %+v", v)
	}
}

// A trace goes on where it is well-formed, and nowhere else.
func TestTrace(t *testing.T) {
	w := newWorld(t)
	a, b := w.agent("a"), w.agent("b")
	root := a.session(readFiles())
	const good = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
	for sent, want := range map[string]string{good: good, "00-no-trace-01": "", "\x01": ""} {
		o := root.offer(b.name, "work", func(o *offering) { o.header[wire.HeaderTraceparent] = []string{sent} })
		if got := b.next(wire.KindTask, o.id).Headers().Get(wire.HeaderTraceparent); got != want {
			t.Errorf("%q arrives as %q", sent, got)
		}
	}
}

// The ledger learns once a minute how much was set aside, from whom and why.
func TestQuarantineIsCounted(t *testing.T) {
	clock := newClock()
	w := newWorld(t, clock.use)
	a, b, op := w.agent("a"), w.agent("b"), w.operator()
	root := a.session(readFiles())
	bad := func() {
		o := root.offer(b.name, "work", func(o *offering) { o.header[wire.HeaderSalt] = []string{"short"} })
		a.anyVerdict(t, o.id)
	}
	counted := func() (counts []*entry.Quarantined) {
		for index := range op.operate(wire.VerbHealth, wire.OperatorRequest{}).Health.Entries {
			if e := w.entryAt(op, index); e.Kind == entry.KindQuarantined {
				counts = append(counts, e.Quarantined)
			}
		}
		return counts
	}
	for range 3 {
		bad()
	}
	clock.advance(2 * time.Minute)
	w.heartbeat()
	w.heartbeat()
	total := 0
	for _, q := range counted() {
		if q.Agent != a.name || q.Code != wire.CodeSalt {
			t.Errorf("counted: %+v", q)
		}
		total += q.Count
	}
	if total != 3 {
		t.Errorf("%d messages were counted, and 3 were set aside", total)
	}
	before := len(counted())
	bad()
	w.heartbeat()
	w.heartbeat()
	if after := len(counted()); after != before {
		t.Error("the ledger grew by garbage within a minute")
	}
}

// One line for each offer, without what nobody may read.
func TestOneLogLinePerOffer(t *testing.T) {
	var log logged
	w := newWorld(t, log.useAll)
	a, b := w.agent("a"), w.agent("b")
	root := a.session(readFiles())
	o := root.offer(b.name, "the secret task")
	a.receipt(o.id)
	b.claim(root.session, o.id)
	w.operator().operate(wire.VerbSessionList, wire.OperatorRequest{})
	if lines := log.with(o.id); len(lines) != 1 {
		t.Errorf("the offer has %d lines: %q", len(lines), lines)
	}
	for _, secret := range []string{o.token, "the secret task", wire.EncodeSalt(o.salt)} {
		if lines := log.with(secret); len(lines) > 0 {
			t.Errorf("the log has a secret: %q", lines)
		}
	}
}

// A bundle that a start puts in force judges what is live.
func TestStartUnderAnotherBundle(t *testing.T) {
	w := newWorld(t, under(policyOf(t, allowAll)))
	a, b := w.agent("a"), w.agent("b")
	grant := chainOf(t, a.session(readFiles()), wire.ModeDelegate, b)
	w.stop()
	w.cfg.Bundle = policyOf(t, `session := {"effect": "allow"}

result := {"effect": "allow"}

decision := {"effect": "deny", "reasons": [{"code": "night", "message": "nobody works now"}]}`)
	w.start()
	if !dead(w.feed(), grant) {
		t.Error("a bundle that denies everything is in force, and the grant still opens every guard")
	}
	if v := w.agent("a").verdict(grant.handoff); firstCode(v) != wire.CodeRevoked {
		t.Errorf("the verdict is %+v", v)
	}
}

// What changes while a bundle is looked at is judged by it, too: a session that opens, a label that comes.
func TestActivationSeesWhatCameMeanwhile(t *testing.T) {
	w := newWorld(t, under(policyOf(t, allowAll)))
	a, b, c, op := w.agent("a"), w.agent("b"), w.agent("c"), w.operator()
	root := a.session(readFiles())
	grant := chainOf(t, root, wire.ModeDelegate, b)
	part := chainOf(t, grant, wire.ModeDelegate, c)

	halted := w.d.Governor().Halt()
	opened := make(chan wire.OpenResponse, 1)
	request := c.openRequest(readFiles())
	go func() { opened <- c.open(request) }()
	halted.Await(0, 1)
	part.result("the secret", labelled("secret"))
	halted.Await(1, 1)
	activated := op.activates(policyOf(t, `session := {"effect": "allow"} if input.agent.name != "`+c.name+`"

session := {"effect": "deny"} if input.agent.name == "`+c.name+`"

result := {"effect": "allow"}

default decision := {"effect": "allow"}

decision := {"effect": "deny"} if "secret" in input.labels`))
	halted.Await(1, 2)
	halted.Resume()
	if out := <-activated; out.Error != nil {
		t.Fatal(out.Error)
	}
	<-opened
	var status wire.SessionStatus
	c.ask(wire.SubjectSessionStatus, c.proveFor(wire.VerbSessionStatus, wire.SessionRequest{Session: request.ID}), &status)
	if status.State != "closed" {
		t.Errorf("a session that the bundle in force denies is %q", status.State)
	}
	if feed := w.feed(); !dead(feed, grant) {
		t.Error("a grant with a label that the bundle in force denies still opens every guard")
	}
}

const twoPeople = `session := {"effect": "allow"}

default decision := {"effect": "allow", "ttl": 60}

decision := {"effect": "hold", "reasons": [{"code": "needs_two", "message": "ask two"}]} if {
	"two" in input.labels
	count(input.approvals) < 2
}

default result := {"effect": "allow"}

result := {"effect": "hold", "reasons": [{"code": "needs_two", "message": "ask two"}]} if {
	"secret" in input.labels
	count(input.approvals) < 2
}`

// One person is one, however often it approves; what was approved has the terms of the policy that let it go.
func TestOnePersonApprovesOnce(t *testing.T) {
	w := newWorld(t, under(policyOf(t, twoPeople)))
	a, b, op := w.agent("a"), w.agent("b"), w.operator()
	second := &agent{w: w, t: t}
	second.connect("/operator/second")
	root := a.session(readFiles())
	approve := func(by *agent, index uint64) wire.OperatorResponse {
		return by.operate(wire.VerbApprove, wire.OperatorRequest{Index: index, Approve: true})
	}
	twice := func(of *agent, id string) {
		t.Helper()
		hold := of.verdict(id)
		if hold.Effect != wire.EffectHold {
			t.Fatalf("it is not held: %+v", hold)
		}
		first := approve(op, *hold.Entry)
		if first.Error != nil {
			t.Fatal(first.Error)
		}
		entries := op.operate(wire.VerbHealth, wire.OperatorRequest{}).Health.Entries
		if again := approve(op, *hold.Entry); again.Error == nil || again.Error.Code != wire.CodePolicyHeld {
			t.Errorf("the same person again: %+v", again)
		}
		if now := op.operate(wire.VerbHealth, wire.OperatorRequest{}).Health.Entries; now != entries {
			t.Error("the same person's second approval is on record")
		}
		out := approve(second, first.Entry)
		if out.Error != nil {
			t.Fatal(out.Error)
		}
		e := w.entryAt(op, out.Entry)
		if d := e.Approved.Decided; d.Stage == entry.StageOffer && d.Expires > e.Time/1000+60 {
			t.Errorf("what was approved lives until %d, more than the policy's 60 s after %d", d.Expires, e.Time/1000)
		}
	}
	o := root.offer(b.name, "work", func(o *offering) { o.handoff.Labels = []string{"two"} })
	twice(a, o.id)
	grant, _ := b.claim(root.session, o.id)
	if life := grant.leaf().Claims.ExpiresAt - time.Now().Unix(); life > 60 {
		t.Errorf("the grant lives %d s; the policy gives 60", life)
	}
	grant.result("x", labelled("secret"))
	twice(b, grant.handoff)
	a.next(wire.KindResult, grant.handoff)
}

// A worker whose result waits for a person is told how it stands: when it asks, when the answer is there, and again where
// the streams have lost that.
func TestHeldResultIsTold(t *testing.T) {
	w := newWorld(t, under(policyOf(t, `session := {"effect": "allow"}

decision := {"effect": "allow"}

default result := {"effect": "allow"}

result := {"effect": "hold", "reasons": [{"code": "ask", "message": "ask"}]} if {
	"secret" in input.labels
	count(input.approvals) < 1
}`)))
	a, b, op := w.agent("a"), w.agent("b"), w.operator()
	hold := func() (grant held, sent *natsMsg, jti string, at uint64) {
		t.Helper()
		grant = chainOf(t, a.session(readFiles()), wire.ModeDelegate, b)
		jti = grant.result("done", labelled("secret"), func(_ *wire.ResultToken, m *natsMsg) { sent = m })
		v := b.verdict(grant.handoff)
		if v.Effect != wire.EffectHold || v.Result != jti {
			t.Fatalf("the verdict is %+v", v)
		}
		return grant, sent, jti, *v.Entry
	}
	again := func(sent *natsMsg, jti string) wire.Verdict {
		t.Helper()
		if _, err := b.nc.RequestMsg(sent, 10*time.Second); err != nil {
			t.Fatal(err)
		}
		v := b.verdict(sent.Header.Get(wire.HeaderID))
		if v.Result != jti {
			t.Errorf("the verdict is about %q: %+v", v.Result, v)
		}
		return v
	}

	approved, sent, accepted, at := hold()
	if v := again(sent, accepted); v.Effect != wire.EffectHold || *v.Entry != at || firstCode(v) != "ask" {
		t.Errorf("sent again, it is told %+v", v)
	}
	out := op.operate(wire.VerbApprove, wire.OperatorRequest{Index: at, Approve: true})
	if out.Error != nil {
		t.Fatal(out.Error)
	}
	told := func() {
		t.Helper()
		if v := b.verdict(approved.handoff); v.Effect != wire.EffectAllow || v.Result != accepted || *v.Entry != out.Entry {
			t.Errorf("after the approval it is told %+v", v)
		}
		if m := a.next(wire.KindResult, approved.handoff); string(m.Data()) != "done" {
			t.Errorf("the result is %q", m.Data())
		}
	}
	told()

	// Once the session is over, nobody can approve any more.
	closed, sent, jti, at := hold()
	op.operate(wire.VerbSessionClose, wire.OperatorRequest{Session: closed.session, Reason: "enough"})
	if v := again(sent, jti); v.Effect != wire.EffectDeny || firstCode(v) != wire.CodeSessionClosed {
		t.Errorf("after the end of the session it is told %+v", v)
	}
	if out := op.operate(wire.VerbApprove, wire.OperatorRequest{Index: at, Approve: true}); out.Error == nil {
		t.Error("approved after the end")
	}

	// A token that is not trusted is still named.
	forged, _, _, _ := hold()
	thief := forged
	thief.a = &agent{w: w, t: t, name: b.name, nc: b.nc}
	_, thief.a.key, _ = ed25519.GenerateKey(nil)
	jti = thief.result("done")
	if v := b.verdict(forged.handoff); v.Result != jti || firstCode(v) != wire.CodeToken || v.Entry != nil {
		t.Errorf("a result by another key is told %+v", v)
	}

	w.withoutStreams()
	a, b = w.agent("a"), w.agent("b")
	told()
}

// A worker that sends a denied or held result again, after the session is over and forgotten, gets an answer that ends its
// waiting.
func TestResultsOfForgottenSessions(t *testing.T) {
	clock := newClock()
	w := newWorld(t, clock.use, under(policyOf(t, `session := {"effect": "allow"}

decision := {"effect": "allow"}

result := {"effect": "hold", "reasons": [{"code": "ask", "message": "ask"}]} if "secret" in input.labels

result := {"effect": "deny", "reasons": [{"code": "never", "message": "never"}]} if "red" in input.labels`)))
	a, b, op := w.agent("a"), w.agent("b"), w.operator()
	root := a.session(readFiles(), func(r *wire.OpenRequest) { r.TTL = 300 })
	sent := map[string]*natsMsg{}
	for _, label := range []string{"red", "secret"} {
		grant := chainOf(t, root, wire.ModeDelegate, b)
		b.receipt(grant.result("done", labelled(label), func(_ *wire.ResultToken, m *natsMsg) { sent[label] = m }))
		b.verdict(grant.handoff)
	}
	clock.advance(10 * time.Minute)
	op.awaitForgotten()
	for label, code := range map[string]wire.Code{"red": "never", "secret": wire.CodeHandoffUnknown} {
		if _, err := b.nc.RequestMsg(sent[label], 10*time.Second); err != nil {
			t.Fatal(err)
		}
		if v := b.verdict(sent[label].Header.Get(wire.HeaderID)); v.Effect != wire.EffectDeny || firstCode(v) != code || v.Result == "" {
			t.Errorf("%s: it is told %+v", label, v)
		}
	}
}

// Power takes messages away that somebody still holds. Whoever acknowledges one must not have another removed that got its number.
func TestNumbersAreNotGivenAgain(t *testing.T) {
	w := newWorld(t)
	a, b := w.agent("a"), w.agent("b")
	root := a.session(readFiles())
	old := root.offer(b.name, "held when the power fails")
	a.receipt(old.id)
	held := b.next(wire.KindTask, old.id)
	for range 20 { // more than are published again, so that the next would take its number
		a.receipt(root.offer(a.name, "before").id)
	}
	w.withoutStreams()

	b = w.agent("b")
	again := b.next(wire.KindTask, old.id)
	if first, second := number(t, held), number(t, again); second <= first+20 {
		t.Errorf("number %d was given before, and %d is given now", first, second)
	}

	// Nor where only the newest are gone.
	streams, before := filepath.Join(w.cfg.Dir, "streams"), t.TempDir()
	w.stop()
	if err := os.CopyFS(before, os.DirFS(streams)); err != nil {
		t.Fatal(err)
	}
	w.start()
	a, b = w.agent("a"), w.agent("b")
	root = a.session(readFiles())
	lost := b.next(wire.KindTask, root.offer(b.name, "lost from the inbox").id)
	w.stop()
	if err := os.RemoveAll(streams); err != nil {
		t.Fatal(err)
	}
	if err := os.CopyFS(streams, os.DirFS(before)); err != nil {
		t.Fatal(err)
	}
	w.start()
	a, b = w.agent("a"), w.agent("b")
	last := a.session(readFiles()).offer(b.name, "after")
	a.receipt(last.id)
	if err := b.nc.Publish(lost.Reply(), []byte("+ACK")); err != nil {
		t.Fatal(err)
	}
	if first, second := number(t, lost), number(t, b.next(wire.KindTask, last.id)); second <= first {
		t.Errorf("where some are left, number %d was given before, and %d is given now", first, second)
	}
}

// A record that was restored beside new streams does not know which numbers were given. None of them is given again.
func TestNumbersAfterARestore(t *testing.T) {
	w := newWorld(t)
	a, b := w.agent("a"), w.agent("b")
	root := a.session(readFiles())
	o := root.offer(b.name, "waits")
	a.receipt(o.id)
	held := b.next(wire.KindTask, o.id)
	w.stop()
	backup := t.TempDir()
	l, err := ledger.Open(daemon.LedgerPath(w.cfg.Dir), ledger.Config{ReadOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := daemon.Backup(t.Context(), w.cfg.Dir, backup, l, false, func(uint64) {}); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(l.Close(), os.RemoveAll(filepath.Join(w.cfg.Dir, "streams"))); err != nil {
		t.Fatal(err)
	}
	if _, err := daemon.Restore(t.Context(), backup, w.cfg.Dir, true); err != nil {
		t.Fatal(err)
	}
	w.start()
	a, b = w.agent("a"), w.agent("b")
	again := b.next(wire.KindTask, o.id)
	if err := b.nc.Publish(held.Reply(), []byte("+ACK")); err != nil {
		t.Fatal(err)
	}
	if first, second := number(t, held), number(t, again); second < first+1<<40 {
		t.Errorf("number %d was given before, and %d is given now", first, second)
	}
	a.receipt(a.session(readFiles()).offer(b.name, "goes on").id)
}

// number is that of a message in the stream of its inbox.
func number(t *testing.T, m jetstream.Msg) uint64 {
	t.Helper()
	meta, err := m.Metadata()
	if err != nil {
		t.Fatal(err)
	}
	return meta.Sequence.Stream
}

// What was held when its session was closed was never allowed, and who sends it again must not be receipted as if it were.
func TestReceiptOfWhatIsOver(t *testing.T) {
	w := newWorld(t, under(policyOf(t, `session := {"effect": "allow"}

result := {"effect": "allow"}

decision := {"effect": "hold", "reasons": [{"code": "wait", "message": "ask"}]}`)))
	a, b := w.agent("a"), w.agent("b")
	root := a.session(readFiles())
	o := root.offer(b.name, "work")
	a.verdict(o.id)
	a.closing(root.session)
	a.verdict(o.id)
	a.publish(o)
	if v := a.verdict(o.id); v.Effect != wire.EffectDeny || v.Reasons[len(v.Reasons)-1].Code != wire.CodeSessionClosed {
		t.Errorf("the verdict is %+v", v)
	}
	for _, want := range []string{wire.EffectHold, wire.EffectDeny} {
		if r := <-a.receipts; r.ID != o.id || r.Effect != want {
			t.Errorf("the receipt is %+v, not %s", r, want)
		}
	}
}

// Whoever handed on from a task that another process has taken over, or that is over, is told so when it asks.
func TestWhatFollowsFromATask(t *testing.T) {
	clock := newClock()
	w := newWorld(t, clock.use)
	a, b, c := w.agent("a"), w.agent("b"), w.agent("c")
	root := a.session(readFiles())
	told := func(under held, end func()) wire.Code {
		t.Helper()
		o := under.offer(c.name, "work")
		b.receipt(o.id)
		end()
		b.publish(o)
		v := b.verdict(o.id)
		if len(v.Reasons) == 0 || v.Effect != wire.EffectDeny {
			t.Fatalf("the verdict is %+v", v)
		}
		return v.Reasons[len(v.Reasons)-1].Code
	}
	task := chainOf(t, root, wire.ModeDelegate, b)
	if code := told(task, func() { b.receipt(task.result("done")) }); code != wire.CodeParentEnded {
		t.Errorf("after the result: %s", code)
	}
	task = chainOf(t, root, wire.ModeDelegate, b)
	if code := told(task, func() {
		clock.advance(time.Minute)
		b.process().claim(root.session, task.handoff)
	}); code != wire.CodeParentRevoked {
		t.Errorf("after the take-over: %s", code)
	}
	task = chainOf(t, root, wire.ModeDelegate, b)
	if code := told(task, func() {
		if out := w.operator().operate(wire.VerbRevoke, wire.OperatorRequest{ID: task.handoff, Reason: "wrong"}); out.Error != nil {
			t.Fatal(out.Error)
		}
	}); code != wire.CodeParentRevoked {
		t.Errorf("after the revocation: %s", code)
	}
}
