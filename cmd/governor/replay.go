package main

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/spf13/cobra"

	"github.com/handoff-governor/handoff-governor/cmd/internal/cli"
	"github.com/handoff-governor/handoff-governor/governor"
	"github.com/handoff-governor/handoff-governor/handoff/aat"
	"github.com/handoff-governor/handoff-governor/handoff/entry"
	"github.com/handoff-governor/handoff-governor/handoff/wire"
	"github.com/handoff-governor/handoff-governor/policies"
)

// replayTimeout is for one evaluation. It is longer than a governor's own, so that a slow machine is no difference.
const replayTimeout = 5 * time.Second

func replayCommand() *cobra.Command {
	var dir string
	cmd := &cobra.Command{
		Use:   "replay",
		Short: "Decide everything in the ledger again, and compare",
		Long: `Decide everything in the ledger again, under the bundle that decided it then, and compare the answers byte for byte.
What was granted is computed again, too. A difference means that the record, the bundle or the engine is not what it was.

With --policy DIR, decide everything under that bundle instead, and show what would have come out otherwise. Each
decision is asked as it was recorded: what would have been different before it, such as labels that a bundle's data give
to tools, is not followed.`,
		Example: "  governor replay\n  governor replay --policy ./stricter",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return reading(cmd, func(p *place, r record) error {
				if dir == "" {
					return p.replay(cmd, r)
				}
				return p.whatIf(cmd, r, dir)
			})
		},
	}
	cmd.Flags().StringVar(&dir, "policy", "", "directory of another bundle to decide under")
	return cmd
}

// question is a recorded decision.
type question struct {
	Entry    uint64 `json:"entry"`
	Stage    string `json:"stage"` // session | offer | claim | result | rejudged
	From     string `json:"from,omitempty"`
	To       string `json:"to,omitempty"`
	decision *entry.Decision
	kind     entry.Kind
	asked    aat.Tools // nil where the decision narrows nothing; what is held, where it is judged again
	granted  aat.Tools // nil where nothing was granted
}

// questions walks through the ledger's decisions in order.
type questions struct {
	offered map[string]map[string]*offered // :: session → handoff → what it may hold
}

type offered struct{ asked, granted aat.Tools }

// of returns the decision that an entry records, nil where it records none.
func (qs *questions) of(e *entry.Entry) (*question, error) {
	q := &question{Entry: e.Index, From: e.From, To: e.To, kind: e.Kind}
	var err error
	switch e.Kind {
	case entry.KindSession:
		q.Stage, q.decision = "session", &e.Opened.Decision
		root, err := cli.ReadToken(e.Opened.Root)
		if err != nil {
			return nil, fmt.Errorf("entry %d: the root: %w", e.Index, err)
		}
		qs.offered[e.Session] = map[string]*offered{"": {granted: orNone(root.Tools)}}
		if q.asked, err = askedFor(e, q.decision); err != nil {
			return nil, err
		}
	case entry.KindClosed:
		delete(qs.offered, e.Session)
	case entry.KindDecided:
		d := e.Decided
		q.Stage, q.decision = d.Stage, d.Decision
		if d.Stage == entry.StageOffer {
			link, err := cli.ReadToken(d.Offer)
			if err != nil {
				return nil, fmt.Errorf("entry %d: the offer: %w", e.Index, err)
			}
			o := &offered{asked: orNone(link.Tools)}
			if d.Effect != wire.EffectDeny {
				o.granted = orNone(d.Granted)
			}
			if known := qs.offered[e.Session]; known != nil {
				known[e.Handoff] = o
			}
			q.asked, q.granted = o.asked, o.granted
		} else if d.Stage == entry.StageClaim {
			q.asked = qs.find(e).granted
		} else if q.asked, err = askedFor(e, d.Decision); err != nil {
			return nil, err
		}
	case entry.KindApproved:
		d := e.Approved.Decided
		if d == nil {
			break
		}
		o := qs.find(e)
		q.Stage, q.decision = d.Stage, d.Decision
		switch {
		case d.Stage == entry.StageOffer:
			q.asked = o.asked
		case d.Stage == entry.StageClaim:
			q.asked = o.granted
		}
		if d.Effect == wire.EffectAllow && q.asked != nil {
			o.granted = orNone(d.Granted)
			q.granted = o.granted
		}
	case entry.KindClaimed:
		link, err := cli.ReadPayload(e.Claimed.Payload)
		if err != nil {
			return nil, fmt.Errorf("entry %d: the claim: %w", e.Index, err)
		}
		q.Stage, q.decision, q.asked, q.granted = entry.StageClaim, &e.Claimed.Decision, qs.find(e).granted, orNone(link.Tools)
	case entry.KindResult:
		q.Stage, q.decision = entry.StageResult, e.Result.Decision
	case entry.KindRejudged:
		q.Stage, q.decision = "rejudged", &e.Rejudged.Decision
		if e.Handoff == "" { // the session, whose root may hold less than was asked for
			q.asked = qs.find(e).granted
		} else if q.asked, err = askedFor(e, q.decision); err != nil {
			return nil, err
		}
	}
	if q.decision == nil {
		return nil, nil
	}
	return q, nil
}

// askedFor are the tools that the policy was told of.
func askedFor(e *entry.Entry, d *entry.Decision) (aat.Tools, error) {
	if d == nil || d.Input == nil {
		return nil, nil
	}
	var input struct {
		Tools aat.Tools `json:"tools"`
	}
	if err := json.Unmarshal(d.Input, &input); err != nil {
		return nil, fmt.Errorf("entry %d: what was asked: %w: run \"governor chain verify\"", e.Index, err)
	}
	return orNone(input.Tools), nil
}

func (qs *questions) find(e *entry.Entry) *offered {
	if o := qs.offered[e.Session][e.Handoff]; o != nil {
		return o
	}
	return &offered{}
}

func orNone(t aat.Tools) aat.Tools {
	if t == nil {
		return aat.Tools{}
	}
	return t
}

// each hands every recorded decision to f, on as many goroutines as there are cores, and returns how many there were.
func (p *place) each(ctx context.Context, r record, f func(context.Context, *question) error) (count uint64, err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	checkpoint, err := r.Checkpoint()
	if err != nil {
		return 0, err
	}
	total, err := entry.ParseCheckpoint(checkpoint)
	if err != nil {
		return 0, err
	}
	var read atomic.Uint64
	defer cli.Progress(func() string { return fmt.Sprintf("%d of %d entries", read.Load(), total.Size) })()

	jobs := make(chan *question, 64)
	var workers sync.WaitGroup
	for range runtime.GOMAXPROCS(0) {
		workers.Go(func() {
			for q := range jobs {
				if ctx.Err() == nil {
					if err := f(ctx, q); err != nil {
						cancel(fmt.Errorf("entry %d: %w", q.Entry, err))
					}
				}
			}
		})
	}
	qs := questions{offered: map[string]map[string]*offered{}}
	err = func() error {
		defer workers.Wait()
		defer close(jobs)
		for encoded, err := range r.Entries(0) {
			if err != nil || ctx.Err() != nil {
				return err
			}
			e, err := entry.Decode(encoded)
			if err != nil {
				return fmt.Errorf("%w: run \"governor chain verify\"", err)
			}
			q, err := qs.of(e)
			if err != nil {
				return err
			}
			if read.Add(1); q != nil {
				count++
				jobs <- q
			}
		}
		return nil
	}()
	if err == nil {
		err = context.Cause(ctx)
	}
	return count, err
}

// bundles compiles the bundles of a ledger, and keeps the ones used last.
type bundles struct {
	record record
	mu     sync.Mutex
	recent []*policies.Snapshot
}

const maxCompiled = 4

func (b *bundles) get(digest string) (*policies.Snapshot, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, s := range b.recent {
		if s.Digest() == digest {
			return s, nil
		}
	}
	raw, err := b.record.Bundle(digest)
	if err != nil {
		return nil, fmt.Errorf("the bundle %s: %w", digest, err)
	}
	bundle, err := policies.Parse(raw)
	if err != nil {
		return nil, err
	}
	if bundle.Digest() != digest {
		return nil, fmt.Errorf("the bundle stored as %s has the digest %s: it was changed", digest, bundle.Digest())
	}
	s, err := policies.Compile(bundle, policies.Config{Timeout: replayTimeout})
	if err != nil {
		return nil, err
	}
	b.recent = append(b.recent, s)
	if len(b.recent) > maxCompiled {
		b.recent = b.recent[1:]
	}
	return s, nil
}

// difference is a decision that does not come out as it was recorded.
type difference struct {
	*question
	What     string `json:"what"` // answer | granted
	Recorded string `json:"recorded"`
	Now      string `json:"now"`
}

// replayed is what a replay found.
type replayed struct {
	Decisions   uint64       `json:"decisions"`
	Same        uint64       `json:"same"`
	Skipped     uint64       `json:"skipped"`      // ended by the time limit, or without an input: there is nothing to compare
	OtherEngine uint64       `json:"other_engine"` // decided by another engine than this program's
	Engine      string       `json:"engine"`
	Differences []difference `json:"differences,omitempty"`
}

func (p *place) replay(cmd *cobra.Command, r record) error {
	compiled := &bundles{record: r}
	found := replayed{Engine: policies.Engine()}
	var mu sync.Mutex
	count, err := p.each(cmd.Context(), r, func(ctx context.Context, q *question) error {
		d := q.decision
		if d.Input == nil || d.Failure == wire.CodePolicyTimeout {
			mu.Lock()
			defer mu.Unlock()
			found.Skipped++
			return nil
		}
		snapshot, err := compiled.get(d.Bundle)
		if err != nil {
			return err
		}
		diffs, err := q.again(ctx, snapshot)
		if err != nil {
			return err
		}
		mu.Lock()
		defer mu.Unlock()
		if d.Engine != found.Engine {
			found.OtherEngine++
		}
		if len(diffs) == 0 {
			found.Same++
		}
		found.Differences = append(found.Differences, diffs...)
		return nil
	})
	if err != nil {
		return err
	}
	found.Decisions = count
	slices.SortFunc(found.Differences, func(a, b difference) int { return cmp.Compare(a.Entry, b.Entry) })
	return p.showReplay(cli.For(cmd), &found)
}

// again asks the same question and compares.
func (q *question) again(ctx context.Context, s *policies.Snapshot) ([]difference, error) {
	d := q.decision
	answer, refusal, err := judged(ctx, s, d)
	if err != nil {
		return nil, err
	}
	var failure wire.Code
	if refusal != nil {
		failure = refusal.Code
	}
	if failure != d.Failure || !bytes.Equal(answer, d.Answer) {
		return []difference{{q, "answer", recordedAnswer(d.Answer, d.Failure), recordedAnswer(answer, failure)}}, nil
	}
	if q.granted == nil || q.asked == nil || failure != "" {
		return nil, nil
	}
	parsed, err := wire.ParseAnswer(answer)
	if err != nil {
		return nil, err
	}
	if granted, _, _ := governor.Narrow(q.asked, parsed.Ceiling, nil); !granted.Equal(q.granted) {
		return []difference{{q, "granted", toolText(q.granted), toolText(granted)}}, nil
	}
	return nil, nil
}

// judged evaluates a decision's input. What a governor would have recorded as a failure is one here.
func judged(ctx context.Context, s *policies.Snapshot, d *entry.Decision) ([]byte, *wire.Error, error) {
	answer, err := s.Evaluate(ctx, d.Entrypoint, d.Input)
	if err == nil {
		return answer, nil, nil
	}
	refusal, ok := errors.AsType[*wire.Error](err)
	if ctx.Err() != nil || !ok {
		return nil, nil, err
	}
	return nil, refusal, nil
}

func recordedAnswer(answer []byte, failure wire.Code) string {
	if failure != "" {
		return string(failure)
	}
	return string(answer)
}

func toolText(tools aat.Tools) string {
	if len(tools) == 0 {
		return "no tools"
	}
	return strings.Join(cli.ToolTexts(tools), ", ")
}

func (p *place) showReplay(out *cli.Output, r *replayed) error {
	var err error
	if out.JSON {
		err = out.Value(r)
	} else {
		for _, d := range r.Differences {
			err = errors.Join(err, p.showQuestion(out, d.question, "the "+d.What+" differs"),
				out.Line("  - %s", d.Recorded), out.Line("  + %s", d.Now))
		}
		line := fmt.Sprintf("%d answers of the policy compared with the record, %d differ", r.Decisions-r.Skipped, r.Decisions-r.Skipped-r.Same)
		if r.Skipped > 0 {
			line += fmt.Sprintf(", %d were not compared (ended by the time limit, or without an input)", r.Skipped)
		}
		if r.OtherEngine > 0 {
			line += fmt.Sprintf("; %d were made by another engine than %s", r.OtherEngine, r.Engine)
		}
		word := "same"
		if len(r.Differences) > 0 {
			word = "differs"
		}
		err = errors.Join(err, out.Ended(word, "%s", line))
	}
	if err == nil && len(r.Differences) > 0 {
		return cli.ErrShown
	}
	return err
}

func (p *place) showQuestion(out *cli.Output, q *question, what string) error {
	who := p.short(q.From)
	if q.To != "" {
		who += " → " + p.short(q.To)
	}
	return out.Line("entry %d  %s  %s  %s", q.Entry, q.Stage, who, what)
}

// outcome is how a decision comes out under a bundle.
type outcome struct {
	Effect  string        `json:"effect"`
	Reasons []wire.Reason `json:"reasons,omitempty"`
	Tools   aat.Tools     `json:"tools,omitempty"` // left of what was asked for
}

// outcomeOf says what a governor makes of an answer.
func outcomeOf(q *question, answer []byte, refusal *wire.Error) (outcome, error) {
	if refusal != nil {
		return outcome{Effect: wire.EffectDeny, Reasons: []wire.Reason{{Code: refusal.Code, Message: refusal.Message}}}, nil
	}
	a, err := wire.ParseAnswer(answer)
	if err != nil {
		return outcome{}, err
	}
	o := outcome{Effect: a.Effect, Reasons: governor.ReasonsOf(a)}
	offer := q.kind == entry.KindDecided && q.Stage == entry.StageOffer // only there is narrowed what is held
	switch {
	case q.asked == nil || a.Effect == wire.EffectDeny || a.Effect == wire.EffectHold && !offer:
	case q.kind == entry.KindRejudged:
		if o.Effect, o.Reasons = governor.StillAllowed(a, o.Reasons, q.asked); o.Effect == wire.EffectAllow {
			o.Tools = q.asked
		}
	default:
		var left bool
		if o.Tools, o.Reasons, left = governor.Narrow(q.asked, a.Ceiling, o.Reasons); !left {
			o.Effect = wire.EffectDeny
		}
	}
	return o, nil
}

// flip is a decision that another bundle would have made otherwise.
type flip struct {
	*question
	Before outcome `json:"before"`
	After  outcome `json:"after"`
}

// whatIf decides everything under another bundle.
func (p *place) whatIf(cmd *cobra.Command, r record, dir string) error {
	bundle, err := loadBundle(dir, p.TrustDomain)
	if err != nil {
		return err
	}
	other, err := policies.Compile(bundle, policies.Config{Timeout: replayTimeout})
	if err != nil {
		return err
	}
	var mu sync.Mutex
	var flips []flip
	count, err := p.each(cmd.Context(), r, func(ctx context.Context, q *question) error {
		if q.decision.Input == nil {
			return nil
		}
		answer, refusal, err := judged(ctx, other, q.decision)
		if err != nil {
			return err
		}
		var recorded *wire.Error
		if code := q.decision.Failure; code != "" {
			recorded = wire.Refuse(code, "the policy gave no usable answer")
		}
		before, err := outcomeOf(q, q.decision.Answer, recorded)
		if err != nil {
			return err
		}
		after, err := outcomeOf(q, answer, refusal)
		if err != nil {
			return err
		}
		if before.Effect != after.Effect || !before.Tools.Equal(after.Tools) {
			mu.Lock()
			defer mu.Unlock()
			flips = append(flips, flip{q, before, after})
		}
		return nil
	})
	if err != nil {
		return err
	}
	slices.SortFunc(flips, func(a, b flip) int { return cmp.Compare(a.Entry, b.Entry) })
	out := cli.For(cmd)
	if out.JSON {
		return out.Value(struct {
			Bundle    string `json:"bundle"`
			Decisions uint64 `json:"decisions"`
			Flips     []flip `json:"flips"`
		}{bundle.Digest(), count, append([]flip{}, flips...)})
	}
	for _, f := range flips {
		if err := p.showFlip(out, f); err != nil {
			return err
		}
	}
	return out.Line("%d answers of the policy, %d would come out otherwise under %s", count, len(flips), bundle.Digest())
}

func (p *place) showFlip(out *cli.Output, f flip) error {
	err := p.showQuestion(out, f.question, f.Before.Effect+" → "+f.After.Effect)
	show := func(sign string, o outcome) {
		text := o.Effect
		if o.Tools != nil {
			text += "  " + toolText(o.Tools)
		}
		err = errors.Join(err, out.Line("  %s %s", sign, text))
		for _, r := range o.Reasons {
			err = errors.Join(err, out.Line("  %s   %s", sign, cli.ReasonText(r)))
		}
	}
	show("-", f.Before)
	show("+", f.After)
	return err
}
