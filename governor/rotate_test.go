package governor_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/handoff-governor/handoff-governor/cmd/governor/daemon"
	"github.com/handoff-governor/handoff-governor/governor/keyring"
	"github.com/handoff-governor/handoff-governor/governor/ledger"
	"github.com/handoff-governor/handoff-governor/handoff/aat"
	"github.com/handoff-governor/handoff-governor/handoff/entry"
	"github.com/handoff-governor/handoff-governor/handoff/wire"
)

// keysOf asks for whom to trust, as everybody may.
func (a *agent) keysOf() (k wire.Keys) {
	a.t.Helper()
	a.ask(wire.SubjectKeys, []byte("{}"), &k)
	return k
}

// rotate has an operator replace a key.
func (a *agent) rotate(of string, stolen bool) uint64 {
	a.t.Helper()
	out := a.operate(wire.VerbKeysRotate, wire.OperatorRequest{Of: of, Stolen: stolen, Reason: "every quarter"})
	if out.Error != nil {
		a.t.Fatal(out.Error)
	}
	return out.Entry
}

// quick is over before an ID is too old for a test that advances the governor's clock alone.
var quick = keyring.Schedule{Announce: 2 * time.Minute, Overlap: 3 * time.Minute, Keep: 4 * time.Minute}

func quickly(c *daemon.Config) { c.Rotation = quick }

func allDay(r *wire.OpenRequest) { r.TTL = 24 * 60 * 60 }

// blocks is how many keys a file has.
func blocks(t *testing.T, w *world, file string) int {
	t.Helper()
	path := filepath.Join(w.cfg.Dir, "keys", file)
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%s has mode %v, %v", file, info.Mode(), err)
	}
	return strings.Count(string(raw), "BEGIN")
}

// The governor's key is replaced while tasks are under way: what was begun under the old one ends well, what is new names the new one,
// and when nobody needs the old one any more it is gone.
func TestGovernorKeyRotates(t *testing.T) {
	clock := newClock()
	w := newWorld(t, clock.use, quickly)
	a, b, op := w.agent("a"), w.agent("b"), w.operator()
	root := a.session(readFiles(), allDay)
	first := root.offer(b.name, "admitted before")
	a.receipt(first.id)
	old := a.keysOf().GovernorKeys[0]

	index := op.rotate(entry.OfGovernor, false)
	if e := w.entryAt(op, index); e.Rotated == nil || e.Rotated.Of != "governor" || e.Rotated.By != op.name || e.Rotated.Reason != "every quarter" {
		t.Errorf("the record says %+v", e)
	}
	if out := op.operate(wire.VerbKeysRotate, wire.OperatorRequest{Of: entry.OfGovernor}); code(out) != wire.CodeRotating {
		t.Errorf("rotated while the last rotation is under way: %v", out.Error)
	}
	k := a.keysOf()
	if len(k.GovernorKeys) != 2 || k.GovernorKeys[0] != old || len(k.Ending) != 1 || k.Ending[0].JWK != old {
		t.Fatalf("announced: %+v", k)
	}
	young := k.GovernorKeys[1]

	clock.advance(quick.Announce + time.Second)
	if k := a.keysOf(); k.GovernorKeys[0] != young {
		t.Errorf("two minutes later the old key is in use")
	}
	second := a.session(readFiles(), allDay) // the answer names the new key
	if second.governor != young {
		t.Error("an answer names the old key")
	}
	granted, _ := b.claim(second.session, func() string {
		o := second.offer(b.name, "under the new key")
		a.receipt(o.id)
		return o.id
	}())
	granted.result("done")
	overlap := root.offer(b.name, "names the old key")
	a.receipt(overlap.id)
	late, _ := b.claim(root.session, first.id)
	if late.governor != young {
		t.Error("the claim of what was admitted before does not name the new key")
	}

	clock.advance(quick.Overlap)
	refused := root.offer(b.name, "names the old key, too late")
	if v := a.verdict(refused.id); v.Effect != wire.EffectDeny || v.Reasons[0].Code != wire.CodeGovernorKey {
		t.Errorf("an offer to the old key, after the overlap: %+v", v)
	}
	b.claim(root.session, overlap.id) // is signed by the old key, which was taken
	late.result("done")
	w.stop()
	w.start()
	a = w.agent("a")
	if k := a.keysOf(); len(k.GovernorKeys) != 2 || k.GovernorKeys[0] != young {
		t.Errorf("after a restart: %+v", k)
	}
	if n := blocks(t, w, "governor.pem"); n != 2 {
		t.Errorf("%d keys in the file", n)
	}

	clock.advance(quick.Keep)
	for end := time.Now().Add(10 * time.Second); blocks(t, w, "governor.pem") != 1; {
		if time.Now().After(end) {
			t.Fatal("the old key is still there")
		}
		<-time.After(50 * time.Millisecond)
	}
	if k := a.keysOf(); len(k.GovernorKeys) != 1 || k.GovernorKeys[0] != young || k.Ending != nil {
		t.Errorf("a day later: %+v", k)
	}
}

// The issuer's key is replaced, and sessions of both go on; the record verifies with both, whatever is trusted now.
func TestIssuerKeyRotates(t *testing.T) {
	clock := newClock()
	w := newWorld(t, clock.use, quickly)
	a, b, op := w.agent("a"), w.agent("b"), w.operator()
	before := a.session(readFiles(), allDay)
	old := a.keysOf().IssuerKeys[0]
	op.rotate(entry.OfIssuer, false)
	clock.advance(quick.Announce + time.Second)
	k := a.keysOf()
	if len(k.IssuerKeys) != 2 || k.IssuerKeys[1] != old {
		t.Fatalf("%+v", k)
	}
	out := a.open(a.openRequest(readFiles()))
	if out.Error != nil {
		t.Fatal(out.Error)
	}
	young, err := k.IssuerKeys[0].Key()
	if err != nil {
		t.Fatal(err)
	}
	v := aat.Verifier{Anchors: []aat.Anchor{{Issuer: k.Issuer, Key: young}}, Now: w.cfg.Now}
	if _, err := v.Chain(out.Chain); err != nil {
		t.Errorf("the root is not signed by the new key: %v", err)
	}
	o := before.offer(b.name, "under the old root")
	a.receipt(o.id)
	b.claim(before.session, o.id)
	clock.advance(quick.Overlap + quick.Keep)
	for end := time.Now().Add(10 * time.Second); len(a.keysOf().IssuerKeys) != 1; {
		if time.Now().After(end) {
			t.Fatal("the old key is still trusted")
		}
		<-time.After(50 * time.Millisecond)
	}
	w.stop() // the record is verified with the keys that governor.json has
	e, err := daemon.LoadEndpoint(w.cfg.Dir)
	if err != nil || len(e.IssuerKeys) != 2 {
		t.Errorf("governor.json has %d keys of the issuer: %v", len(e.IssuerKeys), err)
	}
}

// The log's key is replaced: for a while both sign, and then the new one alone; what the old one has signed is believed on.
func TestLogKeyRotates(t *testing.T) {
	clock := newClock()
	w := newWorld(t, clock.use, quickly)
	a, op := w.agent("a"), w.operator()
	checkpoint := func() []byte {
		t.Helper()
		a.session(readFiles()) // the log grows
		return []byte(op.operate(wire.VerbCheckpoint, wire.OperatorRequest{}).Checkpoint)
	}
	opens := func(signed []byte, key string) bool {
		_, err := entry.OpenCheckpoint(signed, key)
		return err == nil
	}
	old := a.keysOf().LogKey
	before := checkpoint()
	op.rotate(entry.OfLog, false)
	if announced := checkpoint(); !opens(announced, old) || strings.Count(string(announced), "\n— ") != 1 {
		t.Errorf("announced: %s", announced)
	}
	clock.advance(quick.Announce + time.Second)
	await := func(what string, is func() bool) {
		t.Helper()
		for end := time.Now().Add(10 * time.Second); !is(); <-time.After(50 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatal(what)
			}
		}
	}
	await("the old key is still the one", func() bool { return a.keysOf().LogKey != old })
	young := a.keysOf().LogKey
	both := checkpoint()
	if !opens(both, old) || !opens(both, young) {
		t.Errorf("signed by both: %s", both)
	}
	clock.advance(quick.Overlap + quick.Keep)
	var alone []byte
	await("the old key still signs", func() bool { alone = checkpoint(); return !opens(alone, old) })
	if !opens(alone, young) || blocks(t, w, "log.pem") != 1 {
		t.Errorf("signed by the new key: %s", alone)
	}
	w.stop() // and the record is verified, with what was seen before
	e, err := daemon.LoadEndpoint(w.cfg.Dir)
	if err != nil || e.LogKey != young || len(e.PastLogKeys) != 1 || e.PastLogKeys[0] != old {
		t.Errorf("governor.json: %+v, %v", e, err)
	}
	l, err := ledger.Open(daemon.LedgerPath(w.cfg.Dir), ledger.Config{ReadOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	config := verifierConfig(t, e)
	config.Seen = [][]byte{before, both, alone}
	if _, err := entry.Verify(t.Context(), l, config); err != nil {
		t.Error(err)
	}
	config.PastLogKeys = nil
	if _, err := entry.Verify(t.Context(), l, config); err == nil {
		t.Error("a checkpoint is believed that an unknown key has signed")
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	w.start()
	if k := w.agent("a").keysOf(); k.LogKey != young {
		t.Errorf("after a restart the key is %s", k.LogKey)
	}
}

// A stolen key is worth nothing from the moment it is replaced.
func TestStolenKeyEnds(t *testing.T) {
	w := newWorld(t)
	a, op := w.agent("a"), w.operator()
	root := a.session(readFiles())
	for _, of := range []string{entry.OfGovernor, entry.OfIssuer, entry.OfLog} {
		op.rotate(of, true)
		if n := blocks(t, w, of+".pem"); n != 1 {
			t.Errorf("%d keys in the file of the %s", n, of)
		}
	}
	k := a.keysOf()
	if len(k.GovernorKeys) != 1 || k.GovernorKeys[0] == root.governor || len(k.IssuerKeys) != 1 || len(k.Ending) != 0 {
		t.Errorf("%+v", k)
	}
	o := root.offer(a.name, "names the stolen key")
	if v := a.verdict(o.id); v.Effect != wire.EffectDeny || v.Reasons[0].Code != wire.CodeGovernorKey {
		t.Errorf("%+v", v)
	}
}

// Who may not rotate does not, and what cannot be rotated says so.
func TestRotationRefused(t *testing.T) {
	w := newWorld(t, func(c *daemon.Config) {
		c.Rotation = keyring.Schedule{Announce: time.Hour, Overlap: time.Hour, Keep: time.Hour}
	})
	op := w.operator()
	for _, q := range []wire.OperatorRequest{{}, {Of: "logs"}, {Of: entry.OfGovernor, Reason: strings.Repeat("x", wire.MaxPurpose+1)}} {
		if out := op.operate(wire.VerbKeysRotate, q); code(out) != wire.CodeMalformed {
			t.Errorf("%+v: %v", q, out.Error)
		}
	}
	op.rotate(entry.OfGovernor, false)
	out := op.operate(wire.VerbKeysList, wire.OperatorRequest{})
	if len(out.Keys) != 4 || out.Keys[0].Of != "governor" || out.Keys[0].Taken == 0 || out.Keys[1].From == 0 || out.Keys[2].Of != "log" || out.Keys[3].Of != "issuer" {
		t.Errorf("%+v", out.Keys)
	}
}
