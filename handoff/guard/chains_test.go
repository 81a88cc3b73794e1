package guard

import (
	"fmt"
	"strings"
	"testing"

	"github.com/handoff-governor/handoff-governor/handoff/aat"
)

// Whoever holds one grant can present it under many chains, and large ones: what the guard remembers of them is bounded.
func TestChainsAreBounded(t *testing.T) {
	chain := func(name string, bytes int) *verified {
		name += "."
		return &verified{links: []*aat.Link{{Compact: name + strings.Repeat("x", bytes-len(name))}}}
	}
	holds := func(c *chains, want int) {
		t.Helper()
		bytes := 0
		for e := c.recent.Front(); e != nil; e = e.Next() {
			v := e.Value.(*verified)
			bytes += len(v.leaf().Compact)
			if c.byLeaf[v.leaf().Compact] != e {
				t.Error("a chain is remembered that cannot be found")
			}
		}
		if c.recent.Len() != want || len(c.byLeaf) != want || c.bytes != bytes {
			t.Errorf("%d chains, %d of them found, of %d bytes (%d counted); want %d chains",
				c.recent.Len(), len(c.byLeaf), bytes, c.bytes, want)
		}
	}

	small := newChains(4)
	for i := range 10 {
		small.put(chain(fmt.Sprint(i), 100))
		holds(small, min(i+1, 4))
	}

	large := newChains(4)
	for i := range 10 {
		large.put(chain(fmt.Sprint(i), 2*averageChain))
		holds(large, min(i+1, 2)) // four times the average are two of these
	}
	large.put(chain("one", 5*averageChain)) // more than there is room for
	holds(large, 0)

	// Two calls that both see a chain for the first time put it there twice.
	twice := newChains(4)
	for range 10 {
		twice.put(chain("same", 3*averageChain))
		holds(twice, 1)
	}
}
