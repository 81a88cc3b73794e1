package docs_test

import (
	"bytes"
	"errors"
	"fmt"
	"go/ast"
	"go/importer"
	"go/parser"
	"go/token"
	"go/types"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
)

// compile type-checks a go block. What it does not import is found by name: among our packages, then Go's own, then
// those that we depend on. A variable or an import that an excerpt does not use is no fault.
func compile(b block) error {
	exported, err := exports()
	if err != nil {
		return err
	}
	files := token.NewFileSet()
	file, err := parseGo(files, b)
	if err != nil {
		return fmt.Errorf("%s: %w", b.at, err)
	}
	imported := map[string]bool{}
	for _, i := range file.Imports {
		if i.Name != nil {
			imported[i.Name.Name] = true
		}
		imported[exported.names[strings.Trim(i.Path.Value, `"`)]] = true
	}
	var missing []string
	ast.Inspect(file, func(n ast.Node) bool {
		if s, ok := n.(*ast.SelectorExpr); ok {
			if id, ok := s.X.(*ast.Ident); ok && !imported[id.Name] && exported.byName[id.Name] != "" {
				imported[id.Name] = true
				missing = append(missing, exported.byName[id.Name])
			}
		}
		return true
	})
	for _, path := range missing {
		addImport(file, path)
	}
	var faults []error
	check := types.Config{
		Importer: exported.importer(files),
		Error: func(err error) {
			if e, ok := errors.AsType[types.Error](err); !ok || !e.Soft {
				faults = append(faults, err)
			}
		},
	}
	_, _ = check.Check("page", files, []*ast.File{file}, nil) // Error hears of every fault
	if len(faults) > 0 {
		return fmt.Errorf("%s: it does not compile: %w", b.at, errors.Join(faults...))
	}
	return nil
}

// parseGo reads a block as a file, as declarations or as statements.
func parseGo(files *token.FileSet, b block) (*ast.File, error) {
	if strings.HasPrefix(strings.TrimSpace(b.text()), "package ") {
		return parser.ParseFile(files, b.at, b.text(), 0)
	}
	file, err := parser.ParseFile(files, b.at, "package page; "+b.text(), 0)
	if err == nil {
		return file, nil
	}
	file, statements := parser.ParseFile(files, b.at, "package page; func _("+b.given+") {"+b.text()+"}", 0)
	if statements != nil {
		return nil, errors.Join(err, statements)
	}
	return file, nil
}

// addImport adds an import that has no place in the text.
func addImport(file *ast.File, path string) {
	spec := &ast.ImportSpec{Path: &ast.BasicLit{Kind: token.STRING, Value: `"` + path + `"`}}
	file.Imports = append(file.Imports, spec)
	file.Decls = slices.Insert(file.Decls, 0, ast.Decl(&ast.GenDecl{Tok: token.IMPORT, Specs: []ast.Spec{spec}}))
}

// exportData says where the compiled form of each package is that a page may import.
type exportData struct {
	file   map[string]string // by import path
	names  map[string]string // package name by import path
	byName map[string]string // import path by package name
}

// exports has the go command compile everything that our packages import.
var exports = sync.OnceValues(func() (*exportData, error) {
	list := exec.Command("go", "list", "-deps", "-export", "-f",
		"{{if .Export}}{{.Standard}} {{.Name}} {{.ImportPath}} {{.Export}}{{end}}", "std", "./handoff/...", "./streams/...",
		"./policies/...", "./governor/...")
	list.Dir = ".."
	var stderr bytes.Buffer
	list.Stderr = &stderr
	out, err := list.Output()
	if err != nil {
		return nil, fmt.Errorf("go list -export: %w\n%s", err, stderr.Bytes())
	}
	e := &exportData{file: map[string]string{}, names: map[string]string{}, byName: map[string]string{}}
	rank := map[string]int{}
	for line := range strings.Lines(string(out)) {
		fields := strings.SplitN(strings.TrimSuffix(line, "\n"), " ", 4)
		standard, name, path := fields[0] == "true", fields[1], fields[2]
		e.file[path], e.names[path] = fields[3], name
		if name == "main" || slices.Contains(strings.Split(path, "/"), "internal") || strings.HasPrefix(path, "vendor/") {
			continue
		}
		r := 1
		switch {
		case strings.HasPrefix(path, module):
			r = 3
		case standard:
			r = 2
		}
		// Among equals the shortest path: crypto/rand and math/rand are told apart by importing one.
		best, taken := e.byName[name]
		if !taken || r > rank[name] || r == rank[name] && len(path) < len(best) {
			e.byName[name], rank[name] = path, r
		}
	}
	return e, nil
})

func (e *exportData) importer(files *token.FileSet) types.Importer {
	return importer.ForCompiler(files, "gc", func(path string) (io.ReadCloser, error) {
		file, ok := e.file[path]
		if !ok {
			return nil, fmt.Errorf("nothing of ours imports %s", path)
		}
		return os.Open(file)
	})
}
