// Tool is a server of files with a guard in front: the smallest thing that agents can call under a grant.
//
//	tool --dir .
//
// Its identity, which is a guard's, comes from the Workload API at SPIFFE_ENDPOINT_SOCKET; HANDOFF_URL is the governor.
// It has one tool, fs.read, with one argument, path.
package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/spiffe/go-spiffe/v2/workloadapi"

	"github.com/handoff-governor/handoff-governor/handoff"
	"github.com/handoff-governor/handoff-governor/handoff/guard"
	"github.com/handoff-governor/handoff-governor/handoff/identity"
)

func main() {
	listen := flag.String("listen", "127.0.0.1:0", "host:port; port 0 takes a free one")
	dir := flag.String("dir", ".", "directory with the files")
	url := flag.String("url", "", "https://host:port as callers know it (default: as it listens)")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := serve(ctx, *listen, *dir, *url); err != nil {
		fmt.Fprintln(os.Stderr, "tool:", err)
		os.Exit(1)
	}
}

// serve serves the files of a directory until the context ends.
func serve(ctx context.Context, listen, dir, url string) error {
	source, err := workloadapi.NewX509Source(ctx)
	if err != nil {
		return err
	}
	defer source.Close()
	client, err := handoff.Connect(ctx, handoff.Config{URL: os.Getenv("HANDOFF_URL"), Source: source})
	if err != nil {
		return err
	}
	defer client.Close()
	keys, err := client.Keys(ctx)
	if err != nil {
		return err
	}
	issuer, err := guard.IssuerOf(keys)
	if err != nil {
		return err
	}
	listener, err := net.Listen("tcp", listen)
	if err != nil {
		return err
	}
	// Each process has an audience of its own. A proof for another guard is none here.
	origin := cmp.Or(url, "https://"+listener.Addr().String())
	g, err := guard.New(guard.Config{Audience: []string{origin}, Issuers: []guard.Issuer{issuer}, Logger: slog.Default()})
	if err != nil {
		return err
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	server := &http.Server{
		Handler:           guard.Handler(g, files{root}, guard.Options{RequireCaller: true}),
		TLSConfig:         identity.ServerTLS(source, source, identity.AnyPeer),
		ReadHeaderTimeout: 5 * time.Second,
	}
	watched := make(chan error, 1)
	go func() {
		watched <- client.WatchRevocations(ctx, g) // without it the guard refuses everything
		_ = server.Close()                         // ends ServeTLS below
	}()
	go func() { _ = client.WatchKeys(ctx, g) }() // it ends with ctx
	fmt.Printf("export TOOLS_URL=%s\n", origin)
	if err := server.ServeTLS(listener, "", ""); ctx.Err() == nil {
		return err
	}
	if err := <-watched; !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

// files is the tool itself. It runs what the guard has permitted.
type files struct{ root *os.Root }

func (f files) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	call, ok := guard.FromContext(r.Context())
	if !ok || call.Tool != "fs.read" {
		http.Error(w, "there is no such tool here", http.StatusNotFound)
		return
	}
	var args struct {
		Path string `json:"path"`
	}
	if err := json.Unmarshal(call.Args, &args); err != nil {
		http.Error(w, "arguments: "+err.Error(), http.StatusBadRequest)
		return
	}
	// The constraint says what a path may be called; only the tool knows what it leads to. The root keeps it inside.
	text, err := f.root.ReadFile(strings.TrimPrefix(args.Path, "/"))
	if err != nil {
		http.Error(w, "there is no such file", http.StatusNotFound)
		return
	}
	_, _ = w.Write(text) // the caller has gone if it fails, and notices by itself
}
