package entry_test

import (
	"bytes"
	"strings"
	"testing"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/handoff-governor/handoff-governor/handoff/entry"
	"github.com/handoff-governor/handoff-governor/handoff/entry/entrytest"
	"github.com/handoff-governor/handoff-governor/handoff/wire"
)

// samples are entries of every kind that a random log has.
func samples(t testing.TB) map[entry.Kind][]byte {
	t.Helper()
	out := map[entry.Kind][]byte{}
	l := entrytest.New("log.example", 7)
	l.Random(400)
	for _, item := range l.Items {
		e, err := entry.Decode(item.Entry)
		if err != nil {
			t.Fatal(err)
		}
		if out[e.Kind] == nil {
			out[e.Kind] = item.Entry
		}
	}
	return out
}

func TestEncodeIsCanonical(t *testing.T) {
	kinds := samples(t)
	if len(kinds) < 8 {
		t.Errorf("only %d kinds of entries were tried", len(kinds))
	}
	for kind, encoded := range kinds {
		again := jsontext.Value(bytes.Clone(encoded))
		if err := again.Canonicalize(); err != nil || !bytes.Equal(again, encoded) {
			t.Errorf("%s: not canonical: %s (%v)", kind, encoded, err)
		}
	}
}

func TestEncodeRefuses(t *testing.T) {
	ok := func() *entry.Entry {
		return &entry.Entry{
			Version: entry.Version, Log: "l", Kind: entry.KindClosed, Session: "s", Closed: &entry.Closed{By: "a", Reason: "r"},
		}
	}
	if _, err := ok().Encode(); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*entry.Entry){
		"version":            func(e *entry.Entry) { e.Version = 2 },
		"log":                func(e *entry.Entry) { e.Log = "" },
		"index":              func(e *entry.Entry) { e.Index = 1 << 53 },
		"time":               func(e *entry.Entry) { e.Time = -1 },
		"kind":               func(e *entry.Entry) { e.Kind = "other" },
		"another's member":   func(e *entry.Entry) { e.Kind = entry.KindBundle },
		"no member":          func(e *entry.Entry) { e.Closed = nil },
		"no payload":         func(e *entry.Entry) { e.Kind, e.Closed, e.Claimed = entry.KindClaimed, nil, &entry.Claimed{} },
		"two members":        func(e *entry.Entry) { e.Bundle = &entry.Bundle{} },
		"size":               func(e *entry.Entry) { e.Closed.Reason = strings.Repeat("x", entry.MaxSize) },
		"text":               func(e *entry.Entry) { e.Closed.Reason = "\xff" },
		"input is not JSON":  func(e *entry.Entry) { withInput(e, `{`) },
		"input has it twice": func(e *entry.Entry) { withInput(e, `{"a":1,"a":2}`) },
	} {
		e := ok()
		change(e)
		if _, err := e.Encode(); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func withInput(e *entry.Entry, input string) {
	e.Kind, e.Closed = entry.KindRejudged, nil
	e.Rejudged = &entry.Rejudged{Decision: entry.Decision{Input: jsontext.Value(input)}}
}

// What was decided about is kept as it was, or refused: a number that JSON readers disagree on is neither.
func TestEncodeKeepsInputs(t *testing.T) {
	for input, same := range map[string]bool{
		`{"a":1,"b":[true,null,"x"]}`: true, `{"b":1,"a":1}`: false, `{"a": 1}`: false, `{"a":1.0}`: false,
		`{"a":9007199254740993}`: false, `{"a":1e400}`: false, `{"a":"\u0061"}`: false,
	} {
		e := &entry.Entry{Version: 1, Log: "l"}
		withInput(e, input)
		encoded, err := e.Encode()
		kept := err == nil && bytes.Contains(encoded, []byte(`"input":`+input))
		if same != kept {
			t.Errorf("%s: %s %v", input, encoded, err)
		}
		if !same && err == nil {
			t.Errorf("%s was changed without an error: %s", input, encoded)
		}
	}
}

func FuzzDecode(f *testing.F) {
	for _, encoded := range samples(f) {
		f.Add(encoded)
	}
	f.Add([]byte(`{}`))
	f.Add([]byte(`{"closed":{"by":"a","reason":"r"},"index":0,"kind":"session_closed","log":"l","prev":{},"time":0,"v":1}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		e, err := entry.Decode(b)
		if err != nil {
			return
		}
		again, err := e.Encode()
		if err != nil || !bytes.Equal(again, b) {
			t.Fatalf("decoded %s, encodes to %s (%v)", b, again, err)
		}
	})
}

// big is an entry of about 2 KiB, a decided offer.
func big(b *testing.B) *entry.Entry {
	e, err := entry.Decode(samples(b)[entry.KindDecided])
	if err != nil {
		b.Fatal(err)
	}
	e.Decided.Decision.Input = jsontext.Value(`{"a":{"b":[1,2,3]},"agents":["` + strings.Repeat("x", 300) + `"]}`)
	e.Decided.Reasons = []wire.Reason{{Code: wire.CodePolicyDenied, Message: "the receiver's zone is not cleared"}}
	return e
}

func BenchmarkEncode(b *testing.B) {
	e := big(b)
	encoded, err := e.Encode()
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	b.SetBytes(int64(len(encoded)))
	for b.Loop() {
		if _, err := e.Encode(); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkDecode(b *testing.B) {
	encoded, err := big(b).Encode()
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	b.SetBytes(int64(len(encoded)))
	for b.Loop() {
		if _, err := entry.Decode(encoded); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkVerify(b *testing.B) {
	l := entrytest.New("log.example", 3)
	l.Random(2000)
	b.ResetTimer()
	for b.Loop() {
		if _, err := entry.Verify(b.Context(), l, l.Config()); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Microseconds())/float64(b.N)/2000, "µs/entry")
}
