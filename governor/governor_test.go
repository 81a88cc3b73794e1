package governor_test

import (
	"testing"

	"github.com/handoff-governor/handoff-governor/handoff/aat"
	"github.com/handoff-governor/handoff-governor/handoff/wire"
)

func readFiles() aat.Tools {
	return aat.Tools{"fs.read": {"path": aat.OneOf("/a", "/b")}, "fs.list": {}}
}

// A task goes from one agent to the next, and its result comes back.
func TestLifeOfATask(t *testing.T) {
	w := newWorld(t)
	a, b := w.agent("a"), w.agent("b")
	root := a.session(readFiles())
	o := root.offer(b.name, "work", func(o *offering) {
		o.claims.Tools = aat.Tools{"fs.read": {"path": aat.Exact("/a")}}
	})
	a.receipt(o.id)

	notice := b.next(wire.KindTask, o.id)
	if len(notice.Data()) != 0 {
		t.Errorf("a notice carries %q; the task must only come with the claim", notice.Data())
	}
	if from := notice.Headers().Get(wire.HeaderFrom); from != a.name {
		t.Errorf("the notice is from %q, want %q", from, a.name)
	}
	grant, claimed := b.claim(root.session, o.id)
	if string(claimed.Task) != "work" {
		t.Errorf("the task is %q, want %q", claimed.Task, "work")
	}
	if got, want := grant.leaf().Claims.Tools, (aat.Tools{"fs.read": {"path": aat.Exact("/a")}}); !got.Equal(want) {
		t.Errorf("granted %v, want %v", got, want)
	}
	if again, c := b.claim(root.session, o.id); !c.Repeat || again.leaf().Compact != grant.leaf().Compact {
		t.Errorf("claiming again: repeat %v, the same link %v; want both", c.Repeat, again.leaf().Compact == grant.leaf().Compact)
	}

	b.receipt(grant.result("done"))
	result := a.next(wire.KindResult, o.id)
	if string(result.Data()) != "done" || result.Headers().Get(wire.HeaderStatus) != wire.StatusCompleted {
		t.Errorf("the result is %q (%s)", result.Data(), result.Headers().Get(wire.HeaderStatus))
	}
}
