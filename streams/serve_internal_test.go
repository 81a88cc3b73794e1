package streams

import (
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/handoff-governor/handoff-governor/handoff/wire"
)

// Turns against a model: every request accepted is served once and in its sender's order, bounds hold, and no sender
// that may run is passed over twice by the same other.
func TestTurns(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		perSender, limit := rapid.IntRange(1, 3).Draw(t, "perSender"), rapid.IntRange(1, 4).Draw(t, "limit")
		turns := newTurns(perSender, limit)
		waiting := map[string][]string{} // :: sender → bodies
		running := map[string]int{}
		since := map[string][]string{} // :: sender that may run → who was served since
		var dones []func()
		var doneOf []string
		mayRun := func(s string) bool { return len(waiting[s]) > 0 && running[s] < perSender }
		update := func() {
			for _, s := range []string{"a", "b", "c"} {
				if !mayRun(s) {
					delete(since, s)
				} else if since[s] == nil {
					since[s] = []string{}
				}
			}
		}
		next := 0
		t.Repeat(map[string]func(*rapid.T){
			"add": func(t *rapid.T) {
				s := rapid.SampledFrom([]string{"a", "b", "c"}).Draw(t, "sender")
				body := strings.Repeat("x", next)
				next++
				if ok := turns.add(wire.Request{Sender: s, Body: []byte(body)}); ok != (len(waiting[s]) < limit) {
					t.Fatalf("add with %d waiting of %d: %t", len(waiting[s]), limit, ok)
				} else if ok {
					waiting[s] = append(waiting[s], body)
				}
				update()
			},
			"next": func(t *rapid.T) {
				if !mayRun("a") && !mayRun("b") && !mayRun("c") {
					t.Skip("it would wait")
				}
				req, done := turns.next()
				s := req.Sender
				if !mayRun(s) || waiting[s][0] != string(req.Body) {
					t.Fatalf("served %s out of order or beyond its bound", s)
				}
				waiting[s] = waiting[s][1:]
				running[s]++
				dones, doneOf = append(dones, done), append(doneOf, s)
				delete(since, s)
				for other, served := range since {
					if slices.Contains(served, s) {
						t.Fatalf("%s was passed over twice by %s", other, s)
					}
					since[other] = append(served, s)
				}
				update()
			},
			"done": func(t *rapid.T) {
				if len(dones) == 0 {
					t.Skip("nothing runs")
				}
				i := rapid.IntRange(0, len(dones)-1).Draw(t, "which")
				dones[i]()
				running[doneOf[i]]--
				dones, doneOf = slices.Delete(dones, i, i+1), slices.Delete(doneOf, i, i+1)
				update()
			},
		})
		for len(dones) > 0 || mayRun("a") || mayRun("b") || mayRun("c") {
			for _, done := range dones {
				done()
			}
			clear(running)
			dones = nil
			if mayRun("a") || mayRun("b") || mayRun("c") {
				req, done := turns.next()
				waiting[req.Sender] = waiting[req.Sender][1:]
				dones = append(dones, done)
			}
		}
		if turns.bytes != 0 || len(turns.senders) != 0 || len(turns.ready) != 0 {
			t.Fatalf("left over: %d bytes, %d senders, %d ready", turns.bytes, len(turns.senders), len(turns.ready))
		}
	})
}

func FuzzParseSubjects(f *testing.F) {
	for _, s := range []string{"in.a.offer.s.b", "in.a.result.s", "call.a.claim.s", "call.a.operator.session.list", "call.a.keys",
		"in.a.offer.s", "in.a.result.s.t", "call.", "call.a", "in....", ""} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, subject string) {
		if in, err := parseIngress(subject); err == nil {
			if strings.Split(subject, ".")[1] != in.Sender {
				t.Errorf("%q: sender %q", subject, in.Sender)
			}
			if again, err := parseIngress(ingressSubject(in)); in.Kind == wire.InboundOffer && in.To == "" {
				// An empty token, which the server never stores.
			} else if err != nil || again.Sender != in.Sender || again.To != in.To || again.Session != in.Session {
				t.Errorf("%q → %q → %+v, %v", subject, ingressSubject(in), again, err)
			}
		}
		if req, err := parseCall(subject); err == nil {
			if strings.Split(subject, ".")[1] != req.Sender {
				t.Errorf("%q: sender %q", subject, req.Sender)
			}
		}
	})
}

func FuzzOneLine(f *testing.F) {
	f.Add("bad\r\nHandoff-From: mallory")
	f.Add(strings.Repeat("\x8f", quarantineReason))
	f.Fuzz(func(t *testing.T, s string) {
		if line := oneLine(s); strings.ContainsAny(line, "\r\n\x00\x7f") || len(line) > quarantineReason {
			t.Errorf("%q became %q", s, line)
		}
	})
}

func TestCheckName(t *testing.T) {
	for _, name := range []string{"a", "acme=dexample=sagent=splanner", strings.Repeat("x", maxName)} {
		if err := checkName(name); err != nil {
			t.Error(err)
		}
	}
	for _, name := range []string{"", "a.b", "*", ">", "a b", "a/b", "..", "a\n", "é", strings.Repeat("x", maxName+1)} {
		if checkName(name) == nil {
			t.Errorf("%q passed", name)
		}
	}
}
