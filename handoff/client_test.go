package handoff_test

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"

	"github.com/handoff-governor/handoff-governor/cmd/governor/daemon"
	"github.com/handoff-governor/handoff-governor/handoff"
	"github.com/handoff-governor/handoff-governor/handoff/aat"
	"github.com/handoff-governor/handoff-governor/handoff/wire"
)

// A task goes to another agent and on to a third, and the results come back.
func TestLifeOfATask(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	a, b, c := w.agent("a"), w.agent("b"), w.agent("c")

	session := w.session(a)
	sent := must(session.Offer(w.ctx(), "b", []byte("write a report"), handoff.Tools(readFiles("/a")),
		handoff.ContentType("text/plain"), handoff.Purpose("quarterly"), handoff.Labels("internal")))(t)

	task := w.receive(b)
	if task.ID != sent.ID || task.From != a.Name() || task.Session() != session.Session() || string(task.Body) != "write a report" ||
		task.ContentType != "text/plain" || task.Purpose != "quarterly" || task.Mode != wire.ModeDelegate {
		t.Errorf("the task is %+v", task)
	}
	if !task.Tools().Equal(readFiles("/a")) {
		t.Errorf("granted %v", task.Tools())
	}

	onward := must(task.Offer(w.ctx(), "c", []byte("read /a"), handoff.AwaitVerdict()))(t)
	if v := onward.Verdict(); v == nil || v.Effect != wire.EffectAllow {
		t.Errorf("the verdict is %+v, want allow", v)
	}
	below := w.receive(c)
	if err := below.Fail(w.ctx(), "no such file"); err != nil {
		t.Fatal(err)
	}
	failed := must(onward.Result(w.ctx()))(t)
	if failed.Status != wire.StatusFailed || string(failed.Body) != "no such file" || failed.From != c.Name() {
		t.Errorf("the result from c is %+v", failed)
	}

	if err := task.Complete(w.ctx(), []byte("done"), handoff.ContentType("text/plain")); err != nil {
		t.Fatal(err)
	}
	<-task.Context().Done()
	for range 2 { // it can be asked for again
		result := must(sent.Result(w.ctx()))(t)
		if result.Status != wire.StatusCompleted || string(result.Body) != "done" || result.ContentType != "text/plain" || result.From != b.Name() {
			t.Errorf("the result is %+v", result)
		}
	}
	status := must(session.Status(w.ctx()))(t)
	if status.State != "open" || status.Handoffs != 2 || status.Open != 0 {
		t.Errorf("the session's status is %+v", status)
	}
	if err := session.Close(w.ctx(), "done"); err != nil {
		t.Fatal(err)
	}
	if _, err := session.Offer(w.ctx(), "b", nil, handoff.AwaitVerdict()); err == nil {
		t.Error("an offer after the end of the session was accepted")
	}
}

// wantCode fails unless err is a refusal of that code.
func wantCode(t testing.TB, err error, code wire.Code) {
	t.Helper()
	if !errors.Is(err, &wire.Error{Code: code}) {
		t.Errorf("got %v, want %s", err, code)
	}
}

func TestDenialIsAnAnswer(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	a := w.agent("a")
	session := w.session(a)
	h, err := session.Offer(w.ctx(), "spiffe://else.example/agent/x", []byte("task"), handoff.AwaitVerdict())
	denied, ok := errors.AsType[*handoff.Denied](err)
	if !ok || denied.ID != h.ID || denied.Entry == nil || len(denied.Reasons) == 0 {
		t.Fatalf("got %v, want a denial", err)
	}
	wantCode(t, err, wire.CodeUnknownAgent)
	if _, err := h.Result(w.ctx()); !errors.Is(err, &wire.Error{Code: wire.CodeUnknownAgent}) {
		t.Errorf("the result of what was denied: %v", err)
	}

	// What was not asked to wait for the verdict learns it with the result.
	quiet, err := session.Offer(w.ctx(), "spiffe://else.example/agent/x", nil)
	if err != nil {
		wantCode(t, err, wire.CodeUnknownAgent)
	}
	_, err = quiet.Result(w.ctx())
	wantCode(t, err, wire.CodeUnknownAgent)
}

// What the client can know is wrong never leaves it.
func TestRefusedAtHome(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	a := w.agent("a")
	session := w.session(a, func(r *handoff.SessionRequest) { r.MaxHops = 1 })
	for name, test := range map[string]struct {
		to      string
		task    []byte
		code    wire.Code
		options []handoff.OfferOption
	}{
		"a wider argument": {"b", nil, wire.CodeWidened, []handoff.OfferOption{handoff.Tools(readFiles("/c"))}},
		"another tool":     {"b", nil, wire.CodeWidened, []handoff.OfferOption{handoff.Tools(aat.Tools{"fs.write": {}})}},
		"no such name":     {"b c", nil, wire.CodeUnknownAgent, nil},
		"too large":        {"b", make([]byte, wire.MaxBody+1), wire.CodeTooLarge, nil},
		"too far":          {"b", nil, wire.CodeHopLimit, []handoff.OfferOption{handoff.MaxHops(0)}},
	} {
		_, err := session.Offer(w.ctx(), test.to, test.task, test.options...)
		if name == "too far" { // one hop is what there is
			if err != nil {
				t.Errorf("%s: %v", name, err)
			}
			continue
		}
		if !errors.Is(err, &wire.Error{Code: test.code}) {
			t.Errorf("%s: %v, want %s", name, err, test.code)
		}
	}
	b := w.agent("b")
	task := w.receive(b)
	_, err := task.Offer(w.ctx(), "c", nil)
	wantCode(t, err, wire.CodeHopLimit)
	if err := task.Complete(w.ctx(), make([]byte, wire.MaxBody+1)); !errors.Is(err, &wire.Error{Code: wire.CodeTooLarge}) {
		t.Errorf("a result that is too large: %v", err)
	}
	if err := task.Complete(w.ctx(), make([]byte, wire.MaxBody)); err != nil {
		t.Errorf("a result of 1 MiB: %v", err)
	}
	if _, err := a.OpenSession(w.ctx(), handoff.SessionRequest{Objective: "x", Principal: wire.Principal{Kind: wire.PrincipalHuman, Name: "ann"}}); err == nil {
		t.Error("a human principal without a proof")
	}
}

func TestSessionOfAPerson(t *testing.T) {
	t.Parallel()
	_, ann, _ := ed25519.GenerateKey(rand.Reader)
	_, eve, _ := ed25519.GenerateKey(rand.Reader)
	w := newWorld(t, func(c *daemon.Config) {
		c.People = map[string]aat.JWK{"ann": aat.NewJWK(ann.Public().(ed25519.PublicKey))}
	})
	a := w.agent("a")
	request := handoff.SessionRequest{Objective: "x", Tools: readFiles("/a"), Principal: wire.Principal{Kind: wire.PrincipalHuman, Name: "ann"}}
	request.Person = handoff.PersonKey("ann", eve)
	if _, err := a.OpenSession(w.ctx(), request); err == nil {
		t.Error("somebody else opened a session as ann")
	}
	request.Person = handoff.PersonKey("ann", ann)
	session := must(a.OpenSession(w.ctx(), request))(t)
	if status := must(session.Status(w.ctx()))(t); status.Principal.Name != "ann" || status.Principal.Kind != wire.PrincipalHuman {
		t.Errorf("the session's status is %+v", status)
	}
}

// Programs that run one after another act as one process by a key in a file.
func TestOneProcessByItsKey(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	path := filepath.Join(t.TempDir(), "agent", "key")
	withKey := func(c *handoff.Config) { c.Key = must(handoff.LoadKey(path))(t) }

	first := w.agent("a", withKey)
	session := w.session(first)
	sent := must(session.Offer(w.ctx(), "b", []byte("task")))(t)
	first.Close()
	b := w.agent("b", oneKey(t))
	task := w.receive(b)
	if err := task.Complete(w.ctx(), []byte("done")); err != nil {
		t.Fatal(err)
	}

	again := w.agent("a", withKey)
	resumed := w.session(again, func(r *handoff.SessionRequest) { r.ID = session.Session() })
	if resumed.Chain()[0] != session.Chain()[0] {
		t.Error("the same session has another root")
	}
	if result := must(again.Handoff(sent.ID).Result(w.ctx()))(t); string(result.Body) != "done" {
		t.Errorf("the result is %+v", result)
	}

	// Another process of the agent is not the opener.
	other := w.agent("a")
	_, err := other.OpenSession(w.ctx(), handoff.SessionRequest{ID: session.Session(), Objective: "x"})
	wantCode(t, err, wire.CodeIDConflict)
	_, err = other.SessionStatus(w.ctx(), session.Session())
	wantCode(t, err, wire.CodeProof)
	if err := again.CloseSession(w.ctx(), session.Session(), "done"); err != nil {
		t.Error(err)
	}
}

// oneKey makes every client that it configures the same process.
func oneKey(t testing.TB) func(*handoff.Config) {
	key := must(handoff.LoadKey(filepath.Join(t.TempDir(), "key")))(t)
	return func(c *handoff.Config) { c.Key = key }
}

func TestClaimAgainByID(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	a := w.agent("a")
	withKey := oneKey(t)
	b := w.agent("b", withKey)
	must(w.session(a).Offer(w.ctx(), "b", []byte("task")))(t)
	task := w.receive(b)
	if again := must(b.Claim(w.ctx(), task.Session(), task.ID))(t); again != task {
		t.Error("claiming what is at work gives another task")
	}
	b.Close()
	if err := context.Cause(task.Context()); !errors.Is(err, handoff.ErrClosed) {
		t.Errorf("the task ended with %v", err)
	}

	stranger := w.agent("b")
	_, err := stranger.Claim(w.ctx(), task.Session(), task.ID)
	wantCode(t, err, wire.CodeAlreadyClaimed)
	again := must(w.agent("b", withKey).Claim(w.ctx(), task.Session(), task.ID))(t)
	if string(again.Body) != "task" || again.From != a.Name() {
		t.Errorf("claimed again, the task is %+v", again)
	}
	_, err = a.Claim(w.ctx(), task.Session(), task.ID)
	wantCode(t, err, wire.CodeHandoffUnknown)
}

func TestKeyFiles(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path := filepath.Join(dir, "new", "key")
	key := must(handoff.LoadKey(path))(t)
	if again := must(handoff.LoadKey(path))(t); !again.Equal(key) {
		t.Error("the key has changed")
	}
	info := must(os.Stat(path))(t)
	if info.Mode().Perm() != 0o600 {
		t.Errorf("the key's mode is %s", info.Mode())
	}
	if left := must(os.ReadDir(filepath.Dir(path)))(t); len(left) != 1 {
		t.Errorf("left behind: %v", left)
	}
	var keys [8]ed25519.PrivateKey
	var all sync.WaitGroup
	for i := range keys {
		all.Go(func() { keys[i], _ = handoff.LoadKey(filepath.Join(dir, "race")) })
	}
	all.Wait()
	for _, k := range keys {
		if !k.Equal(keys[0]) || k == nil {
			t.Error("two programs that begin at once have two keys")
		}
	}
	os.Chmod(path, 0o640)
	if _, err := handoff.LoadKey(path); err == nil {
		t.Error("a key that others can read was taken")
	}
	for name, content := range map[string]string{"empty": "", "text": "key", "pem": "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"} {
		path := filepath.Join(dir, name)
		os.WriteFile(path, []byte(content), 0o600)
		if _, err := handoff.LoadKey(path); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
	if _, err := handoff.LoadKey(dir); err == nil {
		t.Error("a directory was taken")
	}
}

// A transfer ends the sender's grant, and the result goes to the one who waits for it.
func TestTransfer(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	a, b, c := w.agent("a"), w.agent("b"), w.agent("c")
	sent := must(w.session(a).Offer(w.ctx(), "b", []byte("task")))(t)
	task := w.receive(b)
	must(task.Offer(w.ctx(), "c", []byte("yours now"), handoff.Transfer(), handoff.AwaitVerdict()))(t)
	last := w.receive(c)
	if last.Mode != wire.ModeTransfer {
		t.Errorf("mode %s", last.Mode)
	}
	if err := last.Complete(w.ctx(), []byte("done by c")); err != nil {
		t.Fatal(err)
	}
	result := must(sent.Result(w.ctx()))(t)
	if string(result.Body) != "done by c" || result.From != c.Name() || result.ID != sent.ID {
		t.Errorf("the result is %+v", result)
	}
	if err := task.Complete(w.ctx(), []byte("done by b")); err == nil {
		t.Error("the result of a task that was handed on for good was accepted")
	}
}

// Results and verdicts reach those who wait, whenever they begin to, and however many there are.
func TestManyHandoffs(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	a := w.agent("a")
	const agents, each = 3, 60
	ctx, stop := context.WithCancel(w.ctx())
	var workers, waiters sync.WaitGroup
	for i := range agents {
		b := w.agent(fmt.Sprint("b", i), func(c *handoff.Config) { c.Prefetch = 8 })
		for range 2 {
			workers.Go(func() {
				for task, err := range b.Tasks(ctx) {
					if err != nil {
						if ctx.Err() == nil {
							t.Error(err)
						}
						return
					}
					if err := task.Complete(w.ctx(), append([]byte("re: "), task.Body...)); err != nil {
						t.Error(err)
					}
				}
			})
		}
	}
	session := w.session(a)
	for i := range agents {
		for j := range each {
			waiters.Go(func() {
				body := fmt.Sprint(i, " ", j)
				h, err := session.Offer(w.ctx(), fmt.Sprint("b", i), []byte(body))
				if err != nil {
					t.Error(err)
					return
				}
				for range 2 {
					waiters.Go(func() {
						if r, err := h.Result(w.ctx()); err != nil || string(r.Body) != "re: "+body {
							t.Errorf("%s: %v, %v", body, r, err)
						}
					})
				}
			})
		}
	}
	waiters.Wait()
	stop()
	workers.Wait()
	status := must(session.Status(w.ctx()))(t)
	if status.Handoffs != agents*each || status.Open != 0 {
		t.Errorf("the session's status is %+v", status)
	}
}

// Two processes of one agent share the inbox; each gets the results of its own handoffs.
func TestTwoProcesses(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	first, second, b := w.agent("a"), w.agent("a"), w.agent("b")
	ctx, stop := context.WithCancel(w.ctx())
	defer stop()
	go func() {
		for task := range b.Tasks(ctx) {
			if task != nil {
				task.Complete(w.ctx(), task.Body)
			}
		}
	}()
	var all sync.WaitGroup
	for name, c := range map[string]*handoff.Client{"first": first, "second": second} {
		session := w.session(c)
		for i := range 10 {
			all.Go(func() {
				body := fmt.Sprint(name, i)
				h, err := session.Offer(w.ctx(), "b", []byte(body))
				if err != nil {
					t.Error(err)
					return
				}
				if r, err := h.Result(w.ctx()); err != nil || string(r.Body) != body {
					t.Errorf("%s: %v, %v", body, r, err)
				}
			})
		}
	}
	all.Wait()
}

// Whatever was not receipted is sent again, and repeats have no effect.
func TestGovernorRestarts(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	a, b := w.agent("a"), w.agent("b")
	session := w.session(a)
	before := must(session.Offer(w.ctx(), "b", []byte("before")))(t)
	at := w.receive(b)

	w.stop()
	errs := make(chan error, 2)
	var during *handoff.Handoff
	ctx := within(t, 60*time.Second)
	go func() { errs <- at.Complete(ctx, []byte("done")) }()
	go func() {
		var err error
		during, err = session.Offer(ctx, "b", []byte("during"))
		errs <- err
	}()
	short, cancel := context.WithTimeout(ctx, 100*time.Millisecond)
	defer cancel()
	lost, err := session.Offer(short, "b", []byte("given up"))
	if !errors.Is(err, context.DeadlineExceeded) || lost == nil {
		t.Errorf("an offer without a governor: %v, %v", lost, err)
	}
	w.start()
	for range 2 {
		if err := <-errs; err != nil {
			t.Fatal(err)
		}
	}
	if r, err := before.Result(ctx); err != nil || string(r.Body) != "done" {
		t.Errorf("the result is %v, %v", r, err)
	}
	if err := lost.Await(ctx); err != nil {
		t.Errorf("what was given up can be sent after all: %v", err)
	}
	for range 2 {
		task, err := b.Receive(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if task.ID != during.ID && task.ID != lost.ID {
			t.Errorf("received %s", task.Body)
		}
	}
	if status := must(session.Status(ctx))(t); status.Handoffs != 3 {
		t.Errorf("the session has %d handoffs, want 3", status.Handoffs)
	}
}

// The client goes on over rotations of its SVID, and the connection never lives longer than one.
func TestRotation(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(c *daemon.Config) { c.SVIDTTL = 4 * time.Second })
	rotating := must(workloadapi.NewX509Source(w.ctx(), workloadapi.WithClientOptions(
		workloadapi.WithAddr(must(w.d.Socket("/agent/a"))(t)))))(t)
	t.Cleanup(func() { rotating.Close() })                             // after the client: it may be connecting anew just then
	a := w.agent("a", func(c *handoff.Config) { c.Source = rotating }) // tells of each new SVID
	b := w.agent("b")                                                  // has to be asked
	session := w.session(a)
	ctx := within(t, 60*time.Second)
	for end, i := time.Now().Add(6*time.Second), 0; time.Now().Before(end); i++ {
		h, err := session.Offer(ctx, "b", []byte(fmt.Sprint(i)))
		if err != nil {
			t.Fatal(err)
		}
		task, err := b.Receive(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if err := task.Complete(ctx, task.Body); err != nil {
			t.Fatal(err)
		}
		if _, err := h.Result(ctx); err != nil {
			t.Fatal(err)
		}
	}
}

// What comes while a client connects again is there when it has: it does not wait until the server sends it once more,
// which is after 30 seconds.
func TestLostConnection(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	a, b := w.agent("a"), w.agent("b")
	session := w.session(a)
	ctx := within(t, 25*time.Second)
	for i := range 20 {
		if _, err := session.Offer(ctx, "b", []byte(fmt.Sprint(i))); err != nil {
			t.Fatal(err)
		}
		task, err := b.Receive(ctx)
		if err != nil {
			t.Fatal(i, err)
		}
		if err := handoff.Lose(b); err != nil {
			t.Fatal(err)
		}
		if err := task.Complete(ctx, nil); err != nil {
			t.Fatal(err)
		}
	}
}

// doubtful are trust bundles that are not there for a while.
type doubtful struct {
	x509bundle.Source
	gone  atomic.Bool
	asked chan struct{}
}

func (d *doubtful) GetX509BundleForTrustDomain(td spiffeid.TrustDomain) (*x509bundle.Bundle, error) {
	if d.gone.Load() {
		d.asked <- struct{}{}
		return nil, errors.New("gone")
	}
	return d.Source.GetX509BundleForTrustDomain(td)
}

// A connection that comes to nothing after it was dialled, over and over, is none, and the next that is good is used.
func TestConnectionsInVain(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	bundles := &doubtful{Source: w.source("/agent/planner"), asked: make(chan struct{})}
	planner := w.agent("planner", func(c *handoff.Config) { c.Bundles = bundles })
	w.session(planner)
	bundles.gone.Store(true)
	if err := handoff.Lose(planner); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		select {
		case <-bundles.asked:
		case <-w.ctx().Done():
			t.Fatal("the client does not try again")
		}
	}
	bundles.gone.Store(false)
	go func() {
		for {
			select {
			case <-bundles.asked:
			case <-t.Context().Done():
				return
			}
		}
	}()
	if _, err := planner.OpenSession(within(t, 20*time.Second), handoff.SessionRequest{Objective: "test", Tools: readFiles("/a")}); err != nil {
		t.Error(err)
	}
}

func TestClose(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	a, b := w.agent("a"), w.agent("b")
	session := w.session(a)
	h := must(session.Offer(w.ctx(), "nobody", nil))(t)
	errs := make(chan error, 2)
	go func() { _, err := h.Result(context.Background()); errs <- err }()
	go func() { _, err := a.Receive(context.Background()); errs <- err }()
	if err := a.Close(); err != nil {
		t.Error(err)
	}
	for range 2 {
		if err := <-errs; !errors.Is(err, handoff.ErrClosed) {
			t.Errorf("what waited ended with %v", err)
		}
	}
	if err := a.Close(); err != nil {
		t.Error(err)
	}
	if _, err := session.Offer(context.Background(), "b", nil); !errors.Is(err, handoff.ErrClosed) {
		t.Errorf("an offer after the end: %v", err)
	}
	short, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	if _, err := b.Receive(short); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("an empty inbox: %v", err)
	}
}

func TestConnectRefusesNonsense(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	source := must(w.d.Source("/agent/a"))(t)
	good := handoff.Config{URL: w.d.Endpoint.URL, Source: source}
	for name, change := range map[string]func(*handoff.Config){
		"no URL":           func(c *handoff.Config) { c.URL = "" },
		"nobody there":     func(c *handoff.Config) { c.URL = "tls://127.0.0.1:1" },
		"half a key":       func(c *handoff.Config) { c.Key = make([]byte, 12) },
		"negative":         func(c *handoff.Config) { c.MaxTasks = -1 },
		"another governor": func(c *handoff.Config) { c.Governor = spiffeid.RequireFromString("spiffe://handoff.local/other") },
	} {
		cfg := good
		change(&cfg)
		if c, err := handoff.Connect(w.ctx(), cfg); err == nil {
			c.Close()
			t.Errorf("%s: connected", name)
		}
	}
	ended, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := handoff.Connect(ended, good); !errors.Is(err, context.Canceled) {
		t.Errorf("connecting with a context that has ended: %v", err)
	}
}

// Unmodified Workload API clients work: nothing is configured but the socket.
func TestWorkloadAPI(t *testing.T) {
	w := newWorld(t)
	socket := must(w.d.Socket("/agent/a"))(t)
	t.Setenv("SPIFFE_ENDPOINT_SOCKET", socket)
	c := must(handoff.Connect(w.ctx(), handoff.Config{URL: w.d.Endpoint.URL}))(t)
	defer c.Close()
	if c.ID().Path() != "/agent/a" {
		t.Errorf("connected as %s", c.ID())
	}
	w.session(c)
}

// Who works on a task learns that it is over.
func TestTaskEnds(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	a, b := w.agent("a"), w.agent("b")
	session := w.session(a)
	must(session.Offer(w.ctx(), "b", []byte("short"), handoff.Lifetime(2*time.Second)))(t)
	must(session.Offer(w.ctx(), "b", []byte("long")))(t)
	tasks := map[string]*handoff.Task{}
	for range 2 {
		task := w.receive(b)
		tasks[string(task.Body)] = task
	}
	handoff.RenewNow(b)
	if err := tasks["long"].Context().Err(); err != nil {
		t.Fatalf("a renewed task ended: %v", err)
	}
	<-tasks["short"].Context().Done()
	if err := context.Cause(tasks["short"].Context()); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("the short task ended with %v", err)
	}
	wantCode(t, tasks["short"].Complete(w.ctx(), nil), wire.CodeExpired)

	if err := session.Close(w.ctx(), "enough"); err != nil {
		t.Fatal(err)
	}
	handoff.RenewNow(b)
	wantCode(t, context.Cause(tasks["long"].Context()), wire.CodeSessionClosed)
	if err := tasks["long"].Complete(w.ctx(), nil); err == nil {
		t.Error("a result after the session's end was accepted")
	}
}

// One result of a task, however often it is sent.
func TestOneResult(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	a, b := w.agent("a"), w.agent("b")
	sent := must(w.session(a).Offer(w.ctx(), "b", nil))(t)
	task := w.receive(b)
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			if err := task.Complete(w.ctx(), []byte("done")); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	wantCode(t, task.Complete(w.ctx(), []byte("done otherwise")), wire.CodeResultConflict)
	wantCode(t, task.Fail(w.ctx(), "done"), wire.CodeResultConflict)
	if r := must(sent.Result(w.ctx()))(t); string(r.Body) != "done" {
		t.Errorf("the result is %+v", r)
	}
}

func TestOfferWithoutWaiting(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	a, b := w.agent("a"), w.agent("b")
	session := w.session(a)
	const trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	h := must(session.Offer(w.ctx(), b.ID().String(), []byte("task"), handoff.NoWait(), handoff.Traceparent(trace)))(t)
	if err := h.Await(w.ctx()); err != nil {
		t.Fatal(err)
	}
	task := w.receive(b)
	if task.Traceparent != trace {
		t.Errorf("traceparent %q", task.Traceparent)
	}
	if err := task.Complete(w.ctx(), nil); err != nil {
		t.Fatal(err)
	}
	if err := h.Await(w.ctx()); err != nil { // long known
		t.Error(err)
	}
	if r := must(h.Result(w.ctx()))(t); r.Traceparent != trace {
		t.Errorf("traceparent %q", r.Traceparent)
	}
	if err := a.Handoff(h.ID).Await(w.ctx()); err == nil {
		t.Error("a handoff that was not made here can be sent again")
	}
}
