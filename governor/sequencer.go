package governor

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync/atomic"
	"time"

	"github.com/handoff-governor/handoff-governor/governor/failpoint"
	"github.com/handoff-governor/handoff-governor/governor/ledger"
	"github.com/handoff-governor/handoff-governor/handoff/entry"
	"github.com/handoff-governor/handoff-governor/handoff/wire"
)

// proposal is something that wants to happen: an offer, a claim, a result, a revocation, a closing, an approval, an
// activation, an expiry. Until its turn comes it has only been looked at.
type proposal interface {
	// sequence checks every mutable fact against the state, which includes the earlier proposals of the same batch, and
	// writes the entries it leads to: none for a repeat or a refusal that is not recorded. It runs alone.
	sequence(b *batch) error
	// settle is called once, after the batch is durable and its effects are out (err is nil), or when either failed:
	// then nothing was promised, and the same may be proposed again.
	settle(err error)
}

// batch is what one commit makes durable, and what may leave after it.
type batch struct {
	st      *State
	log     string
	now     int64 // Unix milliseconds; one reading, never before the newest entry
	judge   Judge
	next    uint64
	records []ledger.Record
	members []proposal
	effects effects
	ids     map[string]bool // that its entries use up
	undo    []func()        // of what is not in the state, should the batch fail
	durable []func()        // called once its entries are on record, before its effects leave; they must not wait
	judging time.Duration   // spent on asking the policy again
	kinds   []string        // what its entries are, for failpoints; empty where there are none
}

// maxJudging is how long a batch may ask the policy again before what is left waits for another turn: nobody else's
// claims and revocations wait longer for it.
const maxJudging = 100 * time.Millisecond

// seconds is the batch's time as tokens count it.
func (b *batch) seconds() int64 { return b.now / 1000 }

// unlocked runs f, which asks the policy, while others may read the state. Only the sequencer changes it, and that is
// who calls this.
func (b *batch) unlocked(f func()) {
	start := time.Now()
	b.st.mu.Unlock()
	defer func() {
		b.st.mu.Lock()
		b.judging += time.Since(start)
	}()
	f()
}

// before tells whether the batch's clock is so far behind iat that a verifier of the entry would find it in the future.
func (b *batch) before(iat int64) bool { return iat > b.seconds()+int64(maxClockBehind/time.Second) }

// used tells whether an ID is used up by this batch or by the sessions in memory.
func (b *batch) used(id string) bool {
	_, used := b.st.used[id]
	return used || b.ids[id]
}

// effects leave after the commit, in this order.
type effects struct {
	revoked  []wire.RevokedLink
	inbox    []wire.Outbound
	owner    []int                     // of each inbox message, the member it belongs to
	told     map[int]*told             // of inbox messages, what keeps their repeats apart
	receipts map[string][]wire.Receipt // by agent
}

// told is when a notice or a result was put into its receiver's inbox last, Unix milliseconds. Whoever sends the same again
// gets its receipt each time; the receiver hears of it once a minute at most, or its inbox could be filled with one handoff.
type told struct{ at atomic.Int64 }

const tellAgain = time.Minute

// tell adds a message to a receiver, unless it was told so a moment ago.
func (b *batch) tell(t *told, m func() wire.Outbound) {
	if b.now-t.at.Load() < tellAgain.Milliseconds() {
		return
	}
	t.at.Store(b.now)
	if b.effects.told == nil {
		b.effects.told = map[int]*told{}
	}
	b.effects.told[len(b.effects.inbox)] = t
	b.effects.inbox = append(b.effects.inbox, m())
}

// untold has the messages that did not get out told again as soon as they are asked for. Failed nil: none got out.
func (x *effects) untold(failed map[int]error) {
	for i, t := range x.told {
		if failed == nil || failed[i] != nil {
			t.at.Store(0)
		}
	}
}

func (x *effects) receipt(agent, id string, index uint64, effect string) {
	if x.receipts == nil {
		x.receipts = map[string][]wire.Receipt{}
	}
	x.receipts[agent] = append(x.receipts[agent], wire.Receipt{ID: id, Index: index, Effect: effect})
}

// write makes e the batch's next entry and the state's newest. ids are those that e uses up, for ever.
func (b *batch) write(e *entry.Entry, k known, ids []string, attach func(*ledger.Record)) error {
	e.Version, e.Log, e.Index, e.Time = entry.Version, b.log, b.st.next, b.now
	e.Prev = b.st.prev(e)
	encoded, err := e.Encode()
	if err != nil {
		return fmt.Errorf("encoding an entry: %w", err)
	}
	record := ledger.Record{Entry: encoded, IDs: ids, Session: e.Session}
	if attach != nil {
		attach(&record)
	}
	if err := b.st.apply(e, k); err != nil {
		return err
	}
	b.records = append(b.records, record)
	if failpoint.On {
		b.kinds = append(b.kinds, kindOf(e))
	}
	for _, id := range ids {
		b.ids[id] = true
	}
	return nil
}

// kindOf is what a failpoint calls an entry.
func kindOf(e *entry.Entry) string {
	switch {
	case e.Decided != nil && e.Kind == entry.KindDecided:
		return e.Decided.Stage + "_" + e.Decided.Effect
	case e.Claimed != nil && e.Claimed.Supersedes != "":
		return "taken_over"
	case e.Claimed != nil && e.Claimed.Ends != "":
		return "transferred"
	case e.Kind == entry.KindResult && e.Result != nil:
		return "result_" + e.Result.Effect
	}
	return string(e.Kind)
}

// maxBatch bounds how many proposals share a commit: enough to spread an fsync thin, few enough that the first need not
// wait long for the last.
const maxBatch = 256

// sequence is the one order of everything. It runs until ctx ends, and closes its output then.
//
// The state runs ahead of the disk by the batches that are not committed yet. Should a commit fail, the state is built
// again from the ledger, as after a crash, and every batch that stood on the failed one is refused with it.
func (g *Governor) sequence(ctx context.Context, out chan<- *batch) {
	defer close(out)
	for {
		var first []proposal
		select {
		case <-ctx.Done():
			g.refuseQueued(context.Cause(ctx))
			return
		case first = <-g.proposals:
		}
		members := first
	gather:
		for len(members) < maxBatch {
			select {
			case more := <-g.proposals:
				members = append(members, more...)
			default:
				break gather
			}
		}
		g.decide(ctx, members, out)
	}
}

// decide makes one batch of the proposals, and passes it on once it is durable. A proposal that breaks its batch is
// found by deciding each alone; one by one they cannot take each other down.
func (g *Governor) decide(ctx context.Context, members []proposal, out chan<- *batch) {
	if g.stale {
		for _, p := range members {
			p.settle(fmt.Errorf("%w: the ledger could not be read back", errUndecided))
		}
		return
	}
	b, err := g.order(members)
	ordered := err == nil
	if ordered {
		failpoint.At("ordered", b.kinds...)
		err = g.record(ctx, b)
		ordered = !errors.Is(err, ledger.ErrIDUsed) // one of them is to blame, not the disk
		if ordered && len(b.records) > 0 {
			g.noteAppended(ctx, err)
		}
	}
	if clock := errors.Is(err, errClock); clock || err == nil {
		g.noteTrouble(ctx, ofClock, err)
	}
	if err == nil {
		failpoint.At("recorded", b.kinds...)
		for _, tell := range b.durable {
			tell()
		}
		out <- b
		return
	}
	for _, undo := range slices.Backward(b.undo) {
		undo()
	}
	g.log.ErrorContext(ctx, "nothing of this batch was decided", "proposals", len(members), "err", err)
	g.recoverState(ctx)
	if alone := !ordered && !errors.Is(err, errClock); alone && len(members) > 1 && ctx.Err() == nil {
		for _, p := range members {
			g.decide(ctx, []proposal{p}, out)
		}
		return
	} else if alone && len(members) == 1 {
		err = fmt.Errorf("%w: %w", errPoison, err)
	}
	for _, p := range members {
		p.settle(fmt.Errorf("%w: %w", errUndecided, err))
	}
}

// errUndecided wraps whatever kept a batch from being written: infrastructure, never a verdict.
var errUndecided = errors.New("nothing was decided")

var (
	errClock  = errors.New("the clock has fallen behind the ledger")
	errPoison = errors.New("it breaks its batch by itself")
)

// order runs the proposals one after another against the state.
func (g *Governor) order(members []proposal) (*batch, error) {
	reading := g.cfg.Now().UnixMilli()
	g.state.mu.Lock()
	defer g.state.mu.Unlock()
	b := &batch{
		st: g.state, log: g.cfg.LogName, now: max(reading, g.state.clock), judge: g.cfg.Policy.Current(), next: g.state.next,
		members: members, ids: map[string]bool{},
	}
	if behind := g.state.clock - reading; behind > maxClockBehind.Milliseconds() {
		return b, fmt.Errorf("%w by %s", errClock, time.Duration(behind)*time.Millisecond)
	}
	for i, p := range members {
		if err := p.sequence(b); err != nil {
			return b, err
		}
		for len(b.effects.owner) < len(b.effects.inbox) {
			b.effects.owner = append(b.effects.owner, i)
		}
	}
	return b, nil
}

// maxClockBehind is how far the clock may fall back before the governor stops deciding: as much as tokens allow for skew.
const maxClockBehind = 30 * time.Second

// reading is the clock for what is looked at before its turn: never behind the newest entry, and refused where it would
// be far behind. What seems expired or not yet valid by a wrong clock must not be denied for good.
func (g *Governor) reading() (time.Time, *wire.Error) {
	now := g.cfg.Now()
	g.state.mu.RLock()
	newest := time.UnixMilli(g.state.clock)
	g.state.mu.RUnlock()
	switch behind := newest.Sub(now); {
	case behind > maxClockBehind:
		return now, wire.Refuse(wire.CodeUnavailable, "the governor's clock has fallen behind; send the same again later")
	case behind > 0:
		return newest, nil
	}
	return now, nil
}

// disagrees tells whether an earlier reading of the clock is so far from the batch's that what went by it must be looked
// at again: the clock was set meanwhile, or the message has waited for long. The zero time is no reading.
func (b *batch) disagrees(earlier time.Time) bool {
	return !earlier.IsZero() && time.UnixMilli(b.now).Sub(earlier).Abs() > maxClockBehind
}

// record makes the batch durable with one fsync.
func (g *Governor) record(ctx context.Context, b *batch) error {
	if len(b.records) == 0 {
		return nil
	}
	// A commit that has begun is not abandoned: its outcome would be unknown.
	return g.cfg.Log.Append(context.WithoutCancel(ctx), b.next, b.records)
}

// deliver lets the effects of durable batches out, in their order, and settles them.
func (g *Governor) deliver(ctx context.Context, in <-chan *batch) {
	for b := range in {
		failed := g.release(context.WithoutCancel(ctx), b)
		for i, p := range b.members {
			p.settle(failed(i))
		}
		failpoint.At("settled", b.kinds...)
	}
}

// release sends what a durable batch leads to: revocations before anything that could race them, then inboxes, then
// receipts. What fails here is durable all the same. It goes out again: guards see a gap in the feed and ask for all of it,
// senders repeat, and what nobody would ask for is owed. It returns what became of each member.
func (g *Governor) release(ctx context.Context, b *batch) (failed func(member int) error) {
	ctx, cancel := context.WithTimeout(ctx, releaseTimeout)
	defer cancel()
	all := func(doing string, err error) func(int) error {
		g.notOut(b.next)
		g.owe(b, nil)
		b.effects.untold(nil)
		g.log.ErrorContext(ctx, "effects of a durable batch did not get out; they go again when asked for", "doing", doing,
			"first", b.next, "entries", len(b.records), "err", err)
		return func(i int) error {
			if _, ok := b.members[i].(*step); ok {
				return nil // it is on record, and must not be called undecided
			}
			return fmt.Errorf("%s: %w", doing, err)
		}
	}
	if len(b.effects.revoked) > 0 {
		if err := g.feed.revoke(b.effects.revoked); err != nil {
			return all("publishing revocations", err)
		}
	}
	failpoint.At("revoked", b.kinds...)
	undelivered := map[int]error{}
	if len(b.effects.inbox) > 0 {
		err := g.put(ctx, b.effects.inbox)
		some, ok := errors.AsType[*wire.UndeliveredError](err)
		if err != nil && !ok {
			return all("filling inboxes", err)
		}
		if ok {
			b.undelivered(some, undelivered)
			if !b.lostByOwners(some.Failed) {
				g.notOut(b.next)
			}
			g.owe(b, some.Failed)
			b.effects.untold(some.Failed)
			g.log.WarnContext(ctx, "some inbox messages could not be stored", "messages", len(some.Failed), "err", err)
		}
	}
	failpoint.At("delivered", b.kinds...)
	for agent, entries := range b.effects.receipts {
		if err := g.receipt(agent, entries); err != nil {
			return all("publishing receipts", err)
		}
	}
	failpoint.At("receipted", b.kinds...)
	return func(i int) error { return undelivered[i] }
}

// owe keeps what nobody would ask for again: the messages that an approval, a revocation or the passing of time leads to.
// Offers and results stay in their stream until they are through. Failed has an error for each message that is not out; nil
// means that none is.
func (g *Governor) owe(b *batch, failed map[int]error) {
	g.owed.Lock()
	defer g.owed.Unlock()
	for i, m := range b.effects.inbox {
		_, nobodyAsks := b.members[b.effects.owner[i]].(*step)
		out := failed != nil && (failed[i] == nil || lostByItsOwner(m, failed[i]))
		if nobodyAsks && !out && len(g.owed.messages) < maxOwed {
			g.owed.messages = append(g.owed.messages, m)
		}
	}
}

// maxOwed bounds them; a start publishes again what is beyond it, for as long as lossWindow.
const maxOwed = 1000

// payOwed tries again, with each heartbeat.
func (g *Governor) payOwed(ctx context.Context) {
	g.owed.Lock()
	messages := g.owed.messages
	g.owed.messages = nil
	g.owed.Unlock()
	if len(messages) == 0 {
		return
	}
	err := g.put(ctx, messages)
	if err == nil {
		return
	}
	some, ok := errors.AsType[*wire.UndeliveredError](err)
	g.owed.Lock()
	defer g.owed.Unlock()
	for i, m := range messages {
		if ok && some.Failed[i] == nil {
			continue
		}
		g.owed.messages = append(g.owed.messages, m)
	}
}

// undelivered finds the members that must try again. A verdict for an agent that lets its own inbox run full is lost to
// nobody but that agent, and must not come again for ever.
func (b *batch) undelivered(e *wire.UndeliveredError, into map[int]error) {
	for i, err := range e.Failed {
		if _, owed := b.members[b.effects.owner[i]].(*step); owed || lostByItsOwner(b.effects.inbox[i], err) {
			continue
		}
		into[b.effects.owner[i]] = err
	}
}

func (b *batch) lostByOwners(failed map[int]error) bool {
	for i, err := range failed {
		if !lostByItsOwner(b.effects.inbox[i], err) {
			return false
		}
	}
	return true
}

func lostByItsOwner(m wire.Outbound, err error) bool {
	return errors.Is(err, &wire.Error{Code: wire.CodeInboxFull}) && m.Header[wire.HeaderKind][0] == wire.KindVerdict
}

const releaseTimeout = 10 * time.Second

// recoverState builds the state again from the ledger, after a commit failed. Where the governor is asked to stop before
// that has succeeded, it decides nothing any more: its state holds what is not on record.
func (g *Governor) recoverState(ctx context.Context) {
	for {
		err := g.rebuild(ctx)
		if err == nil {
			return
		}
		if g.stale = ctx.Err() != nil; g.stale {
			return
		}
		g.log.ErrorContext(ctx, "cannot read the ledger back; trying again", "err", err)
		select {
		case <-ctx.Done():
		case <-time.After(time.Second):
		}
	}
}

// refuseQueued settles what no batch will take any more.
func (g *Governor) refuseQueued(cause error) {
	for {
		select {
		case queued := <-g.proposals:
			for _, p := range queued {
				p.settle(fmt.Errorf("%w: %w", errUndecided, cause))
			}
		default:
			return
		}
	}
}

// propose queues proposals that must keep their order, and reports whether they were taken.
func (g *Governor) propose(ctx context.Context, ps ...proposal) bool {
	select {
	case g.proposals <- ps:
		return true
	case <-ctx.Done():
		return false
	}
}

// do proposes one thing and waits until it is settled.
func (g *Governor) do(ctx context.Context, sequence func(*batch) error) error {
	s := &step{run: sequence, done: make(chan error, 1)}
	if !g.propose(ctx, s) {
		return fmt.Errorf("%w: %w", errUndecided, context.Cause(ctx))
	}
	select {
	case err := <-s.done:
		return err
	case <-g.stopped:
		return fmt.Errorf("%w: the governor is stopping", errUndecided)
	}
}

// step is a proposal that somebody waits for.
type step struct {
	run  func(*batch) error
	done chan error
}

func (s *step) sequence(b *batch) error { return s.run(b) }
func (s *step) settle(err error)        { s.done <- err }

// logOffer is the one line that an offer leaves in the operator's log.
func (g *Governor) logOffer(ctx context.Context, o *offer) {
	g.log.LogAttrs(ctx, slog.LevelInfo, "offer", slog.String("id", o.id), slog.String("from", o.in.Sender),
		slog.String("to", o.in.To), slog.String("session", o.in.Session), slog.String("effect", o.effect))
}
