package governor_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/handoff-governor/handoff-governor/cmd/governor/daemon"
	"github.com/handoff-governor/handoff-governor/governor"
	"github.com/handoff-governor/handoff-governor/handoff/aat"
	"github.com/handoff-governor/handoff-governor/handoff/wire"
)

// logged counts lines of the operator's log.
type logged struct {
	mu    sync.Mutex
	lines []string
}

func (l *logged) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lines = append(l.lines, string(bytes.TrimSpace(b)))
	return len(b), nil
}

func (l *logged) with(text string) (found []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, line := range l.lines {
		if strings.Contains(line, text) {
			found = append(found, line)
		}
	}
	return found
}

func (l *logged) use(c *daemon.Config) {
	c.Logger = slog.New(slog.NewTextHandler(l, &slog.HandlerOptions{Level: slog.LevelWarn}))
}

// useAll hears everything.
func (l *logged) useAll(c *daemon.Config) {
	c.Logger = slog.New(slog.NewTextHandler(l, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

const noSessions = `session := {"effect": "deny", "reasons": [{"code": "night", "message": "nobody works now"}]} if input.ttl == 77

session := {"effect": "allow"} if input.ttl != 77

result := {"effect": "allow"}

decision := {"effect": "allow"}`

// An agent wants everybody's batches to fail, and the state read back from the ledger each time: it asks twice at once
// for a session that policy denies. A denied session's ID is in no state, so the second entry uses it up again.
func TestAttackDeniedSessionTwiceAtOnce(t *testing.T) {
	var log logged
	w := newWorld(t, under(policyOf(t, noSessions)), log.use)
	a, c := w.agent("a"), w.agent("c")
	stop := make(chan struct{})
	var refused []string
	var bystander sync.WaitGroup
	bystander.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			if out := c.open(c.openRequest(readFiles())); out.Error != nil {
				refused = append(refused, out.Error.Error())
			}
		}
	})
	for range 30 {
		request := a.openRequest(readFiles())
		request.TTL = 77
		body := a.prove(request)
		inbox := a.nc.NewRespInbox()
		answers, err := a.nc.SubscribeSync(inbox)
		if err != nil {
			t.Fatal(err)
		}
		for range 4 {
			if err := a.nc.PublishRequest(wire.SubjectSessionOpen, inbox, body); err != nil {
				t.Fatal(err)
			}
		}
		for range 4 {
			if _, err := answers.NextMsg(10 * time.Second); err != nil {
				t.Fatal(err)
			}
		}
		_ = answers.Unsubscribe()
	}
	close(stop)
	bystander.Wait()
	if failed := log.with("nothing of this batch was decided"); len(failed) > 0 {
		t.Errorf("%d batches failed, each with a rebuild of the state, the first: %s", len(failed), failed[0])
	}
	if len(refused) > 0 {
		t.Errorf("%d requests of a bystander were turned down, the first: %s", len(refused), refused[0])
	}
}

// An agent wants the same with one request: it asks for more tools than an entry can hold. The policy denies what it
// cannot read, and the denial cannot be written.
func TestAttackSessionThatCannotBeDenied(t *testing.T) {
	var log logged
	w := newWorld(t, log.use)
	a := w.agent(strings.Repeat("a", 100))
	for range 3 {
		request := a.openRequest(aat.Tools{"fs.read": {"path": aat.Exact("")}})
		room := 2<<20 - len(a.prove(request)) // a NATS message has 2 MiB
		request = a.openRequest(aat.Tools{"fs.read": {"path": aat.Exact(strings.Repeat("x", room))}})
		if out := a.open(request); out.Error == nil || out.Error.Code == wire.CodeUnavailable {
			t.Errorf("the request is no infrastructure trouble, and yet: %v", out.Error)
		} else {
			t.Logf("%v", out.Error)
		}
	}
	if failed := log.with("nothing of this batch was decided"); len(failed) > 0 {
		t.Errorf("%d batches failed, each with a rebuild of the state, the first: %.300s", len(failed), failed[0])
	}
}

// A worker whose receipt was lost sends its result again, after the session is over and forgotten. "The ledger
// de-duplicates, for ever, and answers a repeat with the same receipt."
func TestAttackResultAgainAfterTheSession(t *testing.T) {
	clock := newClock()
	w := newWorld(t, clock.use)
	a, b := w.agent("a"), w.agent("b")
	root := a.session(readFiles(), func(r *wire.OpenRequest) { r.TTL = 300 })
	offered := root.offer(b.name, "work")
	a.receipt(offered.id)
	grant, _ := b.claim(root.session, offered.id)
	var sent *natsMsg
	id := grant.result("done", func(_ *wire.ResultToken, m *natsMsg) { sent = m })
	first := b.receipt(id)
	clock.advance(10 * time.Minute)
	op := w.operator()
	op.awaitForgotten()
	again := func(m *natsMsg) {
		t.Helper()
		if _, err := b.nc.RequestMsg(m, 10*time.Second); err != nil {
			t.Fatal(err)
		}
	}
	// The offer's repeat is answered.
	a.publish(offered)
	a.receipt(offered.id)
	again(sent)
	deadline := time.After(10 * time.Second)
	for {
		select {
		case r := <-b.receipts:
			if r.ID == id && r.Index == first {
				return
			}
		case <-deadline:
			said := b.next(wire.KindVerdict, offered.id).Data()
			t.Fatalf("a receipted result was sent again and got no receipt, but: %s", said)
		}
	}
}

// A worker wants the task above it never to end: its results give the grant that awaits them more labels than a link may
// carry. Labels only grow, so that grant can neither hand on nor return anything any more.
func TestAttackLabelsThatBrick(t *testing.T) {
	w := newWorld(t)
	a, b, c := w.agent("a"), w.agent("b"), w.agent("c")
	root := a.session(readFiles())
	grant := chainOf(t, root, wire.ModeDelegate, b)
	parts := map[string]held{"red": chainOf(t, grant, wire.ModeDelegate, c), "blue": chainOf(t, grant, wire.ModeDelegate, c)}
	for color, part := range parts {
		var labels []string
		for i := range 40 {
			labels = append(labels, fmt.Sprintf("%s%02d", color, i))
		}
		part.result("poison", labelled(labels...))
	}
	refused := c.next(wire.KindVerdict, "").Data() // one of the two is too much
	var v wire.Verdict
	if err := json.Unmarshal(refused, &v); err != nil || firstCode(v) != wire.CodeTooLarge {
		t.Errorf("the verdict is %s", refused)
	}
	id := grant.result("done")
	timeout := time.After(10 * time.Second)
	for {
		select {
		case r := <-b.receipts:
			if r.ID == id {
				return
			}
		case <-timeout:
			var said string
			for {
				m, err := b.inbox.Next(jetstream.FetchMaxWait(time.Second))
				if err != nil {
					break
				}
				_ = m.Ack()
				said = string(m.Data())
			}
			t.Fatalf("b can never finish its task again: %s", said)
		}
	}
}

// A process of the opener's that has not the session's key wants the session closed: the proof of a status request is
// good for closing.
func TestAttackStatusProofCloses(t *testing.T) {
	w := newWorld(t)
	a := w.agent("a")
	root := a.session(readFiles())
	body := a.proveFor(wire.VerbSessionStatus, wire.SessionRequest{Session: root.session})
	var status wire.SessionStatus
	a.ask(wire.SubjectSessionStatus, body, &status)
	if status.State != "open" {
		t.Fatalf("%+v", status)
	}
	a.process().ask(wire.SubjectSessionClose, body, &status)
	if status.Error == nil {
		t.Errorf("the proof of a status request has closed the session: %+v", status)
	}
}

func numbers(n int) (out []int) {
	for i := range n {
		out = append(out, i)
	}
	return out
}

// A claim that is refused must be answered.
func TestAttackClaimAnswerTooLarge(t *testing.T) {
	w := newWorld(t, under(policyOf(t, `session := {"effect": "allow"}

result := {"effect": "allow"}

default decision := {"effect": "allow"}

decision := {"effect": "deny", "reasons": [{"code": "r", "message": concat("", ["`+strings.Repeat("x", 1000)+`", sprintf("%d", [i])])} | some i in [`+strings.Trim(strings.Join(strings.Fields(fmt.Sprint(numbers(60))), ","), "[]")+`]]} if input.stage == "claim"`)))
	a, b := w.agent("a"), w.agent("b")
	root := a.session(readFiles())
	var ids []string
	for range wire.MaxClaimIDs {
		o := root.offer(b.name, "work")
		a.receipt(o.id)
		ids = append(ids, o.id)
	}
	m, err := b.nc.Request(wire.ClaimSubject(root.session), encode(t, b.claimRequest(root.session, ids)), 10*time.Second)
	if err != nil {
		t.Fatalf("64 claims were denied and nobody is told: %v", err)
	}
	var out wire.ClaimResponse
	if err := json.Unmarshal(m.Data, &out); err != nil || len(out.Claims) != len(ids) {
		t.Errorf("%v %+v", err, out.Error)
	}
}

// An agent wants the governor's memory for good: it hands tasks to receivers that do not exist. Each is denied, and leaves
// its name, of up to 4 KB, in the state and the live bucket, long after the session.
func TestAttackMemoryByReceivers(t *testing.T) {
	clock := newClock()
	w := newWorld(t, clock.use)
	a := w.agent("a")
	root := a.session(readFiles(), func(r *wire.OpenRequest) { r.TTL = 300 })
	before := len(w.d.Governor().Dump())
	const many = 300
	var last *offering
	for i := range many {
		to := fmt.Sprintf("nobody%d-%s", i, strings.Repeat("x", 2000))
		last = root.draft(to, "work")
		root.seal(last)
		a.publishOnly(last)
	}
	a.receipt(last.id)
	clock.advance(10 * time.Minute)
	op := w.operator()
	op.awaitForgotten()
	w.stop()
	w.start()
	if grown := len(w.d.Governor().Dump()) - before; grown > many*100 {
		t.Errorf("%d denied offers have left %d bytes of state after their session is forgotten and the governor was restarted", many, grown)
	}
}

// A process wants a credential that no entry has: the commit of its claim fails while the governor is asked to stop. The
// state is not read back then, and a repeat of the claim that waits is answered out of it.
func TestAttackClaimAfterAFailedCommitAtTheEnd(t *testing.T) {
	for round := range 12 {
		w := newLoose(t, t.TempDir(), newKey())
		a, b := w.agent("a"), w.agent("b")
		root := w.session(a)
		o := w.offer(root, b.name)
		appending, fail := make(chan struct{}), make(chan struct{})
		var once sync.Once
		w.with(func() {
			w.faults.append = func(int) error {
				once.Do(func() { close(appending) })
				<-fail
				return errDisk
			}
		})
		body := encode(t, b.claimRequest(root.session, []string{o.id}))
		first := w.request(wire.VerbClaim, root.session, b, body)
		<-appending
		second := w.request(wire.VerbClaim, root.session, b, body)
		time.Sleep(20 * time.Millisecond) // it is queued
		go w.stop()
		time.Sleep(20 * time.Millisecond)
		size := w.ledger.Size()
		close(fail)
		for i, answer := range []<-chan []byte{first, second} {
			var out wire.ClaimResponse
			select {
			case raw := <-answer:
				if err := json.Unmarshal(raw, &out); err != nil {
					t.Fatal(err)
				}
			case <-time.After(5 * time.Second):
				t.Fatal("no answer")
			}
			for _, c := range out.Claims {
				if c.Error == nil {
					t.Fatalf("round %d: answer %d hands out a credential of %d links, entry %d; the ledger has %d entries", round, i, len(c.Chain), c.Entry, size)
				}
			}
		}
		w.stop()
	}
}

// An opener wants to hear of what is not durable: it asks for the session's status while its closing is being written.
func TestAttackStatusBeforeItIsWritten(t *testing.T) {
	w := newLoose(t, t.TempDir(), newKey())
	a := w.agent("a")
	root := w.session(a)
	appending, fail := make(chan struct{}), make(chan struct{})
	var once sync.Once
	w.with(func() {
		w.faults.append = func(int) error {
			once.Do(func() { close(appending) })
			<-fail
			return errDisk
		}
	})
	closed := w.request(wire.VerbSessionClose, "", a, a.prove(wire.SessionRequest{Session: root.session}))
	<-appending
	var status wire.SessionStatus
	select {
	case raw := <-w.request(wire.VerbSessionStatus, "", a, a.proveFor(wire.VerbSessionStatus, wire.SessionRequest{Session: root.session})):
		if err := json.Unmarshal(raw, &status); err != nil {
			t.Fatal(err)
		}
	case <-time.After(time.Second): // waiting for the disk is as good an answer
	}
	size := w.ledger.Size()
	close(fail)
	var answer wire.SessionStatus
	if err := json.Unmarshal(<-closed, &answer); err != nil {
		t.Fatal(err)
	}
	if status.State == "closed" && answer.Error != nil {
		t.Errorf("the status was %q as of entry %d; the ledger has %d entries, and the closing failed: %v", status.State, status.Entry, size, answer.Error)
	}
}

// A governor whose key was rotated, and whose live bucket is lost, must still start: everything under the old key is over.
func TestAttackStartAfterARotation(t *testing.T) {
	dir := t.TempDir()
	old, young := newKey(), newKey()
	w := newLoose(t, dir, old)
	a, b := w.agent("a"), w.agent("b")
	root := w.session(a)
	w.offer(root, b.name)
	var status wire.SessionStatus
	if err := json.Unmarshal(<-w.request(wire.VerbSessionClose, "", a, a.prove(wire.SessionRequest{Session: root.session})), &status); err != nil || status.Error != nil {
		t.Fatal(err, status.Error)
	}
	w.stop()
	newLoose(t, dir, young, old).stop() // the overlap
	newLoose(t, dir, young)
}

const twoPeopleInTime = `session := {"effect": "allow"}

result := {"effect": "allow"}

default decision := {"effect": "allow"}

decision := {"effect": "hold", "reasons": [{"code": "needs_two", "message": "ask alice and bob"}], "ttl": 20} if {
	input.mode == "delegate"
	count(input.approvals) < 2
}`

// A sender wants a ledger that does not verify: the first of two approvals writes later terms down than the state keeps.
func TestAttackTermsOfAnApprovalThatIsNotEnough(t *testing.T) {
	clock := newClock()
	w := newWorld(t, clock.use, under(policyOf(t, twoPeopleInTime)))
	a, b, c, op := w.agent("a"), w.agent("b"), w.agent("c"), w.operator()
	root := a.session(readFiles())
	o := root.offer(b.name, "work")
	hold := a.verdict(o.id)
	clock.advance(18 * time.Second)
	if out := op.operate(wire.VerbApprove, wire.OperatorRequest{Index: *hold.Entry, Approve: true}); out.Error != nil || out.Effect != "held" {
		t.Fatalf("%+v", out)
	}
	next := root.draft(c.name, "all of it")
	next.handoff.Mode = wire.ModeTransfer
	next.header[wire.HeaderVerdict] = []string{"always"}
	root.seal(next)
	clock.advance(4 * time.Second) // by the first terms it is over, by the second it is not
	a.publish(next)
	for {
		v := a.verdict(next.id)
		if v.ID == next.id {
			t.Logf("the transfer: %s %v", v.Effect, v.Reasons)
			return
		}
	}
} // and the verifier reads the ledger

// A process wants a ledger that does not verify: it transfers its task in the moment when what it has delegated is over, and
// not yet recorded as such. The result at the end of the transfer revokes that in the state; a verifier of the ledger does
// not know, and misses it when something above is revoked.
func TestAttackRevokedBesideATransfer(t *testing.T) {
	clock := newClock()
	w := newWorld(t, clock.use)
	a, x, b, c, d, op := w.agent("a"), w.agent("x"), w.agent("b"), w.agent("c"), w.agent("d"), w.operator()
	root := a.session(readFiles())
	above := chainOf(t, root, wire.ModeDelegate, x)
	mine := chainOf(t, above, wire.ModeDelegate, b)
	short := mine.offer(c.name, "quick", func(o *offering) {
		o.claims.ExpiresAt = w.now() + 20
		o.handoff.Deadline = w.now() + 20
	})
	b.receipt(short.id)
	c.claim(root.session, short.id)
	clock.advance(21 * time.Second)
	theirs := chainOf(t, mine, wire.ModeTransfer, d)
	d.receipt(theirs.result("done"))
	if out := op.operate(wire.VerbRevoke, wire.OperatorRequest{ID: above.handoff, Reason: "stolen"}); out.Error != nil {
		t.Fatal(out.Error)
	}
} // and the verifier reads the ledger

// A person says yes, and the policy says no: the worker must be told so, about the result it is about, and also where the
// governor stops in between.
func TestAttackVerdictOfAHeldResult(t *testing.T) {
	w := newWorld(t, under(policyOf(t, `session := {"effect": "allow"}

decision := {"effect": "allow"}

default result := {"effect": "hold", "reasons": [{"code": "secret", "message": "ask alice"}]}

result := {"effect": "deny", "reasons": [{"code": "too_secret", "message": "not even with approval"}]} if count(input.approvals) > 0`)))
	a, b, op := w.agent("a"), w.agent("b"), w.operator()
	root := a.session(readFiles())
	grant := chainOf(t, root, wire.ModeDelegate, b)
	id := grant.result("secret")
	hold := b.verdict(grant.handoff)
	out := op.operate(wire.VerbApprove, wire.OperatorRequest{Index: *hold.Entry, Approve: true})
	if out.Error != nil {
		t.Fatal(out.Error)
	}
	e := w.entryAt(op, out.Entry)
	v := b.verdict(grant.handoff)
	if firstCode(v) != e.Approved.Decided.Reasons[0].Code {
		t.Errorf("the ledger says %+v; the worker is told %+v", e.Approved.Decided.Reasons, v.Reasons)
	}
	if v.Result != id {
		t.Errorf("the verdict is about the result %q, not %q", v.Result, id)
	}
}

// What a person says of a result must not get lost with the power.
func TestAttackVerdictOfAHeldResultLost(t *testing.T) {
	w := newWorld(t, under(policyOf(t, holdSecretResults)))
	a, b, op := w.agent("a"), w.agent("b"), w.operator()
	root := a.session(readFiles())
	grant := chainOf(t, root, wire.ModeDelegate, b)
	grant.result("secret", labelled("secret"))
	hold := b.verdict(grant.handoff)
	if out := op.operate(wire.VerbApprove, wire.OperatorRequest{Index: *hold.Entry, Approve: false}); out.Error != nil {
		t.Fatal(out.Error)
	}
	w.stop()
	if err := os.RemoveAll(filepath.Join(w.cfg.Dir, "streams")); err != nil {
		t.Fatal(err)
	}
	w.start()
	if v := w.agent("b").verdict(grant.handoff); v.Effect != wire.EffectDeny {
		t.Errorf("%+v", v)
	}
}

// An agent wants more time than its claim was given: its processes take the task over from each other, each time for the
// policy's whole ttl. "Long tasks are not renewed: the lifetime is fixed at claim."
func TestAttackLifetimeByTakeOverInTime(t *testing.T) {
	clock := newClock()
	w := newWorld(t, clock.use, under(policyOf(t, `session := {"effect": "allow"}

result := {"effect": "allow"}

default decision := {"effect": "allow"}

decision := {"effect": "allow", "ttl": 40} if input.stage == "claim"`)))
	a, b := w.agent("a"), w.agent("b")
	root := a.session(readFiles())
	grant := chainOf(t, root, wire.ModeDelegate, b)
	first := grant.leaf().Claims.ExpiresAt
	last := first
	for range 5 {
		clock.advance(31 * time.Second)
		got := b.process().tryClaim(root.session, grant.handoff)
		if got.Error != nil {
			break
		}
		last = got.ExpiresAt
	}
	if last > first {
		t.Errorf("the claim's lifetime was 40 s, and take-overs have added %d s", last-first)
	}
}

// A worker wants the stream that all inboxes share full: it sends its accepted result again and again, and each repeat is
// delivered again, whole.
func TestAttackOneResultFillsAllInboxes(t *testing.T) {
	w := newWorld(t)
	a, b := w.agent("a"), w.agent("b")
	root := a.session(readFiles())
	grant := chainOf(t, root, wire.ModeDelegate, b)
	var sent *natsMsg
	id := grant.result(strings.Repeat("x", 1<<20), func(_ *wire.ResultToken, m *natsMsg) { sent = m })
	b.receipt(id)
	const repeats = 100
	for range repeats {
		if _, err := b.nc.RequestMsg(sent, 10*time.Second); err != nil {
			t.Fatal(err)
		}
		b.receipt(id)
	}
	info, err := a.inbox.Info(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	if info.NumPending > 10 {
		t.Errorf("one result, repeated %d times, is in the inbox %d times, %d MiB of the 4 GiB that all inboxes share", repeats, info.NumPending, info.NumPending)
	}
}

// Who waits for a task that was transferred must be told when the transfer is revoked; the one in between cannot do
// anything any more.
func TestAttackRevokedTransferIsSilent(t *testing.T) {
	w := newWorld(t)
	a, b, c, op := w.agent("a"), w.agent("b"), w.agent("c"), w.operator()
	root := a.session(readFiles())
	mine := chainOf(t, root, wire.ModeDelegate, b)
	theirs := chainOf(t, mine, wire.ModeTransfer, c)
	if out := op.operate(wire.VerbRevoke, wire.OperatorRequest{ID: theirs.handoff, Reason: "stolen"}); out.Error != nil {
		t.Fatal(out.Error)
	}
	for until := time.Now().Add(5 * time.Second); time.Now().Before(until); {
		m, err := a.inbox.Next()
		if err != nil {
			break
		}
		_ = m.Ack()
		if m.Headers().Get(wire.HeaderID) == mine.handoff {
			return
		}
	}
	t.Error("the transfer is revoked, nobody can ever give a result, and the one who delegated the task is not told")
}

// An agent wants the governor's memory: it opens sessions, as many and with as large a request as it can.
func TestAttackMemoryBySessions(t *testing.T) {
	w := newLoose(t, t.TempDir(), newKey())
	a, b := w.agent("a"), w.agent("b")
	request := a.openRequest(aat.Tools{"fs.list": {}, "fs.read": {"path": aat.Exact(strings.Repeat("x", wire.MaxRequest))}})
	if out := w.open(a, request); out.Error == nil || out.Error.Code != wire.CodeTooLarge {
		t.Errorf("a request of more than 64 KiB: %+v", out.Error)
	}
	request = a.openRequest(aat.Tools{"fs.list": {}, "fs.read": {"path": aat.Exact(strings.Repeat("x", wire.MaxRequest-2000))}})
	if out := w.open(a, request); out.Error == nil || out.Error.Code != wire.CodeTooLarge {
		t.Errorf("a root of more than 60 KiB: %+v", out.Error)
	}
	first := w.session(a)
	for range looseSessions - 1 {
		w.session(a)
	}
	if out := w.open(a, a.openRequest(readFiles())); out.Error == nil || out.Error.Code != wire.CodeSessionLimit {
		t.Errorf("one session too many: %+v", out.Error)
	}
	w.session(b) // nobody else is limited by that
	var status wire.SessionStatus
	if err := json.Unmarshal(<-w.request(wire.VerbSessionClose, "", a, a.prove(wire.SessionRequest{Session: first.session})), &status); err != nil || status.Error != nil {
		t.Fatal(err, status.Error)
	}
	w.session(a)
}

// A sender wants a ledger that does not verify: the clock is set back while its offer, whose iat is as far ahead as it may
// be, waits for its turn.
func TestAttackTokenFromTheFuture(t *testing.T) {
	clock := newClock()
	w := newWorld(t, clock.use)
	a, b := w.agent("a"), w.agent("b")
	root := a.session(readFiles())
	clock.advance(50 * time.Second)
	halted := w.d.Governor().Halt()
	o := root.offer(b.name, "work", func(o *offering) { o.claims.IssuedAt += 29 })
	halted.Await(1, 0)
	clock.advance(-25 * time.Second)
	halted.Resume()
	w.operator().operate(wire.VerbSessionList, wire.OperatorRequest{}) // behind it
	clock.advance(25 * time.Second)
	a.receipt(o.id)
	b.claim(root.session, o.id)
} // and the verifier reads the ledger

// A sender wants a receiver's inbox full, on a budget of one handoff: it sends the same offer again and again.
func TestAttackOneHandoffFillsAnInbox(t *testing.T) {
	w := newWorld(t)
	a, b := w.agent("a"), w.agent("b")
	root := a.session(readFiles(), func(r *wire.OpenRequest) { r.Budget = &wire.Budget{Handoffs: 1} })
	o := root.offer(b.name, "work")
	index := a.receipt(o.id)
	const repeats = 300
	for range repeats {
		a.publish(o)
	}
	for range repeats {
		if again := a.receipt(o.id); again != index {
			t.Fatalf("the repeat is entry %d, the first %d", again, index)
		}
	}
	info, err := b.inbox.Info(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if info.NumPending != 1 {
		t.Errorf("one handoff was admitted for b, and %d messages wait in its inbox", info.NumPending)
	}
}

// A notice that may have been lost comes again when its offer does, once a minute has passed.
func TestNoticeComesAgain(t *testing.T) {
	clock := newClock()
	w := newWorld(t, clock.use)
	a, b := w.agent("a"), w.agent("b")
	o := a.session(readFiles()).offer(b.name, "work")
	a.receipt(o.id)
	b.next(wire.KindTask, o.id)
	a.publish(o)
	a.receipt(o.id)
	b.quiet(wire.KindTask, o.id)
	clock.advance(time.Minute + time.Second)
	a.publish(o)
	b.next(wire.KindTask, o.id)
}

// A ledger that cannot be read for a while is no verdict, and takes nobody else's batch with it.
func TestAttackReadFaultIsFinal(t *testing.T) {
	w := newLoose(t, t.TempDir(), newKey())
	a, b := w.agent("a"), w.agent("b")
	root := w.session(a)
	o := root.draft(b.name, "too much")
	o.claims.Tools = aat.Tools{"fs.write": {}}
	root.seal(o)
	denied, admitted := make(chan string, 10), make(chan string, 10)
	message := w.message(root, o, denied)
	w.offers <- []wire.Inbound{message}
	<-denied
	w.hears(wire.KindVerdict)

	// Its repeat is answered from the ledger. The streams have brought it twenty times by now.
	message.Deliveries = 20
	fine := root.draft(b.name, "work")
	root.seal(fine)
	w.with(func() { w.faults.entry = errDisk })
	w.offers <- []wire.Inbound{message, w.message(root, fine, admitted)}
	if one, two := <-denied, <-admitted; one != "retry" || two != "ack" {
		t.Errorf("the one that needs the ledger is settled by %s, its neighbour by %s", one, two)
	}
	w.with(func() { w.faults.entry = nil })
	w.offers <- []wire.Inbound{message}
	if how := <-denied; how != "ack" {
		t.Errorf("the next time it is settled by %s", how)
	}
	if said := w.hears(wire.KindVerdict); !strings.Contains(said, o.id) {
		t.Errorf("the verdict is %s", said)
	}
}

// A revocation that cannot be published at once must not swallow the verdict that goes with it, nor be called undecided.
func TestAttackVerdictBehindARevocation(t *testing.T) {
	w := newLoose(t, t.TempDir(), newKey())
	a, b := w.agent("a"), w.agent("b")
	root := w.session(a)
	o := w.offer(root, b.name)
	if c := w.claim(b, root.session, o.id); c.Error != nil {
		t.Fatal(c.Error)
	}
	w.with(func() { w.faults.revoke = errors.New("no connection") })
	if out := w.operate(wire.VerbRevoke, wire.OperatorRequest{ID: o.id, Reason: "stolen"}); out.Error != nil {
		t.Errorf("what is on record is called undecided: %v", out.Error)
	}
	w.with(func() { w.faults.revoke = nil })
	if said := w.hears(wire.KindVerdict); !strings.Contains(said, string(wire.CodeRevoked)) {
		t.Errorf("the verdict is %s", said)
	}
}

// Many endings at once are written in pieces, so that nobody waits for all of them; each is written once.
func TestManyEndingsAtOnce(t *testing.T) {
	defer governor.EndAtOnce(3)()
	clock := newClock()
	w := newWorld(t, clock.use)
	a, b, op := w.agent("a"), w.agent("b"), w.operator()
	root := a.session(readFiles())
	deadline := w.now() + 20
	const many = 10
	ids := map[string]bool{}
	for range many {
		o := root.offer(b.name, "work", func(o *offering) { o.claims.ExpiresAt, o.handoff.Deadline = deadline, deadline })
		a.receipt(o.id)
		ids[o.id] = true
	}
	before := op.operate(wire.VerbHealth, wire.OperatorRequest{}).Health.Entries
	clock.advance(25 * time.Second)
	for range many {
		v := a.verdict("")
		if firstCode(v) != wire.CodeExpired || !ids[v.ID] {
			t.Errorf("the verdict is %+v", v)
		}
		delete(ids, v.ID)
	}
	if after := op.operate(wire.VerbHealth, wire.OperatorRequest{}).Health.Entries; after != before+many {
		t.Errorf("%d handoffs ended, in %d entries", many, after-before)
	}
}
