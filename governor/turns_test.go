package governor_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/handoff-governor/handoff-governor/handoff/aat"
	"github.com/handoff-governor/handoff-governor/handoff/wire"
	"github.com/handoff-governor/handoff-governor/policies"
)

// What has been looked at waits for its turn. The tests below change the world meanwhile.

const allowAll = `session := {"effect": "allow"}

decision := {"effect": "allow"}

result := {"effect": "allow"}`

// activates begins to put a bundle in force, and returns what the governor answers.
func (a *agent) activates(b *policies.Bundle) <-chan wire.OperatorResponse {
	out := make(chan wire.OperatorResponse, 1)
	go func() { out <- a.operate(wire.VerbBundleActivate, wire.OperatorRequest{Bundle: b.Bytes()}) }()
	return out
}

// A claim, a result and a session that were judged by one bundle, and whose turn comes under another, are judged again.
func TestBundleChangesBeforeTheirTurn(t *testing.T) {
	w := newWorld(t, under(policyOf(t, allowAll)))
	a, b, c, op := w.agent("a"), w.agent("b"), w.agent("c"), w.operator()
	root := a.session(readFiles())
	grant := chainOf(t, root, wire.ModeDelegate, b)
	waiting := root.offer(b.name, "work")
	a.receipt(waiting.id)

	halted := w.d.Governor().Halt()
	activated := op.activates(policyOf(t, `session := {"effect": "allow", "ceiling": {"fs.list": {}}} if input.agent.name == "`+c.name+`"

session := {"effect": "allow"} if input.agent.name != "`+c.name+`"

default decision := {"effect": "allow"}

decision := {"effect": "deny", "reasons": [{"code": "new_policy", "message": "no"}]} if input.content_type == "text/plain"

result := {"effect": "deny", "reasons": [{"code": "new_policy", "message": "no"}]}`))
	halted.Await(0, 1)
	claimed, opened := make(chan wire.Claimed, 1), make(chan wire.OpenResponse, 1)
	go func() { claimed <- b.tryClaim(root.session, waiting.id) }()
	go func() { opened <- c.open(c.openRequest(readFiles())) }()
	result := grant.result("done")
	halted.Await(2, 2)
	halted.Resume()

	if out := <-activated; out.Error != nil {
		t.Fatal(out.Error)
	}
	if got := <-claimed; got.Error == nil || got.Error.Code != wire.CodePolicyDenied || got.Reasons[0].Code != "new_policy" {
		t.Errorf("the claim is answered by the policy that was: %+v %+v", got.Error, got.Reasons)
	}
	if got := <-opened; got.Error == nil || got.Error.Code != wire.CodeUnavailable {
		t.Errorf("a session was opened by the policy that was: %+v", got.Error)
	}
	// The result's grant was revoked with the change; nothing of it may count.
	if v := b.verdict(grant.handoff); v.Effect != wire.EffectDeny || v.Result != result {
		t.Errorf("the result: %+v", v)
	}
	a.quiet(wire.KindResult, grant.handoff)
}

// A result that was judged before a bundle that lets its grant live, and not its labels, came into force.
func TestResultUnderTheBundleInForce(t *testing.T) {
	w := newWorld(t, under(policyOf(t, allowAll)))
	a, b, op := w.agent("a"), w.agent("b"), w.operator()
	grant := chainOf(t, a.session(readFiles()), wire.ModeDelegate, b)
	halted := w.d.Governor().Halt()
	activated := op.activates(policyOf(t, `session := {"effect": "allow"}

decision := {"effect": "allow"}

result := {"effect": "deny", "reasons": [{"code": "new_policy", "message": "no"}]}`))
	halted.Await(0, 1)
	grant.result("done")
	halted.Await(1, 1)
	halted.Resume()
	<-activated
	if v := b.verdict(grant.handoff); firstCode(v) != "new_policy" {
		t.Errorf("the result is judged by the policy that was: %+v", v)
	}
	a.quiet(wire.KindResult, grant.handoff)
}

// A task whose labels have changed since its claim was judged is judged by those it has: a result has come to its sender.
func TestClaimAfterALabelHasCome(t *testing.T) {
	w := newWorld(t, under(policyOf(t, `session := {"effect": "allow"}

result := {"effect": "allow"}

default decision := {"effect": "allow"}

decision := {"effect": "deny", "reasons": [{"code": "too_secret", "message": "no"}]} if "secret" in input.labels`)))
	a, b, c := w.agent("a"), w.agent("b"), w.agent("c")
	root := a.session(readFiles())
	part := chainOf(t, root, wire.ModeDelegate, b)
	waiting := root.offer(c.name, "work")
	a.receipt(waiting.id)
	halted := w.d.Governor().Halt()
	part.result("the secret", labelled("secret"))
	halted.Await(1, 0)
	claimed := make(chan wire.Claimed, 1)
	go func() { claimed <- c.tryClaim(root.session, waiting.id) }()
	halted.Await(2, 0)
	halted.Resume()
	if got := <-claimed; got.Error == nil || len(got.Reasons) == 0 || got.Reasons[0].Code != "too_secret" {
		t.Errorf("the task went out with labels that nobody has judged: %+v %+v", got.Error, got.Reasons)
	}
}

// An offer that has run out while it waited is denied at its turn.
func TestOfferThatRanOutBeforeItsTurn(t *testing.T) {
	clock := newClock()
	w := newWorld(t, clock.use)
	a, b := w.agent("a"), w.agent("b")
	root := a.session(readFiles())
	halted := w.d.Governor().Halt()
	now := w.now()
	work := root.offer(b.name, "work", func(o *offering) { o.claims.ExpiresAt, o.handoff.Deadline = now+20, now+20 })
	claim := root.offer(b.name, "work", func(o *offering) { o.handoff.Deadline = now + 20 })
	halted.Await(2, 0)
	clock.advance(25 * time.Second)
	halted.Resume()
	for _, o := range []*offering{work, claim} {
		a.receipt(o.id)
		if v := a.verdict(o.id); firstCode(v) != wire.CodeExpired {
			t.Errorf("the verdict is %+v", v)
		}
	}
}

// What takes long to judge again is put off, so that others need not wait; the task's result waits with it, and a claim is
// told to come again.
func TestPutOff(t *testing.T) {
	slow := policyOf(t, slowly(`input.stage == "offer"`))
	w := newWorld(t, under(policyOf(t, allowAll)))
	a, b, c, op := w.agent("a"), w.agent("b"), w.agent("c"), w.operator()
	root := a.session(readFiles())
	grant := chainOf(t, root, wire.ModeDelegate, b)
	other := chainOf(t, root, wire.ModeDelegate, c)
	waiting := root.offer(c.name, "work")
	a.receipt(waiting.id)

	halted := w.d.Governor().Halt()
	activated := op.activates(slow)
	halted.Await(0, 1)
	first := grant.offer(c.name, "one") // judged again, it takes up the time there is
	halted.Await(1, 1)
	second := grant.offer(c.name, "two")
	halted.Await(2, 1)
	otherDone := other.result("done, too")
	halted.Await(3, 1)
	claimed := make(chan wire.Claimed, 1)
	go func() { claimed <- c.tryClaim(root.session, waiting.id) }()
	halted.Await(4, 1)
	halted.Resume()

	again := w.d.Governor().Halt() // before the second comes again
	done := grant.result("done")
	again.Await(1, 0)
	again.Resume()

	if out := <-activated; out.Error != nil {
		t.Fatal(out.Error)
	}
	if got := <-claimed; got.Error == nil || got.Error.Code != wire.CodeUnavailable || got.Error.RetryAfter < 1 {
		t.Errorf("a claim that would have everybody wait: %+v", got.Error)
	}
	c.claim(root.session, waiting.id)
	one, two := b.receipt(first.id), b.receipt(second.id)
	result := b.receipt(done)
	if result < one || result < two {
		t.Errorf("the result is entry %d, before its own task's offers, %d and %d", result, one, two)
	}
	if later := c.receipt(otherDone); w.entryAt(op, later).Time == w.entryAt(op, one).Time {
		t.Errorf("entry %d was judged again in the batch whose time entry %d took up", later, one)
	}
}

// The same denied result, twice in one batch and once more later, is denied once and answered each time.
func TestDeniedResultRepeats(t *testing.T) {
	w := newWorld(t, under(policyOf(t, `session := {"effect": "allow"}

decision := {"effect": "allow"}

default result := {"effect": "allow"}

result := {"effect": "deny", "reasons": [{"code": "too_secret", "message": "no"}]} if "secret" in input.labels`)))
	a, b := w.agent("a"), w.agent("b")
	grant := chainOf(t, a.session(readFiles()), wire.ModeDelegate, b)
	var sent *natsMsg
	halted := w.d.Governor().Halt()
	id := grant.result("x", labelled("secret"), func(_ *wire.ResultToken, m *natsMsg) { sent = m })
	repeat := func() {
		if _, err := b.nc.RequestMsg(sent, 10*time.Second); err != nil {
			t.Fatal(err)
		}
	}
	repeat()
	halted.Await(2, 0)
	halted.Resume()
	index := b.receipt(id)
	repeat()
	for range 2 {
		if again := b.receipt(id); again != index {
			t.Errorf("the same result is entry %d, and was %d", again, index)
		}
	}
	for range 3 {
		if v := b.verdict(grant.handoff); firstCode(v) != "too_secret" || v.Result != id || v.Entry == nil || *v.Entry != index {
			t.Errorf("the verdict is %+v", v)
		}
	}
	b.receipt(grant.result("another, without the secret"))
	a.next(wire.KindResult, grant.handoff)
}

// A held result that a person turned down is denied when it comes again. While it is held, nobody takes the task over.
func TestHeldResult(t *testing.T) {
	clock := newClock()
	w := newWorld(t, clock.use, under(policyOf(t, holdSecretResults)))
	a, b, op := w.agent("a"), w.agent("b"), w.operator()
	root := a.session(readFiles())
	grant := chainOf(t, root, wire.ModeDelegate, b)
	var sent *natsMsg
	id := grant.result("x", labelled("secret"), func(_ *wire.ResultToken, m *natsMsg) { sent = m })
	hold := b.verdict(grant.handoff)
	if hold.Effect != wire.EffectHold {
		t.Fatalf("the result is not held: %+v", hold)
	}
	clock.advance(time.Minute)
	if got := b.process().tryClaim(root.session, grant.handoff); got.Error == nil || got.Error.Code != wire.CodeNotAdmitted {
		t.Errorf("a task whose result waits was taken over: %+v", got.Error)
	}
	if out := op.operate(wire.VerbApprove, wire.OperatorRequest{Index: *hold.Entry}); out.Error != nil {
		t.Fatal(out.Error)
	}
	if v := b.verdict(grant.handoff); firstCode(v) != wire.CodeApprovalDenied {
		t.Errorf("the verdict is %+v", v)
	}
	b.receipt(id)
	if _, err := b.nc.RequestMsg(sent, 10*time.Second); err != nil {
		t.Fatal(err)
	}
	b.receipt(id)
	if v := b.verdict(grant.handoff); v.Effect != wire.EffectDeny || firstCode(v) != wire.CodeApprovalDenied {
		t.Errorf("the same result again: %+v", v)
	}
	second := b.process()
	second.claim(root.session, grant.handoff) // the task is still to be done
}

// An approved result brings its labels along, and ends its grant.
func TestApprovedResult(t *testing.T) {
	w := newWorld(t, under(policyOf(t, holdSecretResults)))
	a, b, c, op := w.agent("a"), w.agent("b"), w.agent("c"), w.operator()
	root := a.session(readFiles())
	grant := chainOf(t, root, wire.ModeDelegate, b)
	below := chainOf(t, grant, wire.ModeDelegate, c)
	grant.result("x", labelled("secret"))
	hold := b.verdict(grant.handoff)
	if out := op.operate(wire.VerbApprove, wire.OperatorRequest{Index: *hold.Entry, Approve: true}); out.Error != nil {
		t.Fatal(out.Error)
	}
	a.next(wire.KindResult, grant.handoff)
	if feed := w.feed(); !dead(feed, grant) || !dead(feed, below) {
		t.Error("the task is complete, and guards still accept a grant of it")
	}
	more := root.offer(c.name, "more")
	a.receipt(more.id)
	if _, claimed := c.claim(root.session, more.id); !equal(claimed.Labels, []string{"secret"}) {
		t.Errorf("labels after the result: %v", claimed.Labels)
	}
}

// A transfer from the opener leads to a result whose labels are the opener's.
func TestResultOfATransferFromTheRoot(t *testing.T) {
	w := newWorld(t)
	a, b, c := w.agent("a"), w.agent("b"), w.agent("c")
	root := a.session(readFiles())
	part := chainOf(t, root, wire.ModeDelegate, c)
	part.result("part")
	a.next(wire.KindResult, part.handoff)
	grant := chainOf(t, root, wire.ModeTransfer, b)
	grant.result("done", labelled("secret"))
	if m := a.next(wire.KindResult, grant.handoff); string(m.Data()) != "done" {
		t.Errorf("the result is %q", m.Data())
	}
	// The opener's grant has ended; what its labels are shows in the state, which a restart must read back the same.
	if dump := w.d.Governor().Dump(); !containsLine(dump, "grant "+root.session, "labels [secret]") {
		t.Errorf("the root does not carry the label:\n%s", dump)
	}
}

// Transfers end what they must, and are told why they cannot go.
func TestClaimsOfTransfers(t *testing.T) {
	w := newWorld(t, under(policyOf(t, holdSecretResults)))
	a, b, c, d := w.agent("a"), w.agent("b"), w.agent("c"), w.agent("d")
	root := a.session(readFiles())

	// Two transfers of one grant: the first to be claimed ends it.
	grant := chainOf(t, root, wire.ModeDelegate, b)
	one, two := grant.offer(c.name, "all", transferring), grant.offer(d.name, "all", transferring)
	b.receipt(one.id)
	b.receipt(two.id)
	c.claim(root.session, one.id)
	if got := d.tryClaim(root.session, two.id); got.Error == nil || got.Error.Code != wire.CodeParentEnded {
		t.Errorf("the same task was transferred twice: %+v", got.Error)
	}

	// A delegated part that was offered after the transfer: the transfer waits for it.
	grant = chainOf(t, root, wire.ModeDelegate, b)
	all, part := grant.offer(c.name, "all", transferring), grant.offer(d.name, "a part")
	b.receipt(all.id)
	b.receipt(part.id)
	if got := c.tryClaim(root.session, all.id); got.Error == nil || got.Error.Code != wire.CodeTransferOpen || got.Error.RetryAfter < 1 {
		t.Errorf("a transfer while a part is delegated: %+v", got.Error)
	}
	worker, _ := d.claim(root.session, part.id)
	worker.result("part")
	b.next(wire.KindResult, part.id)
	c.claim(root.session, all.id)

	// The sender's own result waits for a person.
	grant = chainOf(t, root, wire.ModeDelegate, b)
	all = grant.offer(c.name, "all", transferring)
	b.receipt(all.id)
	grant.result("x", labelled("secret"))
	b.next(wire.KindVerdict, grant.handoff)
	if got := c.tryClaim(root.session, all.id); got.Error == nil || got.Error.Code != wire.CodeParentEnded {
		t.Errorf("a transfer of a task whose result waits: %+v", got.Error)
	}
}

// The policy narrows at the opening and at the claim, in every dimension.
func TestTermsOfPolicy(t *testing.T) {
	w := newWorld(t, under(policyOf(t, `session := {"effect": "allow", "ceiling": {"fs.read": {}, "fs.list": {}}, "ttl": 600, "max_hops": 3}

result := {"effect": "allow"}

decision := {"effect": "allow", "max_hops": 1} if input.stage == "offer"

decision := {"effect": "allow", "ceiling": {"fs.list": {}}, "max_hops": 0, "ttl": 60} if input.stage == "claim"`)))
	a, b, c := w.agent("a"), w.agent("b"), w.agent("c")
	tools := readFiles()
	tools["fs.write"] = tools["fs.list"]
	root := a.session(tools)
	claims := root.leaf().Claims
	if !claims.Tools.Equal(readFiles()) || claims.MaxDepth != 6 || claims.ExpiresAt-claims.IssuedAt != 600 {
		t.Errorf("the root holds %v for %d s and %d links", claims.Tools, claims.ExpiresAt-claims.IssuedAt, claims.MaxDepth)
	}
	o := root.offer(b.name, "work", func(o *offering) { o.header[wire.HeaderVerdict] = []string{"always"} })
	if v := a.verdict(o.id); v.Effect != wire.EffectAllow || !v.Granted.Equal(readFiles()) {
		t.Errorf("the offer: %+v", v)
	}
	index := a.receipt(o.id)
	if d := w.entryAt(w.operator(), index).Decided; d.MaxDepth != 4 {
		t.Errorf("one hop after this is depth 4 at most, not %d", d.MaxDepth)
	}
	grant, _ := b.claim(root.session, o.id)
	claims = grant.leaf().Claims
	if !claims.Tools.Equal(aat.Tools{"fs.list": {}}) || claims.MaxDepth != 2 || claims.ExpiresAt-claims.IssuedAt > 60 {
		t.Errorf("the grant holds %v for %d s and %d links", claims.Tools, claims.ExpiresAt-claims.IssuedAt, claims.MaxDepth)
	}
	further := grant.offer(c.name, "more")
	if v := b.verdict(further.id); firstCode(v) != wire.CodeHopLimit {
		t.Errorf("one hop too many: %+v", v)
	}

	// A key is one agent's.
	request := c.openRequest(readFiles())
	request.JWK = a.jwk()
	c.key = a.key
	if out := c.open(request); out.Error == nil || out.Error.Code != wire.CodeKeyBound {
		t.Errorf("a session with another agent's key: %+v", out.Error)
	}
}

// Labels that would be too many refuse what would have them.
func TestTooManyLabels(t *testing.T) {
	w := newWorld(t)
	a, b := w.agent("a"), w.agent("b")
	labels := func(color string) (out []string) {
		for i := range 40 {
			out = append(out, color+string(rune('A'+i)))
		}
		return out
	}
	root := a.session(readFiles())
	grant := chainOf(t, root, wire.ModeDelegate, b)
	spare := chainOf(t, root, wire.ModeDelegate, b)
	part := chainOf(t, grant, wire.ModeDelegate, a)
	part.result("x", labelled(labels("red")...))
	b.next(wire.KindResult, part.handoff)
	o := grant.offer(a.name, "work", func(o *offering) { o.handoff.Labels = labels("blue") })
	if v := b.verdict(o.id); firstCode(v) != wire.CodeTooLarge {
		t.Errorf("an offer with 80 labels: %+v", v)
	}
	grant.result("done", labelled(labels("blue")...))
	if v := b.verdict(grant.handoff); firstCode(v) != wire.CodeTooLarge {
		t.Errorf("a result with 80 labels: %+v", v)
	}
	b.receipt(spare.result("done", labelled(labels("blue")...)))
	lives(t, root, b)
}

// Tasks that do not fit one answer come one by one.
func TestClaimsThatDoNotFitOneAnswer(t *testing.T) {
	w := newWorld(t)
	a, b := w.agent("a"), w.agent("b")
	root := a.session(readFiles())
	var ids []string
	for range 2 {
		o := root.offer(b.name, string(make([]byte, wire.MaxBody)))
		a.receipt(o.id)
		ids = append(ids, o.id)
	}
	var out wire.ClaimResponse
	b.ask(wire.ClaimSubject(root.session), encode(t, b.claimRequest(root.session, ids)), &out)
	if out.Error != nil || len(out.Claims) != 2 || len(out.Claims[0].Task) != wire.MaxBody {
		t.Fatalf("the first task did not come: %+v", out.Error)
	}
	if got := out.Claims[1]; got.Error == nil || got.Error.Code != wire.CodeUnavailable || got.Task != nil {
		t.Errorf("the second: %+v", got.Error)
	}
	if _, got := b.claim(root.session, ids[1]); len(got.Task) != wire.MaxBody || !got.Repeat {
		t.Errorf("claimed alone, it has %d bytes", len(got.Task))
	}
}

// A superseded grant is revoked for every guard before its successor is handed out. The issuer's key is no agent's.
func TestTakeOverTellsGuards(t *testing.T) {
	clock := newClock()
	w := newWorld(t, clock.use)
	a, b := w.agent("a"), w.agent("b")
	root := a.session(readFiles())
	grant := chainOf(t, root, wire.ModeDelegate, b)
	clock.advance(time.Minute)
	request := b.claimRequest(root.session, []string{grant.handoff})
	request.JWK = w.d.Endpoint.IssuerKeys[0]
	var out wire.ClaimResponse
	b.ask(wire.ClaimSubject(root.session), encode(t, request), &out)
	if out.Error == nil || out.Error.Code != wire.CodeKey {
		t.Errorf("a claim with the issuer's key: %+v", out.Error)
	}
	second := b.process()
	over, _ := second.claim(root.session, grant.handoff)
	if feed := w.feed(); !dead(feed, grant) || dead(feed, over) {
		t.Error("the superseded grant still opens guards, or the new one does not")
	}
}

// containsLine tells whether a line of text has all parts.
func containsLine(text string, parts ...string) bool {
	for line := range strings.Lines(text) {
		if !slices.ContainsFunc(parts, func(p string) bool { return !strings.Contains(line, p) }) {
			return true
		}
	}
	return false
}
