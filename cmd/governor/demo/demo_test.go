package demo

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"iter"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/go-json-experiment/json"
	"github.com/spf13/cobra"
)

// TestMain lets the test binary be the demo's processes, too: the demo starts its own executable.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "demo" {
		root := &cobra.Command{Use: "governor", SilenceUsage: true}
		root.AddCommand(Command(nil))
		if err := root.ExecuteContext(context.Background()); err != nil {
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// The demo reviews this very module, and everything that goes wrong is stopped.
func TestDemo(t *testing.T) {
	data := t.TempDir()
	var out bytes.Buffer
	shown := ""
	show := func(w io.Writer, session string, _ iter.Seq2[[]byte, error]) error {
		shown = session
		_, err := fmt.Fprintln(w, "the tree")
		return err
	}
	if err := Run(t.Context(), Options{Module: "../../..", Data: data}, show, &out); err != nil {
		log, _ := os.ReadFile(filepath.Join(data, "demo.log"))
		t.Fatalf("%v\n%s\n%s", err, out.String(), log)
	}
	t.Log(out.String())
	for _, want := range []string{"widened", "verified", "closes the session", shown} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("the demo does not say %q", want)
		}
	}
	if n := strings.Count(out.String(), "stopped:"); n != troubles {
		t.Errorf("%d things were stopped, want %d", n, troubles)
	}
	report, err := os.ReadFile(filepath.Join(data, "report.md"))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"go.etcd.io/bbolt", "MIT", "Apache-2.0"} {
		if !bytes.Contains(report, []byte(want)) {
			t.Errorf("the report does not name %s", want)
		}
	}
}

// With --json there is one line, and it says what happened.
func TestDemoJSON(t *testing.T) {
	module := t.TempDir()
	if err := os.WriteFile(filepath.Join(module, "go.mod"), []byte("module example.org/empty\n\ngo 1.26\n\nrequire example.org/gone v1.0.0\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	show := func(io.Writer, string, iter.Seq2[[]byte, error]) error { return nil }
	data := t.TempDir()
	if err := Run(t.Context(), Options{Module: module, Data: data, JSON: true}, show, &out); err != nil {
		log, _ := os.ReadFile(filepath.Join(data, "demo.log"))
		t.Fatalf("%v\n%s", err, log)
	}
	var o Outcome
	if err := json.Unmarshal(out.Bytes(), &o); err != nil {
		t.Fatalf("%s: %v", out.Bytes(), err)
	}
	if !o.OK || o.Agents != 4 || o.Handoffs != 3 || o.Denied != 1 || o.Modules != 1 || !o.Verified || o.Entries == 0 {
		t.Errorf("the outcome is %+v", o)
	}
	report, err := os.ReadFile(o.Report)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Contains(report, []byte("| example.org/gone | v1.0.0 | unknown: not downloaded | direct |")) {
		t.Errorf("the report says\n%s", report)
	}
}
