package docs_test

//go:generate go test -run=^TestErrorsPage$ -update .

import (
	"flag"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"strconv"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write the pages that are made from the code")

// docs/errors.md is what the comments in handoff/wire/codes.go say.
func TestErrorsPage(t *testing.T) {
	want, err := errorsPage("../handoff/wire/codes.go")
	if err != nil {
		t.Fatal(err)
	}
	const path = "errors.md"
	if *update {
		if err := os.WriteFile(path, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	got, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != want {
		t.Error("docs/errors.md is not what handoff/wire/codes.go says: run go generate ./docs")
	}
}

// errorsPage makes the page: a table for each group of codes, which a comment of its own begins.
func errorsPage(source string) (string, error) {
	file, err := parser.ParseFile(token.NewFileSet(), source, nil, parser.ParseComments)
	if err != nil {
		return "", err
	}
	var out strings.Builder
	out.WriteString(`# Errors

<!-- Made from handoff/wire/codes.go by go generate ./docs: change it there. -->

Every refusal and every reason of a decision has a code. A program may branch on it; the message beside it, which is for
people, may change. In Go, ` + "`errors.Is(err, &wire.Error{Code: wire.CodeExpired})`" + ` compares by code alone.

A policy of your own may give reasons with codes of its own. What a guard refuses has, beside the code, the ` + "`step`" + ` of
section 8 of the AAT draft that failed.
`)
	for _, d := range file.Decls {
		consts, ok := d.(*ast.GenDecl)
		if !ok || consts.Tok != token.CONST {
			continue
		}
		for _, spec := range consts.Specs {
			s, ok := spec.(*ast.ValueSpec)
			if !ok || len(s.Values) != 1 || len(s.Names) != 1 {
				return "", fmt.Errorf("%s: a code has a line of its own", source)
			}
			name := s.Names[0].Name
			literal, ok := s.Values[0].(*ast.BasicLit)
			if !ok || s.Comment == nil {
				return "", fmt.Errorf("%s: %s needs a comment that says what to do", source, name)
			}
			code, err := strconv.Unquote(literal.Value)
			if err != nil {
				return "", err
			}
			if s.Doc != nil {
				title, more, _ := strings.Cut(strings.Join(strings.Fields(s.Doc.Text()), " "), ". ")
				fmt.Fprintf(&out, "\n## %s\n\n", strings.TrimSuffix(title, "."))
				if more != "" {
					fmt.Fprintf(&out, "%s\n\n", more)
				}
				out.WriteString("| code | what to do | in Go |\n|---|---|---|\n")
			}
			todo := strings.Join(strings.Fields(s.Comment.Text()), " ")
			if strings.Contains(todo, "|") {
				return "", fmt.Errorf("%s: the comment of %s would break the table", source, name)
			}
			fmt.Fprintf(&out, "| `%s` | %s | `wire.%s` |\n", code, todo, name)
		}
	}
	return out.String(), nil
}
