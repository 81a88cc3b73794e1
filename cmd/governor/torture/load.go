package torture

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"path"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/google/uuid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"

	"github.com/handoff-governor/handoff-governor/handoff"
	"github.com/handoff-governor/handoff-governor/handoff/aat"
	"github.com/handoff-governor/handoff-governor/handoff/guard"
	"github.com/handoff-governor/handoff-governor/handoff/wire"
	"github.com/handoff-governor/handoff-governor/policies"
)

// This file is the agents: planner opens sessions and offers tasks in them, writer and reviewer do them, each in two
// processes, guards are asked for calls all the time, and an operator approves, revokes and changes the policy.

// Paths of the SPIFFE IDs.
const (
	planner  = "/agent/planner"
	writer   = "/agent/writer"
	reviewer = "/agent/reviewer"
	tools    = "/guard/tools"
	operator = "/operator/local"
)

var identities = []string{planner, writer, reviewer, tools, operator}

// policy lets go what says nothing else.
const policy = `package handoff

session := {"effect": "allow"}

default decision := {"effect": "allow"}

decision := {"effect": "deny", "reasons": [{"code": "no", "message": "this one is not wanted"}]} if input.content_type == "application/no"

decision := {"effect": "hold", "reasons": [{"code": "ask", "message": "somebody must look at it"}]} if {
	input.content_type == "application/ask"
	count(input.approvals) < 1
}

result := {"effect": "allow"}
`

const tool = "search"

// errand is the body of a task: what is to be done with it.
type errand struct {
	Do     string `json:"do"`
	Answer string `json:"answer"` // the result
}

// What is done with a task.
const (
	doWork     = "work"
	doDelegate = "delegate" // the writer has a reviewer do it, and waits
	doTransfer = "transfer" // the writer hands it to a reviewer for good
	doDeny     = "deny"     // the policy does not allow it
	doHold     = "hold"     // the operator must approve it
	doRevoke   = "revoke"   // the operator revokes it meanwhile
)

// errands are as frequent as they stand here.
var errands = []string{
	doWork, doWork, doWork, doWork, doWork, doWork, doDelegate, doDelegate, doTransfer, doDeny, doHold, doRevoke,
}

// Times of guards. They hear of a revocation, or hear nothing and refuse everything, within the sum.
const (
	guardSkew = time.Second
	guardWait = 2 * time.Second
)

// load is the agents at work.
type load struct {
	url     string
	clock   *Clock // everybody's but the governor's, which can be somewhere else
	sources map[string]*workloadapi.X509Source
	books   *books
	pace    *pace
	ttl     time.Duration // of sessions; 0 is the default
	log     *slog.Logger

	planner  *handoff.Client
	tools    []*handoff.Client
	guards   map[string]*guard.Guard // :: audience
	operator *handoff.Operator

	ctx     context.Context // of everything that is awaited
	quit    context.CancelCauseFunc
	enough  chan struct{} // closed when nothing new is to be begun
	drivers sync.WaitGroup
	others  sync.WaitGroup

	mu      sync.Mutex
	workers map[string][]*worker // :: path → processes
	grants  []*held              // that were used, the last of them
}

// worker is a process that does tasks.
type worker struct {
	*load
	path   string
	client *handoff.Client
	ended  chan struct{}
}

const (
	drivers   = 6   // sessions at a time
	perAgent  = 2   // processes
	kept      = 128 // grants that are tried again and again
	connected = time.Minute
)

// begin connects everybody to a governor that serves, and sets them to work.
func begin(ctx context.Context, url string, sockets map[string]string, clock *Clock, log *slog.Logger, cfg Config) (_ *load, err error) {
	l := &load{
		url: url, clock: clock, log: log, books: newBooks(), pace: newPace(cfg.Rate), ttl: cfg.TTL, sources: map[string]*workloadapi.X509Source{},
		guards: map[string]*guard.Guard{}, workers: map[string][]*worker{}, enough: make(chan struct{}),
	}
	l.ctx, l.quit = context.WithCancelCause(context.WithoutCancel(ctx))
	defer func() {
		if err != nil {
			l.close()
		}
	}()
	ctx, cancel := context.WithTimeout(ctx, connected)
	defer cancel()
	for _, path := range identities {
		l.sources[path], err = workloadapi.NewX509Source(ctx, workloadapi.WithClientOptions(workloadapi.WithAddr(sockets[path])))
		if err != nil {
			return nil, err
		}
	}
	if l.planner, err = handoff.Connect(ctx, l.config(planner)); err != nil {
		return nil, err
	}
	if l.operator, err = handoff.ConnectOperator(ctx, l.config(operator)); err != nil {
		return nil, err
	}
	for i := range perAgent {
		if err := l.guard(ctx, fmt.Sprintf("https://tools-%d.example", i+1)); err != nil {
			return nil, err
		}
		for _, path := range []string{writer, reviewer} {
			if err := l.hire(ctx, path); err != nil {
				return nil, err
			}
		}
	}
	for i := range drivers {
		r := rand.New(rand.NewPCG(cfg.Seed, uint64(i)))
		l.drivers.Go(func() { l.drive(r) })
	}
	l.others.Go(func() { l.tryAgain(rand.New(rand.NewPCG(cfg.Seed, drivers))) })
	return l, nil
}

func (l *load) config(as string) handoff.Config {
	return handoff.Config{URL: l.url, Source: l.sources[as], Now: l.clock.Now, Logger: l.log.With("agent", path.Base(as))}
}

// guard puts one more guard in front of the tool.
func (l *load) guard(ctx context.Context, audience string) error {
	client, err := handoff.Connect(ctx, l.config(tools))
	if err != nil {
		return err
	}
	l.tools = append(l.tools, client)
	keys, err := client.Keys(ctx)
	if err != nil {
		return err
	}
	issuer, err := guard.IssuerOf(keys)
	if err != nil {
		return err
	}
	g, err := guard.New(guard.Config{
		Audience: []string{audience}, Issuers: []guard.Issuer{issuer}, Skew: guardSkew, FeedTimeout: guardWait, Now: l.clock.Now,
	})
	if err != nil {
		return err
	}
	l.guards[audience] = g
	l.others.Go(func() {
		if err := client.WatchRevocations(l.ctx, g); err != nil && l.ctx.Err() == nil {
			l.books.amiss("the revocations stopped coming: %v", err)
		}
	})
	return nil
}

// hire starts one more process of a working agent.
func (l *load) hire(ctx context.Context, as string) error {
	client, err := handoff.Connect(ctx, l.config(as))
	if err != nil {
		return err
	}
	w := &worker{load: l, path: as, client: client, ended: make(chan struct{})}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.workers[as] = append(l.workers[as], w)
	go w.work()
	return nil
}

// fire ends a process in the midst of its tasks, and starts another one, which has another key.
func (l *load) fire(ctx context.Context, as string) error {
	l.mu.Lock()
	w := l.workers[as][0]
	l.workers[as] = l.workers[as][1:]
	l.mu.Unlock()
	w.client.Close()
	<-w.ended
	return l.hire(ctx, as)
}

// drain begins nothing new, and waits until everything that was begun has ended.
func (l *load) drain(ctx context.Context) {
	close(l.enough)
	done := make(chan struct{})
	go func() { l.drivers.Wait(); close(done) }()
	select {
	case <-done:
	case <-ctx.Done():
		l.quit(errDrained) // what is still awaited counts as lost
	}
	l.close()
}

var errDrained = errors.New("it took too long to come")

// close ends everybody, whatever they are doing.
func (l *load) close() {
	l.quit(nil)
	l.drivers.Wait()
	for _, c := range append(slices.Clone(l.tools), l.planner) {
		if c != nil {
			c.Close()
		}
	}
	l.mu.Lock()
	workers := slices.Concat(l.workers[writer], l.workers[reviewer])
	l.mu.Unlock()
	for _, w := range workers {
		w.client.Close()
		<-w.ended
	}
	if l.operator != nil {
		l.operator.Close()
	}
	l.others.Wait()
	for _, s := range l.sources {
		s.Close()
	}
}

// drive opens one session after another.
func (l *load) drive(r *rand.Rand) {
	for {
		select {
		case <-l.enough:
			return
		case <-l.ctx.Done():
			return
		default:
			l.session(r)
		}
	}
}

// session is opened, tasks are offered in it, and it is closed: once they are done, or before.
func (l *load) session(r *rand.Rand) {
	s, err := l.planner.OpenSession(l.ctx, handoff.SessionRequest{Objective: "torture", Tools: aat.Tools{tool: {}}, MaxHops: 3, TTL: l.ttl})
	if err != nil {
		l.failed("opening a session", err)
		return
	}
	id := s.Session()
	l.books.open(id)
	early := r.IntN(8) == 0
	var handing sync.WaitGroup
	for range 1 + r.IntN(4) {
		do, hurry := errands[r.IntN(len(errands))], time.Duration(r.IntN(200))*time.Millisecond
		handing.Go(func() { l.offer(s, do, hurry, early) })
	}
	if early {
		wait(l.ctx, time.Duration(r.IntN(300))*time.Millisecond)
	} else {
		handing.Wait()
	}
	if err := s.Close(l.ctx, "done"); err != nil {
		l.failed("closing a session", err)
	} else {
		l.books.close(id)
	}
	handing.Wait()
}

// offer hands on a task, and waits for what comes of it.
func (l *load) offer(s *handoff.Session, do string, hurry time.Duration, early bool) {
	l.pace.wait(l.ctx)
	options := []handoff.OfferOption{handoff.Tools(aat.Tools{tool: {}})}
	expected := []wire.Code(nil) // denials
	if l.ttl > 0 {
		expected = tooLateCodes
	}
	if early {
		expected = slices.Concat(expected, overCodes)
	}
	switch do {
	case doDeny:
		options = append(options, handoff.ContentType("application/no"), handoff.AwaitVerdict())
		expected = append(slices.Clone(expected), "no")
	case doHold:
		options = append(options, handoff.ContentType("application/ask"))
	case doRevoke:
		expected = slices.Concat(expected, overCodes)
	}
	began := time.Now()
	id, h, err := l.hand(s.Grant, nil, writer, errand{Do: do}, options)
	if err != nil {
		l.told("offer", id, err, expected)
		return
	}
	switch do {
	case doDeny:
		l.books.amiss("handoff %s was to be denied, and was not", id)
	case doHold:
		l.approve(h, early)
	case doRevoke:
		wait(l.ctx, hurry)
		if _, err := l.operator.Revoke(l.ctx, id, "torture"); err == nil {
			l.books.revoke(id)
		} else if e, ok := errors.AsType[*wire.Error](err); !ok {
			l.failed("revoking", err)
		} else {
			l.books.end("revoke: " + string(e.Code)) // it was done before
		}
	}
	r, err := h.Result(l.ctx)
	switch {
	case err != nil:
		l.told("result", id, err, expected)
	case string(r.Body) != id:
		l.books.amiss("the result of %s is another one's: %.50q", id, r.Body)
	default:
		l.books.result(id, time.Since(began))
	}
}

// hand offers a task under a grant, and notes the receipt.
func (l *load) hand(g *handoff.Grant, under *held, to string, what errand, options []handoff.OfferOption) (string, *handoff.Handoff, error) {
	u, err := uuid.NewV7()
	if err != nil {
		return "", nil, err
	}
	id := u.String()
	if what.Answer == "" {
		what.Answer = id
	}
	body, err := json.Marshal(what)
	if err != nil {
		return "", nil, err
	}
	l.books.offer(id, g.Session(), under)
	h, err := g.Offer(l.ctx, path.Base(to), body, append(options, handoff.WithID(id))...)
	if err == nil {
		l.books.receipt(id)
	}
	return id, h, err
}

// approve has the operator let a held handoff go.
func (l *load) approve(h *handoff.Handoff, early bool) {
	for l.ctx.Err() == nil {
		if v := h.Verdict(); v != nil && v.Effect == wire.EffectHold && v.Entry != nil {
			if _, _, err := l.operator.Approve(l.ctx, *v.Entry, true); err != nil && !early {
				l.failed("approving", err)
			}
			return
		} else if v != nil {
			return // its session is over
		}
		wait(l.ctx, 5*time.Millisecond)
	}
}

// tooLateCodes are what ends a handoff whose session had not enough time.
var tooLateCodes = []wire.Code{
	wire.CodeExpired, wire.CodeSessionExpired, wire.CodeSessionClosed, wire.CodeSessionUnknown, wire.CodeParentEnded, wire.CodeHandoffUnknown,
}

// overCodes are what ends a handoff whose session was closed, or that was revoked.
var overCodes = []wire.Code{
	wire.CodeSessionClosed, wire.CodeSessionUnknown, wire.CodeRevoked, wire.CodeParentRevoked, wire.CodeParentEnded, wire.CodeNotAdmitted,
	wire.CodeHandoffUnknown,
}

// told notes how something ended that may have been denied.
func (l *load) told(what, id string, err error, expected []wire.Code) {
	if l.ctx.Err() != nil {
		if what == "result" {
			l.books.lost("nothing came of handoff %s: %v", id, err)
		}
		return
	}
	l.books.end(what + ": " + string(codeOf(err)))
	if !slices.ContainsFunc(expected, func(c wire.Code) bool { return errors.Is(err, &wire.Error{Code: c}) }) {
		l.books.amiss("%s of handoff %s: %v", what, id, err)
	}
}

func codeOf(err error) wire.Code {
	if d, ok := errors.AsType[*handoff.Denied](err); ok && len(d.Reasons) > 0 {
		return d.Reasons[0].Code
	}
	if e, ok := errors.AsType[*wire.Error](err); ok {
		return e.Code
	}
	return ""
}

// failed notes what must not fail, unless everything is over.
func (l *load) failed(what string, err error) {
	if l.ctx.Err() == nil {
		l.books.amiss("%s: %v", what, err)
	} else {
		l.books.lost("%s: %v", what, err)
	}
}

// work does tasks until the process ends.
func (w *worker) work() {
	defer close(w.ended)
	var tasks sync.WaitGroup
	defer tasks.Wait()
	for task, err := range w.client.Tasks(w.ctx) {
		if err != nil {
			return
		}
		tasks.Go(func() { w.do(task) })
	}
}

// do does a task, and asks the guards all the while.
func (w *worker) do(task *handoff.Task) {
	grant := w.books.claim(task.ID, task.Grant, w.path == reviewer && task.Mode == wire.ModeTransfer)
	defer w.keep(grant)
	var what errand
	if err := json.Unmarshal(task.Body, &what); err != nil {
		w.books.amiss("the task of %s is damaged: %.50q", task.ID, task.Body)
	}
	w.call(grant)
	switch {
	case w.path == reviewer:
	case what.Do == doDelegate:
		id, h, err := w.hand(task.Grant, grant, reviewer, errand{Do: doWork}, []handoff.OfferOption{handoff.Tools(aat.Tools{tool: {}})})
		if err != nil {
			w.stopped(task, "offer on", err)
			return
		}
		ctx, cancel := context.WithCancelCause(w.ctx)
		stop := context.AfterFunc(task.Context(), func() { cancel(context.Cause(task.Context())) })
		r, err := h.Result(ctx)
		stop()
		cancel(nil)
		if err != nil {
			w.stopped(task, "result on", err)
			return
		}
		if string(r.Body) != id {
			w.books.amiss("the result of %s is another one's: %.50q", id, r.Body)
		}
	case what.Do == doTransfer:
		_, _, err := w.hand(task.Grant, grant, reviewer, errand{Do: doWork, Answer: what.Answer},
			[]handoff.OfferOption{handoff.Tools(aat.Tools{tool: {}}), handoff.Transfer()})
		if err != nil {
			w.stopped(task, "transfer", err)
		}
		return
	case what.Do == doRevoke:
		wait(task.Context(), 100*time.Millisecond)
	}
	w.call(grant)
	if err := task.Complete(w.ctx, []byte(what.Answer)); err != nil {
		w.stopped(task, "complete", err)
		return
	}
	w.books.complete(task.ID)
}

// stopped notes why a worker got no further. Whether that is right its sender knows.
func (w *worker) stopped(task *handoff.Task, what string, err error) {
	switch code := codeOf(err); {
	case code != "":
		w.books.end(what + ": " + string(code))
	case task.Context().Err() != nil, errors.Is(err, handoff.ErrClosed), errors.Is(err, context.Canceled): // it was fired
		w.books.end(what + ": stopped")
	default:
		w.books.amiss("%s of %s: %v", what, task.ID, err)
	}
}

// call asks every guard for a call.
func (l *load) call(g *held) {
	for audience, guard := range l.guards {
		l.callAt(g, audience, guard)
	}
}

func (l *load) callAt(g *held, audience string, at *guard.Guard) {
	grant := g.grant.Load()
	if grant == nil {
		return
	}
	request, err := grant.Call(l.ctx, audience, tool, nil)
	if err != nil {
		return // the end
	}
	began := time.Now()
	_, err = at.Check(l.ctx, request.Presentation, request.Tool, request.Args, "")
	switch code := codeOf(err); {
	case err == nil:
		l.books.permit(g, audience, began, guardWait+guardSkew)
	case code == wire.CodeRevoked || code == wire.CodeParentEnded:
		l.books.refuse()
	default:
		l.books.end("call: " + string(code))
	}
}

// keep has a grant tried again, now that its task is done.
func (l *load) keep(g *held) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.grants = append(l.grants, g); len(l.grants) > kept {
		l.grants[0].grant.Store(nil)
		l.grants[0] = nil
		l.grants = l.grants[1:]
	}
}

// tryAgain asks guards for calls under grants that were used, on and on.
func (l *load) tryAgain(r *rand.Rand) {
	for wait(l.ctx, 10*time.Millisecond) {
		l.mu.Lock()
		var g *held
		if len(l.grants) > 0 {
			g = l.grants[r.IntN(len(l.grants))]
		}
		l.mu.Unlock()
		if g != nil {
			l.call(g)
		}
	}
}

// change puts another policy in force, which decides the same.
func (l *load) change(ctx context.Context, dir string) error {
	bundle, err := policies.Load(os.DirFS(dir))
	if err != nil {
		return err
	}
	_, err = l.operator.Activate(ctx, bundle.Bytes())
	return err
}

// wait says false where ctx ended before.
func wait(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// pace holds offers to a rate, all together.
type pace struct {
	every time.Duration // 0: as they come
	next  atomic.Int64  // Unix nanoseconds
}

func newPace(perSecond float64) *pace {
	if perSecond <= 0 {
		return &pace{}
	}
	return &pace{every: time.Duration(float64(time.Second) / perSecond)}
}

func (p *pace) wait(ctx context.Context) {
	if p.every == 0 {
		return
	}
	now := time.Now().UnixNano()
	for {
		next := p.next.Load()
		mine := max(next, now-int64(time.Second)) // what was missed is not made up for but for a second
		if p.next.CompareAndSwap(next, mine+int64(p.every)) {
			wait(ctx, time.Duration(mine-now))
			return
		}
	}
}
