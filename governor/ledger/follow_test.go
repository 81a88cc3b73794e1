package ledger_test

import (
	"errors"
	"iter"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/handoff-governor/handoff-governor/governor/ledger"
	"github.com/handoff-governor/handoff-governor/governor/ledger/ledgertest"
	"github.com/handoff-governor/handoff-governor/handoff/entry"
	"github.com/handoff-governor/handoff-governor/handoff/entry/entrytest"
)

// copyOf follows src into the file path, and checks what that is then.
func copyOf(t *testing.T, src ledger.Source, path string, log *entrytest.Log) (ledger.Followed, entry.Report, error) {
	t.Helper()
	l, err := ledger.Open(path, ledger.Config{LogName: log.Name})
	if err != nil {
		t.Fatal(err)
	}
	done, followed := l.Follow(t.Context(), src, log.Config())
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if l, err = ledger.Open(path, ledger.Config{ReadOnly: true}); err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if l.Size() == 0 {
		return done, entry.Report{}, followed
	}
	if err := l.Check(t.Context()); err != nil {
		t.Error(err)
	}
	return done, ledgertest.Check(t, path, log.Config()), followed
}

// A copy grows with its record, proves itself, and holds all that the record does: what an entry uses up is found in it.
func TestFollow(t *testing.T) {
	log := history(700)
	src, _ := openFor(t, log)
	path := filepath.Join(t.TempDir(), "copy.db")
	for _, end := range []int{1, 300, 300, 700} {
		before := src.Size()
		mustAppend(t, src, log.Items[before:end])
		done, report, err := copyOf(t, src, path, log)
		if err != nil {
			t.Fatal(err)
		}
		if done.Entries != uint64(end)-before || report.Entries != uint64(end) || report.Unsigned != 0 || report.BodiesGone != 0 {
			t.Errorf("at %d: %+v, %+v", end, done, report)
		}
	}
	l, err := ledger.Open(path, ledger.Config{ReadOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	compare(t, l, log)
}

// A copy has no hole where retention has taken bodies between two copies.
func TestFollowAfterRetention(t *testing.T) {
	log := history(400)
	src, _ := openFor(t, log)
	path := filepath.Join(t.TempDir(), "copy.db")
	mustAppend(t, src, log.Items[:100])
	if _, _, err := copyOf(t, src, path, log); err != nil {
		t.Fatal(err)
	}
	mustAppend(t, src, log.Items[100:])
	middle, err := entry.Decode(log.Items[200].Entry)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := src.DropBodies(time.UnixMilli(middle.Time), 1000); err != nil {
		t.Fatal(err)
	}
	_, report, err := copyOf(t, src, path, log)
	if err != nil || report.Entries != 400 || report.BodiesGone == 0 || report.Bodies == 0 {
		t.Errorf("%+v, %v", report, err)
	}
}

// What does not go on from the copy is not added to it.
func TestFollowRefusesAnotherHistory(t *testing.T) {
	log := history(120)
	other := *log
	other.Items = slices.Clone(log.Items)
	other.Items[90], other.Items[91] = log.Items[91], log.Items[90]
	for name, test := range map[string]struct {
		items []entrytest.Item
		copy  int
	}{
		"rewritten below what was copied": {other.Items, 100},
		"shorter than what was copied":    {log.Items[:80], 100},
	} {
		t.Run(name, func(t *testing.T) {
			first, err := ledger.Open(filepath.Join(t.TempDir(), "first.db"), ledger.Config{LogName: log.Name, Signer: log.Signer})
			if err != nil {
				t.Fatal(err)
			}
			defer first.Close()
			mustAppend(t, first, log.Items[:test.copy])
			path := filepath.Join(t.TempDir(), "copy.db")
			if _, _, err := copyOf(t, first, path, log); err != nil {
				t.Fatal(err)
			}
			second, err := ledger.Open(filepath.Join(t.TempDir(), "second.db"), ledger.Config{LogName: log.Name, Signer: log.Signer})
			if err != nil {
				t.Fatal(err)
			}
			defer second.Close()
			mustAppend(t, second, test.items)
			done, report, err := copyOf(t, second, path, log)
			if !errors.Is(err, ledger.ErrForked) || done.Entries != 0 || report.Entries != uint64(test.copy) {
				t.Errorf("%+v, %d entries, %v", done, report.Entries, err)
			}
		})
	}
	// Nor is what the log has not signed.
	src, _ := openFor(t, log)
	mustAppend(t, src, log.Items)
	path := filepath.Join(t.TempDir(), "copy.db")
	if _, _, err := copyOf(t, changed{src}, path, log); !errors.Is(err, ledger.ErrForked) {
		t.Error(err)
	}
	stranger := entrytest.New(ledgertest.Name, 2)
	if done, _, err := copyOf(t, src, path, stranger); err == nil || done.Entries != 0 {
		t.Error("what another key has signed was copied")
	}
}

// changed is a source of which an entry was changed on the way.
type changed struct{ *ledger.Ledger }

func (c changed) Entries(from uint64) iter.Seq2[[]byte, error] {
	return func(yield func([]byte, error) bool) {
		i := from
		for encoded, err := range c.Ledger.Entries(from) {
			if i == 50 {
				encoded = append(slices.Clone(encoded[:len(encoded)-1]), ' ', '}')
			}
			i++
			if !yield(encoded, err) {
				return
			}
		}
	}
}

// What an entry says of itself is what was stored for it.
func TestEntryTellsWhatIsBesideIt(t *testing.T) {
	log := history(700)
	kinds := map[entry.Kind]int{}
	for i, item := range log.Items {
		e, err := entry.Decode(item.Entry)
		if err != nil {
			t.Fatal(err)
		}
		var ids []string
		if id := e.ID(); id != "" {
			ids = []string{id}
		}
		if !slices.Equal(ids, item.IDs) {
			t.Errorf("entry %d (%s): %v, want %v", i, e.Kind, ids, item.IDs)
		}
		if _, hash := e.BodyHash(); (hash != "") != (item.Salt != nil) {
			t.Errorf("entry %d (%s): hash %q, and a body: %t", i, e.Kind, hash, item.Salt != nil)
		}
		if len(ids) > 0 {
			kinds[e.Kind]++
		}
	}
	for _, kind := range []entry.Kind{entry.KindSession, entry.KindDecided, entry.KindClaimed, entry.KindResult} {
		if kinds[kind] == 0 {
			t.Errorf("no entry of the kind %s", kind)
		}
	}
}
