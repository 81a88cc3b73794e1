# METADATA
# title: Proof that the input is whole
# description: |
#   Denials are found by looking for what is wrong, and what is missing never looks wrong. So each entry point first
#   proves that every member is there and has its type. One comparison often proves several.
package handoff.shape

session if {
	agent(input.agent)
	principal
	tools
	strings(input.labels)
	whole(input.ttl)
	whole(input.max_hops)
	budget
}

decision if {
	input.stage in {"offer", "claim"}
	input.mode in {"delegate", "transfer"}
	agent(input.sender)
	agent(input.receiver)
	agent(input.opener)
	principal
	is_string(input.content_type)
	tools
	strings(input.labels)
	chain
	count(input.chain) == input.depth
	whole(input.max_hops)
	is_boolean(input.facts.deadline_ok)
	is_boolean(input.facts.budget_ok)
	is_number(input.facts.hops_left)
	approvals
}

result if {
	input.stage == "result"
	agent(input.sender)
	agent(input.receiver)
	agent(input.opener)
	principal
	input.status in {"completed", "failed"}
	is_string(input.content_type)
	strings(input.labels)
	chain
	approvals
}

call if {
	agent(input.agent)
	is_string(input.tool)
	count(input.tool) <= 256
	is_object(input.args)
	strings(input.labels)
	chain
}

# METADATA
# description: The three parts of an agent's identity are strings and agree.
agent(a) if {
	a.id == concat("", ["spiffe://", a.trust_domain, a.path])
	is_string(a.name)
}

principal if {
	input.principal.kind in {"human", "workload"}
	is_string(input.principal.name)
}

# Whatever does not subsume itself is no tools map. A constraint that is not well-formed ends the evaluation.
tools if {
	handoff.subsumes(input.tools, input.tools)
	every name, _ in input.tools {
		count(name) <= 256
	}
}

chain if {
	is_array(input.chain)
	every link in input.chain {
		agent(link.from)
		agent(link.to)
		strings(link.tools)
		strings(link.labels)
	}
}

approvals if {
	is_array(input.approvals)
	every approval in input.approvals {
		is_string(approval.by)
	}
}

budget if input.budget == null

budget if whole(input.budget.handoffs)

strings(list) if {
	is_array(list)
	every item in list {
		is_string(item)
	}
}

whole(number) if {
	is_number(number)
	number >= 0
}
