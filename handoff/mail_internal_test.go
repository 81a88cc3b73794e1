package handoff

import (
	"bytes"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/handoff-governor/handoff-governor/handoff/wire"
)

// message is one of JetStream's that tells how it was settled.
type message struct {
	jetstream.Msg
	header  nats.Header
	body    []byte
	settled string
}

func (m *message) Headers() nats.Header { return m.header }
func (m *message) Data() []byte         { return m.body }

func (m *message) Metadata() (*jetstream.MsgMetadata, error) {
	return &jetstream.MsgMetadata{NumDelivered: 3}, nil
}

func (m *message) Ack() error { m.settled = "ack"; return nil }
func (m *message) Nak() error { m.settled = "nak"; return nil }

func verdictAt(t *testing.T, body, entry string) *inboxMessage {
	return inboxOf(t, wire.KindVerdict, "", entry, body)
}

func resultAt(t *testing.T, id, entry, b string) *inboxMessage {
	return inboxOf(t, wire.KindResult, id, entry, b)
}

func (in *inboxMessage) settled() string { return in.delivery.(*message).settled }

func known(e *exchange) (v *wire.Verdict, r *Result) {
	e.look(func() { v, r = e.verdict, e.result })
	return v, r
}

func freshID(t *testing.T) string {
	id, err := newID()
	fatal(t, err)
	return id
}

func fatal(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func inboxOf(t *testing.T, kind, id, entry, body string) *inboxMessage {
	t.Helper()
	m := &message{header: nats.Header{wire.HeaderKind: {kind}, wire.HeaderSession: {"s"}}, body: []byte(body)}
	if id != "" {
		m.header[wire.HeaderID] = []string{id}
	}
	if entry != "" {
		m.header[wire.HeaderEntry] = []string{entry}
	}
	in, err := parseInbox(m)
	fatal(t, err)
	return in
}

// want fails unless deliver answers so. A delay of -1 is any.
func want(t *testing.T, m *mail, in *inboxMessage, ack bool, delay time.Duration) {
	t.Helper()
	a, d := m.deliver(in, time.Now())
	if a != ack || d != delay && (delay != -1 || d <= 0) {
		t.Errorf("ack %t, delay %s", a, d)
	}
}

// A verdict on a result is about that result alone.
func TestVerdictOnAResult(t *testing.T) {
	m := newMail()
	id, first, second := freshID(t), newExchange(freshID(t)), newExchange(freshID(t))
	offer := newExchange(id)
	defer m.open(offer)()
	m.open(first)()
	defer m.open(second)()

	want(t, m, verdictAt(t, `{"id":"`+id+`","result":"`+first.id+`","effect":"deny","entry":7}`, "7"), false, 0) // kept
	for _, e := range []*exchange{offer, second} {
		if v, _ := known(e); v != nil {
			t.Errorf("%s was told of another's: %+v", e.id, v)
		}
	}
	want(t, m, verdictAt(t, `{"id":"`+id+`","result":"`+second.id+`","effect":"hold","entry":8}`, "8"), true, 0)
	if v, _ := known(second); v == nil || v.Effect != wire.EffectHold {
		t.Errorf("the result's verdict is %+v", v)
	}
	want(t, m, verdictAt(t, `{"id":"`+id+`","effect":"allow","entry":6}`, "6"), true, 0)
	if v, _ := known(offer); v == nil || v.Effect != wire.EffectAllow {
		t.Errorf("the offer's verdict is %+v", v)
	}
	m.open(first)
	if v, _ := known(first); v == nil || v.Effect != wire.EffectDeny {
		t.Errorf("the first result's verdict is %+v", v)
	}
}

// The ledger's newest word counts.
func TestNewestVerdict(t *testing.T) {
	id := freshID(t)
	verdict := func(effect, entry string) *inboxMessage {
		if entry == "" {
			return verdictAt(t, `{"id":"`+id+`","effect":"`+effect+`"}`, "")
		}
		return verdictAt(t, `{"id":"`+id+`","effect":"`+effect+`","entry":`+entry+`}`, entry)
	}
	for _, open := range []bool{true, false} { // as they come, or kept
		m, e := newMail(), newExchange(id)
		m.made.add(id)
		if open {
			m.open(e)
		}
		for _, step := range []struct{ effect, entry, now string }{
			{"deny", "", "deny"}, {"hold", "5", "hold"}, {"allow", "9", "allow"}, {"hold", "5", "allow"}, {"deny", "", "allow"},
			{"deny", "12", "deny"},
		} {
			m.deliver(verdict(step.effect, step.entry), time.Now())
			if open {
				if v, _ := known(e); v.Effect != step.now {
					t.Errorf("after %s at %q: %s, want %s", step.effect, step.entry, v.Effect, step.now)
				}
			}
		}
		m.open(e)
		if v, _ := known(e); v.Effect != "deny" || *v.Entry != 12 {
			t.Errorf("open %t: at the end it is %+v", open, v)
		}
	}
}

// What nobody waits for is kept for whoever will, and leaves the inbox only then.
func TestKeptAnswers(t *testing.T) {
	m := newMail()
	e := newExchange(freshID(t))
	m.open(e)()
	result, again := resultAt(t, e.id, "4", "done"), resultAt(t, e.id, "4", "done")
	verdict := verdictAt(t, `{"id":"`+e.id+`","effect":"allow","entry":3}`, "3")
	want(t, m, result, false, 0)
	want(t, m, again, false, 0) // delivered again: this one can be settled
	want(t, m, verdict, false, 0)
	if m.order.Len() != 2 || m.bytes != len("done")+len(verdict.Data()) {
		t.Errorf("%d answers of %d bytes are kept", m.order.Len(), m.bytes)
	}
	done := m.open(e)
	if v, r := known(e); v == nil || r == nil || string(r.Body) != "done" || r.Entry != 4 {
		t.Errorf("got %+v, %+v", v, r)
	}
	if result.settled() != "" || again.settled() != "ack" || verdict.settled() != "ack" || m.order.Len() != 0 || m.bytes != 0 {
		t.Errorf("settled %q %q %q, kept %d of %d bytes", result.settled(), again.settled(), verdict.settled(), m.order.Len(), m.bytes)
	}
	done()
	want(t, m, resultAt(t, e.id, "4", "done"), true, 0)          // the acknowledgement was lost
	want(t, m, resultAt(t, freshID(t), "5", "other"), false, -1) // of another process
	want(t, m, resultAt(t, "01900000-0000-7000-8000-000000000000", "6", "old"), true, 0)
	want(t, m, verdictAt(t, `{"effect":"deny"}`, ""), true, 0) // about nothing that can be waited for

	late := resultAt(t, e.id, "7", "late")
	want(t, m, late, false, 0)
	m.close()
	if late.settled() != "nak" || m.order.Len() != 0 {
		t.Errorf("closing settled %q", late.settled())
	}
	want(t, m, resultAt(t, e.id, "8", "later"), false, firstNak)
}

func TestKeptAnswersAreBounded(t *testing.T) {
	for name, body := range map[string]string{"many": "", "large": string(bytes.Repeat([]byte("x"), 1<<20))} {
		m := newMail()
		kept := 0
		for range maxHeld + 1 {
			e := newExchange(freshID(t))
			m.open(e)()
			if _, delay := m.deliver(resultAt(t, e.id, "1", body), time.Now()); delay == 0 {
				kept++
			} else if delay != lastNak {
				t.Errorf("%s: goes back for %s", name, delay)
			}
		}
		if most := map[string]int{"many": maxHeld, "large": maxHeldBytes >> 20}[name]; kept != most {
			t.Errorf("%s: %d are kept, want %d", name, kept, most)
		}
	}
}

func TestRecentForgetsTheOldest(t *testing.T) {
	r := newRecent(3)
	for _, s := range []string{"a", "b", "b", "c", "d"} {
		r.add(s)
	}
	if r.has("a") || !r.has("b") || !r.has("c") || !r.has("d") || len(r.set) != 3 {
		t.Errorf("it has %v", r.set)
	}
}
