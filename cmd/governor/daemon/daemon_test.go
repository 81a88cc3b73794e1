package daemon_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/handoff-governor/handoff-governor/cmd/governor/daemon"
	"github.com/handoff-governor/handoff-governor/governor/ledger"
	"github.com/handoff-governor/handoff-governor/policies"
)

func start(t *testing.T, cfg daemon.Config) (*daemon.Daemon, error) {
	t.Helper()
	if cfg.Listen == "" {
		cfg.Listen = "127.0.0.1:0"
	}
	d, err := daemon.Start(t.Context(), cfg)
	if err == nil {
		t.Cleanup(func() { d.Close() })
	}
	return d, err
}

// One data directory, one daemon; and what cannot be used is named.
func TestDataDirectory(t *testing.T) {
	dir := t.TempDir()
	d, err := start(t, daemon.Config{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := start(t, daemon.Config{Dir: dir}); !errors.Is(err, ledger.ErrInUse) {
		t.Errorf("a second daemon: %v", err)
	}
	if _, err := start(t, daemon.Config{Dir: t.TempDir(), Listen: strings.TrimPrefix(d.Endpoint.URL, "tls://")}); err == nil {
		t.Error("a second daemon took the same address")
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := start(t, daemon.Config{Dir: dir, TrustDomain: "other.example"}); err == nil || !strings.Contains(err.Error(), "handoff.local") {
		t.Errorf("another trust domain: %v", err)
	}
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := start(t, daemon.Config{Dir: filepath.Join(file, "data")}); err == nil {
		t.Error("a directory below a file was accepted")
	}
	// Keys that others can read are no keys.
	key := filepath.Join(dir, "keys", "governor.pem")
	if err := os.Chmod(key, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := start(t, daemon.Config{Dir: dir}); err == nil || !strings.Contains(err.Error(), "chmod 600") {
		t.Errorf("a key that others can read: %v", err)
	}
	if err := os.Chmod(key, 0o600); err != nil {
		t.Fatal(err)
	}
	again, err := start(t, daemon.Config{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	if again.Endpoint.LogKey != d.Endpoint.LogKey || !slices.Equal(again.Endpoint.IssuerKeys, d.Endpoint.IssuerKeys) {
		t.Error("a restart has other keys")
	}
}

// Of several first starts at once in one directory, the one that runs has the keys that are kept.
func TestFirstStartsAtOnce(t *testing.T) {
	for range 3 {
		dir := t.TempDir()
		var all sync.WaitGroup
		started := make(chan *daemon.Daemon, 4)
		for range cap(started) {
			all.Go(func() {
				if d, err := start(t, daemon.Config{Dir: dir}); err == nil {
					started <- d
				}
			})
		}
		all.Wait()
		close(started)
		d, one := <-started
		if _, two := <-started; !one || two {
			t.Fatalf("one started: %v, another: %v", one, two)
		}
		if err := d.Close(); err != nil {
			t.Fatal(err)
		}
		again, err := start(t, daemon.Config{Dir: dir})
		if err != nil {
			t.Fatal(err)
		}
		if again.Endpoint.LogKey != d.Endpoint.LogKey || !slices.Equal(again.Endpoint.IssuerKeys, d.Endpoint.IssuerKeys) {
			t.Error("the daemon that ran signed with keys that are lost")
		}
		if err := again.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// Directories that were there before are closed to others, and a data directory that others can write is refused.
func TestDirectoriesOfOthers(t *testing.T) {
	dir := t.TempDir()
	for _, sub := range []string{"keys", "streams", "ca"} {
		sub = filepath.Join(dir, sub)
		if err := errors.Join(os.Mkdir(sub, 0o700), os.Chmod(sub, 0o777)); err != nil {
			t.Fatal(err)
		}
	}
	for _, mode := range []fs.FileMode{0o777, 0o770, 0o702} {
		if err := os.Chmod(dir, mode); err != nil {
			t.Fatal(err)
		}
		if _, err := start(t, daemon.Config{Dir: dir}); err == nil || !strings.Contains(err.Error(), "chmod 700") {
			t.Errorf("mode %v: %v", mode, err)
		}
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := start(t, daemon.Config{Dir: dir}); err != nil {
		t.Fatal(err)
	}
	for _, sub := range []string{"keys", "streams", "ca"} {
		info, err := os.Stat(filepath.Join(dir, sub))
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode().Perm() != 0o700 {
			t.Errorf("%s has mode %v", sub, info.Mode().Perm())
		}
	}
}

// Nothing in the data directory can be read by others, and no private key lies where it should not.
func TestSecrets(t *testing.T) {
	dir := t.TempDir()
	d, err := start(t, daemon.Config{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := d.Socket("/agent/planner"); err != nil {
		t.Fatal(err)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	err = filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		in, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		top, _, _ := strings.Cut(in, string(filepath.Separator))
		// What JetStream makes is closed to others by the directory that it lies in.
		if info.Mode().Perm()&0o077 != 0 && (top != "streams" || in == "streams") && in != "." {
			t.Errorf("%s has mode %v", in, info.Mode().Perm())
		}
		if top != "keys" && top != "ca" && e.Type().IsRegular() {
			content, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			if strings.Contains(string(content), "PRIVATE KEY") {
				t.Errorf("%s holds a private key", in)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// The bundle that was activated last is in force again after a restart.
func TestBundleStays(t *testing.T) {
	dir := t.TempDir()
	bundle, err := policies.Default().WithData("/limits/session_ttl", 60)
	if err != nil {
		t.Fatal(err)
	}
	d, err := start(t, daemon.Config{Dir: dir, Bundle: bundle})
	if err != nil {
		t.Fatal(err)
	}
	first := d.Governor().Bundle()
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	if d, err = start(t, daemon.Config{Dir: dir}); err != nil {
		t.Fatal(err)
	}
	if again := d.Governor().Bundle(); again != first || first != bundle.Digest() {
		t.Errorf("in force: %s, before the restart %s, given %s", again, first, bundle.Digest())
	}
}
