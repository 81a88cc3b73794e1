package streams

import (
	"fmt"
	"testing"
	"time"
)

func TestTally(t *testing.T) {
	t.Parallel()
	said := func(server string, n int64) map[string]map[string]traffic {
		return map[string]map[string]traffic{server: {"a": {messages: n, bytes: 10 * n}}}
	}
	start := time.Now()
	tally := newTally()
	for i, step := range []struct {
		server string
		count  int64
		after  time.Duration
		want   int64
	}{
		{"one", 100, 0, 0}, // before we came
		{"one", 130, time.Second, 30},
		{"two", 7, time.Second, 30},
		{"two", 9, 2 * time.Second, 32}, // on another server
		{"one", 130, 3 * time.Second, 32},
		{"one", 5, 4 * time.Second, 32}, // an account that a server has made anew
		{"one", 6, 5 * time.Second, 33},
		{"two", 10, 50 * time.Second, 34},               // silent for less than it takes to forget
		{"three", 0, 6*time.Second + forgetServer, 34},  // and one is forgotten
		{"one", 1000, 7*time.Second + forgetServer, 34}, // so it is a new one
	} {
		if got := tally.add(said(step.server, step.count), start.Add(step.after))["a"]; got != (traffic{step.want, 10 * step.want}) {
			t.Errorf("step %d: %+v, want %d messages", i, got, step.want)
		}
	}
	for i := range 1000 {
		tally.add(said(fmt.Sprint("restarted ", i), 1), start.Add(time.Duration(i)*time.Minute))
	}
	if n := len(tally.servers); n > 2 {
		t.Errorf("%d servers are remembered of a thousand that are gone", n)
	}
	if !tally.accounts()["a"] {
		t.Error("no account is known")
	}
}
