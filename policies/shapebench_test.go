package policies
import ("testing";"context";"github.com/open-policy-agent/opa/v1/rego";"github.com/open-policy-agent/opa/v1/ast";"github.com/open-policy-agent/opa/v1/metrics")
func BenchmarkParts(b *testing.B) {
	s, err := Compile(Default(), Config{})
	if err != nil { b.Fatal(err) }
	mods,_ := parseModules(Default().files)
	c := ast.NewCompiler().WithCapabilities(capabilities()); c.Compile(mods)
	v,_ := decodeValue([]byte(quick))
	b.Run("decode", func(b *testing.B){ b.ReportAllocs(); for b.Loop() { decodeValue([]byte(quick)) } })
	for _, q := range []string{"true","data.handoff.shape.decision","data.handoff.trust.decision","data.handoff.rbac.decision","data.handoff.labels.decision","data.handoff.impact.decision","data.handoff.duties.decision","data.handoff.limits.decision","data.handoff.approval.decision","data.handoff.decision","data.handoff.rbac.sender","data.handoff.rbac.receiver_ceiling","data.handoff.rbac.principal","data.handoff.agents.among(input.sender,[\"*\"])","data.handoff.rbac.opens(input.sender)","data.handoff.rbac.hands","data.handoff.shape.agent(input.sender)","data.agents[input.sender.id]", "input.sender.trust_domain == data.home"} {
		o := []func(*rego.Rego){rego.Compiler(c), rego.Store(s.store), rego.StoreReadAST(true), rego.StrictBuiltinErrors(true), rego.Query(q)}
		for _, f := range ours { o = append(o, rego.FunctionDyn(f.decl, f.call)) }
		p, err := rego.New(o...).PrepareForEval(context.Background()); if err != nil { b.Fatal(err) }
		b.Run(q, func(b *testing.B){ b.ReportAllocs(); for b.Loop() { p.Eval(context.Background(), rego.EvalTransaction(s.txn), rego.EvalParsedInput(v), rego.EvalMetrics(metrics.NoOp()),rego.EvalGenerateJSON(func(t *ast.Term, _ *rego.EvalContext) (any, error) { return t.Value, nil })) } })
	}
}
