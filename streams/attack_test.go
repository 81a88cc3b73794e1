package streams_test

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/handoff-governor/handoff-governor/handoff/wire"
	"github.com/handoff-governor/handoff-governor/streams"
)

// governorsOwn are subjects of the governor's account that no identity may reach under any name.
var governorsOwn = []string{
	"in.b.offer.s.c", "in.b.result.s", "busy.b", "call.b.keys", "call.b.claim.s", "call.b.operator.revoke", "inbox.b",
	"inbox.a", "receipt.a", "receipt.b", "quarantine.b", "revoked.feed",
	"$JS.API.STREAM.NAMES", "$JS.API.STREAM.CREATE.X", "$JS.API.STREAM.PURGE.INBOX", "$JS.API.STREAM.DELETE.INGRESS",
	"$JS.API.STREAM.MSG.GET.INBOX", "$JS.API.STREAM.MSG.DELETE.INBOX", "$JS.API.DIRECT.GET.INBOX",
	"$JS.API.DIRECT.GET.INBOX.inbox.b", "$JS.API.CONSUMER.MSG.NEXT.INBOX.b", "$JS.API.CONSUMER.MSG.NEXT.INGRESS.governor",
	"$JS.API.CONSUMER.CREATE.INBOX.x.inbox.b", "$JS.API.CONSUMER.DELETE.INBOX.b", "$JS.API.INFO",
	"$SYS.REQ.SERVER.PING", "$SYS.REQ.CLAIMS.UPDATE", "$SYS.REQ.ACCOUNT.GOVERNOR.CONNZ",
	"handoff.inbox.CONSUMER.MSG.NEXT.INBOX.b", "handoff.inbox.CONSUMER.INFO.INBOX.b",
	"handoff.inbox.CONSUMER.MSG.NEXT.INGRESS.governor", "handoff.inbox.CONSUMER.CREATE.INBOX.x",
	"handoff.inbox.CONSUMER.DELETE.INBOX.inbox", "handoff.inbox.STREAM.INFO.INBOX", "handoff.inbox.STREAM.MSG.GET.INBOX",
	"handoff.receipt", "handoff.offer.s", "handoff.offer.s.b.c", "handoff.result.s.b", "_INBOX.x", "anything",
	"$JS.ACK.INBOX.b.1.1.1.1.0", "$JS.ACK.INGRESS.governor.1.1.1.1.0", "$JS.ACK.INGRESS.governor.INBOX.a.1.1.0",
	"$JS.ACK._.AAAAAAAA.INBOX.a.1.1.1.1.0", "$JS.FC.INBOX.b.x",
}

func TestNobodyReachesTheGovernorsSubjects(t *testing.T) {
	t.Parallel()
	inBoth(t, func(t *testing.T, start func(...func(*streams.Config)) *world) {
		w := start()
		w.serve(func(_ context.Context, req wire.Request) { t.Errorf("served %s of %s", req.Verb, req.Sender) })
		w.join("agent/b")
		for who, more := range map[string][]string{
			"agent/a": {"handoff.revocations", "handoff.revoked.feed", "handoff.operator.revoke"},
			"guard/a": {"handoff.revoked.feed", "handoff.operator.revoke", "handoff.offer.s.b", "handoff.claim.s",
				"handoff.session.open", "handoff.inbox.CONSUMER.MSG.NEXT.INBOX.inbox", "$JS.ACK.INBOX.a.1.1.1.1.0"},
			"operator/a": {"handoff.revoked.feed", "handoff.revocations", "handoff.offer.s.b", "handoff.operator.a.b.c",
				"handoff.operator", "handoff.session.open", "handoff.inbox.CONSUMER.MSG.NEXT.INBOX.inbox"},
		} {
			c := w.join(who)
			for _, subject := range slices.Concat(governorsOwn, more) {
				c.denied(subject, "", nil)
			}
			for _, subject := range []string{">", "*", "*.>", "handoff.>", "handoff.*", "$JS.>", "$SYS.>", "in.>", "inbox.>",
				"call.>", "handoff.offer.*.*", "_R_.>"} {
				sub, err := c.SubscribeSync(subject)
				check(t, err)
				check(t, c.Flush())
				select {
				case err := <-c.errors:
					if !errors.Is(err, nats.ErrPermissionViolation) {
						t.Errorf("%s subscribing %s: %v", who, subject, err)
					}
				case <-time.After(5 * time.Second):
					t.Errorf("%s may subscribe %s", who, subject)
				}
				_ = sub.Unsubscribe()
			}
		}
		w.nothing()
	})
}

// The accounts must hold without the permissions.
func TestAccountsHoldWithoutPermissions(t *testing.T) {
	t.Parallel()
	inBoth(t, func(t *testing.T, start func(...func(*streams.Config)) *world) {
		w := start()
		streams.TestingWithoutPermissions(w.deployment)
		w.serve(func(_ context.Context, req wire.Request) {
			if req.Sender != "a" {
				t.Errorf("served %s of %s", req.Verb, req.Sender)
			}
		})
		a, b := w.join("agent/a"), w.join("agent/b")
		b.offer("s", "c", "the secret that b sent")
		ingress := w.fetch(1)[0] // pending in the governor's consumer
		check(t, w.Governor().Deliver(t.Context(), []wire.Outbound{{To: "b", Body: []byte("the secret for b")}}))
		pending, err := b.inbox().Next(jetstream.FetchMaxWait(5 * time.Second)) // pending in b's consumer
		check(t, err)

		all, err := a.SubscribeSync(">")
		check(t, err)
		for _, subject := range governorsOwn {
			for _, body := range []string{"", "+ACK", "+NXT", "+TERM", "-NAK", `{"batch":10}`} {
				check(t, a.PublishRequest(subject, a.NewInbox(), []byte(body)))
			}
		}
		for _, subject := range []string{"$JS.ACK.INGRESS.governor.1.1.1.1.0", "$JS.ACK.INGRESS.governor.INBOX.a.1.1.1",
			"$JS.ACK.INBOX.b.1.1.1.1.0", strings.Replace(pending.Reply(), ".b.", ".a.", 1), pending.Reply()} {
			for _, body := range []string{"", "+NXT", "+TERM"} {
				check(t, a.PublishRequest(subject, a.NewInbox(), []byte(body)))
			}
		}
		// More than the governor's own pull takes in one turn.
		const more = 20
		for range more {
			b.offer("s", "c", "the second secret that b sent")
		}
		check(t, w.Governor().Deliver(t.Context(), []wire.Outbound{{To: "b", Body: []byte("the second secret for b")}}))
		check(t, a.Flush())
		for {
			msg, err := all.NextMsg(200 * time.Millisecond)
			if err != nil {
				break
			}
			if body := string(msg.Data); strings.Contains(body, "secret") ||
				strings.Contains(body, `"stream_detail"`) || strings.Contains(body, `"streams":[`) {
				t.Errorf("a received %q on %s", body, msg.Subject)
			}
		}
		for _, in := range w.fetch(more) {
			if in.Sender != "b" || string(in.Body) != "the second secret that b sent" {
				t.Errorf("the governor got %s's %q", in.Sender, in.Body)
			}
		}
		w.nothing()
		// Neither the governor's pending message nor b's was settled by a.
		check(t, ingress.Retry(0))
		if in := w.fetch(1)[0]; string(in.Body) != "the secret that b sent" || in.Deliveries != 2 {
			t.Errorf("came again: %+v", in)
		}
		check(t, pending.Nak())
		seen := map[string]bool{}
		for range 2 {
			msg, err := b.inbox().Next(jetstream.FetchMaxWait(5 * time.Second))
			check(t, err)
			seen[string(msg.Data())] = true
		}
		if !seen["the secret for b"] || !seen["the second secret for b"] {
			t.Errorf("b received %v", seen)
		}
	})
}

// The server publishes its answers wherever the request's reply says. Between accounts it must not.
func TestReplySubjectsReachNobodyElse(t *testing.T) {
	t.Parallel()
	inBoth(t, func(t *testing.T, start func(...func(*streams.Config)) *world) {
		w := start()
		streams.TestingWithoutPermissions(w.deployment)
		w.serve(func(_ context.Context, req wire.Request) {
			if req.Sender != "a" {
				t.Errorf("served %s of %s", req.Verb, req.Sender)
			}
			_ = req.Respond([]byte("+TERM"))
		})
		a, b := w.join("agent/a"), w.join("agent/b")
		b.offer("s", "c", "b's own")
		ingress := w.fetch(1)[0]
		listening, err := b.SubscribeSync(">")
		check(t, err)
		check(t, b.Flush())
		check(t, w.Governor().Deliver(t.Context(), []wire.Outbound{{To: "a", Body: []byte("+TERM")}}))

		pull := wire.InboxPrefix + ".CONSUMER.MSG.NEXT.INBOX.inbox"
		for _, reply := range slices.Concat(governorsOwn, []string{"_R_.x", "_R_.>", ">", "*"}) {
			for _, subject := range []string{wire.OfferSubject("s", "c"), wire.SubjectKeys, pull} {
				body := []byte(`{"batch":1,"no_wait":true}`)
				check(t, a.PublishRequest(subject, reply, body))
			}
		}
		check(t, a.Flush())
		if msg, err := listening.NextMsg(200 * time.Millisecond); err == nil {
			t.Errorf("b received %q on %s", msg.Data, msg.Subject)
		}
		for {
			batch, err := w.Governor().Fetch(t.Context(), 100, 100*time.Millisecond)
			check(t, err)
			if len(batch) == 0 {
				break
			}
			for _, in := range batch {
				if in.Sender != "a" {
					t.Errorf("the server published as %s: %q", in.Sender, in.Body)
				}
				check(t, in.Ack())
			}
		}
		check(t, ingress.Retry(0))
		if in := w.fetch(1)[0]; string(in.Body) != "b's own" {
			t.Errorf("came again: %+v", in)
		}
	})
}

func TestPublishersCannotUseJetStreamHeadersOnOthers(t *testing.T) {
	t.Parallel()
	inBoth(t, func(t *testing.T, start func(...func(*streams.Config)) *world) {
		w := start()
		a, b := w.join("agent/a"), w.join("agent/b")
		b.offer("s", "c", "b's own")
		for name, value := range map[string]string{
			"Nats-Rollup": "all", "Nats-TTL": "1s", "Nats-Schedule": "@at 2099-01-01T00:00:00Z", "Nats-Batch-Id": "x",
			"Nats-Incr": "1", "Nats-Stream-Source": "INGRESS 1",
		} {
			msg := nats.NewMsg(wire.OfferSubject("s", "c"))
			msg.Header[name] = []string{value}
			msg.Header["Nats-Batch-Sequence"] = []string{"1"}
			msg.Header["Nats-Schedule-Target"] = []string{"in.b.offer.s.c"}
			ack, err := a.js.PublishMsg(t.Context(), msg, jetstream.WithRetryAttempts(0))
			if err == nil && name != "Nats-Stream-Source" {
				t.Errorf("%s was accepted: %+v", name, ack)
			}
		}
		if in := w.fetch(1)[0]; string(in.Body) != "b's own" || in.Sender != "b" {
			t.Errorf("came: %+v", in)
		}
		// Message IDs share one name space, for a moment only.
		id := jetstream.WithMsgID("guessed")
		_, err := a.js.Publish(t.Context(), wire.OfferSubject("s", "c"), nil, id)
		check(t, err)
		time.Sleep(250 * time.Millisecond) // beyond the window, which has no event to wait for
		ack, err := b.js.Publish(t.Context(), wire.OfferSubject("s", "c"), nil, id)
		check(t, err)
		if ack.Duplicate {
			t.Error("a's message ID swallowed b's message")
		}
	})
}

// Tokens of subjects are the sender's choice; none may confuse the stream.
func TestStrangeSubjectTokens(t *testing.T) {
	t.Parallel()
	inBoth(t, func(t *testing.T, start func(...func(*streams.Config)) *world) {
		w := start()
		a := w.join("agent/a")
		tokens := []string{"*", ">", "$1", "{{wildcard(1)}}", "\x7f", "\xff", "offer", "é", strings.Repeat("x", 900)}
		for _, token := range tokens {
			// The client library may refuse some; those that pass must come out as they are.
			raw := fmt.Sprintf("handoff.offer.%s.%s", token, token)
			_ = a.PublishMsg(&nats.Msg{Subject: raw, Reply: a.NewInbox()})
		}
		check(t, a.Flush())
		a.offer("s", "b", "last")
		for {
			in := w.fetch(1)[0]
			if in.Sender != "a" {
				t.Errorf("sender %q", in.Sender)
			}
			if in.Session == "s" {
				check(t, in.Ack())
				break
			}
			check(t, w.Governor().Quarantine(t.Context(), in, wire.CodeMalformed, "strange"))
		}
		w.nothing()
	})
}

func TestATokenBesideACertificateGivesNothing(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for _, token := range []string{"governor", "", "GOVERNOR"} {
		conn, err := w.dial("agent/a", nats.Token(token))
		check(t, err)
		sub, err := conn.SubscribeSync("in.>")
		check(t, err)
		check(t, conn.Flush())
		if err := conn.LastError(); !errors.Is(err, nats.ErrPermissionViolation) {
			t.Errorf("token %q: subscribed %s: %v", token, sub.Subject, err)
		}
		conn.Close()
	}
}

// What an agent writes into headers is never taken for a word of the server: neither does it end the reading of offers
// and results, nor is such a message passed over, nor does it come back to do so after a restart.
func TestAttackWordsOfTheServer(t *testing.T) {
	t.Parallel()
	for _, h := range []nats.Header{
		{"Status": {"409"}, "Description": {"Consumer Deleted"}},
		{"Status": {"409"}, "Description": {"Leadership Change"}},
		{"Status": {"400"}, "Description": {"Bad Request"}},
		{"Status": {"100"}, "Description": {"Idle Heartbeat"}},
		{"Status": {"503"}},
		{"Status": {"404"}},
		{"Status": {"408"}, "Nats-Pending-Messages": {"1000"}},
		{"Nats-Pin-Id": {"x"}},
		{"Nats-Consumer-Stalled": {"_INBOX.x"}, "Status": {"100"}},
	} {
		t.Run(fmt.Sprint(h), func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			publish := func(of *client) {
				t.Helper()
				_, err := of.js.PublishMsg(t.Context(), &nats.Msg{Subject: wire.OfferSubject("s", "x"), Header: h})
				check(t, err)
			}
			a, b := w.join("agent/a"), w.join("agent/b")
			publish(a)
			b.offer("s", "x", "innocent")
			got := w.fetch(2)
			if len(got) != 2 || string(got[1].Body) != "innocent" {
				t.Fatalf("got %+v", got)
			}
			for _, in := range got {
				check(t, in.Ack())
			}
			publish(a)
			a.Close()
			b.Close()
			check(t, w.Close())
			w.start()
			w.join("agent/b").offer("s", "x", "innocent")
			if got := w.fetch(2); string(got[1].Body) != "innocent" {
				t.Errorf("after a restart, got %+v", got)
			}
		})
	}
}

// Who invents receivers fills what all of them have together, and nothing else.
func TestAttackInboxesOfNobody(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(c *streams.Config) { c.Limits.InboxBytes, c.Limits.InboxShare = 16<<20, 4<<20 })
	w.join("agent/b")
	refused := 0
	deliver := func(to string) error {
		return w.Governor().Deliver(t.Context(), []wire.Outbound{{To: to, Body: make([]byte, 100<<10)}})
	}
	for i := range 100 {
		if err := deliver(fmt.Sprint("nobody", i)); err != nil {
			if refused++; !errors.Is(err, &wire.Error{Code: wire.CodeInboxFull}) {
				t.Fatal(err)
			}
		}
	}
	if refused < 50 || refused > 70 {
		t.Errorf("%d of 100 were refused", refused)
	}
	check(t, deliver("b"))
	check(t, w.Close())
	w.start()
	if err := deliver("nobody"); !errors.Is(err, &wire.Error{Code: wire.CodeInboxFull}) {
		t.Errorf("after a restart: %v", err)
	}
	check(t, deliver("b"))
	w.join("agent/nobody1")
	check(t, deliver("nobody1"))
}

// A flood under one reply subject, timed so that its sender is silent when somebody is looked for, is nobody else's.
func TestAttackFloodBlamedOnOthers(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(c *streams.Config) { c.Limits.PendingAnswers = 50_000 })
	w.serve(func(_ context.Context, req wire.Request) { _ = req.Respond([]byte("k")) })
	calm, flood := w.join("agent/calm", nats.NoReconnect()), w.join("agent/flood", nats.NoReconnect())
	ask := func() {
		t.Helper()
		if _, err := calm.Request(wire.SubjectKeys, nil, 5*time.Second); err != nil {
			t.Fatalf("the calm one: %v", err)
		}
	}
	owe := func(n int) {
		for range n { // an ack of sequence 0 is never answered
			check(t, flood.PublishRequest("$JS.ACK.INBOX.flood.1.0.1.1.0", "_INBOX.x", []byte("+ACK")))
		}
		_ = flood.Flush()
	}
	owe(45_000)
	for range 60 {
		ask()
		time.Sleep(10 * time.Millisecond)
	}
	owe(10_000)
	for end := time.Now().Add(5 * time.Second); !flood.IsClosed() && time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		ask()
	}
	if !flood.IsClosed() {
		t.Error("whoever floods is still there")
	}
	ask()
}

// Many small offers of others do not make one agent's share of the bytes larger.
func TestAttackShareOfBytes(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(c *streams.Config) { c.Limits.IngressBytes = 64 << 20 })
	crowd, flood, calm := w.join("agent/crowd"), w.join("agent/flood"), w.join("agent/calm")
	for range 5_000 {
		_, err := crowd.js.PublishAsync(wire.OfferSubject("s", "b"), []byte("small"), jetstream.WithStallWait(10*time.Second))
		check(t, err)
	}
	<-crowd.js.PublishAsyncComplete()
	body, stored := make([]byte, 1<<20), 0
	for ; stored < 100; stored++ {
		if _, err := flood.js.Publish(t.Context(), wire.OfferSubject("s", "b"), body); err != nil {
			break
		}
		time.Sleep(50 * time.Millisecond) // the watch looks every 250 ms
	}
	if stored > 16+10 {
		t.Errorf("one agent stored %d MiB of 64; a quarter is 16", stored)
	}
	if _, err := calm.js.Publish(t.Context(), wire.OfferSubject("s", "b"), body, jetstream.WithRetryAttempts(0)); err != nil {
		t.Errorf("another agent's offer: %v", err)
	}
}

// A connection that is judged again, because somebody was cut off meanwhile, does not count against itself.
func TestJudgedAgainAtTheLimit(t *testing.T) {
	t.Parallel()
	var w *world
	var calls atomic.Int64
	w = newWorld(t, func(c *streams.Config) {
		c.Limits.Connections = 1
		judge := c.Authenticate
		c.Authenticate = func(ctx context.Context, certs []*x509.Certificate, token string) (streams.Identity, error) {
			if calls.Add(1) == 1 {
				_ = w.Disconnect(context.Background(), "somebody-else")
			}
			return judge(ctx, certs, token)
		}
	})
	conn, err := w.dial("agent/a")
	check(t, err)
	defer conn.Close()
	if calls.Load() != 2 {
		t.Errorf("it was judged %d times", calls.Load())
	}
	if second, err := w.dial("agent/a"); err == nil {
		second.Close()
		t.Error("a second connection was let in")
	}
}
