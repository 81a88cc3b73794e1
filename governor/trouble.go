package governor

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/handoff-governor/handoff-governor/governor/ledger"
	"github.com/handoff-governor/handoff-governor/handoff/wire"
)

// troubles are the faults of the infrastructure that there are now, for whoever asks how the governor is. Nothing waits for them:
// each try that fails or succeeds says so.
type troubles struct {
	mu     sync.Mutex
	now    map[string]wire.Trouble
	newest map[string]time.Time // when it was noted last
}

// What trouble can be of.
const (
	ofLedger  = "ledger"
	ofStreams = "streams"
	ofClock   = "clock"
)

var adviceOn = map[string]string{
	ofLedger:  "nothing is admitted until the ledger can be written again: make room on its disk, or make that writable",
	ofStreams: "what agents send may not be taken, and what they should get waits: make room on the disk of the streams, or see after their servers",
	ofClock:   "nothing is decided until the clock is right again: set it",
}

// noteTrouble keeps that there is trouble, or with nil that there is none.
func (g *Governor) noteTrouble(ctx context.Context, of string, err error) {
	g.troubles.mu.Lock()
	defer g.troubles.mu.Unlock()
	before, was := g.troubles.now[of]
	switch {
	case err == nil && was:
		delete(g.troubles.now, of)
		g.log.InfoContext(ctx, "trouble is over", "of", of)
	case err != nil:
		since := before.Since
		if !was {
			since = g.cfg.Now().Unix()
			g.log.ErrorContext(ctx, "trouble", "of", of, "err", err, "advice", adviceOn[of])
		}
		if g.troubles.now == nil {
			g.troubles.now, g.troubles.newest = map[string]wire.Trouble{}, map[string]time.Time{}
		}
		g.troubles.newest[of] = time.Now()
		g.troubles.now[of] = wire.Trouble{Of: of, Since: since, Message: adviceOn[of] + " (" + err.Error() + ")"}
	}
}

// troubled lists the troubles.
func (g *Governor) troubled() []wire.Trouble {
	g.troubles.mu.Lock()
	defer g.troubles.mu.Unlock()
	var all []wire.Trouble
	for _, t := range g.troubles.now {
		all = append(all, t)
	}
	slices.SortFunc(all, func(a, b wire.Trouble) int { return strings.Compare(a.Of, b.Of) })
	return all
}

// noteAppended keeps how the writing of entries has come out.
func (g *Governor) noteAppended(ctx context.Context, err error) {
	g.noteTrouble(ctx, ofLedger, err)
	g.endWhereBroken(err)
}

// noteFlushed keeps how the writing of the live state has come out, each second. There may be room for it and none for entries, so it
// ends the trouble with the ledger only once no entry has failed for as long as it takes for all to be tried again.
func (g *Governor) noteFlushed(ctx context.Context, err error) {
	g.troubles.mu.Lock()
	old := time.Since(g.troubles.newest[ofLedger]) > maxRetry+time.Second
	g.troubles.mu.Unlock()
	if err != nil || old {
		g.noteTrouble(ctx, ofLedger, err)
	}
	g.endWhereBroken(err)
}

// endWhereBroken ends the governor after a commit whose outcome is unknown: the ledger takes nothing more until another start has
// looked.
func (g *Governor) endWhereBroken(err error) {
	if errors.Is(err, ledger.ErrBroken) {
		g.end(err)
	}
}

// end has the governor stop by itself, with err.
func (g *Governor) end(err error) {
	select {
	case g.ending <- err:
	default: // it ends already
	}
}
