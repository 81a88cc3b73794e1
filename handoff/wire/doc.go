// Package wire holds what agents, guards, operators and the governor must spell alike: subjects, headers, codes and
// the JSON bodies of requests and answers. It has no behaviour beyond parsing and refusing, and needs neither NATS nor
// OPA nor bbolt. docs/wire.md shows every message with an example.
package wire
