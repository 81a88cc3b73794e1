package policies

import (
	_ "embed"
	"slices"
	"strings"
	"sync"

	"github.com/go-json-experiment/json"
	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/rego"
	"github.com/open-policy-agent/opa/v1/version"
)

// builtinsVersion counts changes to the meaning of handoff.subsumes and handoff.permits, scope arithmetic included.
const builtinsVersion = "1"

// Engine names what evaluates: OPA and our own builtins, each with its version, as in "opa 1.22.2, handoff 1". It is
// recorded with each decision; a replay under another engine may answer otherwise.
func Engine() string { return "opa " + version.Version + ", handoff " + builtinsVersion }

// builtinNames is every OPA builtin that a bundle may call, one a line. It is a list of what is allowed, so that an
// upgrade of OPA adds nothing unseen. Left out is what reads a clock, the network, a random source, the process or the
// policy itself (time, net, http, rand, uuid, opa, rego, io.jwt, crypto.x509, json.*_schema); what is deprecated; and
// what makes a small number into a large value (numbers.range, bits.lsh).
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

// builtin is a function of ours that policies may call.
type builtin struct {
	decl *rego.Function
	call rego.BuiltinDyn
}

var ours []builtin
