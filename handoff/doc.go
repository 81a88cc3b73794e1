// Package handoff is how an agent takes part: it opens sessions, hands tasks on, receives tasks, works on them under a
// grant of its own, and returns results.
//
// A [Session] is one objective on somebody's behalf. Opening one yields its root [Grant]: authority bound to the key of
// this very process. Under a grant the agent calls tools ([Grant.Call]) and offers tasks to other agents
// ([Grant.Offer]), with as much of the grant as the task needs and never more. The governor judges each offer; a
// receiver's [Client.Receive] claims it and gets a [Task], with a grant that starts with the work and ends with its
// result ([Task.Complete], [Task.Fail]). The sender waits for it with [Handoff.Result].
//
//	client, err := handoff.Connect(ctx, handoff.Config{URL: "tls://governor:4222"})
//	session, err := client.OpenSession(ctx, handoff.SessionRequest{Objective: "quarterly report", Tools: tools, MaxHops: 2})
//	sent, err := session.Offer(ctx, "researcher", []byte("find the numbers"), handoff.Tools(tools))
//	result, err := sent.Result(ctx)
//
// What counts is not what was sent but what is receipted: the governor has it in its ledger. Everything here is sent
// again, byte for byte, until the receipt comes or the context ends, and repeats have no effect. So a method that fails
// with its context has not failed for certain; the handoff can still be awaited.
//
// A denial is an answer, a [*Denied] with the reasons. Refusals by the governor are [*wire.Error]; [errors.Is] compares
// both by code:
//
//	if errors.Is(err, &wire.Error{Code: wire.CodePolicyDenied}) { … }
//
// A client authenticates with its SPIFFE X.509-SVID, by mutual TLS, and follows its rotation. All processes of one agent
// share its inbox; each works on the tasks that it has claimed.
package handoff
