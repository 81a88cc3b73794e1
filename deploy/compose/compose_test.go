// Package compose_test keeps docker-compose.yaml true: it is read by Compose's own library, and every service's command that
// can run without Docker is run.
package compose_test

import (
	"bytes"
	"context"
	"debug/elf"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/compose-spec/compose-go/v2/cli"
	"github.com/compose-spec/compose-go/v2/types"
	"github.com/go-json-experiment/json"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/handoff-governor/handoff-governor/governor/devspiffe"
)

const root = "../.."

// load reads docker-compose.yaml as Compose does.
func load(t *testing.T) *types.Project {
	t.Helper()
	options, err := cli.NewProjectOptions([]string{root + "/docker-compose.yaml"}, cli.WithProfiles([]string{"*"}))
	if err != nil {
		t.Fatal(err)
	}
	project, err := options.LoadProject(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return project
}

// registration is a line of spire/entries.json.
type registration struct {
	ParentID  string              `json:"parent_id"`
	ID        string              `json:"spiffe_id"`
	Selectors []map[string]string `json:"selectors"`
	DNSNames  []string            `json:"dns_names"`
}

// identities are who SPIRE says that services are.
func identities(t *testing.T) map[string]registration {
	t.Helper()
	raw, err := os.ReadFile("spire/entries.json")
	if err != nil {
		t.Fatal(err)
	}
	var file struct {
		Entries []registration `json:"entries"`
	}
	if err := json.Unmarshal(raw, &file, json.RejectUnknownMembers(true)); err != nil {
		t.Fatal(err)
	}
	out := map[string]registration{}
	for _, e := range file.Entries {
		if !slices.ContainsFunc(e.Selectors, func(s map[string]string) bool {
			return s["value"] == "label:com.docker.compose.project:handoff"
		}) {
			t.Errorf("%s could be had by another project's service", e.ID)
		}
		for _, s := range e.Selectors {
			if service, ok := strings.CutPrefix(s["value"], "label:com.docker.compose.service:"); ok {
				out[service] = e
			}
		}
	}
	return out
}

// What the file says of each service is what we promise: pinned, without rights, without a secret, with an identity.
func TestServices(t *testing.T) {
	project := load(t)
	who := identities(t)
	if project.Name != "handoff" {
		t.Errorf("the project is %q, and the identities are for handoff", project.Name)
	}
	pinned := regexp.MustCompile(`^[a-z0-9./-]+:\d+\.\d+\.\d+$`)
	for name, s := range project.Services {
		ours := s.Build != nil
		if !ours && !pinned.MatchString(s.Image) {
			t.Errorf("%s: the image %s has no version", name, s.Image)
		}
		if s.Privileged || len(s.Ports) > 0 || !slices.Contains(s.SecurityOpt, "no-new-privileges:true") {
			t.Errorf("%s: privileged: %v, ports: %v, security options: %v", name, s.Privileged, s.Ports, s.SecurityOpt)
		}
		if name != "spire-agent" && !slices.Equal(s.CapDrop, []string{"ALL"}) {
			t.Errorf("%s keeps capabilities", name)
		}
		if ours && (!s.ReadOnly || s.User == "" || strings.HasPrefix(s.User, "0")) {
			t.Errorf("%s: read-only: %v, user: %q", name, s.ReadOnly, s.User)
		}
		asks := false
		for _, v := range s.Volumes {
			asks = asks || v.Source == "spire-socket" && name != "spire-agent"
			if source, err := filepath.Rel(project.WorkingDir, v.Source); v.Type == types.VolumeTypeBind && err == nil && !strings.HasPrefix(source, "..") {
				if _, err := os.Stat(v.Source); err != nil && !strings.HasPrefix(source, "deploy/compose/run") {
					t.Errorf("%s: %v", name, err)
				}
			}
		}
		if _, known := who[name]; known != asks {
			t.Errorf("%s has the Workload API: %v, and an identity: %v", name, asks, known)
		}
		for key := range s.Environment {
			if !slices.Contains([]string{"SPIFFE_ENDPOINT_SOCKET", "HANDOFF_URL", "TOOLS_URL"}, key) {
				t.Errorf("%s has %s in its environment", name, key)
			}
		}
	}
	for service := range who {
		if _, ok := project.Services[service]; !ok {
			t.Errorf("there is an identity for %s, and no such service", service)
		}
	}
}

// The commands of the file run, on this machine and with other addresses and paths: a task goes from one agent to the other.
// SPIRE, its helper and Docker are not here; a development Workload API gives the same identities.
func TestCommands(t *testing.T) {
	project := load(t)
	r := &runner{t: t, who: identities(t), bin: build(t)}
	var err error
	if r.dir, err = os.MkdirTemp("", "hc"); err != nil { // short, for sockets
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(r.dir) })
	r.workloads()
	for _, host := range []string{"nats-1:4222", "nats-1:6222", "nats-2:4222", "nats-2:6222", "nats-3:4222", "nats-3:6222", "files:8443"} {
		r.map_(host, "localhost:"+port(t))
	}
	r.map_("//files:8443", "//"+r.there("files:8443")) // no directory
	r.map_("/config", filepath.Join(r.dir, "run"))
	r.map_("/files", must(filepath.Abs("files"))(t))
	r.map_("0.0.0.0:8443", strings.Replace(r.there("files:8443"), "localhost", "127.0.0.1", 1))

	init := r.command(project.Services["init"])
	if out, err := init.CombinedOutput(); err != nil {
		t.Fatalf("init: %v\n%s", err, out)
	}
	config := filepath.Join(r.dir, "run", "governor.yaml")
	text := r.mapped("governor", string(must(os.ReadFile(config))(t)))
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	server := strings.TrimSpace(string(must(exec.Command("go", "tool", "-n", "nats-server").Output())(t)))
	for i := range 3 {
		name := fmt.Sprintf("nats-%d", i+1)
		r.nats(server, name, project.Services[name])
	}
	var planned *output
	for _, name := range []string{"governor", "files", "writer", "planner"} {
		planned = r.start(name, r.command(project.Services[name]))
	}
	planned.await("completed by handoff=dexample=sagent=swriter: THE THIRD QUARTER WAS FINE")
}

// runner runs services as processes.
type runner struct {
	t      *testing.T
	dir    string
	bin    string
	who    map[string]registration
	socket map[string]string
	here   []string // what is said there, and what is meant here, in turn
	ca     *devspiffe.Authority
}

func (r *runner) map_(there, here string) { r.here = append(r.here, there, here) }

// there is what something is here.
func (r *runner) there(text string) string { return strings.NewReplacer(r.here...).Replace(text) }

// workloads are the identities of all services.
func (r *runner) workloads() {
	r.t.Helper()
	config := devspiffe.Config{
		Dir: filepath.Join(r.dir, "ca"), TrustDomain: spiffeid.RequireTrustDomainFromString("handoff.example"), DNSNames: map[spiffeid.ID][]string{},
	}
	for _, e := range r.who {
		if len(e.DNSNames) > 0 { // localhost takes the place of the names that there are in the file
			config.DNSNames[spiffeid.RequireFromString(e.ID)] = []string{"localhost"}
		}
	}
	ca, err := devspiffe.New(config)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { ca.Close() })
	r.ca, r.socket = ca, map[string]string{}
	for service, e := range r.who {
		if r.socket[service], err = ca.Socket(spiffeid.RequireFromString(e.ID)); err != nil {
			r.t.Fatal(err)
		}
	}
}

// command is a service of ours as a process.
func (r *runner) command(s types.ServiceConfig) *exec.Cmd {
	program := "governor" // as the Dockerfile has it
	if len(s.Entrypoint) > 0 {
		program = s.Entrypoint[0]
	}
	cmd := exec.CommandContext(context.Background(), filepath.Join(r.bin, program))
	for _, arg := range s.Command {
		cmd.Args = append(cmd.Args, r.mapped(s.Name, arg))
	}
	for key, value := range s.Environment {
		cmd.Env = append(cmd.Env, key+"="+r.mapped(s.Name, *value))
	}
	return cmd
}

// mapped is there, with the Workload API that knows the service.
func (r *runner) mapped(service, text string) string {
	if r.socket[service] != "" {
		text = strings.ReplaceAll(text, "unix:///run/spire/agent.sock", r.socket[service])
	}
	return r.there(text)
}

// nats starts a server of the cluster, with the SVID that the helper beside it would have written.
func (r *runner) nats(program, name string, s types.ServiceConfig) {
	r.t.Helper()
	svid := filepath.Join(r.dir, name)
	if err := os.Mkdir(svid, 0o700); err != nil {
		r.t.Fatal(err)
	}
	source := must(r.ca.Source(spiffeid.RequireFromString(r.who["svid-"+name].ID)))(r.t)
	x509 := must(source.GetX509SVID())(r.t)
	certs, key, err := x509.Marshal()
	if err != nil {
		r.t.Fatal(err)
	}
	bundle := must(must(source.GetX509BundleForTrustDomain(x509.ID.TrustDomain()))(r.t).Marshal())(r.t)
	for file, content := range map[string][]byte{"svid.pem": certs, "svid_key.pem": key, "svid_bundle.pem": bundle} {
		if err := os.WriteFile(filepath.Join(svid, file), content, 0o600); err != nil {
			r.t.Fatal(err)
		}
	}
	mounted := ""
	for _, v := range s.Volumes {
		if v.Target == "/etc/nats/nats.conf" {
			mounted = filepath.Base(v.Source)
		}
	}
	file := filepath.Join(r.dir, "run", mounted)
	text := string(must(os.ReadFile(file))(r.t))
	text = strings.NewReplacer(`"/run/svid`, `"`+svid, `"/data`, `"`+filepath.Join(svid, "data")).Replace(text)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		r.t.Fatal(err)
	}
	cmd := exec.CommandContext(context.Background(), program)
	for _, arg := range s.Command {
		cmd.Args = append(cmd.Args, strings.ReplaceAll(arg, "/etc/nats/nats.conf", file))
	}
	r.start(name, cmd)
}

// start starts a process again and again until the test ends, as Compose would.
func (r *runner) start(name string, cmd *exec.Cmd) *output {
	r.t.Helper()
	out := &output{t: r.t, name: name}
	stop := make(chan struct{})
	var ended sync.WaitGroup
	ended.Go(func() {
		for {
			again := exec.CommandContext(context.Background(), cmd.Path, cmd.Args[1:]...)
			again.Env, again.Stdout, again.Stderr = cmd.Env, out, out
			if err := again.Start(); err != nil {
				fmt.Fprintln(out, err)
				return
			}
			done := make(chan struct{})
			go func() {
				defer close(done)
				_ = again.Wait()
			}()
			select {
			case <-stop:
				_ = again.Process.Kill()
				<-done
				return
			case <-done:
			}
			select {
			case <-stop:
				return
			case <-time.After(300 * time.Millisecond):
			}
		}
	})
	r.t.Cleanup(func() {
		close(stop)
		ended.Wait()
		if r.t.Failed() {
			r.t.Logf("%s says:\n%s", name, out.text())
		}
	})
	return out
}

// output is what a service writes.
type output struct {
	t    *testing.T
	name string
	mu   sync.Mutex
	all  bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.all.Write(p)
}

func (o *output) text() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.all.String()
}

func (o *output) await(text string) {
	o.t.Helper()
	for end := time.Now().Add(45 * time.Second); !strings.Contains(o.text(), text); {
		if time.Now().After(end) {
			o.t.Fatalf("%s does not say %q", o.name, text)
		}
		<-time.After(20 * time.Millisecond)
	}
}

// build builds the programs as the Dockerfile does, and sees that they need nothing beside them.
func build(t *testing.T) string {
	t.Helper()
	file := string(must(os.ReadFile(root + "/Dockerfile"))(t))
	m := regexp.MustCompile(`(?m)^RUN CGO_ENABLED=0 go build (.*)-o /out/ (.*)$`).FindStringSubmatch(file)
	if m == nil {
		t.Fatal("the Dockerfile does not build as this test thinks")
	}
	bin := t.TempDir()
	cmd := exec.CommandContext(t.Context(), "sh", "-c", "go build "+m[1]+"-o "+bin+"/ "+m[2])
	cmd.Dir, cmd.Env = root, append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, program := range []string{"governor", "handoff", "tool", "pipeline"} {
		binary, err := elf.Open(filepath.Join(bin, program))
		if err != nil {
			t.Fatal(err)
		}
		if libraries, err := binary.ImportedLibraries(); err != nil || len(libraries) > 0 {
			t.Errorf("%s needs %q: %v", program, libraries, err)
		}
		binary.Close()
	}
	return bin
}

// port is one that was free a moment ago.
func port(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, p, err := net.SplitHostPort(l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func must[T any](v T, err error) func(*testing.T) T {
	return func(t *testing.T) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}
