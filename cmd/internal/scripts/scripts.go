// Package scripts runs what is typed: the testdata/script/*.txtar of both programs, against the real binaries and a real
// governor. Besides testscript's own, they have these commands:
//
//	exits CODE PROGRAM ARG…   run a program that must end with that exit code
//	appears FILE REGEXP       wait until a line of a file that something is writing matches
//	capture NAME              keep the first line of the last output in a variable
//	replace FILE OLD NEW      replace bytes wherever they stand in a file, by as many others
//	person FILE               make a key pair: FILE in PEM, 0600, and FILE.pub
//
// up.sh runs "governor up" on the data directory d, with what it writes in up.out and up.err, and its process ID in pid:
//
//	exec sh up.sh --agent planner &up&
//	appears up.out ready
package scripts

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

const upScript = `echo $$ >"$WORK/pid"
exec governor up --listen 127.0.0.1:0 "$@" >"$WORK/up.out" 2>"$WORK/up.err"
`

// Main runs a package's tests, with own as commands of the scripts. It never returns.
func Main(m *testing.M, own map[string]func()) { testscript.Main(m, own) }

// Run runs the scripts. The program other, in a directory beside this package's, is built for them.
func Run(t *testing.T, other string) {
	bin := t.TempDir()
	build := exec.Command("go", "build", "-o", filepath.Join(bin, other), "../"+other)
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("building %s: %v\n%s", other, err, out)
	}
	testscript.Run(t, testscript.Params{
		Dir:                 filepath.Join("testdata", "script"),
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Setup: func(env *testscript.Env) error {
			env.Setenv("PATH", env.Getenv("PATH")+string(os.PathListSeparator)+bin)
			env.Setenv("HANDOFF_DATA", filepath.Join(env.WorkDir, "d"))
			env.Setenv("XDG_STATE_HOME", filepath.Join(env.WorkDir, "state"))
			return os.WriteFile(filepath.Join(env.WorkDir, "up.sh"), []byte(upScript), 0o600)
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"exits": exits, "appears": appears, "capture": capture, "replace": replace, "person": person,
		},
	})
}

func exits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exits CODE PROGRAM ARG…")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	got := 0
	if err := ts.Exec(args[1], args[2:]...); err != nil {
		exit, ok := errors.AsType[*exec.ExitError](err)
		if !ok {
			ts.Fatalf("%v", err)
		}
		got = exit.ExitCode()
	}
	if got != want {
		ts.Fatalf("exit code %d, want %d", got, want)
	}
}

// patience is how long something may take that takes a moment.
const patience = 20 * time.Second

func appears(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: appears FILE REGEXP")
	}
	file, want := ts.MkAbs(args[0]), regexp.MustCompile("(?m)"+args[1])
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(patience); ; <-tick.C {
		content, err := os.ReadFile(file)
		if err == nil && want.Match(content) {
			return
		}
		if time.Now().After(deadline) {
			log, _ := os.ReadFile(ts.MkAbs("up.err"))
			ts.Fatalf("%s does not appear in %s:\n%s\n%s", args[1], args[0], content, log)
		}
	}
}

func capture(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: capture NAME")
	}
	line, _, _ := strings.Cut(ts.ReadFile("stdout"), "\n")
	ts.Setenv(args[0], line)
}

func replace(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 3 || len(args[1]) != len(args[2]) {
		ts.Fatalf("usage: replace FILE OLD NEW, both of one length")
	}
	file := ts.MkAbs(args[0])
	content, err := os.ReadFile(file)
	ts.Check(err)
	if !bytes.Contains(content, []byte(args[1])) {
		ts.Fatalf("%s has no %q", args[0], args[1])
	}
	ts.Check(os.WriteFile(file, bytes.ReplaceAll(content, []byte(args[1]), []byte(args[2])), 0o600))
}

func person(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: person FILE")
	}
	public, private, err := ed25519.GenerateKey(rand.Reader)
	ts.Check(err)
	der, err := x509.MarshalPKCS8PrivateKey(private)
	ts.Check(err)
	pub, err := x509.MarshalPKIXPublicKey(public)
	ts.Check(err)
	file := ts.MkAbs(args[0])
	ts.Check(os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600))
	ts.Check(os.WriteFile(file+".pub", pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: pub}), 0o600))
}

// Command makes a command of a program's run function.
func Command(run func() int) func() { return func() { os.Exit(run()) } }
