package demo

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
	"golang.org/x/mod/modfile"
	"golang.org/x/mod/module"

	"github.com/handoff-governor/handoff-governor/handoff"
	"github.com/handoff-governor/handoff-governor/handoff/guard"
	"github.com/handoff-governor/handoff-governor/handoff/identity"
)

// The tools, each with its arguments.
const (
	toolRead    = "file.read"    // {path}: a file of the module under review
	toolLicense = "license.read" // {module}: path@version; the texts of its licence files
	toolWrite   = "report.write" // {path, content}
)

// toolServer owns the files. It trusts what its guard lets through, and checks paths all the same: constraints say what a
// path may be called, only the tool knows what it leads to.
type toolServer struct {
	root   string // of the module under review
	report string
	cache  string // of downloaded modules
}

// serveTools runs the process in front of the files.
func (c *child) serveTools(ctx context.Context) error {
	source, err := workloadapi.NewX509Source(ctx)
	if err != nil {
		return err
	}
	defer source.Close()
	client, err := handoff.Connect(ctx, handoff.Config{URL: c.url, Source: source, Logger: c.log})
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
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	origin := "https://" + listener.Addr().String()
	g, err := guard.New(guard.Config{Audience: []string{origin}, Issuers: []guard.Issuer{issuer}, Skew: time.Second, Logger: c.log})
	if err != nil {
		return err
	}
	cache, err := moduleCache(ctx)
	if err != nil {
		return err
	}
	tools := &toolServer{root: c.module, report: c.report, cache: cache}
	server := &http.Server{
		Handler:           guard.Handler(g, tools, guard.Options{RequireCaller: true}),
		TLSConfig:         identity.ServerTLS(source, source, identity.AnyPeer),
		ReadHeaderTimeout: 5 * time.Second,
	}
	watched := make(chan error, 1)
	go func() { watched <- client.WatchRevocations(ctx, g) }()
	go func() {
		<-ctx.Done()
		_ = server.Close() // ends Serve below; the process ends with it
	}()
	if err := c.events.send(event{Who: files, Kind: eventTools, Text: origin}); err != nil {
		return err
	}
	err = server.ServeTLS(listener, "", "")
	if ctx.Err() == nil {
		return err
	}
	if err := <-watched; err != nil && !errors.Is(err, context.Canceled) {
		c.log.WarnContext(ctx, "the revocations stopped coming", "err", err)
	}
	return nil
}

// ServeHTTP runs a call that the guard has permitted.
func (s *toolServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	call, ok := guard.FromContext(r.Context())
	if !ok {
		http.Error(w, "no guard in front", http.StatusInternalServerError)
		return
	}
	var args struct {
		Path    string `json:"path"`
		Module  string `json:"module"`
		Content string `json:"content"`
	}
	if err := json.Unmarshal(call.Args, &args); err != nil {
		http.Error(w, "arguments: "+err.Error(), http.StatusBadRequest)
		return
	}
	var answer []byte
	var err error
	switch call.Tool {
	case toolRead:
		answer, err = s.read(args.Path)
	case toolLicense:
		answer, err = s.licenses(args.Module)
	case toolWrite:
		err = s.write(args.Path, args.Content)
	default:
		err = fmt.Errorf("there is no tool %q", call.Tool)
	}
	switch {
	case errors.Is(err, os.ErrNotExist):
		http.Error(w, err.Error(), http.StatusNotFound)
	case err != nil:
		http.Error(w, err.Error(), http.StatusBadRequest)
	default:
		_, _ = w.Write(answer) // the caller has gone if it fails, and notices by itself
	}
}

// read reads a file of the module. [os.Root] keeps it inside, whatever the path or a link in it says.
func (s *toolServer) read(path string) ([]byte, error) {
	root, err := os.OpenRoot(s.root)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	return root.ReadFile(path)
}

// licenses returns the licence files of a downloaded module, as JSON: name → text.
func (s *toolServer) licenses(name string) ([]byte, error) {
	path, version, ok := strings.Cut(name, "@")
	if !ok {
		return nil, errors.New("module must be path@version")
	}
	escapedPath, err := module.EscapePath(path)
	if err != nil {
		return nil, err
	}
	escapedVersion, err := module.EscapeVersion(version)
	if err != nil {
		return nil, err
	}
	cache, err := os.OpenRoot(s.cache)
	if err != nil {
		return nil, err
	}
	defer cache.Close()
	dir, err := cache.OpenRoot(filepath.FromSlash(escapedPath) + "@" + escapedVersion)
	if err != nil {
		return nil, fmt.Errorf("%s is not downloaded: %w", name, err)
	}
	defer dir.Close()
	top, err := dir.Open(".")
	if err != nil {
		return nil, err
	}
	defer top.Close()
	entries, err := top.ReadDir(-1)
	if err != nil {
		return nil, err
	}
	texts := map[string]string{}
	for _, e := range entries {
		if !e.Type().IsRegular() || !isLicenseFile(e.Name()) {
			continue
		}
		text, err := dir.ReadFile(e.Name())
		if err != nil {
			return nil, err
		}
		texts[e.Name()] = strings.ToValidUTF8(string(text), "\uFFFD")
	}
	return json.Marshal(texts, json.Deterministic(true))
}

// isLicenseFile knows the names that licence files have at the top of a module.
func isLicenseFile(name string) bool {
	base := strings.ToUpper(strings.TrimSuffix(strings.TrimSuffix(name, ".md"), ".txt"))
	for _, prefix := range []string{"LICENSE", "LICENCE", "COPYING", "UNLICENSE", "MIT-LICENSE"} {
		if base == prefix || strings.HasPrefix(base, prefix+"-") || strings.HasPrefix(base, prefix+".") {
			return true
		}
	}
	return false
}

// write writes the one report there is.
func (s *toolServer) write(path, content string) error {
	if path != s.report {
		return errors.New("there is no such report to write")
	}
	return os.WriteFile(path, []byte(content), 0o600)
}

// moduleCache is where the go command keeps downloaded modules.
func moduleCache(ctx context.Context) (string, error) {
	out, err := exec.CommandContext(ctx, "go", "env", "GOMODCACHE").Output()
	if err != nil {
		return "", fmt.Errorf("asking the go command for its module cache: %w", err)
	}
	return string(bytes.TrimSpace(out)), nil
}

// readModule finds the module path in a directory's go.mod.
func readModule(dir string) (string, error) {
	raw, err := os.ReadFile(filepath.Join(dir, "go.mod"))
	if err != nil {
		return "", fmt.Errorf("%s is not the directory of a Go module: %w", dir, err)
	}
	path := modfile.ModulePath(raw)
	if path == "" {
		return "", fmt.Errorf("%s has no module line", filepath.Join(dir, "go.mod"))
	}
	return path, nil
}
