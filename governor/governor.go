package governor

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/handoff-governor/handoff-governor/governor/failpoint"
	"github.com/handoff-governor/handoff-governor/governor/keyring"
	"github.com/handoff-governor/handoff-governor/governor/ledger"
	"github.com/handoff-governor/handoff-governor/handoff/aat"
	"github.com/handoff-governor/handoff-governor/handoff/aat/profile"
	"github.com/handoff-governor/handoff-governor/handoff/entry"
	"github.com/handoff-governor/handoff-governor/handoff/wire"
)

// Config is what a governor is made of. Bus, Log, Policy, Issuer and Keys must be there.
type Config struct {
	Bus    Bus
	Log    Log
	Policy Policy
	Issuer Issuer
	Keys   *Keys

	// URI names the governor in proofs (aud) and on the revocation feed (iss). LogName is the ledger's checkpoint origin,
	// LogKey its note verifier key, which agents and strangers are told; LogKeys, where it is there, is what it is now, with the ring
	// that it is the current one of.
	URI     string
	LogName string
	LogKey  string
	LogKeys func() (current string, ring keyring.Ring)

	// PastIssuerKeys are those that signed roots before: what the ledger has of them is read back.
	PastIssuerKeys []aat.JWK

	// KnownAgent tells whether a name may be handed to at all. Nil: every valid name.
	KnownAgent func(name string) bool
	// Withdrawn is told of every identity that is withdrawn or restored, once that is on record and before it is answered;
	// and, by [New], of all that are withdrawn. It keeps a withdrawn identity from connecting, and cuts the connections that
	// it has; where it fails, it is called again with each heartbeat. One call at a time. Nil: nobody needs to know.
	Withdrawn func(ctx context.Context, name string, withdrawn bool) error
	// Rotate makes a key of the governor or the issuer, as entry.Rotated.Of says, to take the place of those there are: at once
	// where stolen, else when everybody who must know it does. It returns what the keys are once commit was called, which is
	// not before that is on record. Nil: keys are replaced elsewhere.
	Rotate func(of string, stolen bool) (next keyring.Ring, commit func() error, err error)
	// MaxWithdrawn is how many identities may be withdrawn at a time. 0: DefaultMaxWithdrawn.
	MaxWithdrawn int
	// MaxOpen is how many handoffs may be open for one receiver, half of them from one sender. 0: DefaultMaxOpen.
	MaxOpen int
	// MaxSessions is how many sessions one agent may have open. 0: DefaultMaxSessions.
	MaxSessions int
	// Heartbeat of the revocation feed, and of what only time brings about. 0: one second.
	Heartbeat time.Duration
	// Now is the clock. Nil: time.Now.
	Now func() time.Time
	// Logger gets what an operator must know. Nil: nowhere.
	Logger *slog.Logger
}

// What a [Config] has where it says nothing.
const (
	DefaultMaxOpen      = 10_000
	DefaultMaxSessions  = 1000
	DefaultMaxWithdrawn = 10_000
)

// Governor runs the path. Make one with [New], and run it once.
type Governor struct {
	cfg       Config
	log       *slog.Logger
	state     *State
	feed      *feed
	trusted   atomic.Pointer[trust]
	proposals chan []proposal
	stale     bool          // the sequencer's: its state is not what the ledger says
	ready     chan struct{} // closed once requests and offers are served
	stopped   chan struct{} // closed when nothing will be settled any more

	owed struct {
		sync.Mutex
		messages []wire.Outbound
	}
	hole       hole
	numbers    numbers
	ending     chan error // has an item once another start is needed
	troubles   troubles
	identities identities
	rotating   sync.Mutex
	quarantine struct {
		sync.Mutex
		counts map[quarantineKey]int
		told   int64 // Unix milliseconds
	}
}

type quarantineKey struct {
	agent string
	code  wire.Code
}

// New checks the configuration and reads the ledger back into memory.
func New(ctx context.Context, cfg Config) (*Governor, error) {
	switch {
	case cfg.Bus == nil || cfg.Log == nil || cfg.Policy == nil || cfg.Issuer == nil || cfg.Keys == nil:
		return nil, errors.New("a governor needs a bus, a log, a policy, an issuer and keys")
	case cfg.URI == "" || cfg.LogName == "":
		return nil, errors.New("a governor needs a URI and the name of its log")
	}
	if cfg.KnownAgent == nil {
		cfg.KnownAgent = func(string) bool { return true }
	}
	if cfg.MaxOpen == 0 {
		cfg.MaxOpen = DefaultMaxOpen
	}
	if cfg.MaxSessions == 0 {
		cfg.MaxSessions = DefaultMaxSessions
	}
	if cfg.MaxWithdrawn == 0 {
		cfg.MaxWithdrawn = DefaultMaxWithdrawn
	}
	if cfg.Withdrawn == nil {
		cfg.Withdrawn = func(context.Context, string, bool) error { return nil }
	}
	if cfg.Heartbeat == 0 {
		cfg.Heartbeat = time.Second
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	g := &Governor{
		cfg: cfg, log: cfg.Logger, proposals: make(chan []proposal, 4),
		ready: make(chan struct{}), stopped: make(chan struct{}), ending: make(chan error, 1),
	}
	g.quarantine.counts = map[quarantineKey]int{}
	if err := g.retrust(); err != nil {
		return nil, err
	}
	g.state = g.newState()
	feed, err := newFeed(cfg)
	if err != nil {
		return nil, err
	}
	g.feed = feed
	if err := g.rebuild(ctx); err != nil {
		return nil, fmt.Errorf("reading the ledger back: %w", err)
	}
	g.feed.load(g.state)
	g.tellWithdrawn(ctx)
	return g, nil
}

// trust is what links are checked against: the issuer's keys for roots, the governor's own for odd links.
type trust struct {
	verifier *aat.Verifier
	profile  *profile.Profile
	issuers  []aat.JWK
	own      []aat.JWK
	past     []aat.Anchor // the issuer's keys, and all that it had: roots that are on record are signed with them
}

// trust returns what links are checked against now.
func (g *Governor) trust() *trust { return g.trusted.Load() }

// retrust finds out what links are checked against, where keys have been replaced since.
func (g *Governor) retrust() error {
	t := &trust{
		verifier: &aat.Verifier{Now: g.cfg.Now, MaxDepth: 2 * wire.MaxHops},
		profile:  &profile.Profile{Governors: map[string][]ed25519.PublicKey{}},
		issuers:  g.cfg.Issuer.Keys(),
		own:      g.cfg.Keys.Public(),
	}
	if old := g.trusted.Load(); old != nil && slices.Equal(old.issuers, t.issuers) && slices.Equal(old.own, t.own) {
		return nil
	}
	for _, jwk := range t.issuers {
		key, err := jwk.Key()
		if err != nil {
			return fmt.Errorf("an issuer key: %w", err)
		}
		t.verifier.Anchors = append(t.verifier.Anchors, aat.Anchor{Issuer: g.cfg.Issuer.URI(), Key: key})
		t.profile.Issuers = append(t.profile.Issuers, key)
	}
	t.past = slices.Clone(t.verifier.Anchors)
	for _, jwk := range g.cfg.PastIssuerKeys {
		key, err := jwk.Key()
		if err != nil {
			return fmt.Errorf("an issuer key of before: %w", err)
		}
		t.past = append(t.past, aat.Anchor{Issuer: g.cfg.Issuer.URI(), Key: key})
	}
	if old := g.trusted.Load(); old != nil {
		for _, anchor := range old.past {
			if !slices.ContainsFunc(t.past, func(a aat.Anchor) bool { return a.Key.Equal(anchor.Key) }) {
				t.past = append(t.past, anchor)
			}
		}
	}
	for _, jwk := range t.own {
		key, err := jwk.Key()
		if err != nil {
			return fmt.Errorf("a governor key: %w", err)
		}
		t.profile.Governors[g.cfg.Issuer.URI()] = append(t.profile.Governors[g.cfg.Issuer.URI()], key)
	}
	g.trusted.Store(t)
	return nil
}

func (g *Governor) newState() *State {
	return newState(g.cfg.Keys, g.trust)
}

// Run serves until ctx ends, then finishes what it has begun. Nothing is served before the bundle in force is on
// record, and everything that was promised before a crash is out again. It ends by itself where only another start helps: with
// [wire.ErrStreamsLost] where the streams have lost messages that were in inboxes, as a server of their own may, and with
// [ledger.ErrBroken] where it is unknown whether a batch is on record.
func (g *Governor) Run(ctx context.Context) error {
	parent := ctx
	group, ctx := errgroup.WithContext(parent)
	batches := make(chan *batch, 4)
	group.Go(func() error {
		select {
		case <-ctx.Done():
			return nil
		case err := <-g.ending:
			return err
		}
	})
	group.Go(func() error { g.sequence(ctx, batches); return nil })
	group.Go(func() error {
		// Handlers wait for what they have proposed; once this is done they need not, and Serve can end.
		defer close(g.stopped)
		g.deliver(ctx, batches)
		return nil
	})
	group.Go(func() error {
		if err := g.begin(ctx); err != nil {
			return err
		}
		group.Go(func() error { g.ingress(ctx); return nil })
		group.Go(func() error { g.heartbeat(ctx); return nil })
		group.Go(func() error { g.keepTime(ctx); return nil })
		group.Go(func() error { return g.cfg.Bus.Serve(ctx, g.serve) })
		close(g.ready)
		return nil
	})
	if err := group.Wait(); parent.Err() == nil {
		return err
	}
	// Asked to stop, and everything is out. A start that knows so repeats nothing.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(parent), releaseTimeout)
	defer cancel()
	if err := g.flushLast(ctx); err != nil {
		g.log.WarnContext(ctx, "the live state could not be stored; the next start will take longer", "err", err)
	}
	return nil
}

// Ready is closed once the governor serves.
func (g *Governor) Ready() <-chan struct{} { return g.ready }

// Bundle is the digest of the bundle in force.
func (g *Governor) Bundle() string {
	g.state.mu.RLock()
	defer g.state.mu.RUnlock()
	return g.state.bundle
}

// begin puts the bundle in force on record and publishes again what a crash may have swallowed.
func (g *Governor) begin(ctx context.Context) error {
	judge := g.cfg.Policy.Current()
	newest := g.state.clock // nothing else runs yet
	var early map[string]judgement
	if g.Bundle() != judge.Digest() {
		early = g.prejudge(ctx, judge)
	}
	err := g.do(ctx, func(b *batch) error {
		if b.st.bundle != judge.Digest() {
			bundle := judge.Bytes()
			e := &entry.Entry{Kind: entry.KindBundle, Bundle: &entry.Bundle{Digest: judge.Digest(), By: "start", Size: len(bundle)}}
			attach := func(r *ledger.Record) { r.Bundle = &ledger.Bundle{Digest: judge.Digest(), Bytes: bundle} }
			if err := b.write(e, known{}, nil, attach); err != nil {
				return err
			}
			if err := g.rejudge(ctx, b, early); err != nil {
				return err
			}
		}
		_, err := g.expire(b) // what is left, keepTime ends
		return err
	})
	if err != nil {
		return fmt.Errorf("starting: %w", err)
	}
	if err := g.republish(ctx, newest); err != nil {
		return fmt.Errorf("publishing again what may have been lost: %w", err)
	}
	failpoint.At("republished")
	return g.feed.beat()
}

// every calls f with each heartbeat, until ctx ends.
func (g *Governor) every(ctx context.Context, f func()) {
	ticker := time.NewTicker(g.cfg.Heartbeat)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
			f()
		}
	}
}

// heartbeat tells guards that they miss nothing. It waits for nobody: guards that hear nothing close.
func (g *Governor) heartbeat(ctx context.Context) {
	g.every(ctx, func() {
		if err := g.feed.beat(); err != nil {
			g.log.ErrorContext(ctx, "no heartbeat on the revocation feed; guards will close", "err", err)
		}
	})
}

// keepTime writes down what only time brings about, and keeps the live bucket up to date.
func (g *Governor) keepTime(ctx context.Context) {
	g.every(ctx, func() {
		for more := true; more && ctx.Err() == nil; {
			err := g.do(ctx, func(b *batch) (err error) { more, err = g.passTime(b); return err })
			if err != nil {
				more = false
				g.log.ErrorContext(ctx, "what time has ended could not be recorded", "err", err)
			}
		}
		if err := g.cfg.Bus.Trouble(); err != nil {
			g.noteTrouble(ctx, ofStreams, err)
		}
		g.payOwed(ctx)
		g.tellAgain(ctx)
		if err := g.retrust(); err != nil {
			g.log.ErrorContext(ctx, "what the issuer has for keys cannot be used; those before are trusted on", "err", err)
		}
		if err := g.flushLive(ctx); err != nil && ctx.Err() == nil {
			g.log.WarnContext(ctx, "the live state could not be stored; the next start will take longer", "err", err)
		}
	})
}

// quarantineEvery is how often the ledger learns how much was quarantined: rarely, so that garbage does not grow it.
const quarantineEvery = time.Minute

// passTime ends what time has ended and writes down how much was quarantined since.
func (g *Governor) passTime(b *batch) (more bool, err error) {
	if more, err = g.expire(b); err != nil {
		return false, err
	}
	g.quarantine.Lock()
	var counts map[quarantineKey]int
	if b.now-g.quarantine.told >= quarantineEvery.Milliseconds() {
		told := g.quarantine.told
		counts, g.quarantine.told = g.quarantine.counts, b.now
		g.quarantine.counts = map[quarantineKey]int{}
		b.undo = append(b.undo, func() {
			g.quarantine.Lock()
			defer g.quarantine.Unlock()
			g.quarantine.told = told
			for key, n := range counts {
				g.quarantine.counts[key] += n
			}
		})
	}
	g.quarantine.Unlock()
	for key, n := range counts {
		err := b.write(&entry.Entry{
			Kind: entry.KindQuarantined, Quarantined: &entry.Quarantined{Agent: key.agent, Code: key.code, Count: n},
		}, known{}, nil, nil)
		if err != nil {
			return false, err
		}
	}
	return more, nil
}

// quarantined counts a message that was set aside.
func (g *Governor) quarantined(agent string, code wire.Code) {
	g.quarantine.Lock()
	defer g.quarantine.Unlock()
	g.quarantine.counts[quarantineKey{agent, code}]++
}

// wait waits until a proposal is settled.
func (g *Governor) wait(done <-chan error) error {
	select {
	case err := <-done:
		return err
	case <-g.stopped:
		return fmt.Errorf("%w: the governor is stopping", errUndecided)
	}
}

// pause logs a fault of the infrastructure and waits before the next try.
func (g *Governor) pause(ctx context.Context, doing string, err error) {
	if ctx.Err() != nil {
		return
	}
	g.log.ErrorContext(ctx, "trying again in a second", "doing", doing, "err", err)
	select {
	case <-ctx.Done():
	case <-time.After(time.Second):
	}
}

// parallel maps f over in on every core, and keeps the order.
func parallel[In, Out any](in []In, f func(In) Out) []Out {
	out := make([]Out, len(in))
	var group errgroup.Group
	group.SetLimit(runtime.GOMAXPROCS(0))
	for i := range in {
		group.Go(func() error { out[i] = f(in[i]); return nil })
	}
	_ = group.Wait() // the functions return nil
	return out
}
