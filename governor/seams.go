package governor

import (
	"context"
	"iter"
	"time"

	"github.com/handoff-governor/handoff-governor/governor/ledger"
	"github.com/handoff-governor/handoff-governor/handoff/aat"
	"github.com/handoff-governor/handoff-governor/handoff/wire"
)

// Bus is the wire as the governor sees it. Its methods are safe for use by several goroutines at once.
type Bus interface {
	// Fetch returns up to max offers and results in the order the stream holds them, as soon as there is one, or none
	// after wait. A message that is not settled comes again.
	Fetch(ctx context.Context, max int, wait time.Duration) ([]wire.Inbound, error)
	// Deliver puts messages into their receivers' inboxes. All are stored when it returns nil. Like Stored, it returns
	// [wire.ErrStreamsLost] where it sees that stored messages are gone.
	Deliver(ctx context.Context, messages []wire.Outbound) error
	// Stored is the sequence number that the newest message in an inbox was given, or that was skipped last. After a loss of
	// power it may be smaller than before.
	Stored(ctx context.Context) (uint64, error)
	// Skip has no message given a sequence number up to a given one, from now on.
	Skip(ctx context.Context, upTo uint64) error
	// Receipt tells an agent what the ledger holds of it. Receipts may get lost: the agent asks again by sending again.
	Receipt(agent string, body []byte) error
	// Revoke publishes a statement on the revocation feed.
	Revoke(body []byte) error
	// Quarantine sets a message aside, with the reason, and settles it.
	Quarantine(ctx context.Context, in wire.Inbound, code wire.Code, reason string) error
	// Quarantined lists up to n messages that were set aside, from a number on, QuarantinedMessage has one of them whole, Requeue
	// has it come again as it was sent, and DropQuarantined deletes it. Refusals are a *[wire.Error].
	Quarantined(ctx context.Context, from uint64, n int) ([]wire.Quarantined, error)
	QuarantinedMessage(ctx context.Context, number uint64) (*wire.Quarantined, error)
	Requeue(ctx context.Context, number uint64) error
	DropQuarantined(ctx context.Context, number uint64) error
	// Trouble is why the streams take nothing at the moment, or nil where that is not known.
	Trouble() error
	// Serve hands every request to handle until ctx ends, with bounded concurrency.
	Serve(ctx context.Context, handle func(context.Context, wire.Request)) error
}

// Log is the durable record. The governor is its only writer.
type Log interface {
	// Append makes batch durable as the entries from next on: all of it or nothing. It fails with [ledger.ErrFenced]
	// where the log's size is not next. It may take tens of milliseconds.
	Append(ctx context.Context, next uint64, batch []ledger.Record) error
	Size() uint64
	Entry(index uint64) ([]byte, error)
	// Entries yields the entries from an index on; Session those of one session, newest first; SessionFrom those from one
	// of them back.
	Entries(from uint64) iter.Seq2[[]byte, error]
	Session(id string) iter.Seq2[[]byte, error]
	SessionFrom(id string, index uint64) iter.Seq2[[]byte, error]
	// PutLive stores changes to a cache of the governor's own making, nil for what is gone, as of the first watermark
	// entries. Live returns it.
	PutLive(watermark uint64, changes map[string][]byte) error
	// NoteLive stores changes that are of no watermark.
	NoteLive(changes map[string][]byte) error
	Live() (watermark uint64, items map[string][]byte, err error)
	// Lookup finds the entry that used up an ID, however long ago.
	Lookup(id string) (index uint64, found bool, err error)
	// Body returns the salt and the bytes stored beside an entry, or an error once retention has dropped them.
	Body(index uint64) (salt, data []byte, err error)
	Bundle(digest string) ([]byte, error)
	Checkpoint() ([]byte, error)
}

// Policy is the policy in force, behind one pointer.
type Policy interface {
	Current() Judge
	// Compile makes a bundle ready without putting it in force.
	Compile(bundle []byte) (Judge, error)
	// Activate puts what Compile returned in force.
	Activate(Judge)
}

// Judge is one bundle, compiled: immutable, and the same answer for the same input for ever.
type Judge interface {
	Digest() string
	Engine() string
	Bytes() []byte
	// Evaluate returns the RFC 8785 bytes of the answer, or a *[wire.Error] with one of the policy codes.
	Evaluate(ctx context.Context, entrypoint string, input []byte) ([]byte, error)
	// ToolLabels are the labels that the bundle's data give to holding a tool.
	ToolLabels(tool string) []string
}

// Issuer signs roots, after judging for itself: the governor is only its courier.
type Issuer interface {
	URI() string
	Keys() []aat.JWK
	// Issue returns the root link of a session. request is the opener's own JSON, a [wire.OpenRequest], whose proofs the
	// issuer checks for itself; terms narrow it further. A refusal is a *[wire.Error].
	Issue(ctx context.Context, opener string, request []byte, terms RootTerms) (root string, err error)
}

// RootTerms is what the governor's policy leaves of a request.
type RootTerms struct {
	Tools    aat.Tools `json:"tools"`
	IssuedAt int64     `json:"issued_at"` // Unix seconds
	Expires  int64     `json:"expires"`   // Unix seconds
	MaxDepth int       `json:"max_depth"`
}
