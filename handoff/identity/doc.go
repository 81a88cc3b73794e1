// Package identity knows who is who: it turns SPIFFE IDs into agent names and back, checks the SVIDs that peers
// present, and makes TLS configurations that are safe with short-lived certificates.
//
// A [Name] is the form of a SPIFFE ID that NATS subjects, tokens and policy use. The mapping is injective and
// reversible, so a name proves as much as the ID does. A [Peer] exists only after a check: [VerifyX509] and
// [VerifyJWT] make them, and so do the TLS configurations for their Authorizers.
//
// Who calls may rely on this: an error means refused, and a refused peer has no name. Errors are one of [ErrName],
// [ErrRole] and [ErrUnauthenticated], to be read with errors.Is; the text says what the person should do.
package identity
