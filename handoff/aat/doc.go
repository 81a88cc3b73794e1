// Package aat implements Attenuating Agent Tokens: the JWS profile of
// draft-niyikiza-oauth-attenuating-agent-tokens-02, for Ed25519. "Draft section" means that draft throughout, as of
// 2026-09-29: commit 038a44b0106870ef8dd053428fc5df62bf1dd0de of https://github.com/tenuo-ai/tenuo.
//
// There are five nouns. A [Link] is one signed token; it says, as [Claims], which [Tools] its holder may call with which
// arguments, and until when. A chain is a root link, signed by a trusted issuer, and links below it, each signed by the
// holder of the one above. The holder of the last, the leaf, calls a tool with a [PoP], a proof of possession of the leaf's
// key for that one call. A [Verifier] decides over the call, offline, from the chain and the issuer's public key alone.
//
// The law is that authority only narrows. Every link's tools are within its parent's, argument by argument ([Subsumes]),
// it expires no later, and it may be handed on no further. No holder can make a link that permits more than its own, and
// a verifier takes nobody's word for it.
//
//	root    iss = issuer       cnf = alice   read_file {path: one_of /a /b}
//	 └ link iss = alice's key  cnf = bob     read_file {path: exact /a}       par_hash = SHA-256 of the root
//	    └ proof signed by bob's key          read_file {"path": "/a"}         aat_hash = SHA-256 of the link
//
// # What a link permits
//
// The world is closed: a tool that is not named may not be called, and an argument that is not named may not be given. The
// name "*" ([Unnamed]) opens a tool to every argument that has no name; a tool with no arguments at all, {}, is open in the
// same way. A named argument must be there, unless its constraint is optional; even then, what is given must satisfy it.
//
// A constraint is one of nine types. exact and one_of list what an argument may be, not_one_of what it may not; range
// bounds a number; contains lists what an array must have and subset what it may; wildcard accepts everything; all and any
// combine constraints. Values are compared in the canonical form of RFC 8785, and strings byte by byte.
//
// # Which function
//
//   - To sign a root, [Issue]; to hand on a part of what one holds, [Derive].
//   - To record what is about to be signed, [Prepare], and [Link.Sign] once it is recorded.
//   - To read a record back: [Restore] for the payload of a link that was prepared, [RestoreToken] for a token that a
//     [Verifier] accepted before. Both trust the record, so what they return parents other links and is never presented.
//   - To narrow a request to what a policy permits, [Meet].
//   - To call, [CreatePoP].
//   - To guard a tool, [Verifier.Verify] for each call, or [Verifier.Chain] once and [Verifier.Present] for each. Set Seen
//     and RequirePoPAudience for every tool with side effects or secrets: without them a proof can be used again for as
//     long as it is fresh, here and at other enforcement points.
//
// Refusals name the step of draft section 8 ([StepError]), the tool and the argument ([WidenedError], [InvocationError]).
//
// Where the draft leaves room, this package is narrow: Ed25519 is the only algorithm, cnf.jwk has exactly kty, crv and x
// and is no point of small order, and no extension constraint types are implemented, so all are refused. What the Handoff
// Governor asks of a chain beyond the draft is in the package profile beside this one.
//
// The file testdata/vectors.json has presentations for other implementations to try, one or more for each step. "handoff
// aat verify --vectors" runs it, and files in the format of the draft's own vectors.
package aat

//go:generate go test -run=^TestVectorsFile$ -update .
