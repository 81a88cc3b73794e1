# METADATA
# title: Trust domains
# description: |
#   Agents of the home trust domain trust each other's. Of any other, data.trust_domains must say what it may do: open
#   sessions, send tasks, receive tasks. Results go back the way the task came.
package handoff.trust

may(_, agent) if agent.trust_domain == data.home

may(what, agent) if data.trust_domains[agent.trust_domain][what] == true

session contains refused("open sessions", input.agent) if not may("open", input.agent)

decision contains refused("send tasks", input.sender) if not may("send", input.sender)

decision contains refused("receive tasks", input.receiver) if not may("receive", input.receiver)

result contains refused("work on tasks", input.sender) if not may("receive", input.sender)

result contains refused("receive results", input.receiver) if not may("send", input.receiver)

call contains refused("call tools", input.agent) if not works(input.agent)

works(agent) if may("receive", agent)

works(agent) if may("open", agent)

refused(what, agent) := {
	"code": "trust_domain",
	"message": sprintf("trust domain %s may not %s here", [agent.trust_domain, what]),
	"nearest": sprintf("the same with an agent of %s", [data.home]),
}
