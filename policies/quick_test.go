package policies

import (
	"context"
	"testing"
)

const quick = `{"approvals":[],"chain":[],"content_type":"text/plain","depth":0,"facts":{"budget_ok":true,"deadline_ok":true,"hops_left":3},"labels":[],"max_hops":4,"mode":"delegate","opener":{"id":"spiffe://handoff.local/agent/a","name":"a","path":"/agent/a","trust_domain":"handoff.local"},"principal":{"kind":"human","name":"alice"},"receiver":{"id":"spiffe://handoff.local/agent/b","name":"b","path":"/agent/b","trust_domain":"handoff.local"},"sender":{"id":"spiffe://handoff.local/agent/a","name":"a","path":"/agent/a","trust_domain":"handoff.local"},"stage":"offer","tools":{"read":{}}}`

func TestQuick(t *testing.T) {
	s, err := Compile(Default(), Config{})
	if err != nil {
		t.Fatal(err)
	}
	out, err := s.Evaluate(context.Background(), "decision", []byte(quick))
	t.Log(string(out), err)
}

func BenchmarkQuick(b *testing.B) {
	s, err := Compile(Default(), Config{})
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := s.Evaluate(context.Background(), "decision", []byte(quick)); err != nil {
			b.Fatal(err)
		}
	}
}
