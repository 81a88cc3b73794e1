package daemon

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/handoff-governor/handoff-governor/governor/ledger"
)

// MinKeepBodies is the shortest time for which bodies are kept: a session lives a day at most, its tasks must be there to be
// claimed, and a start after a crash repeats results.
const MinKeepBodies = 48 * time.Hour

// CheckKeepBodies refuses a time that is too short. 0 is for ever.
func CheckKeepBodies(d time.Duration) error {
	if d != 0 && d < MinKeepBodies {
		return fmt.Errorf("is %s; it must be at least %s: tasks of open sessions are needed", d, MinKeepBodies)
	}
	return nil
}

// dropAtOnce is how many bodies are deleted in one transaction: the pages that they leave are listed in every commit until new
// entries have taken them.
const dropAtOnce = 1000

// keepBodies deletes bodies that are older than they should be, a few each second, so that nobody waits for it.
func (d *Daemon) keepBodies(ctx context.Context, keep time.Duration, now func() time.Time, log *slog.Logger) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		n, err := d.ledger.DropBodies(now().Add(-keep), dropAtOnce)
		switch {
		case err != nil && ctx.Err() == nil:
			log.ErrorContext(ctx, "old bodies could not be deleted; trying again", "err", err)
		case n > 0:
			log.InfoContext(ctx, "old bodies were deleted", "bodies", n)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// DropBodies deletes all bodies of a backup that are older than keep.
func DropBodies(ctx context.Context, backup string, keep time.Duration) (dropped int, err error) {
	l, err := ledger.Open(LedgerPath(backup), ledger.Config{})
	if err != nil {
		return 0, err
	}
	for n := 1; n > 0 && err == nil; {
		if n, err = l.DropBodies(time.Now().Add(-keep), dropAtOnce); err == nil {
			err = ctx.Err()
		}
		dropped += n
	}
	if closed := l.Close(); err == nil {
		err = closed
	}
	return dropped, err
}
