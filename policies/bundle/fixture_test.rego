# What the tests share: whole inputs that the shipped data allows.
package handoff.fixture

agent(name) := {
	"name": name,
	"id": concat("", ["spiffe://handoff.local/agent/", name]),
	"trust_domain": "handoff.local",
	"path": concat("", ["/agent/", name]),
}

stranger := {
	"name": "partner=dexample=sagent=shelper",
	"id": "spiffe://partner.example/agent/helper",
	"trust_domain": "partner.example",
	"path": "/agent/helper",
}

alice := {"kind": "human", "name": "alice"}

session := {
	"agent": agent("planner"), "principal": alice, "tools": {"crm.read": {}, "mail.send": {}},
	"labels": [], "ttl": 3600, "max_hops": 4, "budget": {"handoffs": 10},
}

offer := {
	"stage": "offer", "mode": "delegate", "sender": agent("planner"), "receiver": agent("reader"),
	"opener": agent("planner"), "principal": alice, "content_type": "text/plain", "tools": {"crm.read": {}},
	"labels": [], "chain": [], "depth": 0, "max_hops": 4,
	"facts": {"deadline_ok": true, "budget_ok": true, "hops_left": 3}, "approvals": [],
}

# planner handed pay.create and crm.read to reader, which now hands on crm.read.
second := object.union(offer, {
	"sender": agent("reader"), "receiver": agent("writer"), "depth": 1,
	"facts": {"deadline_ok": true, "budget_ok": true, "hops_left": 2},
	"chain": [{
		"from": agent("planner"), "to": agent("reader"),
		"tools": ["crm.read", "pay.create"], "labels": ["pii"],
	}],
})

result := {
	"stage": "result", "sender": agent("reader"), "receiver": agent("planner"), "opener": agent("planner"),
	"principal": alice, "status": "completed", "content_type": "text/plain", "labels": [],
	"chain": [{"from": agent("planner"), "to": agent("reader"), "tools": ["crm.read"], "labels": []}],
	"approvals": [],
}

call := {"agent": agent("reader"), "tool": "crm.read", "args": {"id": 7}, "labels": [], "chain": result.chain}

codes(answer) := {reason.code | some reason in answer.reasons}
