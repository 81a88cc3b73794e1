//go:build spire

package daemontest

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/google/uuid"
	"github.com/spiffe/go-spiffe/v2/bundle/jwtbundle"
	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
)

// SPIRE is a cluster with identities from SPIRE's server and agent, of the version that tools/spire/go.mod pins.
const SPIRE Deployment = "spire"

func init() {
	Deployments = append(Deployments, SPIRE)
	authorities[SPIRE] = func(w *World) authority { return StartSPIRE(w.t, w.shortDir(), TrustDomain, w.Config.SVIDTTL) }
}

// programs are SPIRE's, built on first use.
var programs = sync.OnceValues(func() (paths map[string]string, err error) {
	root, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}").Output()
	if err != nil {
		return nil, err
	}
	paths = map[string]string{}
	for _, name := range []string{"spire-server", "spire-agent"} {
		build := exec.Command("go", "tool", "-modfile=tools/spire/go.mod", "-n", name)
		build.Dir = strings.TrimSpace(string(root))
		out, err := build.Output()
		if err != nil {
			return nil, fmt.Errorf("building %s: %w", name, err)
		}
		paths[name] = strings.TrimSpace(string(out))
	}
	return paths, nil
})

// SPIREAuthority is a SPIRE server and its agent.
type SPIREAuthority struct {
	Home spiffeid.TrustDomain

	t       testing.TB
	dir     string
	address string // of the agent's Workload API
	ttl     time.Duration

	mu         sync.Mutex
	registered map[spiffeid.ID]string // :: ID → its entry
	sources    map[spiffeid.ID]Source
	federated  []spiffeid.TrustDomain
	parent     string // of all entries
}

const serverConf = `server {
  bind_address = "127.0.0.1"
  bind_port = "%[2]d"
  socket_path = "%[1]s/server.sock"
  trust_domain = "%[3]s"
  data_dir = "%[1]s/server"
  log_level = "WARN"
  default_x509_svid_ttl = "%[4]s"
  ca_ttl = "24h"
}
plugins {
  DataStore "sql" { plugin_data { database_type = "sqlite3" connection_string = "%[1]s/server.sqlite3" } }
  NodeAttestor "join_token" { plugin_data {} }
  KeyManager "memory" { plugin_data {} }
}
`

const agentConf = `agent {
  server_address = "127.0.0.1"
  server_port = "%[2]d"
  socket_path = "%[1]s/agent.sock"
  trust_domain = "%[3]s"
  data_dir = "%[1]s/agent"
  log_level = "WARN"
  trust_bundle_path = "%[1]s/bundle.pem"
  join_token = "%[4]s"
  experimental { sync_interval = "1s" }
}
plugins {
  NodeAttestor "join_token" { plugin_data {} }
  KeyManager "memory" { plugin_data {} }
  WorkloadAttestor "unix" { plugin_data {} }
}
`

// StartSPIRE runs a server and an agent in a directory whose path is short. They end with the test. A ttl of 0 is an hour.
func StartSPIRE(t testing.TB, dir string, home spiffeid.TrustDomain, ttl time.Duration) *SPIREAuthority {
	t.Helper()
	s := &SPIREAuthority{
		Home: home, t: t, dir: dir, ttl: cmp.Or(ttl, time.Hour), registered: map[spiffeid.ID]string{}, sources: map[spiffeid.ID]Source{},
		address: "unix://" + dir + "/agent.sock", parent: "spiffe://" + home.Name() + "/host",
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	check(t, err)
	port := l.Addr().(*net.TCPAddr).Port
	check(t, l.Close())
	for _, sub := range []string{"server", "agent"} {
		check(t, os.Mkdir(filepath.Join(dir, sub), 0o700))
	}
	s.write("server.conf", fmt.Sprintf(serverConf, dir, port, home.Name(), s.ttl))
	s.run("spire-server", "server.conf")
	s.await("the server", func() error { _, err := s.ask("healthcheck"); return err })
	s.write("bundle.pem", s.Ask("bundle", "show"))
	token := strings.TrimSpace(strings.TrimPrefix(s.Ask("token", "generate", "-spiffeID", s.parent), "Token:"))
	s.write("agent.conf", fmt.Sprintf(agentConf, dir, port, home.Name(), token))
	s.run("spire-agent", "agent.conf")
	s.await("the agent", func() error {
		conn, err := net.Dial("unix", dir+"/agent.sock")
		if err == nil {
			conn.Close()
		}
		return err
	})
	return s
}

func (s *SPIREAuthority) write(name, text string) {
	s.t.Helper()
	check(s.t, os.WriteFile(filepath.Join(s.dir, name), []byte(text), 0o600))
}

// run starts a program until the test ends.
func (s *SPIREAuthority) run(program, config string) {
	s.t.Helper()
	paths, err := programs()
	check(s.t, err)
	out, err := os.Create(filepath.Join(s.dir, program+".log"))
	check(s.t, err)
	cmd := exec.Command(paths[program], "run", "-config", filepath.Join(s.dir, config))
	cmd.Stdout, cmd.Stderr = out, out
	check(s.t, cmd.Start())
	s.t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		out.Close()
	})
}

// await waits for something to be so.
func (s *SPIREAuthority) await(what string, is func() error) {
	s.t.Helper()
	for end := time.Now().Add(30 * time.Second); ; {
		err := is()
		if err == nil {
			return
		}
		if time.Now().After(end) {
			for _, program := range []string{"spire-server", "spire-agent"} {
				text, _ := os.ReadFile(filepath.Join(s.dir, program+".log"))
				s.t.Logf("%s says:\n%s", program, text)
			}
			s.t.Fatalf("%s: %v", what, err)
		}
		<-time.After(50 * time.Millisecond)
	}
}

// ask runs a command of the server's own client.
func (s *SPIREAuthority) ask(args ...string) (string, error) {
	paths, err := programs()
	if err != nil {
		return "", err
	}
	verb := len(args)
	for i, a := range args {
		if strings.HasPrefix(a, "-") {
			verb = i
			break
		}
	}
	all := append(append(append([]string{}, args[:verb]...), "-socketPath", s.dir+"/server.sock"), args[verb:]...)
	cmd := exec.Command(paths["spire-server"], all...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("spire-server %s: %w: %s%s", strings.Join(all, " "), err, out.String(), errs.String())
	}
	return out.String(), nil
}

// Ask runs a command of the server's own client, as in Ask("bundle", "show").
func (s *SPIREAuthority) Ask(args ...string) string {
	s.t.Helper()
	out, err := s.ask(args...)
	check(s.t, err)
	return out
}

// Register makes identities that every process of this user has, and waits until the agent has them.
func (s *SPIREAuthority) Register(ids ...spiffeid.ID) {
	s.t.Helper()
	type registration struct {
		ID            string              `json:"entry_id"`
		ParentID      string              `json:"parent_id"`
		SPIFFEID      string              `json:"spiffe_id"`
		Selectors     []map[string]string `json:"selectors"`
		DNSNames      []string            `json:"dns_names,omitempty"`
		FederatesWith []string            `json:"federates_with,omitempty"`
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	var entries []registration
	for _, id := range ids {
		if s.registered[id] != "" {
			continue
		}
		r := registration{
			ID: uuid.NewString(), ParentID: s.parent, SPIFFEID: id.String(),
			Selectors: []map[string]string{{"type": "unix", "value": fmt.Sprintf("uid:%d", os.Getuid())}},
		}
		s.registered[id] = r.ID
		if dnsNamed(id) {
			r.DNSNames = []string{"localhost"}
		}
		for _, td := range s.federated {
			r.FederatesWith = append(r.FederatesWith, td.IDString())
		}
		entries = append(entries, r)
	}
	if len(entries) == 0 {
		return
	}
	text, err := json.Marshal(map[string]any{"entries": entries})
	check(s.t, err)
	s.write("entries.json", string(text))
	s.Ask("entry", "create", "-data", filepath.Join(s.dir, "entries.json"))
	last := spiffeid.RequireFromString(entries[len(entries)-1].SPIFFEID)
	s.await("an SVID of "+last.String(), func() error {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		svids, err := workloadapi.FetchX509SVIDs(ctx, workloadapi.WithAddr(s.address))
		if err != nil {
			return err
		}
		if pick(svids, last) == nil {
			return errors.New("not there yet")
		}
		return nil
	})
}

// dnsNamed tells who is looked for by host name.
func dnsNamed(id spiffeid.ID) bool { return strings.HasPrefix(id.Path(), "/nats/") }

// Federate gives the bundle of another trust domain, in PEM, to all who are registered.
func (s *SPIREAuthority) Federate(with spiffeid.TrustDomain, bundle []byte) {
	s.t.Helper()
	s.write("federated.pem", string(bundle))
	s.Ask("bundle", "set", "-id", with.IDString(), "-format", "pem", "-path", filepath.Join(s.dir, "federated.pem"))
	s.mu.Lock()
	defer s.mu.Unlock()
	s.federated = append(s.federated, with)
	for id, entry := range s.registered {
		args := []string{"entry", "update", "-entryID", entry, "-parentID", s.parent, "-spiffeID", id.String(),
			"-selector", fmt.Sprintf("unix:uid:%d", os.Getuid())}
		if dnsNamed(id) {
			args = append(args, "-dns", "localhost")
		}
		for _, td := range s.federated {
			args = append(args, "-federatesWith", td.IDString())
		}
		s.Ask(args...)
	}
}

// TrustDomains are the home one and those that it federates with.
func (s *SPIREAuthority) TrustDomains() []spiffeid.TrustDomain {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]spiffeid.TrustDomain{s.Home}, s.federated...)
}

// Socket is the agent's.
func (s *SPIREAuthority) Socket(id spiffeid.ID) (string, error) {
	s.Register(id)
	return s.address, nil
}

// Source is kept up to date by the agent until the test ends.
func (s *SPIREAuthority) Source(id spiffeid.ID) (Source, error) {
	s.Register(id)
	s.mu.Lock()
	defer s.mu.Unlock()
	if source := s.sources[id]; source != nil {
		return source, nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	options := workloadapi.WithClientOptions(workloadapi.WithAddr(s.address))
	svids, err := workloadapi.NewX509Source(ctx, options, workloadapi.WithDefaultX509SVIDPicker(func(all []*x509svid.SVID) *x509svid.SVID {
		return cmp.Or(pick(all, id), all[0])
	}))
	if err != nil {
		return nil, err
	}
	tokens, err := workloadapi.NewBundleSource(ctx, options)
	if err != nil {
		return nil, errors.Join(err, svids.Close())
	}
	s.t.Cleanup(func() { svids.Close(); tokens.Close() })
	source := spireSource{X509Source: svids, tokens: tokens}
	s.sources[id] = source
	return source, nil
}

func pick(all []*x509svid.SVID, id spiffeid.ID) *x509svid.SVID {
	for _, svid := range all {
		if svid.ID == id {
			return svid
		}
	}
	return nil
}

type spireSource struct {
	*workloadapi.X509Source
	tokens *workloadapi.BundleSource
}

func (s spireSource) GetX509BundleForTrustDomain(td spiffeid.TrustDomain) (*x509bundle.Bundle, error) {
	return s.X509Source.GetX509BundleForTrustDomain(td)
}

func (s spireSource) GetJWTBundleForTrustDomain(td spiffeid.TrustDomain) (*jwtbundle.Bundle, error) {
	return s.tokens.GetJWTBundleForTrustDomain(td)
}
