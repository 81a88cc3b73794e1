package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/handoff-governor/handoff-governor/cmd/internal/cli"
)

// TestOwnVectors runs the project's own vectors as a stranger would.
func TestOwnVectors(t *testing.T) {
	var out bytes.Buffer
	err := verifyVectors(context.Background(), cli.To(&out), filepath.Join("..", "..", "handoff", "aat", "testdata", "vectors.json"))
	if err != nil || !strings.Contains(out.String(), " passed, 0 failed, of draft-niyikiza-oauth-attenuating-agent-tokens-02\n") {
		t.Fatalf("%v\n%s", err, out.String())
	}
}

// TestVectorsCutOff: wherever a file ends too early, that is said, and no run of what was there counts.
func TestVectorsCutOff(t *testing.T) {
	whole, err := os.ReadFile(filepath.Join("testdata", "script", "vectors.txtar"))
	if err != nil {
		t.Fatal(err)
	}
	_, text, _ := strings.Cut(string(whole), "-- draft.json --\n")
	text = strings.TrimSpace(text)
	if err := runVectors(cli.To(io.Discard), strings.NewReader(text), "x"); err != nil {
		t.Fatal(err)
	}
	for end := 0; end < len(text); end += 1 + end/50 {
		err := runVectors(cli.To(io.Discard), strings.NewReader(text[:end]), "x")
		if cli.ExitCode(err) != cli.ExitUsage {
			t.Fatalf("cut off after %d bytes: %v", end, err)
		}
	}
	for _, tail := range []string{"x", "{}", text} {
		if err := runVectors(cli.To(io.Discard), strings.NewReader(text+tail), "x"); cli.ExitCode(err) != cli.ExitUsage {
			t.Fatalf("with %.10q behind it: %v", tail, err)
		}
	}
}

// endless is a file that goes on and on.
type endless struct {
	head, body string
	given      int
}

func (e *endless) Read(b []byte) (int, error) {
	n := copy(b, e.head)
	e.head = e.head[n:]
	for n < len(b) {
		copied := copy(b[n:], e.body[e.given%len(e.body):])
		n, e.given = n+copied, e.given+copied
	}
	return n, nil
}

// TestVectorsAreBounded: what never ends is given up, and without much memory.
func TestVectorsAreBounded(t *testing.T) {
	start := `{"spec":"draft-niyikiza-oauth-attenuating-agent-tokens-02","trust_anchors":[],"vectors":[`
	for name, in := range map[string]*endless{
		"blanks":  {body: " "},
		"name":    {head: `{"`, body: "a"},
		"ignored": {head: `{"conventions":[`, body: "1,"},
		"nested":  {head: `{"conventions":`, body: "["},
		"vector":  {head: start + `{"id":"`, body: "a"},
		"between": {head: start, body: "\n"},
		"chain":   {head: start + `{"chain_compact":[`, body: `"a.b.c",`},
	} {
		t.Run(name, func(t *testing.T) {
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			err := runVectors(cli.To(io.Discard), in, "x")
			runtime.ReadMemStats(&after)
			if cli.ExitCode(err) != cli.ExitUsage {
				t.Fatal(err)
			}
			if grown := after.TotalAlloc - before.TotalAlloc; grown > 40*maxVector {
				t.Fatalf("it took %d bytes", grown)
			}
		})
	}
}

type failing struct{}

func (failing) Read([]byte) (int, error) { return 0, fmt.Errorf("the disk is gone") }

// TestVectorsUnreadable: a file that cannot be read is not one of the wrong format.
func TestVectorsUnreadable(t *testing.T) {
	in := io.MultiReader(strings.NewReader(`{"spec":`), failing{})
	err := runVectors(cli.To(io.Discard), in, "x")
	if cli.ExitCode(err) != cli.ExitFailed || err.Error() != "the disk is gone" {
		t.Fatal(err)
	}
}
