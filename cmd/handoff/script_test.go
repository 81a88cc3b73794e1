package main

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/workloadapi"

	"github.com/handoff-governor/handoff-governor/cmd/internal/scripts"
	"github.com/handoff-governor/handoff-governor/handoff"
	"github.com/handoff-governor/handoff-governor/handoff/guard"
	"github.com/handoff-governor/handoff-governor/handoff/identity"
)

func TestMain(m *testing.M) {
	scripts.Main(m, map[string]func(){
		"handoff":    scripts.Command(run),
		"toolserver": scripts.Command(func() int { return failed(serveTool()) }),
	})
}

func TestScripts(t *testing.T) { scripts.Run(t, "governor") }

func failed(err error) int {
	if err == nil {
		return 0
	}
	fmt.Fprintln(os.Stderr, "toolserver:", err)
	return 1
}

// serveTool is a tool behind a guard, as SPIFFE_ENDPOINT_SOCKET and HANDOFF_URL say. It writes its address into the file
// that is its argument, once its guard knows the revocations. Its audience is "tools".
func serveTool() error {
	ctx := context.Background()
	source, err := workloadapi.NewX509Source(ctx)
	if err != nil {
		return err
	}
	client, err := handoff.Connect(ctx, handoff.Config{URL: os.Getenv("HANDOFF_URL"), Source: source})
	if err != nil {
		return err
	}
	keys, err := client.Keys(ctx)
	if err != nil {
		return err
	}
	issuer, err := guard.IssuerOf(keys)
	if err != nil {
		return err
	}
	g, err := guard.New(guard.Config{Audience: []string{"tools"}, Issuers: []guard.Issuer{issuer}, Skew: time.Millisecond})
	if err != nil {
		return err
	}
	watching := make(chan error, 1)
	go func() { watching <- client.WatchRevocations(ctx, g) }()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	tool := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		call, _ := guard.FromContext(r.Context())
		if call.Tool == "broken" {
			w.WriteHeader(http.StatusTeapot)
		}
		fmt.Fprintf(w, "%s %s for %s\n", call.Tool, call.Args, call.Agent)
	})
	server := &http.Server{
		Handler:   guard.Handler(g, tool, guard.Options{RequireCaller: true}),
		TLSConfig: identity.ServerTLS(source, source, identity.AnyPeer),
	}
	if err := os.WriteFile(os.Args[1], []byte("https://"+listener.Addr().String()+"/call\n"), 0o600); err != nil {
		return err
	}
	go func() { watching <- server.ServeTLS(listener, "", "") }()
	return <-watching
}
