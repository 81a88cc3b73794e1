package guard

import (
	"crypto/sha256"
	"sync"
	"time"

	"github.com/handoff-governor/handoff-governor/handoff/wire"
)

// proofs remembers every proof of possession that was accepted until its window has closed. It never forgets one
// early: when there is no room it refuses.
type proofs struct {
	max   int // in all
	share int // of one agent, so that one cannot lock out the others

	mu    sync.Mutex
	seen  map[[32]byte]struct{}
	count map[string]int            // :: agent → proofs remembered
	until map[int64][]acceptedProof // :: last Unix second of the window → proofs
	swept int64                     // seconds below are forgotten
}

type acceptedProof struct {
	key   [32]byte
	agent string
}

func newProofs(max int) *proofs {
	return &proofs{
		max: max, share: max/4 + 1,
		seen: map[[32]byte]struct{}{}, count: map[string]int{}, until: map[int64][]acceptedProof{},
	}
}

// accept notes the proof jti, made by agent under leaf, and refuses one that was accepted before. The leaf is part of
// the key, so that no agent can use up another's jti.
func (p *proofs) accept(leaf [32]byte, agent, jti string, until, now time.Time) *wire.Error {
	key := sha256.Sum256(append(leaf[:], jti...))
	p.mu.Lock()
	defer p.mu.Unlock()
	p.sweep(now.Unix())
	if _, twice := p.seen[key]; twice {
		return &wire.Error{Code: wire.CodeProof, Step: "7i",
			Message: "this proof was used before; sign a new one, with a new jti, for every call"}
	}
	if len(p.seen) >= p.max || p.count[agent] >= p.share {
		return &wire.Error{Code: wire.CodeUnavailable, RetryAfter: 1,
			Message: "the guard is at the limit of calls it can remember; send the call again later, with a new proof"}
	}
	last := until.Unix() // not before now: step 7g has refused proofs whose window has closed
	p.seen[key] = struct{}{}
	p.count[agent]++
	p.until[last] = append(p.until[last], acceptedProof{key, agent})
	return nil
}

// sweep forgets the proofs whose window closed before now.
func (p *proofs) sweep(now int64) {
	if now == p.swept {
		return
	}
	p.swept = now
	for second, accepted := range p.until {
		if second >= now {
			continue
		}
		for _, a := range accepted {
			delete(p.seen, a.key)
			if p.count[a.agent]--; p.count[a.agent] == 0 {
				delete(p.count, a.agent)
			}
		}
		delete(p.until, second)
	}
}
