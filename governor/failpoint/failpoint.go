// Package failpoint stops the process between two steps of the governor, as a power switch would, so that a test can see
// what the next start makes of it. Only programs that are built with the tag failpoints have any: in all others At is
// nothing.
//
// A failpoint is a step and a kind, as in recorded/claimed: when a batch with such an entry has come through this step.
// The steps of every batch, in their order:
//
//	ordered    every proposal had its turn; nothing is written
//	recorded   the entries are durable; nothing has left
//	revoked    revocations are out
//	delivered  notices, verdicts and results are in their inboxes
//	receipted  receipts are out
//	settled    offers and results have left their stream, and whoever waits is answered
//
// Others are of one moment, and have no kind: republished, when a start has published again what may be lost; flushed, when
// the live state is stored.
//
// It is this small because it does one thing. gofail can do more, but rewrites the sources for it.
package failpoint
