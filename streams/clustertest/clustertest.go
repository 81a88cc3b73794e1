// Package clustertest runs clusters of real nats-server processes, of the version that go.mod pins, for tests.
package clustertest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/handoff-governor/handoff-governor/streams"
)

// Files are what a node proves itself with, and whom it believes, in PEM. The certificate has "localhost" as a name in DNS.
type Files struct{ Cert, Key, Bundle []byte }

// Cluster is some running servers.
type Cluster struct {
	URLs   []string // of the servers, for clients
	Routes []string // host:port at which they listen for one another
	Stores []string // directories of their streams and accounts
	t      testing.TB
	nodes  []*node
}

type node struct {
	name, dir, config string
	process           *exec.Cmd
	log               *log
	ended             chan struct{}
}

var binary = sync.OnceValues(func() (string, error) {
	out, err := exec.CommandContext(context.Background(), "go", "tool", "-n", "nats-server").Output()
	return strings.TrimSpace(string(out)), err
})

// Start runs n servers made from keys, each with the files that files returns for it, and returns when clients can connect
// to all. They end with the test.
func Start(t testing.TB, n int, keys *streams.ClusterKeys, files func(node string) Files) *Cluster {
	t.Helper()
	c := &Cluster{t: t}
	free := Ports(t, 2*n)
	clients, routes := free[:n], free[n:]
	dir := t.TempDir()
	for i := range n {
		name := fmt.Sprintf("nats-%d", i+1)
		node := &node{name: name, dir: filepath.Join(dir, name)}
		node.config = filepath.Join(node.dir, "nats.conf")
		check(t, os.MkdirAll(node.dir, 0o700))
		c.nodes = append(c.nodes, node)
		c.Write(i, files(name))
		var peers []string
		for j := range n {
			if j != i {
				peers = append(peers, routes[j])
			}
		}
		text, err := streams.ClusterNode{
			Name: name, Listen: clients[i], Routes: routes[i], Peers: peers, Store: filepath.Join(node.dir, "store"),
			Cert: filepath.Join(node.dir, "svid.pem"), Key: filepath.Join(node.dir, "svid_key.pem"),
			Bundle: filepath.Join(node.dir, "bundle.pem"),
		}.Config(keys)
		check(t, err)
		check(t, os.WriteFile(node.config, []byte(text), 0o600))
		c.URLs = append(c.URLs, "tls://"+clients[i])
		c.Stores = append(c.Stores, filepath.Join(node.dir, "store"))
	}
	c.Routes = routes
	for i := range n {
		c.Run(i)
	}
	for i := range n {
		c.awaitListening(clients[i], i)
	}
	return c
}

// Write puts new files in the place of a server's. Reload makes it read them.
func (c *Cluster) Write(i int, f Files) {
	c.t.Helper()
	for name, content := range map[string][]byte{"svid.pem": f.Cert, "svid_key.pem": f.Key, "bundle.pem": f.Bundle} {
		check(c.t, os.WriteFile(filepath.Join(c.nodes[i].dir, name), content, 0o600))
	}
}

// Reload tells a server to read its files again, and returns when it has.
func (c *Cluster) Reload(i int) {
	c.t.Helper()
	n := c.nodes[i]
	before := n.log.count("Reloaded server configuration")
	check(c.t, n.process.Process.Signal(syscall.SIGHUP))
	for end := time.Now().Add(10 * time.Second); n.log.count("Reloaded server configuration") == before; {
		if time.Now().After(end) {
			c.t.Fatalf("%s did not reload:\n%s", n.name, n.log.String())
		}
		<-time.After(5 * time.Millisecond)
	}
}

// Run starts a server.
func (c *Cluster) Run(i int) {
	c.t.Helper()
	path, err := binary()
	check(c.t, err)
	n := c.nodes[i]
	n.log = &log{}
	n.ended = make(chan struct{})
	n.process = exec.CommandContext(context.Background(), path, "-c", n.config)
	n.process.Stderr, n.process.Stdout = n.log, n.log
	check(c.t, n.process.Start())
	process, ended := n.process, n.ended
	go func() {
		defer close(ended)
		_ = process.Wait() // killed, as a rule
	}()
	c.t.Cleanup(func() { c.Kill(i) })
}

// Kill ends a server at once.
func (c *Cluster) Kill(i int) {
	n := c.nodes[i]
	if err := n.process.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		c.t.Error(err)
	}
	<-n.ended
}

// Log is what a server has written so far.
func (c *Cluster) Log(i int) string { return c.nodes[i].log.String() }

func (c *Cluster) awaitListening(addr string, i int) {
	c.t.Helper()
	for end := time.Now().Add(20 * time.Second); ; {
		conn, err := net.DialTimeout("tcp", addr, time.Second)
		if err == nil {
			conn.Close()
			return
		}
		if time.Now().After(end) {
			c.t.Fatalf("%s does not listen: %v\n%s", c.nodes[i].name, err, c.Log(i))
		}
		select {
		case <-c.nodes[i].ended:
			c.t.Fatalf("%s has ended:\n%s", c.nodes[i].name, c.Log(i))
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// Ports are addresses of which nobody listens on any. They are below those that the system gives to whoever asks for any
// port, so that none of them is taken meanwhile, nor while a server is down.
func Ports(t testing.TB, n int) []string {
	t.Helper()
	const first, last = 10_000, 32_000
	var addresses []string
	for tries := 0; len(addresses) < n; tries++ {
		port := strconv.Itoa(first + rand.N(last-first))
		l, err := net.Listen("tcp", "127.0.0.1:"+port)
		if err != nil {
			if tries > 1000 {
				t.Fatal(err)
			}
			continue
		}
		defer l.Close() // not before all are found, so that none is found twice
		addresses = append(addresses, net.JoinHostPort("localhost", port))
	}
	return addresses
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// log keeps what a server writes.
type log struct {
	mu  sync.Mutex
	all bytes.Buffer
}

func (l *log) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.all.Write(p)
}

func (l *log) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.all.String()
}

func (l *log) count(text string) int { return strings.Count(l.String(), text) }
