// Package guard is the enforcement point in front of a tool. A [Guard] answers one question: may the holder of this
// credential make this call, now?
//
// A call comes with a presentation (draft-niyikiza-oauth-attenuating-agent-tokens-02, section 7.4): a chain of links
// from the issuer's root to the caller's grant, and a proof of possession, made for this one call. [Guard.Check]
// permits the call only if all of this holds:
//
//   - The chain verifies by the draft (sections 8.1 to 8.5) and by the governor's profile: between any two agents there
//     is a governor's link, and all links tell one story (package profile).
//   - No link of the chain was revoked, and the last one has not ended. The guard knows from the governor's signed feed,
//     which it is given by [Guard.Feed]. Without a fresh feed it refuses everything.
//   - The caller is the agent that the grant was made for, where the transport says who calls.
//   - The grant permits the tool and the arguments, and every audience in the chain names this guard (section 8.6).
//   - The proof is for this tool, these arguments and this guard, and was never used before (section 8.7).
//   - The Decide hook, where there is one, does not object.
//
// A chain that was seen before costs one signature instead of one for each link. Nothing else is remembered of it:
// time, revocation, arguments and proof are checked at each call.
//
// A proof is used up in the memory of one process, and that of replicas is not shared. So every process needs an audience
// of its own: where two answer to one name, a proof that one has accepted can be used again at the other.
//
// The package opens no connection. Whoever runs the guard brings it the feed: [handoff.Client.WatchRevocations] does,
// over NATS.
//
// # HTTP
//
// [Handler] puts a guard in front of an [net/http.Handler]. A call is a POST of one JSON object:
//
//	{
//	  "tool": "read_file",
//	  "args": {"path": "/data/q3.pdf"},
//	  "aat_chain": ["eyJ…", "eyJ…", "eyJ…"],
//	  "aat_pop": "eyJ…"
//	}
//
// All four members are required, other members are ignored, none may appear twice, and the arguments are an object.
// The caller is the SPIFFE ID of the TLS client certificate, where there is one. A refusal is an object with the member
// error, {code, message, step?, retry_after?}: status 400 for a body that is not such an object, 405 for another method,
// 413 for a body that is too large, and 403 for everything that the guard refuses. Where waiting may help, the header
// Retry-After says how long.
//
// [handoff.Client.WatchRevocations]: https://pkg.go.dev/github.com/handoff-governor/handoff-governor/handoff#Client.WatchRevocations
package guard
