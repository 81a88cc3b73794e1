package handoff_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/handoff-governor/handoff-governor/cmd/governor/daemon"
	"github.com/handoff-governor/handoff-governor/handoff"
	"github.com/handoff-governor/handoff-governor/handoff/wire"
	"github.com/handoff-governor/handoff-governor/policies"
)

// withPolicy puts the default bundle in force with a change to its data.
func withPolicy(t *testing.T, path string, data any) func(*daemon.Config) {
	t.Helper()
	bundle := must(policies.Default().WithData(path, data))(t)
	return func(c *daemon.Config) { c.Bundle = bundle }
}

// A denied result leaves the task at work, and whoever waits for it waiting: also where both are the same process.
func TestDeniedResult(t *testing.T) {
	t.Parallel()
	w := newWorld(t, withPolicy(t, "/zones", map[string][]string{"secret": {"/agent/c"}}))
	a := w.agent("a")
	sent := must(w.session(a).Offer(w.ctx(), "a", []byte("task")))(t)
	type answer struct {
		*handoff.Result
		error
	}
	answers := make(chan answer, 1)
	go func() {
		r, err := sent.Result(w.ctx())
		answers <- answer{r, err}
	}()
	task := w.receive(a)
	for range 2 {
		err := task.Complete(w.ctx(), []byte("all of it"), handoff.Labels("secret"))
		denied, ok := errors.AsType[*handoff.Denied](err)
		if !ok || denied.ID != sent.ID || denied.Effect != wire.EffectDeny || denied.Entry == nil {
			t.Errorf("a result that may not flow back: %v", err)
		}
	}
	if err := task.Context().Err(); err != nil {
		t.Errorf("the task ended with %v", context.Cause(task.Context()))
	}
	if err := task.Complete(w.ctx(), []byte("what may be told")); err != nil {
		t.Error(err)
	}
	if got := <-answers; got.error != nil || string(got.Body) != "what may be told" {
		t.Errorf("the result is %v, %v", got.Result, got.error)
	}
}

// A held result has been sent: the same is asked for again, until a person has answered or the task is over.
func TestHeldResult(t *testing.T) {
	t.Parallel()
	w := newWorld(t, withPolicy(t, "/approvals", map[string]map[string]string{"red": {"label": "red"}}))
	a, b, ops := w.agent("a"), w.agent("b"), must(operator(t, w, "/operator/ops"))(t)
	held := func(task *handoff.Task) uint64 {
		t.Helper()
		var denied *handoff.Denied
		for range 2 {
			err := task.Complete(w.ctx(), []byte("report"), handoff.Labels("red"))
			var ok bool
			if denied, ok = errors.AsType[*handoff.Denied](err); !ok || denied.Effect != wire.EffectHold || denied.Entry == nil {
				t.Fatalf("a result that waits for approval: %v", err)
			}
		}
		wantCode(t, task.Complete(w.ctx(), []byte("another"), handoff.Labels("red")), wire.CodeResultConflict)
		return *denied.Entry
	}
	for name, approve := range map[string]bool{"approved": true, "turned down": false} {
		sent := must(w.session(a).Offer(w.ctx(), "b", []byte("task")))(t)
		task := w.receive(b)
		if _, _, err := ops.Approve(w.ctx(), held(task), approve); err != nil {
			t.Fatal(err)
		}
		err := task.Complete(w.ctx(), []byte("report"), handoff.Labels("red")) // what has become of it?
		if approve {
			if err != nil {
				t.Errorf("%s: %v", name, err)
			}
		} else {
			denied, ok := errors.AsType[*handoff.Denied](err)
			if !ok || denied.Effect != wire.EffectDeny || !errors.Is(err, &wire.Error{Code: wire.CodeApprovalDenied}) {
				t.Errorf("%s: %v", name, err)
			}
			if err := task.Complete(w.ctx(), []byte("report")); err != nil {
				t.Errorf("%s: another result: %v", name, err)
			}
		}
		if cause := context.Cause(task.Context()); !errors.Is(cause, handoff.ErrDone) {
			t.Errorf("%s: the task ended with %v", name, cause)
		}
		if r, err := sent.Result(w.ctx()); err != nil || string(r.Body) != "report" {
			t.Errorf("%s: the result is %v, %v", name, r, err)
		}
	}

	// The worker may notice by its lease alone.
	must(w.session(a).Offer(w.ctx(), "b", []byte("task")))(t)
	approved := w.receive(b)
	if _, _, err := ops.Approve(w.ctx(), held(approved), true); err != nil {
		t.Fatal(err)
	}
	handoff.RenewNow(b)
	if cause := context.Cause(approved.Context()); !errors.Is(cause, handoff.ErrDone) {
		t.Errorf("the task ended with %v", cause)
	}

	session := w.session(a)
	must(session.Offer(w.ctx(), "b", []byte("task")))(t)
	task := w.receive(b)
	held(task)
	if err := session.Close(w.ctx(), "enough"); err != nil {
		t.Fatal(err)
	}
	handoff.RenewNow(b)
	wantCode(t, task.Complete(w.ctx(), []byte("report"), handoff.Labels("red")), wire.CodeSessionClosed)
}

// What cannot be sent is said so at once, not tried until time is up.
func TestTooLargeForTheServer(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	a := w.agent("a")
	endless := handoff.Traceparent(strings.Repeat("0", 3<<20))
	session := w.session(a)
	_, err := session.Offer(w.ctx(), "a", nil, endless)
	wantCode(t, err, wire.CodeTooLarge)
	must(session.Offer(w.ctx(), "a", nil))(t)
	task := w.receive(a)
	wantCode(t, task.Complete(w.ctx(), nil, endless), wire.CodeTooLarge)
}

// No more is claimed than there is use for.
func TestClaimsNoMoreThanWanted(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	a := w.agent("a")
	session := w.session(a)
	for _, test := range []struct{ prefetch, most, ready int }{{0, 0, 0}, {2, 0, 2}, {8, 3, 2}} {
		name := fmt.Sprintf("b%d%d", test.prefetch, test.most)
		b := w.agent(name, func(c *handoff.Config) { c.Prefetch, c.MaxTasks = test.prefetch, test.most })
		for i := range 5 {
			must(session.Offer(w.ctx(), name, fmt.Append(nil, i)))(t)
		}
		tasks := []*handoff.Task{w.receive(b)}
		for end := time.Now().Add(10 * time.Second); handoff.Ready(b) < test.ready && time.Now().Before(end); {
			time.Sleep(time.Millisecond)
		}
		if ready := handoff.Ready(b); ready != test.ready {
			t.Errorf("%+v: %d are claimed ahead", test, ready)
		}
		for range test.ready {
			tasks = append(tasks, w.receive(b))
		}
		if test.most > 0 { // there is room for another when one is done
			short, cancel := context.WithTimeout(w.ctx(), 200*time.Millisecond)
			if task, err := b.Receive(short); err == nil {
				t.Errorf("%+v: one more than there may be: %s", test, task.ID)
			}
			cancel()
			if err := tasks[0].Complete(w.ctx(), nil); err != nil {
				t.Fatal(err)
			}
		}
		w.receive(b)
	}
}

// What was transferred makes room for another task at once, and its context ends once the receiver has claimed.
func TestTransferMakesRoom(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	a, c := w.agent("a"), w.agent("c")
	b := w.agent("b", func(c *handoff.Config) { c.MaxTasks = 1 })
	session := w.session(a)
	var handed []*handoff.Task
	for i := range 3 {
		must(session.Offer(w.ctx(), "b", fmt.Append(nil, i)))(t)
		task := w.receive(b)
		must(task.Offer(w.ctx(), "c", []byte("yours now"), handoff.Transfer()))(t)
		handed = append(handed, task)
	}
	handoff.RenewNow(b)
	for i, task := range handed {
		if err := context.Cause(task.Context()); err != nil {
			t.Errorf("task %d has ended before it was claimed: %v", i, err)
		}
		w.receive(c)
	}
	handoff.RenewNow(b)
	for i, task := range handed {
		if err := context.Cause(task.Context()); !errors.Is(err, &wire.Error{Code: wire.CodeParentEnded}) {
			t.Errorf("task %d was claimed by its receiver: %v", i, err)
		}
	}
}

// What one process does not ask for, another gets.
func TestIdleProcessesGetTasks(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	a, busy := w.agent("a"), w.agent("b")
	session := w.session(a)
	const tasks = 8
	for i := range tasks {
		must(session.Offer(w.ctx(), "b", fmt.Append(nil, i)))(t)
	}
	seen := map[string]bool{w.receive(busy).ID: true} // and all notices with it
	idle := w.agent("b")
	for len(seen) < tasks {
		task, err := idle.Receive(within(t, 30*time.Second))
		if err != nil {
			t.Fatalf("after %d of %d tasks: %v", len(seen), tasks, err)
		}
		if seen[task.ID] {
			t.Errorf("%s was received twice", task.ID)
		}
		seen[task.ID] = true
	}
}

// A process that ends gives back what it has not used.
func TestClosingGivesBack(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	keyA := oneKey(t)
	first, b := w.agent("a", keyA), w.agent("b")
	session := w.session(first)
	var sent []*handoff.Handoff
	for i := range 4 {
		sent = append(sent, must(session.Offer(w.ctx(), "b", fmt.Append(nil, i)))(t))
	}
	task := w.receive(b)
	b.Close()
	next := w.agent("b")
	if list := must(next.Peek(w.ctx(), 10, 5*time.Second))(t); len(list) != len(sent) {
		t.Errorf("the inbox has %+v", list)
	}
	for range 3 { // within what a waiting notice would be kept for
		got, err := next.Receive(within(t, 4*time.Second))
		if err != nil {
			t.Fatal(err)
		}
		if got.ID == task.ID {
			t.Error("a task that another process has claimed was received")
		}
		if err := got.Complete(w.ctx(), got.Body); err != nil {
			t.Fatal(err)
		}
	}
	if list := must(next.Peek(w.ctx(), 10, 0))(t); len(list) > 1 {
		t.Errorf("the inbox has %+v", list) // at most the one that may be taken over
	}

	for end := time.Now().Add(10 * time.Second); handoff.Held(first) < 3; {
		if time.Now().After(end) {
			t.Fatalf("%d results are held, want 3", handoff.Held(first))
		}
		time.Sleep(time.Millisecond)
	}
	first.Close()
	second := w.agent("a", keyA)
	for i, h := range sent {
		if h.ID == task.ID {
			continue
		}
		r, err := second.Handoff(h.ID).Result(within(t, 4*time.Second))
		if err != nil || string(r.Body) != fmt.Sprint(i) {
			t.Errorf("the result of %d is %v, %v", i, r, err)
		}
	}
}

// A process that goes on with a task by its key finishes it for the inbox, too.
func TestFinishedByItsKey(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	a, withKey := w.agent("a"), oneKey(t)
	sent := must(w.session(a).Offer(w.ctx(), "b", []byte("task")))(t)
	first := w.agent("b", withKey)
	w.receive(first)
	first.Close()
	second := w.agent("b", withKey)
	task := must(second.Claim(w.ctx(), sent.Session, sent.ID))(t)
	if err := task.Complete(w.ctx(), []byte("done")); err != nil {
		t.Fatal(err)
	}
	var list []handoff.Waiting
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		if list = must(second.Peek(w.ctx(), 10, 0))(t); len(list) == 0 {
			break
		}
	}
	second.Close()
	if list = must(w.agent("b").Peek(w.ctx(), 10, time.Second))(t); len(list) > 0 {
		t.Errorf("the inbox still has %+v", list)
	}
}
