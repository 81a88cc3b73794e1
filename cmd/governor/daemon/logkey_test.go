package daemon_test

import (
	"crypto/rand"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/mod/sumdb/note"

	"github.com/handoff-governor/handoff-governor/cmd/governor/daemon"
)

// A directory of before the log's key could be replaced keeps that key.
func TestLogKeyOfBefore(t *testing.T) {
	dir := t.TempDir()
	start := func() string {
		t.Helper()
		d, err := daemon.Start(t.Context(), daemon.Config{Dir: dir, Listen: "127.0.0.1:0"})
		check(t, err)
		check(t, d.Close())
		return d.Endpoint.LogKey
	}
	start()
	// As it was: a ledger, and the key as a note's.
	signer, verifier, err := note.GenerateKey(rand.Reader, "handoff.local/handoff")
	check(t, err)
	check(t, os.Remove(filepath.Join(dir, "keys", "log.pem")))
	old := filepath.Join(dir, "keys", "log.note")
	check(t, os.WriteFile(old, []byte(signer+"\n"+verifier+"\n"), 0o600))
	for range 2 {
		if key := start(); key != verifier {
			t.Errorf("the key is %s, not %s", key, verifier)
		}
	}
	if _, err := os.Stat(old); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("it is there twice: %v", err)
	}
	check(t, os.WriteFile(old, []byte("PRIVATE+KEY+x+y+z\n"), 0o600))
	if d, err := daemon.Start(t.Context(), daemon.Config{Dir: dir, Listen: "127.0.0.1:0"}); err == nil {
		d.Close()
		t.Error("a file that is no key is read as one")
	}
}
