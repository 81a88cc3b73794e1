package streams

import (
	"maps"
	"sync"
	"time"
)

// forgetServer is how long after its last word a server is gone: one that comes back is another, with another ID.
const forgetServer = time.Minute

// tally adds up what accounts have sent on all servers of a cluster, each of which counts since its own start.
type tally struct {
	mu      sync.Mutex
	servers map[string]counts  // :: server ID → what it said last
	total   map[string]traffic // :: account → what it has sent since the tally began
}

type counts struct {
	sent map[string]traffic // :: account
	at   time.Time
}

func newTally() *tally { return &tally{servers: map[string]counts{}, total: map[string]traffic{}} }

// add takes what servers say at a moment, and returns the sums. What a server had counted before it was first asked is
// nobody's.
func (t *tally) add(servers map[string]map[string]traffic, now time.Time) map[string]traffic {
	t.mu.Lock()
	defer t.mu.Unlock()
	for id, sent := range servers {
		before, seen := t.servers[id]
		t.servers[id] = counts{sent, now}
		if !seen {
			continue
		}
		for account, is := range sent {
			was, sum := before.sent[account], t.total[account]
			sum.messages += max(0, is.messages-was.messages)
			sum.bytes += max(0, is.bytes-was.bytes)
			t.total[account] = sum
		}
	}
	maps.DeleteFunc(t.servers, func(_ string, c counts) bool { return now.Sub(c.at) > forgetServer })
	return maps.Clone(t.total)
}

// accounts are all that servers have.
func (t *tally) accounts() map[string]bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	all := map[string]bool{}
	for _, c := range t.servers {
		for account := range c.sent {
			all[account] = true
		}
	}
	return all
}
