package daemon_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"go.etcd.io/bbolt"

	"github.com/handoff-governor/handoff-governor/cmd/governor/daemon"
	"github.com/handoff-governor/handoff-governor/governor/ledger"
)

// startIn names the directory in which this program, run again, starts a daemon instead of tests.
const startIn = "START_A_DAEMON_IN"

func TestMain(m *testing.M) {
	dir := os.Getenv(startIn)
	if dir == "" {
		os.Exit(m.Run())
	}
	d, err := daemon.Start(context.Background(), daemon.Config{Dir: dir, Listen: "127.0.0.1:0"})
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	fmt.Println("it has started")
	_ = d.Close()
}

// A directory that may not be written to is named, and left as it was. Root may write everywhere, so nobody tries it.
func TestUnwritableDirectory(t *testing.T) {
	dir := t.TempDir()
	for up := dir; up != os.TempDir() && len(up) > 1; up = filepath.Dir(up) {
		if err := os.Chmod(up, 0o555); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() { _ = os.Chmod(filepath.Dir(dir), 0o755) }) // so that it can be removed
	program := exec.Command("/proc/self/exe")
	program.Env, program.Dir = append(os.Environ(), startIn+"="+dir), "/"
	if os.Geteuid() == 0 {
		const nobody = 65534
		program.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	}
	out, err := program.CombinedOutput()
	if err == nil || !bytes.Contains(out, []byte(dir)) || !bytes.Contains(out, []byte("permission denied")) {
		t.Errorf("it ended with %v and said: %s", err, out)
	}
	left, err := os.ReadDir(dir)
	if err != nil || len(left) > 0 {
		t.Errorf("it left %v behind (%v)", left, err)
	}
}

// A directory that a newer governor has written is not touched.
func TestNewerDirectory(t *testing.T) {
	dir := t.TempDir()
	d, err := start(t, daemon.Config{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	path := daemon.LedgerPath(dir)
	db, err := bbolt.Open(path, 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	err = db.Update(func(tx *bbolt.Tx) error {
		return tx.Bucket([]byte("meta")).Put([]byte("format"), binary.BigEndian.AppendUint64(nil, 1000))
	})
	if err := errors.Join(err, db.Close()); err != nil {
		t.Fatal(err)
	}
	before, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := start(t, daemon.Config{Dir: dir}); !errors.Is(err, ledger.ErrNewer) || !strings.Contains(err.Error(), "upgrade") {
		t.Errorf("a daemon in a newer directory: %v", err)
	}
	if after, err := os.ReadFile(path); err != nil || !bytes.Equal(before, after) {
		t.Errorf("the file was changed (%v)", err)
	}
}
