package daemon_test

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/google/uuid"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/handoff-governor/handoff-governor/cmd/governor/daemon"
	"github.com/handoff-governor/handoff-governor/cmd/governor/daemon/daemontest"
	"github.com/handoff-governor/handoff-governor/governor"
	"github.com/handoff-governor/handoff-governor/governor/issuer"
	"github.com/handoff-governor/handoff-governor/governor/keyring"
	"github.com/handoff-governor/handoff-governor/handoff"
	"github.com/handoff-governor/handoff-governor/handoff/aat"
	"github.com/handoff-governor/handoff-governor/handoff/aat/jws"
	"github.com/handoff-governor/handoff-governor/handoff/guard"
	"github.com/handoff-governor/handoff-governor/handoff/identity"
	"github.com/handoff-governor/handoff-governor/handoff/wire"
)

// apart is a governor whose issuer is a process of its own.
type apart struct {
	*daemontest.World
	t      *testing.T
	issuer daemon.IssuerConfig
	server *daemon.IssuerServer
}

func startApart(t *testing.T) *apart {
	t.Helper()
	w := &apart{World: daemontest.New(t, daemontest.Cluster), t: t}
	address, err := w.Identities.Socket(spiffeid.RequireFromPath(daemontest.TrustDomain, "/issuer"))
	check(t, err)
	w.issuer = daemon.IssuerConfig{
		Dir: t.TempDir(), Listen: "127.0.0.1:0", WorkloadAPI: address, Ceiling: aat.Tools{"search": {}, "read": {}},
	}
	w.serve()
	t.Cleanup(func() { w.server.Close() })
	w.issuer.Listen = strings.TrimPrefix(w.server.URL, "https://")
	w.Config.Issuer = &daemon.RemoteIssuer{URL: w.server.URL}
	w.Start()
	return w
}

func (w *apart) serve() {
	w.t.Helper()
	var err error
	w.server, err = daemon.StartIssuer(w.t.Context(), w.issuer)
	check(w.t, err)
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// A governor without the issuer's key has sessions opened by an issuer elsewhere, goes on without it, and follows its keys.
func TestIssuerElsewhere(t *testing.T) {
	w := startApart(t)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	planner, writer := connect(t, w.World, "planner"), connect(t, w.World, "writer")
	open := func(tools ...string) (*handoff.Session, error) {
		asked := aat.Tools{}
		for _, tool := range tools {
			asked[tool] = aat.Arguments{}
		}
		return planner.OpenSession(ctx, handoff.SessionRequest{Objective: "test", Tools: asked, MaxHops: 4})
	}
	session, err := open("search")
	check(t, err)
	check(t, pass(ctx, session, writer, "one"))
	if _, err := os.Stat(filepath.Join(w.Config.Dir, "keys", "issuer.pem")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the governor has a key of the issuer: %v", err)
	}
	if _, err := open("search", "delete"); err == nil || !strings.Contains(err.Error(), string(wire.CodeCeiling)) {
		t.Errorf("above the issuer's ceiling: %v", err)
	}

	check(t, w.server.Close())
	w.Stop()
	w.World.Start()
	check(t, pass(ctx, session, writer, "while the issuer is away"))
	short, end := context.WithTimeout(ctx, 2*time.Second)
	if _, err := planner.OpenSession(short, handoff.SessionRequest{Objective: "test", Tools: aat.Tools{"search": {}}}); err == nil ||
		!strings.Contains(err.Error(), "the issuer cannot be reached") {
		t.Errorf("with the issuer away: %v", err)
	}
	end()

	file := daemon.IssuerKeys(w.issuer.Dir)
	ring, err := daemon.LoadRing(file)
	check(t, err)
	next, err := daemon.RotateRing(ring, time.Now().Add(-time.Hour), keyring.Schedule{Announce: time.Minute, Keep: 24 * time.Hour})
	check(t, err)
	check(t, daemon.SaveRing(file, next))
	w.serve()
	second, err := open("search")
	check(t, err)
	check(t, pass(ctx, second, writer, "under a new key"))
	check(t, pass(ctx, session, writer, "under the old key"))
	keys, err := planner.Keys(ctx)
	check(t, err)
	if len(keys.IssuerKeys) != 2 || keys.IssuerKeys[0] != next[0].JWK() {
		t.Errorf("the issuer's keys are %v", keys.IssuerKeys)
	}

	// Everybody with an SVID is told of the keys.
	s := w.Source("/guard/tools")
	transport := &http.Transport{TLSClientConfig: identity.ClientTLS(s, s, identity.OnlyPeer(spiffeid.RequireFromString(keys.Issuer)))}
	defer transport.CloseIdleConnections()
	response, err := (&http.Client{Transport: transport}).Get(w.server.URL + "/v1/jwks")
	check(t, err)
	defer response.Body.Close()
	var published wire.JWKS
	check(t, json.UnmarshalRead(response.Body, &published))
	if jwks := published.JWKs(); len(jwks) != 2 || jwks[0] != next[0].JWK() || published.Keys[0].Kid != jwks[0].Thumbprint() {
		t.Errorf("published: %+v", published)
	}

	// Made while it runs, a key is taken over without a restart.
	third, err := daemon.RotateRing(next, time.Now(), keyring.Schedule{Announce: time.Hour, Keep: 24 * time.Hour})
	check(t, err)
	check(t, daemon.SaveRing(file, third))
	for end := time.Now().Add(10 * time.Second); ; {
		_, err := open("search")
		check(t, err) // it tells of its keys with each root
		if keys, err = planner.Keys(ctx); err != nil {
			t.Fatal(err)
		}
		if len(keys.IssuerKeys) == 3 {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("the issuer has %d keys", len(keys.IssuerKeys))
		}
		<-time.After(100 * time.Millisecond)
	}

	// A key whose time is over is destroyed.
	third[1].Until = time.Now().Add(time.Second)
	check(t, daemon.SaveRing(file, third))
	for end := time.Now().Add(10 * time.Second); ; <-time.After(100 * time.Millisecond) {
		left, err := daemon.LoadRing(file)
		check(t, err)
		if len(left) == 2 {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("there are %d keys", len(left))
		}
	}
}

// Whoever has stolen the governor's keys, its data and even its SVID cannot make a root, nor widen one.
func TestStolenGovernorMakesNoRoot(t *testing.T) {
	w := startApart(t)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	planner := connect(t, w.World, "planner")
	narrow, err := planner.OpenSession(ctx, handoff.SessionRequest{
		Objective: "test", Tools: aat.Tools{"read": {"path": aat.OneOf("/a")}}, MaxHops: 4, TTL: time.Hour,
	})
	check(t, err)
	keys, err := planner.Keys(ctx)
	check(t, err)
	believed, err := guard.IssuerOf(keys)
	check(t, err)
	verifier := &aat.Verifier{Anchors: []aat.Anchor{{Issuer: keys.Issuer, Key: believed.Keys[0]}}}
	links, err := verifier.Chain(narrow.Chain()) // as a guard does
	check(t, err)

	// What was stolen.
	stolen, err := daemon.LoadRing(filepath.Join(w.Config.Dir, "keys", "governor.pem"))
	check(t, err)
	thief := stolen[0].Private
	mine, err := w.Source("/agent/mallory").GetX509SVID()
	check(t, err)
	_, process, err := ed25519.GenerateKey(rand.Reader)
	check(t, err)
	wide := aat.Tools{"read": {}, "search": {}}
	now := time.Now().Unix()
	id := func() string { u, err := uuid.NewV7(); check(t, err); return u.String() }

	// She signs a root herself, and a wider one of the planner's.
	session := id()
	note, err := json.Marshal(wire.HandoffClaim{Session: session, To: daemontest.Name(t, "/agent/planner")})
	check(t, err)
	for name, signer := range map[string]ed25519.PrivateKey{"the governor's key": thief, "a key of hers": process} {
		root, err := aat.Issue(aat.Claims{
			ID: session, Issuer: keys.Issuer, IssuedAt: now, ExpiresAt: now + 600, Holder: aat.NewJWK(process.Public().(ed25519.PublicKey)),
			MaxDepth: 4, Tools: wide, Extra: map[string]jsontext.Value{"handoff": note},
		}, signer)
		check(t, err)
		if _, err := verifier.Chain([]string{root}); err == nil {
			t.Errorf("a root that %s has signed is believed", name)
		}
	}

	// She asks the issuer.
	request := func(opener string, tools aat.Tools, svid string) []byte {
		r := wire.OpenRequest{
			ID: id(), Objective: "hers", Principal: wire.Principal{Kind: wire.PrincipalWorkload, Name: opener}, Tools: tools, TTL: 600,
			MaxHops: 4, JWK: aat.NewJWK(process.Public().(ed25519.PublicKey)),
		}
		body, err := json.Marshal(r)
		check(t, err)
		if svid != "" {
			hash, err := wire.OpenerRequestHash(body)
			check(t, err)
			payload, err := json.Marshal(wire.PrincipalProof{
				ID: "1", IssuedAt: now, Expires: now + 60, Audience: keys.Issuer, Subject: svid, RequestHash: hash,
			})
			check(t, err)
			r.SVIDProof, err = identity.SignX509(mine, wire.TypeOpener, payload)
			check(t, err)
			body, err = json.Marshal(r)
			check(t, err)
		}
		hash, err := wire.RequestHash(body)
		check(t, err)
		r.Proof, err = jws.SignJSON(wire.TypeSession, wire.SessionProof{
			ID: "2", IssuedAt: now, Expires: now + 60, Audience: keys.Governor, Subject: opener, Verb: wire.VerbSessionOpen, RequestHash: hash,
		}, process)
		check(t, err)
		body, err = json.Marshal(r)
		check(t, err)
		return body
	}
	terms := func(tools aat.Tools) governor.RootTerms {
		return governor.RootTerms{Tools: tools, IssuedAt: now, Expires: now + 600, MaxDepth: 4}
	}
	as := func(path string) *issuer.Remote {
		s := w.Source(path)
		transport := &http.Transport{TLSClientConfig: identity.ClientTLS(s, s, identity.OnlyPeer(spiffeid.RequireFromString(keys.Issuer)))}
		t.Cleanup(transport.CloseIdleConnections)
		return issuer.NewRemote(keys.Issuer, w.server.URL, &http.Client{Transport: transport}, nil)
	}
	plannerName, mallory := daemontest.Name(t, "/agent/planner"), daemontest.Name(t, "/agent/mallory")
	for name, c := range map[string]struct {
		as     string
		opener string
		body   []byte
		terms  governor.RootTerms
		code   wire.Code
	}{
		"as an agent":                     {"/agent/mallory", mallory, request(mallory, wide, mallory), terms(wide), wire.CodeUnavailable},
		"as a NATS server":                {"/nats/nats-1", mallory, request(mallory, wide, mallory), terms(wide), wire.CodeUnavailable},
		"in the planner's name":           {"/governor", plannerName, request(plannerName, wide, ""), terms(wide), wire.CodeProof},
		"in the planner's, with her SVID": {"/governor", plannerName, request(plannerName, wide, mallory), terms(wide), wire.CodeProof},
		"and says it is the planner's":    {"/governor", plannerName, request(plannerName, wide, plannerName), terms(wide), wire.CodeProof},
		"more than was asked for":         {"/governor", mallory, request(mallory, aat.Tools{"search": {}}, mallory), terms(wide), wire.CodeWidened},
		"above the ceiling":               {"/governor", mallory, request(mallory, aat.Tools{"delete": {}}, mallory), terms(aat.Tools{"delete": {}}), wire.CodeCeiling},
	} {
		root, err := as(c.as).Issue(ctx, c.opener, c.body, c.terms)
		refusal, ok := errors.AsType[*wire.Error](err)
		if !ok || refusal.Code != c.code || root != "" {
			t.Errorf("%s: %v", name, err)
		}
	}
	// The honest way, which shows that all the rest of these requests is right.
	if _, err := as("/governor").Issue(ctx, mallory, request(mallory, wide, mallory), terms(wide)); err != nil {
		t.Errorf("mallory for herself: %v", err)
	}

	// She widens what the planner hands to her key.
	if _, err := aat.Derive(links[0], aat.Claims{
		ID: id(), IssuedAt: now, ExpiresAt: now + 60, Holder: aat.NewJWK(process.Public().(ed25519.PublicKey)), Tools: wide,
	}, thief); err == nil {
		t.Error("the governor's key extends a root that it does not hold")
	}
	forged := strings.Split(narrow.Chain()[0], ".")
	payload, err := base64.RawURLEncoding.DecodeString(forged[1])
	check(t, err)
	forged[1] = base64.RawURLEncoding.EncodeToString(bytes.Replace(payload, []byte(`"/a"`), []byte(`"/b"`), 1))
	if _, err := verifier.Chain([]string{strings.Join(forged, ".")}); err == nil {
		t.Error("a root that was changed is believed")
	}
}
