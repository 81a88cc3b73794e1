package torture

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"
)

// Config of a torture.
type Config struct {
	Program string // the governor's
	Dir     string // for everything; it must be empty
	Kills   int
	Seed    uint64        // of what is done to the governor, and of what agents do
	Pause   time.Duration // between two faults, at the most
	Rate    float64       // offers a second at the most; 0: as many as there come
	TTL     time.Duration // of sessions; 0: the client's default. What a short one ends is not lost
	Drain   time.Duration // for what is under way after the last fault, at the most
	// Show is told of progress.
	Show func(Progress)
}

// Progress is how far it has got.
type Progress struct {
	Kills, Offers, Delivered, Results int
	Fault                             string // what is being done
}

// Outcome is what came of it.
type Outcome struct {
	Kills         int  `json:"kills"`
	Offers        int  `json:"offers"`         // that were receipted
	Delivered     int  `json:"delivered"`      // of them, those that a receiver has claimed
	Results       int  `json:"results"`        // that came back to who had opened the session
	Lost          int  `json:"lost"`           // receipted, answered or accepted, and not in the ledger, or never heard of again
	Duplicated    int  `json:"duplicated"`     // IDs decided, or results accepted, more than once
	DoubleGranted int  `json:"double_granted"` // tasks with two live grants
	LedgerOK      bool `json:"ledger_ok"`      // it verifies

	Seed          uint64         `json:"seed"`
	Faults        map[string]int `json:"faults"`  // :: kind → how often
	Entries       uint64         `json:"entries"` // of the ledger
	Permitted     int            `json:"permitted"`
	Refused       int            `json:"refused_revoked"`   // calls under what was over
	Late          int            `json:"permitted_revoked"` // calls let through more than 3 s after what they stood on was over
	Lag           float64        `json:"permitted_lag_ms"`  // the longest after that at which one was let through
	Slowest       float64        `json:"slowest_ms"`        // from an offer to its result, with whatever came between
	Ends          map[string]int `json:"ends"`              // :: how handoffs ended, and what agents were refused → how often
	EndedByItself int            `json:"ended_by_itself"`   // the governor; on a full disk it may
	Governor      Memory         `json:"governor"`
	Agents        Memory         `json:"agents"`
	Seconds       float64        `json:"seconds"`
	Wrong         []string       `json:"wrong,omitempty"` // what must not be, in words
}

// Memory is what a process had in the first quarter of the kills, the third and the last: a mean each.
type Memory struct {
	FirstMB         float64 `json:"first_mb"` // of heap, after a garbage collection
	ThirdMB         float64 `json:"third_mb"`
	LastMB          float64 `json:"last_mb"`
	FirstGoroutines int     `json:"first_goroutines"`
	ThirdGoroutines int     `json:"third_goroutines"`
	LastGoroutines  int     `json:"last_goroutines"`
}

// OK tells whether nothing was lost, and nothing happened twice.
func (o *Outcome) OK() bool {
	return o.LedgerOK && o.Lost == 0 && o.Duplicated == 0 && o.DoubleGranted == 0 && o.Late == 0 && len(o.Wrong) == 0
}

// torture is one that is going on.
type torture struct {
	Config
	data, policy string // directories
	log          *os.File
	clock        Clock // everybody's, but where the governor's is made to differ
	governor     *child
	line         *line
	load         *load
	done         int // faults
	died         int // by itself

	governorMemory, agentsMemory []memory
}

// Run tortures a governor. The error is of what kept it from ending; what was found is in the outcome.
func Run(ctx context.Context, cfg Config) (*Outcome, error) {
	began := time.Now()
	t := &torture{Config: cfg, data: filepath.Join(cfg.Dir, "data"), policy: filepath.Join(cfg.Dir, "policy")}
	if err := t.write(policy); err != nil {
		return nil, err
	}
	var err error
	if t.log, err = os.OpenFile(filepath.Join(cfg.Dir, "torture.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600); err != nil {
		return nil, err
	}
	defer t.log.Close()
	if t.line, err = newLine(); err != nil {
		return nil, err
	}
	defer t.line.close()
	if err := t.start(ctx); err != nil {
		return nil, err
	}
	defer func() { t.governor.kill() }()
	url := "tls://" + t.line.listener.Addr().String()
	logger := slog.New(slog.NewTextHandler(t.log, nil))
	if t.load, err = begin(ctx, url, t.governor.Sockets, &t.clock, logger, cfg); err != nil {
		return nil, err
	}
	outcome := &Outcome{Seed: cfg.Seed, Faults: map[string]int{}}
	if err := t.faults(ctx, logger, outcome); err != nil {
		t.load.close()
		return nil, err
	}
	t.show(outcome, "drain")
	patience, cancel := context.WithTimeout(ctx, cfg.Drain)
	t.load.drain(patience)
	cancel()
	if err := t.alive(ctx); err != nil {
		return nil, err
	}
	if err := t.governor.stop(readyWithin); err != nil {
		t.load.books.amiss("stopping: %v", err)
	}
	t.judge(ctx, outcome)
	outcome.Seconds = time.Since(began).Seconds()
	return outcome, context.Cause(ctx)
}

// faults inflicts everything that is planned.
func (t *torture) faults(ctx context.Context, log *slog.Logger, o *Outcome) error {
	for _, f := range plan(t.Seed, t.Kills, t.Pause) {
		t.show(o, f.kind)
		if f.kind == faultKill {
			t.measure(ctx, log)
		}
		log.InfoContext(ctx, "fault", "number", t.done, "kind", f.kind, "after", f.after, "lasts", f.lasts, "by", f.by)
		if err := t.inflict(ctx, f); err != nil {
			return fmt.Errorf("%s, fault %d of seed %d: %w", f.kind, t.done, t.Seed, err)
		}
		t.done++
		o.Faults[f.kind]++
		if f.kind == faultKill || f.kind == faultUnborn {
			o.Kills++
		}
	}
	return nil
}

func (t *torture) show(o *Outcome, doing string) {
	if t.Show == nil {
		return
	}
	b := t.load.books
	b.mu.Lock()
	defer b.mu.Unlock()
	t.Show(Progress{Kills: o.Kills, Offers: b.offers, Delivered: b.delivered, Results: b.results, Fault: doing})
}

// judge compares what the agents were told with what is in the ledger.
func (t *torture) judge(ctx context.Context, o *Outcome) {
	b := t.load.books
	found, err := audits(ctx, t.data)
	if err != nil {
		b.amiss("%v", err)
	} else {
		b.compare(found)
		o.LedgerOK, o.Entries = true, found.entries
		o.Duplicated, o.DoubleGranted = found.duplicated, found.doubleGranted
	}
	o.Offers, o.Delivered, o.Results, o.Lost = b.offers, b.delivered, b.results, b.missing
	o.Permitted, o.Refused, o.Late, o.Lag = b.permitted, b.refused, b.late, milliseconds(b.lag)
	o.Slowest, o.Wrong, o.Ends = milliseconds(b.slowest), b.wrong, b.ends
	o.Governor, o.Agents, o.EndedByItself = overTime(t.governorMemory), overTime(t.agentsMemory), t.died
}

func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// args are those of a governor on a data directory.
func (t *torture) args(dir string) []string {
	args := []string{"torture-daemon", "--data", dir, "--policy", t.policy, "--clock", time.Duration(t.clock.ahead.Load()).String()}
	for _, path := range identities {
		args = append(args, "--identity", path)
	}
	return args
}

func (t *torture) start(ctx context.Context) (err error) {
	c, err := start(ctx, t.log, t.Program, t.args(t.data)...)
	if err == nil {
		t.governor = c
		t.line.leadTo(strings.TrimPrefix(c.URL, "tls://"))
	}
	return err
}

func (t *torture) kill() { t.governor.kill() }

// write makes the policy.
func (t *torture) write(text string) error {
	if err := os.MkdirAll(t.policy, 0o700); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(t.policy, "policy.rego"), []byte(text), 0o600)
}

// memory is what a process uses.
type memory struct {
	heap       uint64 // bytes
	goroutines int
}

func used() memory {
	runtime.GC()
	var stats runtime.MemStats
	runtime.ReadMemStats(&stats)
	return memory{stats.HeapAlloc, runtime.NumGoroutine()}
}

// measure notes what the governor and the agents use.
func (t *torture) measure(ctx context.Context, log *slog.Logger) {
	select {
	case <-t.governor.gone:
		return
	default:
	}
	r, err := t.governor.ask(order{Measure: true})
	if err != nil {
		return // it ended meanwhile; that is seen elsewhere
	}
	governor, agents := memory{r.Heap, r.Goroutines}, used()
	t.governorMemory, t.agentsMemory = append(t.governorMemory, governor), append(t.agentsMemory, agents)
	log.InfoContext(ctx, "memory", "governor_mb", governor.heap>>20, "goroutines", governor.goroutines,
		"agents_mb", agents.heap>>20, "agents_goroutines", agents.goroutines)
}

// overTime are the means of the first quarter, the third and the last: with sessions that live shorter than a half of it, the last two
// are alike unless something grows.
func overTime(all []memory) (m Memory) {
	n := (len(all) + 3) / 4
	if n == 0 {
		return m
	}
	mean := func(some []memory) (mb float64, goroutines int) {
		for _, x := range some {
			mb += float64(x.heap) / (1 << 20)
			goroutines += x.goroutines
		}
		return mb / float64(n), goroutines / n
	}
	m.FirstMB, m.FirstGoroutines = mean(all[:n])
	half := min(len(all)/2, len(all)-n)
	m.ThirdMB, m.ThirdGoroutines = mean(all[half : half+n])
	m.LastMB, m.LastGoroutines = mean(all[len(all)-n:])
	return m
}
