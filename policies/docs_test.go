package policies

import (
	"bytes"
	"maps"
	"os"
	"regexp"
	"slices"
	"testing"
	"testing/fstest"

	"github.com/go-json-experiment/json"
	"github.com/santhosh-tekuri/jsonschema/v6"

	"github.com/handoff-governor/handoff-governor/handoff/wire"
)

// Every snippet of docs/policy.md is what it says it is.
func TestDocs(t *testing.T) {
	page, err := os.ReadFile("../docs/policy.md")
	if err != nil {
		t.Fatal(err)
	}
	compiler := jsonschema.NewCompiler()
	schema, err := jsonschema.UnmarshalJSON(bytes.NewReader(InputSchema))
	if err != nil {
		t.Fatal(err)
	}
	if err := compiler.AddResource("urn:handoff-governor:input", schema); err != nil {
		t.Fatal(err)
	}
	shipped := compileDefault(t)
	own := fstest.MapFS{}
	seen := map[string]int{}
	for _, m := range regexp.MustCompile("(?s)```(\\w+) ([a-z-]+) ?(\\w*)\n(.*?)```").FindAllSubmatch(page, -1) {
		kind, entry, text := string(m[2]), string(m[3]), m[4]
		seen[kind]++
		switch kind {
		case "input":
			decoded, err := jsonschema.UnmarshalJSON(bytes.NewReader(text))
			if err != nil {
				t.Fatal(err)
			}
			if err := compiler.MustCompile("urn:handoff-governor:input#/$defs/" + entry).Validate(decoded); err != nil {
				t.Errorf("input %s: %v", entry, err)
			}
			if got := effect(t, shipped, entry, text); got != wire.EffectAllow {
				t.Errorf("the shipped data answers input %s with %s", entry, got)
			}
		case "answer":
			if _, err := wire.ParseAnswer(text); err != nil {
				t.Error(err)
			}
		case "data":
			var sections map[string]any
			if err := json.Unmarshal(text, &sections); err != nil {
				t.Fatal(err)
			}
			b := Default()
			for _, name := range slices.Sorted(maps.Keys(sections)) {
				if b, err = b.WithData(name, sections[name]); err != nil {
					t.Fatal(err)
				}
			}
			if _, err := Compile(b, Config{}); err != nil {
				t.Errorf("%v for\n%s", err, text)
			}
		case "bundle":
			own["policy.rego"] = &fstest.MapFile{Data: text}
		case "bundle-data":
			own["data.json"] = &fstest.MapFile{Data: text}
		case "test":
			own["policy_test.rego"] = &fstest.MapFile{Data: text}
		default:
			t.Errorf("a snippet of unknown kind %q", kind)
		}
	}
	if fences := bytes.Count(page, []byte("\n```")); fences != 2*(seen["input"]+seen["answer"]+seen["data"]+len(own)) {
		t.Errorf("%d fences, but snippets are %v and %d files", fences, seen, len(own))
	}
	b, err := Load(own)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Compile(b, Config{}); err != nil {
		t.Error(err)
	}
	report, err := Test(t.Context(), own)
	if err != nil || !report.Passed() || len(report.Uncovered) > 0 {
		t.Errorf("%v, %+v", err, report)
	}
}
