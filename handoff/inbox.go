package handoff

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/go-json-experiment/json"

	"github.com/handoff-governor/handoff-governor/handoff/aat/jws"
	"github.com/handoff-governor/handoff-governor/handoff/wire"
)

// What may wait here for a Receive. The other notices wait in the inbox, for whichever process of the agent asks first.
const (
	maxBacklog = 1024
	keepFor    = 5 * time.Second // after the last Receive
)

// tasks claims what the inbox announces, for those who ask for it, and keeps the leases of what is being worked on.
//
//	notice → backlog → claim → ready → Receive → active … result, or the end of the grant
//
// A task is active from its claim on.
type tasks struct {
	client *Client

	mu      sync.Mutex
	changed chan struct{} // closed when something below has changed
	backlog []*inboxMessage
	waiting map[string]*inboxMessage // :: ID → its notice in backlog
	wanted  int                      // Receives that wait
	open    bool                     // a Receive waits, or one did just now
	idle    *time.Timer              // ends that
	ready   []*Task
	active  map[string]*Task
	handed  map[string]*Task // transferred, and not claimed yet as far as is known
	done    *recent          // IDs of tasks that need no notice any more
	closed  bool
}

func newTasks(c *Client) *tasks {
	t := &tasks{
		client: c, changed: make(chan struct{}), waiting: map[string]*inboxMessage{}, active: map[string]*Task{},
		handed: map[string]*Task{}, done: newRecent(16_384),
	}
	t.idle = time.AfterFunc(keepFor, t.rest)
	return t
}

// rest gives the notices back when nobody has asked for a task for a while: another process of the agent may be idle.
func (t *tasks) rest() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.wanted == 0 {
		t.open = false
		t.giveBack()
	}
}

// giveBack has the server deliver the backlog again, to whoever reads the inbox. The caller has locked.
func (t *tasks) giveBack() {
	for _, in := range t.backlog {
		t.client.settle(in.Nak())
	}
	t.backlog = nil
	clear(t.waiting)
}

// wake tells all who wait to look again. The caller has locked.
func (t *tasks) wake() {
	close(t.changed)
	t.changed = make(chan struct{})
}

// notice takes a task notice from the inbox.
func (t *tasks) notice(in *inboxMessage) {
	t.mu.Lock()
	defer t.mu.Unlock()
	c := t.client
	if task := t.active[in.id]; task != nil {
		task.noticed(in)
		return
	}
	if t.done.has(in.id) {
		c.settle(in.Ack())
		return
	}
	if old := t.waiting[in.id]; old != nil { // delivered again while it waits
		*old = *in
		return
	}
	if t.closed || !t.open || len(t.backlog) >= maxBacklog {
		c.settle(in.NakWithDelay(backoff(in)))
		return
	}
	t.backlog = append(t.backlog, in)
	t.waiting[in.id] = in
	t.wake()
}

// next waits for a task.
func (t *tasks) next(ctx context.Context) (*Task, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.wanted++
	t.open = true
	t.wake()
	defer func() {
		t.wanted--
		t.idle.Reset(keepFor)
	}()
	for {
		for len(t.ready) > 0 {
			task := t.ready[0]
			t.ready = t.ready[1:]
			t.wake()
			if task.ctx.Err() == nil {
				return task, nil
			}
		}
		changed := t.changed
		t.mu.Unlock()
		select {
		case <-changed:
			t.mu.Lock()
		case <-ctx.Done():
			t.mu.Lock()
			return nil, fmt.Errorf("handoff: receiving: %w", context.Cause(ctx))
		}
	}
}

// claim is the goroutine that claims as many tasks as are wanted.
func (t *tasks) claim() {
	ctx := t.client.ctx
	for ctx.Err() == nil {
		t.mu.Lock()
		batch := t.batch()
		changed := t.changed
		t.mu.Unlock()
		if len(batch) > 0 {
			t.claimBatch(ctx, batch)
			continue
		}
		select {
		case <-changed:
		case <-ctx.Done():
		}
	}
}

// batch takes the next notices of one session from the backlog, as many as there is use for.
func (t *tasks) batch() []*inboxMessage {
	room := min(t.wanted+t.client.cfg.Prefetch-len(t.ready), t.client.cfg.MaxTasks-len(t.active), wire.MaxClaimIDs)
	if room <= 0 || len(t.backlog) == 0 {
		return nil
	}
	var batch, rest []*inboxMessage
	for _, in := range t.backlog {
		if len(batch) < room && in.session == t.backlog[0].session {
			batch = append(batch, in)
			delete(t.waiting, in.id)
		} else {
			rest = append(rest, in)
		}
	}
	t.backlog = rest
	return batch
}

func (t *tasks) claimBatch(ctx context.Context, batch []*inboxMessage) {
	c := t.client
	ids := make([]string, len(batch))
	for i, in := range batch {
		ids[i] = in.id
	}
	answers, err := c.claim(ctx, batch[0].session, ids, false)
	if err != nil {
		if ctx.Err() == nil {
			c.log.WarnContext(ctx, "claiming tasks failed; they wait in the inbox", "session", batch[0].session, "error", err)
		}
		for _, in := range batch {
			c.settle(in.NakWithDelay(lastNak))
		}
		return
	}
	for i, a := range answers {
		in := batch[i]
		if a.Error == nil {
			task, err := t.begin(ctx, a, in)
			if err != nil {
				c.log.ErrorContext(ctx, "a claimed task cannot be used", "id", in.id, "error", err)
				c.settle(in.NakWithDelay(lastNak))
				continue
			}
			t.mu.Lock()
			t.ready = append(t.ready, task)
			t.wake()
			t.mu.Unlock()
			continue
		}
		t.passOver(ctx, in, a)
	}
}

// passOver leaves a task alone that this process does not get: for good, or until later.
func (t *tasks) passOver(ctx context.Context, in *inboxMessage, a wire.Claimed) {
	c := t.client
	switch code := a.Error.Code; {
	case code == wire.CodeAlreadyClaimed:
		c.settle(in.NakWithDelay(time.Duration(max(1, a.Error.RetryAfter)) * time.Second))
	case over(code) || code == wire.CodePolicyHeld: // once it is approved, it is announced again
		c.log.InfoContext(ctx, "a task was not granted", "id", in.id, "session", in.session, "code", code, "reason", a.Error.Message)
		c.settle(in.Ack())
	default:
		c.log.WarnContext(ctx, "a task cannot be claimed now", "id", in.id, "session", in.session, "code", code, "reason", a.Error.Message)
		c.settle(in.NakWithDelay(backoff(in)))
	}
}

// begin makes the Task of a granted claim.
func (t *tasks) begin(ctx context.Context, a wire.Claimed, in *inboxMessage) (*Task, error) {
	c := t.client
	c.replaced(a.GovernorJWK)
	grant, err := c.grant(ctx, a.Chain)
	if err != nil {
		return nil, err
	}
	if grant.claim.ID != a.ID {
		return nil, fmt.Errorf("the credential is for the task %s", grant.claim.ID)
	}
	task := &Task{
		Grant: grant, ID: a.ID, From: a.From, Mode: a.Mode, Purpose: a.Purpose, Labels: a.Labels, ContentType: a.ContentType,
		Body: a.Task, Entry: a.Entry, notice: in,
	}
	if in != nil {
		task.Traceparent = in.trace
	}
	grant.task = task
	life, cancel := expireAt(c.ctx, grant.Expires(), c.cfg.Now())
	task.ctx, task.stop = context.WithCancelCause(life)
	context.AfterFunc(task.ctx, func() {
		cancel()
		t.end(task, context.Cause(task.ctx))
	})
	t.mu.Lock()
	defer t.mu.Unlock()
	if known := t.active[a.ID]; known != nil {
		task.stop(nil)
		return known, nil
	}
	t.active[a.ID] = task
	return task, nil
}

func (t *tasks) find(id string) *Task {
	t.mu.Lock()
	defer t.mu.Unlock()
	return cmp.Or(t.active[id], t.handed[id])
}

// end lets go of a task. When the client closes, the notice stays in the inbox: see close.
func (t *tasks) end(task *Task, cause error) {
	if errors.Is(cause, ErrClosed) {
		return
	}
	t.mu.Lock()
	known := t.leave(task)
	if t.handed[task.ID] == task {
		delete(t.handed, task.ID)
		known = true
	}
	t.mu.Unlock()
	if known {
		task.stop(cause)
	}
}

// handOn makes room for another task in the place of one that was transferred. Its grant lives until the receiver claims,
// and its lease is renewed until then: nobody may take it over, and the governor says when it is over.
func (t *tasks) handOn(task *Task) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.leave(task) {
		t.handed[task.ID] = task
	}
}

// leave says whether task was active. It is not now, and its notice leaves the inbox. The caller has locked.
func (t *tasks) leave(task *Task) bool {
	if t.active[task.ID] != task {
		return false
	}
	delete(t.active, task.ID)
	t.done.add(task.ID)
	t.wake()
	if notice := task.noticed(nil); notice != nil {
		t.client.settle(notice.Ack())
	}
	return true
}

// close gives back every notice: those of tasks at work, too, which another process may take over, or finish by its key.
func (t *tasks) close() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.closed = true
	t.idle.Stop()
	t.giveBack()
	for _, task := range t.active {
		if notice := task.noticed(nil); notice != nil {
			t.client.settle(notice.Nak())
		}
	}
}

// renew is the goroutine that keeps leases and notices alive.
func (t *tasks) renew() {
	tick := time.NewTicker(wire.Lease * time.Second / 3)
	defer tick.Stop()
	for {
		select {
		case <-t.client.ctx.Done():
			return
		case <-tick.C:
			t.renewAll()
		}
	}
}

func (t *tasks) renewAll() {
	t.mu.Lock()
	bySession := map[string][]*Task{}
	for _, in := range t.backlog {
		t.client.settle(in.InProgress())
	}
	for _, task := range t.active {
		if notice := task.announced(); notice != nil {
			t.client.settle(notice.InProgress())
		}
		bySession[task.Session()] = append(bySession[task.Session()], task)
	}
	for _, task := range t.handed {
		bySession[task.Session()] = append(bySession[task.Session()], task)
	}
	t.mu.Unlock()
	var each sync.WaitGroup
	defer each.Wait()
	for session, list := range bySession {
		each.Go(func() { t.renewSession(session, list) })
	}
}

func (t *tasks) renewSession(session string, list []*Task) {
	ctx, cancel := context.WithTimeout(t.client.ctx, wire.Lease*time.Second/3)
	defer cancel()
	for len(list) > 0 {
		some := list[:min(len(list), wire.MaxClaimIDs)]
		list = list[len(some):]
		ids := make([]string, len(some))
		for i, task := range some {
			ids[i] = task.ID
		}
		answers, err := t.client.claim(ctx, session, ids, true)
		if err != nil {
			if t.client.ctx.Err() == nil {
				t.client.log.WarnContext(ctx, "renewing leases failed", "session", session, "tasks", len(some), "error", err)
			}
			continue
		}
		for i, a := range answers {
			switch {
			case a.Error == nil || !over(a.Error.Code):
			case a.Error.Code == wire.CodeNotAdmitted && some[i].completed(): // as a person has approved meanwhile
				t.end(some[i], ErrDone)
			default:
				t.end(some[i], a.Error)
			}
		}
	}
}

// claim asks for tasks of one session, at most wire.MaxClaimIDs. There is one answer for each ID, in order.
func (c *Client) claim(ctx context.Context, session string, ids []string, renew bool) ([]wire.Claimed, error) {
	answer, err := call(ctx, c, wire.ClaimSubject(session), func() ([]byte, error) {
		k, err := c.trusted(ctx)
		if err != nil {
			return nil, err
		}
		now := c.cfg.Now().Unix()
		proof, err := jws.SignJSON(wire.TypeClaim, wire.ClaimProof{
			ID: rand.Text(), IssuedAt: now, Expires: now + wire.ProofLifetime, Audience: k.Governor, Subject: string(c.name),
			IDs: ids,
		}, c.key)
		if err != nil {
			return nil, err
		}
		return json.Marshal(wire.ClaimRequest{IDs: ids, JWK: c.jwk, Proof: proof, Renew: renew})
	}, func(a *wire.ClaimResponse) *wire.Error { return a.Error })
	if err != nil {
		return nil, err
	}
	if len(answer.Claims) != len(ids) {
		return nil, fmt.Errorf("handoff: %d answers to a claim of %d tasks", len(answer.Claims), len(ids))
	}
	for i, a := range answer.Claims {
		if a.ID != ids[i] {
			return nil, fmt.Errorf("handoff: the answer to the claim of %s names %s", ids[i], a.ID)
		}
	}
	return answer.Claims, nil
}
