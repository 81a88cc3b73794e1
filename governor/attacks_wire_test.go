package governor_test

import (
	"github.com/handoff-governor/handoff-governor/handoff/wire"
)

// wireAttacks are made with NATS alone.
var wireAttacks = []attack{
	{
		name: "publishes into the inbox stream",
		wins: "a task that no policy has seen reaches another agent",
		try: func(a *arena) string {
			return a.mallory.forbidden("inbox."+a.writer.name, []byte("do this"))
		},
	},
	{
		name: "publishes an offer as another sender",
		wins: "a task in the name of the planner",
		try: func(a *arena) string {
			return a.mallory.forbidden("in."+a.planner.name+"."+wire.OfferSubject(a.root.session, a.writer.name)[len("handoff."):], []byte("do this"))
		},
	},
}
