package entry_test

import (
	"errors"
	"fmt"
	"testing"

	"golang.org/x/mod/sumdb/tlog"
	"pgregory.net/rapid"

	"github.com/handoff-governor/handoff-governor/handoff/entry"
	"github.com/handoff-governor/handoff-governor/handoff/entry/entrytest"
	"github.com/handoff-governor/handoff-governor/handoff/wire"
)

func TestVerifyAcceptsWhatAGovernorWrites(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		l := entrytest.New("log.example", rapid.Uint64().Draw(t, "seed"))
		l.Random(rapid.IntRange(0, 120).Draw(t, "entries"))
		cfg := l.Config()
		if rapid.Bool().Draw(t, "believe the log about governors") {
			cfg.Governors = nil
		}
		for range 3 {
			seen, err := l.Sign(rapid.IntRange(0, len(l.Items)).Draw(t, "seen"))
			if err != nil {
				t.Fatal(err)
			}
			cfg.Seen = append(cfg.Seen, seen)
		}
		report, err := entry.Verify(t.Context(), l, cfg)
		if err != nil {
			t.Fatal(err)
		}
		if report.Entries != uint64(len(l.Items)) || report.Unsigned != 0 || report.BodiesGone != 0 {
			t.Fatalf("report: %+v", report)
		}
	})
}

func problem(t *testing.T, err error) *entry.Problem {
	t.Helper()
	p, ok := errors.AsType[*entry.Problem](err)
	if !ok {
		t.Fatalf("want a problem, got %v", err)
	}
	return p
}

var _ = fmt.Sprint
var _ tlog.Hash
var _ = wire.EffectAllow
