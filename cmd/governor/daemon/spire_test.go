//go:build spire

package daemon_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/nats-io/nats.go"
	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"

	"github.com/handoff-governor/handoff-governor/cmd/governor/daemon"
	"github.com/handoff-governor/handoff-governor/cmd/governor/daemon/daemontest"
	"github.com/handoff-governor/handoff-governor/governor/devspiffe"
	"github.com/handoff-governor/handoff-governor/handoff"
	"github.com/handoff-governor/handoff-governor/handoff/aat"
	"github.com/handoff-governor/handoff-governor/handoff/identity"
)

// The authority of a trust domain is replaced while tasks pass: another one signs SVIDs, and then nobody believes the first.
// Nothing is started anew, and no task is lost.
func TestRootsAreReplaced(t *testing.T) {
	w := daemontest.Start(t, daemontest.SPIRE, func(c *daemon.Config) { c.SVIDTTL = 20 * time.Second })
	spire := w.Identities.(*daemontest.SPIREAuthority)
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	planner, writer := connect(t, w, "planner"), connect(t, w, "writer")
	session, err := planner.OpenSession(ctx, handoff.SessionRequest{Objective: "test", Tools: aat.Tools{"search": {}}, MaxHops: 4})
	if err != nil {
		t.Fatal(err)
	}
	passed, slowest := 0, time.Duration(0)
	w.RenewEvery(2 * time.Second)
	passing := func(during string, within time.Duration, until func() bool) {
		t.Helper()
		for end := time.Now().Add(within); !until(); passed++ {
			if time.Now().After(end) {
				t.Fatalf("%s: it has not happened", during)
			}
			begun := time.Now()
			if err := pass(ctx, session, writer, fmt.Sprint(passed)); err != nil {
				t.Fatalf("%s: handoff %d: %v", during, passed, err)
			}
			slowest = max(slowest, time.Since(begun))
		}
	}
	signedBy := func(path string) string {
		svid, err := w.Source(path).GetX509SVID()
		if err != nil {
			t.Fatal(err)
		}
		return string(svid.Certificates[0].AuthorityKeyId)
	}
	everybody := []string{"/agent/planner", "/agent/writer", "/governor", "/nats/nats-1", "/nats/nats-2", "/nats/nats-3"}
	before := map[string]string{}
	for _, path := range everybody {
		before[path] = signedBy(path)
	}
	roots := func() int {
		bundle, err := w.Source("/governor").GetX509BundleForTrustDomain(daemontest.TrustDomain)
		if err != nil {
			t.Fatal(err)
		}
		return len(bundle.X509Authorities())
	}

	authority := func(verb string, args ...string) string {
		var out map[string]jsontext.Value
		text := spire.Ask(append([]string{"localauthority", "x509", verb, "-output", "json"}, args...)...)
		if err := json.Unmarshal([]byte(text), &out); err != nil {
			t.Fatalf("%s: %v", text, err)
		}
		for _, member := range []string{"prepared_authority", "activated_authority"} {
			var a struct {
				ID string `json:"authority_id"`
			}
			if raw, ok := out[member]; ok && json.Unmarshal(raw, &a) == nil {
				return a.ID
			}
		}
		return ""
	}
	first := func() string {
		var out struct {
			Active struct {
				ID string `json:"authority_id"`
			} `json:"active"`
		}
		text := spire.Ask("localauthority", "x509", "show", "-output", "json")
		if err := json.Unmarshal([]byte(text), &out); err != nil {
			t.Fatalf("%s: %v", text, err)
		}
		return out.Active.ID
	}()
	next := authority("prepare")
	passing("a second authority is published", 90*time.Second, func() bool { return roots() == 2 })
	renewed := time.Now().Add(4 * time.Second)
	passing("the servers believe it, too", 90*time.Second, func() bool { return time.Now().After(renewed) })
	authority("activate", "-authorityID", next)
	passing("it signs everybody's SVID", 90*time.Second, func() bool {
		for _, path := range everybody {
			if signedBy(path) == before[path] {
				return false
			}
		}
		return true
	})
	settled := time.Now().Add(10 * time.Second) // who has just connected with an old one is cut off with it
	passing("nobody has an old one", 90*time.Second, func() bool { return time.Now().After(settled) })
	authority("taint", "-authorityID", first)
	authority("revoke", "-authorityID", first)
	passing("the first is not believed any more", 90*time.Second, func() bool { return roots() == 1 })
	end := time.Now().Add(3 * time.Second)
	passing("after that", 90*time.Second, func() bool { return time.Now().After(end) })
	t.Logf("%d handoffs; the slowest took %s", passed, slowest)
	if slowest > longestWait {
		t.Errorf("a handoff took %s", slowest)
	}
}

// An agent of another trust domain is nobody until the two federate, and then it is an agent by its whole name.
func TestFederation(t *testing.T) {
	w := daemontest.Start(t, daemontest.SPIRE)
	spire := w.Identities.(*daemontest.SPIREAuthority)
	foreign := spiffeid.RequireTrustDomainFromString("other.example")
	theirs, err := devspiffe.New(devspiffe.Config{Dir: filepath.Join(t.TempDir(), "ca"), TrustDomain: foreign})
	if err != nil {
		t.Fatal(err)
	}
	defer theirs.Close()
	visitor, err := theirs.Source(spiffeid.RequireFromPath(foreign, "/agent/visitor"))
	if err != nil {
		t.Fatal(err)
	}
	operator, err := theirs.Source(spiffeid.RequireFromPath(foreign, "/operator/local"))
	if err != nil {
		t.Fatal(err)
	}
	ours, err := w.Source("/governor").GetX509BundleForTrustDomain(daemontest.TrustDomain)
	if err != nil {
		t.Fatal(err)
	}
	believed := x509bundle.NewSet(ours)
	governor := identity.ServerOf(spiffeid.RequireFromPath(daemontest.TrustDomain, "/governor"))
	dial := func(source *devspiffe.Source) (*nats.Conn, error) {
		return nats.Connect(w.Endpoint.URL, nats.Secure(identity.ClientTLS(source, believed, governor)), nats.TLSHandshakeFirst(),
			nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {}))
	}
	if conn, err := dial(visitor); err == nil {
		conn.Close()
		t.Fatal("a stranger is let in")
	}

	bundle, err := theirs.GetX509BundleForTrustDomain(foreign)
	if err != nil {
		t.Fatal(err)
	}
	pem, err := bundle.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	spire.Federate(foreign, pem)
	for end := time.Now().Add(30 * time.Second); ; {
		_, err := w.Source("/governor").GetX509BundleForTrustDomain(foreign)
		if err == nil {
			break
		}
		if time.Now().After(end) {
			t.Fatal(err)
		}
		<-time.After(50 * time.Millisecond)
	}
	w.Renew()
	var conn *nats.Conn
	for end := time.Now().Add(10 * time.Second); ; { // the daemon has a source of its own, which hears of it in the same moment or the next
		if conn, err = dial(visitor); err == nil {
			break
		}
		if time.Now().After(end) {
			t.Fatal(err)
		}
	}
	defer conn.Close()
	if _, err := conn.Request("handoff.keys", nil, 10*time.Second); err != nil {
		t.Error(err)
	}
	if other, err := dial(operator); err == nil {
		other.Close()
		t.Error("an operator of another trust domain is let in")
	}

	// What it may, policy says; the default lets nobody from elsewhere open a session.
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	c, err := handoff.Connect(ctx, handoff.Config{
		URL: w.Endpoint.URL, Source: visitor, Bundles: believed, Governor: spiffeid.RequireFromPath(daemontest.TrustDomain, "/governor"),
	})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if c.Name() != "other=dexample=sagent=svisitor" {
		t.Errorf("its name is %s", c.Name())
	}
	_, err = c.OpenSession(ctx, handoff.SessionRequest{Objective: "test", Tools: aat.Tools{"search": {}}})
	var denied *handoff.Denied
	if !errors.As(err, &denied) || !strings.Contains(fmt.Sprint(denied.Reasons), "trust_domain") {
		t.Errorf("opening a session from elsewhere: %v", err)
	}
}

// A JWT-SVID from SPIRE is believed for whom it was made, and for nobody else.
func TestSPIREToken(t *testing.T) {
	spire := daemontest.StartSPIRE(t, shortDir(t), daemontest.TrustDomain, 0)
	id := spiffeid.RequireFromPath(daemontest.TrustDomain, "/agent/planner")
	address, err := spire.Socket(id)
	if err != nil {
		t.Fatal(err)
	}
	source, err := workloadapi.NewJWTSource(t.Context(), workloadapi.WithClientOptions(workloadapi.WithAddr(address)))
	if err != nil {
		t.Fatal(err)
	}
	defer source.Close()
	svid, err := source.FetchJWTSVID(t.Context(), jwtParams(id, "spiffe://handoff.local/governor"))
	if err != nil {
		t.Fatal(err)
	}
	peer, err := identity.VerifyJWT(svid.Marshal(), "spiffe://handoff.local/governor", source, time.Now())
	if err != nil || peer.ID != id {
		t.Errorf("%+v, %v", peer, err)
	}
	if _, err := identity.VerifyJWT(svid.Marshal(), "spiffe://handoff.local/other", source, time.Now()); err == nil {
		t.Error("a token for somebody else is believed")
	}
}

func jwtParams(id spiffeid.ID, audience string) jwtsvid.Params {
	return jwtsvid.Params{Subject: id, Audience: audience}
}

// shortDir is a directory whose path is short enough for sockets.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "hg")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}
