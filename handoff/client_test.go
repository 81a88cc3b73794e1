package handoff_test

import (
	"testing"

	"github.com/handoff-governor/handoff-governor/handoff"
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
