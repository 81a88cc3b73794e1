# METADATA
# title: Which agents a key of the data means
# description: |
#   A key is a SPIFFE ID ("spiffe://td/agent/x"), a path of the home trust domain ("/agent/x"), a whole trust domain
#   ("spiffe://td") or "*", every agent of the home trust domain.
package handoff.agents

home(agent) if agent.trust_domain == data.home

domain(agent) := concat("", ["spiffe://", agent.trust_domain])

# METADATA
# description: What data.agents says of an agent under its narrowest key. Undefined for an agent that no key means.
entry(agent) := found if found := data.agents[agent.id]

else := data.agents[agent.path] if home(agent)

else := found if found := data.agents[domain(agent)]

else := data.agents["*"] if home(agent)

# METADATA
# description: Whether one of keys means the agent.
among(agent, keys) if agent.id in keys

else if {
	home(agent)
	agent.path in keys
}

else if {
	home(agent)
	"*" in keys
}

else if domain(agent) in keys
