package policies

import (
	"slices"

	"github.com/open-policy-agent/opa/v1/ast"
)

// shape tells whether a value has a shape. Those below say in Go what input.schema.json says, and a test holds the two
// together; here three things are added that a schema cannot say: the parts of an agent's identity agree, depth is the
// length of the chain, and no tool's name is so long that a reason could not name it.
type shape func(ast.Value) bool

var wholeInputs = map[string]shape{
	EntrySession: members(map[string]shape{
		"agent": agent, "principal": principal, "tools": toolsShape, "labels": listOf(text), "ttl": count,
		"max_hops": count, "budget": either(null, members(map[string]shape{"handoffs": count})),
	}),
	EntryDecision: both(members(map[string]shape{
		"stage": oneOf("offer", "claim"), "mode": oneOf("delegate", "transfer"), "sender": agent, "receiver": agent,
		"opener": agent, "principal": principal, "content_type": text, "tools": toolsShape, "labels": listOf(text),
		"chain": chainShape, "depth": count, "max_hops": count, "approvals": approvals,
		"facts": members(map[string]shape{"deadline_ok": boolean, "budget_ok": boolean, "hops_left": integer}),
	}), deep),
	EntryResult: members(map[string]shape{
		"stage": oneOf("result"), "sender": agent, "receiver": agent, "opener": agent, "principal": principal,
		"status": oneOf("completed", "failed"), "content_type": text, "labels": listOf(text), "chain": chainShape,
		"approvals": approvals,
	}),
	EntryCall: members(map[string]shape{
		"agent": agent, "tool": toolName, "args": mapOf(anything), "labels": listOf(text), "chain": chainShape,
	}),
}

var (
	agent = both(members(map[string]shape{"name": text, "id": text, "trust_domain": text, "path": text}),
		func(v ast.Value) bool {
			id, td, path := member(v, "id"), member(v, "trust_domain"), member(v, "path")
			return id == "spiffe://"+td+path && td != "" && path != "" && path[0] == '/'
		})
	principal  = members(map[string]shape{"kind": oneOf("human", "workload"), "name": text})
	chainShape = listOf(members(map[string]shape{
		"from": agent, "to": agent, "tools": listOf(toolName), "labels": listOf(text),
	}))
	approvals  = listOf(members(map[string]shape{"by": text}))
	toolsShape = both(mapOf(mapOf(func(v ast.Value) bool {
		constraint, ok := v.(ast.Object)
		if !ok {
			return false
		}
		kind := constraint.Get(name("constraint_type"))
		return kind != nil && text(kind.Value)
	})), func(v ast.Value) bool {
		return !v.(ast.Object).Until(func(tool, _ *ast.Term) bool { return !toolName(tool.Value) })
	})
)

const maxToolName = 256 // bytes

func anything(ast.Value) bool { return true }

func null(v ast.Value) bool { _, ok := v.(ast.Null); return ok }

func boolean(v ast.Value) bool { _, ok := v.(ast.Boolean); return ok }

func text(v ast.Value) bool { _, ok := v.(ast.String); return ok }

func toolName(v ast.Value) bool { s, ok := v.(ast.String); return ok && len(s) <= maxToolName }

func integer(v ast.Value) bool {
	n, ok := v.(ast.Number)
	if ok {
		_, ok = n.Int64()
	}
	return ok
}

func count(v ast.Value) bool {
	n, ok := v.(ast.Number)
	if !ok {
		return false
	}
	i, ok := n.Int64()
	return ok && i >= 0
}

func oneOf(values ...ast.String) shape {
	return func(v ast.Value) bool {
		s, ok := v.(ast.String)
		return ok && slices.Contains(values, s)
	}
}

func either(a, b shape) shape { return func(v ast.Value) bool { return a(v) || b(v) } }

func both(a, b shape) shape { return func(v ast.Value) bool { return a(v) && b(v) } }

func listOf(item shape) shape {
	return func(v ast.Value) bool {
		list, ok := v.(*ast.Array)
		return ok && !list.Until(func(t *ast.Term) bool { return !item(t.Value) })
	}
}

func mapOf(value shape) shape {
	return func(v ast.Value) bool {
		object, ok := v.(ast.Object)
		return ok && !object.Until(func(_, t *ast.Term) bool { return !value(t.Value) })
	}
}

// members is an object with these members, each, and no others.
func members(shapes map[string]shape) shape {
	return func(v ast.Value) bool {
		object, ok := v.(ast.Object)
		return ok && object.Len() == len(shapes) && !object.Until(func(key, t *ast.Term) bool {
			s, _ := key.Value.(ast.String)
			shape, known := shapes[string(s)]
			return !known || !shape(t.Value)
		})
	}
}

// deep follows members, which proved the two that it compares.
func deep(v ast.Value) bool {
	object := v.(ast.Object)
	depth, _ := object.Get(name("depth")).Value.(ast.Number).Int()
	return depth == object.Get(name("chain")).Value.(*ast.Array).Len()
}

// member is a text that members proved.
func member(v ast.Value, of string) string {
	return string(v.(ast.Object).Get(name(of)).Value.(ast.String))
}

func name(s string) *ast.Term { return memberNames[s] }
