package main

import (
	"bytes"
	"context"
	"errors"
	"iter"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"

	"github.com/handoff-governor/handoff-governor/cmd/governor/daemon"
	"github.com/handoff-governor/handoff-governor/cmd/internal/cli"
	"github.com/handoff-governor/handoff-governor/governor/ledger"
	"github.com/handoff-governor/handoff-governor/handoff"
	"github.com/handoff-governor/handoff-governor/handoff/aat"
	"github.com/handoff-governor/handoff-governor/policies"
)

// history makes a ledger with a session of so many finished handoffs, and opens it.
func history(t testing.TB, handoffs int) (*place, record) {
	t.Helper()
	dir := t.TempDir()
	// A ceiling, so that every grant is narrowed and its narrowing is computed again.
	bundle, err := policies.Default().WithData("/roles", map[string]any{"everything": map[string]any{
		"tools": map[string]any{"fs.read": map[string]any{"path": aat.OneOf("/a", "/b")}},
	}})
	if err != nil {
		t.Fatal(err)
	}
	d, err := daemon.Start(t.Context(), daemon.Config{Dir: dir, Listen: "127.0.0.1:0", Bundle: bundle})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	connect := func(name string) *handoff.Client {
		source, err := d.Source("/agent/" + name)
		if err != nil {
			t.Fatal(err)
		}
		c, err := handoff.Connect(ctx, handoff.Config{URL: d.Endpoint.URL, Source: source})
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	planner, writer := connect("planner"), connect("writer")
	s, err := planner.OpenSession(ctx, handoff.SessionRequest{
		Objective: "test", Tools: aat.Tools{"fs.read": {"path": aat.Wildcard()}}, MaxHops: 1,
	})
	if err != nil {
		t.Fatal(err)
	}
	for range handoffs {
		if _, err := s.Offer(ctx, "writer", []byte("x"), handoff.Tools(aat.Tools{"fs.read": {"path": aat.OneOf("/a", "/b")}})); err != nil {
			t.Fatal(err)
		}
		task, err := writer.Receive(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if err := task.Complete(ctx, []byte("y")); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(planner.Close(), writer.Close(), d.Close()); err != nil {
		t.Fatal(err)
	}
	l, err := ledger.Open(daemon.LedgerPath(dir), ledger.Config{ReadOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	return &place{dir: dir, Endpoint: d.Endpoint}, l
}

// changed is a record in which somebody has replaced bytes of one entry.
type changed struct {
	record
	index    int
	old, new string
	found    bool
}

func (c *changed) Entries(from uint64) iter.Seq2[[]byte, error] {
	return func(yield func([]byte, error) bool) {
		i := int(from)
		for encoded, err := range c.record.Entries(from) {
			if i == c.index {
				c.found = bytes.Contains(encoded, []byte(c.old))
				encoded = bytes.Replace(encoded, []byte(c.old), []byte(c.new), 1)
			}
			if i++; !yield(encoded, err) {
				return
			}
		}
	}
}

// otherBundle is a record whose bundle was exchanged.
type otherBundle struct{ record }

func (otherBundle) Bundle(string) ([]byte, error) { return policies.Default().Bytes(), nil }

// written runs a command's function, and returns what it wrote.
func written(t *testing.T, f func(*cobra.Command) error) (string, error) {
	t.Helper()
	var out bytes.Buffer
	cmd := &cobra.Command{}
	cmd.SetContext(t.Context())
	cmd.SetOut(&out)
	err := f(cmd)
	return out.String(), err
}

// What was changed in a record, a replay or the verifier finds, and names.
func TestChangedRecord(t *testing.T) {
	p, r := history(t, 1)
	replay := func(r record) (string, error) {
		return written(t, func(cmd *cobra.Command) error { return p.replay(cmd, r) })
	}
	verify := func(r record) (string, error) {
		return written(t, func(cmd *cobra.Command) error { return p.verify(cmd, r, nil) })
	}
	if out, err := replay(r); err != nil || !strings.Contains(out, "4 answers of the policy compared with the record, 0 differ  same") {
		t.Errorf("an honest record: %v\n%s", err, out)
	}
	if out, err := verify(r); err != nil || !strings.HasSuffix(out, "  verified\n") {
		t.Errorf("an honest record: %v\n%s", err, out)
	}
	const both, one = `{"constraint_type":"one_of","values":["/a","/b"]}`, `{"constraint_type":"exact","value":"/a"}`
	for name, c := range map[string]*changed{
		"answer":  {r, 2, `"effect":"allow","max_hops"`, `"effect":"deny","max_hops"`, false},
		"granted": {r, 2, `"granted":{"fs.read":{"path":` + both, `"granted":{"fs.read":{"path":` + one, false},
	} {
		t.Run(name, func(t *testing.T) {
			out, err := replay(c)
			if !c.found {
				t.Fatal("the entry does not have what was to be changed")
			}
			says := "entry 2  offer  planner → writer  the " + name + " differs"
			if !errors.Is(err, cli.ErrShown) || !strings.Contains(out, says) || !strings.HasSuffix(out, "  differs\n") {
				t.Errorf("replayed: %v\n%s", err, out)
			}
			if out, err = verify(c); !errors.Is(err, cli.ErrShown) || !strings.HasSuffix(out, "  damaged\n") {
				t.Errorf("verified: %v\n%s", err, out)
			}
		})
	}
	if out, err := replay(otherBundle{r}); err == nil || !strings.Contains(err.Error(), "it was changed") {
		t.Errorf("another bundle: %v\n%s", err, out)
	}
}

// Everything that was decided, decided again.
func BenchmarkReplay(b *testing.B) {
	p, r := history(b, 500)
	cmd := &cobra.Command{}
	cmd.SetContext(b.Context())
	cmd.SetOut(new(bytes.Buffer))
	for b.Loop() {
		if err := p.replay(cmd, r); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(1501*b.N)/b.Elapsed().Seconds(), "decisions/s")
}
