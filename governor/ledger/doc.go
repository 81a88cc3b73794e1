// Package ledger keeps the governor's record: entries in one order for ever, the Merkle tree over them, and beside them
// what must be found again.
//
// A batch of entries becomes durable in one transaction with one commit, or not at all. A caller MUST NOT let any effect
// of an entry out before [Ledger.Append] has returned nil for it.
//
// The record is one bbolt file. Its buckets:
//
//	entry    index (u64)            → the entry's bytes, package handoff/entry
//	tile     level (u8), n (u64)    → up to 256 hashes of the RFC 6962 tree, as in C2SP tlog-tiles
//	id       UUID (16 bytes)        → index of the entry that used it up (u64)
//	session  UUID (16 bytes)        → index of its newest entry (u64)
//	body     index (u64)            → salt ‖ body, deletable without breaking a proof
//	bundle   digest                 → the bundle's bytes
//	live     the governor's choice  → the governor's choice: a cache of its state, with a watermark
//	meta     format, log, checkpoint, watermark
//
// Integers are big-endian. Everything grows at its right edge only: entries, tiles and bodies by index, IDs and sessions
// because a UUIDv7 begins with its time. So a commit touches a few pages however long the record is; docs/ledger.md has
// the measurements, and what a random key would cost.
//
// The tree is stored as tiles, rather than hash by hash: two puts for a batch instead of two for an entry, and a third
// of the bytes.
//
// This is the only package that imports bbolt.
package ledger
