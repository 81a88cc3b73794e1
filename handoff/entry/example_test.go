package entry_test

import (
	"context"
	"crypto/sha256"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/handoff-governor/handoff-governor/handoff/entry"
	"github.com/handoff-governor/handoff-governor/handoff/entry/entrytest"
)

// rootFromProof returns the root of the tree of size leaves that has the leaf hash at index, if proof is right.
func rootFromProof(leaf [32]byte, index, size uint64, proof [][32]byte) (root [32]byte, ok bool) {
	root = leaf
	last := size - 1
	for _, sibling := range proof {
		if last == 0 {
			return root, false
		}
		if index&1 == 1 || index == last {
			root = sha256.Sum256(slices.Concat([]byte{1}, sibling[:], root[:]))
			for index&1 == 0 && index != 0 {
				index, last = index>>1, last>>1
			}
		} else {
			root = sha256.Sum256(slices.Concat([]byte{1}, root[:], sibling[:]))
		}
		index, last = index>>1, last>>1
	}
	return root, last == 0 && index == 0
}

// The program in docs/ledger.md is the one above, and it works.
func TestStrangersProgram(t *testing.T) {
	doc, err := os.ReadFile("../../docs/ledger.md")
	if err != nil {
		t.Fatal(err)
	}
	_, code, found := strings.Cut(string(doc), "```go\n")
	code, _, closed := strings.Cut(code, "```")
	self, err := os.ReadFile("example_test.go")
	if err != nil || !found || !closed || !strings.Contains(string(self), code) {
		t.Error("the Go code in docs/ledger.md is not the code in example_test.go", err)
	}

	l := entrytest.New("log.example", 21)
	l.Random(40)
	for size := 1; size <= len(l.Items); size++ {
		hashes := tlog.HashReaderFunc(func(indexes []int64) (out []tlog.Hash, err error) {
			for _, index := range indexes {
				level, n := tlog.SplitStoredHashIndex(index)
				out = append(out, entrytest.Root(l.Items[n<<level:(n+1)<<level]))
			}
			return out, nil
		})
		root := entrytest.Root(l.Items[:size])
		for index := range size {
			steps, err := tlog.ProveRecord(int64(size), int64(index), hashes)
			if err != nil {
				t.Fatal(err)
			}
			var proof [][32]byte
			for _, h := range steps {
				proof = append(proof, h)
			}
			leaf := sha256.Sum256(append([]byte{0}, l.Items[index].Entry...))
			if got, ok := rootFromProof(leaf, uint64(index), uint64(size), proof); !ok || got != root {
				t.Fatalf("entry %d of %d is not found", index, size)
			}
			if got, ok := rootFromProof(leaf, uint64(index+1)%uint64(size), uint64(size), proof); ok && got == root && size > 1 {
				t.Fatalf("entry %d of %d is found elsewhere", index, size)
			}
		}
	}
}

func ExampleVerify() {
	log := entrytest.New("log.example", 1) // any source: a file, a governor's answers, a snapshot
	log.Open("planner", entrytest.Tools).Offer("coder", "delegate", "allow", entrytest.Tools).Claim(nil)

	report, err := entry.Verify(context.Background(), log, log.Config())
	fmt.Println(report.Entries, "entries,", report.Links, "links,", report.Bodies, "bodies:", err)

	// Somebody changes one letter.
	log.Items[2].Entry = []byte(strings.Replace(string(log.Items[2].Entry), `"to":"coder"`, `"to":"coden"`, 1))
	_, err = entry.Verify(context.Background(), log, log.Config())
	fmt.Println(err)
	// Output:
	// 4 entries, 3 links, 2 bodies: <nil>
	// entry 2, to: is "coden"; the offer names "coder"
}
