package policies

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"testing/fstest"

	"pgregory.net/rapid"
)

func TestDefaultBundle(t *testing.T) {
	report, err := Test(t.Context(), DefaultFiles())
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range report.Tests {
		if !r.Passed {
			t.Errorf("%s failed: %v\n%s", r.Name, r.Err, r.Output)
		}
	}
	if !report.Passed() {
		t.Error("the report does not say that its tests passed")
	}
	if len(report.Uncovered) > 0 {
		t.Errorf("no test reaches %v", report.Uncovered)
	}
}

func TestFailingTestsAreReported(t *testing.T) {
	report, err := Test(t.Context(), fstest.MapFS{
		"a.rego":      {Data: []byte("package a\np := 1\nq := 2 if input.x")},
		"a_test.rego": {Data: []byte("package a\ntest_p if p == 1\ntest_q if q == 2")},
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(report.Tests) != 2 || !report.Tests[0].Passed || report.Tests[1].Passed || report.Passed() {
		t.Errorf("got %+v", report)
	}
	if len(report.Uncovered) == 0 {
		t.Error("q is not reached, and nothing says so")
	}
}

// Every code of the default bundle is in the one list of codes.
func TestCodesAreListed(t *testing.T) {
	parsed, err := parser.ParseFile(token.NewFileSet(), "../handoff/wire/codes.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	listed := map[string]bool{}
	ast.Inspect(parsed, func(n ast.Node) bool {
		if l, ok := n.(*ast.BasicLit); ok && l.Kind == token.STRING {
			text, _ := strconv.Unquote(l.Value)
			listed[text] = true
		}
		return true
	})
	codes := 0
	for _, f := range Default().Files() {
		for _, m := range regexp.MustCompile(`"code": "([^"]*)"`).FindAllSubmatch(f.Content, -1) {
			codes++
			if !listed[string(m[1])] {
				t.Errorf("%s: code %s is not in handoff/wire/codes.go", f.Path, m[1])
			}
		}
	}
	if codes == 0 {
		t.Error("no codes were found")
	}
}

func TestDigestIsOfContentAlone(t *testing.T) {
	const rego = "package handoff\ndecision := true"
	load := func(files map[string]string) *Bundle {
		fsys := fstest.MapFS{}
		for name, content := range files {
			fsys[name] = &fstest.MapFile{Data: []byte(content)}
		}
		b, err := Load(fsys)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	one := load(map[string]string{"p.rego": rego, "data.json": `{"b":{"c":[1,2.50]},"a":1}`})
	for name, other := range map[string]*Bundle{
		"layout of the data": load(map[string]string{"p.rego": rego, "data.json": "{ \"a\" : 1 }", "b/data.json": `{"c":[1,2.50]}`}),
		"YAML":               load(map[string]string{"p.rego": rego, "data.json": `{"b":{"c":[1,2.50]}}`, "data.yaml": "a: 1\n"}),
		"other files": load(map[string]string{
			"p.rego": rego, "data.json": `{"b":{"c":[1,2.50]},"a":1}`,
			"p_test.rego": "package x", "README.md": "x", ".git/x.rego": "package x", "other.json": "{}",
		}),
	} {
		if one.Digest() != other.Digest() || !bytes.Equal(one.Bytes(), other.Bytes()) {
			t.Errorf("%s: another digest", name)
		}
	}
	for name, other := range map[string]*Bundle{
		"a value": load(map[string]string{"p.rego": rego, "data.json": `{"b":{"c":[1,2.50]},"a":2}`}),
		"a rule":  load(map[string]string{"p.rego": rego + "\n", "data.json": `{"b":{"c":[1,2.50]},"a":1}`}),
		"a path":  load(map[string]string{"q.rego": rego, "data.json": `{"b":{"c":[1,2.50]},"a":1}`}),
	} {
		if one.Digest() == other.Digest() {
			t.Errorf("%s: the same digest", name)
		}
	}
	unzipped, err := gzip.NewReader(bytes.NewReader(one.Bytes()))
	if err != nil {
		t.Fatal(err)
	}
	hash := sha256.New()
	if _, err := io.Copy(hash, unzipped); err != nil {
		t.Fatal(err)
	}
	if got := "sha256:" + hex.EncodeToString(hash.Sum(nil)); got != one.Digest() {
		t.Errorf("gunzip | sha256sum is %s; the digest is %s", got, one.Digest())
	}
}

func TestBundlesSurviveTheirBytes(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		name := rapid.StringMatching(`[a-z]{1,8}(/[a-z]{1,8}){0,2}`)
		fsys := fstest.MapFS{"data.json": {Data: fmt.Appendf(nil, `{"x":%d}`, rapid.Int().Draw(t, "x"))}}
		for _, n := range rapid.SliceOfN(name, 0, 5).Draw(t, "names") {
			fsys[n+".rego"] = &fstest.MapFile{Data: []byte(rapid.String().Draw(t, "content"))}
		}
		b, err := Load(fsys)
		if err != nil {
			t.Fatal(err)
		}
		again, err := Parse(b.Bytes())
		if err != nil {
			t.Fatal(err)
		}
		if b.Digest() != again.Digest() || !bytes.Equal(b.Bytes(), again.Bytes()) || len(b.Files()) != len(again.Files()) {
			t.Fatal("the bundle changed")
		}
	})
}

func TestLoadRefuses(t *testing.T) {
	many := fstest.MapFS{}
	for i := range MaxBundleFiles + 1 {
		many[fmt.Sprintf("f%d.rego", i)] = &fstest.MapFile{Data: []byte("package x")}
	}
	for name, c := range map[string]struct {
		files fstest.MapFS
		says  string
	}{
		"repeated member":  {fstest.MapFS{"data.json": {Data: []byte(`{"a":1,"a":2}`)}}, "duplicate"},
		"repeated in YAML": {fstest.MapFS{"data.yaml": {Data: []byte("a: 1\na: 2\n")}}, "is there twice"},
		"trailing data":    {fstest.MapFS{"data.json": {Data: []byte(`{} {}`)}}, "after"},
		"no object":        {fstest.MapFS{"data.json": {Data: []byte(`[]`)}}, "must be an object"},
		"conflict": {fstest.MapFS{"data.json": {Data: []byte(`{"a":{"b":1}}`)},
			"a/data.json": {Data: []byte(`{"b":2}`)}}, "/a/b"},
		"too many files": {many, "more than"},
		"too much":       {fstest.MapFS{"a.rego": {Data: make([]byte, MaxBundleContent+1)}}, "more than"},
		"long path":      {fstest.MapFS{strings.Repeat("a", MaxBundlePath) + ".rego": {}}, "a path has at most"},
	} {
		_, err := Load(c.files)
		if err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: got %v; want %q", name, err, c.says)
		}
	}
}

type packed struct {
	name string
	kind byte
	data string
}

func archive(t testing.TB, files ...packed) []byte {
	t.Helper()
	var out bytes.Buffer
	zip := gzip.NewWriter(&out)
	w := tar.NewWriter(zip)
	for _, m := range files {
		h := &tar.Header{Name: m.name, Typeflag: m.kind, Size: int64(len(m.data)), Mode: 0o600}
		if m.kind == tar.TypeSymlink {
			h.Linkname = "/etc/passwd"
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, m.data); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if err := zip.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func TestParseRefuses(t *testing.T) {
	bomb := archive(t, packed{"/a.rego", tar.TypeReg, strings.Repeat(" ", MaxBundleContent+1)})
	for name, c := range map[string]struct {
		data []byte
		says string
	}{
		"no gzip":     {[]byte("x"), ""},
		"cut short":   {Default().Bytes()[:500], ""},
		"too large":   {make([]byte, MaxBundle+1), "at most"},
		"a bomb":      {bomb, "more than"},
		"a link":      {archive(t, packed{"/a.rego", tar.TypeSymlink, ""}), "not a regular file"},
		"a way out":   {archive(t, packed{"../a.rego", tar.TypeReg, ""}), "not a path inside"},
		"the same":    {archive(t, packed{"/a.rego", tar.TypeReg, ""}, packed{"a.rego", tar.TypeReg, ""}), "twice"},
		"a signature": {archive(t, packed{"/.signatures.json", tar.TypeReg, "{}"}), "signatures are not checked"},
		"Wasm":        {archive(t, packed{"/policy.wasm", tar.TypeReg, ""}), "neither policy"},
	} {
		if _, err := Parse(c.data); err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: got %v; want %q", name, err, c.says)
		}
	}
	built := archive(t, packed{"/.manifest", tar.TypeReg, `{"revision":"x"}`}, packed{"/p", tar.TypeDir, ""},
		packed{"/p/a.rego", tar.TypeReg, "package a"}, packed{"/p/a_test.rego", tar.TypeReg, "package b"})
	b, err := Parse(built)
	if err != nil || len(b.Files()) != 2 || b.Files()[1].Path != "p/a.rego" {
		t.Errorf("what `opa build` writes: %v, %v", b, err)
	}
}

func TestWithData(t *testing.T) {
	b, err := Default().WithData("/home", "td.example")
	if err != nil {
		t.Fatal(err)
	}
	b, err = b.WithData("limits/grant_ttl", 60)
	if err != nil {
		t.Fatal(err)
	}
	s, err := Compile(b, Config{})
	if err != nil {
		t.Fatal(err)
	}
	moved := strings.ReplaceAll(whole[EntryDecision], "handoff.local", "td.example")
	answer, err := s.Evaluate(t.Context(), EntryDecision, []byte(moved))
	if err != nil || !strings.Contains(string(answer), `"effect":"allow","max_hops":-1,"reasons":[],"ttl":60`) {
		t.Errorf("got %s, %v", answer, err)
	}
	if b.Digest() == Default().Digest() {
		t.Error("other data, the same digest")
	}
	for _, at := range []string{"", "/", "/a//b", "/home/x"} {
		if _, err := Default().WithData(at, 1); err == nil {
			t.Errorf("a value at %q was taken", at)
		}
	}
	if _, err := Default().WithData("/x", func() {}); err == nil {
		t.Error("a function was taken as data")
	}
}

func FuzzParse(f *testing.F) {
	f.Add(Default().Bytes())
	f.Add(archive(f, packed{"/a.rego", tar.TypeReg, "package a"}, packed{"/data.yaml", tar.TypeReg, "a: 1"}))
	f.Fuzz(func(t *testing.T, data []byte) {
		b, err := Parse(data)
		if err != nil {
			return
		}
		again, err := Parse(b.Bytes())
		if err != nil || again.Digest() != b.Digest() {
			t.Fatalf("%v: %s, %s", err, b.Digest(), again.Digest())
		}
	})
}

// What is accepted can be read again, or it would keep the next start from happening.
func TestAcceptedBundlesCanBeReadAgain(t *testing.T) {
	decision := []byte("package handoff\ndecision := {\"effect\": \"allow\"}\n")
	files := func(n int) fstest.MapFS {
		all := fstest.MapFS{"policy.rego": {Data: decision}}
		for i := range n - 1 {
			all[fmt.Sprintf("f%d.rego", i)] = &fstest.MapFile{Data: []byte("package x")}
		}
		return all
	}
	filled := func(with int) fstest.MapFS {
		return fstest.MapFS{"policy.rego": {Data: append(bytes.Repeat([]byte("#"), with-len(decision)-1), append([]byte("\n"), decision...)...)}}
	}
	for name, c := range map[string]struct {
		files fstest.MapFS
		ok    bool
	}{
		"as many files as there may be": {files(MaxBundleFiles - 1), true},
		"one more":                      {files(MaxBundleFiles), false},
		"as many bytes as there may be": {filled(MaxBundleContent - 2), true}, // and {}
		"a byte more":                   {filled(MaxBundleContent - 1), false},
		"YAML that grows":               {fstest.MapFS{"policy.rego": {Data: decision}, "data.yaml": {Data: []byte("x:\n" + strings.Repeat("- \n", 1<<21))}}, false},
	} {
		b, err := Load(c.files)
		if (err == nil) != c.ok {
			t.Errorf("%s: %v", name, err)
		}
		if err != nil {
			continue
		}
		if _, err := Parse(b.Bytes()); err != nil {
			t.Errorf("%s: accepted, and cannot be read again: %v", name, err)
		}
		if larger, err := b.WithData("/home", "handoff.local"); err == nil {
			if _, err := Parse(larger.Bytes()); err != nil {
				t.Errorf("%s: with more data accepted, and cannot be read again: %v", name, err)
			}
		}
	}
}

// YAML says what JSON can say, and nothing is dropped, rounded or multiplied.
func TestYAML(t *testing.T) {
	load := func(text string) (string, error) {
		b, err := Load(fstest.MapFS{"policy.rego": {Data: []byte("package handoff")}, "data.yaml": {Data: []byte(text)}})
		if err != nil {
			return "", err
		}
		for _, f := range b.Files() {
			if f.Path == "data.json" {
				return string(f.Content), nil
			}
		}
		return "", nil
	}
	got, err := load("a: 12345678901234567890123\nb: 2026-11-26\nc: [1.50, true, ~, \"0x10\", no]\n1: {}\n")
	if want := `{"1":{},"a":12345678901234567890123,"b":"2026-11-26","c":[1.50,true,null,"0x10","no"]}`; got != want || err != nil {
		t.Errorf("got %s, %v, want %s", got, err, want)
	}
	for text, want := range map[string]string{
		"a: 1\n---\nb: 2\n":            "more than one document",
		"a: &x [1]\nb: *x\n":           "aliases",
		"a: &x {c: 1}\nb:\n  <<: *x\n": "<<",
		"a: 0x10\n":                    "as JSON does",
		"a: .inf\n":                    "as JSON does",
		"? [a]\n: 1\n":                 "plain string",
		"":                             "must be an object",
		"- a\n":                        "must be an object",
	} {
		if got, err := load(text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %s, %v, want %q", text, got, err, want)
		}
	}
}

func TestHiddenFilesOfAnArchive(t *testing.T) {
	for _, name := range []string{".manifest", "/.manifest", "./.manifest", ".a.rego", "x/.git/b.rego"} {
		b, err := Parse(archive(t, packed{name, tar.TypeReg, "{}"}, packed{"a.rego", tar.TypeReg, "package a"}))
		if err != nil || len(b.Files()) != 2 {
			t.Errorf("%s: %v", name, err)
		}
	}
}
