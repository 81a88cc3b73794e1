// Package devspiffe is a SPIFFE Workload API for development: it lets everything run with real SVIDs on a machine
// where no SPIRE is installed. Unmodified SPIFFE clients work against it; only the value of SPIFFE_ENDPOINT_SOCKET
// differs from production.
//
// Its one weakness is its attestation. Each identity has a unix socket of its own, and whoever can open the socket
// gets the identity: holding the socket is holding the identity. The sockets are 0600 in a directory 0700, so this
// separates users, and nothing separates the processes of one user. Run SPIRE where that matters.
//
// An [Authority] has root keys (one for X.509, one for JWT) in its directory, and keeps them over restarts. Roots are
// replaced at half their life, and the next root is in everybody's bundle a while before it signs. Everything is
// made when it is asked for, and remade when half its life has passed: there is no background work, only the streams
// that clients hold open.
//
//	<dir>/authorities.pem     root certificates and their keys, 0600
//	<dir>/withdrawn           names of the withdrawn identities, one a line
//	<dir>/sock/planner.sock   the Workload API of spiffe://<trust domain>/agent/planner
package devspiffe
