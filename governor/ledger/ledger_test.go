package ledger_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"go.etcd.io/bbolt"
	"golang.org/x/mod/sumdb/note"
	"pgregory.net/rapid"

	"github.com/handoff-governor/handoff-governor/governor/ledger"
	"github.com/handoff-governor/handoff-governor/governor/ledger/ledgertest"
	"github.com/handoff-governor/handoff-governor/handoff/entry"
	"github.com/handoff-governor/handoff-governor/handoff/entry/entrytest"
)

// records are the items of a log as the governor would append them.
func records(items []entrytest.Item) []ledger.Record {
	var out []ledger.Record
	for _, item := range items {
		r := ledger.Record{Entry: item.Entry, IDs: item.IDs, Session: item.Session}
		if item.Salt != nil {
			r.Body = &ledger.Body{Salt: item.Salt, Data: item.Body}
		}
		if item.Digest != "" {
			r.Bundle = &ledger.Bundle{Digest: item.Digest, Bytes: item.Bundle}
		}
		out = append(out, r)
	}
	return out
}

// history is a log of n entries.
func history(n int) *entrytest.Log {
	l := entrytest.New(ledgertest.Name, 1)
	l.Random(max(0, n-1))
	l.Items = l.Items[:n]
	return l
}

// openFor opens a new ledger that is verified at the end as the log it will hold.
func openFor(t testing.TB, log *entrytest.Log) (*ledger.Ledger, string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "ledger.db")
	return ledgertest.OpenFile(t, path, log.Signer, log.LogKey, log.Config()), path
}

func mustAppend(t testing.TB, l *ledger.Ledger, items []entrytest.Item) {
	t.Helper()
	if err := l.Append(t.Context(), l.Size(), records(items)); err != nil {
		t.Fatal(err)
	}
}

// Whatever was appended, in whatever batches, and however often the ledger was closed in between, is there.
func TestAppendThenRead(t *testing.T) {
	whole := history(300)
	rapid.Check(t, func(rt *rapid.T) {
		log := *whole
		log.Items = log.Items[:rapid.IntRange(1, len(log.Items)).Draw(rt, "entries")]
		dir, err := os.MkdirTemp("", "ledger")
		if err != nil {
			rt.Fatal(err)
		}
		defer os.RemoveAll(dir)
		path := filepath.Join(dir, "ledger.db")
		open := func() *ledger.Ledger {
			l, err := ledger.Open(path, ledger.Config{LogName: log.Name, Signer: log.Signer})
			if err != nil {
				rt.Fatal(err)
			}
			return l
		}
		l := open()
		var seen [][]byte
		for rest := log.Items; len(rest) > 0; {
			n := min(len(rest), rapid.IntRange(1, 300).Draw(rt, "batch"))
			if err := l.Append(rt.Context(), l.Size(), records(rest[:n])); err != nil {
				rt.Fatal(err)
			}
			rest = rest[n:]
			if rapid.Bool().Draw(rt, "look at the checkpoint") {
				c, err := l.Checkpoint()
				if err != nil {
					rt.Fatal(err)
				}
				seen = append(seen, c)
			}
			if rapid.Bool().Draw(rt, "reopen") {
				if err := l.Close(); err != nil {
					rt.Fatal(err)
				}
				l = open()
			}
		}
		compare(rt, l, &log)
		proofs(rt, l, &log)
		if err := l.Close(); err != nil {
			rt.Fatal(err)
		}
		trust := log.Config()
		trust.Seen = seen
		if report := ledgertest.Check(t, path, trust); report.Entries != uint64(len(log.Items)) || t.Failed() {
			rt.Fatalf("verified %d of %d entries", report.Entries, len(log.Items))
		}
	})
}

// tb is what a rapid.T and a testing.TB have in common.
type tb interface {
	Helper()
	Fatal(...any)
	Fatalf(string, ...any)
}

// compare reads everything back.
func compare(t tb, l *ledger.Ledger, log *entrytest.Log) {
	t.Helper()
	sessions := map[string][][]byte{}
	var newest []byte
	i := 0
	for encoded, err := range l.Entries(0) {
		if err != nil {
			t.Fatal(err)
		}
		item := log.Items[i]
		if !bytes.Equal(encoded, item.Entry) {
			t.Fatalf("entry %d is not what was appended", i)
		}
		for _, id := range item.IDs {
			if at, found, err := l.Lookup(id); err != nil || !found || at != uint64(i) {
				t.Fatalf("ID %s of entry %d: %d %v %v", id, i, at, found, err)
			}
		}
		salt, body, err := l.Body(uint64(i))
		if item.Salt == nil && !errors.Is(err, ledger.ErrNotFound) ||
			item.Salt != nil && (!bytes.Equal(salt, item.Salt) || !bytes.Equal(body, item.Body)) {
			t.Fatalf("body of entry %d: %v", i, err)
		}
		if item.Digest != "" {
			if b, err := l.Bundle(item.Digest); err != nil || !bytes.Equal(b, item.Bundle) {
				t.Fatalf("bundle of entry %d: %v", i, err)
			}
			newest = item.Bundle
		}
		if item.Session != "" {
			sessions[item.Session] = append(sessions[item.Session], encoded)
		}
		i++
	}
	if i != len(log.Items) || l.Size() != uint64(i) {
		t.Fatalf("%d entries, size %d; %d were appended", i, l.Size(), len(log.Items))
	}
	if b, err := l.NewestBundle(); newest != nil && (err != nil || !bytes.Equal(b, newest)) {
		t.Fatalf("the newest bundle: %v", err)
	}
	for id, want := range sessions {
		var got [][]byte
		for encoded, err := range l.Session(id) {
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, encoded)
		}
		slices.Reverse(got)
		if !slices.EqualFunc(got, want, bytes.Equal) {
			t.Fatalf("session %s has %d entries; %d were appended", id, len(got), len(want))
		}
	}
}

// proofs checks that the tree is RFC 6962's and that its proofs convince a stranger.
func proofs(t tb, l *ledger.Ledger, log *entrytest.Log) {
	t.Helper()
	n := len(log.Items)
	checkpoint := func(size int) entry.Checkpoint {
		return entry.Checkpoint{Origin: log.Name, Size: uint64(size), Root: entrytest.Root(log.Items[:size])}
	}
	signed, err := l.Checkpoint()
	if err != nil {
		t.Fatal(err)
	}
	if c, err := entry.OpenCheckpoint(signed, log.LogKey); err != nil || c != checkpoint(n) {
		t.Fatalf("checkpoint %+v: %v", c, err)
	}
	sizes := []int{1, 2, 3, 255, 256, 257, n / 2, n - 1, n}
	for _, size := range sizes {
		if size < 1 || size > n {
			continue
		}
		for _, i := range []int{0, size / 3, size - 1} {
			proof, err := l.Inclusion(uint64(i), uint64(size))
			if err == nil {
				err = entry.CheckInclusion(checkpoint(size), uint64(i), log.Items[i].Entry, proof)
			}
			if err != nil {
				t.Fatal(err)
			}
			if other := (i + 1) % size; other != i {
				if entry.CheckInclusion(checkpoint(size), uint64(i), log.Items[other].Entry, proof) == nil ||
					entry.CheckInclusion(checkpoint(size), uint64(other), log.Items[other].Entry, proof) == nil {
					t.Fatalf("a proof of entry %d proves entry %d", i, other)
				}
			}
		}
		proof, err := l.Consistency(uint64(size), uint64(n))
		if err == nil {
			err = entry.CheckConsistency(checkpoint(size), checkpoint(n), proof)
		}
		if err != nil {
			t.Fatal(err)
		}
		forged := checkpoint(size)
		forged.Root[0] ^= 1
		if entry.CheckConsistency(forged, checkpoint(n), proof) == nil {
			t.Fatalf("another history of %d entries is consistent with one of %d", size, n)
		}
	}
}

// A walk along a session that was tampered with says so, and ends.
func TestSessionThatIsDamaged(t *testing.T) {
	log := history(300)
	path := filepath.Join(t.TempDir(), "ledger.db")
	l, err := ledger.Open(path, ledger.Config{LogName: log.Name, Signer: log.Signer})
	if err != nil {
		t.Fatal(err)
	}
	mustAppend(t, l, log.Items)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	const at = 7 // below the newest tile, which is checked at the opening
	session := log.Items[at].Session
	if session == "" {
		t.Fatalf("entry %d is of no session", at)
	}
	points := func(name string, to uint64) string {
		return fmt.Sprintf(`{"session":%q,"prev":{"session":%d}}`, name, to)
	}
	for name, encoded := range map[string]string{
		"forward":         points(session, at+1),
		"to itself":       points(session, at),
		"to another's":    points(session, 0),
		"beyond the end":  points(session, 1<<60),
		"not an entry":    "{",
		"another session": points("01900000-0000-7000-8000-000000000000", 0),
	} {
		db, err := bbolt.Open(path, 0o600, nil)
		if err != nil {
			t.Fatal(err)
		}
		err = db.Update(func(tx *bbolt.Tx) error {
			return tx.Bucket([]byte("entry")).Put(binary.BigEndian.AppendUint64(nil, at), []byte(encoded))
		})
		if err := errors.Join(err, db.Close()); err != nil {
			t.Fatal(err)
		}
		l, err := ledger.Open(path, ledger.Config{LogName: log.Name, ReadOnly: true})
		if err != nil {
			t.Fatal(err)
		}
		n := 0
		for _, err = range l.Session(session) {
			n++
		}
		if !errors.Is(err, ledger.ErrDamaged) || n > len(log.Items) {
			t.Errorf("%s: after %d entries %v", name, n, err)
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestAppendIsFenced(t *testing.T) {
	log := history(10)
	l, _ := openFor(t, log)
	mustAppend(t, l, log.Items[:5])
	for _, next := range []uint64{0, 4, 6} {
		if err := l.Append(t.Context(), next, records(log.Items[5:])); !errors.Is(err, ledger.ErrFenced) {
			t.Errorf("append at %d of 5: %v", next, err)
		}
	}
	mustAppend(t, l, log.Items[5:])
	compare(t, l, log)
}

func TestAppendRefusesUsedIDs(t *testing.T) {
	log := history(20)
	l, _ := openFor(t, log)
	mustAppend(t, l, log.Items)
	for name, batch := range map[string][]ledger.Record{
		"by an entry":    {{Entry: []byte("{}"), IDs: log.Items[1].IDs}},
		"in its batch":   {{Entry: []byte("{}"), IDs: []string{log.ID()}}, {Entry: []byte("{}"), IDs: log.Items[1].IDs}},
		"twice at once":  {{Entry: []byte("{}"), IDs: slices.Repeat([]string{log.ID()}, 2)}},
		"in upper case":  {{Entry: []byte("{}"), IDs: []string{"0198A5A0-0000-7000-8000-000000000000"}}},
		"not an ID":      {{Entry: []byte("{}"), IDs: []string{"x"}}},
		"not a session":  {{Entry: []byte("{}"), Session: "x"}},
		"empty":          {{}},
		"too long":       {{Entry: make([]byte, entry.MaxSize+1)}},
		"without a salt": {{Entry: []byte("{}"), Body: &ledger.Body{Data: []byte("x")}}},
	} {
		if err := l.Append(t.Context(), l.Size(), batch); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	compare(t, l, log) // nothing of them is left
}

func TestAppendAfterCancel(t *testing.T) {
	log := history(3)
	l, _ := openFor(t, log)
	mustAppend(t, l, log.Items)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := l.Append(ctx, 3, []ledger.Record{{Entry: []byte("{}")}}); !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	compare(t, l, log)
}

// Readers and the writer at once: what a reader sees is always a prefix of the record.
func TestReadersBesideTheWriter(t *testing.T) {
	log := history(600)
	l, _ := openFor(t, log)
	done := make(chan struct{})
	var readers sync.WaitGroup
	for range 3 {
		readers.Go(func() {
			for finished := false; !finished; {
				select {
				case <-done:
					finished = true
				default:
				}
				signed, err := l.Checkpoint()
				if err != nil {
					t.Error(err)
					return
				}
				c, err := entry.OpenCheckpoint(signed, log.LogKey)
				if err != nil || c.Root != entrytest.Root(log.Items[:c.Size]) {
					t.Errorf("checkpoint of %d entries: %v", c.Size, err)
					return
				}
				i := 0
				for encoded, err := range l.Entries(0) {
					if err != nil || !bytes.Equal(encoded, log.Items[i].Entry) {
						t.Errorf("entry %d: %v", i, err)
						return
					}
					i++
				}
				if uint64(i) < c.Size {
					t.Errorf("%d entries are there; %d were signed", i, c.Size)
				}
				if i > 0 {
					proof, err := l.Inclusion(uint64(i-1), uint64(i))
					c := entry.Checkpoint{Origin: log.Name, Size: uint64(i), Root: entrytest.Root(log.Items[:i])}
					if err == nil {
						err = entry.CheckInclusion(c, uint64(i-1), log.Items[i-1].Entry, proof)
					}
					if err != nil {
						t.Error(err)
					}
				}
			}
		})
	}
	for rest := log.Items; len(rest) > 0; {
		n := min(len(rest), 1+len(rest)%17)
		mustAppend(t, l, rest[:n])
		rest = rest[n:]
	}
	close(done)
	readers.Wait()
	compare(t, l, log)
}

func TestDropBodies(t *testing.T) {
	log := entrytest.New(ledgertest.Name, 2)
	log.Random(300)
	middle := log.Now
	log.Now = log.Now.Add(time.Minute)
	log.Random(300)
	l, path := openFor(t, log)
	mustAppend(t, l, log.Items)
	old, kept := 0, 0
	for _, item := range log.Items {
		e, err := entry.Decode(item.Entry)
		if err != nil {
			t.Fatal(err)
		}
		if item.Salt != nil && e.Time < middle.UnixMilli() {
			old++
		} else if item.Salt != nil {
			kept++
		}
	}
	total := 0
	for {
		n, err := l.DropBodies(middle, 7)
		if err != nil || n > 7 {
			t.Fatal(n, err)
		}
		if total += n; n == 0 {
			break
		}
	}
	if total != old || old == 0 || kept == 0 {
		t.Errorf("dropped %d bodies; %d were old, %d are not", total, old, kept)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	trust := log.Config()
	if report := ledgertest.Check(t, path, trust); report.Bodies != uint64(kept) || report.BodiesGone != uint64(old) {
		t.Errorf("%d bodies there, %d gone", report.Bodies, report.BodiesGone)
	}
}

func TestLive(t *testing.T) {
	log := history(10)
	l, path := openFor(t, log)
	mustAppend(t, l, log.Items)
	if err := l.PutLive(11, nil); err == nil {
		t.Error("a live state of entries that are not there was stored")
	}
	for _, changes := range []map[string][]byte{
		{"a": []byte("1"), "b": []byte("2")}, {"a": nil, "c": []byte("3"), "gone": nil},
	} {
		if err := l.PutLive(7, changes); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.NoteLive(map[string][]byte{"b": nil, "d": []byte("4")}); err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	again, err := ledger.Open(path, ledger.Config{ReadOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	watermark, items, err := again.Live()
	if err != nil || watermark != 7 || fmt.Sprintf("%s", items) != "map[c:3 d:4]" {
		t.Error(watermark, items, err)
	}
	if err := again.PutLive(8, nil); !errors.Is(err, ledger.ErrReadOnly) {
		t.Error(err)
	}
	if err := again.NoteLive(nil); !errors.Is(err, ledger.ErrReadOnly) {
		t.Error(err)
	}
	if err := again.Append(t.Context(), 10, records(log.Items[:1])); !errors.Is(err, ledger.ErrReadOnly) {
		t.Error(err)
	}
}

// A crash after the keys were replaced, and before they have signed, leaves the checkpoint that there was.
func TestCrashBeforeNewKeysSign(t *testing.T) {
	log := history(20)
	l, original := openFor(t, log)
	mustAppend(t, l, log.Items[:10])
	if err := l.PutLive(10, nil); err != nil { // stores a checkpoint
		t.Fatal(err)
	}
	if err := l.SignWith(log.Signer); err != nil { // as each start does
		t.Fatal(err)
	}
	mustAppend(t, l, log.Items[10:])
	path := filepath.Join(t.TempDir(), "crashed.db")
	if err := os.WriteFile(path, bytes.Join(readPages(t, original, 16<<10), nil), 0o600); err != nil {
		t.Fatal(err)
	}
	if report := ledgertest.Check(t, path, log.Config()); report.Entries != 20 || report.Checkpoint.Size != 10 {
		t.Errorf("%+v", report)
	}
}

func TestUseAfterClose(t *testing.T) {
	log := history(3)
	l, _ := openFor(t, log)
	mustAppend(t, l, log.Items)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if err := l.Append(t.Context(), 3, []ledger.Record{{Entry: []byte("{}")}}); !errors.Is(err, ledger.ErrClosed) {
		t.Error(err)
	}
	if _, err := l.Entry(0); !errors.Is(err, ledger.ErrClosed) {
		t.Error(err)
	}
	for _, err := range l.Entries(0) {
		if !errors.Is(err, ledger.ErrClosed) {
			t.Error(err)
		}
	}
}

func TestOpenRefuses(t *testing.T) {
	dir := t.TempDir()
	log := history(5)
	good := filepath.Join(dir, "good.db")
	cfg := ledger.Config{LogName: log.Name, Signer: log.Signer}
	l, err := ledger.Open(good, cfg)
	if err != nil {
		t.Fatal(err)
	}
	mustAppend(t, l, log.Items)
	if _, err := ledger.Open(good, cfg); !errors.Is(err, ledger.ErrInUse) {
		t.Errorf("in use: %v", err)
	}
	if _, err := ledger.Open(good, ledger.Config{ReadOnly: true}); !errors.Is(err, ledger.ErrInUse) {
		t.Errorf("in use, for reading: %v", err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(good)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}

	file := func(name string, content []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	change := func(name string, change func(*bbolt.Tx) error) string {
		content, err := os.ReadFile(good)
		if err != nil {
			t.Fatal(err)
		}
		path := file(name, content)
		db, err := bbolt.Open(path, 0o600, nil)
		if err != nil {
			t.Fatal(err)
		}
		if err := db.Update(change); err != nil {
			t.Fatal(err)
		}
		if err := db.Close(); err != nil {
			t.Fatal(err)
		}
		return path
	}
	content, err := os.ReadFile(good)
	if err != nil {
		t.Fatal(err)
	}
	other := entrytest.New("other.example", 1)
	for _, c := range []struct {
		name string
		path string
		cfg  ledger.Config
		want error
	}{
		{"another log", good, ledger.Config{LogName: "other.example"}, ledger.ErrOtherLog},
		{"a key of another log", good, ledger.Config{LogName: log.Name, Signer: other.Signer}, nil},
		{"a text", file("text", bytes.Repeat([]byte("not a ledger\n"), 10_000)), cfg, ledger.ErrNotLedger},
		{"a short text", file("short", []byte("x")), cfg, ledger.ErrNotLedger},
		{"a newer format", change("newer", func(tx *bbolt.Tx) error {
			return tx.Bucket([]byte("meta")).Put([]byte("format"), []byte{0, 0, 0, 0, 0, 0, 0, ledger.FormatVersion + 1})
		}), cfg, ledger.ErrNewer},
		{"another program's file", change("foreign", func(tx *bbolt.Tx) error {
			return tx.DeleteBucket([]byte("meta"))
		}), cfg, ledger.ErrNotLedger},
		{"a changed last entry", change("changed", func(tx *bbolt.Tx) error {
			return tx.Bucket([]byte("entry")).Put([]byte{0, 0, 0, 0, 0, 0, 0, 4}, log.Items[3].Entry)
		}), cfg, ledger.ErrDamaged},
		{"an entry too many", change("many", func(tx *bbolt.Tx) error {
			return tx.Bucket([]byte("entry")).Put([]byte{0, 0, 0, 0, 0, 0, 0, 5}, log.Items[3].Entry)
		}), cfg, ledger.ErrDamaged},
		{"an entry lost", change("lost", func(tx *bbolt.Tx) error {
			return tx.Bucket([]byte("entry")).Delete([]byte{0, 0, 0, 0, 0, 0, 0, 4})
		}), cfg, ledger.ErrDamaged},
		{"an entry lost below the last", change("gap", func(tx *bbolt.Tx) error {
			return tx.Bucket([]byte("entry")).Delete([]byte{0, 0, 0, 0, 0, 0, 0, 2})
		}), cfg, ledger.ErrDamaged},
		{"live state of more than there is", change("watermark", func(tx *bbolt.Tx) error {
			return tx.Bucket([]byte("meta")).Put([]byte("watermark"), []byte{0, 0, 0, 0, 0, 0, 0, 6})
		}), cfg, ledger.ErrDamaged},
		{"a checkpoint of more than there is", change("checkpoint", func(tx *bbolt.Tx) error {
			c, err := note.Sign(&note.Note{Text: entry.Checkpoint{Origin: log.Name, Size: 6}.String()}, log.Signer)
			if err != nil {
				return err
			}
			return tx.Bucket([]byte("meta")).Put([]byte("checkpoint"), c)
		}), cfg, ledger.ErrDamaged},
		{"a bucket lost", change("bucket", func(tx *bbolt.Tx) error {
			return tx.DeleteBucket([]byte("id"))
		}), cfg, ledger.ErrDamaged},
		{"a lost tail", file("truncated", content[:48<<10]), cfg, ledger.ErrDamaged},
		{"nothing, for reading", filepath.Join(dir, "none.db"), ledger.Config{ReadOnly: true}, os.ErrNotExist},
		{"a directory", dir, cfg, nil},
		{"no name for a new log", filepath.Join(dir, "new.db"), ledger.Config{}, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			l, err := ledger.Open(c.path, c.cfg)
			if err == nil {
				l.Close()
				t.Fatal("opened")
			}
			if c.want != nil && !errors.Is(err, c.want) {
				t.Fatalf("got %v, want %v", err, c.want)
			}
		})
	}
}
