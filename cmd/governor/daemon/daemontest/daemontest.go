// Package daemontest runs governors for tests, in every deployment that there is.
package daemontest

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/jwtbundle"
	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/handoff-governor/handoff-governor/cmd/governor/daemon"
	"github.com/handoff-governor/handoff-governor/governor/devspiffe"
	"github.com/handoff-governor/handoff-governor/handoff/identity"
	"github.com/handoff-governor/handoff-governor/streams"
	"github.com/handoff-governor/handoff-governor/streams/clustertest"
)

// Deployment is a way to run a governor.
type Deployment string

// The deployments.
const (
	// Embedded is "governor up": NATS and identities are the governor's own.
	Embedded Deployment = "embedded"
	// Cluster is "governor serve" in a cluster of three NATS servers, with identities from a Workload API.
	Cluster Deployment = "cluster"
)

// Deployments are all of them. With the build tag spire there is one more: a cluster with identities from SPIRE.
var Deployments = []Deployment{Embedded, Cluster}

// authorities give identities, by the deployments that need them from elsewhere.
var authorities = map[Deployment]func(*World) authority{Cluster: development}

// authority is a Workload API with which everybody can be registered.
type authority interface {
	// Socket is the address of the Workload API for an identity, and Source the identity itself.
	Socket(spiffeid.ID) (address string, err error)
	Source(spiffeid.ID) (Source, error)
	// TrustDomains are those whose bundles it gives out.
	TrustDomains() []spiffeid.TrustDomain
}

// InEach runs a test in every deployment.
func InEach(t *testing.T, test func(t *testing.T, in Deployment)) {
	for _, in := range Deployments {
		t.Run(string(in), func(t *testing.T) { t.Parallel(); test(t, in) })
	}
}

// World is a governor with what is around it, which outlives the governor.
type World struct {
	*daemon.Daemon // nil while it is stopped
	Config         daemon.Config
	// NATS are the servers, where they are not embedded. Identities give everybody theirs, where the governor does not.
	NATS       *clustertest.Cluster
	Identities authority

	t    testing.TB
	keys *streams.ClusterKeys
}

// Source is an identity.
type Source interface {
	x509svid.Source
	x509bundle.Source
	jwtbundle.Source
}

// TrustDomain is that of every world.
var TrustDomain = spiffeid.RequireTrustDomainFromString("handoff.local")

const servers = 3

// New makes a world, and does not start the governor. SVIDTTL of the configuration is that of all identities.
func New(t testing.TB, in Deployment, change ...func(*daemon.Config)) *World {
	t.Helper()
	w := &World{t: t, Config: daemon.Config{Dir: t.TempDir(), Listen: "127.0.0.1:0"}}
	for _, f := range change {
		f(&w.Config)
	}
	if start := authorities[in]; start != nil {
		w.Identities = start(w)
		w.surround()
	}
	t.Cleanup(w.Stop)
	return w
}

// Start makes a world, and starts the governor.
func Start(t testing.TB, in Deployment, change ...func(*daemon.Config)) *World {
	t.Helper()
	w := New(t, in, change...)
	w.Start()
	return w
}

// development gives identities from a development Workload API.
func development(w *World) authority {
	w.t.Helper()
	config := devspiffe.Config{
		Dir: filepath.Join(w.shortDir(), "ca"), TrustDomain: TrustDomain, TTL: w.Config.SVIDTTL, Logger: w.Config.Logger,
		DNSNames: map[spiffeid.ID][]string{},
	}
	for i := range servers {
		config.DNSNames[serverID(i)] = []string{"localhost"}
	}
	a, err := devspiffe.New(config)
	check(w.t, err)
	w.t.Cleanup(func() { a.Close() })
	return developed{a}
}

type developed struct{ *devspiffe.Authority }

func (d developed) Source(id spiffeid.ID) (Source, error) { return d.Authority.Source(id) }
func (d developed) TrustDomains() []spiffeid.TrustDomain  { return []spiffeid.TrustDomain{TrustDomain} }

// shortDir is a directory whose path is short, as those of sockets must be.
func (w *World) shortDir() string {
	w.t.Helper()
	dir, err := os.MkdirTemp("", "hg")
	check(w.t, err)
	w.t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

// surround starts NATS servers.
func (w *World) surround() {
	w.t.Helper()
	var err error
	w.keys, _, err = streams.NewClusterKeys()
	check(w.t, err)
	w.NATS = clustertest.Start(w.t, servers, w.keys, func(node string) clustertest.Files {
		id, err := spiffeid.FromPath(TrustDomain, "/nats/"+node)
		check(w.t, err)
		return w.files(id)
	})
	w.Config.WorkloadAPI, err = w.Identities.Socket(spiffeid.RequireFromPath(TrustDomain, "/governor"))
	check(w.t, err)
	w.Config.Cluster = &daemon.Cluster{URLs: w.NATS.URLs, Keys: w.keys}
}

func serverID(i int) spiffeid.ID {
	return spiffeid.RequireFromPath(TrustDomain, "/nats/nats-"+string(rune('1'+i)))
}

// files are what a server needs of its identity.
func (w *World) files(id spiffeid.ID) (f clustertest.Files) {
	w.t.Helper()
	source, err := w.Identities.Source(id)
	check(w.t, err)
	svid, err := source.GetX509SVID()
	check(w.t, err)
	f.Cert, f.Key, err = svid.Marshal()
	check(w.t, err)
	for _, td := range w.Identities.TrustDomains() {
		bundle, err := source.GetX509BundleForTrustDomain(td)
		check(w.t, err)
		text, err := bundle.Marshal()
		check(w.t, err)
		f.Bundle = append(f.Bundle, text...)
	}
	return f
}

// Renew gives the NATS servers their newest SVIDs and trust bundles, as spiffe-helper would.
func (w *World) Renew() {
	w.t.Helper()
	for i := range servers {
		w.NATS.Write(i, w.files(serverID(i)))
		w.NATS.Reload(i)
	}
}

// RenewEvery does so over and over until the test ends. Embedded servers have nothing to renew.
func (w *World) RenewEvery(pause time.Duration) {
	if w.NATS == nil {
		return
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(pause)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				w.Renew()
			case <-w.t.Context().Done():
				return
			}
		}
	}()
	w.t.Cleanup(func() { <-done })
}

// Start starts the governor.
func (w *World) Start() {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	d, err := daemon.Start(ctx, w.Config)
	if err != nil {
		if w.NATS != nil {
			w.t.Logf("the first NATS server says:\n%s", w.NATS.Log(0))
		}
		w.t.Fatal(err)
	}
	w.Daemon = d
	if w.NATS == nil {
		w.Config.Listen = d.Endpoint.URL[len("tls://"):] // the same after a restart
	}
}

// Stop stops the governor, if it runs.
func (w *World) Stop() {
	w.t.Helper()
	if w.Daemon == nil {
		return
	}
	d := w.Daemon
	w.Daemon = nil
	if err := d.Close(); err != nil {
		w.t.Errorf("closing the governor: %v", err)
	}
}

// Source is the identity with a path, as in /agent/planner. In an embedded world it ends with the governor.
func (w *World) Source(path string) Source {
	w.t.Helper()
	if w.Identities == nil {
		source, err := w.Daemon.Source(path)
		check(w.t, err)
		return source
	}
	id, err := spiffeid.FromPath(TrustDomain, path)
	check(w.t, err)
	source, err := w.Identities.Source(id)
	check(w.t, err)
	return source
}

// Register prepares the identities with these paths, where that takes a while for each. The others are made when first asked for.
func (w *World) Register(paths ...string) {
	w.t.Helper()
	r, ok := w.Identities.(interface{ Register(...spiffeid.ID) })
	if !ok {
		return
	}
	ids := make([]spiffeid.ID, len(paths))
	for i, path := range paths {
		var err error
		ids[i], err = spiffeid.FromPath(TrustDomain, path)
		check(w.t, err)
	}
	r.Register(ids...)
}

// Name is the agent name of the identity with a path.
func Name(t testing.TB, path string) string {
	t.Helper()
	id, err := spiffeid.FromPath(TrustDomain, path)
	check(t, err)
	name, err := identity.NameOf(id)
	check(t, err)
	return string(name)
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
