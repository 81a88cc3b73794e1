package torture

import (
	"context"
	"fmt"
	"math/rand/v2"
	"syscall"
	"time"

	"github.com/handoff-governor/handoff-governor/handoff/wire"
)

// fault is something that is done to the governor.
type fault struct {
	kind  string
	after time.Duration // it has served, or the fault before
	lasts time.Duration
	by    time.Duration // a clock jumps
}

// Kinds of faults.
const (
	faultKill    = "kill"    // kill -9, and started again
	faultUnborn  = "unborn"  // kill -9, and again while it starts
	faultPause   = "pause"   // SIGSTOP, and SIGCONT
	faultLease   = "lease"   // a pause that outlasts every lease
	faultNetwork = "network" // every connection is cut, and none made for a while
	faultDisk    = "disk"    // no file can grow
	faultClock   = "clock"   // the governor's clock goes wrong, and right again
	faultWorker  = "worker"  // a working process dies in the midst of its tasks
	faultPolicy  = "policy"  // another bundle
	faultPower   = "power"   // kill -9, and the streams have lost what was written to them last
	faultPage    = "page"    // kill -9, and the page written last is damaged: it must be noticed. Then it is put back
	maxLeases    = 5         // a clock that is minutes wrong would break other things: IDs, SVIDs
	longestJump  = 8 * time.Second
	leaseAndMore = (wire.Lease + 1) * time.Second
)

// between says what is done between two kills, as frequently as it stands here: nothing most of the time.
var between = []string{
	"", "", "", "", "", "", "", "", "", faultPause, faultPause, faultLease, faultNetwork, faultNetwork, faultDisk, faultDisk,
	faultClock, faultClock, faultWorker, faultPolicy, faultPower, faultPower, faultPage,
}

// plan is what is done, by the seed: as many kills as asked for, and other things between them.
func plan(seed uint64, kills int, pause time.Duration) []fault {
	r := rand.New(rand.NewPCG(seed, 0))
	some := func(atMost time.Duration) time.Duration { return time.Duration(r.Int64N(int64(atMost))) }
	var faults []fault
	for leases := 0; kills > 0; kills-- {
		f := fault{kind: between[r.IntN(len(between))], after: some(pause)}
		switch f.kind {
		case faultLease:
			if leases++; leases > maxLeases {
				f.kind = faultPause
			}
			f.lasts = some(time.Second)
		case faultPause:
			f.lasts = some(guardWait + guardSkew)
		case faultNetwork, faultDisk, faultPower:
			f.lasts = some(2 * time.Second)
		case faultClock:
			f.lasts, f.by = some(time.Second), some(2*longestJump)-longestJump
		}
		if f.kind != "" && (f.kind != faultDisk || canFillDisk) {
			faults = append(faults, f)
		}
		f = fault{kind: faultKill, after: some(pause)}
		if r.IntN(8) == 0 {
			f.kind, f.lasts = faultUnborn, some(400*time.Millisecond)
		}
		faults = append(faults, f)
	}
	return faults
}

// inflict does it, and leaves a governor that runs and has all it needs.
func (t *torture) inflict(ctx context.Context, f fault) error {
	if !wait(ctx, f.after) {
		return context.Cause(ctx)
	}
	if err := t.alive(ctx); err != nil {
		return err
	}
	switch f.kind {
	case faultKill:
		t.kill()
		return t.start(ctx)
	case faultUnborn:
		t.kill()
		short, cancel := context.WithTimeout(ctx, f.lasts)
		err := t.start(short)
		ended := short.Err()
		cancel()
		if err == nil {
			t.kill()
		} else if ended == nil {
			return err
		}
		return t.start(ctx)
	case faultPause, faultLease:
		if err := t.governor.signal(syscall.SIGSTOP); err != nil {
			return err
		}
		wait(ctx, f.lasts)
		if err := t.governor.signal(syscall.SIGCONT); err != nil {
			return err
		}
		if f.kind == faultLease {
			t.clock.ahead.Add(int64(leaseAndMore))
			return t.governor.order(order{Clock: leaseAndMore.String()})
		}
		return nil
	case faultNetwork:
		t.line.cut(f.lasts)
		wait(ctx, f.lasts)
		return nil
	case faultDisk:
		if err := fillDisk(t.governor.cmd.Process.Pid, true); err != nil {
			return err
		}
		wait(ctx, f.lasts)
		select {
		case <-t.governor.gone: // it may give up, and be started again
			t.died++
			return t.start(ctx)
		default:
			return fillDisk(t.governor.cmd.Process.Pid, false)
		}
	case faultClock:
		if err := t.governor.order(order{Clock: f.by.String()}); err != nil {
			return err
		}
		wait(ctx, f.lasts)
		return t.governor.order(order{Clock: (-f.by).String()})
	case faultWorker:
		return t.load.fire(ctx, []string{writer, reviewer}[t.done%2])
	case faultPolicy:
		if err := t.write(fmt.Sprintf("%s\n# %d\n", policy, t.done)); err != nil {
			return err
		}
		return t.load.change(ctx, t.policy)
	case faultPower:
		return t.loseTail(ctx, f.lasts)
	case faultPage:
		t.kill()
		if err := t.damage(ctx); err != nil {
			return err
		}
		return t.start(ctx)
	}
	return fmt.Errorf("there is no fault %q", f.kind)
}

// alive starts the governor again where it has ended by itself, which it must not.
func (t *torture) alive(ctx context.Context) error {
	select {
	case <-t.governor.gone:
		t.died++
		t.load.books.amiss("the governor has ended by itself: %v\n%s", t.governor.err, t.governor.log)
		return t.start(ctx)
	default:
		return nil
	}
}
