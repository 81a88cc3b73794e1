package streams_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/handoff-governor/handoff-governor/handoff/wire"
	"github.com/handoff-governor/handoff-governor/streams"
)

func TestOffersAndResultsCarryTheStampedSender(t *testing.T) {
	t.Parallel()
	inBoth(t, func(t *testing.T, start func(...func(*streams.Config)) *world) {
		w := start()
		a := w.join("agent/a")
		a.offer("s1", "b", "task")
		_, err := a.js.Publish(t.Context(), wire.ResultSubject("s1"), []byte("result"))
		check(t, err)
		in := w.fetch(2)
		if m := in[0]; m.Kind != "offer" || m.Sender != "a" || m.Session != "s1" || m.To != "b" ||
			string(m.Body) != "task" || m.Deliveries != 1 || time.Since(m.Queued).Abs() > time.Minute {
			t.Errorf("offer came as %+v", m)
		}
		if m := in[1]; m.Kind != "result" || m.Sender != "a" || m.Session != "s1" || m.To != "" {
			t.Errorf("result came as %+v", m)
		}
	})
}

func TestHeadersPassAsTheyAre(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	a := w.join("agent/a")
	_, err := a.js.PublishMsg(t.Context(), &nats.Msg{Subject: wire.OfferSubject("s", "b"), Header: nats.Header{
		"Handoff-Token": {"one", "two"}, "handoff-token": {"three"}, "traceparent": {"00-…"},
		"Nats-Request-Info": {`{"acc":"agent-mallory"}`},
	}})
	check(t, err)
	h := w.fetch(1)[0].Header
	if !slices.Equal(h["Handoff-Token"], []string{"one", "two"}) || !slices.Equal(h["handoff-token"], []string{"three"}) {
		t.Errorf("headers came as %v", h)
	}
	if h["Nats-Request-Info"] != nil {
		t.Errorf("the server's own header came through: %v", h)
	}
}

func TestBodySizes(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	a := w.join("agent/a")
	body := bytes.Repeat([]byte{'x'}, wire.MaxBody)
	a.offer("s", "b", string(body))
	if in := w.fetch(1)[0]; !bytes.Equal(in.Body, body) {
		t.Errorf("a body of 1 MiB came with %d bytes", len(in.Body))
	}
	err := a.Publish(wire.OfferSubject("s", "b"), make([]byte, wire.MaxPayload+1))
	if !errors.Is(err, nats.ErrMaxPayload) {
		t.Errorf("a body above 2 MiB: %v", err)
	}
}

func TestSettling(t *testing.T) {
	t.Parallel()
	inBoth(t, func(t *testing.T, start func(...func(*streams.Config)) *world) {
		w := start(func(c *streams.Config) { c.Limits.AckWait = 200 * time.Millisecond })
		a := w.join("agent/a")

		a.offer("s", "b", "unsettled")
		w.fetch(1)
		in := w.fetch(1)[0]
		if in.Deliveries != 2 {
			t.Errorf("unsettled: delivery %d, want 2", in.Deliveries)
		}
		check(t, in.Retry(10*time.Millisecond))
		in = w.fetch(1)[0]
		if in.Deliveries != 3 {
			t.Errorf("retried: delivery %d, want 3", in.Deliveries)
		}
		check(t, w.Governor().Quarantine(t.Context(), in, wire.CodeQuarantineUnknown, "no\r\nHandoff-From: mallory"))
		a.offer("s", "b", "acked")
		check(t, w.fetch(1)[0].Ack())
		time.Sleep(300 * time.Millisecond) // longer than AckWait: nothing may come again
		w.nothing()
	})
}

// What is in quarantine can be listed, looked at, sent on as it came, and deleted.
func TestQuarantineIsReadAndEmptied(t *testing.T) {
	t.Parallel()
	inBoth(t, func(t *testing.T, start func(...func(*streams.Config)) *world) {
		w := start()
		bus := w.Governor()
		a := w.join("agent/a")
		aside := func(msg *nats.Msg) {
			t.Helper()
			_, err := a.js.PublishMsg(t.Context(), msg)
			check(t, err)
			check(t, bus.Quarantine(t.Context(), w.fetch(1)[0], wire.CodeMalformed, "strange"))
		}
		numbers := func(from uint64, n int) (numbers []uint64) {
			t.Helper()
			list, err := bus.Quarantined(t.Context(), from, n)
			check(t, err)
			for _, q := range list {
				numbers = append(numbers, q.Number)
				if q.Agent != "a" || q.Code != wire.CodeMalformed || q.Reason != "strange" || q.Session != "s" || q.Body != nil {
					t.Errorf("%+v", q)
				}
			}
			return numbers
		}
		if got := numbers(0, 10); len(got) > 0 {
			t.Errorf("at first it has %v", got)
		}
		aside(&nats.Msg{Subject: wire.OfferSubject("s", "b"), Data: []byte("task"), Header: nats.Header{
			"X-Twice": {"1", "2"}, "Nats-Msg-Id": {"1"}, "x-twice": {"3"}, "Status": {"409"},
		}})
		aside(&nats.Msg{Subject: wire.ResultSubject("s"), Data: []byte("result")})
		aside(&nats.Msg{Subject: wire.ResultSubject("s"), Data: make([]byte, wire.MaxBody+1)})
		aside(&nats.Msg{Subject: wire.ResultSubject("s"), Data: []byte("small"), Header: nats.Header{"X-Long": {strings.Repeat("x", 40_000)}}})
		for from, want := range map[uint64][]uint64{0: {1, 2, 3}, 1: {1, 2, 3}, 2: {2, 3, 4}, 4: {4}, 5: nil} {
			if got := numbers(from, 3); !slices.Equal(got, want) {
				t.Errorf("from %d it lists %v, want %v", from, got, want)
			}
		}
		q, err := bus.QuarantinedMessage(t.Context(), 1)
		check(t, err)
		if string(q.Body) != "task" || q.Kind != wire.InboundOffer || q.To != "b" || q.Bytes != 4 || q.Cut ||
			!slices.Equal(q.Headers["X-Twice"], []string{"1", "2"}) || q.Headers["Status"][0] != "409" || len(q.Headers) != 4 {
			t.Errorf("%+v", q)
		}
		check(t, bus.Requeue(t.Context(), 1))
		in := w.fetch(1)[0]
		if in.Sender != "a" || in.To != "b" || string(in.Body) != "task" || in.Deliveries != 1 || len(in.Header["X-Twice"]) != 2 ||
			len(in.Header["x-twice"]) != 1 || in.Header["Status"][0] != "409" || len(in.Header["Nats-Msg-Id"]) > 0 {
			t.Errorf("it comes again as %+v", in)
		}
		check(t, in.Ack())
		for _, cut := range []uint64{3, 4} {
			if err := bus.Requeue(t.Context(), cut); !errors.Is(err, &wire.Error{Code: wire.CodeQuarantineCut}) {
				t.Errorf("what was cut: %v", err)
			}
		}
		check(t, bus.DropQuarantined(t.Context(), 2))
		if got := numbers(0, 10); !slices.Equal(got, []uint64{3, 4}) {
			t.Errorf("it has %v", got)
		}
		_, missing := bus.QuarantinedMessage(t.Context(), 2)
		for _, err := range []error{missing, bus.Requeue(t.Context(), 1), bus.DropQuarantined(t.Context(), 2), bus.DropQuarantined(t.Context(), 99)} {
			if !errors.Is(err, &wire.Error{Code: wire.CodeNotQuarantined}) {
				t.Errorf("what is not there: %v", err)
			}
		}
		w.nothing()
	})
}

func TestQuarantineKeepsACopyThatMeansNothingToJetStream(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	a := w.join("agent/a")
	_, err := a.js.PublishMsg(t.Context(), &nats.Msg{
		Subject: wire.OfferSubject("s", "b"), Data: make([]byte, wire.MaxPayload-60_000),
		Header: nats.Header{"Nats-Msg-Id": {"1"}, "X-Long": {strings.Repeat("x", 40_000)}, "X-Short": {"1", "2"}},
	})
	check(t, err)
	check(t, w.Governor().Quarantine(t.Context(), w.fetch(1)[0], wire.CodeMalformed, "bad\r\nHandoff-From: mallory"))
	msg := streams.TestingQuarantined(t, w.Governor(), "a")
	h := msg.Header
	if h.Get("Handoff-Code") != "malformed" || h.Get("Handoff-Reason") != "bad  Handoff-From: mallory" ||
		h.Get("Handoff-From") != "a" || h.Get("Handoff-Subject") != "in.a.offer.s.b" {
		t.Errorf("quarantined with %v", h)
	}
	if len(h["Nats-Msg-Id"]) > 0 || h.Get("Original-Nats-Msg-Id") != "1" || len(h["Original-X-Short"]) != 2 ||
		len(h["Original-X-Long"]) > 0 {
		t.Errorf("original headers kept as %v", slices.Collect(func(yield func(string) bool) {
			for name := range h {
				yield(name)
			}
		}))
	}
	if len(msg.Data) != wire.MaxBody || h.Get("Handoff-Truncated") != fmt.Sprint(wire.MaxPayload-60_000) {
		t.Errorf("kept %d bytes, truncated from %s", len(msg.Data), h.Get("Handoff-Truncated"))
	}
}

func TestInbox(t *testing.T) {
	t.Parallel()
	inBoth(t, func(t *testing.T, start func(...func(*streams.Config)) *world) {
		w := start(func(c *streams.Config) { c.Limits.AckWait = 300 * time.Millisecond })
		// b has never connected when the first message comes.
		check(t, w.Governor().Deliver(t.Context(), []wire.Outbound{
			{To: "b", Header: map[string][]string{wire.HeaderKind: {wire.KindTask}}, Body: []byte("1")},
			{To: "c", Body: []byte("for c")},
		}))
		b := w.join("agent/b")
		inbox := b.inbox()
		next := func() jetstream.Msg {
			t.Helper()
			msg, err := inbox.Next(jetstream.FetchMaxWait(5 * time.Second))
			check(t, err)
			return msg
		}
		msg := next()
		if string(msg.Data()) != "1" || msg.Headers().Get(wire.HeaderKind) != wire.KindTask {
			t.Errorf("got %q with %v", msg.Data(), msg.Headers())
		}
		if meta, err := msg.Metadata(); err != nil || meta.NumDelivered != 1 {
			t.Errorf("metadata %+v, %v", meta, err)
		}
		check(t, msg.InProgress())
		check(t, msg.NakWithDelay(10*time.Millisecond))
		msg = next()
		if meta, err := msg.Metadata(); err != nil || meta.NumDelivered != 2 {
			t.Errorf("after nak: metadata %+v, %v", meta, err)
		}
		msg = next() // not settled within AckWait
		check(t, msg.DoubleAck(t.Context()))

		// Servers from 2.16 on ask for acks in another form.
		check(t, w.Governor().Deliver(t.Context(), []wire.Outbound{{To: "b", Body: []byte("acked in the second form")}}))
		if _, err := b.Request(streams.TestingAckV2(w.deployment, "b", next().Reply()), []byte("+ACK"), 5*time.Second); err != nil {
			t.Errorf("ack in the second form: %v", err)
		}

		check(t, w.Governor().Deliver(t.Context(), []wire.Outbound{{To: "b", Body: []byte("2")}, {To: "b", Body: []byte("3")}}))
		batch, err := inbox.Fetch(2, jetstream.FetchMaxWait(5*time.Second))
		check(t, err)
		got := ""
		for msg := range batch.Messages() {
			got += string(msg.Data())
			check(t, msg.DoubleAck(t.Context()))
		}
		if got != "23" {
			t.Errorf("Fetch got %q", got)
		}

		consumed := make(chan string)
		consuming, err := inbox.Consume(func(msg jetstream.Msg) {
			if err := msg.DoubleAck(t.Context()); err != nil {
				t.Error(err)
			}
			consumed <- string(msg.Data())
		})
		check(t, err)
		defer consuming.Stop()
		check(t, w.Governor().Deliver(t.Context(), []wire.Outbound{{To: "b", Body: []byte("4")}}))
		if got := <-consumed; got != "4" {
			t.Errorf("Consume got %q", got)
		}
	})
}

func TestFullInboxHurtsNobodyElse(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(c *streams.Config) { c.Limits.InboxMessages = 2 })
	err := w.Governor().Deliver(t.Context(), []wire.Outbound{{To: "b"}, {To: "b"}, {To: "b"}, {To: "c"}, {To: "not a name"}})
	var undelivered *wire.UndeliveredError
	if !errors.As(err, &undelivered) || len(undelivered.Failed) != 2 ||
		!errors.Is(undelivered.Failed[2], &wire.Error{Code: wire.CodeInboxFull}) || undelivered.Failed[4] == nil {
		t.Fatalf("got %v", err)
	}
}

// An agent that reads nothing can keep its share of what all inboxes have, and no more, also over restarts.
func TestInboxesShareBytes(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(c *streams.Config) { c.Limits.InboxShare = wire.MaxPayload })
	deliver := func(to string, kib int, want error) {
		t.Helper()
		err := w.Governor().Deliver(t.Context(), []wire.Outbound{{To: to, Body: make([]byte, kib<<10)}})
		if (err == nil) != (want == nil) || want != nil && !errors.Is(err, want) {
			t.Errorf("%d KiB to %s: %v", kib, to, err)
		}
	}
	full := &wire.Error{Code: wire.CodeInboxFull}
	for _, name := range []string{"greedy", "small", "other"} {
		w.join("agent/" + name)
	}
	for range 3 {
		deliver("greedy", 600, nil)
		deliver("small", 1, nil)
	}
	deliver("greedy", 600, full)
	deliver("greedy", 100, nil)
	deliver("other", 1024, nil)

	check(t, w.Close())
	w.start()
	deliver("greedy", 600, full)
	deliver("small", 1500, nil)
	deliver("small", 1500, full)
	deliver("other", 1024, full)
	deliver("other", 900, nil)

	inbox := w.join("agent/greedy").inbox()
	for range 2 {
		msg, err := inbox.Next(jetstream.FetchMaxWait(5 * time.Second))
		check(t, err)
		check(t, msg.DoubleAck(t.Context()))
	}
	deliver("greedy", 600, nil)
	deliver("greedy", 900, full)
}

func TestReceiptsGoToOneAgentAndRevocationsToGuards(t *testing.T) {
	t.Parallel()
	inBoth(t, func(t *testing.T, start func(...func(*streams.Config)) *world) {
		w := start()
		a, b, g := w.join("agent/a"), w.join("agent/b"), w.join("guard/g")
		subscribe := func(c *client, subject string) *nats.Subscription {
			sub, err := c.SubscribeSync(subject)
			check(t, err)
			check(t, c.Flush())
			return sub
		}
		forA, forB, feed := subscribe(a, wire.SubjectReceipt), subscribe(b, wire.SubjectReceipt), subscribe(g, wire.SubjectRevoked)
		for sub, want := range map[*nats.Subscription]string{forA: "receipt", feed: "revoked"} {
			var msg *nats.Msg
			// Until all servers of a cluster know of a subscription, what others publish does not reach it.
			for end := time.Now().Add(10 * time.Second); msg == nil; {
				check(t, w.Governor().Receipt("a", []byte("receipt")))
				check(t, w.Governor().Revoke([]byte("revoked")))
				var err error
				if msg, err = sub.NextMsg(200 * time.Millisecond); err != nil && time.Now().After(end) {
					t.Fatal(err)
				}
			}
			if string(msg.Data) != want || msg.Subject != sub.Subject {
				t.Errorf("got %q on %s, want %q on %s", msg.Data, msg.Subject, want, sub.Subject)
			}
		}
		if msg, err := forB.NextMsg(50 * time.Millisecond); err == nil {
			t.Errorf("b got a's receipt: %q", msg.Data)
		}
	})
}

func TestRequestsCarryTheStampedSender(t *testing.T) {
	t.Parallel()
	inBoth(t, func(t *testing.T, start func(...func(*streams.Config)) *world) {
		w := start()
		w.serve(func(_ context.Context, req wire.Request) {
			_ = req.Respond(fmt.Appendf(nil, "%s %s %s %s", req.Verb, req.Sender, req.Session, req.Body))
		})
		for _, test := range []struct{ who, subject, want string }{
			{"agent/a", wire.ClaimSubject("s1"), "claim a s1 x"},
			{"agent/a", wire.SubjectSessionOpen, "session.open a  x"},
			{"agent/a", wire.SubjectSessionClose, "session.close a  x"},
			{"agent/a", wire.SubjectSessionStatus, "session.status a  x"},
			{"agent/a", wire.SubjectKeys, "keys a  x"},
			{"guard/g", wire.SubjectKeys, "keys g  x"},
			{"guard/g", wire.SubjectRevocations, "revocations g  x"},
			{"operator/o", wire.SubjectKeys, "keys o  x"},
			{"operator/o", wire.OperatorSubject(wire.VerbHealth), "operator.health o  x"},
			{"operator/o", wire.OperatorSubject(wire.VerbSessionList), "operator.session.list o  x"},
		} {
			answer, err := w.join(test.who).Request(test.subject, []byte("x"), 5*time.Second)
			if err != nil {
				t.Errorf("%s on %s: %v", test.who, test.subject, err)
			} else if string(answer.Data) != test.want {
				t.Errorf("%s on %s: served as %q, want %q", test.who, test.subject, answer.Data, test.want)
			}
		}
	})
}

func TestFloodOfRequestsLeavesOthersServed(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(c *streams.Config) { c.Limits.Workers, c.Limits.Requests = 8, 16 })
	release := make(chan struct{})
	w.serve(func(ctx context.Context, req wire.Request) {
		if req.Sender == "flood" {
			select {
			case <-release:
			case <-ctx.Done():
			}
		}
		_ = req.Respond([]byte("served"))
	})
	flood, calm := w.join("agent/flood"), w.join("agent/calm")
	answers, err := flood.SubscribeSync(flood.NewInbox())
	check(t, err)
	for range 100 {
		check(t, flood.PublishRequest(wire.SubjectKeys, answers.Subject, nil))
	}
	for range 100 - 2 - 16 { // two run, sixteen wait, the others are refused
		msg, err := answers.NextMsg(5 * time.Second)
		check(t, err)
		if !strings.Contains(string(msg.Data), `"code":"unavailable"`) {
			t.Fatalf("over the limit: %q", msg.Data)
		}
	}
	for range 20 {
		msg, err := calm.Request(wire.SubjectKeys, nil, 5*time.Second)
		check(t, err)
		if string(msg.Data) != "served" {
			t.Fatalf("calm: %q", msg.Data)
		}
	}
	close(release)
	for range 18 {
		msg, err := answers.NextMsg(5 * time.Second)
		check(t, err)
		if string(msg.Data) != "served" {
			t.Errorf("within the limit: %q", msg.Data)
		}
	}
}

func TestFloodOfOffersIsThrottledAndLeavesOthersServed(t *testing.T) {
	t.Parallel()
	inBoth(t, func(t *testing.T, start func(...func(*streams.Config)) *world) {
		w := start(func(c *streams.Config) { c.Limits.IngressShare = 100 })
		flood, calm := w.join("agent/flood"), w.join("agent/calm")
		var refused error
		stored := 0
		for deadline := time.Now().Add(10 * time.Second); refused == nil && time.Now().Before(deadline); {
			if _, err := flood.js.Publish(t.Context(), wire.OfferSubject("s", "b"), nil); err != nil {
				refused = err
			} else {
				stored++
			}
		}
		var api *jetstream.APIError
		if !errors.As(refused, &api) || !strings.Contains(api.Description, "wait for their receipts") {
			t.Fatalf("after %d offers: %v", stored, refused)
		}
		calm.offer("s", "b", "calm")
		for _, in := range w.fetch(stored + 1) {
			check(t, in.Ack())
		}
		for deadline := time.Now().Add(10 * time.Second); refused != nil && time.Now().Before(deadline); {
			_, refused = flood.js.Publish(t.Context(), wire.OfferSubject("s", "b"), nil)
		}
		if refused != nil {
			t.Errorf("still throttled with an empty queue: %v", refused)
		}
	})
}

// A full queue refuses the new and loses nothing of the old.
func TestFullQueueKeepsWhatItHas(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(c *streams.Config) { c.Limits.IngressBytes = 4 << 20 })
	body := bytes.Repeat([]byte("x"), 100<<10)
	var stored []string
	for i := range 6 {
		agent := w.join(fmt.Sprintf("agent/%c", 'a'+i))
		for n := 0; n < 10; n++ { // a quarter of the queue, nearly
			to := fmt.Sprintf("%c%d", 'a'+i, n)
			if _, err := agent.js.Publish(t.Context(), wire.OfferSubject("s", to), body); err == nil {
				stored = append(stored, to)
			}
		}
	}
	if len(stored) < 35 || len(stored) > 45 {
		t.Fatalf("%d of 60 messages are stored, which is not until 4 MiB were full", len(stored))
	}
	for i, in := range w.fetch(len(stored)) {
		if in.To != stored[i] || !bytes.Equal(in.Body, body) {
			t.Fatalf("message %d is to %s with %d bytes, want the one to %s", i, in.To, len(in.Body), stored[i])
		}
		check(t, in.Ack())
	}
}

func TestFloodOfPullsIsCutOff(t *testing.T) {
	t.Parallel()
	for name, reply := range map[string]func(n int) string{
		"many replies": func(n int) string { return fmt.Sprintf("_INBOX.x.%d", n) },
		"one reply":    func(int) string { return "_INBOX.x" },
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, func(c *streams.Config) { c.Limits.PendingAnswers = 5_000 })
			flood, calm := w.join("agent/flood", nats.NoReconnect()), w.join("agent/calm")
			subject := wire.InboxPrefix + ".CONSUMER.MSG.NEXT.INBOX.inbox"
			deadline := time.Now().Add(20 * time.Second)
			for n := 0; !flood.IsClosed(); n++ {
				_ = flood.PublishRequest(subject, reply(n), []byte(`{"batch":1,"expires":29000000000}`))
				if time.Now().After(deadline) {
					t.Fatal("never cut off")
				}
			}
			if _, err := w.dial("agent/flood"); err == nil {
				t.Error("the flooder came straight back")
			}
			calm.offer("s", "b", "still here")
			w.fetch(1)
		})
	}
}

func TestConnectionEndsWithTheIdentity(t *testing.T) {
	t.Parallel()
	inBoth(t, func(t *testing.T, start func(...func(*streams.Config)) *world) {
		w := start()
		svid := w.issue("agent/a", 3*time.Second)
		leaf, err := x509.ParseCertificate(svid.Certificate[0])
		check(t, err)
		closed := make(chan time.Time, 1)
		conn, err := w.dialWith(svid, nats.NoReconnect(), nats.ClosedHandler(func(*nats.Conn) { closed <- time.Now() }))
		check(t, err)
		defer conn.Close()
		select {
		case at := <-closed:
			late := at.Sub(leaf.NotAfter)
			t.Logf("was closed %s after its certificate had expired", late)
			if late > time.Second || late < -time.Second { // a token of a cluster ends with a whole second
				t.Errorf("was closed %s after its certificate had expired", late)
			}
		case <-time.After(10 * time.Second):
			t.Error("outlived its certificate")
		}
		if _, err := w.dialWith(w.issue("agent/a", -time.Second)); err == nil {
			t.Error("connected with an expired certificate")
		}
	})
}

func TestDisconnect(t *testing.T) {
	t.Parallel()
	inBoth(t, func(t *testing.T, start func(...func(*streams.Config)) *world) {
		w := start()
		a, other := w.join("agent/a", nats.NoReconnect()), w.join("agent/b")
		w.ban("a")
		check(t, w.Disconnect(context.Background(), "a"))
		select {
		case <-a.closed:
		case <-time.After(5 * time.Second):
			t.Fatal("still connected")
		}
		if _, err := w.dial("agent/a"); err == nil {
			t.Error("came back")
		}
		other.offer("s", "b", "undisturbed")
		check(t, w.Disconnect(context.Background(), "nobody"))
	})
}

// After a trust bundle has changed, those whom nobody vouches for any more are cut off, and the others are not.
func TestRecheck(t *testing.T) {
	t.Parallel()
	inBoth(t, func(t *testing.T, start func(...func(*streams.Config)) *world) {
		w := start()
		a, other := w.join("agent/a", nats.NoReconnect()), w.join("agent/b", nats.NoReconnect())
		check(t, w.Recheck(t.Context()))
		a.offer("s", "b", "nothing has changed")
		w.ban("a")
		check(t, w.Recheck(t.Context()))
		select {
		case <-a.closed:
		case <-time.After(time.Second):
			t.Error("still connected after a second")
		}
		if _, err := w.dial("agent/a"); err == nil {
			t.Error("came back")
		}
		other.offer("s", "b", "undisturbed")
	})
}

// An SVID that nobody vouches for any more is no reason to cut off an identity that has replaced it. Its connections that have
// not are.
func TestRecheckSparesWhoHasRotated(t *testing.T) {
	t.Parallel()
	inBoth(t, func(t *testing.T, start func(...func(*streams.Config)) *world) {
		var later atomic.Int64
		var banned sync.Map // :: certificate → true
		w := start(func(c *streams.Config) {
			c.Limits.Connections = 2
			c.Now = func() time.Time { return time.Now().Add(time.Duration(later.Load())) }
			judge := c.Authenticate
			c.Authenticate = func(ctx context.Context, certs []*x509.Certificate, token string) (streams.Identity, error) {
				if _, no := banned.Load(string(certs[0].Raw)); no {
					return streams.Identity{}, errors.New("not vouched for")
				}
				return judge(ctx, certs, token)
			}
		})
		before, after := w.issue("agent/a", time.Hour), w.issue("agent/a", time.Hour)
		first, err := w.dialWith(before, nats.NoReconnect())
		check(t, err)
		closed := make(chan struct{})
		second, err := w.dialWith(after, nats.NoReconnect(), nats.ClosedHandler(func(*nats.Conn) { close(closed) }))
		check(t, err)
		first.Close()
		for end := time.Now().Add(10 * time.Second); ; { // until its place is free
			third, err := w.dialWith(after)
			if err == nil {
				defer third.Close()
				break
			}
			if time.Now().After(end) {
				t.Fatal(err)
			}
		}
		later.Store(int64(10 * time.Second)) // who has just connected may not be listed yet
		banned.Store(string(before.Certificate[0]), true)
		check(t, w.Recheck(t.Context()))
		check(t, second.FlushTimeout(5*time.Second))
		if strings.Contains(w.log.String(), "cut off") {
			t.Error("cut off for what it does not use any more")
		}
		banned.Store(string(after.Certificate[0]), true)
		check(t, w.Recheck(t.Context()))
		select {
		case <-closed:
		case <-time.After(5 * time.Second):
			t.Error("still connected")
		}
	})
}

func TestDisconnectIsNotOvertakenByAConnectionBeingJudged(t *testing.T) {
	t.Parallel()
	inBoth(t, func(t *testing.T, start func(...func(*streams.Config)) *world) {
		judging, cut := make(chan struct{}), make(chan struct{})
		var once sync.Once
		w := start(func(c *streams.Config) {
			judge := c.Authenticate
			c.Authenticate = func(ctx context.Context, certs []*x509.Certificate, token string) (streams.Identity, error) {
				id, err := judge(ctx, certs, token)
				once.Do(func() { close(judging); <-cut })
				return id, err
			}
		})
		result := make(chan error)
		go func() { _, err := w.dial("agent/a"); result <- err }()
		<-judging
		w.ban("a")
		check(t, w.Disconnect(context.Background(), "a"))
		close(cut)
		if err := <-result; err == nil {
			t.Error("connected after Disconnect")
		}
	})
}

func TestWhoMayConnect(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(c *streams.Config) { c.Limits.Connections = 2 })
	refused := func(why string, conn *nats.Conn, err error) {
		t.Helper()
		if err == nil {
			conn.Close()
			t.Errorf("%s: connected", why)
		}
	}
	for _, who := range []string{"agent/a.b", "agent/", "agent/*", "agent/>", "agent/a b", "agent/" + strings.Repeat("x", 181),
		"governor/g", "/a", "stranger"} {
		conn, err := w.dial(who)
		refused(who, conn, err)
	}
	conn, err := w.dialTLS(&tls.Config{})
	refused("neither certificate nor token", conn, err)
	conn, err = w.dialTLS(&tls.Config{}, nats.Token("wrong"))
	refused("wrong token", conn, err)
	conn, err = nats.Connect(strings.Replace(w.URL(), "tls://", "nats://", 1), nats.Token("agent/a"),
		nats.Timeout(300*time.Millisecond))
	refused("no TLS", conn, err)
	conn, err = w.dialTLS(&tls.Config{}, nats.UserInfo("governor", "governor"))
	refused("user and password", conn, err)

	for _, secret := range []string{"", "guess"} {
		if answer := streams.TestingInProcess(t, w.deployment, secret); answer != "-ERR 'Authorization Violation'" {
			t.Errorf("in-process with the secret %q: %s", secret, answer)
		}
	}

	conn, err = w.dialTLS(&tls.Config{}, nats.Token("agent/tokened"))
	check(t, err)
	defer conn.Close()
	check(t, conn.Publish(wire.OfferSubject("s", "b"), nil))
	if in := w.fetch(1)[0]; in.Sender != "tokened" {
		t.Errorf("a token's holder is %q", in.Sender)
	}

	w.join("agent/many")
	w.join("agent/many")
	conn, err = w.dial("agent/many")
	refused("third connection of two", conn, err)
	if log := w.log.String(); strings.Contains(log, "agent/tokened") || strings.Contains(log, "token=") {
		t.Error("a token is in the log")
	}
}

func TestRestart(t *testing.T) {
	t.Parallel()
	inBoth(t, func(t *testing.T, start func(...func(*streams.Config)) *world) {
		w := start()
		a, b := w.join("agent/a"), w.join("agent/b")
		a.offer("s", "b", "acked")
		a.offer("s", "b", "fetched")
		a.offer("s", "b", "waiting")
		in := w.fetch(2)
		check(t, in[0].Ack())
		check(t, w.Governor().Deliver(t.Context(), []wire.Outbound{{To: "b", Body: []byte("1")}, {To: "b", Body: []byte("2")}}))
		msg, err := b.inbox().Next()
		check(t, err)
		check(t, msg.DoubleAck(t.Context()))
		a.Close()
		b.Close()
		check(t, w.Close())
		if _, err := w.Governor().Fetch(t.Context(), 1, time.Minute); err == nil {
			t.Error("fetched from a closed server")
		}

		w.start()
		var bodies []string
		for _, in := range w.fetch(2) {
			bodies = append(bodies, string(in.Body))
		}
		slices.Sort(bodies)
		if !slices.Equal(bodies, []string{"fetched", "waiting"}) {
			t.Errorf("after the restart came %q", bodies)
		}
		msg, err = w.join("agent/b").inbox().Next(jetstream.FetchMaxWait(5 * time.Second))
		check(t, err)
		if string(msg.Data()) != "2" {
			t.Errorf("after the restart the inbox has %q", msg.Data())
		}
	})
}

func TestDirectoryIsPrivate(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "streams")
	newWorld(t, func(c *streams.Config) { c.Dir = dir })
	info, err := os.Stat(dir)
	check(t, err)
	if info.Mode().Perm() != 0o700 {
		t.Errorf("mode %o", info.Mode().Perm())
	}
}

func TestStartRefuses(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for name, change := range map[string]func(*streams.Config){
		"no directory":    func(c *streams.Config) { c.Dir = "" },
		"no TLS":          func(c *streams.Config) { c.TLS = nil },
		"no Authenticate": func(c *streams.Config) { c.Authenticate = nil },
		"bad address":     func(c *streams.Config) { c.Listen = "somewhere" },
		"bad port":        func(c *streams.Config) { c.Listen = "127.0.0.1:70000" },
		"taken port":      func(c *streams.Config) { c.Listen = strings.TrimPrefix(w.URL(), "tls://") },
	} {
		config := w.config
		config.Dir = t.TempDir()
		change(&config)
		if s, err := streams.Start(t.Context(), config); err == nil {
			s.Close()
			t.Errorf("%s: started", name)
		}
	}
}

// However many and however large, messages come in order and once, and no more are read ahead than there is room for.
func TestManyAndLargeMessages(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	a := w.join("agent/a")
	const small, large = 5_000, 40
	for i := range small {
		_, err := a.js.PublishAsync(wire.OfferSubject("s", "b"), fmt.Append(nil, i), jetstream.WithStallWait(10*time.Second))
		check(t, err)
	}
	<-a.js.PublishAsyncComplete()
	for i := range large {
		_, err := a.js.Publish(t.Context(), wire.OfferSubject("s", "b"), fmt.Appendf(make([]byte, 1<<20), "%d", small+i))
		check(t, err)
	}
	for i, in := range w.fetch(small + large) {
		if got := strings.TrimLeft(string(in.Body), "\x00"); got != fmt.Sprint(i) || in.Deliveries != 1 {
			t.Fatalf("message %d is %s, delivered %d times", i, got, in.Deliveries)
		}
		check(t, in.Ack())
	}
	w.nothing()
	if ahead := w.Governor().ReadAhead(); ahead != 0 {
		t.Errorf("%d bytes are counted as read ahead", ahead)
	}
}
