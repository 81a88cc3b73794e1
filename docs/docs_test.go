// Package docs_test keeps the pages true. What a page shows is run, compiled or parsed; what it names exists.
//
// Every fenced block says what it is:
//
//	```console   lines "$ command", with what they print below; run, and compared where something is shown
//	```sh        a script; run, and must succeed
//	```go        a file, declarations or statements; must compile
//	```json      must parse
//	```rego      is checked by package policies
//	```text      is for reading only
//
// The console and sh blocks of a page are one session of one shell, from top to bottom: in an empty directory, with
// governor, handoff, tool and pipeline in PATH. A command that ends in & stays until the end of the page. A line "..." stands for any
// lines, "..." or "…" within a line for anything. A command must succeed, unless "$ echo $?" follows it.
//
// A comment right above a block changes that:
//
//	<!-- not run: why -->               it is for reading only, too
//	<!-- in the repository -->          its commands run in the root of the repository
//	<!-- given: ctx context.Context --> what go statements find around them, as parameters of a function
package docs_test

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/go-json-experiment/json/jsontext"
)

func TestMain(m *testing.M) {
	os.Exit(func() int {
		// Short, since sockets lie below it.
		dir, err := os.MkdirTemp("", "docs")
		if err != nil {
			panic(err)
		}
		defer os.RemoveAll(dir)
		scratch = dir
		return m.Run()
	}())
}

// scratch is removed after the last test.
var scratch string

// programs builds our programs and returns the directory that they are in.
var programs = sync.OnceValues(func() (string, error) {
	bin := filepath.Join(scratch, "bin")
	build := exec.Command("go", "build", "-o", bin+"/", "./cmd/governor", "./cmd/handoff", "./examples/tool", "./examples/pipeline")
	build.Dir = ".."
	if out, err := build.CombinedOutput(); err != nil {
		return "", fmt.Errorf("%s: %w\n%s", build, err, out)
	}
	return bin, nil
})

// page is a document, and its fenced blocks.
type page struct {
	path   string // from the root of the repository
	text   string
	blocks []block
}

// block is a fenced block.
type block struct {
	at         string // page:line of its first line
	kind       string
	lines      []string
	notRun     string // why
	repository bool
	given      string
}

func (b block) text() string { return strings.Join(b.lines, "\n") + "\n" }

var (
	fence   = regexp.MustCompile("^ {0,3}```(\\w*)")
	comment = regexp.MustCompile(`^<!-- (not run|in the repository|given)(?:: (.+?))? -->$`)
)

// readPages reads every page of the repository.
func readPages(t *testing.T) []page {
	t.Helper()
	var pages []page
	for _, pattern := range []string{"../*.md", "*.md", "*/*.md", "../tools/*.md", "../examples/*/*.md"} {
		files, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		for _, file := range files {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			path, err := filepath.Rel("..", filepath.Join("../docs", file))
			if err != nil {
				t.Fatal(err)
			}
			p, err := parsePage(path, string(text))
			if err != nil {
				t.Error(err)
			}
			pages = append(pages, p)
		}
	}
	return pages
}

func parsePage(path, text string) (page, error) {
	p := page{path: path, text: text}
	next, open := &block{}, (*block)(nil)
	for i, line := range strings.Split(text, "\n") {
		at := fmt.Sprintf("%s:%d", path, i+1)
		m := fence.FindStringSubmatch(line)
		switch {
		case open != nil && m != nil && m[1] != "":
			return p, fmt.Errorf("%s: a block opens within the one of %s", at, open.at)
		case open != nil && m != nil:
			p.blocks = append(p.blocks, *open)
			open, next = nil, &block{}
		case open != nil:
			open.lines = append(open.lines, line)
		case m != nil:
			open = next
			open.at, open.kind = at, m[1]
			if !slices.Contains([]string{"console", "sh", "go", "json", "rego", "text"}, open.kind) {
				return p, fmt.Errorf("%s: a block of kind %q; say console, sh, go, json, rego or text", at, open.kind)
			}
		case comment.MatchString(line):
			m := comment.FindStringSubmatch(line)
			switch {
			case m[1] == "in the repository" && m[2] == "":
				next.repository = true
			case m[1] == "not run" && m[2] != "":
				next.notRun = m[2]
			case m[1] == "given" && m[2] != "":
				next.given = m[2]
			default:
				return p, fmt.Errorf("%s: a comment that says %q must say what after a colon, or nothing", at, m[1])
			}
		case strings.TrimSpace(line) != "":
			if next.notRun != "" || next.repository || next.given != "" {
				return p, fmt.Errorf("%s: the comment above belongs to no block", at)
			}
		}
	}
	if open != nil {
		return p, fmt.Errorf("%s: the block is not closed", open.at)
	}
	return p, nil
}

// What pages show is so.
func TestPages(t *testing.T) {
	for _, p := range readPages(t) {
		if p.path == pythonPage {
			continue // python_test.go runs it, with -tags python
		}
		t.Run(strings.ReplaceAll(p.path, "/", "_"), func(t *testing.T) {
			p.check(t, sync.OnceValue(func() *session {
				bin, err := programs()
				if err != nil {
					t.Fatal(err)
				}
				return newSession(t, bin)
			}))
		})
	}
}

// pythonPage needs Python, and packages from the network.
const pythonPage = "examples/python/README.md"

// check does with the blocks of a page what their kinds ask for.
func (p page) check(t *testing.T, shell func() *session) {
	t.Helper()
	for _, b := range p.blocks {
		if err := b.check(t, shell); err != nil {
			t.Fatal(err) // what follows in the page builds on it
		}
	}
}

// check does with a block what its kind asks for.
func (b block) check(t *testing.T, shell func() *session) error {
	if b.notRun != "" {
		t.Logf("%s is not run: %s", b.at, b.notRun)
		return nil
	}
	switch b.kind {
	case "console", "sh":
		return shell().block(b)
	case "go":
		return compile(b)
	case "json":
		if text := bytes.TrimSpace([]byte(b.text())); !jsontext.Value(text).IsValid() {
			return fmt.Errorf("%s: this is not JSON, or has a member twice", b.at)
		}
	}
	return nil
}
