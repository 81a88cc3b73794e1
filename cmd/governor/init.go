package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/spf13/cobra"
	"go.yaml.in/yaml/v3"

	"github.com/handoff-governor/handoff-governor/cmd/internal/cli"
	"github.com/handoff-governor/handoff-governor/streams"
)

// setup is what "governor init" was asked for.
type setup struct {
	dir, trustDomain, workloadAPI, listen string
	nodes                                 []string
	svids, store                          string
}

const (
	configFile   = "governor.yaml"
	clusterFile  = "cluster.json"
	operatorFile = "operator.nk"
)

func initCommand() *cobra.Command {
	var s setup
	cmd := &cobra.Command{
		Use:   "init DIR",
		Short: "Write governor.yaml, and for a NATS cluster the operator, the accounts and each server's configuration",
		Long: `Write governor.yaml for "governor serve" and, where --node names the servers of a NATS cluster, what they need: the
operator, the governor's accounts and a configuration for each server. All of it is secret, and readable by this user only.
Nothing is overwritten.

A server's SVID is below /nats/ in the trust domain, as in spiffe://acme.example/nats/nats-1, and has the host of its
ROUTES as a name in DNS. spiffe-helper keeps the files svid.pem, svid_key.pem and svid_bundle.pem in the directory --svids
new, and tells the server, whose process ID is in nats.pid there, with SIGHUP.

operator.nk is the operator's own key. Nobody needs it from day to day: keep it elsewhere.`,
		Example: `  governor init --trust-domain acme.example --listen 0.0.0.0:4222 /etc/handoff
  governor init --trust-domain acme.example --workload-api unix:///run/spire/agent.sock \\
    --node nats-1=nats-1:4222,nats-1:6222 --node nats-2=nats-2:4222,nats-2:6222 \\
    --node nats-3=nats-3:4222,nats-3:6222 /etc/handoff`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			s.dir = args[0]
			return s.run(cmd)
		},
	}
	f := cmd.Flags()
	f.StringVar(&s.trustDomain, "trust-domain", "", "the trust domain that the Workload API must be of")
	f.StringVar(&s.workloadAPI, "workload-api", cli.Default("SPIFFE_ENDPOINT_SOCKET", ""),
		"address of the governor's Workload API; SPIFFE_ENDPOINT_SOCKET sets the default, here and later")
	f.StringVar(&s.listen, "listen", "", "host:port of an embedded NATS server (default 127.0.0.1:4222)")
	f.StringArrayVar(&s.nodes, "node", nil, "NAME=CLIENTS,ROUTES of a server of a NATS cluster, each host:port; repeatable")
	f.StringVar(&s.svids, "svids", "/run/svid", "directory of a server's SVID and trust bundle, on its own machine")
	f.StringVar(&s.store, "store", "/data", "directory of a server's streams, on its own machine")
	return cmd
}

// file is one that was made.
type file struct {
	Path string `json:"path"`
	For  string `json:"for"`
	data []byte
}

func (s *setup) run(cmd *cobra.Command) error {
	if s.trustDomain == "" {
		return cli.Usagef("--trust-domain is missing: the name of the trust domain that SPIRE runs, as in acme.example")
	}
	if err := checkTrustDomain(s.trustDomain); err != nil {
		return cli.Usagef("--trust-domain %v", err)
	}
	files, err := s.files()
	if err != nil {
		return err
	}
	for i := range files {
		files[i].Path = filepath.Join(s.dir, files[i].Path)
		if _, err := os.Lstat(files[i].Path); !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("%s is there already: name another directory, or remove it", files[i].Path)
		}
	}
	if err := os.MkdirAll(s.dir, 0o700); err != nil {
		return err
	}
	for _, f := range files {
		if err := writeNew(f.Path, f.data); err != nil {
			return err
		}
	}
	out := cli.For(cmd)
	if out.JSON {
		return out.Value(files)
	}
	rows := make([][]string, 0, len(files))
	for _, f := range files {
		rows = append(rows, []string{f.Path, f.For})
	}
	if err := out.Table([]string{"file", "for"}, rows); err != nil {
		return err
	}
	return errors.Join(out.Line(""), out.Line("then: governor serve --config %s", files[0].Path))
}

// files are those to write, governor.yaml first.
func (s *setup) files() ([]file, error) {
	c := config{Data: "data", TrustDomain: s.trustDomain, WorkloadAPI: s.workloadAPI, Listen: s.listen}
	if len(s.nodes) == 0 {
		if c.Listen == "" {
			c.Listen = "127.0.0.1:4222"
		}
		return s.withConfig(c, nil)
	}
	if s.listen != "" {
		return nil, cli.Usagef("--listen is of an embedded NATS server, and --node of a cluster: leave one of them out")
	}
	nodes, err := s.parseNodes()
	if err != nil {
		return nil, err
	}
	keys, operator, err := streams.NewClusterKeys()
	if err != nil {
		return nil, err
	}
	encoded, err := json.Marshal(keys, json.Deterministic(true), jsontext.WithIndent("  "))
	if err != nil {
		return nil, err
	}
	files := []file{
		{clusterFile, "the governor: what it makes accounts with", append(encoded, '\n')},
		{operatorFile, "nobody from day to day: keep it elsewhere", []byte(operator + "\n")},
	}
	c.Cluster = &clusterConfig{Keys: clusterFile, Replicas: min(len(nodes), 3)}
	for _, n := range nodes {
		c.Cluster.URLs = append(c.Cluster.URLs, "tls://"+n.Listen)
		text, err := n.Config(keys)
		if err != nil {
			return nil, err
		}
		files = append(files, file{n.Name + ".conf", "nats-server -c, on " + n.Name, []byte(text)})
	}
	return s.withConfig(c, files)
}

func (s *setup) withConfig(c config, others []file) ([]file, error) {
	if err := c.check(); err != nil {
		return nil, cli.Usagef("%v", err)
	}
	text, err := yaml.Marshal(c)
	if err != nil {
		return nil, err
	}
	text = append([]byte("# For governor serve. What else can be said here is in docs/operate.md.\n"), text...)
	return append([]file{{configFile, "governor serve --config", text}}, others...), nil
}

// parseNodes reads --node.
func (s *setup) parseNodes() ([]streams.ClusterNode, error) {
	var nodes []streams.ClusterNode
	for _, typed := range s.nodes {
		name, addresses, _ := strings.Cut(typed, "=")
		clients, routes, ok := strings.Cut(addresses, ",")
		if !ok || name == "" || strings.ContainsAny(name, "/\\. \t") {
			return nil, cli.Usagef("--node is %q; it must be NAME=CLIENTS,ROUTES, as in nats-1=nats-1:4222,nats-1:6222", typed)
		}
		for _, address := range []string{clients, routes} {
			if err := checkListen(address); err != nil {
				return nil, cli.Usagef("--node %s: an address %v", name, err)
			}
		}
		if slices.ContainsFunc(nodes, func(n streams.ClusterNode) bool { return n.Name == name }) {
			return nil, cli.Usagef("--node %s is there twice", name)
		}
		nodes = append(nodes, streams.ClusterNode{
			Name: name, Listen: clients, Routes: routes, Store: s.store,
			Cert: path.Join(s.svids, "svid.pem"), Key: path.Join(s.svids, "svid_key.pem"), Bundle: path.Join(s.svids, "svid_bundle.pem"),
			PID: path.Join(s.svids, "nats.pid"),
		})
	}
	if len(nodes) != 3 && len(nodes) != 5 {
		return nil, cli.Usagef("--node names %d servers; a cluster that goes on without one of them has 3 or 5", len(nodes))
	}
	for i := range nodes {
		for j, peer := range nodes {
			if i != j {
				nodes[i].Peers = append(nodes[i].Peers, peer.Routes)
			}
		}
	}
	return nodes, nil
}

// writeNew writes a file that is not there yet, for this user only.
func writeNew(name string, data []byte) (err error) {
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if _, err = f.Write(data); err != nil {
		return err
	}
	return f.Sync()
}
