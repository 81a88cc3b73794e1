package streams

import (
	"errors"
	"fmt"
	"strings"
	"text/template"

	"github.com/handoff-governor/handoff-governor/handoff/wire"
)

// ClusterNode is one server of a cluster, as its configuration has it.
type ClusterNode struct {
	Name    string   // one word, other than its peers'
	Listen  string   // host:port for clients, as they know it
	Routes  string   // host:port for the other servers, as they know it; the SVID has the host as a name in DNS
	Peers   []string // host:port of the other servers' Routes
	Store   string   // directory of its streams and accounts
	Cert    string   // file of its X.509-SVID in PEM, with intermediates
	Key     string   // file of the SVID's private key in PEM
	Bundle  string   // file of the trust bundles in PEM, federated ones among them
	PID     string   // file for the process ID, for whoever signals the server; "" for none
	Cluster string   // name of the cluster; "handoff" if empty
}

// nodeConfig is what a server must have for the boundary to hold, and no more: no monitoring, no leafnodes, no WebSocket, no
// MQTT, no user that needs no authentication.
var nodeConfig = template.Must(template.New("node").Parse(`# A NATS server of Handoff Governor's cluster. It holds the password of the routes: mode 0600.
# After a new certificate or bundle, tell the server: nats-server --signal reload. No connection is lost.
server_name: {{.Name}}
listen: {{.Listen}}
client_advertise: {{.Listen}}
max_payload: {{.MaxPayload}}
{{- if .PID}}
pid_file: {{.PID}}
{{- end}}

tls {
  cert_file: {{.Cert}}
  key_file: {{.Key}}
  ca_file: {{.Bundle}}
  verify: true
  handshake_first: true
  min_version: "1.3"
  timeout: {{.Timeout}}
}
authorization { timeout: {{.Timeout}} }

jetstream {
  store_dir: {{.Store}}
}

cluster {
  name: {{.Cluster}}
  listen: {{.Routes}}
  advertise: {{.Routes}}
  routes: [{{range $i, $peer := .Peers}}{{if $i}}, {{end}}"nats-route://routes:{{$.Password}}@{{$peer}}"{{end}}]
  # An SVID alone makes nobody a server: agents have them, too.
  authorization { user: routes, password: {{.Password}}, timeout: {{.Timeout}} }
  tls {
    cert_file: {{.Cert}}
    key_file: {{.Key}}
    ca_file: {{.Bundle}}
    verify: true
    min_version: "1.3"
    timeout: {{.Timeout}}
  }
}

operator: {{.Operator}}
system_account: {{.System}}
# Who comes without a NATS user is this one until the governor has said who it is. It may nothing.
default_sentinel: {{.Sentinel}}
resolver {
  type: full
  dir: {{.Accounts}}
  allow_delete: false
  interval: "30s"
}
# The governor gives the servers all accounts but this one. It must not give them here, too: each time that this file is read,
# a server would go back to what stands in it.
resolver_preload {
  {{.System}}: {{.SystemJWT}}
}
`))

// Config is the content of the node's configuration file for nats-server. It is secret.
func (n ClusterNode) Config(keys *ClusterKeys) (string, error) {
	for _, text := range []string{n.Name, n.Listen, n.Routes, n.Store, n.Cert, n.Key, n.Bundle} {
		if text == "" {
			return "", errors.New("streams: all of a node's names, addresses and files are required")
		}
	}
	parsed, err := keys.parse()
	if err != nil {
		return "", fmt.Errorf("streams: %w", err)
	}
	if keys.SystemJWT == "" {
		return "", errors.New("streams: the cluster's keys have no system_jwt")
	}
	sentinel, err := parsed.sentinel()
	if err != nil {
		return "", err
	}
	if n.Cluster == "" {
		n.Cluster = "handoff"
	}
	var peers []string
	for _, peer := range n.Peers {
		if strings.ContainsAny(peer, "\"\\ \n") {
			return "", fmt.Errorf("streams: peer %q is not host:port", peer)
		}
		peers = append(peers, peer)
	}
	quote := func(text string) string { return fmt.Sprintf("%q", text) }
	pid := ""
	if n.PID != "" {
		pid = quote(n.PID)
	}
	var out strings.Builder
	err = nodeConfig.Execute(&out, map[string]any{
		"Name": quote(n.Name), "Listen": quote(n.Listen), "Routes": quote(n.Routes), "Peers": peers,
		"Cluster": quote(n.Cluster), "Password": keys.Routes,
		"Store": quote(n.Store), "Accounts": quote(n.Store + "/accounts"), "Cert": quote(n.Cert), "Key": quote(n.Key),
		"Bundle": quote(n.Bundle), "PID": pid, "MaxPayload": wire.MaxPayload, "Timeout": int(authTimeout.Seconds()),
		"Operator": keys.OperatorJWT, "System": parsed.systemKey, "Sentinel": sentinel, "SystemJWT": keys.SystemJWT,
	})
	return out.String(), err
}
