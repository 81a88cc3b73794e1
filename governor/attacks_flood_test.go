package governor_test

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/handoff-governor/handoff-governor/cmd/governor/daemon/daemontest"
	"github.com/handoff-governor/handoff-governor/handoff/aat"
	"github.com/handoff-governor/handoff-governor/handoff/wire"
)

// floodAttacks are meant to keep others waiting, to fill what they share, or to confuse by what things are called.
var floodAttacks = []attack{
	flooding("floods the governor with good offers", "others wait behind hers", func(a *arena) func() {
		h := a.mallory.session(readFiles())
		return func() {
			o := h.draft(a.bob().name, "work")
			h.seal(o)
			_ = a.mallory.nc.PublishMsg(&nats.Msg{Subject: o.subject, Header: o.header, Data: o.body})
		}
	}),
	flooding("floods the governor with offers that are none", "others wait behind hers", func(a *arena) func() {
		return func() { _ = a.mallory.nc.Publish(wire.OfferSubject(a.root.session, a.writer.name), []byte("x")) }
	}),
	flooding("floods the governor with one offer over and over", "every repeat is written down", func(a *arena) func() {
		h := a.mallory.session(readFiles())
		o := h.draft(a.bob().name, "work")
		h.seal(o)
		return func() { _ = a.mallory.nc.PublishMsg(&nats.Msg{Subject: o.subject, Header: o.header, Data: o.body}) }
	}),
	flooding("floods the governor with results that are none", "others wait behind hers", func(a *arena) func() {
		return func() { _ = a.mallory.nc.Publish(wire.ResultSubject(a.root.session), []byte("x")) }
	}),
	flooding("floods the governor with large messages", "the stream is full", func(a *arena) func() {
		large := make([]byte, 1<<20)
		return func() { _ = a.mallory.nc.Publish(wire.ResultSubject(a.root.session), large) }
	}),
	flooding("floods the governor with requests to open sessions", "others are not answered", func(a *arena) func() {
		return func() { _ = a.mallory.nc.PublishRequest(wire.SubjectSessionOpen, "_INBOX.none", []byte(`{"id":"x"}`)) }
	}),
	flooding("floods the governor with claims", "others are not answered", func(a *arena) func() {
		body := encode(a.t, a.mallory.claimRequest(a.root.session, []string{newID(a.t)}))
		return func() {
			_ = a.mallory.nc.PublishRequest(wire.ClaimSubject(a.root.session), "_INBOX.none", body)
		}
	}),
	flooding("floods the governor with questions for its keys", "others are not answered", func(a *arena) func() {
		return func() { _ = a.mallory.nc.PublishRequest(wire.SubjectKeys, "_INBOX.none", nil) }
	}),
	flooding("floods NATS with pulls", "the server owes answers for ever", func(a *arena) func() {
		return func() {
			_ = a.mallory.nc.PublishRequest(wire.InboxPrefix+".CONSUMER.MSG.NEXT.INBOX.inbox", "_INBOX.none", []byte(`{"batch":1000,"expires":30000000000}`))
		}
	}),
	flooding("floods NATS with acknowledgements of what she was never sent", "the streams' bookkeeping is slow", func(a *arena) func() {
		return func() { _ = a.mallory.nc.Publish("$JS.ACK.INBOX."+a.mallory.name+".1.1.1.1.0", []byte("+ACK")) }
	}),
	flooding("comes and goes without end", "the server does nothing but handshakes", func(a *arena) func() {
		config := a.clientTLS("/agent/mallory-comes")
		return func() {
			conn, err := nats.Connect(a.d.Endpoint.URL, nats.Secure(config.Clone()), nats.TLSHandshakeFirst(), nats.Timeout(5*time.Second))
			if err == nil {
				conn.Close()
			}
		}
	}),
	flooding("begins handshakes and never ends them", "the server waits for her", func(a *arena) func() {
		address := strings.TrimPrefix(strings.Split(a.d.Endpoint.URL, ",")[0], "tls://")
		var open []net.Conn
		a.t.Cleanup(func() {
			for _, c := range open {
				c.Close()
			}
		})
		return func() {
			if len(open) > 200 {
				time.Sleep(time.Millisecond) // so many are enough
				return
			}
			if c, err := net.DialTimeout("tcp", address, time.Second); err == nil {
				open = append(open, c)
			}
		}
	}),
	{
		name: "holds as many connections as she can", wins: "nobody else gets one",
		try: func(a *arena) string {
			config := a.clientTLS("/agent/mallory-many")
			for i := 0; ; i++ {
				conn, err := nats.Connect(a.d.Endpoint.URL, nats.Secure(config.Clone()), nats.TLSHandshakeFirst(), nats.Timeout(5*time.Second))
				if err != nil {
					if i == 0 {
						a.t.Fatalf("not even one: %v", err)
					}
					a.agent(fmt.Sprintf("latecomer-%d", a.n)) // is let in
					return fmt.Sprintf("NATS: no more than %d connections", i)
				}
				defer conn.Close()
				if i > 100 {
					a.t.Fatal("she has a hundred connections")
				}
			}
		},
	},
	{
		name: "subscribes as often as she can", wins: "every message costs the server a thousand",
		try: func(a *arena) string {
			errs := a.mallory.complaints()
			for i := range 1000 {
				if _, err := a.mallory.nc.SubscribeSync(fmt.Sprintf("_INBOX.x%d", i)); err != nil {
					return "NATS: " + err.Error()
				}
			}
			_ = a.mallory.nc.FlushTimeout(5 * time.Second) // she may have been cut off
			select {
			case err := <-errs:
				return "NATS: " + err.Error()
			case <-time.After(5 * time.Second):
				a.t.Error("she has a thousand subscriptions")
				return ""
			}
		},
	},
	{
		name: "opens sessions without end", wins: "the governor's memory",
		try: func(a *arena) string {
			for range arenaSessions + 1 {
				if out := a.mallory.open(a.mallory.openRequest(readFiles())); out.Error != nil {
					return a.oneOf(out.Error.Code, []wire.Code{wire.CodeSessionLimit})
				}
			}
			a.t.Errorf("she has more than %d sessions", arenaSessions)
			return ""
		},
	},
	{
		name: "fills another's inbox", wins: "nobody else's task gets there",
		try: func(a *arena) string {
			h := a.mallory.session(readFiles())
			var last wire.Verdict
			for range arenaHandoffs/2 + 1 {
				o := h.offer(a.bob().name, "work", func(o *offering) { o.header[wire.HeaderVerdict] = []string{"always"} })
				if last = a.mallory.verdict(o.id); last.Effect == wire.EffectDeny {
					break
				}
			}
			theirs := a.root.offer(a.bob().name, "work")
			a.planner.receipt(theirs.id)
			if _, c := a.bob().claim(a.root.session, theirs.id); string(c.Task) != "work" {
				a.t.Errorf("bob is given %q", c.Task)
			}
			return a.code(last, wire.CodeInboxFull)
		},
	},

	// Too much of everything.
	opening("asks with a request of 100 KiB", "a governor that reads for her alone", wire.CodeTooLarge, func(body []byte) []byte {
		return append(body, bytes.Repeat([]byte(" "), 100<<10)...)
	}),
	opening("asks with ten thousand brackets", "a reader that runs out of stack", wire.CodeMalformed, func([]byte) []byte {
		return []byte(`{"id":` + strings.Repeat("[", 10_000) + strings.Repeat("]", 10_000) + `}`)
	}),
	opening("asks with ten thousand members", "a reader that keeps them all", wire.CodeMalformed, func([]byte) []byte {
		var b strings.Builder
		b.WriteString(`{"id":"x"`)
		for i := range 5000 {
			fmt.Fprintf(&b, `,"m%d":0`, i)
		}
		return []byte(b.String() + "}")
	}),
	opening("asks with a member twice", "two readers, two requests", wire.CodeMalformed, func(body []byte) []byte {
		return bytes.Replace(body, []byte(`{`), []byte(`{"ttl":1,`), 1)
	}),
	opening("asks with a member in another case", "two readers, two requests", wire.CodeMalformed, func(body []byte) []byte {
		return bytes.Replace(body, []byte(`{`), []byte(`{"TTL":1,`), 1)
	}),
	opening("asks with a number of a thousand digits", "a reader that computes", wire.CodeMalformed, func(body []byte) []byte {
		return bytes.Replace(body, []byte(`"ttl":3600`), []byte(`"ttl":1`+strings.Repeat("0", 1000)), 1)
	}),
	opening("asks with a number that is huge in few digits", "a reader that computes", wire.CodeMalformed, func(body []byte) []byte {
		return bytes.Replace(body, []byte(`"ttl":3600`), []byte(`"ttl":1e999999999`), 1)
	}),
	opening("asks with text that is none", "what cannot be written down again", wire.CodeMalformed, func(body []byte) []byte {
		return bytes.Replace(body, []byte(`"objective":"test"`), []byte("\"objective\":\"\xff\xfe\""), 1)
	}),
	opening("asks and goes on behind the end", "what one reader does not see", wire.CodeMalformed, func(body []byte) []byte {
		return append(body, body...)
	}),
	{
		name: "claims a thousand tasks at once", wins: "one request, a thousand answers",
		try: func(a *arena) string {
			ids := make([]string, 1000)
			for i := range ids {
				ids[i] = newID(a.t)
			}
			return a.claimRefused(a.mallory, a.root.session, a.mallory.claimRequest(a.root.session, ids), wire.CodeMalformed, wire.CodeTooLarge)
		},
	},
	asking("asks for three hundred tools", "a policy that compares for minutes", func() aat.Tools {
		tools := aat.Tools{}
		for i := range 300 {
			tools[fmt.Sprintf("t%d", i)] = nil
		}
		return tools
	}),
	asking("asks with eleven hundred constraints", "a verifier that compares for minutes", func() aat.Tools {
		args := aat.Arguments{}
		for i := range 1100 {
			args[fmt.Sprintf("a%d", i)] = aat.Wildcard()
		}
		return aat.Tools{"t": args}
	}),
	offers("nests conditions forty deep", "a verifier that runs out of stack", wire.CodeToken, func(a *arena, h held, o *offering) {
		// As JSON, since no reader of ours makes such a thing.
		deep := strings.Repeat(`{"constraint_type":"all","constraints":[`, 40) + `{"constraint_type":"wildcard"}` + strings.Repeat(`]}`, 40)
		h.seal(o)
		payload := strings.Replace(string(payloadOf(a, o.token)), `"fs.list":{}`, `"fs.list":{"x":`+deep+`}`, 1)
		o.header[wire.HeaderToken] = []string{rawToken(`{"alg":"Ed25519","typ":"aat+jwt"}`, payload, o.key)}
	}),
	offers("nests a claim of no meaning a thousand deep", "a verifier that runs out of stack", wire.CodeToken, func(a *arena, h held, o *offering) {
		h.seal(o)
		payload := strings.Replace(string(payloadOf(a, o.token)), `{`, `{"deep":`+strings.Repeat("[", 20_000)+strings.Repeat("]", 20_000)+`,`, 1)
		o.header[wire.HeaderToken] = []string{rawToken(`{"alg":"Ed25519","typ":"aat+jwt"}`, payload, o.key)}
	}),
	offers("sends a task of a megabyte and a byte", "memory of whoever keeps it", wire.CodeTooLarge, func(a *arena, h held, o *offering) {
		o.body = make([]byte, wire.MaxBody+1)
	}),
	offers("writes a purpose of a hundred kilobytes", "the ledger keeps it for ever", wire.CodeTooLarge, func(a *arena, h held, o *offering) {
		o.handoff.Purpose = strings.Repeat("p", 100<<10)
		h.seal(o)
		o.header[wire.HeaderToken] = []string{o.token[:min(len(o.token), wire.MaxToken+1)]}
	}),

	// Names.
	offers("names a receiver with a percent sign", "two spellings, one inbox", wire.CodeUnknownAgent, naming(func(s string) string { return strings.Replace(s, "bob", "bo%62", 1) })),
	offers("names a receiver with a letter of another script", "an inbox that looks like bob's", wire.CodeUnknownAgent, naming(func(s string) string { return strings.Replace(s, "bob", "bоb", 1) })),
	offers("names a receiver with a combining mark", "an inbox that looks like bob's", wire.CodeUnknownAgent, naming(func(s string) string { return s + "\u0301" })),
	offers("names a receiver by an escape that means nothing", "two spellings, one inbox", wire.CodeUnknownAgent, naming(func(s string) string { return strings.Replace(s, "bob", "=bob", 1) })),
	offers("names a receiver with an empty part", "two spellings, one inbox", wire.CodeUnknownAgent, naming(func(s string) string { return strings.Replace(s, "=sagent", "=s=sagent", 1) })),
	offers("names a receiver with a step back", "another's path", wire.CodeUnknownAgent, naming(func(s string) string { return strings.Replace(s, "=sbob", "=s=d=d=sagent=sbob", 1) })),
	offers("names a trust domain in capitals", "two spellings, one inbox", wire.CodeUnknownAgent, naming(func(s string) string { return strings.Replace(s, "handoff", "Handoff", 1) })),
	offers("names a receiver of two hundred bytes", "a name that no stream can bear", wire.CodeProfile, naming(func(s string) string { return s + strings.Repeat("x", 200) })),
	offers("names all receivers", "one offer, every inbox", wire.CodeUnknownAgent, func(a *arena, h held, o *offering) { o.handoff.To = "*"; o.subject = wire.OfferSubject(h.session, "*") }),
	offers("names a session in capitals", "two spellings, one session", wire.CodeSubjectMismatch, func(a *arena, h held, o *offering) {
		o.subject = wire.OfferSubject(strings.ToUpper(h.session), o.handoff.To)
	}),
	{
		name: "names a receiver in capitals", wins: "bob's task in an inbox of hers",
		try: func(a *arena) string {
			h := a.mallory.session(readFiles())
			o := h.offer(a.bob().name, "work", naming2(func(s string) string { return strings.Replace(s, "bob", "BOB", 1) }, h))
			a.mallory.receipt(o.id)
			return a.claimRefused(a.bob(), h.session, a.bob().claimRequest(h.session, []string{o.id}), wire.CodeHandoffUnknown)
		},
	},
	publishing("names a receiver with dots", "a subject of another shape", func(a *arena) []string {
		return []string{"handoff.offer." + a.root.session + ".handoff.local.agent.writer", "handoff.offer.." + a.writer.name, "handoff.offer." + a.root.session + ".x."}
	}),
}

// The arena's limits are low, so that floods are soon over.
const (
	arenaSessions  = 40
	arenaHandoffs  = 60
	arenaRate      = 1000
	arenaRateBytes = 4 << 20
)

// flooding is an attack that goes on while others work. It never waits for answers. A task of the others takes some
// milliseconds without it. With it, what she has sent before she is cut off comes first: ten seconds of her rate, which are
// 10,000 messages here. An embedded server and the governor go through them in a second, in three on two busy processors with
// the race detector, and others must not wait ten.
//
// In a cluster each message is stored, fetched, answered and settled by three servers that agree about it each time. Where
// these, the governor, the attacker and the others share two processors, that is some 2,000 messages a second. Nothing is
// lost, and all of it goes by.
func flooding(name, wins string, flood func(*arena) func()) attack {
	return attack{name, wins, func(a *arena) string {
		a.bob()
		most := 10 * time.Second
		if a.in != daemontest.Embedded {
			most = time.Minute // a message that is lost comes again after thirty seconds
		}
		a.patience = most
		once := flood(a)
		ctx, cancel := context.WithCancel(a.t.Context())
		defer cancel()
		var all sync.WaitGroup
		sent := 0
		all.Go(func() {
			for ; ctx.Err() == nil; sent++ {
				once()
				// As fast as the server takes it: what piles up in this process keeps the others from the processors, and nothing else.
				if sent%64 == 63 && a.mallory.nc.FlushTimeout(time.Second) != nil {
					select { // cut off; she tries again
					case <-ctx.Done():
					case <-time.After(10 * time.Millisecond):
					}
				}
			}
		})
		var slowest time.Duration
		for end := time.Now().Add(floodFor); time.Now().Before(end); {
			begun := time.Now()
			a.work()
			slowest = max(slowest, time.Since(begun))
		}
		cancel()
		all.Wait()
		if slowest > most {
			a.t.Errorf("while she sent %d, one of the others' tasks took %s", sent, slowest)
		}
		return fmt.Sprintf("limits; %d sent, and others waited %s at most", sent, slowest.Round(time.Millisecond))
	}}
}

// floodFor is how long a flood goes on.
const floodFor = 300 * time.Millisecond

// opening is an attack by a request to open a session.
func opening(name, wins string, code wire.Code, change func(body []byte) []byte) attack {
	return attack{name, wins, func(a *arena) string {
		return a.openRefused(change(a.mallory.prove(a.mallory.openRequest(readFiles()))), code)
	}}
}

// asking is an attack by a request to open a session with more than anybody may hold.
func asking(name, wins string, tools func() aat.Tools) attack {
	return attack{name, wins, func(a *arena) string {
		return a.openRefused(a.mallory.prove(a.mallory.openRequest(tools())), wire.CodeProfile, wire.CodeMalformed, wire.CodeTooLarge)
	}}
}

// naming names another receiver, in the subject and in the token.
func naming(change func(string) string) func(*arena, held, *offering) {
	return func(_ *arena, h held, o *offering) { naming2(change, h)(o) }
}

func naming2(change func(string) string, h held) func(*offering) {
	return func(o *offering) {
		o.handoff.To = change(o.handoff.To)
		o.subject = wire.OfferSubject(h.session, o.handoff.To)
	}
}
