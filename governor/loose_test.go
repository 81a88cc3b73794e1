package governor_test

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"golang.org/x/mod/sumdb/note"

	"github.com/handoff-governor/handoff-governor/cmd/governor/daemon"
	"github.com/handoff-governor/handoff-governor/governor"
	"github.com/handoff-governor/handoff-governor/governor/issuer"
	"github.com/handoff-governor/handoff-governor/governor/keyring"
	"github.com/handoff-governor/handoff-governor/governor/ledger"
	"github.com/handoff-governor/handoff-governor/handoff/identity"
	"github.com/handoff-governor/handoff-governor/handoff/wire"
	"github.com/handoff-governor/handoff-governor/policies"
)

// loose is a governor whose wire and disk the test holds in its hands: it can stop and break them at any point. Everything
// between them is real.
type loose struct {
	t        *testing.T
	g        *governor.Governor
	ledger   *ledger.Ledger
	endpoint daemon.Endpoint
	stop     func() // ends it, and lets the ledger go
	await    func() // waits until it ends by itself
	ended    error  // what it ended with
	offers   chan []wire.Inbound
	requests chan wire.Request
	said     chan string // kind and body of a delivered message, or "quarantine" with code and reason

	flushes atomic.Int64           // of the live state, tried
	poison  atomic.Pointer[string] // an ID that breaks every batch that uses it up

	receipted struct {
		sync.Mutex
		effects map[string][]string // :: ID → those that nobody has looked at
	}

	faults struct {
		sync.Mutex
		append  func(size int) error        // asked before each commit
		deliver func(m wire.Outbound) error // asked about each inbox message
		revoke  error
		stored  error
		streams error
		entry   error
	}
}

// looseSessions is how many sessions an agent may have open, looseOpen how many handoffs may be open for one.
const (
	looseSessions = 8
	looseOpen     = 5
)

var _, looseIssuer, _ = ed25519.GenerateKey(rand.Reader)

func newKey() ed25519.PrivateKey {
	_, key, _ := ed25519.GenerateKey(rand.Reader)
	return key
}

// newLoose starts a governor on the ledger in dir, with these keys of its own, the current one first.
func newLoose(t *testing.T, dir string, keys ...ed25519.PrivateKey) *loose {
	t.Helper()
	return newLooseWith(t, dir, func(*governor.Config) {}, keys...)
}

// newLooseWith is newLoose with another configuration.
func newLooseWith(t *testing.T, dir string, change func(*governor.Config), keys ...ed25519.PrivateKey) *loose {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	const name, uri = "handoff.local/handoff", "spiffe://handoff.local/governor"
	skey, vkey, err := note.GenerateKey(rand.Reader, name)
	must(err)
	signer, err := note.NewSigner(skey)
	must(err)
	w := &loose{
		t: t, offers: make(chan []wire.Inbound), requests: make(chan wire.Request), said: make(chan string, 10_000),
	}
	w.receipted.effects = map[string][]string{}
	w.ledger, err = ledger.Open(filepath.Join(dir, "ledger.db"), ledger.Config{LogName: name, Signer: signer})
	must(err)
	root, err := issuer.New(issuer.Config{URI: "spiffe://handoff.local/issuer", Keys: keyring.Of(looseIssuer), Governor: uri})
	must(err)
	var ring keyring.Ring
	for _, key := range keys {
		ring = append(ring, keyring.Key{Private: key})
	}
	own, err := governor.NewKeys(ring, nil)
	must(err)
	store, err := policies.NewStore(policyOf(t, allowAll), policies.Config{})
	must(err)
	cfg := governor.Config{
		Bus: looseBus{w}, Log: looseLog{w.ledger, w}, Policy: loosePolicy{store}, Issuer: root, Keys: own, URI: uri, LogName: name,
		LogKey: vkey, Heartbeat: 50 * time.Millisecond, MaxSessions: looseSessions, MaxOpen: looseOpen,
	}
	change(&cfg)
	w.g, err = governor.New(t.Context(), cfg)
	must(err)
	w.endpoint = daemon.Endpoint{Governor: uri, Issuer: root.URI(), IssuerKeys: root.Keys()}
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- w.g.Run(ctx) }()
	ended := sync.OnceFunc(func() { w.ended = <-done; _ = w.ledger.Close() })
	w.stop = func() { stop(); ended() }
	w.await = ended
	t.Cleanup(w.stop)
	<-w.g.Ready()
	return w
}

// receipt is the effect of the oldest receipt for an ID that nobody has looked at, or empty.
func (w *loose) receipt(id string) (effect string) {
	w.receipted.Lock()
	defer w.receipted.Unlock()
	if all := w.receipted.effects[id]; len(all) > 0 {
		effect, w.receipted.effects[id] = all[0], all[1:]
	}
	return effect
}

// with changes what fails.
func (w *loose) with(change func()) {
	w.faults.Lock()
	defer w.faults.Unlock()
	change()
}

func (w *loose) agent(short string) *agent {
	return &agent{w: &world{t: w.t, d: &daemon.Daemon{Endpoint: w.endpoint}}, t: w.t, name: nameOf(w.t, short), key: newKey()}
}

func nameOf(t testing.TB, short string) string {
	t.Helper()
	n, err := identity.NameOf(spiffeid.RequireFromString("spiffe://handoff.local/agent/" + short))
	if err != nil {
		t.Fatal(err)
	}
	return string(n)
}

// request sends a request and returns where its answer will be.
func (w *loose) request(verb, session string, from *agent, body []byte) <-chan []byte {
	answer := make(chan []byte, 1)
	w.requests <- wire.Request{Verb: verb, Sender: from.name, Session: session, Body: body,
		Respond: func(b []byte) error { answer <- b; return nil }}
	return answer
}

// operate makes an operator's request.
func (w *loose) operate(verb string, q wire.OperatorRequest) (out wire.OperatorResponse) {
	w.t.Helper()
	raw := <-w.request(wire.VerbOperator+verb, "", &agent{name: "op"}, encode(w.t, q))
	if err := json.Unmarshal(raw, &out); err != nil {
		w.t.Fatal(err)
	}
	return out
}

func (w *loose) open(a *agent, request wire.OpenRequest) (out wire.OpenResponse) {
	w.t.Helper()
	if err := json.Unmarshal(<-w.request(wire.VerbSessionOpen, "", a, a.prove(request)), &out); err != nil {
		w.t.Fatal(err)
	}
	return out
}

func (w *loose) session(a *agent) held {
	w.t.Helper()
	request := a.openRequest(readFiles())
	out := w.open(a, request)
	if out.Error != nil {
		w.t.Fatal(out.Error)
	}
	return a.hold(out.Chain, *out.GovernorJWK, request.ID, "")
}

// claim claims a task, and returns the answer as it is.
func (w *loose) claim(a *agent, session, id string) wire.Claimed {
	w.t.Helper()
	var out wire.ClaimResponse
	raw := <-w.request(wire.VerbClaim, session, a, encode(w.t, a.claimRequest(session, []string{id})))
	if err := json.Unmarshal(raw, &out); err != nil || out.Error != nil || len(out.Claims) != 1 {
		w.t.Fatalf("%v %+v", err, out.Error)
	}
	return out.Claims[0]
}

// message is an offer as the stream holds it. Each time it is settled, settled says how.
func (w *loose) message(h held, o *offering, settled chan<- string) wire.Inbound {
	settle := func(how string) error {
		if settled != nil {
			settled <- how
		}
		return nil
	}
	return wire.Inbound{
		Kind: wire.InboundOffer, Sender: h.a.name, Session: h.session, To: o.handoff.To, Header: o.header, Body: o.body, Deliveries: 1,
		Ack:   func() error { return settle("ack") },
		Term:  func(string) error { return settle("term") },
		Retry: func(time.Duration) error { return settle("retry") },
	}
}

// offer has an offer admitted.
func (w *loose) offer(h held, to string) *offering {
	w.t.Helper()
	o := h.draft(to, "work")
	h.seal(o)
	w.offers <- []wire.Inbound{w.message(h, o, nil)}
	w.hears(wire.KindTask)
	return o
}

// hears waits for a message that begins so, and passes over everything else.
func (w *loose) hears(prefix string) string {
	w.t.Helper()
	limit := time.After(20 * time.Second)
	for {
		select {
		case said := <-w.said:
			if strings.HasPrefix(said, prefix) {
				return said
			}
			w.t.Logf("passes over %s", said)
		case <-limit:
			w.t.Fatalf("nothing was said that begins with %q", prefix)
		}
	}
}

// looseBus is the wire.
type looseBus struct{ *loose }

func (w looseBus) Fetch(ctx context.Context, _ int, wait time.Duration) ([]wire.Inbound, error) {
	select {
	case in := <-w.offers:
		return in, nil
	case <-time.After(wait):
		return nil, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (w looseBus) Deliver(_ context.Context, out []wire.Outbound) error {
	w.faults.Lock()
	defer w.faults.Unlock()
	failed := map[int]error{}
	for i, m := range out {
		if w.faults.deliver != nil {
			if err := w.faults.deliver(m); err != nil {
				failed[i] = err
				continue
			}
		}
		w.said <- m.Header[wire.HeaderKind][0] + " " + string(m.Body)
	}
	if len(failed) > 0 {
		return &wire.UndeliveredError{Failed: failed}
	}
	return nil
}

func (w looseBus) Stored(context.Context) (uint64, error) {
	w.faults.Lock()
	defer w.faults.Unlock()
	return 0, w.faults.stored
}

func (w looseBus) Skip(context.Context, uint64) error { return nil }

func (w looseBus) Receipt(_ string, body []byte) error {
	var all wire.Receipts
	if err := json.Unmarshal(body, &all); err != nil {
		return err
	}
	w.receipted.Lock()
	defer w.receipted.Unlock()
	for _, r := range all.Entries {
		w.receipted.effects[r.ID] = append(w.receipted.effects[r.ID], r.Effect)
	}
	return nil
}

func (w looseBus) Revoke([]byte) error {
	w.faults.Lock()
	defer w.faults.Unlock()
	return w.faults.revoke
}

func (w looseBus) Quarantine(_ context.Context, in wire.Inbound, code wire.Code, reason string) error {
	w.said <- "quarantine " + string(code) + ": " + reason
	return in.Term(reason)
}

func (w looseBus) Quarantined(context.Context, uint64, int) ([]wire.Quarantined, error) {
	return nil, nil
}

func (w looseBus) QuarantinedMessage(context.Context, uint64) (*wire.Quarantined, error) {
	return nil, errors.ErrUnsupported
}

func (w looseBus) Requeue(context.Context, uint64) error { return errors.ErrUnsupported }

func (w looseBus) DropQuarantined(context.Context, uint64) error { return errors.ErrUnsupported }

func (w looseBus) Trouble() error {
	w.faults.Lock()
	defer w.faults.Unlock()
	return w.faults.streams
}

// Serve serves requests side by side, as the real one does.
func (w looseBus) Serve(ctx context.Context, handle func(context.Context, wire.Request)) error {
	var group sync.WaitGroup
	defer group.Wait()
	for {
		select {
		case r := <-w.requests:
			group.Go(func() { handle(ctx, r) })
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// looseLog is the disk.
type looseLog struct {
	*ledger.Ledger
	w *loose
}

func (l looseLog) Append(ctx context.Context, next uint64, batch []ledger.Record) error {
	l.w.faults.Lock()
	f := l.w.faults.append
	l.w.faults.Unlock()
	if f != nil {
		if err := f(len(batch)); err != nil {
			return err
		}
	}
	for _, r := range batch {
		if poison := l.w.poison.Load(); poison != nil && slices.Contains(r.IDs, *poison) {
			return ledger.ErrIDUsed
		}
	}
	return l.Ledger.Append(ctx, next, batch)
}

func (l looseLog) PutLive(watermark uint64, changes map[string][]byte) error {
	defer l.w.flushes.Add(1)
	return l.Ledger.PutLive(watermark, changes)
}

func (l looseLog) Entry(index uint64) ([]byte, error) {
	l.w.faults.Lock()
	err := l.w.faults.entry
	l.w.faults.Unlock()
	if err != nil {
		return nil, err
	}
	return l.Ledger.Entry(index)
}

type loosePolicy struct{ store *policies.Store }

func (p loosePolicy) Current() governor.Judge { return looseJudge{p.store.Current()} }

func (p loosePolicy) Compile(raw []byte) (governor.Judge, error) {
	b, err := policies.Parse(raw)
	if err != nil {
		return nil, err
	}
	s, err := p.store.Prepare(b)
	if err != nil {
		return nil, err
	}
	return looseJudge{s}, nil
}

func (p loosePolicy) Activate(j governor.Judge) { p.store.Use(j.(looseJudge).Snapshot) }

type looseJudge struct{ *policies.Snapshot }

func (j looseJudge) Engine() string { return policies.Engine() }
func (j looseJudge) Bytes() []byte  { return j.Bundle().Bytes() }

// errDisk is a fault that passes.
var errDisk = errors.New("no space left on device")

// A disk that fails once is no verdict: an offer that came twice, the second time while the first was being written, must
// neither be called a conflict with itself nor get lost.
func TestAttackConflictWithAFailedCommit(t *testing.T) {
	w := newLoose(t, t.TempDir(), newKey())
	a := w.agent("a")
	h := w.session(a)
	o := h.draft(nameOf(t, "b"), "work")
	h.seal(o)
	settled := make(chan string, 10)
	message := w.message(h, o, settled)
	appending, fail := make(chan struct{}), make(chan struct{})
	w.with(func() {
		w.faults.append = func(int) error {
			w.with(func() { w.faults.append = nil })
			close(appending)
			<-fail
			return errDisk
		}
	})
	w.offers <- []wire.Inbound{message}
	<-appending                         // the first copy is in the state, and not on the disk
	w.offers <- []wire.Inbound{message} // its sender has not seen a receipt
	w.offers <- nil                     // the second copy is prepared
	close(fail)
	for acked := false; !acked; {
		select {
		case how := <-settled:
			if acked = how == "ack"; how == "retry" {
				w.offers <- []wire.Inbound{message}
			}
		case said := <-w.said:
			if !strings.HasPrefix(said, wire.KindTask) {
				t.Fatalf("a fault of the disk led to: %s", said)
			}
		case <-time.After(20 * time.Second):
			t.Fatal("the offer got lost")
		}
	}
	if c := w.claim(w.agent("b"), h.session, o.id); c.Error != nil {
		t.Errorf("the task cannot be claimed: %v", c.Error)
	}
}

// A bundle whose activation cannot be written is not in force.
func TestActivationThatFails(t *testing.T) {
	w := newLoose(t, t.TempDir(), newKey())
	a := w.agent("a")
	before := w.g.Bundle()
	w.with(func() { w.faults.append = func(int) error { return errDisk } })
	deny := policyOf(t, `session := {"effect": "deny"}

decision := {"effect": "deny"}`)
	if out := w.operate(wire.VerbBundleActivate, wire.OperatorRequest{Bundle: deny.Bytes()}); out.Error == nil || out.Error.Code != wire.CodeUnavailable {
		t.Fatalf("the operator is told %+v", out)
	}
	w.with(func() { w.faults.append = nil })
	w.session(a) // which the other bundle denies
	if after := w.g.Bundle(); after != before {
		t.Errorf("bundle %s is in force, and nothing says so", after)
	}
	if out := w.operate(wire.VerbBundleActivate, wire.OperatorRequest{Bundle: deny.Bytes()}); out.Error != nil {
		t.Fatal(out.Error)
	}
	if out := w.open(a, a.openRequest(readFiles())); out.Error == nil || out.Error.Code != wire.CodePolicyDenied {
		t.Errorf("under the other bundle: %+v", out.Error)
	}
}

// What nobody would ask for again is tried until it is out; what its receiver has no room for is the receiver's loss.
func TestVerdictsThatCannotBeDelivered(t *testing.T) {
	w := newLoose(t, t.TempDir(), newKey())
	a, b := w.agent("a"), w.agent("b")
	root := w.session(a)
	tries := map[string]int{}
	failing := func(err error) {
		w.with(func() {
			clear(tries)
			w.faults.deliver = func(m wire.Outbound) error {
				id := m.Header[wire.HeaderID][0]
				if tries[id]++; tries[id] > 3 {
					return nil
				}
				return err
			}
		})
	}
	o := w.offer(root, b.name)
	failing(errors.New("no quorum"))
	if out := w.operate(wire.VerbRevoke, wire.OperatorRequest{ID: o.id, Reason: "test"}); out.Error != nil {
		t.Fatal(out.Error)
	}
	if said := w.hears(wire.KindVerdict); !strings.Contains(said, o.id) {
		t.Errorf("the verdict is %s", said)
	}

	// A full inbox: the notice is tried again, the verdict is not.
	failing(wire.Refuse(wire.CodeInboxFull, "full"))
	settled := make(chan string, 10)
	task := root.draft(b.name, "work")
	root.seal(task)
	w.offers <- []wire.Inbound{w.message(root, task, settled)}
	if how := <-settled; how != "retry" {
		t.Errorf("the offer whose notice did not get out is settled by %s", how)
	}
	denied := root.draft(b.name, "work")
	denied.claims.ExpiresAt += 100_000
	root.seal(denied)
	w.offers <- []wire.Inbound{w.message(root, denied, settled)}
	if how := <-settled; how != "ack" {
		t.Errorf("the offer whose verdict finds no room is settled by %s", how)
	}
}

// A start after a crash repeats what did not get out, and nothing because somebody lets its own inbox run full.
func TestWhatIsNotOut(t *testing.T) {
	w := newLoose(t, t.TempDir(), newKey())
	a, b := w.agent("a"), w.agent("b")
	root := w.session(a)
	outUpTo := func(want uint64) {
		t.Helper()
		var out uint64
		for start := time.Now(); time.Since(start) < 5*time.Second; time.Sleep(10 * time.Millisecond) {
			var err error
			if out, err = w.g.OutUpTo(); err != nil {
				t.Fatal(err)
			}
			if out > want || out == want && time.Since(start) > 300*time.Millisecond { // some heartbeats
				break
			}
		}
		if out != want {
			t.Errorf("all is out below entry %d, want %d of %d", out, want, w.ledger.Size())
		}
	}
	settled := make(chan string, 10)
	put := func(change func(*offering)) {
		o := root.draft(b.name, "work")
		if change != nil {
			change(o)
		}
		root.seal(o)
		w.offers <- []wire.Inbound{w.message(root, o, settled)}
		<-settled
	}
	full := func() {
		w.faults.deliver = func(wire.Outbound) error { return wire.Refuse(wire.CodeInboxFull, "full") }
	}
	w.with(full)
	put(func(o *offering) { o.claims.ExpiresAt += 100_000 }) // denied
	outUpTo(w.ledger.Size())
	hole := w.ledger.Size()
	put(nil)
	w.with(func() { w.faults.deliver = nil })
	put(nil)
	outUpTo(hole)
	w.with(full)
	put(nil)
	outUpTo(hole) // the first counts
}

// A receiver has room for so many tasks at once, of which one sender can take half, and what it finishes makes room.
func TestInboxThatIsFull(t *testing.T) {
	w := newLoose(t, t.TempDir(), newKey())
	a, b, c := w.agent("a"), w.agent("b"), w.agent("c")
	root, other := w.session(a), w.session(c)
	full := func(from held) {
		t.Helper()
		settled := make(chan string, 1)
		o := from.draft(b.name, "work")
		from.seal(o)
		w.offers <- []wire.Inbound{w.message(from, o, settled)}
		<-settled
		if said := w.hears(wire.KindVerdict); !strings.Contains(said, string(wire.CodeInboxFull)) {
			t.Errorf("the verdict is %s", said)
		}
	}
	var last *offering
	for range (looseOpen + 1) / 2 {
		last = w.offer(root, b.name)
	}
	full(root)
	for range looseOpen / 2 {
		w.offer(other, b.name)
	}
	full(other)
	if out := w.operate(wire.VerbRevoke, wire.OperatorRequest{ID: last.id, Reason: "test"}); out.Error != nil {
		t.Fatal(out.Error)
	}
	w.hears(wire.KindVerdict) // of the revocation
	w.offer(other, b.name)
	full(other)
	full(root)
}

// A governor that sees that its streams have lost messages ends, since a start makes them again: by the heartbeat, or by what
// becomes of a message.
func TestEndsWhereTheStreamsHaveLost(t *testing.T) {
	lost := wire.ErrStreamsLost
	byHeartbeat := newLoose(t, t.TempDir(), newKey())
	byHeartbeat.with(func() { byHeartbeat.faults.stored = lost })
	byHeartbeat.await()
	if !errors.Is(byHeartbeat.ended, wire.ErrStreamsLost) {
		t.Errorf("it has ended with %v", byHeartbeat.ended)
	}

	byMessage := newLoose(t, t.TempDir(), newKey())
	root := byMessage.session(byMessage.agent("a"))
	byMessage.with(func() { byMessage.faults.deliver = func(wire.Outbound) error { return lost } })
	task := root.draft(byMessage.agent("b").name, "work")
	root.seal(task)
	byMessage.offers <- []wire.Inbound{byMessage.message(root, task, make(chan string, 10))}
	byMessage.await()
	if !errors.Is(byMessage.ended, wire.ErrStreamsLost) {
		t.Errorf("it has ended with %v", byMessage.ended)
	}
}

// What is wrong is told as long as it is; and a commit whose outcome is unknown ends the governor, since only another start knows it.
func TestTroubleIsTold(t *testing.T) {
	w := newLoose(t, t.TempDir(), newKey())
	a := w.agent("a")
	h := w.session(a)
	troubles := func() (of []string) {
		t.Helper()
		for _, trouble := range w.operate(wire.VerbHealth, wire.OperatorRequest{}).Health.Troubles {
			of = append(of, trouble.Of)
			if trouble.Since == 0 || !strings.Contains(trouble.Message, "no room") {
				t.Errorf("%+v", trouble)
			}
		}
		return of
	}
	eventually := func(want ...string) {
		t.Helper()
		for end := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) {
			if got := troubles(); slices.Equal(got, want) {
				return
			} else if time.Now().After(end) {
				t.Fatalf("the troubles are %v, want %v", got, want)
			}
		}
	}
	eventually()
	sealed := func() *offering {
		o := h.draft(a.name, "work")
		h.seal(o)
		return o
	}
	noRoom := errors.New("no room")
	w.with(func() {
		w.faults.append = func(int) error { return noRoom }
		w.faults.streams = noRoom
	})
	settled := make(chan string, 1)
	w.offers <- []wire.Inbound{w.message(h, sealed(), settled)}
	if how := <-settled; !strings.HasPrefix(how, "retry") {
		t.Errorf("the offer was settled by %q", how)
	}
	eventually("ledger", "streams")
	for begun := w.flushes.Load(); w.flushes.Load() < begun+3; time.Sleep(5 * time.Millisecond) {
	}
	eventually("ledger", "streams") // the live state could be written meanwhile, which says nothing of entries
	w.with(func() { w.faults.append, w.faults.streams = nil, nil })
	w.offers <- []wire.Inbound{w.message(h, sealed(), settled)}
	<-settled
	eventually()
	w.with(func() { w.faults.append = func(int) error { return ledger.ErrBroken } })
	w.offers <- []wire.Inbound{w.message(h, sealed(), settled)}
	w.await()
	if !errors.Is(w.ended, ledger.ErrBroken) {
		t.Errorf("it ended with %v", w.ended)
	}
}

// What breaks its batch by itself is found, and set aside after a bounded number of tries. It blocks nobody.
func TestPoisonIsSetAside(t *testing.T) {
	w := newLoose(t, t.TempDir(), newKey())
	a, b := w.agent("a"), w.agent("b")
	h := w.session(a)
	draft := func() *offering {
		o := h.draft(b.name, "work")
		h.seal(o)
		return o
	}
	poison := draft()
	w.poison.Store(&poison.id)
	const most = 20 // as in maxDeliveries
	for delivery := 1; delivery <= most; delivery++ {
		good, settled, poisoned := draft(), make(chan string, 1), make(chan string, 1)
		in := w.message(h, poison, poisoned)
		in.Deliveries = delivery
		w.offers <- []wire.Inbound{in, w.message(h, good, settled)}
		if how := <-settled; how != "ack" || w.receipt(good.id) == "" {
			t.Fatalf("beside the poison, an offer was settled by %q", how)
		}
		want := "retry"
		if delivery == most {
			want = "term"
			w.hears("quarantine " + string(wire.CodeQuarantineUnknown))
		}
		if how := <-poisoned; how != want {
			t.Fatalf("at delivery %d the poison was settled by %q, want %q", delivery, how, want)
		}
	}
}
