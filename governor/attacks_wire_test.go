package governor_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/url"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/handoff-governor/handoff-governor/cmd/governor/daemon/daemontest"
	"github.com/handoff-governor/handoff-governor/handoff/aat"
	"github.com/handoff-governor/handoff-governor/handoff/identity"
	"github.com/handoff-governor/handoff-governor/handoff/wire"
)

// wireAttacks are made with NATS alone.
var wireAttacks = []attack{
	// Where nobody but the governor may publish.
	publishing("publishes into another's inbox", "a task that no policy has seen reaches another agent",
		func(a *arena) []string { return []string{"inbox." + a.writer.name, "INBOX." + a.writer.name} }),
	publishing("publishes an offer as another sender", "a task in the name of the planner",
		func(a *arena) []string {
			return []string{"in." + a.planner.name + ".offer." + a.root.session + "." + a.writer.name,
				"in." + a.mallory.name + ".offer." + a.root.session + "." + a.writer.name}
		}),
	publishing("publishes a result as another worker", "the planner takes her words for the writer's",
		func(a *arena) []string { return []string{"in." + a.writer.name + ".result." + a.root.session} }),
	publishing("makes requests as another", "the planner's session is hers to close",
		func(a *arena) []string {
			return []string{"call." + a.planner.name + ".session.close", "call." + a.planner.name + ".session.open",
				"call." + a.writer.name + ".claim." + a.root.session, "call." + a.mallory.name + ".keys"}
		}),
	publishing("makes an operator's requests", "held offers are approved, the policy is another",
		func(a *arena) []string {
			op := daemontest.Name(a.t, "/operator/local")
			return []string{wire.OperatorSubject(wire.VerbApprove), wire.OperatorSubject(wire.VerbBundleActivate),
				"call." + op + ".operator.bundle.activate", "call." + op + ".operator.revoke"}
		}),
	publishing("publishes on the revocation feed", "guards forget what was revoked, or refuse everybody",
		func(*arena) []string { return []string{wire.SubjectRevoked, "revoked.feed"} }),
	publishing("publishes receipts", "the planner believes that a lost offer is on record",
		func(a *arena) []string { return []string{wire.SubjectReceipt, "receipt." + a.planner.name} }),
	publishing("publishes into the quarantine", "an operator reads what never was",
		func(a *arena) []string { return []string{"quarantine." + a.planner.name} }),
	publishing("answers requests of others", "her answer is taken for the governor's",
		func(*arena) []string { return []string{"_INBOX.x.y", "_R_.x.y"} }),

	// JetStream.
	publishing("pulls from another's inbox", "tasks and results of the writer are hers",
		func(a *arena) []string {
			return []string{"$JS.API.CONSUMER.MSG.NEXT.INBOX." + a.writer.name,
				wire.InboxPrefix + ".CONSUMER.MSG.NEXT.INBOX." + a.writer.name, wire.InboxPrefix + ".CONSUMER.INFO.INBOX." + a.writer.name}
		}),
	publishing("pulls offers before the governor does", "offers are swallowed, and read",
		func(*arena) []string {
			return []string{"$JS.API.CONSUMER.MSG.NEXT.INGRESS.governor", wire.InboxPrefix + ".CONSUMER.MSG.NEXT.INGRESS.governor"}
		}),
	publishing("acknowledges another's messages", "the writer never learns of its tasks",
		func(a *arena) []string {
			return []string{"$JS.ACK.INBOX." + a.writer.name + ".1.1.1.1.0", "$JS.ACK._.AAAAAAAA.INBOX." + a.writer.name + ".1.1.1.1.0.x"}
		}),
	publishing("acknowledges what the governor has fetched", "the planner's offer is gone, undecided",
		func(*arena) []string { return []string{"$JS.ACK.INGRESS.governor.1.1.1.1.0"} }),
	publishing("asks the governor's consumer for the next message in an acknowledgement", "others' offers, by +NXT",
		func(a *arena) []string {
			return []string{"$JS.ACK.INGRESS.governor.INBOX." + a.mallory.name + ".1.1.0"}
		}),
	publishing("administers streams", "all that waits is gone",
		func(*arena) []string {
			return []string{"$JS.API.STREAM.CREATE.X", "$JS.API.STREAM.UPDATE.INGRESS", "$JS.API.STREAM.DELETE.INBOX", "$JS.API.STREAM.PURGE.INGRESS",
				"$JS.API.STREAM.RESTORE.INBOX", "$JS.API.STREAM.SNAPSHOT.INBOX", wire.InboxPrefix + ".STREAM.PURGE.INBOX"}
		}),
	publishing("administers consumers", "a consumer of hers reads every inbox",
		func(a *arena) []string {
			return []string{"$JS.API.CONSUMER.CREATE.INBOX.x", "$JS.API.CONSUMER.DURABLE.CREATE.INBOX.x", wire.InboxPrefix + ".CONSUMER.CREATE.INBOX.x",
				"$JS.API.CONSUMER.DELETE.INBOX." + a.writer.name, wire.InboxPrefix + ".CONSUMER.DELETE.INBOX.inbox", "$JS.API.CONSUMER.PAUSE.INGRESS.governor",
				"$JS.API.CONSUMER.UNPIN.INBOX." + a.writer.name}
		}),
	publishing("reads stored messages one by one", "every task that waits, without being asked for",
		func(*arena) []string {
			return []string{"$JS.API.STREAM.MSG.GET.INBOX", "$JS.API.DIRECT.GET.INBOX", "$JS.API.DIRECT.GET.INBOX.inbox.x", "$JS.API.STREAM.MSG.DELETE.INBOX",
				wire.InboxPrefix + ".STREAM.MSG.GET.INBOX", wire.InboxPrefix + ".DIRECT.GET.INBOX"}
		}),
	publishing("looks around in JetStream", "who has how many tasks",
		func(*arena) []string {
			return []string{"$JS.API.INFO", "$JS.API.STREAM.NAMES", "$JS.API.STREAM.LIST", "$JS.API.STREAM.INFO.INBOX", "$JS.API.CONSUMER.NAMES.INBOX",
				"$JS.API.CONSUMER.LIST.INBOX", wire.InboxPrefix + ".STREAM.INFO.INBOX", wire.InboxPrefix + ".INFO"}
		}),
	publishing("moves leaders and peers of the cluster", "the streams stand still",
		func(*arena) []string {
			return []string{"$JS.API.META.LEADER.STEPDOWN", "$JS.API.STREAM.LEADER.STEPDOWN.INGRESS", "$JS.API.STREAM.PEER.REMOVE.INBOX",
				"$JS.API.SERVER.REMOVE", "$JS.API.ACCOUNT.PURGE.x"}
		}),
	publishing("asks the system account", "servers stop, accounts change",
		func(*arena) []string {
			return []string{"$SYS.REQ.SERVER.PING", "$SYS.REQ.CLAIMS.UPDATE", "$SYS.REQ.CLAIMS.LIST", "$SYS.REQ.CLAIMS.DELETE", "$SYS.REQ.SERVER.x.RELOAD",
				"$SYS.REQ.SERVER.x.KICK", "$SYS.REQ.ACCOUNT.PING.CONNZ", "$SYS.REQ.USER.AUTH", "$SYS._INBOX.x"}
		}),

	// Where nobody but others may listen.
	listening("listens to everything", "every task, result and credential that is handed out",
		func(*arena) []string { return []string{">", "*", "*.>", "handoff.>", "handoff.*.*"} }),
	listening("listens where others publish", "offers, before they are judged",
		func(a *arena) []string {
			return []string{"in.>", "in." + a.planner.name + ".>", "handoff.offer.*.*", "handoff.result.*", wire.ClaimSubject("*"), "handoff.session.>"}
		}),
	listening("listens where others are told", "tasks and receipts of others",
		func(a *arena) []string {
			return []string{"inbox.>", "inbox." + a.writer.name, "receipt.>", "receipt." + a.planner.name, "call.>", "quarantine.>", "revoked.>", wire.SubjectRevoked}
		}),
	listening("listens to the servers", "who connects, and how",
		func(*arena) []string { return []string{"$SYS.>", "$JS.>", "$JS.EVENT.>", "_R_.>", "$JSC.>", "$NRG.>"} }),
	listening("joins the queue of those who serve requests", "every other request is answered by her",
		func(*arena) []string {
			return []string{"handoff.claim.* governor", "handoff.keys governor", "call.> governor"}
		}),
	{
		name: "listens on all reply subjects", wins: "the credentials in the answers to others' claims",
		try: func(a *arena) string {
			sub, err := a.mallory.nc.SubscribeSync("_INBOX.>")
			if err == nil {
				err = a.mallory.nc.Flush()
			}
			if err != nil {
				a.t.Fatal(err)
			}
			a.work()
			var keys wire.Keys
			a.mallory.ask(wire.SubjectKeys, nil, &keys) // her own answer comes to this, too, and is the last
			for {
				m, err := sub.NextMsg(5 * time.Second)
				if err != nil {
					a.t.Fatalf("not even her own answer came: %v", err)
				}
				if strings.Contains(string(m.Data), keys.LogKey) {
					return "NATS: an account of her own"
				}
				a.t.Errorf("she has heard %q", m.Data)
			}
		},
	},

	// Replies that are commands.
	replying("has requests answered into another's inbox", "the governor writes what she likes to the writer",
		func(a *arena) []string { return []string{"inbox." + a.writer.name} }),
	replying("has requests answered as an offer of another", "the governor publishes in the planner's name",
		func(a *arena) []string {
			return []string{"in." + a.planner.name + ".offer." + a.root.session + "." + a.writer.name, "in." + a.planner.name + ".result." + a.root.session}
		}),
	replying("has requests answered as a command to JetStream", "the answer purges, acknowledges or fetches",
		func(a *arena) []string {
			return []string{"$JS.API.STREAM.PURGE.INGRESS", "$JS.API.STREAM.DELETE.INBOX", "$JS.ACK.INBOX." + a.writer.name + ".1.1.1.1.0",
				"$JS.ACK.INGRESS.governor.1.1.1.1.0", "$JS.API.CONSUMER.MSG.NEXT.INGRESS.governor"}
		}),
	replying("has requests answered on the feed and as receipts", "guards and senders believe her",
		func(a *arena) []string {
			return []string{"revoked.feed", wire.SubjectRevoked, "receipt." + a.planner.name, "$SYS.REQ.CLAIMS.UPDATE", "_R_.x", ">", "*"}
		}),
	{
		name: "has her acknowledgements answered elsewhere", wins: "+NXT writes the next message where she likes",
		try: func(a *arena) string {
			m := a.own(2)
			for _, reply := range []string{"inbox." + a.writer.name, "in." + a.planner.name + ".offer." + a.root.session + "." + a.writer.name, "revoked.feed"} {
				if err := a.mallory.nc.PublishRequest(m.Reply(), reply, []byte("+NXT")); err != nil {
					a.t.Fatal(err)
				}
			}
			return a.nothingCame("NATS: services answer only the account that asks")
		},
	},

	// Headers that JetStream obeys.
	heading("rolls up the stream", "all offers that wait are gone", nats.Header{"Nats-Rollup": {"all"}}),
	heading("lets messages of the stream expire", "offers are gone before they are decided", nats.Header{"Nats-TTL": {"1s"}}),
	heading("schedules messages", "the server publishes as the planner tomorrow",
		nats.Header{"Nats-Schedule": {"@at 2099-01-01T00:00:00Z"}, "Nats-Schedule-Target": {"in.x.offer.y.z"}}),
	heading("begins a batch and never ends it", "the stream waits for her", nats.Header{"Nats-Batch-Id": {"x"}, "Nats-Batch-Sequence": {"1"}}),
	heading("counts instead of publishing", "a message of others becomes a number", nats.Header{"Nats-Incr": {"1"}}),
	heading("demands a last sequence", "the stream is hers for as long as she is in step with it", nats.Header{"Nats-Expected-Last-Sequence": {"1"}}),
	heading("demands another stream", "her offer goes where it does not belong", nats.Header{"Nats-Expected-Stream": {"INBOX"}}),
	{
		name: "uses up the message IDs of others", wins: "the planner's offer is taken for a repeat, and dropped",
		try: func(a *arena) string {
			id := newID(a.t)
			mine := a.mallory.session(readFiles())
			mine.offer(a.bob().name, "work", func(o *offering) { o.header["Nats-Msg-Id"] = []string{id} })
			// The window in which the server would compare is the shortest that it has: a tenth of a second.
			time.Sleep(250 * time.Millisecond)
			o := a.root.offer(a.bob().name, "work", func(o *offering) { o.header["Nats-Msg-Id"] = []string{id} })
			a.planner.receipt(o.id)
			return "governor: the ledger alone knows repeats"
		},
	},
	{
		name: "has her messages traced", wins: "the server tells her of streams and accounts",
		try: func(a *arena) string {
			heard, err := a.mallory.nc.SubscribeSync("_INBOX.trace.>")
			if err != nil {
				a.t.Fatal(err)
			}
			errs := a.mallory.complaints()
			err = a.mallory.nc.PublishMsg(&nats.Msg{Subject: wire.OfferSubject(a.root.session, a.bob().name), Header: nats.Header{
				"Nats-Trace-Dest": {"_INBOX.trace.x"}}})
			if err != nil {
				a.t.Fatal(err)
			}
			refused := a.mallory.violation("having a message traced", errs)
			if m, err := heard.NextMsg(50 * time.Millisecond); err == nil {
				a.t.Errorf("she is told %s", m.Data)
			}
			return refused
		},
	},
	{
		name: "writes the words of the server", wins: "the governor takes her message for the end of the stream",
		try: func(a *arena) string {
			mine := a.mallory.session(readFiles())
			for _, status := range []string{"409", "404", "408", "100", "503"} {
				o := mine.offer(a.bob().name, "work", func(o *offering) {
					o.header["Status"], o.header["Description"] = []string{status}, []string{"Consumer Deleted"}
				})
				a.mallory.receipt(o.id)
			}
			return "governor: read as any other message"
		},
	},
	{
		name: "repeats a header in another case", wins: "one reader sees a token, another its twin",
		try: func(a *arena) string {
			mine := a.mallory.session(readFiles())
			return a.offerRefused(mine, wire.CodeHeaderRepeated, func(o *offering) { o.header["handoff-token"] = []string{"x"} })
		},
	},

	// Getting in.
	{
		name: "connects without a certificate", wins: "an account, and somebody's name",
		try: func(a *arena) string {
			config := a.clientTLS("/agent/mallory")
			config.GetClientCertificate = nil
			return a.shutOut(config)
		},
	},
	{
		name: "connects with a certificate that she signed herself", wins: "the planner's name",
		try: func(a *arena) string {
			config := a.clientTLS("/agent/mallory")
			cert := a.selfSigned("/agent/planner")
			config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &cert, nil }
			return a.shutOut(config)
		},
	},
	{
		name: "connects with a token that she signed herself", wins: "the planner's name",
		try: func(a *arena) string {
			config := a.clientTLS("/agent/mallory")
			config.GetClientCertificate = nil
			token := rawToken(`{"alg":"ES256","typ":"JWT"}`, fmt.Sprintf(`{"sub":"spiffe://handoff.local/agent/planner","aud":[%q],"exp":%d}`,
				a.d.Endpoint.Governor, time.Now().Unix()+300), a.mallory.key)
			return a.shutOut(config, nats.Token(token))
		},
	},
	{
		name: "connects as a NATS user", wins: "the governor's account",
		try: func(a *arena) string {
			config := a.clientTLS("/agent/mallory")
			config.GetClientCertificate = nil
			for _, as := range []nats.Option{nats.UserInfo("governor", ""), nats.UserInfo("routes", "routes"), nats.Token("governor"),
				nats.UserInfo("sys", "password")} {
				a.shutOut(config, as)
			}
			return a.shutOut(config, nats.UserInfo("GOVERNOR", "GOVERNOR"))
		},
	},
	{
		name: "names another user beside her certificate", wins: "the account of that user",
		try: func(a *arena) string {
			conn, err := nats.Connect(a.d.Endpoint.URL, nats.Secure(a.clientTLS("/agent/mallory")), nats.TLSHandshakeFirst(),
				nats.UserInfo("governor", "governor"), nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {}))
			if err != nil {
				return "NATS: authorization violation"
			}
			defer conn.Close()
			twin := &agent{w: a.world, t: a.t, nc: conn}
			return twin.forbidden("in."+a.planner.name+".result.x", nil)
		},
	},
	{
		name: "connects with an identity that has no role", wins: "an account without permissions of a role",
		try: func(a *arena) string { return a.shutOut(a.clientTLS("/service/billing")) },
	},
	{
		name: "connects as a server's identity", wins: "what servers may",
		try: func(a *arena) string { return a.shutOut(a.clientTLS("/nats/nats-1")) },
	},
	{
		name: "speaks to servers as one of them", wins: "every message of every account",
		try: (*arena).asServer,
	},
	{
		name: "offers as a guard", wins: "tasks from somebody who has no inbox",
		try: func(a *arena) string {
			g := &agent{w: a.world, t: a.t}
			g.connect("/guard/mallory")
			g.forbidden(wire.OfferSubject(a.root.session, a.writer.name), []byte("do this"))
			g.forbidden(wire.SubjectSessionOpen, nil)
			return g.forbidden(wire.ClaimSubject(a.root.session), nil)
		},
	},
}

// publishing is an attack that publishes where that is forbidden.
func publishing(name, wins string, subjects func(*arena) []string) attack {
	return attack{name, wins, func(a *arena) string {
		before, refused := a.entries(), ""
		for _, subject := range subjects(a) {
			refused = a.mallory.forbidden(subject, []byte("+TERM"))
		}
		a.wrote(before, 0)
		return refused
	}}
}

// listening is an attack that subscribes where that is forbidden; a queue follows the subject.
func listening(name, wins string, subjects func(*arena) []string) attack {
	return attack{name, wins, func(a *arena) string {
		refused := ""
		for _, subject := range subjects(a) {
			refused = a.mallory.deaf(subject)
		}
		return refused
	}}
}

// replying is an attack that has everything which answers answer to a subject of others.
func replying(name, wins string, replies func(*arena) []string) attack {
	return attack{name, wins, func(a *arena) string {
		a.own(2) // so that a pull has something to bring
		before := a.entries()
		for _, reply := range replies(a) {
			for _, subject := range []string{
				wire.SubjectKeys, wire.SubjectSessionOpen, wire.SubjectSessionClose, wire.SubjectSessionStatus, wire.ClaimSubject(a.root.session),
				wire.OfferSubject(a.root.session, a.writer.name), wire.ResultSubject(a.root.session),
				wire.InboxPrefix + ".CONSUMER.INFO.INBOX.inbox", wire.InboxPrefix + ".CONSUMER.MSG.NEXT.INBOX.inbox",
			} {
				if err := a.mallory.nc.PublishRequest(subject, reply, []byte(`{"batch":1,"no_wait":true}`)); err != nil {
					a.t.Fatal(err)
				}
			}
		}
		refused := a.nothingCame("NATS: services answer only the account that asks")
		a.wrote(before, entriesOfWork)
		return refused
	}}
}

// heading is an attack with headers that mean something to JetStream. They must not touch the planner's offer, which waits
// in the same stream.
func heading(name, wins string, header nats.Header) attack {
	return attack{name, wins, func(a *arena) string {
		mine := a.mallory.session(readFiles())
		o := mine.draft(a.bob().name, "work")
		mine.seal(o)
		for name, values := range header {
			o.header[name] = values
		}
		theirs := a.root.offer(a.bob().name, "work")
		ack, err := a.mallory.nc.RequestMsg(&nats.Msg{Subject: o.subject, Header: o.header, Data: o.body}, 5*time.Second)
		a.planner.receipt(theirs.id)
		switch {
		case errors.Is(err, nats.ErrTimeout):
			return "NATS: no answer, and nothing stored"
		case err != nil:
			a.t.Fatal(err)
		case !strings.Contains(string(ack.Data), `"error"`):
			a.t.Fatalf("the server has taken it: %s", ack.Data)
		}
		return "NATS: " + between(string(ack.Data), `"description":"`, `"`)
	}}
}

func between(s, before, after string) string {
	_, s, _ = strings.Cut(s, before)
	s, _, _ = strings.Cut(s, after)
	return s
}

// own puts messages into mallory's own inbox, verdicts about offers that are denied, and returns the first, not acknowledged.
func (a *arena) own(n int) jetstream.Msg {
	a.t.Helper()
	mine := a.mallory.session(readFiles())
	before := a.entries()
	for range n {
		mine.offer(a.bob().name, "work", func(o *offering) { o.claims.Tools = aat.Tools{"fs.write": {}} })
	}
	for end := time.Now().Add(10 * time.Second); a.entries() < before+uint64(n); {
		if time.Now().After(end) {
			a.t.Fatal("her offers are not decided")
		}
	}
	m, err := a.mallory.inbox.Next(jetstream.FetchMaxWait(10 * time.Second))
	if err != nil {
		a.t.Fatal(err)
	}
	return m
}

// nothingCame checks that what mallory has done so far has reached nobody. What is sent later comes later: the planner and
// the writer see their own work, and nothing else.
func (a *arena) nothingCame(refused string) string {
	a.t.Helper()
	if err := a.mallory.nc.Flush(); err != nil {
		a.t.Fatal(err)
	}
	// Where a request was answered to ">", the client takes that for the answer to the next one, and passes over the true one.
	_, err := a.mallory.nc.Request(wire.SubjectKeys, nil, time.Second)
	for tries := 0; err != nil && tries < 10; tries++ {
		_, err = a.mallory.nc.Request(wire.SubjectKeys, nil, time.Second)
	}
	if err != nil {
		a.t.Fatalf("she is not answered any more: %v", err)
	}
	a.work()
	return refused
}

// deaf subscribes where that is forbidden.
func (a *agent) deaf(subject string) string {
	a.t.Helper()
	errs := a.complaints()
	subject, queue, _ := strings.Cut(subject, " ")
	sub, err := a.nc.QueueSubscribeSync(subject, queue)
	if err != nil {
		a.t.Fatal(err)
	}
	defer sub.Unsubscribe()
	return a.violation("subscribing to "+subject, errs)
}

// clientTLS is what an identity connects with.
func (a *arena) clientTLS(path string) *tls.Config {
	a.t.Helper()
	source := a.place.Source(path)
	return identity.ClientTLS(source, source, identity.ServerOf(spiffeid.RequireFromPath(daemontest.TrustDomain, "/governor")))
}

// shutOut connects, and is not let in.
func (a *arena) shutOut(config *tls.Config, opts ...nats.Option) string {
	a.t.Helper()
	for _, server := range strings.Split(a.d.Endpoint.URL, ",") {
		conn, err := nats.Connect(server, append([]nats.Option{
			nats.Secure(config.Clone()), nats.TLSHandshakeFirst(), nats.Timeout(5 * time.Second), nats.IgnoreDiscoveredServers()}, opts...)...)
		if err == nil {
			conn.Close()
			a.t.Fatal("she is in")
		}
		if !errors.Is(err, nats.ErrAuthorization) && !strings.Contains(err.Error(), "tls:") && !errors.Is(err, net.ErrClosed) &&
			!strings.Contains(err.Error(), "EOF") && !strings.Contains(err.Error(), "reset by peer") {
			a.t.Errorf("connecting: %v", err)
		}
	}
	return "NATS: not let in"
}

// selfSigned is an SVID that nobody vouches for.
func (a *arena) selfSigned(path string) tls.Certificate {
	a.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), URIs: []*url.URL{spiffeid.RequireFromPath(daemontest.TrustDomain, path).URL()},
		NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageDigitalSignature,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		a.t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// asServer speaks as servers do among themselves.
func (a *arena) asServer() string {
	if a.place.NATS == nil {
		// The embedded server has no port for others. Where clients connect, it takes nothing but clients.
		conn, err := tls.Dial("tcp", strings.TrimPrefix(a.d.Endpoint.URL, "tls://"), a.clientTLS("/agent/mallory"))
		if err != nil {
			a.t.Fatal(err)
		}
		defer conn.Close()
		return a.hungUp(conn, "INFO {\"server_id\":\"X\",\"cluster\":\"handoff\"}\r\nRS+ $G >\r\n")
	}
	for _, route := range a.place.NATS.Routes {
		ctx, cancel := context.WithTimeout(a.t.Context(), 5*time.Second)
		defer cancel()
		conn, err := (&tls.Dialer{Config: a.clientTLS("/agent/mallory")}).DialContext(ctx, "tcp", route)
		if err != nil {
			a.t.Fatal(err)
		}
		defer conn.Close()
		a.hungUp(conn, "CONNECT {\"verbose\":false,\"tls_required\":true,\"name\":\"X\",\"cluster\":\"handoff\",\"user\":\"routes\",\"pass\":\"routes\"}\r\n"+
			"INFO {\"server_id\":\"X\",\"server_name\":\"X\",\"cluster\":\"handoff\",\"headers\":true}\r\nRS+ $G >\r\nPING\r\n")
	}
	return "NATS: not let in"
}

// hungUp says something that the other side hangs up on.
func (a *arena) hungUp(conn net.Conn, say string) string {
	a.t.Helper()
	_ = conn.SetDeadline(time.Now().Add(8 * time.Second))
	if _, err := conn.Write([]byte(say)); err != nil {
		return "NATS: not let in"
	}
	var heard strings.Builder
	buffer := make([]byte, 4096)
	for {
		n, err := conn.Read(buffer)
		heard.Write(buffer[:n])
		if e, ok := errors.AsType[net.Error](err); ok && e.Timeout() {
			a.t.Fatalf("the server goes on listening; it said %q", heard.String())
		}
		if err != nil {
			break
		}
	}
	if strings.Contains(heard.String(), "RMSG") || strings.Contains(heard.String(), "\nMSG") || strings.Contains(heard.String(), "RS+") {
		a.t.Errorf("the server has told her %q", heard.String())
	}
	return "NATS: not let in"
}
