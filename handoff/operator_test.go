package handoff_test

import (
	"bytes"
	"errors"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/handoff-governor/handoff-governor/handoff"
	"github.com/handoff-governor/handoff-governor/handoff/entry"
	"github.com/handoff-governor/handoff-governor/handoff/wire"
	"github.com/handoff-governor/handoff-governor/policies"
)

func operator(t *testing.T, w *world, path string) (*handoff.Operator, error) {
	t.Helper()
	source, err := w.d.Source(path)
	if err != nil {
		t.Fatal(err)
	}
	o, err := handoff.ConnectOperator(w.ctx(), handoff.Config{URL: w.d.Endpoint.URL, Source: source, Logger: w.log})
	if err == nil {
		t.Cleanup(func() {
			if err := o.Close(); err != nil {
				t.Errorf("closing the operator: %v", err)
			}
		})
	}
	return o, err
}

// An operator reads what the agents did, and ends it.
func TestOperator(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	o := must(operator(t, w, "/operator/ops"))(t)
	a, b := w.agent("a"), w.agent("b")
	session := w.session(a)
	sent := must(session.Offer(w.ctx(), "b", []byte("task"), handoff.AwaitVerdict()))(t)
	task := w.receive(b)

	health := must(o.Health(w.ctx()))(t)
	if health.Entries != 4 || health.Sessions != 1 || health.Handoffs != 1 {
		t.Errorf("the health is %+v", health)
	}
	var sessions []wire.SessionStatus
	for s, err := range o.Sessions(w.ctx()) {
		sessions = append(sessions, must(s, err)(t))
	}
	if len(sessions) != 1 || sessions[0].Session != session.Session() || sessions[0].State != "open" {
		t.Errorf("the sessions are %+v", sessions)
	}
	index := uint64(1)
	var decided uint64
	for encoded, err := range o.Entries(w.ctx(), index) {
		e := must(entry.Decode(must(encoded, err)(t)))(t)
		if e.Index != index {
			t.Errorf("entry %d has the index %d", index, e.Index)
		}
		if e.Kind == entry.KindDecided {
			decided = e.Index
		}
		index++
	}
	if index != health.Entries {
		t.Errorf("read up to %d of %d entries", index, health.Entries)
	}
	salt, body, err := o.Body(w.ctx(), decided)
	if err != nil || len(salt) != wire.SaltSize || string(body) != "task" {
		t.Errorf("the body is %q with %d bytes of salt, %v", body, len(salt), err)
	}
	checkpoint := must(entry.OpenCheckpoint(must(o.Checkpoint(w.ctx()))(t), w.d.Endpoint.LogKey))(t)
	if checkpoint.Size != health.Entries {
		t.Errorf("the checkpoint is of %d entries", checkpoint.Size)
	}

	raw := must(o.Bundle(w.ctx(), health.Bundle))(t)
	bundle := must(policies.Parse(raw))(t)
	other := must(bundle.WithData("/limits/grant_ttl", 60))(t)
	if _, err := o.Activate(w.ctx(), []byte("no bundle")); !errors.Is(err, &wire.Error{Code: wire.CodeBundle}) {
		t.Errorf("activating nonsense: %v", err)
	}
	if at := must(o.Activate(w.ctx(), other.Bytes()))(t); at != health.Entries {
		t.Errorf("the activation is entry %d", at)
	}
	if got := must(o.Health(w.ctx()))(t).Bundle; got != other.Digest() {
		t.Errorf("%s is in force", got)
	}

	if _, err := o.Revoke(w.ctx(), sent.ID, ""); !errors.Is(err, &wire.Error{Code: wire.CodeMalformed}) {
		t.Errorf("revoking without a reason: %v", err)
	}
	must(o.Revoke(w.ctx(), sent.ID, "key lost"))(t)
	if _, err := sent.Result(w.ctx()); !errors.Is(err, &wire.Error{Code: wire.CodeRevoked}) {
		t.Errorf("waiting for a revoked task: %v", err)
	}
	if err := task.Complete(w.ctx(), nil); !errors.Is(err, &wire.Error{Code: wire.CodeRevoked}) {
		t.Errorf("completing a revoked task: %v", err)
	}
	if _, _, err := o.Approve(w.ctx(), decided, true); !errors.Is(err, &wire.Error{Code: wire.CodeHandoffUnknown}) {
		t.Errorf("approving what is not held: %v", err)
	}
	if s := must(o.CloseSession(w.ctx(), session.Session(), "over"))(t); s.State != "closed" {
		t.Errorf("the session is %+v", s)
	}
}

// An earlier program's grant is restored with its key, and by no other.
func TestRestore(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	key := must(handoff.LoadKey(t.TempDir() + "/key.pem"))(t)
	withKey := func(c *handoff.Config) { c.Key = key }
	chain := w.session(w.agent("a", withKey)).Chain()

	grant := must(w.agent("a", withKey).Restore(w.ctx(), chain))(t)
	must(grant.Offer(w.ctx(), "b", []byte("task"), handoff.Tools(readFiles("/a")), handoff.AwaitVerdict()))(t)
	for name, other := range map[string]*handoff.Client{"another key": w.agent("a"), "another agent": w.agent("b", withKey)} {
		if _, err := other.Restore(w.ctx(), chain); err == nil {
			t.Errorf("restored with %s", name)
		}
	}

	b := w.agent("b")
	for range 2 { // looking takes nothing away
		list := must(b.Peek(w.ctx(), 10, 10*time.Second))(t)
		if len(list) != 1 || list[0].Kind != wire.KindTask || list[0].Session != grant.Session() {
			t.Errorf("the inbox has %+v", list)
		}
	}
	if task := w.receive(b); !bytes.Equal(task.Body, []byte("task")) {
		t.Errorf("the task is %q", task.Body)
	}
	if list := must(b.Peek(w.ctx(), 10, 0))(t); len(list) != 0 {
		t.Errorf("the inbox still has %+v", list)
	}
}

// A refusal that the ledger has not has no entry in it, not entry 0.
func TestPeekUnrecorded(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	key := must(handoff.LoadKey(t.TempDir() + "/key.pem"))(t)
	withKey := func(c *handoff.Config) { c.Key = key }
	first := w.agent("a", withKey)
	grant := w.session(first)
	h := must(grant.Offer(w.ctx(), "b", []byte("task")))(t)
	first.Close()

	a := w.agent("a", withKey)
	again := must(a.Restore(w.ctx(), grant.Chain()))(t)
	must(again.Offer(w.ctx(), "b", []byte("another task"), handoff.WithID(h.ID), handoff.NoWait()))(t)
	list := must(a.Peek(w.ctx(), 10, 10*time.Second))(t)
	if len(list) != 1 || list[0].Kind != wire.KindVerdict || list[0].Entry != nil {
		t.Errorf("the inbox has %+v", list)
	}
}

// An operator sees all sessions, however many pages they take.
func TestOperatorListsAllSessions(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	o := must(operator(t, w, "/operator/ops"))(t)
	a := w.agent("a")
	want := make([]string, 501)
	var all sync.WaitGroup
	for part := range 3 {
		all.Go(func() {
			for i := part; i < len(want); i += 3 {
				want[i] = w.session(a).Session()
			}
		})
	}
	all.Wait()
	slices.Sort(want)
	slices.Reverse(want)
	var got []string
	for s, err := range o.Sessions(w.ctx()) {
		got = append(got, must(s, err)(t).Session)
	}
	if !slices.Equal(got, want) {
		t.Errorf("%d sessions are listed, want %d, newest first", len(got), len(want))
	}
	for range o.Sessions(w.ctx()) {
		break // asks for no more
	}
}
