package entry_test

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/go-json-experiment/json/jsontext"
	"golang.org/x/mod/sumdb/tlog"
	"pgregory.net/rapid"

	"github.com/handoff-governor/handoff-governor/handoff/aat"
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

// stored is a log as it lies on a disk that somebody else can write to: what was signed and hashed once stays,
// whatever becomes of the entries.
type stored struct {
	*entrytest.Log
	checkpoint []byte
	leaves     []tlog.Hash
}

func store(t testing.TB, l *entrytest.Log) *stored {
	t.Helper()
	s := &stored{Log: l}
	var err error
	if s.checkpoint, err = l.Checkpoint(); err != nil {
		t.Fatal(err)
	}
	for _, item := range l.Items {
		s.leaves = append(s.leaves, entry.LeafHash(item.Entry))
	}
	return s
}

func (s *stored) Checkpoint() ([]byte, error)              { return s.checkpoint, nil }
func (s *stored) LeafHash(index uint64) (tlog.Hash, error) { return s.leaves[index], nil }

// Every single byte of every entry and of every body, changed, is found, in the entry that it belongs to.
func TestVerifyFindsEveryFlippedByte(t *testing.T) {
	l := entrytest.New("log.example", 11)
	tools := aat.Tools{"read": {}}
	l.Open("planner", tools).Offer("coder", wire.ModeDelegate, wire.EffectAllow, tools).Claim(nil).Answer(wire.StatusCompleted)
	s := store(t, l)
	cfg := l.Config()
	flip := func(i int, b []byte) {
		for at := range b {
			b[at] ^= 0x01 << (at % 8)
			_, err := entry.Verify(t.Context(), s, cfg)
			if p, ok := errors.AsType[*entry.Problem](err); !ok || p.Index != uint64(i) {
				t.Fatalf("byte %d of entry %d: %v", at, i, err)
			}
			b[at] ^= 0x01 << (at % 8)
		}
	}
	for i, item := range l.Items {
		flip(i, item.Entry)
		flip(i, item.Salt)
		if item.Salt != nil {
			flip(i, item.Body)
		}
	}
	for at := range s.checkpoint {
		s.checkpoint[at] ^= 0x02
		if _, err := entry.Verify(t.Context(), s, cfg); err == nil {
			t.Errorf("byte %d of the checkpoint was changed: %s", at, s.checkpoint)
		}
		s.checkpoint[at] ^= 0x02
	}
}

func TestVerifyFindsWhatIsMissingOrMoved(t *testing.T) {
	fresh := func() (*entrytest.Log, *stored) {
		l := entrytest.New("log.example", 12)
		l.Random(30)
		return l, store(t, l)
	}
	for name, change := range map[string]func(l *entrytest.Log){
		"an entry lost":     func(l *entrytest.Log) { l.Items = slices.Delete(l.Items, 7, 8) },
		"the end lost":      func(l *entrytest.Log) { l.Items = l.Items[:20] },
		"everything lost":   func(l *entrytest.Log) { l.Items = nil },
		"two exchanged":     func(l *entrytest.Log) { l.Items[7], l.Items[8] = l.Items[8], l.Items[7] },
		"an entry repeated": func(l *entrytest.Log) { l.Items = slices.Insert(l.Items, 7, l.Items[7]) },
	} {
		l, s := fresh()
		change(l)
		if _, err := entry.Verify(t.Context(), s, l.Config()); err == nil {
			t.Errorf("%s: not found", name)
		}
	}

	// A log that was rewritten, and signed again, is not the one that was seen before.
	l, s := fresh()
	cfg := l.Config()
	cfg.Seen = [][]byte{s.checkpoint}
	other := entrytest.New("log.example", 12)
	other.Random(30)
	other.Items = other.Items[:20] // the same log, cut off
	if _, err := entry.Verify(t.Context(), other, cfg); err == nil || !strings.Contains(err.Error(), "once signed") {
		t.Errorf("a log that was cut off: %v", err)
	}
	other.Random(30) // and continued otherwise
	if _, err := entry.Verify(t.Context(), other, cfg); err == nil {
		t.Error("a log that was rewritten was accepted")
	}

	// What is not signed yet is read, and said to be so.
	l, s = fresh()
	before := len(l.Items)
	l.Random(10)
	for _, item := range l.Items[before:] {
		s.leaves = append(s.leaves, entry.LeafHash(item.Entry))
	}
	report, err := entry.Verify(t.Context(), s, l.Config())
	if err != nil || report.Unsigned != uint64(len(l.Items)-before) {
		t.Errorf("%+v %v", report, err)
	}
}

func TestVerifyTrustsOnlyItsOwnKeys(t *testing.T) {
	l := entrytest.New("log.example", 13)
	l.Random(60)
	other := entrytest.New("log.example", 14).Config()
	for name, change := range map[string]func(*entry.Config){
		"another log's key":         func(c *entry.Config) { c.LogKey = other.LogKey },
		"no key":                    func(c *entry.Config) { c.LogKey = "" },
		"another issuer":            func(c *entry.Config) { c.Issuers = other.Issuers },
		"no issuer":                 func(c *entry.Config) { c.Issuers = nil },
		"another governor":          func(c *entry.Config) { c.Governors = other.Governors },
		"a checkpoint that is none": func(c *entry.Config) { c.Seen = [][]byte{[]byte("x")} },
	} {
		cfg := l.Config()
		change(&cfg)
		if _, err := entry.Verify(t.Context(), l, cfg); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

// A governor that lies in its log, and signs it, is found out by what others signed, and by what it said itself.
func TestVerifyFindsLies(t *testing.T) {
	story := func(tamper func(*entry.Entry)) (l *entrytest.Log, at map[string]int) {
		l, at = entrytest.New("log.example", 15), map[string]int{}
		l.Tamper = tamper
		name := func(what string) { at[what] = len(l.Items) - 1 }
		root := l.Open("planner", entrytest.Tools, "internal")
		name("open")
		root.Offer("writer", wire.ModeDelegate, wire.EffectDeny, entrytest.Tools)
		name("deny")
		h := root.Offer("coder", wire.ModeDelegate, wire.EffectAllow, aat.Tools{"read": entrytest.Tools["read"]})
		name("offer")
		first := h.Claim(nil)
		name("claim")
		second := h.Claim(first)
		name("take over")
		held := second.Offer("tester", wire.ModeTransfer, wire.EffectHold, aat.Tools{"read": entrytest.Tools["read"]})
		name("hold")
		held.Approve()
		name("approve")
		third := held.Claim(nil)
		name("transfer")
		third.Answer(wire.StatusCompleted)
		name("result")
		again := root.Offer("coder", wire.ModeDelegate, wire.EffectAllow, entrytest.Tools).Claim(nil)
		again.Offer("tester", wire.ModeDelegate, wire.EffectAllow, entrytest.Tools).Claim(nil)
		name("below")
		again.Revoke()
		name("revoke")
		root.Close()
		name("close")
		return l, at
	}
	if l, _ := story(nil); true {
		if report, err := entry.Verify(t.Context(), l, l.Config()); err != nil || report.Results != 1 {
			t.Fatal(report, err)
		}
	}
	number := func(n uint64) *uint64 { return &n }
	for _, c := range []struct {
		entry, field string
		change       func(*entry.Entry)
	}{
		{"offer", "index", func(e *entry.Entry) { e.Index++ }},
		{"offer", "log", func(e *entry.Entry) { e.Log = "other.example" }},
		{"offer", "time", func(e *entry.Entry) { e.Time -= 5 }},
		{"offer", "prev.session", func(e *entry.Entry) { e.Prev.Session = number(0) }},
		{"offer", "prev.session", func(e *entry.Entry) { e.Prev.Session = nil }},
		{"offer", "prev.sender", func(e *entry.Entry) { e.Prev.Sender = number(0) }},
		{"offer", "prev.receiver", func(e *entry.Entry) { e.Prev.Receiver = number(1) }},
		{"offer", "prev.grant", func(e *entry.Entry) { e.Prev.Grant = number(1) }},
		{"close", "prev.sender", func(e *entry.Entry) { e.Prev.Sender = number(1) }},
		{"open", "opened.root", func(e *entry.Entry) { e.Opened.Root = forge(e.Opened.Root) }},
		{"open", "opened.opener", func(e *entry.Entry) { e.Opened.Opener = "coder" }},
		{"open", "opened.root", func(e *entry.Entry) { e.Opened.MaxHops = 1 }},
		{"open", "opened.objective_hash", func(e *entry.Entry) { e.Opened.ObjectiveHash = hash }},
		{"open", "opened.decision.bundle", func(e *entry.Entry) { e.Opened.Decision.Bundle = "other" }},
		{"open", "opened.decision.answer", func(e *entry.Entry) { e.Opened.Decision.Answer = deny }},
		{"deny", "decided.decision.engine", func(e *entry.Entry) { e.Decided.Decision.Engine = "" }},
		{"deny", "decided.effect", func(e *entry.Entry) { e.Decided.Effect = "maybe" }},
		{"deny", "decided.stage", func(e *entry.Entry) { e.Decided.Stage = "other" }},
		{"deny", "decided.decision.answer", func(e *entry.Entry) { e.Decided.Effect = wire.EffectAllow }},
		{"offer", "decided.offer", func(e *entry.Entry) { e.Decided.Offer = forge(e.Decided.Offer) }},
		{"offer", "decided.task_hash", func(e *entry.Entry) { e.Decided.TaskHash = hash }},
		{"offer", "decided.decision", func(e *entry.Entry) { e.Decided.Decision = nil }},
		{"offer", "decided.decision.answer", func(e *entry.Entry) { e.Decided.Decision.Answer = deny }},
		{"offer", "decided.decision.failure", func(e *entry.Entry) { e.Decided.Decision.Failure = wire.CodePolicyTimeout }},
		{"offer", "decided.granted", func(e *entry.Entry) { e.Decided.Granted = entrytest.Tools }},
		{"offer", "decided.exp", func(e *entry.Entry) { e.Decided.Expires++ }},
		{"offer", "decided.deadline", func(e *entry.Entry) { e.Decided.Deadline++ }},
		{"offer", "decided.max_depth", func(e *entry.Entry) { e.Decided.MaxDepth = 10 }},
		{"offer", "decided.labels", func(e *entry.Entry) { e.Decided.Labels = nil }},
		{"claim", "claimed.payload", func(e *entry.Entry) { replace(e, `"del_depth":2`, `"del_depth":1`) }},
		{"claim", "claimed.payload", func(e *entry.Entry) { replace(e, `"session":"`, `"session":"0`) }},
		{"claim", "claimed.payload", func(e *entry.Entry) { replace(e, `"/b"`, `"/c"`) }},
		{"claim", "claimed.payload", func(e *entry.Entry) { replace(e, `["internal"]`, `["public"]`) }},
		{"claim", "claimed.payload.handoff.decision", func(e *entry.Entry) { replace(e, `"index":3`, `"index":1`) }},
		{"claim", "claimed.payload.handoff.bundle", func(e *entry.Entry) { replace(e, `"sha256:first"`, `"sha256:other"`) }},
		{"claim", "claimed.governor", func(e *entry.Entry) { e.Claimed.Governor = hash }},
		{"claim", "claimed.labels", func(e *entry.Entry) { e.Claimed.Labels = nil }},
		{"claim", "claimed.payload.handoff.labels", func(e *entry.Entry) { e.Claimed.Labels = []string{"internal", "x"} }},
		{"claim", "claimed.decision.answer", func(e *entry.Entry) { e.Claimed.Decision.Answer = deny }},
		{"claim", "claimed.supersedes", func(e *entry.Entry) { e.Claimed.Supersedes = e.Handoff }},
		{"claim", "claimed.ends", func(e *entry.Entry) { e.Claimed.Ends = e.Handoff }},
		{"claim", "time", func(e *entry.Entry) { e.Time += 1000_000 }},
		{"take over", "claimed.supersedes", func(e *entry.Entry) { e.Claimed.Supersedes = "" }},
		{"transfer", "claimed.ends", func(e *entry.Entry) { e.Claimed.Ends = "" }},
		{"approve", "approved.of", func(e *entry.Entry) { e.Approved.Of-- }},
		{"approve", "approved.by", func(e *entry.Entry) { e.Approved.By = "" }},
		{"approve", "approved.decided", func(e *entry.Entry) { e.Approved.Approve = false }},
		{"approve", "approved.decided.granted", func(e *entry.Entry) { e.Approved.Decided.Granted = entrytest.Tools }},
		{"approve", "approved.decided.decision", func(e *entry.Entry) { e.Approved.Decided.Decision = nil }},
		{"result", "result.token", func(e *entry.Entry) { e.Result.Token = forge(e.Result.Token) }},
		{"result", "result.status", func(e *entry.Entry) { e.Result.Status = wire.StatusFailed }},
		{"result", "result.body_hash", func(e *entry.Entry) { e.Result.BodyHash = hash }},
		{"result", "result.answers", func(e *entry.Entry) { e.Result.Answers = "" }},
		{"result", "result.labels", func(e *entry.Entry) { e.Result.Labels = nil }},
		{"revoke", "revoked.grants", func(e *entry.Entry) { e.Revoked.Grants = e.Revoked.Grants[:1] }},
		{"revoke", "revoked.grants.0", func(e *entry.Entry) { e.Revoked.Grants[0] = e.Session[:35] + "x" }},
	} {
		l, at := story(nil)
		e, err := entry.Decode(l.Items[at[c.entry]].Entry)
		if err != nil {
			t.Fatal(err)
		}
		c.change(e)
		if l.Items[at[c.entry]].Entry, err = e.Encode(); err != nil {
			t.Fatal(err)
		}
		_, err = entry.Verify(t.Context(), l, l.Config())
		if p, ok := errors.AsType[*entry.Problem](err); !ok || p.Index != uint64(at[c.entry]) || p.Field != c.field {
			t.Errorf("%s, %s: %v", c.entry, c.field, err)
		}
	}

	// Here what follows fits the lie, so that it is found where it meets what others signed.
	_, at := story(nil)
	other := entrytest.New("log.example", 99).ID()
	for _, c := range []struct {
		told, entry, field string
		change             func(*entry.Entry)
	}{
		{"open", "open", "grant", func(e *entry.Entry) { e.Grant = other }},
		{"offer", "offer", "from", func(e *entry.Entry) { e.From = "tester" }},
		{"offer", "offer", "to", func(e *entry.Entry) { e.To = "tester" }},
		{"offer", "offer", "grant", func(e *entry.Entry) { e.Grant = other }},
		{"offer", "offer", "session", func(e *entry.Entry) { e.Session = other }},
		{"offer", "offer", "decided.offer", func(e *entry.Entry) { e.Handoff = other }},
		{"offer", "claim", "time", func(e *entry.Entry) { e.Decided.Deadline = 1 }},
		{"offer", "claim", "claimed.payload.exp", func(e *entry.Entry) { e.Decided.Expires-- }},
		{"offer", "claim", "claimed.payload.del_max_depth", func(e *entry.Entry) { e.Decided.MaxDepth = 2 }},
		{"offer", "claim", "claimed.payload.authorization_details", func(e *entry.Entry) { e.Decided.Granted = aat.Tools{} }},
		{"offer", "claim", "handoff", func(e *entry.Entry) {
			e.Decided.Effect, e.Decided.Granted, e.Decided.Decision.Answer = wire.EffectDeny, nil, deny
		}},
		{"claim", "claim", "to", func(e *entry.Entry) { e.To = "tester" }},
		{"claim", "claim", "to", func(e *entry.Entry) { e.From = "tester" }},
		{"claim", "claim", "grant", func(e *entry.Entry) { e.Grant = other }},
		{"claim", "claim", "handoff", func(e *entry.Entry) { e.Handoff = other }},
		{"result", "result", "from", func(e *entry.Entry) { e.From = "writer" }},
		{"result", "result", "grant", func(e *entry.Entry) { e.Grant = other }},
		{"result", "result", "handoff", func(e *entry.Entry) { e.Handoff = other }},
		{"revoke", "revoke", "revoked.grants", func(e *entry.Entry) { e.Grant = other }},
	} {
		l, _ := story(func(e *entry.Entry) {
			if int(e.Index) == at[c.told] {
				c.change(e)
			}
		})
		_, err := entry.Verify(t.Context(), l, l.Config())
		if p, ok := errors.AsType[*entry.Problem](err); !ok || p.Index != uint64(at[c.entry]) || p.Field != c.field {
			t.Errorf("told in %s, %s: %v", c.told, c.field, err)
		}
	}
}

// A key that takes the place of others is one, and somebody made it who may.
func TestVerifyFindsARotationThatIsNone(t *testing.T) {
	for field, change := range map[string]func(*entry.Rotated){
		"":              func(*entry.Rotated) {},
		"rotated.of":    func(r *entry.Rotated) { r.Of = "logs" },
		"rotated.jwk":   func(r *entry.Rotated) { r.JWK.X = strings.Repeat("A", 43) },
		"rotated.until": func(r *entry.Rotated) { r.Until = r.From - 1 },
		"rotated.by":    func(r *entry.Rotated) { r.By = "" },
	} {
		l := entrytest.New("log.example", 5)
		l.Rotate(entry.OfGovernor)
		l.Tamper = func(e *entry.Entry) { l.Tamper = nil; change(e.Rotated) }
		l.Rotate(entry.OfIssuer)
		_, err := entry.Verify(t.Context(), l, l.Config())
		if field == "" && err != nil {
			t.Error(err)
		}
		if p, ok := errors.AsType[*entry.Problem](err); field != "" && (!ok || p.Index != 2 || p.Field != field) {
			t.Errorf("%s: %v", field, err)
		}
	}
	l := entrytest.New("log.example", 5)
	by := l.Operator
	l.Operator = "dave"
	l.Withdraw(by)
	l.Operator = by
	l.Rotate(entry.OfGovernor)
	_, err := entry.Verify(t.Context(), l, l.Config())
	if p, ok := errors.AsType[*entry.Problem](err); !ok || p.Field != "rotated.by" {
		t.Errorf("by somebody who was withdrawn: %v", err)
	}
}

// Whoever is withdrawn has nothing left by then, and does nothing until it is restored; and operators tell who they are.
func TestVerifyFindsWhatAWithdrawnIdentityDid(t *testing.T) {
	tools := aat.Tools{"read": entrytest.Tools["read"]}
	revoked := func(l *entrytest.Log, about string) {
		l.Tamper = func(e *entry.Entry) { // the revocation is of another handoff
			if e.Kind == entry.KindRevoked && e.Handoff == about {
				l.Tamper, e.Kind, e.Revoked = nil, entry.KindQuarantined, nil
				e.Session, e.Handoff, e.Grant, e.From, e.To = "", "", "", "", ""
				e.Quarantined = &entry.Quarantined{Agent: "coder", Code: wire.CodeMalformed, Count: 1}
			}
		}
	}
	identity := func(l *entrytest.Log, change func(*entry.Identity)) {
		l.Tamper = func(e *entry.Entry) { l.Tamper = nil; change(e.Identity) }
	}
	by := func(l *entrytest.Log, write func()) {
		l.Operator = "dave"
		l.Withdraw("carol")
		l.Operator = "carol"
		l.Tamper = func(e *entry.Entry) {
			l.Tamper = nil
			switch {
			case e.Closed != nil:
				e.Closed.By = "carol"
			case e.Bundle != nil:
				e.Bundle.By = "carol"
			case e.Approved != nil:
				e.Approved.By = "carol"
			}
		}
		write()
	}
	for name, c := range map[string]struct {
		field string // "": nothing is wrong
		tell  func(*entrytest.Log)
	}{
		"the truth": {"", func(l *entrytest.Log) {
			root, own := l.Open("planner", tools), l.Open("coder", tools)
			ofCoder := root.Offer("coder", wire.ModeDelegate, wire.EffectAllow, tools).Claim(nil)
			ofCoder.Offer("tester", wire.ModeTransfer, wire.EffectAllow, tools).Claim(nil)
			root.Offer("coder", wire.ModeDelegate, wire.EffectAllow, tools)
			own.Offer("tester", wire.ModeDelegate, wire.EffectAllow, tools).Claim(nil)
			l.Withdraw("coder")
			root.Offer("coder", wire.ModeDelegate, wire.EffectDeny, tools)
			root.Offer("tester", wire.ModeDelegate, wire.EffectAllow, tools).Claim(nil).Answer(wire.StatusCompleted)
			l.Restore("coder")
			l.Open("coder", tools)
			root.Offer("coder", wire.ModeDelegate, wire.EffectAllow, tools).Claim(nil).Answer(wire.StatusCompleted)
			l.Withdraw("coder")
		}},
		"it keeps a session": {"identity.name", func(l *entrytest.Log) {
			l.Open("coder", tools)
			l.Tamper = func(e *entry.Entry) {
				if e.Closed != nil {
					l.Tamper, e.Kind, e.Closed = nil, entry.KindQuarantined, nil
					e.Session, e.Grant, e.From = "", "", ""
					e.Quarantined = &entry.Quarantined{Agent: "coder", Code: wire.CodeMalformed, Count: 1}
				}
			}
			l.Withdraw("coder")
		}},
		"it keeps a grant": {"identity.name", func(l *entrytest.Log) {
			h := l.Open("planner", tools).Offer("coder", wire.ModeDelegate, wire.EffectAllow, tools)
			h.Claim(nil)
			revoked(l, h.ID)
			l.Withdraw("coder")
		}},
		"it keeps what it has transferred": {"identity.name", func(l *entrytest.Log) {
			h := l.Open("planner", tools).Offer("coder", wire.ModeDelegate, wire.EffectAllow, tools)
			h.Claim(nil).Offer("tester", wire.ModeTransfer, wire.EffectAllow, tools).Claim(nil)
			revoked(l, h.ID)
			l.Withdraw("coder")
		}},
		"it keeps what waits for it": {"identity.name", func(l *entrytest.Log) {
			h := l.Open("planner", tools).Offer("coder", wire.ModeDelegate, wire.EffectAllow, tools)
			revoked(l, h.ID)
			l.Withdraw("coder")
		}},
		"it keeps what is held for it": {"identity.name", func(l *entrytest.Log) {
			l.Open("planner", tools).Offer("coder", wire.ModeDelegate, wire.EffectHold, tools)
			l.Withdraw("coder")
		}},
		"it opens a session": {"opened.opener", func(l *entrytest.Log) {
			l.Withdraw("coder")
			l.Open("coder", tools)
		}},
		"it is handed a task": {"to", func(l *entrytest.Log) {
			root := l.Open("planner", tools)
			l.Withdraw("coder")
			root.Offer("coder", wire.ModeDelegate, wire.EffectAllow, tools)
		}},
		"a task is held for it": {"to", func(l *entrytest.Log) {
			root := l.Open("planner", tools)
			l.Withdraw("coder")
			root.Offer("coder", wire.ModeDelegate, wire.EffectHold, tools)
		}},
		"it claims what waited": {"handoff", func(l *entrytest.Log) {
			h := l.Open("planner", tools).Offer("coder", wire.ModeDelegate, wire.EffectAllow, tools)
			l.Withdraw("coder")
			h.Claim(nil)
		}},
		"restored, it claims what waited": {"handoff", func(l *entrytest.Log) {
			h := l.Open("planner", tools).Offer("coder", wire.ModeDelegate, wire.EffectAllow, tools)
			l.Withdraw("coder")
			l.Restore("coder")
			h.Claim(nil)
		}},
		"restored, it takes over what it had": {"handoff", func(l *entrytest.Log) {
			h := l.Open("planner", tools).Offer("coder", wire.ModeDelegate, wire.EffectAllow, tools)
			had := h.Claim(nil)
			l.Withdraw("coder")
			l.Restore("coder")
			h.Claim(had)
		}},
		"it answers": {"handoff", func(l *entrytest.Log) {
			g := l.Open("planner", tools).Offer("coder", wire.ModeDelegate, wire.EffectAllow, tools).Claim(nil)
			l.Withdraw("coder")
			g.Answer(wire.StatusCompleted)
		}},
		"it hands on": {"grant", func(l *entrytest.Log) {
			g := l.Open("planner", tools).Offer("coder", wire.ModeDelegate, wire.EffectAllow, tools).Claim(nil)
			l.Withdraw("coder")
			g.Offer("tester", wire.ModeDelegate, wire.EffectAllow, tools)
		}},
		"it is withdrawn twice":  {"identity.effect", func(l *entrytest.Log) { l.Withdraw("coder"); l.Withdraw("coder") }},
		"it is restored twice":   {"identity.effect", func(l *entrytest.Log) { l.Withdraw("coder"); l.Restore("coder"); l.Restore("coder") }},
		"it was never withdrawn": {"identity.effect", func(l *entrytest.Log) { l.Restore("coder") }},
		"it withdraws itself":    {"identity.by", func(l *entrytest.Log) { l.Withdraw("carol") }},
		"it restores itself": {"identity.by", func(l *entrytest.Log) {
			l.Withdraw("coder")
			identity(l, func(i *entry.Identity) { i.By = "coder" })
			l.Restore("coder")
		}},
		"nobody does it": {"identity.by", func(l *entrytest.Log) {
			identity(l, func(i *entry.Identity) { i.By = "" })
			l.Withdraw("coder")
		}},
		"nobody is meant": {"identity.name", func(l *entrytest.Log) {
			identity(l, func(i *entry.Identity) { i.Name = "" })
			l.Withdraw("coder")
		}},
		"something else happens to it": {"identity.effect", func(l *entrytest.Log) {
			identity(l, func(i *entry.Identity) { i.Effect = "forgotten" })
			l.Withdraw("coder")
		}},
	} {
		l := entrytest.New("log.example", 16)
		c.tell(l)
		checkTold(t, name, l, c.field)
	}

	// An operator that was withdrawn does nothing, either.
	for field, write := range map[string]func(*entrytest.Log){
		"closed.by": func(l *entrytest.Log) { g := l.Open("planner", tools); by(l, g.Close) },
		"bundle.by": func(l *entrytest.Log) { by(l, func() { l.Activate("sha256:second") }) },
		"approved.by": func(l *entrytest.Log) {
			h := l.Open("planner", tools).Offer("coder", wire.ModeDelegate, wire.EffectHold, tools)
			by(l, h.Approve)
		},
		"revoked.by": func(l *entrytest.Log) {
			g := l.Open("planner", tools).Offer("coder", wire.ModeDelegate, wire.EffectAllow, tools).Claim(nil)
			by(l, g.Revoke)
		},
		"identity.by": func(l *entrytest.Log) { by(l, func() { l.Withdraw("coder") }) },
	} {
		l := entrytest.New("log.example", 17)
		write(l)
		checkTold(t, "an operator that is withdrawn", l, field)
	}
}

// checkTold checks that the newest entry of a log is the one that is wrong, or that none is.
func checkTold(t *testing.T, name string, l *entrytest.Log, field string) {
	t.Helper()
	_, err := entry.Verify(t.Context(), l, l.Config())
	p, ok := errors.AsType[*entry.Problem](err)
	switch {
	case field == "" && err != nil:
		t.Errorf("%s: %v", name, err)
	case field != "" && (!ok || p.Field != field || p.Index != uint64(len(l.Items)-1)):
		t.Errorf("%s: %v, want a problem with %s of entry %d", name, err, field, len(l.Items)-1)
	}
}

const hash = "47DEQpj8HBSa-_TImW-5JCeuQeRkm5NMpJWZG3hSuFU"

var deny = jsontext.Value(`{"effect":"deny"}`)

// forge changes a token's signature.
func forge(token string) string {
	b := []byte(token)
	at := len(b) - 10
	b[at] = map[bool]byte{true: 'A', false: 'B'}[b[at] == 'B']
	return string(b)
}

func replace(e *entry.Entry, old, new string) {
	if !bytes.Contains(e.Claimed.Payload, []byte(old)) {
		panic(fmt.Sprintf("%s is not in %s", old, e.Claimed.Payload))
	}
	e.Claimed.Payload = bytes.Replace(e.Claimed.Payload, []byte(old), []byte(new), 1)
}

// Acts that come at the wrong time: each is as the governor would write it, but for its place.
func TestVerifyFindsActsOutOfPlace(t *testing.T) {
	tools := aat.Tools{"read": entrytest.Tools["read"]}
	for name, act := range map[string]func(l *entrytest.Log, root *entrytest.Grant){
		"an offer after the session was closed": func(_ *entrytest.Log, root *entrytest.Grant) {
			root.Close()
			root.Offer("coder", wire.ModeDelegate, wire.EffectAllow, tools)
		},
		"a claim after the session was closed": func(_ *entrytest.Log, root *entrytest.Grant) {
			h := root.Offer("coder", wire.ModeDelegate, wire.EffectAllow, tools)
			root.Close()
			h.Claim(nil)
		},
		"a second closing": func(_ *entrytest.Log, root *entrytest.Grant) { root.Close(); root.Close() },
		"a claim of what is held": func(_ *entrytest.Log, root *entrytest.Grant) {
			root.Offer("coder", wire.ModeDelegate, wire.EffectHold, tools).Claim(nil)
		},
		"a claim of what was denied": func(_ *entrytest.Log, root *entrytest.Grant) {
			root.Offer("coder", wire.ModeDelegate, wire.EffectDeny, tools).Claim(nil)
		},
		"two live grants": func(_ *entrytest.Log, root *entrytest.Grant) {
			h := root.Offer("coder", wire.ModeDelegate, wire.EffectAllow, tools)
			h.Claim(nil)
			h.Claim(nil)
		},
		"a result beside one that is held": func(l *entrytest.Log, root *entrytest.Grant) {
			g := root.Offer("coder", wire.ModeDelegate, wire.EffectAllow, tools).Claim(nil)
			l.Tamper = func(e *entry.Entry) {
				e.Result.Effect, e.Result.Decision.Answer = wire.EffectHold, jsontext.Value(`{"effect":"hold"}`)
			}
			g.Answer(wire.StatusCompleted)
			g.Answer(wire.StatusFailed)
		},
		"a result of something else": func(_ *entrytest.Log, root *entrytest.Grant) {
			root.Offer("coder", wire.ModeDelegate, wire.EffectAllow, tools).Claim(nil).AnswerAs(root.ID, wire.StatusCompleted)
		},
		"two results": func(_ *entrytest.Log, root *entrytest.Grant) {
			g := root.Offer("coder", wire.ModeDelegate, wire.EffectAllow, tools).Claim(nil)
			g.Answer(wire.StatusCompleted)
			g.Answer(wire.StatusFailed)
		},
		"a result of a superseded grant": func(_ *entrytest.Log, root *entrytest.Grant) {
			h := root.Offer("coder", wire.ModeDelegate, wire.EffectAllow, tools)
			g := h.Claim(nil)
			h.Claim(g)
			g.Answer(wire.StatusCompleted)
		},
		"an offer under a superseded grant": func(_ *entrytest.Log, root *entrytest.Grant) {
			h := root.Offer("coder", wire.ModeDelegate, wire.EffectAllow, tools)
			g := h.Claim(nil)
			h.Claim(g)
			g.Offer("tester", wire.ModeDelegate, wire.EffectAllow, tools)
		},
		"an offer after the result": func(_ *entrytest.Log, root *entrytest.Grant) {
			g := root.Offer("coder", wire.ModeDelegate, wire.EffectAllow, tools).Claim(nil)
			g.Answer(wire.StatusCompleted)
			g.Offer("tester", wire.ModeDelegate, wire.EffectAllow, tools)
		},
		"an offer after the transfer": func(_ *entrytest.Log, root *entrytest.Grant) {
			root.Offer("coder", wire.ModeTransfer, wire.EffectAllow, tools).Claim(nil)
			root.Offer("tester", wire.ModeDelegate, wire.EffectAllow, tools)
		},
		"a transfer with open delegations": func(_ *entrytest.Log, root *entrytest.Grant) {
			root.Offer("coder", wire.ModeDelegate, wire.EffectAllow, tools)
			root.Offer("tester", wire.ModeTransfer, wire.EffectAllow, tools)
		},
		"a claim below what was revoked": func(_ *entrytest.Log, root *entrytest.Grant) {
			g := root.Offer("coder", wire.ModeDelegate, wire.EffectAllow, tools).Claim(nil)
			h := g.Offer("tester", wire.ModeDelegate, wire.EffectAllow, tools)
			g.Revoke()
			h.Claim(nil)
		},
		"a claim below a task that was answered": func(_ *entrytest.Log, root *entrytest.Grant) {
			g := root.Offer("coder", wire.ModeDelegate, wire.EffectAllow, tools).Claim(nil)
			h := g.Offer("tester", wire.ModeDelegate, wire.EffectAllow, tools)
			g.Answer(wire.StatusCompleted)
			h.Claim(nil)
		},
		"a decision under an older bundle": func(l *entrytest.Log, root *entrytest.Grant) {
			l.Activate("sha256:second")
			l.Write(&entry.Entry{Kind: entry.KindBundle, Bundle: &entry.Bundle{Digest: "sha256:third", By: "x", Size: 1}},
				entrytest.Item{})
			root.Offer("coder", wire.ModeDelegate, wire.EffectAllow, tools)
		},
		"more than the budget": func(l *entrytest.Log, _ *entrytest.Grant) {
			root := l.Open("planner", tools)
			last := &l.Items[len(l.Items)-1]
			e, err := entry.Decode(last.Entry)
			if err != nil {
				panic(err)
			}
			e.Opened.Budget = &wire.Budget{Handoffs: 1}
			if last.Entry, err = e.Encode(); err != nil {
				panic(err)
			}
			root.Offer("coder", wire.ModeDelegate, wire.EffectAllow, tools)
			root.Offer("coder", wire.ModeDelegate, wire.EffectAllow, tools)
		},
	} {
		l := entrytest.New("log.example", 16)
		act(l, l.Open("planner", entrytest.Tools, "internal"))
		_, err := entry.Verify(t.Context(), l, l.Config())
		if p, ok := errors.AsType[*entry.Problem](err); !ok || p.Index != uint64(len(l.Items)-1) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
