package docs_test

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"golang.org/x/mod/modfile"
)

var (
	code    = regexp.MustCompile("`([^`\n]+)`")
	heading = regexp.MustCompile(`(?m)^#+ (.+)$`)
	link    = regexp.MustCompile(`\]\(([^)\s]+)\)`)
	inRoom  = regexp.MustCompile(`^(?:\.ci|cmd|docs|governor|handoff|policies|streams|tools)/[\w./-]*$`)
	called  = regexp.MustCompile(`^(?:\w+\.)?\w+\(\)$`)
	fenced  = regexp.MustCompile("(?ms)^ {0,3}```.*?^ {0,3}```$")
)

// prose is the text without its blocks.
func (p page) prose() string { return fenced.ReplaceAllString(p.text, "") }

// A path in `code` that begins in a room exists.
func TestPathsExist(t *testing.T) {
	seen := 0
	for _, p := range readPages(t) {
		for _, m := range code.FindAllStringSubmatch(p.prose(), -1) {
			if !inRoom.MatchString(m[1]) {
				continue
			}
			seen++
			if _, err := os.Stat(filepath.Join("..", m[1])); err != nil {
				t.Errorf("%s names %s, which does not exist", p.path, m[1])
			}
		}
	}
	if seen == 0 {
		t.Error("no page names a path: the expressions of this test are wrong")
	}
}

// A link within the repository leads somewhere.
func TestLinksLead(t *testing.T) {
	pages := readPages(t)
	anchors := map[string]map[string]bool{}
	for _, p := range pages {
		anchors[p.path] = map[string]bool{}
		for _, m := range heading.FindAllStringSubmatch(p.prose(), -1) {
			anchors[p.path][anchor(m[1])] = true
		}
	}
	for _, p := range pages {
		for _, m := range link.FindAllStringSubmatch(p.prose(), -1) {
			target, fragment, _ := strings.Cut(m[1], "#")
			if strings.Contains(target, ":") {
				continue // another site's
			}
			to := p.path
			if target != "" {
				to = path.Join(path.Dir(p.path), target)
			}
			if _, err := os.Stat(filepath.Join("..", to)); err != nil {
				t.Errorf("%s links to %s, which does not exist", p.path, m[1])
			} else if fragment != "" && !anchors[to][fragment] {
				t.Errorf("%s links to %s, but no heading there has that name", p.path, m[1])
			}
		}
	}
}

// anchor is the name that hosting sites give to a heading.
func anchor(heading string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r == ' ':
			return '-'
		case r == '-' || r == '_' || r > 127 || '0' <= r && r <= '9' || 'a' <= r && r <= 'z':
			return r
		}
		return -1
	}, strings.ToLower(heading))
}

// ARCHITECTURE.md names every folder with code, and what it calls functions are functions: each `name()` or
// `Type.name()` is declared in a file that the same line names.
func TestArchitecture(t *testing.T) {
	text, err := os.ReadFile("../ARCHITECTURE.md")
	if err != nil {
		t.Fatal(err)
	}
	named := map[string]bool{}
	functions := 0
	for i, line := range strings.Split(string(text), "\n") {
		declared := map[string]bool{}
		var calls []string
		for _, m := range code.FindAllStringSubmatch(line, -1) {
			named[strings.TrimSuffix(m[1], "/")] = true
			switch {
			case called.MatchString(m[1]):
				calls = append(calls, m[1])
			case inRoom.MatchString(m[1]) && strings.HasSuffix(m[1], ".go"):
				if err := functionsOf(filepath.Join("..", m[1]), declared); err != nil {
					t.Errorf("ARCHITECTURE.md:%d: %v", i+1, err)
				}
			}
		}
		for _, c := range calls {
			functions++
			if !declared[c] {
				t.Errorf("ARCHITECTURE.md:%d: %s is not in a file that the line names", i+1, c)
			}
		}
	}
	if functions == 0 {
		t.Error("no function is named: the walk is gone, or the expressions of this test are wrong")
	}
	for _, p := range listPackages(t) {
		if !named[p.room()] {
			t.Errorf("ARCHITECTURE.md does not say what %s is for", p.room())
		}
	}
}

// functionsOf adds what a file declares, as name() and Type.name().
func functionsOf(file string, into map[string]bool) error {
	parsed, err := parser.ParseFile(token.NewFileSet(), file, nil, 0)
	if err != nil {
		return err
	}
	for _, d := range parsed.Decls {
		f, ok := d.(*ast.FuncDecl)
		if !ok {
			continue
		}
		name := f.Name.Name + "()"
		if f.Recv != nil {
			receiver := f.Recv.List[0].Type
			if pointer, ok := receiver.(*ast.StarExpr); ok {
				receiver = pointer.X
			}
			name = fmt.Sprintf("%s.%s", receiver, name)
		}
		into[name] = true
	}
	return nil
}

// docs/dependencies.md says of each module that we import what it is for, and of no other.
func TestDependencies(t *testing.T) {
	text, err := os.ReadFile("../go.mod")
	if err != nil {
		t.Fatal(err)
	}
	mod, err := modfile.Parse("go.mod", text, nil)
	if err != nil {
		t.Fatal(err)
	}
	direct := map[string]bool{}
	for _, p := range listPackages(t) {
		for _, imported := range slices.Concat(p.Imports, p.TestImports, p.XTestImports) {
			// The longest path is the module, where one lies within another.
			longest := ""
			for _, r := range mod.Require {
				if of(imported, r.Mod.Path) && len(r.Mod.Path) > len(longest) {
					longest = r.Mod.Path
				}
			}
			if longest != "" {
				direct[longest] = true
			}
		}
	}
	for _, r := range mod.Require {
		if !r.Indirect {
			direct[r.Mod.Path] = true
		}
	}
	page, err := os.ReadFile("dependencies.md")
	if err != nil {
		t.Fatal(err)
	}
	explained := map[string]bool{}
	for _, m := range regexp.MustCompile("(?m)^\\| `([^`]+)` \\| [^|]+ \\| [^|]+ \\|$").FindAllStringSubmatch(string(page), -1) {
		explained[m[1]] = true
	}
	for _, path := range slices.Sorted(maps.Keys(direct)) {
		if !explained[path] {
			t.Errorf("docs/dependencies.md does not say what %s is for, and over what it was chosen", path)
		}
	}
	for _, path := range slices.Sorted(maps.Keys(explained)) {
		if !direct[path] {
			t.Errorf("docs/dependencies.md explains %s, which nothing imports", path)
		}
	}
}
