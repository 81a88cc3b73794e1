package governor_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/handoff-governor/handoff-governor/handoff/aat"
	"github.com/handoff-governor/handoff-governor/handoff/wire"
)

// What was promised before a stop is published again after it, even where the streams have lost everything.
func TestRestartPublishesAgain(t *testing.T) {
	w := newWorld(t)
	a, b := w.agent("a"), w.agent("b")
	root := a.session(readFiles())
	waiting := root.offer(b.name, "still to do")
	a.receipt(waiting.id)
	finished := root.offer(b.name, "work")
	a.receipt(finished.id)
	grant, _ := b.claim(root.session, finished.id)
	b.receipt(grant.result("done"))
	denied := root.offer(b.name, "too much", func(o *offering) { o.claims.Tools = aat.Tools{"fs.write": {}} })
	a.receipt(denied.id)

	w.stop()
	if err := os.RemoveAll(filepath.Join(w.cfg.Dir, "streams")); err != nil {
		t.Fatal(err)
	}
	w.start()
	a2, b2 := w.agent("a"), w.agent("b")
	b2.next(wire.KindTask, waiting.id)
	if m := a2.next(wire.KindResult, finished.id); string(m.Data()) != "done" {
		t.Errorf("the result is %q", m.Data())
	}
	if v := a2.verdict(denied.id); v.Effect != wire.EffectDeny {
		t.Errorf("the verdict is %+v", v)
	}
	// The process that worked before still holds its key, and can go on.
	b2.key = b.key
	lives(t, held{a: &agent{w: w, t: t, name: a2.name, key: a.key, nc: a2.nc, js: a2.js, receipts: a2.receipts, inbox: a2.inbox},
		links: root.links, governor: root.governor, session: root.session}, b2)
}
