package docs_test

import (
	"bytes"
	"errors"
	"io"
	"maps"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
)

const module = "github.com/handoff-governor/handoff-governor/"

// onlyIn lists what few may import, and who does. Test files are free.
var onlyIn = map[string][]string{
	"github.com/nats-io/": {"streams", "handoff",
		"cmd/governor/demo"}, // one of its agents goes around the governor with a bare client, and fails
	"github.com/open-policy-agent/": {"policies"},
	"go.etcd.io/bbolt":              {"governor/ledger/..."},
	"github.com/go-jose/":           {"governor/devspiffe", "handoff/identity"}, // JWT-SVIDs, and what SVIDs sign; tokens have a stricter reader of their own
	"github.com/spf13/":             {"cmd/..."},
	"encoding/json":                 {}, // it accepts repeated and miscased members
}

// neverIn lists what a room must not link, not even through another.
var neverIn = map[string][]string{
	// Whoever guards a tool, reads a token or checks the record takes nothing else in.
	"handoff/aat/...":      {"github.com/nats-io/", "github.com/open-policy-agent/", "go.etcd.io/bbolt"},
	"handoff/wire/...":     {"github.com/nats-io/", "github.com/open-policy-agent/", "go.etcd.io/bbolt"},
	"handoff/entry/...":    {"github.com/nats-io/", "github.com/open-policy-agent/", "go.etcd.io/bbolt"},
	"handoff/identity/...": {"github.com/nats-io/", "github.com/open-policy-agent/", "go.etcd.io/bbolt"},
	"handoff/guard/...":    {"github.com/nats-io/", "github.com/open-policy-agent/", "go.etcd.io/bbolt"},

	// Imports point one way; cmd/governor plugs the rooms together.
	"handoff/...":  {module + "governor", module + "streams", module + "policies", module + "cmd"},
	"streams/...":  {module + "governor", module + "policies", module + "cmd"},
	"policies/...": {module + "governor", module + "streams", module + "cmd"},
	"governor/...": {module + "streams", module + "policies", module + "cmd",
		"github.com/nats-io/", "github.com/open-policy-agent/"},

	// The agent's and stranger's tool.
	"cmd/handoff": {"github.com/open-policy-agent/", "go.etcd.io/bbolt", module + "governor", module + "streams",
		module + "policies"},
	"cmd/...": {"pgregory.net/rapid", module + "handoff/entry/entrytest", module + "governor/ledger/ledgertest"},
}

// pkg is what `go list` says of a package of ours.
type pkg struct {
	ImportPath   string
	Dir          string
	Imports      []string
	Deps         []string
	TestImports  []string
	XTestImports []string
}

// room is its path within the module.
func (p pkg) room() string { return strings.TrimPrefix(p.ImportPath, module) }

// in tells whether it lies in a room, or below where that ends in "/...".
func (p pkg) in(room string) bool {
	below, all := strings.CutSuffix(room, "/...")
	return p.room() == below || all && strings.HasPrefix(p.room(), below+"/")
}

// of tells whether an import path is meant by a path, or lies below it.
func of(path, what string) bool {
	return path == what || strings.HasPrefix(path, strings.TrimSuffix(what, "/")+"/")
}

var packages = sync.OnceValues(func() ([]pkg, error) {
	list := exec.Command("go", "list", "-json=ImportPath,Dir,Imports,Deps,TestImports,XTestImports", "./...")
	list.Dir = ".."
	out, err := list.Output()
	if err != nil {
		return nil, err
	}
	var all []pkg
	for in := jsontext.NewDecoder(bytes.NewReader(out)); ; {
		var p pkg
		if err := json.UnmarshalDecode(in, &p); errors.Is(err, io.EOF) {
			return all, nil
		} else if err != nil {
			return nil, err
		}
		all = append(all, p)
	}
})

func listPackages(t *testing.T) []pkg {
	t.Helper()
	all, err := packages()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	return all
}

// Imports point one way. The linter holds the same, where it is at hand; this is the one that cannot be left out.
func TestImportDirection(t *testing.T) {
	all := listPackages(t)
	for _, what := range slices.Sorted(maps.Keys(onlyIn)) {
		rooms := onlyIn[what]
		used := map[string]bool{}
		for _, p := range all {
			if !slices.ContainsFunc(p.Imports, func(i string) bool { return of(i, what) }) {
				continue
			}
			i := slices.IndexFunc(rooms, p.in)
			if i < 0 {
				t.Errorf("%s imports %s; of all rooms only %q may", p.room(), what, rooms)
				continue
			}
			used[rooms[i]] = true
		}
		for _, room := range rooms {
			if !used[room] {
				t.Errorf("%s may import %s, but does not: take it off the list", room, what)
			}
		}
	}
	for _, room := range slices.Sorted(maps.Keys(neverIn)) {
		exists := false
		for _, p := range all {
			if !p.in(room) {
				continue
			}
			exists = true
			for _, what := range neverIn[room] {
				if i := slices.IndexFunc(p.Deps, func(d string) bool { return of(d, what) }); i >= 0 {
					t.Errorf("%s links %s, directly or through another; %s must not", p.room(), p.Deps[i], room)
				}
			}
		}
		if !exists {
			t.Errorf("there is no room %s", room)
		}
	}
}
