package daemon_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"

	"github.com/handoff-governor/handoff-governor/cmd/governor/daemon"
	"github.com/handoff-governor/handoff-governor/cmd/governor/daemon/daemontest"
	"github.com/handoff-governor/handoff-governor/handoff"
	"github.com/handoff-governor/handoff-governor/handoff/aat"
	"github.com/handoff-governor/handoff-governor/handoff/identity"
	"github.com/handoff-governor/handoff-governor/handoff/wire"
)

// scanner looks for secrets in what is written down: for what looks like one, whoever made it, and for those that it was
// told of, in every encoding that they could be in.
type scanner struct {
	rules map[string]*regexp.Regexp
	known map[string][]byte // :: what it is, and how it is written → how it is found
}

// newScanner has rules for what secrets look like.
func newScanner() *scanner {
	return &scanner{known: map[string][]byte{}, rules: map[string]*regexp.Regexp{
		"a private key in PEM":      regexp.MustCompile(`-----BEGIN [A-Z ]*PRIVATE KEY-----`),
		"a private key in a JWK":    regexp.MustCompile(`"d"\s*:\s*"[A-Za-z0-9_-]{40,}"`),
		"a seed of NATS":            regexp.MustCompile(`\bS[ACNOUX][A-Z2-7]{56}\b`),
		"a note signer's key":       regexp.MustCompile(`PRIVATE\+KEY\+`),
		"an age key":                regexp.MustCompile(`AGE-SECRET-KEY-1[A-Z0-9]{50,}`),
		"a password in a URL":       regexp.MustCompile(`[a-z+-]+://[^/\s:@"]+:[^/\s:@"]+@`),
		"a bearer token":            regexp.MustCompile(`(?i)bearer [A-Za-z0-9_.-]{20,}`),
		"an Ed25519 key in PKCS #8": regexp.MustCompile(regexp.QuoteMeta("\x30\x2e\x02\x01\x00\x30\x05\x06\x03\x2b\x65\x70\x04\x22\x04\x20")),
		"the same in base64":        regexp.MustCompile(`MC4CAQAwBQYDK2VwBCIEI`),
	}}
}

// tell names a secret of at least 16 bytes.
func (s *scanner) tell(what string, secret []byte) {
	s.known[what+", as it is"] = secret
	s.known[what+", in hexadecimal"] = []byte(hex.EncodeToString(secret))
	s.known[what+", in hexadecimal capitals"] = bytes.ToUpper([]byte(hex.EncodeToString(secret)))
	// In base64 of something around it, a secret can stand in three ways; those characters that are its own alone are looked
	// for.
	for shift := range 3 {
		for name, encoding := range map[string]*base64.Encoding{"base64": base64.RawStdEncoding, "base64url": base64.RawURLEncoding} {
			encoded := encoding.EncodeToString(append(make([]byte, shift), secret...))
			inner := encoded[(shift*8+5)/6 : len(encoded)-1]
			s.known[fmt.Sprintf("%s, in %s (%d)", what, name, shift)] = []byte(inner)
		}
	}
}

// scan returns what it finds.
func (s *scanner) scan(content []byte) (found []string) {
	for what, rule := range s.rules {
		if m := rule.Find(content); m != nil {
			found = append(found, what)
		}
	}
	for what, secret := range s.known {
		if bytes.Contains(content, secret) {
			found = append(found, what)
		}
	}
	return found
}

// file scans one file, or all below a directory.
func (s *scanner) file(t *testing.T, path string) (found []string) {
	t.Helper()
	err := filepath.WalkDir(path, func(path string, e fs.DirEntry, err error) error {
		if errors.Is(err, os.ErrNotExist) || err == nil && !e.Type().IsRegular() {
			return nil
		}
		if err != nil {
			return err
		}
		content, err := os.ReadFile(path)
		if errors.Is(err, os.ErrNotExist) {
			return nil // NATS has replaced it meanwhile
		}
		for _, what := range s.scan(content) {
			found = append(found, what+" in "+path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// A scanner that finds nothing must be able to find something.
func TestSecretScanner(t *testing.T) {
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	s := newScanner()
	s.tell("the key", key.Seed())
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	for name, hidden := range map[string][]byte{
		"seed":            key.Seed(),
		"seed and public": key,
		"hex":             []byte(hex.EncodeToString(key)),
		"PKCS #8":         der,
		"PEM":             pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}),
		"base64 in JSON":  []byte(`{"d":"` + base64.RawURLEncoding.EncodeToString(key.Seed()) + `"}`),
		"base64, shifted": []byte(base64.StdEncoding.EncodeToString(append([]byte("a"), key...))),
		"base64, by two":  []byte(base64.StdEncoding.EncodeToString(append([]byte("ab"), key...))),
		"NATS":            []byte("seed SUAGIEYODKBBTUMOB666Z5KA4FCWAZV7HWSGRHOD7MK6UM5IYLWLACH7DQ."),
		"URL":             []byte("nats-route://routes:hunter2hunter2@a:1"),
	} {
		if found := s.scan(append([]byte("before "), append(bytes.Clone(hidden), " after"...)...)); len(found) == 0 {
			t.Errorf("%s is not found", name)
		}
	}
	if found := s.scan([]byte(base64.StdEncoding.EncodeToString(key.Public().(ed25519.PublicKey)))); len(found) > 0 {
		t.Errorf("a public key is %q", found)
	}
}

// safeBuffer is a log that many write.
type safeBuffer struct {
	mu sync.Mutex
	bytes.Buffer
}

func (b *safeBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.Buffer.Write(p)
}

// Neither the logs, in every detail, nor the ledger, nor what NATS stores, holds a private key, or a credential that
// somebody could use who finds it: not those that this test knows, and nothing that looks like one.
func TestNoSecretsWritten(t *testing.T) {
	daemontest.InEach(t, func(t *testing.T, in daemontest.Deployment) {
		var log safeBuffer
		logger := slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))
		w := daemontest.Start(t, in, func(c *daemon.Config) { c.Logger = logger })
		s := newScanner()
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()

		agent := func(name string) *handoff.Client {
			_, key, err := ed25519.GenerateKey(rand.Reader)
			if err != nil {
				t.Fatal(err)
			}
			s.tell("the process key of "+name, key.Seed())
			source := w.Source("/agent/" + name)
			svid, err := source.GetX509SVID()
			if err != nil {
				t.Fatal(err)
			}
			private, ok := svid.PrivateKey.(*ecdsa.PrivateKey)
			if !ok {
				t.Fatalf("the SVID's key is a %T", svid.PrivateKey)
			}
			scalar, err := private.Bytes()
			if err != nil {
				t.Fatal(err)
			}
			s.tell("the SVID's key of "+name, scalar)
			c, err := handoff.Connect(ctx, handoff.Config{URL: w.Endpoint.URL, Source: source, Key: key, Logger: logger})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { c.Close() })
			return c
		}
		planner, writer := agent("planner"), agent("writer")
		session, err := planner.OpenSession(ctx, handoff.SessionRequest{Objective: "test", Tools: aat.Tools{"search": {}}, MaxHops: 4})
		if err != nil {
			t.Fatal(err)
		}

		// A task, its claim, a call, its result; a denial; what makes no sense; somebody who comes with a token.
		waiting, err := session.Offer(ctx, writer.Name(), []byte("work"), handoff.Tools(aat.Tools{"search": {}}))
		if err != nil {
			t.Fatal(err)
		}
		task, err := writer.Receive(ctx)
		if err != nil {
			t.Fatal(err)
		}
		// Nobody can use a chain whose last link has no signature.
		leaf := task.Chain()[len(task.Chain())-1]
		s.known["the signature of a claim"] = []byte(leaf[strings.LastIndex(leaf, ".")+1:])
		call, err := task.Call(ctx, "https://tools.example", "search", map[string]any{})
		if err != nil {
			t.Fatal(err)
		}
		s.known["a proof for a call"] = []byte(call.PoP)
		if err := task.Complete(ctx, []byte("done")); err != nil {
			t.Fatal(err)
		}
		if _, err := waiting.Result(ctx); err != nil {
			t.Fatal(err)
		}
		var denied *handoff.Denied
		_, err = session.Offer(ctx, "spiffe://elsewhere.example/agent/x", []byte("work"), handoff.AwaitVerdict())
		if !errors.As(err, &denied) {
			t.Fatalf("an offer to a stranger: %v", err)
		}
		config := identity.ClientTLS(w.Source("/agent/reader"), w.Source("/agent/reader"), identity.ServerOf(spiffeid.RequireFromPath(daemontest.TrustDomain, "/governor")))
		raw, err := nats.Connect(w.Endpoint.URL, nats.Secure(config), nats.TLSHandshakeFirst())
		if err != nil {
			t.Fatal(err)
		}
		defer raw.Close()
		for _, subject := range []string{wire.SubjectSessionOpen, wire.ClaimSubject(session.Session())} {
			if _, err := raw.Request(subject, []byte(`{"proof":"`+leaf+`"}`), 10*time.Second); err != nil {
				t.Error(err)
			}
		}
		if in == daemontest.Embedded {
			s.known["a JWT-SVID"] = []byte(visitor(ctx, t, w))
		}

		// The keys of the governor and of NATS.
		for _, name := range []string{"governor.pem", "issuer.pem"} {
			text, err := os.ReadFile(filepath.Join(w.Config.Dir, "keys", name))
			if err != nil {
				t.Fatal(err)
			}
			block, _ := pem.Decode(text)
			key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
			if err != nil {
				t.Fatal(err)
			}
			s.tell("the key in "+name, key.(ed25519.PrivateKey).Seed())
		}
		if found := s.file(t, filepath.Join(w.Config.Dir, "keys")); len(found) < 3 {
			t.Errorf("of the three keys, the scanner finds %q", found)
		}
		var places []string
		if in == daemontest.Cluster {
			s.tell("the secret of all accounts", w.Config.Cluster.Keys.Accounts)
			s.known["the password of the routes"] = []byte(w.Config.Cluster.Keys.Routes)
			places = w.NATS.Stores
			for i := range w.NATS.Stores {
				log.Write([]byte(w.NATS.Log(i)))
			}
		}
		dir := w.Config.Dir
		for _, c := range []*handoff.Client{planner, writer} {
			if err := c.Close(); err != nil {
				t.Error(err)
			}
		}
		w.Stop()
		places = append(places, daemon.LedgerPath(dir), filepath.Join(dir, "streams"), filepath.Join(dir, "governor.json"))
		for _, place := range places {
			for _, what := range s.file(t, place) {
				t.Errorf("there is %s", what)
			}
		}
		if log.Len() == 0 {
			t.Error("nothing was logged")
		}
		for _, what := range s.scan(log.Bytes()) {
			t.Errorf("there is %s in the log", what)
		}
	})
}

// visitor connects with a JWT-SVID, and returns it.
func visitor(ctx context.Context, t *testing.T, w *daemontest.World) string {
	t.Helper()
	address, err := w.Socket("/agent/visitor")
	if err != nil {
		t.Fatal(err)
	}
	source, err := workloadapi.NewJWTSource(ctx, workloadapi.WithClientOptions(workloadapi.WithAddr(address)))
	if err != nil {
		t.Fatal(err)
	}
	defer source.Close()
	svid, err := source.FetchJWTSVID(ctx, jwtsvid.Params{Audience: w.Endpoint.Governor})
	if err != nil {
		t.Fatal(err)
	}
	identity := identity.ClientTLS(w.Source("/agent/visitor"), w.Source("/agent/visitor"), identity.OnlyPeer(spiffeid.RequireFromPath(daemontest.TrustDomain, "/governor")))
	identity.GetClientCertificate = nil
	conn, err := nats.Connect(w.Endpoint.URL, nats.Secure(identity), nats.TLSHandshakeFirst(), nats.Token(svid.Marshal()))
	if err != nil {
		t.Fatal(err)
	}
	conn.Close()
	return svid.Marshal()
}
