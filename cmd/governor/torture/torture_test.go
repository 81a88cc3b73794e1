package torture

import (
	"context"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/handoff-governor/handoff-governor/handoff/entry"
)

// A governor that is killed a few times loses nothing, and does nothing twice. .ci/run does so more often.
func TestTorture(t *testing.T) {
	built, err := program()
	if err != nil {
		t.Fatal(err)
	}
	o, err := Run(context.Background(), Config{Program: built, Dir: shortDir(t), Kills: 4, Seed: 4, Pause: time.Second, Drain: 3 * time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	if !o.OK() || o.Kills != 4 {
		t.Errorf("%+v", o)
	}
	for what, n := range map[string]int{"offer": o.Offers, "claim": o.Delivered, "result": o.Results, "call": o.Permitted, "refused call": o.Refused} {
		if n == 0 {
			t.Errorf("there was no %s at all", what)
		}
	}
}

// The same seed plans the same, and each plan has the kills that were asked for.
func TestPlan(t *testing.T) {
	kinds := map[string]int{}
	for seed := range uint64(50) {
		one, other := plan(seed, 20, time.Second), plan(seed, 20, time.Second)
		if !reflect.DeepEqual(one, other) {
			t.Fatalf("seed %d plans differently each time", seed)
		}
		if reflect.DeepEqual(one, plan(seed+1, 20, time.Second)) {
			t.Fatalf("seed %d plans the same as the next", seed)
		}
		kills, leases := 0, 0
		for _, f := range one {
			kinds[f.kind]++
			switch f.kind {
			case faultKill, faultUnborn:
				kills++
			case faultLease:
				leases++
			}
		}
		if kills != 20 || leases > maxLeases {
			t.Errorf("seed %d has %d kills and %d leases", seed, kills, leases)
		}
	}
	for _, kind := range append(between, faultKill, faultUnborn) {
		if kind != "" && kinds[kind] == 0 {
			t.Errorf("%s is never planned", kind)
		}
	}
}

// What the ledger lacks is found.
func TestCompareFindsLosses(t *testing.T) {
	whole := func() (*books, *audit) {
		b := newBooks()
		b.open("s")
		b.offer("h", "s", nil)
		b.receipt("h")
		b.claim("h", nil, false)
		b.complete("h")
		b.result("h", 0)
		b.offer("r", "s", nil)
		b.receipt("r")
		b.revoke("r")
		b.close("s")
		a := &audit{sessions: map[string]bool{"s": true}, offers: map[string]*audited{
			"h": {session: "s", decided: 1, claims: 1, results: 1}, "r": {session: "s", decided: 1, over: true},
		}}
		return b, a
	}
	if b, a := whole(); true {
		if b.compare(a); b.missing != 0 {
			t.Errorf("a ledger that lacks nothing: %q", b.wrong)
		}
	}
	for lacks, change := range map[string]func(*audit){
		"session":  func(a *audit) { delete(a.sessions, "s") },
		"closing":  func(a *audit) { a.sessions["s"] = false },
		"offer":    func(a *audit) { delete(a.offers, "h") },
		"decision": func(a *audit) { a.offers["h"].decided = 0 },
		"claim":    func(a *audit) { a.offers["h"].claims = 0 },
		"result":   func(a *audit) { a.offers["h"].results = 0 },
		"revoking": func(a *audit) { a.offers["r"].over, a.sessions["s"] = false, false },
	} {
		b, a := whole()
		change(a)
		if b.compare(a); b.missing == 0 {
			t.Errorf("a ledger without the %s is taken for whole", lacks)
		}
	}
}

// What happened twice is found.
func TestAuditFindsRepeats(t *testing.T) {
	offer := &entry.Entry{Kind: entry.KindDecided, Handoff: "h", Decided: &entry.Decided{Stage: entry.StageOffer, Effect: "allow"}}
	claim := func(grant, supersedes string) *entry.Entry {
		return &entry.Entry{Kind: entry.KindClaimed, Handoff: "h", Grant: grant, Claimed: &entry.Claimed{Supersedes: supersedes}}
	}
	result := &entry.Entry{Kind: entry.KindResult, Handoff: "h", Result: &entry.Result{Effect: "allow"}}
	for _, c := range []struct {
		what          string
		entries       []*entry.Entry
		twice, grants int
	}{
		{"a life", []*entry.Entry{offer, claim("1", ""), claim("2", "1"), result}, 0, 0},
		{"two decisions", []*entry.Entry{offer, offer}, 1, 0},
		{"two results", []*entry.Entry{offer, claim("1", ""), result, result}, 1, 0},
		{"two grants", []*entry.Entry{offer, claim("1", ""), claim("2", "")}, 0, 1},
		{"two grants, one of them of an earlier one", []*entry.Entry{offer, claim("1", ""), claim("2", "1"), claim("3", "1")}, 0, 1},
	} {
		a := &audit{offers: map[string]*audited{}, sessions: map[string]bool{}}
		for _, e := range c.entries {
			a.read(e)
		}
		if a.duplicated != c.twice || a.doubleGranted != c.grants {
			t.Errorf("%s: %d twice, %d granted twice", c.what, a.duplicated, a.doubleGranted)
		}
	}
}

// A call that is let through long after what it stands on was over is found, whoever ended it.
func TestLateCallsAreFound(t *testing.T) {
	for over, end := range map[string]func(*books, *held, *held){
		"its task was done":              func(b *books, _, _ *held) { b.complete("below") },
		"its task was taken over":        func(b *books, _, _ *held) { b.claim("below", nil, false) },
		"it was revoked":                 func(b *books, _, _ *held) { b.revoke("below") },
		"the one above was revoked":      func(b *books, _, _ *held) { b.revoke("above") },
		"the task above was taken over":  func(b *books, _, _ *held) { b.claim("above", nil, false) },
		"its session was closed":         func(b *books, _, _ *held) { b.close("s") },
		"it was transferred, and it was": func(b *books, _, g *held) { b.offer("next", "s", g); b.claim("next", nil, true) },
	} {
		b := newBooks()
		b.open("s")
		b.offer("above", "s", nil)
		above := b.claim("above", nil, false)
		b.offer("below", "s", above)
		below := b.claim("below", nil, false)
		if b.permit(below, "files", time.Now().Add(time.Minute), time.Second); b.late != 0 {
			t.Fatal("a call that nothing speaks against is called late")
		}
		end(b, above, below)
		if b.permit(below, "files", time.Now().Add(500*time.Millisecond), time.Second); b.late != 0 {
			t.Errorf("where %s, a call in time is called late", over)
		}
		if b.permit(below, "files", time.Now().Add(2*time.Second), time.Second); b.late != 1 {
			t.Errorf("where %s, a late call is not found", over)
		}
		if b.lag < time.Second || !strings.Contains(strings.Join(b.wrong, " "), "permitted") {
			t.Errorf("where %s: %s, %q", over, b.lag, b.wrong)
		}
	}
	// What was handed on for good lives on without who handed it on.
	b := newBooks()
	b.open("s")
	b.offer("above", "s", nil)
	above := b.claim("above", nil, false)
	b.offer("below", "s", above)
	below := b.claim("below", nil, true)
	if b.permit(below, "files", time.Now().Add(time.Minute), time.Second); b.late != 0 {
		t.Error("the grant of a transferred task is taken for over with its sender's")
	}
}
