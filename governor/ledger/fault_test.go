//go:build linux

package ledger_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/handoff-governor/handoff-governor/governor/ledger"
	"github.com/handoff-governor/handoff-governor/governor/ledger/ledgertest"
	"github.com/handoff-governor/handoff-governor/handoff/entry"
	"github.com/handoff-governor/handoff-governor/handoff/entry/entrytest"
)

// Putting a device in the file's place lets the kernel itself fail a commit: /dev/full refuses every write as a full
// disk does, /dev/null swallows writes and then fails the sync, as a disk does that lost its cache.
func TestDiskRefuses(t *testing.T) {
	for _, device := range []string{"/dev/full", "/dev/null"} {
		t.Run(filepath.Base(device), func(t *testing.T) {
			log := history(100)
			path := filepath.Join(t.TempDir(), "ledger.db")
			var file *os.File
			cfg := ledger.Config{LogName: log.Name, Signer: log.Signer}
			l, err := ledger.OpenWith(path, cfg, func(f *os.File) { file = f })
			if err != nil {
				t.Fatal(err)
			}
			mustAppend(t, l, log.Items[:40])
			replace(t, file, device, func() {
				err := l.Append(t.Context(), 40, records(log.Items[40:]))
				if err == nil || errors.Is(err, ledger.ErrBroken) {
					t.Fatalf("append to %s: %v", device, err)
				}
				if l.Size() != 40 {
					t.Fatalf("%d entries after a failed commit", l.Size())
				}
				for i, item := range log.Items[:40] { // reads go on
					if got, err := l.Entry(uint64(i)); err != nil || !bytes.Equal(got, item.Entry) {
						t.Fatal(i, err)
					}
				}
			})
			mustAppend(t, l, log.Items[40:]) // and writes, when the disk is well again
			compare(t, l, log)
			if err := l.Close(); err != nil {
				t.Fatal(err)
			}
			ledgertest.Check(t, path, log.Config())
		})
	}
}

// Where the very last sync fails, nobody knows whether the batch is there. Nothing may be appended to that.
func TestOutcomeUnknown(t *testing.T) {
	log := history(100)
	path := filepath.Join(t.TempDir(), "ledger.db")
	cfg := ledger.Config{LogName: log.Name, Signer: log.Signer}
	var fail error
	l, err := ledger.OpenWithSync(path, cfg, func() error { return fail })
	if err != nil {
		t.Fatal(err)
	}
	mustAppend(t, l, log.Items[:40])
	fail = syscall.EIO
	if err := l.Append(t.Context(), 40, records(log.Items[40:])); !errors.Is(err, ledger.ErrBroken) || !errors.Is(err, fail) {
		t.Fatal(err)
	}
	fail = nil
	if err := l.Append(t.Context(), 40, records(log.Items[40:])); !errors.Is(err, ledger.ErrBroken) {
		t.Fatal(err)
	}
	if err := l.PutLive(0, nil); !errors.Is(err, ledger.ErrBroken) {
		t.Fatal(err)
	}
	compare(t, l, &entrytest.Log{Name: log.Name, Items: log.Items[:40]}) // what is not certain is not shown
	if _, found, err := l.Lookup(log.Items[99].IDs[0]); found || err != nil {
		t.Error("an ID of a batch that is not certain was found", err)
	}
	proofs(t, l, &entrytest.Log{Name: log.Name, Items: log.Items[:40], LogKey: log.LogKey})
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if l, err = ledger.Open(path, cfg); err != nil {
		t.Fatal(err)
	}
	compare(t, l, log) // it was there after all
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	ledgertest.Check(t, path, log.Config())
}

// A file that is cut off under an open ledger ends in errors, not in a crash.
func TestFileCutOff(t *testing.T) {
	log := history(100)
	path := filepath.Join(t.TempDir(), "ledger.db")
	l, err := ledger.Open(path, ledger.Config{LogName: log.Name, Signer: log.Signer})
	if err != nil {
		t.Fatal(err)
	}
	mustAppend(t, l, log.Items[:40])
	if err := os.Truncate(path, 32<<10); err != nil {
		t.Fatal(err)
	}
	if _, err := l.Entry(0); !errors.Is(err, ledger.ErrDamaged) {
		t.Error(err)
	}
	for range 2 {
		if err := l.Append(t.Context(), 40, records(log.Items[40:])); !errors.Is(err, ledger.ErrBroken) {
			t.Error(err)
		}
	}
	if err := l.Close(); !errors.Is(err, ledger.ErrBroken) {
		t.Error(err)
	}
}

// replace lets f's descriptor mean another file while during runs.
func replace(t *testing.T, f *os.File, other string, during func()) {
	t.Helper()
	swap, err := os.OpenFile(other, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer swap.Close()
	raw, err := f.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	dup := func(from int) {
		cerr := raw.Control(func(fd uintptr) { err = syscall.Dup3(from, int(fd), syscall.O_CLOEXEC) })
		if err != nil || cerr != nil {
			t.Fatal(err, cerr)
		}
	}
	var saved int
	if cerr := raw.Control(func(fd uintptr) { saved, err = syscall.Dup(int(fd)) }); err != nil || cerr != nil {
		t.Fatal(err, cerr)
	}
	defer syscall.Close(saved)
	dup(int(swap.Fd()))
	defer dup(saved)
	during()
}

// Where the power fails in the middle of a commit, any of its pages may have reached the disk, and none need have. What
// was there before is there after; a batch is there whole or not at all.
func TestPowerFails(t *testing.T) {
	const page = 16 << 10
	log := history(120)
	path := filepath.Join(t.TempDir(), "ledger.db")
	l, err := ledger.Open(path, ledger.Config{LogName: log.Name, Signer: log.Signer})
	if err != nil {
		t.Fatal(err)
	}
	mustAppend(t, l, log.Items[:60])
	before := readPages(t, path, page)
	mustAppend(t, l, log.Items[60:])
	after := readPages(t, path, page)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	meta := -1 // the meta page that the commit wrote, last and after a sync
	for i := range 2 {
		if !bytes.Equal(before[i], after[i]) {
			meta = i
		}
	}
	if meta < 0 {
		t.Fatal("the commit wrote no meta page")
	}
	random := rand.New(rand.NewPCG(1, 2))
	for round := range 16 {
		disk := make([][]byte, len(after))
		for i := range after {
			disk[i] = after[i]
			if i < len(before) && random.IntN(2) == 0 {
				disk[i] = before[i]
			}
		}
		disk[0], disk[1] = before[0], before[1]
		want := 60
		switch round % 4 {
		case 1: // everything is there, the meta page only in part
			copy(disk, after)
			disk[1-meta] = before[1-meta]
			torn := bytes.Clone(before[meta])
			copy(torn[:16+random.IntN(64)], after[meta])
			disk[meta] = torn
		case 2: // everything is there
			copy(disk, after)
			want = 120
		}
		survived := filepath.Join(t.TempDir(), "survived.db")
		if err := os.WriteFile(survived, bytes.Join(disk, nil), 0o600); err != nil {
			t.Fatal(err)
		}
		l, err := ledger.Open(survived, ledger.Config{LogName: log.Name, Signer: log.Signer})
		if err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
		if l.Size() != uint64(want) {
			t.Fatalf("round %d: %d entries, want %d", round, l.Size(), want)
		}
		mustAppend(t, l, log.Items[want:])
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		if report := ledgertest.Check(t, survived, log.Config()); report.Entries != 120 {
			t.Fatalf("round %d: verified %d entries", round, report.Entries)
		}
	}
}

func readPages(t *testing.T, path string, size int) [][]byte {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var pages [][]byte
	for zero := 0; zero < 64; { // what follows was never written
		p := make([]byte, size)
		n, err := io.ReadFull(f, p)
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		if pages = append(pages, p[:n]); len(bytes.Trim(p, "\x00")) == 0 {
			zero++
		} else {
			zero = 0
		}
	}
	return pages
}

// A process that is killed at any moment loses nothing whose Append had returned.
func TestKill(t *testing.T) {
	if path := os.Getenv("LEDGER_TEST_KILLED"); path != "" {
		appendUntilKilled(path)
		return
	}
	log := history(800)
	for round := range 4 {
		path := filepath.Join(t.TempDir(), "ledger.db")
		child := exec.Command(os.Args[0], "-test.run=^TestKill$")
		child.Env = append(os.Environ(), "LEDGER_TEST_KILLED="+path)
		out, err := child.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := child.Start(); err != nil {
			t.Fatal(err)
		}
		// The child names every size that is durable. Kill it a while after it has begun.
		durable := uint64(0)
		lines := bufio.NewScanner(out)
		for lines.Scan() {
			if n, err := strconv.ParseUint(lines.Text(), 10, 64); err == nil {
				durable = n
			}
			if durable == uint64(50*(1+2*round)) {
				time.AfterFunc(time.Duration(rand.IntN(3000))*time.Microsecond, func() { child.Process.Kill() })
			}
		}
		child.Wait() // killed
		l, err := ledger.Open(path, ledger.Config{LogName: log.Name, Signer: log.Signer})
		if err != nil {
			t.Fatal(err)
		}
		if l.Size() < durable || durable == 0 {
			t.Errorf("%d entries, though %d were durable", l.Size(), durable)
		}
		n := int(l.Size())
		compare(t, l, &entrytest.Log{Name: log.Name, Items: log.Items[:n]})
		mustAppend(t, l, log.Items[n:])
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		ledgertest.Check(t, path, log.Config())
	}
}

func appendUntilKilled(path string) {
	log := history(800)
	l, err := ledger.Open(path, ledger.Config{LogName: log.Name, Signer: log.Signer})
	if err != nil {
		panic(err)
	}
	for i := 0; i < len(log.Items); i += 5 {
		if err := l.Append(context.Background(), uint64(i), records(log.Items[i:i+5])); err != nil {
			panic(err)
		}
		fmt.Println(l.Size())
	}
	select {} // all is written: wait for the end
}

// No byte of the file may be changed without being noticed, or without it making no difference: opening, reading and
// verifying either fail, or find the very entries that were written. None may panic.
func TestFlippedPages(t *testing.T) {
	log := history(60)
	dir := t.TempDir()
	path := filepath.Join(dir, "ledger.db")
	l, err := ledger.Open(path, ledger.Config{LogName: log.Name, Signer: log.Signer})
	if err != nil {
		t.Fatal(err)
	}
	mustAppend(t, l, log.Items[:30])
	mustAppend(t, l, log.Items[30:])
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	content := bytes.Join(readPages(t, path, 16<<10), nil)
	random := rand.New(rand.NewPCG(3, 4))
	broken := filepath.Join(dir, "broken.db")
	found := 0
	for round := range 600 {
		at := random.IntN(len(content))
		if round%3 == 0 { // headers and element tables decide where bbolt goes
			at = at/(16<<10)*(16<<10) + random.IntN(256)
		}
		if content[at] == 0 && round%4 != 0 {
			continue // most of the file is empty
		}
		changed := bytes.Clone(content)
		changed[at] ^= 1 << random.IntN(8)
		if err := os.WriteFile(broken, changed, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := readAll(broken, log); err != nil {
			found++
		}
	}
	if found < 40 {
		t.Errorf("only %d changes were found", found)
	}
}

// readAll opens a ledger and reads everything in it. It returns the first error; entries that are wrong without one are
// the test's failure.
func readAll(path string, log *entrytest.Log) error {
	l, err := ledger.Open(path, ledger.Config{ReadOnly: true})
	if err != nil {
		return err
	}
	defer l.Close()
	for i, item := range log.Items {
		_, e := l.Entry(uint64(i))
		var lookup error
		for _, id := range item.IDs {
			_, _, lookup = l.Lookup(id)
		}
		_, _, body := l.Body(uint64(i))
		err = errors.Join(err, e, lookup, body)
	}
	if _, e := entry.Verify(context.Background(), l, log.Config()); e != nil {
		return errors.Join(err, e)
	}
	for i, item := range log.Items {
		if got, e := l.Entry(uint64(i)); e == nil && !bytes.Equal(got, item.Entry) {
			panic(fmt.Sprintf("entry %d was changed, and verified", i))
		}
	}
	return err
}
