package governor_test

import (
	"sync/atomic"
	"time"

	"github.com/handoff-governor/handoff-governor/cmd/governor/daemon"
)

// clock is the governor's, ahead of the machine's by what the test has advanced it.
type clock struct{ ahead atomic.Int64 }

func newClock() *clock { return &clock{} }

func (c *clock) use(cfg *daemon.Config) {
	cfg.Now = func() time.Time { return time.Now().Add(time.Duration(c.ahead.Load())) }
}

func (c *clock) advance(d time.Duration) { c.ahead.Add(int64(d)) }
