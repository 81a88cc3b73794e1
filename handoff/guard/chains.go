package guard

import (
	"container/list"
	"sync"

	"github.com/handoff-governor/handoff-governor/handoff/aat"
)

// averageChain is what a remembered chain may have on average, in bytes of its compact form.
const averageChain = 16 << 10

// chains remembers chains whose signatures were verified and whose profile was checked, so that it happens once. It
// says nothing of time, revocation or proofs: those are checked at each call.
type chains struct {
	max int

	mu     sync.Mutex
	byLeaf map[string]*list.Element // :: leaf's compact form → element of recent
	recent list.List                // of *verified, the one used last in front
	bytes  int
}

// verified is a chain with what the profile read in it.
type verified struct {
	links []*aat.Link
	call  Call // all but the tool and its arguments
	bytes int
}

func (v *verified) leaf() *aat.Link { return v.links[len(v.links)-1] }

func newChains(max int) *chains { return &chains{max: max, byLeaf: map[string]*list.Element{}} }

// get finds a chain that equals this one byte for byte.
func (c *chains) get(chain []string) *verified {
	if len(chain) == 0 {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	e := c.byLeaf[chain[len(chain)-1]]
	if e == nil {
		return nil
	}
	v := e.Value.(*verified)
	if len(v.links) != len(chain) {
		return nil
	}
	for i, link := range v.links {
		if link.Compact != chain[i] {
			return nil
		}
	}
	c.recent.MoveToFront(e)
	return v
}

func (c *chains) put(v *verified) {
	leaf := v.leaf().Compact
	for _, link := range v.links {
		v.bytes += len(link.Compact)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if old := c.byLeaf[leaf]; old != nil {
		c.remove(old)
	}
	c.byLeaf[leaf] = c.recent.PushFront(v)
	c.bytes += v.bytes
	for c.recent.Len() > c.max || c.bytes > c.max*averageChain {
		c.remove(c.recent.Back())
	}
}

func (c *chains) remove(e *list.Element) {
	v := c.recent.Remove(e).(*verified)
	delete(c.byLeaf, v.leaf().Compact)
	c.bytes -= v.bytes
}
