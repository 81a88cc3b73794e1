// Package aat implements Attenuating Agent Tokens: the JWS profile of
// draft-niyikiza-oauth-attenuating-agent-tokens-02, for Ed25519. "Draft section" means that draft throughout.
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
// Whoever issues or hands on uses [Issue] and [Derive], or [Prepare] and [Link.Sign] to write down what is about to be
// signed; [Meet] narrows a request to what a policy permits. Whoever guards a tool uses [Verifier.Verify] for each
// call, or [Verifier.Chain] once and [Verifier.Present] for each. Refusals name the step of draft section 8
// ([StepError]), the tool and the argument ([WidenedError], [InvocationError]).
//
// Where the draft leaves room, this package is narrow: Ed25519 is the only algorithm, cnf.jwk has exactly kty, crv and x
// and is no point of small order, and no extension constraint types are implemented, so all are refused. What the Handoff
// Governor asks of a chain beyond the draft is in the package profile beside this one.
//
// The file testdata/vectors.json has presentations for other implementations to try, one or more for each step.
package aat

//go:generate go test -run=^TestVectorsFile$ -update .
