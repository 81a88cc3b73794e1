# METADATA
# title: Roles
# description: |
#   data.agents gives an agent roles, and its roles the tools it may hold: the ceiling of every grant. Whoever no entry
#   means may do nothing. Roles of one agent add up.
package handoff.rbac

import data.handoff.agents

# METADATA
# description: The most that the session's opener, a handoff's receiver, or a caller may hold now.
default agent_ceiling := {}

agent_ceiling := ceiling(agent)

default receiver_ceiling := {}

receiver_ceiling := ceiling(receiver)

# METADATA
# description: The tools of an entry's roles; null where one of them allows every tool.
ceiling(entry) := null if {
	some role in entry.roles
	data.roles[role].tools == "*"
} else := object.union_n([tools |
	some role in entry.roles
	tools := data.roles[role].tools
])

agent := agents.entry(input.agent)

sender := agents.entry(input.sender)

receiver := agents.entry(input.receiver)

session contains unlisted(input.agent) if not agent

session contains foreign_principal(input.agent) if not opens(input.agent)

decision contains unlisted(input.sender) if not sender

decision contains unlisted(input.receiver) if not receiver

# Judged again at each hop, so that removing a person ends what goes on in their name.
decision contains foreign_principal(input.opener) if not opens(input.opener)

decision contains {
	"code": "hands_to",
	"message": sprintf("%s may not hand tasks to %s", [input.sender.id, input.receiver.id]),
	"nearest": "the same handed to an agent in the sender's hands_to",
} if {
	sender
	not hands
}

hands if not sender.hands_to

hands if agents.among(input.receiver, sender.hands_to)

call contains unlisted(input.agent) if not agent

call contains {
	"code": "role_ceiling",
	"message": "no role of the agent allows this call now",
	"tool": input.tool,
	"nearest": "a call of a tool, and with arguments, that one of its roles allows",
} if {
	agent
	not permitted
}

permitted if agent_ceiling == null

permitted if handoff.permits(agent_ceiling, input.tool, input.args)

opens(opener) if agents.among(opener, principal.agents)

principal := found if {
	found := data.principals[concat(":", [input.principal.kind, input.principal.name])]
} else := data.principals["*"]

unlisted(agent) := {
	"code": "agent_unlisted",
	"message": sprintf("no role is given to %s", [agent.id]),
	"nearest": "the same with an agent that the policy's agents list",
}

for_whom := "on its own behalf" if {
	input.principal.kind == "workload"
} else := sprintf("for %s %s", [input.principal.kind, substring(input.principal.name, 0, 200)])

foreign_principal(agent) := {
	"code": "principal",
	"message": sprintf("%s may not act %s", [agent.id, for_whom]),
	"nearest": "the same opened by an agent that may act for this principal",
}
