package main

import (
	"bytes"
	"cmp"
	"crypto/ed25519"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/go-json-experiment/json"
	"github.com/spf13/cobra"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"go.yaml.in/yaml/v3"

	"github.com/handoff-governor/handoff-governor/cmd/governor/daemon"
	"github.com/handoff-governor/handoff-governor/handoff/aat"
	"github.com/handoff-governor/handoff-governor/streams"
)

// config is governor.yaml. What is left out is as it says; files are found from where governor.yaml is.
type config struct {
	Data        string            `yaml:"data,omitempty"`         // directory; "data"
	TrustDomain string            `yaml:"trust_domain,omitempty"` // the Workload API's, which must be it
	WorkloadAPI string            `yaml:"workload_api,omitempty"` // unix:///… or tcp://…; $SPIFFE_ENDPOINT_SOCKET
	Listen      string            `yaml:"listen,omitempty"`       // of an embedded NATS server; 127.0.0.1:4222
	Cluster     *clusterConfig    `yaml:"cluster,omitempty"`      // instead of it
	Policy      string            `yaml:"policy,omitempty"`       // directory of the bundle; the one before, or ours
	People      map[string]string `yaml:"people,omitempty"`       // name → file of an Ed25519 public key in PEM
	Issuer      *issuerConfig     `yaml:"issuer,omitempty"`       // elsewhere; in the governor's process
	LogLevel    string            `yaml:"log_level,omitempty"`    // info
	KeepBodies  time.Duration     `yaml:"keep_bodies,omitempty"`  // of tasks, results and objectives; for ever
	Limits      limitsConfig      `yaml:"limits,omitempty"`
}

type issuerConfig struct {
	URL string `yaml:"url,omitempty"` // https://host:port of "governor issuer serve"
}

type clusterConfig struct {
	URLs     []string `yaml:"urls,omitempty"`
	Keys     string   `yaml:"keys,omitempty"`     // file that "governor init" wrote
	Replicas int      `yaml:"replicas,omitempty"` // of each stream; as many as there are servers, 3 at most
}

// limitsConfig are the limits; [streams.Limits] and [daemon.Limits] tell the defaults.
type limitsConfig struct {
	// Of one identity.
	Connections   int   `yaml:"connections,omitempty"`
	Subscriptions int   `yaml:"subscriptions,omitempty"` // of one connection
	Rate          int   `yaml:"rate,omitempty"`          // messages a second, over ten seconds
	RateBytes     int64 `yaml:"rate_bytes,omitempty"`    // bytes a second, over ten seconds
	Waiting       int   `yaml:"waiting,omitempty"`       // offers and results that wait for the governor
	Requests      int   `yaml:"requests,omitempty"`      // that wait for the governor
	Sessions      int   `yaml:"sessions,omitempty"`      // open at once
	Handoffs      int   `yaml:"handoffs,omitempty"`      // open at once to it
	InboxMessages int64 `yaml:"inbox_messages,omitempty"`
	InboxBytes    int64 `yaml:"inbox_bytes,omitempty"`
	// Of all.
	Withdrawn       int           `yaml:"withdrawn,omitempty"` // identities at a time
	Identities      int           `yaml:"identities,omitempty"`
	WaitingBytes    int64         `yaml:"waiting_bytes,omitempty"`
	AllInboxesBytes int64         `yaml:"all_inboxes_bytes,omitempty"`
	InboxAge        time.Duration `yaml:"inbox_age,omitempty"`
	QuarantineBytes int64         `yaml:"quarantine_bytes,omitempty"`
	QuarantineAge   time.Duration `yaml:"quarantine_age,omitempty"`
}

func (l limitsConfig) limits() daemon.Limits {
	return daemon.Limits{
		Limits: streams.Limits{
			Agents: l.Identities, Connections: l.Connections, Subscriptions: l.Subscriptions, Rate: l.Rate, RateBytes: l.RateBytes,
			IngressBytes: l.WaitingBytes, IngressShare: l.Waiting, Requests: l.Requests,
			InboxMessages: l.InboxMessages, InboxShare: l.InboxBytes, InboxBytes: l.AllInboxesBytes, InboxAge: l.InboxAge,
			QuarantineBytes: l.QuarantineBytes, QuarantineAge: l.QuarantineAge,
		},
		Sessions: l.Sessions, Handoffs: l.Handoffs, Withdrawn: l.Withdrawn,
	}
}

// check refuses limits that nothing could pass.
func (l limitsConfig) check() error {
	for name, n := range map[string]int64{
		"connections": int64(l.Connections), "subscriptions": int64(l.Subscriptions), "rate": int64(l.Rate), "rate_bytes": l.RateBytes,
		"waiting": int64(l.Waiting), "requests": int64(l.Requests), "sessions": int64(l.Sessions), "handoffs": int64(l.Handoffs),
		"inbox_messages": l.InboxMessages, "inbox_bytes": l.InboxBytes, "identities": int64(l.Identities),
		"withdrawn":     int64(l.Withdrawn),
		"waiting_bytes": l.WaitingBytes, "all_inboxes_bytes": l.AllInboxesBytes, "inbox_age": int64(l.InboxAge),
		"quarantine_bytes": l.QuarantineBytes, "quarantine_age": int64(l.QuarantineAge),
	} {
		if n < 0 {
			return fmt.Errorf("limits: %s is negative: leave it out for the default", name)
		}
	}
	return nil
}

// maxConfig bounds governor.yaml and the file of the cluster's keys.
const maxConfig = 1 << 20

// readConfig reads governor.yaml.
func readConfig(file string) (*config, error) {
	raw, err := readBounded(file)
	if err != nil {
		return nil, err
	}
	var c config
	d := yaml.NewDecoder(bytes.NewReader(raw))
	d.KnownFields(true)
	if err := d.Decode(&c); err != nil && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	if err := d.Decode(new(yaml.Node)); !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("%s: there is more than one document: leave one", file)
	}
	if err := c.check(); err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return &c, nil
}

func (c *config) check() error {
	if c.TrustDomain != "" {
		if err := checkTrustDomain(c.TrustDomain); err != nil {
			return fmt.Errorf("trust_domain %w", err)
		}
	}
	if c.Listen != "" {
		if c.Cluster != nil {
			return errors.New("there is listen, for an embedded NATS server, and cluster: leave one of them out")
		}
		if err := checkListen(c.Listen); err != nil {
			return fmt.Errorf("listen %w", err)
		}
	}
	if c.Cluster != nil && (len(c.Cluster.URLs) == 0 || c.Cluster.Keys == "") {
		return errors.New("cluster: urls and keys are required: \"governor init\" writes both")
	}
	if c.Cluster != nil && (c.Cluster.Replicas < 0 || c.Cluster.Replicas > 5) {
		return fmt.Errorf("cluster: replicas is %d; a stream has 1 to 5", c.Cluster.Replicas)
	}
	if err := daemon.CheckKeepBodies(c.KeepBodies); err != nil {
		return fmt.Errorf("keep_bodies %w", err)
	}
	if c.Issuer != nil && len(c.People) > 0 {
		return errors.New("there are people, and an issuer elsewhere, which has to know them: name them to \"governor issuer serve\" with --person")
	}
	return c.Limits.check()
}

// daemon is what the governor is started with, and the directory of its bundle.
func (c *config) daemon(cmd *cobra.Command, dir string) (cfg daemon.Config, policy string, err error) {
	at := func(path string) string {
		if path == "" || filepath.IsAbs(path) {
			return path
		}
		return filepath.Join(dir, path)
	}
	cfg = daemon.Config{
		Dir: at(cmp.Or(c.Data, "data")), TrustDomain: c.TrustDomain, Listen: c.Listen,
		WorkloadAPI: cmp.Or(c.WorkloadAPI, os.Getenv("SPIFFE_ENDPOINT_SOCKET")),
		Limits:      c.Limits.limits(), People: map[string]aat.JWK{}, KeepBodies: c.KeepBodies,
	}
	if cfg.Logger, err = newLogger(cmd, cmp.Or(c.LogLevel, "info")); err != nil {
		return cfg, "", fmt.Errorf("log_level %w", err)
	}
	if cfg.WorkloadAPI == "" {
		return cfg, "", errors.New("workload_api is missing: name SPIRE's socket, as in unix:///run/spire/agent.sock, or use \"governor up\", which has identities of its own")
	}
	for name, file := range c.People {
		if cfg.People[name], err = publicKey(at(file)); err != nil {
			return cfg, "", err
		}
	}
	if c.Issuer != nil {
		cfg.Issuer = &daemon.RemoteIssuer{URL: c.Issuer.URL}
	}
	if c.Policy != "" {
		policy = at(c.Policy)
		if cfg.Bundle, err = readBundle(policy); err != nil {
			return cfg, "", err
		}
	}
	if c.Cluster != nil {
		keys, err := readClusterKeys(at(c.Cluster.Keys))
		if err != nil {
			return cfg, "", err
		}
		cfg.Cluster = &daemon.Cluster{
			URLs: c.Cluster.URLs, Keys: keys, Replicas: cmp.Or(c.Cluster.Replicas, min(len(c.Cluster.URLs), 3)),
		}
	}
	return cfg, policy, nil
}

// readClusterKeys reads the keys of a cluster, which nobody else may.
func readClusterKeys(file string) (*streams.ClusterKeys, error) {
	info, err := os.Stat(file)
	if err != nil {
		return nil, err
	}
	if info.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("%s can be read by others: chmod 600 it, and think about who has read it", file)
	}
	raw, err := readBounded(file)
	if err != nil {
		return nil, err
	}
	var keys streams.ClusterKeys
	if err := json.Unmarshal(raw, &keys, json.RejectUnknownMembers(true)); err != nil {
		return nil, fmt.Errorf("%s is not what \"governor init\" wrote", file) // the error might tell of a key
	}
	return &keys, nil
}

func readBounded(file string) ([]byte, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	raw, err := io.ReadAll(io.LimitReader(f, maxConfig+1))
	if err == nil && len(raw) > maxConfig {
		err = fmt.Errorf("%s has more than 1 MiB", file)
	}
	return raw, err
}

// publicKey reads a person's key.
func publicKey(file string) (aat.JWK, error) {
	raw, err := os.ReadFile(file)
	if err != nil {
		return aat.JWK{}, err
	}
	block, _ := pem.Decode(raw)
	if block == nil || block.Type != "PUBLIC KEY" {
		return aat.JWK{}, fmt.Errorf("%s is not a public key in PEM: openssl pkey -in KEY -pubout makes one", file)
	}
	parsed, err := x509.ParsePKIXPublicKey(block.Bytes)
	if err != nil {
		return aat.JWK{}, fmt.Errorf("%s: %w", file, err)
	}
	key, ok := parsed.(ed25519.PublicKey)
	if !ok {
		return aat.JWK{}, fmt.Errorf("%s is not an Ed25519 key: openssl genpkey -algorithm ed25519 makes one", file)
	}
	return aat.NewJWK(key), nil
}

func checkListen(address string) error {
	host, port, err := net.SplitHostPort(address)
	if err == nil {
		_, err = strconv.ParseUint(port, 10, 16)
	}
	if err != nil {
		return fmt.Errorf("is %q; it must be host:port, as in 127.0.0.1:4222, with a port up to 65535", address)
	}
	if strings.ContainsFunc(host, unicode.IsSpace) {
		return fmt.Errorf("is %q; a host has no spaces", address)
	}
	return nil
}

func checkTrustDomain(name string) error {
	if home, err := spiffeid.TrustDomainFromString(name); err != nil || home.Name() != name {
		return fmt.Errorf("is %q; it must be a name as in acme.example: small letters, digits, dots, dashes and underscores", name)
	}
	return nil
}
