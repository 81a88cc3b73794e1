# METADATA
# title: Roles
# description: |
#   data.agents gives an agent roles, and its roles the tools it may hold: the ceiling of every grant. Whoever no entry
#   means may do nothing. Roles of one agent add up.
package handoff.rbac

import data.handoff.agents

# METADATA
# description: The tools that an agent may hold; null where a role allows every tool, none for an agent without an entry.
ceiling(agent) := null if {
	some role in agents.entry(agent).roles
	data.roles[role].tools == "*"
} else := object.union_n([tools |
	some role in agents.entry(agent).roles
	tools := data.roles[role].tools
])

session contains unlisted(input.agent) if not agents.entry(input.agent)

session contains foreign_principal(input.agent) if not opens(input.agent)

decision contains unlisted(input.sender) if not agents.entry(input.sender)

decision contains unlisted(input.receiver) if not agents.entry(input.receiver)

# Judged again at each hop, so that removing a person ends what goes on in their name.
decision contains foreign_principal(input.opener) if not opens(input.opener)

decision contains {
	"code": "hands_to",
	"message": sprintf("%s may not hand tasks to %s", [input.sender.id, input.receiver.id]),
	"nearest": "the same handed to an agent in the sender's hands_to",
} if {
	agents.entry(input.sender)
	not hands(input.sender, input.receiver)
}

call contains unlisted(input.agent) if not agents.entry(input.agent)

call contains {
	"code": "role_ceiling",
	"message": "no role of the agent allows this call now",
	"tool": input.tool,
	"nearest": "a call of a tool, and with arguments, that one of its roles allows",
} if {
	agents.entry(input.agent)
	not permitted
}

permitted if ceiling(input.agent) == null

permitted if handoff.permits(ceiling(input.agent), input.tool, input.args)

hands(sender, _) if not agents.entry(sender).hands_to

hands(sender, receiver) if agents.among(receiver, agents.entry(sender).hands_to)

opens(agent) if agents.among(agent, principal.agents)

principal := found if {
	found := data.principals[concat(":", [input.principal.kind, input.principal.name])]
} else := data.principals["*"]

unlisted(agent) := {
	"code": "agent_unlisted",
	"message": sprintf("no role is given to %s", [agent.id]),
	"nearest": "the same with an agent that the policy's agents list",
}

foreign_principal(agent) := {
	"code": "principal",
	"message": sprintf("%s may not act for %s %s", [
		agent.id, input.principal.kind, substring(input.principal.name, 0, 200),
	]),
	"nearest": "the same opened by an agent that may act for this principal",
}
