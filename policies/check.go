package policies

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/cover"
	"github.com/open-policy-agent/opa/v1/rego"
	"github.com/open-policy-agent/opa/v1/storage/inmem"
	"github.com/open-policy-agent/opa/v1/tester"
)

// TestReport is what a run of a bundle's own tests found.
type TestReport struct {
	Tests []TestResult // sorted by name

	// Uncovered are the places of policies, as "labels.rego:12", that no test reached.
	Uncovered []string
}

// TestResult is the outcome of one test rule.
type TestResult struct {
	Name   string // package and rule
	At     string // where the rule is, as "labels_test.rego:12"
	Passed bool
	Err    error  // why it could not be run, if so
	Output string // what it printed
}

// Passed tells whether there were tests and all of them passed.
func (r TestReport) Passed() bool {
	return len(r.Tests) > 0 && !slices.ContainsFunc(r.Tests, func(t TestResult) bool { return !t.Passed })
}

const testTimeout = 5 * time.Second

// Test runs the rules named test_… of the _test.rego files in a bundle's directory, as `opa test` does, but with the
// builtins that a bundle has here and no others.
func Test(ctx context.Context, fsys fs.FS) (TestReport, error) {
	b, err := Load(fsys)
	if err != nil {
		return TestReport{}, err
	}
	modules, err := parseModules(b.files)
	if err != nil {
		return TestReport{}, fmt.Errorf("policies: testing bundle: %w", err)
	}
	tests, err := loadTests(fsys)
	if err != nil {
		return TestReport{}, fmt.Errorf("policies: testing bundle: %w", err)
	}
	all := make(map[string]*ast.Module, len(modules)+len(tests))
	for name, m := range modules {
		all[name] = m.Copy()
	}
	for name, m := range tests {
		all[name] = m
	}
	data, err := decodeValue(b.data)
	if err != nil {
		return TestReport{}, fmt.Errorf("policies: testing bundle: %s: %w", dataFile, err)
	}
	store := inmem.NewFromASTObject(data.(ast.Object))
	txn, err := store.NewTransaction(ctx)
	if err != nil {
		return TestReport{}, err
	}
	defer store.Abort(ctx, txn)

	coverage := cover.New()
	builtins := make([]*tester.Builtin, 0, len(ours))
	for _, f := range ours {
		builtins = append(builtins, &tester.Builtin{
			Decl: &ast.Builtin{Name: f.decl.Name, Decl: f.decl.Decl}, Func: rego.FunctionDyn(f.decl, f.call),
		})
	}
	results, err := tester.NewRunner().
		SetCompiler(ast.NewCompiler().WithCapabilities(testCapabilities()).WithEnablePrintStatements(true)).
		SetStore(store).SetModules(all).SetTimeout(testTimeout).AddCustomBuiltins(builtins).
		CapturePrintOutput(true).SetCoverageQueryTracer(coverage).
		RunTests(ctx, txn)
	if err != nil {
		return TestReport{}, fmt.Errorf("policies: testing bundle: %w", err)
	}
	var report TestReport
	for r := range results {
		err := r.Error
		if r.Skip {
			err = errors.New("skipped")
		}
		at := ""
		if r.Location != nil {
			at = fmt.Sprintf("%s:%d", r.Location.File, r.Location.Row)
		}
		report.Tests = append(report.Tests, TestResult{
			Name: r.Package + "." + r.Name, At: at, Passed: r.Pass(), Err: err, Output: string(r.Output),
		})
	}
	slices.SortFunc(report.Tests, func(a, b TestResult) int { return cmp.Compare(a.Name, b.Name) })
	for name, file := range coverage.Report(modules).Files {
		for _, r := range file.NotCovered {
			report.Uncovered = append(report.Uncovered, fmt.Sprintf("%s:%d", name, r.Start.Row))
		}
	}
	slices.Sort(report.Uncovered)
	report.Uncovered = slices.Compact(report.Uncovered) // two places may be on one line
	return report, nil
}

func loadTests(fsys fs.FS) (map[string]*ast.Module, error) {
	tests := map[string]*ast.Module{}
	return tests, fs.WalkDir(fsys, ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || strings.HasPrefix(path.Base(name), ".") || !strings.HasSuffix(name, "_test.rego") {
			return err
		}
		content, err := fs.ReadFile(fsys, name)
		if err != nil {
			return err
		}
		m, err := ast.ParseModuleWithOpts(name, string(content),
			ast.ParserOptions{RegoVersion: ast.RegoV1, ProcessAnnotation: true})
		if err == nil {
			tests[name] = m
		}
		return err
	})
}

// testCapabilities adds what only a test needs.
func testCapabilities() *ast.Capabilities {
	c := *capabilities()
	for _, b := range ast.CapabilitiesForThisVersion().Builtins {
		switch b.Name {
		case "print", "internal.print", "internal.test_case":
			c.Builtins = append(slices.Clip(c.Builtins), b)
		}
	}
	return &c
}
