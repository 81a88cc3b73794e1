package governor_test

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/handoff-governor/handoff-governor/cmd/governor/daemon"
	"github.com/handoff-governor/handoff-governor/handoff/aat"
	"github.com/handoff-governor/handoff-governor/handoff/aat/jws"
	"github.com/handoff-governor/handoff-governor/handoff/entry"
	"github.com/handoff-governor/handoff-governor/handoff/wire"
	"github.com/handoff-governor/handoff-governor/policies"
)

// The tests below are attacks: each name says what the attacker wants. Every one ends, as all tests of the path do, with a
// verifier reading the ledger and a replay of it; an attack that makes either fail has won.

// policyOf makes a bundle of whole rules.
func policyOf(t *testing.T, rego string) *policies.Bundle {
	t.Helper()
	b, err := policies.Load(fstest.MapFS{"handoff.rego": {Data: []byte("package handoff\n\n" + rego)}})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// under runs the daemon with a bundle.
func under(b *policies.Bundle) func(*daemon.Config) {
	return func(c *daemon.Config) { c.Bundle = b }
}

// transferring and labelled bend an offer.
func transferring(o *offering) { o.handoff.Mode = wire.ModeTransfer }

func labelled(labels ...string) func(*wire.ResultToken, *natsMsg) {
	return func(r *wire.ResultToken, _ *natsMsg) { r.Labels = labels }
}

// feed is what a guard that asks now is told: link hash → state.
func (w *world) feed() map[string]string {
	w.t.Helper()
	g := &agent{w: w, t: w.t}
	g.connect("/guard/tools")
	out := map[string]string{}
	for after := ""; ; {
		m, err := g.nc.Request(wire.SubjectRevocations, encode(w.t, wire.RevocationsRequest{After: after}), 10*time.Second)
		if err != nil {
			w.t.Fatal(err)
		}
		u, err := jws.Split(string(m.Data), 8<<20)
		if err != nil {
			w.t.Fatalf("%v: %s", err, m.Data)
		}
		var page wire.RevocationFeed
		if err := json.Unmarshal(u.Payload, &page); err != nil {
			w.t.Fatal(err)
		}
		for _, l := range page.Links {
			out[l.Hash] = l.State
		}
		if after = page.Next; after == "" {
			return out
		}
	}
}

// dead tells whether guards refuse a leaf: it is named, or a link above it is revoked.
func dead(feed map[string]string, h held) bool {
	for i, l := range h.links {
		state := feed[l.HashString()]
		if state == wire.StateRevoked || state != "" && i == len(h.links)-1 {
			return true
		}
	}
	return false
}

// entryAt reads an entry back.
func (w *world) entryAt(op *agent, index uint64) *entry.Entry {
	w.t.Helper()
	out := op.operate(wire.VerbChainEntries, wire.OperatorRequest{From: index})
	if out.Error != nil || len(out.Entries) == 0 {
		w.t.Fatalf("reading entry %d: %+v", index, out.Error)
	}
	e, err := entry.Decode(out.Entries[0])
	if err != nil {
		w.t.Fatal(err)
	}
	return e
}

// quiet checks that nothing of a kind about an ID is in the inbox within a moment.
func (a *agent) quiet(kind, id string) {
	a.t.Helper()
	for range 3 {
		m, err := a.inbox.Next(jetstream.FetchMaxWait(300 * time.Millisecond))
		if err != nil {
			continue
		}
		_ = m.Ack()
		if m.Headers().Get(wire.HeaderKind) == kind && m.Headers().Get(wire.HeaderID) == id {
			a.t.Errorf("%s was sent a %s: %s", a.name, kind, m.Data())
		}
	}
}

// Who has transferred a task away wants its authority back, and the new holder's gone: another process of the sender
// takes over the handoff whose grant the transfer ended.
func TestAttackTakeBackATransferredTask(t *testing.T) {
	clock := newClock()
	w := newWorld(t, clock.use)
	a, b, c := w.agent("a"), w.agent("b"), w.agent("c")
	root := a.session(readFiles())
	mine := chainOf(t, root, wire.ModeDelegate, b)
	theirs := chainOf(t, mine, wire.ModeTransfer, c)

	clock.advance(31 * time.Second) // b's lease, which nobody renews
	if got := b.process().tryClaim(root.session, mine.handoff); got.Error == nil {
		t.Error("a transferred task was claimed again by another process of its former holder")
	}
	if dead(w.feed(), theirs) {
		t.Error("and the one that the task was transferred to has lost it")
	}
	theirs.result("done")
	if m := a.next(wire.KindResult, mine.handoff); string(m.Data()) != "done" {
		t.Errorf("the result is %q", m.Data())
	}
}

// An agent wants authority that outlives its task: it offers a transfer first and delegates while that waits. The
// delegated grant hangs on one that has ended, where the completion of the task does not look.
func TestAttackDelegateWhileATransferWaits(t *testing.T) {
	w := newWorld(t)
	a, b, c, d := w.agent("a"), w.agent("b"), w.agent("c"), w.agent("d")
	root := a.session(readFiles())
	grant := chainOf(t, root, wire.ModeDelegate, b)
	transfer := grant.offer(c.name, "all of it", transferring)
	b.receipt(transfer.id)
	side := chainOf(t, grant, wire.ModeDelegate, d)

	claimed := c.tryClaim(root.session, transfer.id)
	if claimed.Error != nil {
		return // "no transfer while the sender has open delegated handoffs"
	}
	c.hold(claimed.Chain, *claimed.GovernorJWK, root.session, transfer.id).result("done")
	a.next(wire.KindResult, grant.handoff)
	if !dead(w.feed(), side) {
		t.Error("the task is complete, and a grant that was handed on from it still opens every guard")
	}
	more := side.offer(c.name, "more", func(o *offering) { o.header[wire.HeaderVerdict] = []string{"always"} })
	if v := d.verdict(more.id); v.Effect != wire.EffectDeny {
		t.Errorf("the task is complete, and its authority is handed on: %+v", v)
	}
}

// A worker two hops below a task wants to go on after the task is complete: the grant between them was ended by a
// transfer, and only live ones are named on the feed.
func TestAttackOutliveTheTaskBelowATransfer(t *testing.T) {
	w := newWorld(t)
	a, b, c, d := w.agent("a"), w.agent("b"), w.agent("c"), w.agent("d")
	root := a.session(readFiles())
	first := chainOf(t, root, wire.ModeDelegate, b)
	second := chainOf(t, first, wire.ModeDelegate, c)
	third := chainOf(t, second, wire.ModeTransfer, d)
	first.result("done without waiting")
	a.next(wire.KindResult, first.handoff)
	if !dead(w.feed(), third) {
		t.Error("the task is complete, and guards still accept a grant below it")
	}
}

// A worker whose grant was revoked wants its result delivered all the same: it was held, and somebody approves it.
func TestAttackResultOfARevokedGrant(t *testing.T) {
	w := newWorld(t, under(policyOf(t, holdSecretResults)))
	a, b, op := w.agent("a"), w.agent("b"), w.operator()
	root := a.session(readFiles())
	grant := chainOf(t, root, wire.ModeDelegate, b)
	grant.result("secret", labelled("secret"))
	hold := b.verdict(grant.handoff)
	if hold.Effect != wire.EffectHold {
		t.Fatalf("the result is not held: %+v", hold)
	}
	if out := op.operate(wire.VerbRevoke, wire.OperatorRequest{ID: grant.handoff, Reason: "stolen"}); out.Error != nil {
		t.Fatal(out.Error)
	}
	if out := op.operate(wire.VerbApprove, wire.OperatorRequest{Index: *hold.Entry, Approve: true}); out.Error == nil {
		t.Errorf("the result of a revoked grant was approved: %+v", out)
	}
	a.quiet(wire.KindResult, grant.handoff)
}

const holdSecretResults = `session := {"effect": "allow"}

decision := {"effect": "allow"}

default result := {"effect": "allow"}

result := {"effect": "hold", "reasons": [{"code": "secret", "message": "ask alice"}]} if {
	"secret" in input.labels
	count(input.approvals) == 0
}`

// A worker wants two results for one task, and a ledger that does not verify: one is held, then the task is transferred
// and completed, then the held one is approved.
func TestAttackSecondResultThroughAHold(t *testing.T) {
	w := newWorld(t, under(policyOf(t, holdSecretResults)))
	a, b, c, op := w.agent("a"), w.agent("b"), w.agent("c"), w.operator()
	root := a.session(readFiles())
	grant := chainOf(t, root, wire.ModeDelegate, b)
	grant.result("held", labelled("secret"))
	hold := b.verdict(grant.handoff)
	o := grant.offer(c.name, "work", transferring, func(o *offering) { o.header[wire.HeaderVerdict] = []string{"always"} })
	v := b.verdict(o.id)
	if v.Effect == wire.EffectAllow {
		rest, _ := c.claim(root.session, o.id)
		rest.result("done")
		a.next(wire.KindResult, grant.handoff)
	}
	out := op.operate(wire.VerbApprove, wire.OperatorRequest{Index: *hold.Entry, Approve: true})
	if out.Error == nil && v.Effect == wire.EffectAllow {
		a.quiet(wire.KindResult, grant.handoff)
	}
}

const holdOffers = `session := {"effect": "allow"}

result := {"effect": "allow"}

default decision := {"effect": "hold", "reasons": [{"code": "needs_approval", "message": "ask alice"}]}

decision := {"effect": "allow"} if count(input.approvals) > 0`

// A sender wants more handoffs than the session's budget: all are held, and approved one by one.
func TestAttackBudgetThroughApprovals(t *testing.T) {
	w := newWorld(t, under(policyOf(t, holdOffers)))
	a, b, op := w.agent("a"), w.agent("b"), w.operator()
	root := a.session(readFiles(), func(r *wire.OpenRequest) { r.Budget = &wire.Budget{Handoffs: 1} })
	var holds []wire.Verdict
	for range 3 {
		o := root.offer(b.name, "work")
		v := a.verdict(o.id)
		if v.Effect != wire.EffectHold {
			t.Fatalf("the offer is not held: %+v", v)
		}
		holds = append(holds, v)
	}
	admitted := 0
	for _, v := range holds {
		out := op.operate(wire.VerbApprove, wire.OperatorRequest{Index: *v.Entry, Approve: true})
		if out.Error == nil && out.Effect == "admitted" {
			admitted++
		}
	}
	if admitted != 1 {
		t.Errorf("%d handoffs were admitted on a budget of 1", admitted)
	}
}

// A sender wants a handoff admitted under a grant that it has transferred away, and a ledger that does not verify.
func TestAttackApprovalUnderAnEndedGrant(t *testing.T) {
	w := newWorld(t, under(policyOf(t, `session := {"effect": "allow"}

result := {"effect": "allow"}

default decision := {"effect": "allow"}

decision := {"effect": "hold", "reasons": [{"code": "needs_approval", "message": "ask alice"}]} if {
	"wait" in input.labels
	count(input.approvals) == 0
}`)))
	a, b, c, op := w.agent("a"), w.agent("b"), w.agent("c"), w.operator()
	root := a.session(readFiles())
	grant := chainOf(t, root, wire.ModeDelegate, b)
	waits := grant.offer(c.name, "later", transferring, func(o *offering) { o.handoff.Labels = []string{"wait"} })
	hold := b.verdict(waits.id)
	chainOf(t, grant, wire.ModeTransfer, c)
	if out := op.operate(wire.VerbApprove, wire.OperatorRequest{Index: *hold.Entry, Approve: true}); out.Error == nil && out.Effect != "denied" {
		t.Errorf("an offer was admitted under a grant that has ended: %+v", out)
	}
}

// An operator's tool that is called twice, or too late, must not leave a ledger that a stranger refuses.
func TestAttackRevokeWhatIsOver(t *testing.T) {
	for name, attack := range map[string]func(w *world, op, a, b *agent, root held){
		"a denied offer": func(_ *world, op, a, b *agent, root held) {
			o := root.offer(b.name, "too much", func(o *offering) { o.claims.Tools = aat.Tools{"fs.write": {}} })
			a.verdict(o.id)
			op.operate(wire.VerbRevoke, wire.OperatorRequest{ID: o.id, Reason: "sure"})
		},
		"a session, twice": func(_ *world, op, _, _ *agent, root held) {
			for range 2 {
				op.operate(wire.VerbRevoke, wire.OperatorRequest{ID: root.session, Reason: "sure"})
			}
		},
		"a grant of a closed session": func(_ *world, op, _, b *agent, root held) {
			grant := chainOf(t, root, wire.ModeDelegate, b)
			op.operate(wire.VerbSessionClose, wire.OperatorRequest{Session: root.session, Reason: "night"})
			op.operate(wire.VerbRevoke, wire.OperatorRequest{ID: grant.handoff, Reason: "sure"})
		},
		"a waiting task of a closed session": func(_ *world, op, a, b *agent, root held) {
			o := root.offer(b.name, "work")
			a.receipt(o.id)
			op.operate(wire.VerbSessionClose, wire.OperatorRequest{Session: root.session, Reason: "night"})
			op.operate(wire.VerbRevoke, wire.OperatorRequest{ID: o.id, Reason: "sure"})
		},
		"a grant, twice": func(_ *world, op, _, b *agent, root held) {
			grant := chainOf(t, root, wire.ModeDelegate, b)
			for range 2 {
				op.operate(wire.VerbRevoke, wire.OperatorRequest{ID: grant.handoff, Reason: "sure"})
			}
		},
		"a completed task": func(_ *world, op, a, b *agent, root held) {
			grant := chainOf(t, root, wire.ModeDelegate, b)
			grant.result("done")
			a.next(wire.KindResult, grant.handoff)
			op.operate(wire.VerbRevoke, wire.OperatorRequest{ID: grant.handoff, Reason: "sure"})
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			a, b := w.agent("a"), w.agent("b")
			attack(w, w.operator(), a, b, a.session(readFiles()))
		})
	}
}

// Whoever offers tasks that nobody claims wants the receiver's places taken for good, and no verdict: a deadline that
// falls into the second in which it is looked at is never looked at again.
func TestAttackDeadlineThatNeverComes(t *testing.T) {
	w := newWorld(t)
	a, b := w.agent("a"), w.agent("b")
	root := a.session(readFiles())
	o := root.offer(b.name, "work", func(o *offering) { o.handoff.Deadline = time.Now().Unix() + 2 })
	a.receipt(o.id)
	if v := a.verdict(o.id); firstCode(v) != wire.CodeExpired {
		t.Errorf("the sender is told %+v", v)
	}
}

// A sender wants a task admitted after the last moment to claim it; the sender alone has set that.
func TestAttackApprovalAfterTheDeadline(t *testing.T) {
	w := newWorld(t, under(policyOf(t, holdOffers)))
	a, b, op := w.agent("a"), w.agent("b"), w.operator()
	root := a.session(readFiles())
	deadline := time.Now().Unix() + 2
	o := root.offer(b.name, "work", func(o *offering) { o.handoff.Deadline = deadline })
	hold := a.verdict(o.id)
	for time.Now().Unix() <= deadline {
		time.Sleep(100 * time.Millisecond)
	}
	if out := op.operate(wire.VerbApprove, wire.OperatorRequest{Index: *hold.Entry, Approve: true}); out.Error == nil {
		t.Errorf("nobody can claim this task any more, and it was approved: %+v", out)
	}
}

// An operator who revokes what was superseded long ago must not tell the sender that its task is over.
func TestAttackRevokeASupersededGrant(t *testing.T) {
	clock := newClock()
	w := newWorld(t, clock.use)
	a, b, op := w.agent("a"), w.agent("b"), w.operator()
	root := a.session(readFiles())
	old := chainOf(t, root, wire.ModeDelegate, b)
	clock.advance(31 * time.Second)
	over, _ := b.process().claim(root.session, old.handoff)
	op.operate(wire.VerbRevoke, wire.OperatorRequest{ID: old.leaf().Claims.ID, Reason: "stolen"})
	a.quiet(wire.KindVerdict, old.handoff)
	over.result("done")
	if m := a.next(wire.KindResult, old.handoff); string(m.Data()) != "done" {
		t.Errorf("the result is %q", m.Data())
	}
}

// An agent wants the governor's memory: what was denied is over, and yet it is kept, token and all, for as long as the
// session lasts.
func TestAttackMemoryByDenials(t *testing.T) {
	w := newWorld(t)
	a, b := w.agent("a"), w.agent("b")
	root := a.session(readFiles())
	before := len(w.d.Governor().Dump())
	var last *offering
	for range 200 {
		last = root.draft(b.name, "too much")
		last.claims.Tools = aat.Tools{"fs.write": {}}
		root.seal(last)
		a.publishOnly(last)
	}
	a.receipt(last.id)
	if grown := len(w.d.Governor().Dump()) - before; grown > 200*200 {
		t.Errorf("200 denials have left %d bytes of state, tokens (up to 64 KiB each) not counted", grown)
	}
}

// An agent wants to shed the label of a result that it was given: another of its processes takes the task over, with a
// grant that has never seen that result.
func TestAttackLaunderLabelsByTakeOver(t *testing.T) {
	clock := newClock()
	w := newWorld(t, clock.use)
	a, b, c := w.agent("a"), w.agent("b"), w.agent("c")
	root := a.session(readFiles())
	grant := chainOf(t, root, wire.ModeDelegate, b)
	part := chainOf(t, grant, wire.ModeDelegate, c)
	part.result("the secret", labelled("secret"))
	b.next(wire.KindResult, part.handoff)

	clock.advance(31 * time.Second)
	over, claimed := b.process().claim(root.session, grant.handoff)
	if !slices.Contains(claimed.Labels, "secret") {
		t.Errorf("the agent has read a secret and holds a grant with the labels %v", claimed.Labels)
	}
	o := over.offer(c.name, "the secret, without its label")
	if e := w.entryAt(w.operator(), over.a.receipt(o.id)); !slices.Contains(e.Decided.Labels, "secret") {
		t.Errorf("and hands it on with the labels %v: %s %v", e.Decided.Labels, e.Decided.Effect, e.Decided.Reasons)
	}
}

// A process wants a grant that no change of policy reaches and no result ends: another process of its agent tries to take
// the task over, and is denied. The task is over; the grant is not.
func TestAttackGrantThatOutlivesADeniedTakeOver(t *testing.T) {
	clock := newClock()
	w := newWorld(t, clock.use, under(policyOf(t, `session := {"effect": "allow"}

result := {"effect": "allow"}

default decision := {"effect": "allow"}

decision := {"effect": "deny", "reasons": [{"code": "tainted", "message": "not with secrets"}]} if {
	"secret" in input.labels
	input.stage == "claim"
}`)))
	a, b, c, op := w.agent("a"), w.agent("b"), w.agent("c"), w.operator()
	root := a.session(readFiles())
	grant := chainOf(t, root, wire.ModeDelegate, b)
	other := chainOf(t, root, wire.ModeDelegate, c)
	other.result("the secret", labelled("secret"))
	a.next(wire.KindResult, other.handoff)

	clock.advance(31 * time.Second)
	if got := b.process().tryClaim(root.session, grant.handoff); got.Error == nil || got.Error.Code != wire.CodePolicyDenied {
		t.Fatalf("the policy did not deny the take-over: %v", got.Error)
	}
	a.quiet(wire.KindVerdict, grant.handoff) // the task is being worked on, and its sender is told nothing else
	deny := policyOf(t, `session := {"effect": "allow"}

result := {"effect": "allow"}

decision := {"effect": "deny", "reasons": [{"code": "night", "message": "nobody works now"}]}`)
	if out := op.operate(wire.VerbBundleActivate, wire.OperatorRequest{Bundle: deny.Bytes()}); out.Error != nil {
		t.Fatal(out.Error)
	}
	if !dead(w.feed(), grant) {
		t.Error("a bundle that denies everything is in force, and the grant still opens every guard")
	}
}

// A sender wants to hurt everybody else: a task that cannot be claimed breaks the batch it is in, and has the governor
// read its state back from the ledger each time.
func TestAttackClaimsThatCannotBeWritten(t *testing.T) {
	labels := func(prefix string, n int) (out []string) {
		for i := range n {
			out = append(out, fmt.Sprintf("%s%02d", prefix, i))
		}
		return out
	}
	decided := func(t *testing.T, a, b *agent, root held, id string) {
		t.Helper()
		a.receipt(id)
		if got := b.tryClaim(root.session, id); got.Error != nil && got.Error.Code == wire.CodeUnavailable {
			t.Errorf("the claim is no infrastructure trouble, and yet: %v", got.Error)
		}
	}
	t.Run("more labels than a link may have", func(t *testing.T) {
		w := newWorld(t)
		a, b := w.agent("a"), w.agent("b")
		root := a.session(readFiles(), func(r *wire.OpenRequest) { r.Labels = labels("red", 40) })
		o := root.offer(b.name, "work", func(o *offering) { o.handoff.Labels = labels("blue", 40) })
		decided(t, a, b, root, o.id)
	})
	t.Run("a chain that grows too long", func(t *testing.T) {
		w := newWorld(t)
		a, b, c := w.agent("a"), w.agent("b"), w.agent("c")
		values := make([]any, 40)
		for i := range values {
			values[i] = fmt.Sprintf("%02d", i) + strings.Repeat("x", 1000)
		}
		root := a.session(aat.Tools{"fs.read": {"path": aat.OneOf(values...)}})
		grant := chainOf(t, root, wire.ModeDelegate, b)
		o := grant.offer(c.name, "work")
		decided(t, b, c, root, o.id)
	})
	t.Run("a grant that ends before its offer begins", func(t *testing.T) {
		w := newWorld(t, under(policyOf(t, `session := {"effect": "allow"}

result := {"effect": "allow"}

default decision := {"effect": "allow"}

decision := {"effect": "allow", "ttl": 5} if input.stage == "claim"`)))
		a, b := w.agent("a"), w.agent("b")
		root := a.session(readFiles())
		o := root.offer(b.name, "work", func(o *offering) { o.claims.IssuedAt += 20 }) // a clock that is ahead
		decided(t, a, b, root, o.id)
	})
	t.Run("a session that is over before it begins", func(t *testing.T) {
		clock := newClock()
		w := newWorld(t, clock.use)
		a := w.agent("a")
		clock.advance(20 * time.Second)
		a.session(readFiles())
		clock.advance(-20 * time.Second) // the ledger's time does not run backwards
		request := a.openRequest(readFiles())
		request.TTL = 10
		if out := a.open(request); out.Error != nil && out.Error.Code == wire.CodeUnavailable {
			t.Errorf("it breaks its batch: %v", out.Error)
		}
	})
}

// A process works on after the take-over of its task was turned down; the ledger must bear its result out.
func TestAttackResultAfterATakeOverThatWasTurnedDown(t *testing.T) {
	for _, effect := range []string{wire.EffectDeny, wire.EffectHold} {
		t.Run(effect, func(t *testing.T) {
			clock := newClock()
			w := newWorld(t, clock.use, under(policyOf(t, `session := {"effect": "allow"}

result := {"effect": "allow"}

default decision := {"effect": "allow"}

decision := {"effect": "`+effect+`", "reasons": [{"code": "tainted", "message": "not with secrets"}]} if {
	"secret" in input.labels
	input.stage == "claim"
}`)))
			a, b, c := w.agent("a"), w.agent("b"), w.agent("c")
			root := a.session(readFiles())
			grant := chainOf(t, root, wire.ModeDelegate, b)
			other := chainOf(t, root, wire.ModeDelegate, c)
			other.result("the secret", labelled("secret"))
			a.next(wire.KindResult, other.handoff)
			clock.advance(31 * time.Second)
			if got := b.process().tryClaim(root.session, grant.handoff); got.Error == nil {
				t.Fatal("the policy did not turn the take-over down")
			}
			grant.result("done")
			if m := a.next(wire.KindResult, grant.handoff); string(m.Data()) != "done" {
				t.Errorf("the result is %q", m.Data())
			}
		})
	}
}

// Requests that are under way when the governor is asked to stop must not keep it from stopping.
func TestAttackStopThatNeverEnds(t *testing.T) {
	w := newWorld(t)
	for round := range 5 {
		var agents []*agent
		for i := range 6 {
			agents = append(agents, w.agent(fmt.Sprintf("a%d", i)))
		}
		bodies := make([][][]byte, len(agents))
		for i, a := range agents {
			for range 60 {
				bodies[i] = append(bodies[i], a.prove(a.openRequest(readFiles())))
			}
		}
		for n := range 60 {
			for i, a := range agents {
				if err := a.nc.PublishRequest(wire.SubjectSessionOpen, a.nc.NewRespInbox(), bodies[i][n]); err != nil {
					t.Fatal(err)
				}
			}
		}
		for _, a := range agents {
			_ = a.nc.Flush()
		}
		d := w.d
		w.d, w.place.Daemon = nil, nil
		closed := make(chan error, 1)
		go func() { closed <- d.Close() }()
		select {
		case err := <-closed:
			if err != nil {
				t.Fatal(err)
			}
		case <-time.After(20 * time.Second):
			t.Fatalf("the daemon has not stopped 20 s after it was asked to (round %d)", round)
		}
		w.start()
	}
}

// Another process of the agent wants a task whose process is alive and has just renewed its lease: it waits for the
// governor to restart.
func TestAttackTakeOverAfterARestart(t *testing.T) {
	clock := newClock()
	w := newWorld(t, clock.use)
	a, b := w.agent("a"), w.agent("b")
	root := a.session(readFiles())
	grant := chainOf(t, root, wire.ModeDelegate, b)
	clock.advance(25 * time.Second)
	b.claim(root.session, grant.handoff) // renews: 30 s from here
	clock.advance(10 * time.Second)
	w.stop()
	w.start()
	if got := w.agent("b").tryClaim(root.session, grant.handoff); got.Error == nil || got.Error.Code != wire.CodeAlreadyClaimed {
		t.Errorf("the lease was renewed ten seconds ago, and a restart has run it out: %+v", got.Error)
	}
}

// A sender wants a ledger that does not verify: it is denied under one bundle while another comes into force.
func TestAttackDenialUnderABundleThatIsGone(t *testing.T) {
	w := newWorld(t, under(bundle(t, `xs := [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]

decision := {"effect": "allow"} if count([1 | some a in xs; some b in xs; some c in xs; some d in xs; some e in xs; some f in xs; some g in xs; a + b + c + d + e + f + g < 0]) == 0`)))
	a, b, op := w.agent("a"), w.agent("b"), w.operator()
	root := a.session(readFiles())
	good := bundle(t, `decision := {"effect": "allow"}`)
	halted := w.d.Governor().Halt()
	activated := make(chan wire.OperatorResponse, 1)
	go func() { activated <- op.operate(wire.VerbBundleActivate, wire.OperatorRequest{Bundle: good.Bytes()}) }()
	halted.Await(0, 1)
	o := root.offer(b.name, "work", func(o *offering) { o.header[wire.HeaderVerdict] = []string{"always"} })
	halted.Await(1, 1) // the policy has run out of its time; another comes into force, and then it is the offer's turn
	halted.Resume()
	out := <-activated
	if out.Error != nil {
		t.Fatal(out.Error)
	}
	v := a.verdict(o.id)
	if v.Entry == nil || *v.Entry <= out.Entry {
		t.Fatalf("the offer was decided before the bundle was in force: %+v, %+v", v, out)
	}
	if v.Effect != wire.EffectAllow {
		t.Errorf("entry %d denies under the bundle that entry %d has replaced: %+v", *v.Entry, out.Entry, v.Reasons)
	}
}

// What was receipted and lost with the power must come again, also when the governor was down for long.
func TestAttackResultLostInALongOutage(t *testing.T) {
	clock := newClock()
	w := newWorld(t, clock.use)
	a, b := w.agent("a"), w.agent("b")
	root := a.session(readFiles())
	now := time.Now().Unix()
	expires := root.offer(b.name, "for a minute", func(o *offering) { o.claims.ExpiresAt, o.handoff.Deadline = now+60, now+60 })
	a.receipt(expires.id)
	grant := chainOf(t, root, wire.ModeDelegate, b)
	b.receipt(grant.result("done"))

	w.stop()
	if err := os.RemoveAll(filepath.Join(w.cfg.Dir, "streams")); err != nil {
		t.Fatal(err)
	}
	clock.advance(6 * time.Minute)
	w.start()
	if m := w.agent("a").next(wire.KindResult, grant.handoff); string(m.Data()) != "done" {
		t.Errorf("the result is %q", m.Data())
	}
}

// A worker wants its result to pass without a person's look, on the strength of the approval that let the task begin.
func TestAttackApprovalThatCountsTwice(t *testing.T) {
	w := newWorld(t, under(policyOf(t, `session := {"effect": "allow"}

default decision := {"effect": "hold", "reasons": [{"code": "needs_approval", "message": "ask alice"}]}

decision := {"effect": "allow"} if count(input.approvals) > 0

default result := {"effect": "hold", "reasons": [{"code": "needs_approval", "message": "ask alice"}]}

result := {"effect": "allow"} if count(input.approvals) > 0`)))
	a, b, op := w.agent("a"), w.agent("b"), w.operator()
	root := a.session(readFiles())
	o := root.offer(b.name, "work")
	hold := a.verdict(o.id)
	if out := op.operate(wire.VerbApprove, wire.OperatorRequest{Index: *hold.Entry, Approve: true}); out.Error != nil {
		t.Fatal(out.Error)
	}
	grant, _ := b.claim(root.session, o.id)
	index := b.receipt(grant.result("everything", labelled("secret")))
	if e := w.entryAt(op, index); e.Result == nil || e.Result.Effect != wire.EffectHold {
		t.Errorf("the approval of the offer (entry %d) has let the result through: effect %s", *hold.Entry, e.Result.Effect)
	}
}

// Two people are asked for; the first one's word must not be lost, or nothing is ever approved.
func TestAttackApprovalByTwo(t *testing.T) {
	w := newWorld(t, under(policyOf(t, `session := {"effect": "allow"}

result := {"effect": "allow"}

default decision := {"effect": "hold", "reasons": [{"code": "needs_two", "message": "ask alice and bob"}]}

decision := {"effect": "allow"} if count({x.by | some x in input.approvals}) > 1`)))
	a, b := w.agent("a"), w.agent("b")
	root := a.session(readFiles())
	o := root.offer(b.name, "work")
	hold := a.verdict(o.id)
	for _, person := range []string{"/operator/alice", "/operator/alice", "/operator/bob"} {
		op := &agent{w: w, t: t}
		op.connect(person)
		out := op.operate(wire.VerbApprove, wire.OperatorRequest{Index: *hold.Entry, Approve: true})
		t.Logf("%s: %+v", person, out)
		if got := b.tryClaim(root.session, o.id); (got.Error == nil) != (person == "/operator/bob") {
			t.Errorf("after the approval of %s: %v", person, got.Error)
		}
	}
}

// A process wants more time than the policy gave its claim: just after the end, before the end is written, another
// process of the agent claims the task anew.
func TestAttackLifetimeByTakeOver(t *testing.T) {
	clock := newClock()
	w := newWorld(t, clock.use, under(policyOf(t, `session := {"effect": "allow"}

result := {"effect": "allow"}

default decision := {"effect": "allow"}

decision := {"effect": "allow", "ttl": 40} if input.stage == "claim"`)))
	a, b := w.agent("a"), w.agent("b")
	root := a.session(readFiles())
	grant := chainOf(t, root, wire.ModeDelegate, b)
	second := b.process()
	clock.advance(41 * time.Second)
	if got := second.tryClaim(root.session, grant.handoff); got.Error == nil {
		t.Errorf("the task's grant ended at %d, and a new one was given until %d", grant.leaf().Claims.ExpiresAt, got.ExpiresAt)
	}
}

// Whoever may not open sessions any more wants to keep the one it has.
func TestAttackRootThatNoPolicyReaches(t *testing.T) {
	w := newWorld(t)
	a, op := w.agent("a"), w.operator()
	root := a.session(readFiles())
	deny := policyOf(t, `session := {"effect": "deny", "reasons": [{"code": "night", "message": "nobody works now"}]}

result := session

decision := session`)
	if out := op.operate(wire.VerbBundleActivate, wire.OperatorRequest{Bundle: deny.Bytes()}); out.Error != nil {
		t.Fatal(out.Error)
	}
	if !dead(w.feed(), root) {
		t.Error("the policy denies the session, and its root still opens every guard")
	}
}

// slowly makes policies whose answer takes longer than policy has, where cond holds.
func slowly(cond string) string {
	return `session := {"effect": "allow"}

result := {"effect": "allow"}

xs := [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]

slow if {
	` + cond + `
}

decision := {"effect": "allow"} if not slow

decision := {"effect": "allow"} if {
	slow
	count([1 | some a in xs; some b in xs; some c in xs; some d in xs; some e in xs; some f in xs; some g in xs; a + b + c + d + e + f + g < 0]) == 0
}`
}

// publishOnly publishes without waiting for the server.
func (a *agent) publishOnly(o *offering) {
	a.t.Helper()
	if err := a.nc.PublishMsg(&natsMsg{Subject: o.subject, Header: o.header, Data: o.body}); err != nil {
		a.t.Fatal(err)
	}
}

// typed gives an offer a content type that policy can tell from others.
func typed(contentType string) func(*offering) {
	return func(o *offering) {
		o.handoff.ContentType = contentType
		o.header[wire.HeaderContentType] = []string{contentType}
	}
}

// A sender wants everybody to wait: its offers are cheap to judge, until a result that arrives with them changes a label.
// Then each is judged again, one after another, where nothing else can happen meanwhile.
func TestAttackJudgeAgainWhileAllWait(t *testing.T) {
	w := newWorld(t, under(policyOf(t, slowly(`input.content_type != "text/plain"
	some x in array.concat(input.labels, [input.content_type])
	x in {"secret", "text/slow"}`))))
	a, b, c, bystander := w.agent("a"), w.agent("b"), w.agent("c"), w.agent("d")
	quiet := bystander.session(readFiles())
	root := a.session(readFiles())
	grant := chainOf(t, root, wire.ModeDelegate, b)
	part := chainOf(t, grant, wire.ModeDelegate, c)
	draft := func(contentType string) *offering {
		o := grant.draft(c.name, "work")
		typed(contentType)(o)
		grant.seal(o)
		return o
	}
	var many []*offering
	for i := range 40 {
		many = append(many, draft(fmt.Sprintf("text/x%d", i)))
	}
	halted := w.d.Governor().Halt()
	part.result("the secret", labelled("secret"))
	for _, o := range many {
		b.publish(o)
	}
	halted.Await(1+len(many), 0)
	halted.Resume()
	longest := time.Duration(0)
	for until := time.Now().Add(4 * time.Second); time.Now().Before(until); time.Sleep(10 * time.Millisecond) {
		body, start := bystander.proveFor(wire.VerbSessionStatus, wire.SessionRequest{Session: quiet.session}), time.Now()
		if _, err := bystander.nc.Request(wire.SubjectSessionStatus, body, time.Minute); err != nil {
			t.Error(err)
		}
		longest = max(longest, time.Since(start))
	}
	if longest > 2*time.Second {
		t.Errorf("one agent's offers have kept a bystander waiting for %s", longest)
	}
}

// Two results with one ID that come together: one is taken, and the other is told.
func TestAttackResultThatIsSwallowed(t *testing.T) {
	w := newWorld(t)
	a, b := w.agent("a"), w.agent("b")
	root := a.session(readFiles())
	grant := chainOf(t, root, wire.ModeDelegate, b)
	halted := w.d.Governor().Halt()
	id := newID(t)
	for _, body := range []string{"one", "another"} {
		grant.result(body, func(r *wire.ResultToken, _ *natsMsg) { r.ID = id })
	}
	halted.Await(2, 0)
	halted.Resume()
	b.receipt(id)
	if v := b.verdict(grant.handoff); v.Effect != wire.EffectDeny {
		t.Errorf("the second result is answered with %+v", v)
	}
}

// Another process of the agent wants a lease to run out early: a claim that cannot be written has the governor read its
// state back, and renewals are not in the ledger.
func TestAttackTakeOverByAFault(t *testing.T) {
	clock := newClock()
	w := newWorld(t, clock.use)
	a, b := w.agent("a"), w.agent("b")
	var red, blue []string
	for i := range 40 {
		red, blue = append(red, fmt.Sprintf("red%02d", i)), append(blue, fmt.Sprintf("blue%02d", i))
	}
	fault := a.session(readFiles(), func(r *wire.OpenRequest) { r.Labels = red })
	broken := fault.offer(b.name, "work", func(o *offering) { o.handoff.Labels = blue })
	a.receipt(broken.id)
	root := a.session(readFiles())
	grant := chainOf(t, root, wire.ModeDelegate, b)
	clock.advance(25 * time.Second)
	b.claim(root.session, grant.handoff) // renews: 30 s from here
	clock.advance(10 * time.Second)
	b.tryClaim(fault.session, broken.id)
	if got := b.process().tryClaim(root.session, grant.handoff); got.Error == nil || got.Error.Code != wire.CodeAlreadyClaimed {
		t.Errorf("the lease was renewed ten seconds ago, and is gone: %v", got.Error)
	}
}

// Revoking where a chain of transfers began reaches whoever has the task now.
func TestAttackHideBehindTransfers(t *testing.T) {
	w := newWorld(t)
	a, b, c, d, op := w.agent("a"), w.agent("b"), w.agent("c"), w.agent("d"), w.operator()
	root := a.session(readFiles())
	first := chainOf(t, root, wire.ModeDelegate, b)
	last := chainOf(t, first, wire.ModeTransfer, c, d)
	if out := op.operate(wire.VerbRevoke, wire.OperatorRequest{ID: first.handoff, Reason: "stolen"}); out.Error != nil {
		t.Fatal(out.Error)
	}
	if !dead(w.feed(), last) {
		t.Error("guards accept what came of a revoked task")
	}
	last.result("done")
	if v := d.verdict(last.handoff); firstCode(v) != wire.CodeRevoked {
		t.Errorf("a result of a revoked task: %+v", v)
	}
}

// A transfer to oneself gains nothing: a hop is spent, the labels stay, and the old grant has ended.
func TestAttackTransferToOneself(t *testing.T) {
	w := newWorld(t)
	a, b, c := w.agent("a"), w.agent("b"), w.agent("c")
	root := a.session(readFiles())
	grant := chainOf(t, root, wire.ModeDelegate, b)
	part := chainOf(t, grant, wire.ModeDelegate, c)
	part.result("the secret", labelled("secret"))
	b.next(wire.KindResult, part.handoff)
	o := grant.offer(b.name, "to myself", transferring)
	b.receipt(o.id)
	again, claimed := b.claim(root.session, o.id)
	if !slices.Contains(claimed.Labels, "secret") {
		t.Errorf("the labels are %v", claimed.Labels)
	}
	if !dead(w.feed(), grant) || dead(w.feed(), again) {
		t.Error("of two grants for one task, not exactly the newer is live")
	}
	again.result("done")
	if m := a.next(wire.KindResult, grant.handoff); string(m.Data()) != "done" {
		t.Errorf("the result is %q", m.Data())
	}
}

// However many processes claim at once, one has the task; and an approval at the same moment changes nothing of that.
func TestAttackClaimTogether(t *testing.T) {
	w := newWorld(t, under(policyOf(t, holdOffers)))
	a, b, op := w.agent("a"), w.agent("b"), w.operator()
	root := a.session(readFiles())
	var processes []*agent
	for range 4 {
		processes = append(processes, b.process())
	}
	for range 10 {
		o := root.offer(b.name, "work")
		hold := a.verdict(o.id)
		got := make(chan wire.Claimed, len(processes))
		for _, p := range processes {
			go func() {
				var last wire.Claimed
				for range 20 {
					var out wire.ClaimResponse
					m, err := p.nc.Request(wire.ClaimSubject(root.session), encode(t, p.claimRequest(root.session, []string{o.id})), 10*time.Second)
					if err != nil || json.Unmarshal(m.Data, &out) != nil || len(out.Claims) != 1 {
						t.Errorf("claiming: %v %+v", err, out.Error)
						break
					}
					if last = out.Claims[0]; last.Error == nil || last.Error.Code != wire.CodeNotAdmitted {
						break
					}
				}
				got <- last
			}()
		}
		if out := op.operate(wire.VerbApprove, wire.OperatorRequest{Index: *hold.Entry, Approve: true}); out.Error != nil {
			t.Fatal(out.Error)
		}
		granted := 0
		for range processes {
			if c := <-got; c.Error == nil {
				granted++
			}
		}
		if granted > 1 {
			t.Errorf("%d processes hold one task", granted)
		}
	}
}

// An opener wants a root that is not on record: it asks twice at once, and the second answer does not wait for the first
// one's commit.
func TestAttackRootBeforeItIsWritten(t *testing.T) {
	w := newWorld(t)
	a := w.agent("a")
	for range 100 {
		body := a.prove(a.openRequest(readFiles()))
		inbox := a.nc.NewRespInbox()
		answers, err := a.nc.SubscribeSync(inbox)
		if err != nil {
			t.Fatal(err)
		}
		const asked = 4
		for range asked {
			if err := a.nc.PublishRequest(wire.SubjectSessionOpen, inbox, body); err != nil {
				t.Fatal(err)
			}
			time.Sleep(500 * time.Microsecond)
		}
		for range asked {
			m, err := answers.NextMsg(10 * time.Second)
			if err != nil {
				t.Fatal(err)
			}
			var out wire.OpenResponse
			if err := json.Unmarshal(m.Data, &out); err != nil {
				t.Fatal(err)
			}
			if out.Error == nil && out.Entry == 0 { // entry 0 is the bundle's
				t.Fatalf("a root was handed out that no entry has: repeat %v", out.Repeat)
			}
		}
		_ = answers.Unsubscribe()
	}
}
