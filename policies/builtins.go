package policies

import (
	_ "embed"
	"slices"
	"strings"
	"sync"

	"github.com/go-json-experiment/json"
	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/rego"
	"github.com/open-policy-agent/opa/v1/types"
	"github.com/open-policy-agent/opa/v1/version"

	"github.com/handoff-governor/handoff-governor/handoff/aat"
)

// builtinsVersion counts changes to the meaning of the functions of ours below, scope arithmetic included.
const builtinsVersion = "1"

// Engine names what evaluates: OPA and our own builtins, each with its version, as in "opa 1.22.3, handoff 1". It is
// recorded with each decision; a replay under another engine may answer otherwise.
func Engine() string { return "opa " + version.Version + ", handoff " + builtinsVersion }

// builtinNames is every OPA builtin that a bundle may call, one a line. It is a list of what is allowed, so that an
// upgrade of OPA adds nothing unseen. Left out is what reads a clock, the network, a random source, the process or the
// policy itself (time, net, http, rand, uuid, opa, rego, io.jwt, crypto.x509, json.*_schema); what is deprecated; and
// what makes large values of small ones (numbers.range, bits.lsh, graph.reachable_paths).
//
//go:embed builtins.txt
var builtinNames string

var capabilities = sync.OnceValue(func() *ast.Capabilities {
	all := ast.CapabilitiesForThisVersion()
	allowed := strings.Fields(builtinNames)
	c := &ast.Capabilities{FutureKeywords: all.FutureKeywords, Features: all.Features, AllowNet: []string{}}
	for _, b := range all.Builtins {
		if slices.Contains(allowed, b.Name) && !b.IsNondeterministic() && !b.IsDeprecated() {
			c.Builtins = append(c.Builtins, b)
		}
	}
	for _, b := range ours {
		c.Builtins = append(c.Builtins, &ast.Builtin{Name: b.decl.Name, Description: b.decl.Description, Decl: b.decl.Decl})
	}
	slices.SortFunc(c.Builtins, func(a, b *ast.Builtin) int { return strings.Compare(a.Name, b.Name) })
	return c
})

// Capabilities returns, as JSON, what a bundle may call: `opa check --capabilities` finds with it what [Compile] would
// refuse.
func Capabilities() ([]byte, error) { return json.Marshal(capabilities(), json.Deterministic(true)) }

// builtin is a function of ours that policies may call. OPA passes it the arguments and, at times, the place of the
// result after them.
type builtin struct {
	decl *rego.Function
	call rego.BuiltinDyn
}

var anyObject = types.NewObject(nil, types.NewDynamicProperty(types.S, types.A))

var ours = []builtin{
	{
		decl: &rego.Function{
			Name:        "handoff.whole",
			Description: "whether input is all that an entry point is given, with each member of its type and no other",
			Decl:        types.NewFunction(types.Args(types.Named("entry", types.S), types.Named("input", types.A)), types.B),
		},
		call: func(_ rego.BuiltinContext, args []*ast.Term) (*ast.Term, error) {
			entry, _ := args[0].Value.(ast.String)
			shape, ok := wholeInputs[string(entry)]
			return ast.InternedTerm(ok && shape(args[1].Value)), nil
		},
	},
	{
		decl: &rego.Function{
			Name:        "handoff.subsumes",
			Description: "whether the tools wide allow at least what the tools narrow allow (AAT section 4.5)",
			Decl: types.NewFunction(
				types.Args(types.Named("wide", anyObject), types.Named("narrow", anyObject)), types.B),
		},
		call: func(_ rego.BuiltinContext, args []*ast.Term) (*ast.Term, error) {
			var wide, narrow aat.Tools
			if err := decodeTerms(args[:2], &wide, &narrow); err != nil {
				return nil, err
			}
			return ast.InternedTerm(aat.SubsumesTools(wide, narrow) == nil), nil
		},
	},
	{
		decl: &rego.Function{
			Name:        "handoff.permits",
			Description: "whether a call of tool with args is within tools (AAT section 8, step 6b)",
			Decl: types.NewFunction(
				types.Args(types.Named("tools", anyObject), types.Named("tool", types.S), types.Named("args", anyObject)), types.B),
		},
		call: func(_ rego.BuiltinContext, args []*ast.Term) (*ast.Term, error) {
			var tools aat.Tools
			var tool string
			if err := decodeTerms(args[:2], &tools, &tool); err != nil {
				return nil, err
			}
			constraints, ok := tools[tool]
			if !ok {
				return ast.InternedTerm(false), nil
			}
			invocation, err := encodeValue(args[2].Value)
			if err != nil {
				return nil, err
			}
			return ast.InternedTerm(aat.CheckInvocation(constraints, invocation) == nil), nil
		},
	},
}

// decodeTerms reads each term's JSON into the value beside it. A term that does not fit is an error, which ends the
// evaluation and so denies.
func decodeTerms(terms []*ast.Term, into ...any) error {
	for i, t := range terms {
		text, err := appendValue(nil, t.Value)
		if err != nil {
			return err
		}
		if err := json.Unmarshal(text, into[i]); err != nil {
			return err
		}
	}
	return nil
}
