package governor_test

import (
	"strings"
	"testing"

	"github.com/handoff-governor/handoff-governor/handoff/entry"
	"github.com/handoff-governor/handoff-governor/handoff/wire"
)

// An operator reads one session page by page, however many others there are: newest first, each entry once.
func TestSessionEntries(t *testing.T) {
	w := newWorld(t)
	a, b, op := w.agent("a"), w.agent("b"), w.operator()
	root, other := a.session(readFiles()), a.session(readFiles())
	const offers = 150
	ids := map[string]bool{root.session: true}
	var last *offering
	for i := range offers {
		last = root.offer(b.name, "work", func(o *offering) { o.handoff.Purpose = strings.Repeat("why ", 1000) })
		ids[last.id] = true
		if i%10 == 0 {
			a.receipt(other.offer(b.name, "else").id)
		}
	}
	a.receipt(last.id)

	var indexes []uint64
	pages := 0
	for q := (wire.OperatorRequest{Session: root.session}); ; pages++ {
		page := op.operate(wire.VerbChainEntries, q)
		if page.Error != nil {
			t.Fatal(page.Error)
		}
		for _, encoded := range page.Entries {
			e, err := entry.Decode(encoded)
			if err != nil {
				t.Fatal(err)
			}
			about := e.Handoff
			if e.Opened != nil {
				about = e.Session
			}
			if e.Session != root.session || !ids[about] {
				t.Fatalf("entry %d is of another session, or was sent before", e.Index)
			}
			delete(ids, about)
			indexes = append(indexes, e.Index)
		}
		if q.From = page.Next; q.From == 0 {
			break
		}
	}
	if len(ids) > 0 || pages == 0 {
		t.Errorf("%d entries are missing, after %d pages", len(ids), pages+1)
	}
	for i := 1; i < len(indexes); i++ {
		if indexes[i] >= indexes[i-1] {
			t.Fatalf("entry %d comes behind entry %d", indexes[i], indexes[i-1])
		}
	}
	for _, q := range []wire.OperatorRequest{
		{Session: "no ID"}, {Session: other.session, From: indexes[0]}, {Session: root.session, From: 1 << 40},
	} {
		if page := op.operate(wire.VerbChainEntries, q); page.Error == nil {
			t.Errorf("%+v is answered with %d entries", q, len(page.Entries))
		}
	}
	if page := op.operate(wire.VerbChainEntries, wire.OperatorRequest{Session: newID(t)}); page.Error != nil || len(page.Entries) > 0 {
		t.Errorf("a session that never was: %+v", page)
	}
}
