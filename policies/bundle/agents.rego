# METADATA
# title: Which agents a key of the data means
# description: |
#   An agent of the home trust domain goes by its path ("/agent/x") or "*", which means all of them; any other by its
#   SPIFFE ID ("spiffe://td/agent/x") or its trust domain ("spiffe://td").
package handoff.agents

# METADATA
# description: What data.agents says of an agent under its narrowest key. Undefined for an agent that no key means.
entry(agent) := found if {
	agent.trust_domain == data.home
	found := data.agents[agent.path]
} else := found if {
	agent.trust_domain == data.home
	found := data.agents["*"]
} else := found if {
	agent.trust_domain != data.home
	found := data.agents[agent.id]
} else := found if {
	agent.trust_domain != data.home
	found := data.agents[concat("", ["spiffe://", agent.trust_domain])]
}

# METADATA
# description: Whether one of keys means the agent.
among(agent, keys) if {
	agent.trust_domain == data.home
	some key in ["*", agent.path]
	key in keys
}

among(agent, keys) if {
	agent.trust_domain != data.home
	some key in [agent.id, concat("", ["spiffe://", agent.trust_domain])]
	key in keys
}
