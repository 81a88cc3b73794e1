package guard_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"math/big"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/handoff-governor/handoff-governor/handoff/aat/jws"
	"github.com/handoff-governor/handoff-governor/handoff/guard"
	"github.com/handoff-governor/handoff-governor/handoff/wire"
)

// tool answers with what it was told.
var tool = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
	call, ok := guard.FromContext(r.Context())
	rest, _ := io.ReadAll(r.Body)
	if !ok || len(rest) > 0 {
		http.Error(w, "not behind a guard", http.StatusInternalServerError)
		return
	}
	io.WriteString(w, call.Agent+" "+call.Tool+" "+string(call.Args))
})

func body(t testing.TB, p guard.Presentation, args string) []byte {
	t.Helper()
	b, err := json.Marshal(guard.Request{Tool: "read", Args: jsontext.Value(args), Presentation: p})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func post(h http.Handler, body []byte, change ...func(*http.Request)) *httptest.ResponseRecorder {
	r := httptest.NewRequest(http.MethodPost, "/call", bytes.NewReader(body))
	for _, f := range change {
		f(r)
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}

func TestHandler(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	handler := guard.Handler(w.guard, tool, guard.Options{MaxBody: 64 << 10})
	h := w.root().to("b")

	spelled := `{ "path" : "\/a" }` // the tool gets it as it was sent
	in := bytes.Replace(body(t, h.present(), readA), []byte(readA), []byte(spelled), 1)
	if got := post(handler, in); got.Code != http.StatusOK || got.Body.String() != "b read "+spelled {
		t.Errorf("%d %s", got.Code, got.Body)
	}
	unknown := bytes.Replace(body(t, h.present(), readA), []byte("{"), []byte(`{"more":1,`), 1)
	if got := post(handler, unknown); got.Code != http.StatusOK {
		t.Errorf("an unknown member: %d %s", got.Code, got.Body)
	}

	good := string(body(t, h.present(), readA))
	for name, test := range map[string]struct {
		body   string
		status int
		code   wire.Code
	}{
		"empty":             {"", 400, wire.CodeMalformed},
		"no object":         {"[]", 400, wire.CodeMalformed},
		"trailing data":     {good + "{}", 400, wire.CodeMalformed},
		"a member twice":    {strings.Replace(good, `{"tool"`, `{"tool":"x","tool"`, 1), 400, wire.CodeMalformed},
		"an argument twice": {strings.Replace(good, `"path":"/a"`, `"path":"/a","path":"/a"`, 1), 400, wire.CodeMalformed},
		"other case":        {strings.Replace(good, `"tool"`, `"Tool"`, 1), 400, wire.CodeMalformed},
		"invalid UTF-8":     {strings.Replace(good, `/a`, "\xff", 1), 400, wire.CodeMalformed},
		"no arguments":      {strings.Replace(good, `"args"`, `"arg"`, 1), 400, wire.CodeMalformed},
		"null arguments":    {strings.Replace(good, readA, `null`, 1), 400, wire.CodeMalformed},
		"arguments listed":  {strings.Replace(good, readA, `["/a"]`, 1), 400, wire.CodeMalformed},
		"no chain":          {strings.Replace(good, `"aat_chain"`, `"chain"`, 1), 400, wire.CodeMalformed},
		"no proof":          {strings.Replace(good, `"aat_pop"`, `"pop"`, 1), 400, wire.CodeMalformed},
		"too large":         {good + strings.Repeat(" ", 64<<10), 413, wire.CodeTooLarge},
		"not granted":       {strings.Replace(good, `/a`, `/c`, 1), 403, wire.CodeNotGranted},
	} {
		t.Run(name, func(t *testing.T) {
			got := post(handler, []byte(test.body))
			e := refusal(t, got)
			if got.Code != test.status || e.Code != test.code || e.Message == "" {
				t.Errorf("%d %+v; want %d %s", got.Code, e, test.status, test.code)
			}
		})
	}
	if got := post(handler, []byte(good), func(r *http.Request) { r.Method = http.MethodGet }); got.Code != 405 || got.Header().Get("Allow") != "POST" {
		t.Errorf("GET: %d %v", got.Code, got.Header())
	}
	if got := post(handler, []byte(good)); got.Code != 200 {
		t.Errorf("what was refused has used up the proof: %d %s", got.Code, got.Body)
	}
	if e := refusal(t, post(handler, []byte(good))); e.Code != wire.CodeProof || e.Step != "7i" {
		t.Errorf("a second time: %+v", e)
	}
	w.advance(time.Minute)
	got := post(handler, body(t, h.present(), readA))
	if e := refusal(t, got); got.Code != 403 || e.Code != wire.CodeGuardFeed || got.Header().Get("Retry-After") != "1" {
		t.Errorf("without a feed: %d %+v %v", got.Code, e, got.Header())
	}
}

func refusal(t testing.TB, got *httptest.ResponseRecorder) *wire.Error {
	t.Helper()
	var answer struct {
		Error *wire.Error `json:"error"`
	}
	if err := json.Unmarshal(got.Body.Bytes(), &answer, json.RejectUnknownMembers(true)); err != nil || answer.Error == nil {
		t.Fatalf("the refusal is %d %q", got.Code, got.Body)
	}
	return answer.Error
}

// certificate is one with a SPIFFE ID; that somebody has verified it is the server's business.
func certificate(t testing.TB, id string) *x509.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1)}
	if id != "" {
		u, err := url.Parse(id)
		if err != nil {
			t.Fatal(err)
		}
		template.URIs = []*url.URL{u}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestHandlerKnowsTheCaller(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	handler := guard.Handler(w.guard, tool, guard.Options{})
	strict := guard.Handler(w.guard, tool, guard.Options{RequireCaller: true})
	h := w.root().to("acme=dexample=sagent=sb")
	as := func(id string) func(*http.Request) {
		c := certificate(t, id)
		return func(r *http.Request) { r.TLS = &tls.ConnectionState{PeerCertificates: []*x509.Certificate{c}} }
	}
	call := func() []byte { return body(t, h.present(), readA) }
	for _, handler := range []http.Handler{handler, strict} {
		if got := post(handler, call(), as("spiffe://acme.example/agent/b")); got.Code != 200 {
			t.Errorf("the holder: %d %s", got.Code, got.Body)
		}
		for _, id := range []string{"spiffe://acme.example/agent/a", "https://acme.example", ""} {
			got := post(handler, call(), as(id))
			if e := refusal(t, got); got.Code != 403 || e.Code != wire.CodeCaller {
				t.Errorf("%q: %d %+v", id, got.Code, e)
			}
		}
	}
	anonymous := func(r *http.Request) { r.TLS = &tls.ConnectionState{} }
	if got := post(handler, call(), anonymous); got.Code != 200 {
		t.Errorf("without a certificate: %d %s", got.Code, got.Body)
	}
	if e := refusal(t, post(strict, call(), anonymous)); e.Code != wire.CodeCaller {
		t.Errorf("without a certificate, where one is required: %+v", e)
	}
	failing := guard.Handler(w.guard, tool, guard.Options{Caller: func(*http.Request) (string, error) { return "", errors.New("no") }})
	if e := refusal(t, post(failing, call())); e.Code != wire.CodeCaller {
		t.Errorf("with a caller that cannot be told: %+v", e)
	}
}

// No body makes the handler do anything but refuse it properly or pass it to the tool, and what passes means the same to
// any reader.
func FuzzRequest(f *testing.F) {
	w := newWorld(f)
	h := w.root().to("b")
	handler := guard.Handler(w.guard, tool, guard.Options{MaxBody: 1 << 16})
	good := body(f, h.present(), readA)
	f.Add(good)
	f.Add([]byte(`{"tool":"","args":{},"aat_chain":[],"aat_pop":""}`))
	f.Add([]byte(`{"tool":"read","args":{"path":"/a"},"aat_chain":["a.b.c"],"aat_pop":"a.b.c"}`))
	f.Add([]byte(`{"tool":"read","args":{"a":1e400},"aat_chain":[".."],"aat_pop":".."}`))
	f.Add(bytes.Replace(good, []byte(`"/a"`), []byte(`{"a":[[[[]]]]}`), 1))
	f.Fuzz(func(t *testing.T, in []byte) {
		got := post(handler, in)
		switch got.Code {
		case 200:
			req, err := guard.ParseRequest(in)
			if err != nil || req.Tool != "read" {
				t.Errorf("passed: %q", in)
			}
		case 400, 403, 413:
			if e := refusal(t, got); e.Code == "" || e.Message == "" {
				t.Errorf("%d %+v", got.Code, e)
			}
		default:
			t.Errorf("status %d for %q", got.Code, in)
		}
	})
}

// FuzzFeed plays a governor that signs whatever it likes: no statement takes a revocation back, and none makes a guard go on
// without the statement that it has missed.
func FuzzFeed(f *testing.F) {
	w := newWorld(f)
	other := w.root().revoked(0, wire.StateEnded)
	for _, s := range []wire.RevocationFeed{
		{Sequence: 2},
		{Sequence: 2, Links: []wire.RevokedLink{other}},
		{Sequence: 4, Links: []wire.RevokedLink{other, other}},
		{Sequence: 1, Snapshot: true},
		{Sequence: 9, Snapshot: true, Next: other.Hash, Links: []wire.RevokedLink{other}},
		{Sequence: 9, Snapshot: true, After: other.Hash},
		{Sequence: 1, Epoch: "e2"},
		{Epoch: "e2", Snapshot: true},
	} {
		s.Governor, s.Time = governor, w.now().Unix()
		if s.Epoch == "" {
			s.Epoch = "e1"
		}
		payload, err := json.Marshal(s)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(payload)
	}
	f.Add([]byte(`{"iss":"` + governor + `","epoch":"e1","seq":2,"time":1e3}`))
	f.Fuzz(func(t *testing.T, payload []byte) {
		w := newWorld(t, func(c *guard.Config) { c.MaxRevocations = 8 })
		revoked, good := w.root(), w.root()
		w.feed(w.statement(revoked.revoked(0, wire.StateRevoked)))
		w.permits(good)
		token, err := jws.Sign(wire.TypeRevocation, payload, w.governor)
		if err != nil {
			t.Fatal(err)
		}
		err = w.guard.Feed(token)
		if _, err := w.check(revoked.present(), "a"); err == nil {
			t.Fatalf("%q took a revocation back", payload)
		}
		var s wire.RevocationFeed
		if err == nil && json.Unmarshal(payload, &s) == nil && !s.Snapshot && s.Epoch == "e1" && s.Sequence > 2 {
			w.refuses(good, wire.CodeGuardFeed)
		}
	})
}
