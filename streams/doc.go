// Package streams carries the governor's messages. It embeds a NATS server with JetStream in which every identity has
// an account of its own, and so can reach nothing but the governor: the server writes the sender's name into every
// subject that crosses, and nobody else can. The governor itself reads and writes through the [Bus].
//
// Start at topology.go: it is the boundary. [Server] keeps it for each connection; [Bus] is what the governor sees.
package streams
