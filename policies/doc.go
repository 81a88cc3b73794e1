// Package policies judges: it evaluates Rego, and is the only room that imports OPA.
//
// A [Bundle] is policies and data, named by the SHA-256 of its content. [Compile] makes of it a [Snapshot], which never
// changes: the same input under the same bundle and the same [Engine] gives the same bytes, today and when the decision
// is replayed. A [Store] holds the one snapshot in force behind an atomic pointer.
//
// The law of this package is that silence is not consent. A policy that fails, takes too long, has no answer or answers
// in the wrong shape is an error with a code of package wire, and the caller denies. Builtins that look at a clock, a
// network, a random source or the process are not there: a bundle that names one does not compile.
//
// docs/policy.md describes the entry points, their input and the bundle that is used where a team has not written one.
package policies
