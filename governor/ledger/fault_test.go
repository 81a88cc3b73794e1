//go:build linux

package ledger_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.etcd.io/bbolt"

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
			copy(torn[:16+49+random.IntN(7)], after[meta]) // up to the transaction's number, at least, and without the checksum
			disk[meta] = torn
		case 2: // everything is there
			copy(disk, after)
			want = 120
		}
		survived := filepath.Join(t.TempDir(), "survived.db")
		if err := os.WriteFile(survived, bytes.Join(disk, nil), 0o600); err != nil {
			t.Fatal(err)
		}
		if round%4 == 1 { // which a disk that writes a sector whole does not do: it may as well have been damaged later
			if _, err := ledger.Open(survived, ledger.Config{LogName: log.Name, Signer: log.Signer}); !errors.Is(err, ledger.ErrDamaged) {
				t.Fatalf("round %d: %v, want ErrDamaged: what was committed last may be gone", round, err)
			}
			l, err := ledger.Open(survived, ledger.Config{ReadOnly: true})
			if err != nil {
				t.Fatalf("round %d: %v", round, err)
			}
			if err := l.Check(t.Context()); !errors.Is(err, ledger.ErrDamaged) || l.Size() != 60 {
				t.Errorf("round %d: check of %d entries: %v", round, l.Size(), err)
			}
			if err := l.Close(); err != nil {
				t.Fatal(err)
			}
			continue
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

// A power failure while the file is made leaves nothing that could be lost, and the next start makes it.
func TestPowerFailsAtTheBeginning(t *testing.T) {
	const page = 16 << 10
	log := history(3)
	path := filepath.Join(t.TempDir(), "ledger.db")
	l, err := ledger.Open(path, ledger.Config{LogName: log.Name, Signer: log.Signer})
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	db, err := bbolt.Open(filepath.Join(t.TempDir(), "empty.db"), 0o600, &bbolt.Options{PageSize: page})
	if err != nil {
		t.Fatal(err)
	}
	made := db.Path()
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	pages := readPages(t, made, page)
	for torn := range 2 {
		disk := slices.Clone(pages)
		disk[torn] = make([]byte, page)
		if err := os.WriteFile(path, bytes.Join(disk, nil), 0o600); err != nil {
			t.Fatal(err)
		}
		l, err := ledger.Open(path, ledger.Config{LogName: log.Name, Signer: log.Signer})
		if err != nil {
			t.Fatalf("header %d is missing: %v", torn, err)
		}
		mustAppend(t, l, log.Items)
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		ledgertest.Check(t, path, log.Config())
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

// Any byte of the file that is changed is found, and named, or is one that nobody reads: then all that the ledger holds is what it
// was. Nothing panics, and nothing runs for ever.
func TestFlippedBytes(t *testing.T) {
	log := history(160) // so that there are branches
	dir := t.TempDir()
	path := filepath.Join(dir, "ledger.db")
	l, err := ledger.Open(path, ledger.Config{LogName: log.Name, Signer: log.Signer})
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(log.Items); i += 20 {
		mustAppend(t, l, log.Items[i:i+20])
	}
	if err := l.PutLive(100, map[string][]byte{"session/x": {}, "agent/a": []byte("0123456789abcdef")}); err != nil {
		t.Fatal(err)
	}
	if err := l.NoteLive(map[string][]byte{"numbers": []byte("12345678")}); err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	const page = 16 << 10
	content := bytes.Join(readPages(t, path, page), nil)
	whole, err := holds(path, log)
	if err != nil {
		t.Fatal(err)
	}
	random := rand.New(rand.NewPCG(3, 4))
	broken := filepath.Join(dir, "broken.db")
	found := map[string]int{}
	var flips []int
	for at := 0; at < len(content); at += page {
		var used []int // most of a page is empty
		for i, b := range content[at : at+page] {
			if b != 0 {
				used = append(used, at+i)
			}
		}
		n := 5
		if kind := binary.NativeEndian.Uint16(content[at+8:]); kind == 2 && content[at+16] == 1 || at < 2*page {
			n = 50 // the small buckets are all in the leaf that names the buckets
		}
		for range min(n, len(used)) {
			flips = append(flips, used[random.IntN(len(used))])
		}
		flips = append(flips, at+random.IntN(page)) // any
	}
	for round, at := range flips {
		changed := bytes.Clone(content)
		if round%2 == 0 {
			changed[at] ^= 1 << random.IntN(8)
		} else {
			changed[at] += byte(1 + random.IntN(255))
		}
		if err := os.WriteFile(broken, changed, 0o600); err != nil {
			t.Fatal(err)
		}
		got, err := holds(broken, log)
		switch {
		case err != nil && !errors.Is(err, ledger.ErrDamaged) && !errors.Is(err, ledger.ErrNotLedger) && !errors.Is(err, ledger.ErrNewer) && !isProblem(err) && !strings.Contains(err.Error(), "checkpoint"):
			t.Errorf("byte %d, page %d: found, and not named: %v", at, at/page, err)
		case err != nil:
			found[fmt.Sprint(at/page < 2, isProblem(err))]++
		case got != whole:
			t.Errorf("byte %d, page %d, was changed, and what the ledger holds with it; nothing found that: %q, now %q", at, at/page,
				content[at-20:at+20], changed[at])
		}
	}
	t.Logf("found (in a header, by the verifier): %v", found)
	for kind, enough := range map[string]int{"true false": 10, "false false": 100, "false true": 1} {
		if found[kind] < enough {
			t.Errorf("of the kind %s only %d changes were found", kind, found[kind])
		}
	}
}

func isProblem(err error) bool {
	_, is := errors.AsType[*entry.Problem](err)
	return is
}

// A branch that leads back to one above it would have bbolt go round until its stack is full, which ends the process.
func TestPagesInACircle(t *testing.T) {
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
	const page = 16 << 10
	content := bytes.Join(readPages(t, path, page), nil)
	circles := 0
	for at := 2 * page; at < len(content); at += page {
		if binary.NativeEndian.Uint16(content[at+8:]) != 1 {
			continue // not a branch
		}
		circles++
		for i := range int(binary.NativeEndian.Uint16(content[at+10:])) {
			changed := bytes.Clone(content)
			binary.NativeEndian.PutUint64(changed[at+16+16*i+8:], uint64(at/page))
			if err := os.WriteFile(path, changed, 0o600); err != nil {
				t.Fatal(err)
			}
			for _, readOnly := range []bool{true, false} {
				_, err := ledger.Open(path, ledger.Config{LogName: log.Name, ReadOnly: readOnly})
				if !errors.Is(err, ledger.ErrDamaged) {
					t.Fatalf("page %d, child %d: %v, want ErrDamaged", at/page, i, err)
				}
			}
		}
	}
	if circles == 0 {
		t.Fatal("there is no branch")
	}
}

// holds verifies the ledger in a file, and tells what it holds: everything that a reader can get at.
func holds(path string, log *entrytest.Log) (digest string, err error) {
	l, err := ledger.Open(path, ledger.Config{ReadOnly: true})
	if err != nil {
		return "", err
	}
	defer l.Close()
	if err := l.Check(context.Background()); err != nil {
		return "", err
	}
	if _, err := entry.Verify(context.Background(), l, log.Config()); err != nil {
		return "", err
	}
	sum := sha256.New()
	for i, item := range log.Items {
		e, err := l.Entry(uint64(i))
		fmt.Fprintln(sum, e, err)
		for _, id := range item.IDs {
			fmt.Fprintln(sum, fmt.Sprint(l.Lookup(id)))
		}
		fmt.Fprintln(sum, fmt.Sprint(l.Newest(item.Session)))
		salt, body, err := l.Body(uint64(i))
		fmt.Fprintln(sum, salt, body, err)
	}
	watermark, items, err := l.Live()
	fmt.Fprintln(sum, watermark, items, err)
	checkpoint, err := l.Checkpoint()
	fmt.Fprintln(sum, checkpoint, err)
	// A bundle is checked against its digest by whoever knows what a bundle is.
	if bundle, err := l.NewestBundle(); err != nil || !bytes.Equal(bundle, newestBundle(log)) {
		return "", fmt.Errorf("%w: the bundle: %w", ledger.ErrDamaged, err)
	}
	return hex.EncodeToString(sum.Sum(nil)), nil
}

func newestBundle(log *entrytest.Log) (newest []byte) {
	for _, item := range log.Items {
		if item.Bundle != nil {
			newest = item.Bundle
		}
	}
	return newest
}
