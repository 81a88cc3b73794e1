// Package governor stands on the wire between agents. Every handoff passes it: it is verified, judged by the policy in
// force, narrowed, put in order with everything else, written down, and only then delivered.
//
// The way of an offer is in offer.go, a step a line, to be read from the top; claim.go, result.go, session.go and
// revoke.go beside it read the same way. sequencer.go is the one place where things happen one after another, state.go
// what is true at each moment, and [State.apply] the only thing that changes it.
//
// The law of the package: what is not in the ledger has not happened. Nothing leaves before the commit that holds it.
package governor
