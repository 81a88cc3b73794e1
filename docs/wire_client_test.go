package docs_test

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/google/uuid"
	"github.com/nats-io/nats.go"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"

	"github.com/handoff-governor/handoff-governor/cmd/governor/daemon"
	"github.com/handoff-governor/handoff-governor/handoff/aat"
	"github.com/handoff-governor/handoff-governor/handoff/guard"
	"github.com/handoff-governor/handoff-governor/handoff/wire"
	"github.com/handoff-governor/handoff-governor/policies"
)

// The client here knows of the wire what docs/wire.md says: NATS, Ed25519, SHA-256, base64url and canonical JSON. It uses
// none of our packages to speak, so what it can do, a client in another language can.

const (
	trustDomain = "acme.example"
	toolOrigin  = "https://tools.acme.example"
	answerTime  = 10 * time.Second
)

type object = map[string]any

var b64 = base64.RawURLEncoding

// party is a process with an identity and, for agents, a key.
type party struct {
	t    *testing.T
	name string
	key  ed25519.PrivateKey
	nc   *nats.Conn

	receipts *nats.Subscription
	keys     object // the answer of handoff.keys
}

// nameOf is the name of a SPIFFE ID.
func nameOf(id string) string {
	return strings.NewReplacer(".", "=d", "/", "=s").Replace(strings.TrimPrefix(id, "spiffe://"))
}

// connect makes a party of the SPIFFE ID with this path.
func connect(t *testing.T, d *daemon.Daemon, path string) *party {
	t.Helper()
	p := &party{t: t, name: nameOf("spiffe://" + trustDomain + path)}
	source, err := d.Source(path)
	check(t, err)
	governor := spiffeid.RequireFromString(d.Endpoint.Governor)
	p.nc, err = nats.Connect(d.Endpoint.URL, nats.TLSHandshakeFirst(),
		nats.Secure(tlsconfig.MTLSClientConfig(source, source, tlsconfig.AuthorizeID(governor))))
	check(t, err)
	t.Cleanup(p.nc.Close)
	_, p.key, err = ed25519.GenerateKey(rand.Reader)
	check(t, err)
	p.keys = p.ask("handoff.keys", nil).json(t)
	if strings.HasPrefix(path, "/agent/") {
		p.receipts, err = p.nc.SubscribeSync("handoff.receipt")
		check(t, err)
		check(t, p.nc.Flush()) // a receipt may come before the answer of what follows
	}
	return p
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// jwk is the public half of a key.
func jwk(key ed25519.PrivateKey) object {
	return object{"kty": "OKP", "crv": "Ed25519", "x": b64.EncodeToString(key.Public().(ed25519.PublicKey))}
}

// newID is a UUIDv7 with the present time.
func newID() string { return uuid.Must(uuid.NewV7()).String() }

// canonical is RFC 8785.
func canonical(t *testing.T, v any) []byte {
	t.Helper()
	b, err := json.Marshal(v)
	check(t, err)
	check(t, (*jsontext.Value)(&b).Canonicalize())
	return b
}

func hash(parts ...[]byte) string {
	sum := sha256.Sum256(bytes.Join(parts, nil))
	return b64.EncodeToString(sum[:])
}

// sign makes a compact JWS.
func sign(t *testing.T, typ string, payload object, key ed25519.PrivateKey) string {
	t.Helper()
	input := b64.EncodeToString([]byte(`{"alg":"Ed25519","typ":"`+typ+`"}`)) + "." + b64.EncodeToString(canonical(t, payload))
	return input + "." + b64.EncodeToString(ed25519.Sign(key, []byte(input)))
}

// linkHash is what par_hash and aat_hash carry: of a token without its signature.
func linkHash(token string) string { return hash([]byte(token[:strings.LastIndexByte(token, '.')])) }

// payloadOf reads a JWS without checking it.
func payloadOf(t *testing.T, token string) object {
	t.Helper()
	var payload object
	raw, err := b64.DecodeString(strings.Split(token, ".")[1])
	check(t, err)
	check(t, json.Unmarshal(raw, &payload))
	return payload
}

// message is what goes over the wire.
type message struct {
	way     string // "→" from the client, "←" to it
	subject string
	header  map[string][]string
	body    []byte
	reply   string // where an inbox message is acknowledged
}

func (m message) json(t *testing.T) object {
	t.Helper()
	var v object
	if err := json.Unmarshal(m.body, &v); err != nil {
		t.Fatalf("%s: %s: %v", m.subject, m.body, err)
	}
	return v
}

// ask makes a request and returns the answer.
func (p *party) ask(subject string, body []byte) message {
	p.t.Helper()
	answer, err := p.nc.Request(subject, body, answerTime)
	for end := time.Now().Add(answerTime); errors.Is(err, nats.ErrNoResponders) && time.Now().Before(end); {
		answer, err = p.nc.Request(subject, body, answerTime) // the governor is not up yet
	}
	if err != nil {
		p.t.Fatalf("%s: %v", subject, err)
	}
	return message{way: "←", subject: "the answer", body: answer.Data}
}

// request asks with JSON, and returns both sides.
func (p *party) request(subject string, body object) []message {
	p.t.Helper()
	raw, err := json.Marshal(body, json.Deterministic(true))
	check(p.t, err)
	return []message{{way: "→", subject: subject, body: raw}, p.ask(subject, raw)}
}

// publish queues an offer or a result, and returns it with the server's word that it is queued.
func (p *party) publish(m message) []message {
	p.t.Helper()
	m.way = "→"
	ack, err := p.nc.RequestMsg(&nats.Msg{Subject: m.subject, Header: m.header, Data: m.body}, answerTime)
	check(p.t, err)
	return []message{m, {way: "←", subject: "the answer", body: ack.Data}}
}

// receipt waits for the receipt of an ID.
func (p *party) receipt(id string) message {
	p.t.Helper()
	for {
		m, err := p.receipts.NextMsg(answerTime)
		if err != nil {
			p.t.Fatalf("no receipt for %s: %v", id, err)
		}
		if bytes.Contains(m.Data, []byte(id)) {
			return message{way: "←", subject: m.Subject, body: m.Data}
		}
	}
}

const pullSubject = "handoff.inbox.CONSUMER.MSG.NEXT.INBOX.inbox"

// next waits for an inbox message of a kind about a handoff, and acknowledges whatever it sees. It returns the pull and
// the message.
func (p *party) next(kind, id string) []message {
	p.t.Helper()
	for {
		reply := nats.NewInbox()
		sub, err := p.nc.SubscribeSync(reply)
		check(p.t, err)
		pull := []byte(`{"batch":1,"expires":5000000000}`)
		check(p.t, p.nc.PublishRequest(pullSubject, reply, pull))
		m, err := sub.NextMsg(answerTime)
		if err != nil {
			p.t.Fatalf("no %s about %s: %v", kind, id, err)
		}
		check(p.t, sub.Unsubscribe())
		if m.Header.Get("Status") != "" {
			p.t.Fatalf("no %s about %s: %v", kind, id, m.Header)
		}
		check(p.t, p.nc.Publish(m.Reply, []byte("+ACK")))
		if m.Header.Get("Handoff-Kind") == kind && m.Header.Get("Handoff-Id") == id {
			return []message{
				{way: "→", subject: pullSubject, body: pull},
				{way: "←", subject: "an answer", header: m.Header, body: m.Data, reply: m.Reply},
			}
		}
	}
}

// proof is the payload that all our proofs begin with.
func (p *party) proof(audience, subject any) object {
	now := time.Now().Unix()
	return object{"jti": newID(), "iat": now, "exp": now + 60, "aud": audience, "sub": subject}
}

// prove signs a request of the session's, whose proof is the empty string until then.
func (p *party) prove(verb string, request object) object {
	p.t.Helper()
	request["proof"] = ""
	proof := p.proof(p.keys["governor"], p.name)
	proof["verb"] = verb
	proof["request_hash"] = hash(canonical(p.t, request))
	request["proof"] = sign(p.t, "handoff-session+jwt", proof, p.key)
	return request
}

// openRequest asks for a session, and is still to be proved.
func (p *party) openRequest() object {
	return object{
		"id": newID(), "objective": "Report on the sales of March.",
		"principal": object{"kind": "workload", "name": p.name},
		"tools":     tools(), "labels": []any{"internal"}, "ttl": 3600, "max_hops": 2, "budget": object{"handoffs": 20},
		"jwk": jwk(p.key),
	}
}

func tools() object {
	return object{
		"docs.search": object{"query": object{"constraint_type": "wildcard"}, "limit": object{"constraint_type": "range", "max": 100, "optional": true}},
		"mail.send":   object{"to": object{"constraint_type": "wildcard"}},
	}
}

// grant is a chain that the governor gave to a party.
type grant struct {
	p       *party
	chain   []string
	session string
	handoff string // of a claimed task
	next    any    // the governor's key, which the next offer must name
}

func (p *party) grant(session, handoff string, answer object) grant {
	p.t.Helper()
	chain, ok := answer["aat_chain"].([]any)
	if !ok {
		p.t.Fatalf("there is no chain in %v", answer)
	}
	g := grant{p: p, session: session, handoff: handoff, next: answer["governor_jwk"]}
	for _, token := range chain {
		g.chain = append(g.chain, token.(string))
	}
	return g
}

func (g grant) leaf() string { return g.chain[len(g.chain)-1] }

// offer makes an offer of a task with some of the tools.
func (g grant) offer(to string, task string, tools object, labels ...any) (id string, m message) {
	t := g.p.t
	t.Helper()
	parent := payloadOf(t, g.leaf())
	expires := parent["exp"]
	salt := make([]byte, 32)
	rand.Read(salt)
	id = newID()
	sum := sha256.Sum256(canonical(t, jwk(g.p.key))) // RFC 7638, since jwk has exactly the members that it wants
	link := object{
		"jti": id, "iss": "urn:ietf:params:oauth:jwk-thumbprint:sha-256:" + b64.EncodeToString(sum[:]),
		"iat": time.Now().Unix(), "exp": expires, "cnf": object{"jwk": g.next},
		"del_depth": parent["del_depth"].(float64) + 1, "del_max_depth": parent["del_max_depth"],
		"par_hash":              linkHash(g.leaf()),
		"authorization_details": []any{object{"type": "attenuating_agent_token", "tools": tools}},
		"handoff": object{
			"session": g.session, "to": to, "mode": "delegate", "task_hash": hash(salt, []byte(task)),
			"content_type": "text/plain", "purpose": "find the figures", "labels": append([]any{"internal"}, labels...),
			"deadline": expires,
		},
	}
	return id, message{
		subject: "handoff.offer." + g.session + "." + to, body: []byte(task),
		header: map[string][]string{
			"Handoff-Token": {sign(t, "aat+jwt", link, g.p.key)}, "Handoff-Salt": {b64.EncodeToString(salt)},
			"Content-Type": {"text/plain"}, "traceparent": {"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"},
		},
	}
}

// claim asks for a task.
func (p *party) claim(session, id string) []message {
	p.t.Helper()
	return p.request("handoff.claim."+session, p.claimRequest(id))
}

func (p *party) claimRequest(id string) object {
	p.t.Helper()
	proof := p.proof(p.keys["governor"], p.name)
	proof["ids"] = []any{id}
	return object{"ids": []any{id}, "jwk": jwk(p.key), "proof": sign(p.t, "handoff-claim+jwt", proof, p.key)}
}

// result makes the result of a claimed task.
func (g grant) result(body string) (id string, m message) {
	t := g.p.t
	t.Helper()
	salt := make([]byte, 32)
	rand.Read(salt)
	id = newID()
	token := sign(t, "handoff-result+jwt", object{
		"jti": id, "iat": time.Now().Unix(), "aud": g.p.keys["governor"], "id": g.handoff, "status": "completed",
		"body_hash": hash(salt, []byte(body)), "content_type": "text/plain", "labels": []any{"internal"},
	}, g.p.key)
	return id, message{
		subject: "handoff.result." + g.session, body: []byte(body),
		header: map[string][]string{
			"Handoff-Id": {g.handoff}, "Handoff-Token": {token}, "Handoff-Salt": {b64.EncodeToString(salt)},
			"Content-Type": {"text/plain"},
		},
	}
}

// call makes a call of a tool.
func (g grant) call(tool string, args object) []byte {
	t := g.p.t
	t.Helper()
	proof := object{
		"jti": newID(), "iat": time.Now().Unix(), "aat_id": payloadOf(t, g.leaf())["jti"], "aat_hash": linkHash(g.leaf()),
		"aat_tool": tool, "aat_aud": toolOrigin, "hta": args,
	}
	body, err := json.Marshal(object{
		"tool": tool, "args": args, "aat_chain": g.chain, "aat_pop": sign(t, "aat-pop+jwt", proof, g.p.key),
	}, json.Deterministic(true))
	check(t, err)
	return body
}

// wireDaemon is the real thing, with a policy that has something to say.
func wireDaemon(t *testing.T, people map[string]aat.JWK) *daemon.Daemon {
	t.Helper()
	bundle := policies.Default()
	for at, value := range map[string]any{
		"/principals": object{"human:alice": object{"agents": []string{"/agent/planner"}}, "*": object{"agents": []string{"*"}}},
		"/zones":      object{"pii": []string{"/agent/planner"}},
		"/approvals": object{"mail": object{
			"tool": "mail.send", "within": object{"to": object{"constraint_type": "exact", "value": "team@acme.example"}},
		}},
	} {
		var err error
		bundle, err = bundle.WithData(at, value)
		check(t, err)
	}
	dir, err := os.MkdirTemp(scratch, "") // short, since sockets lie below it
	check(t, err)
	d, err := daemon.Start(t.Context(), daemon.Config{
		Dir: dir, Listen: "127.0.0.1:0", TrustDomain: trustDomain, Bundle: bundle, People: people,
	})
	check(t, err)
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	})
	return d
}

// captureWire has every kind of message sent once, and returns them by the name of the page's example.
func captureWire(t *testing.T) map[string][]message {
	_, aliceKey, err := ed25519.GenerateKey(rand.Reader)
	check(t, err)
	d := wireDaemon(t, map[string]aat.JWK{"alice": aat.NewJWK(aliceKey.Public().(ed25519.PublicKey))})
	planner := connect(t, d, "/agent/planner")
	researcher := connect(t, d, "/agent/researcher")
	tool := connectGuard(t, d)
	operator := connect(t, d, "/operator/ops")
	seen := map[string][]message{}

	// A session, and one in a person's name.
	seen["keys"] = planner.request("handoff.keys", object{})
	request := planner.prove("session.open", planner.openRequest())
	session := request["id"].(string)
	seen["open"] = planner.request("handoff.session.open", request)
	root := planner.grant(session, "", seen["open"][1].json(t))

	request = planner.openRequest()
	request["proof"] = ""
	request["principal"] = object{"kind": "human", "name": "alice", "proof": ""}
	person := planner.proof(planner.keys["issuer"], "alice")
	person["request_hash"] = hash(canonical(t, request))
	request["principal"].(object)["proof"] = sign(t, "handoff-principal+jwt", person, aliceKey)
	seen["open-person"] = planner.request("handoff.session.open", planner.prove("session.open", request))
	planner.grant(request["id"].(string), "", seen["open-person"][1].json(t)) // it has the same form
	seen["open-person"] = seen["open-person"][:1]

	request = researcher.openRequest()
	request["principal"] = object{"kind": "human", "name": "alice", "proof": request["id"]}
	seen["open-denied"] = researcher.request("handoff.session.open", researcher.prove("session.open", request))[1:]

	// A task, there and back.
	some := object{"docs.search": object{"query": object{"constraint_type": "one_of", "values": []any{"sales march", "returns march"}}}}
	id, offer := root.offer(researcher.name, "Find the numbers for March.", some)
	seen["offer"] = planner.publish(offer)
	seen["receipt"] = []message{planner.receipt(id)}
	seen["notice"] = researcher.next("task", id)
	seen["claim"] = researcher.claim(session, id)
	claimed := seen["claim"][1].json(t)["claims"].([]any)[0].(object)
	task := researcher.grant(session, id, claimed)
	if string(offer.body) != string(must(base64.StdEncoding.DecodeString(claimed["task"].(string)))) {
		t.Fatal("the task that came is not the one that was sent")
	}

	renewal := researcher.claimRequest(id)
	renewal["renew"] = true
	seen["claim-renewed"] = researcher.request("handoff.claim."+session, renewal)[1:]

	seen["claim-refused"] = connect(t, d, "/agent/researcher").claim(session, id)[1:]

	seen["call"], seen["call-refused"] = tool.calls(task.call("docs.search", object{"query": "sales march"}))

	resultID, result := task.result("1204 orders, 88 returns.")
	seen["result"] = researcher.publish(result)
	seen["result-receipt"] = []message{researcher.receipt(resultID)}
	seen["result-message"] = planner.next("result", id)[1:]

	// Every other answer to an offer.
	id, offer = root.offer(researcher.name, "Ask Mr Muster.", some, "pii")
	planner.publish(offer)
	seen["denied"] = planner.next("verdict", id)[1:]

	id, offer = root.offer(researcher.name, "Write to the team.", object{"mail.send": object{"to": object{"constraint_type": "wildcard"}}})
	planner.publish(offer)
	seen["held"] = planner.next("verdict", id)[1:]
	held := seen["held"][0].json(t)["entry"]
	seen["approve"] = operator.request("handoff.operator.approve", object{"index": held, "approve": true})
	seen["allowed"] = planner.next("verdict", id)[1:]

	seen["revoke"] = operator.request("handoff.operator.revoke", object{"id": id, "reason": "sent by mistake"})
	seen["revoked"] = planner.next("verdict", id)[1:]

	id, offer = root.offer(researcher.name, "Find the numbers for April.", some)
	offer.header["Handoff-Salt"] = []string{"short"}
	planner.publish(offer)
	seen["refused"] = planner.next("verdict", id)[1:]

	// It is set aside a moment after its sender was told.
	for end := time.Now().Add(answerTime); ; time.Sleep(10 * time.Millisecond) {
		seen["quarantine.list"] = operator.request("handoff.operator.quarantine.list", object{})
		if _, there := seen["quarantine.list"][1].json(t)["quarantined"]; there {
			break
		} else if time.Now().After(end) {
			t.Fatal("nothing is in quarantine")
		}
	}
	seen["quarantine.show"] = operator.request("handoff.operator.quarantine.show", object{"index": 1})
	seen["quarantine.drop"] = operator.request("handoff.operator.quarantine.drop", object{"index": 1})

	// What the operator asks.
	for name, q := range map[string]object{
		"health": {}, "session.list": {}, "checkpoint": {},
		"body":            {"index": receiptIndex(t, seen["receipt"][0])},
		"chain.entries":   {"from": seen["revoke"][1].json(t)["entry"]},
		"bundle.activate": {"bundle": base64.StdEncoding.EncodeToString([]byte("no bundle"))},
	} {
		seen[name] = operator.request("handoff.operator."+name, q)
	}
	health := seen["health"][1].json(t)["health"].(object)
	seen["bundle"] = operator.request("handoff.operator.bundle", object{"digest": health["bundle"]})
	entries := seen["chain.entries"][1].json(t)
	entries["entries"] = entries["entries"].([]any)[:1] // how many follow depends on the clock
	seen["chain.entries"][1].body = must(json.Marshal(entries, json.Deterministic(true)))

	// The end, as guards hear of it.
	seen["status"] = planner.request("handoff.session.status", planner.prove("session.status", object{"session": session}))
	seen["close"] = planner.request("handoff.session.close", planner.prove("session.close", object{"session": session, "reason": "done"}))
	seen["revocation"] = []message{tool.statement(func(links []any) bool { return len(links) > 0 })}
	seen["heartbeat"] = []message{tool.statement(func(links []any) bool { return len(links) == 0 })}
	seen["snapshot"] = []message{{way: "→", subject: "handoff.revocations", body: []byte(`{"after":""}`)},
		tool.p.ask("handoff.revocations", []byte(`{"after":""}`))}
	seen["closed"] = operator.request("handoff.operator.session.close", object{"session": session, "reason": "done"})

	// Who is cut off, and comes back.
	seen["identity.withdraw"] = operator.request("handoff.operator.identity.withdraw", object{"name": tool.p.name, "reason": "its key was published"})
	seen["identity.list"] = operator.request("handoff.operator.identity.list", object{})
	seen["identity.restore"] = operator.request("handoff.operator.identity.restore", object{"name": tool.p.name, "reason": "it has another"})

	// What JetStream itself refuses, since all headers together may have 64 KiB.
	_, offer = root.offer(researcher.name, "Find the numbers for May.", some)
	offer.header["Handoff-Token"] = []string{strings.Repeat("x", 64<<10)}
	seen["queue-refused"] = planner.publish(offer)[1:]
	return seen
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func receiptIndex(t *testing.T, m message) any {
	t.Helper()
	return m.json(t)["entries"].([]any)[0].(object)["index"]
}

// toolServer is a tool behind a real guard, which a client of ours keeps informed.
type toolServer struct {
	p     *party
	guard *guard.Guard
	http  *httptest.Server
	feed  *nats.Subscription
}

func connectGuard(t *testing.T, d *daemon.Daemon) *toolServer {
	t.Helper()
	s := &toolServer{p: connect(t, d, "/guard/tools")}
	var err error
	s.feed, err = s.p.nc.SubscribeSync("handoff.revoked.feed")
	check(t, err)
	var keys wire.Keys
	check(t, json.Unmarshal(s.p.ask("handoff.keys", nil).body, &keys))
	issuer, err := guard.IssuerOf(keys)
	check(t, err)
	back := time.Minute // it has been up for a while: just after its start a guard accepts no proof
	s.guard, err = guard.New(guard.Config{
		Audience: []string{toolOrigin}, Issuers: []guard.Issuer{issuer}, FeedTimeout: time.Minute,
		Now: func() time.Time { return time.Now().Add(-back) },
	})
	check(t, err)
	back = 0
	s.http = httptest.NewServer(guard.Handler(s.guard, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, `{"found":1}`)
	}), guard.Options{}))
	t.Cleanup(s.http.Close)
	check(t, s.guard.Feed(string(s.p.ask("handoff.revocations", nil).body)))
	return s
}

// calls makes a call, and the same one again.
func (s *toolServer) calls(body []byte) (first, second []message) {
	t := s.p.t
	t.Helper()
	for i, want := range []int{http.StatusOK, http.StatusForbidden} {
		answer, err := http.Post(s.http.URL, "application/json", bytes.NewReader(body))
		check(t, err)
		got, err := io.ReadAll(answer.Body)
		check(t, errors.Join(err, answer.Body.Close()))
		if answer.StatusCode != want {
			t.Fatalf("call %d was answered %s: %s", i, answer.Status, got)
		}
		m := []message{
			{way: "→", subject: "POST " + toolOrigin + "/", header: map[string][]string{"Content-Type": {"application/json"}}, body: body},
			{way: "←", subject: fmt.Sprint(answer.StatusCode), body: got},
		}
		if i == 0 {
			first = m
		} else {
			second = m[1:]
		}
	}
	return first, second
}

// statement waits for one on the feed.
func (s *toolServer) statement(wanted func(links []any) bool) message {
	t := s.p.t
	t.Helper()
	for {
		m, err := s.feed.NextMsg(answerTime)
		check(t, err)
		if links, _ := payloadOf(t, string(m.Data))["links"].([]any); wanted(links) {
			return message{way: "←", subject: m.Subject, body: m.Data}
		}
	}
}
