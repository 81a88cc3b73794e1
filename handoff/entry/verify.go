package entry

import (
	"context"
	"crypto/ed25519"
	"fmt"
	"iter"
	"time"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/handoff-governor/handoff-governor/handoff/aat"
)

// Source is a log to verify. Nothing that it says is believed.
type Source interface {
	// Checkpoint returns the log's newest signed checkpoint.
	Checkpoint() ([]byte, error)
	// Entries yields the encoded entries from an index on, to the last.
	Entries(from uint64) iter.Seq2[[]byte, error]
}

// BodySource is a [Source] that also has the tasks, results and objectives which retention has not deleted yet.
type BodySource interface {
	// Body returns the salt and the bytes stored beside an entry. An error is taken for their absence.
	Body(index uint64) (salt, data []byte, err error)
}

// LeafSource is a [Source] that also has the hashes that were stored with the entries. They prove nothing, but where an
// entry was changed later they tell which one.
type LeafSource interface {
	LeafHash(index uint64) (tlog.Hash, error)
}

// IndexSource is a [Source] that also finds entries by ID and by session. Its index proves nothing, but a governor that is
// misled by it would decide an ID twice.
type IndexSource interface {
	// Lookup finds the entry that used up an ID.
	Lookup(id string) (index uint64, found bool, err error)
	// Newest finds the newest entry of a session.
	Newest(session string) (index uint64, found bool, err error)
}

// Config says whom to believe.
type Config struct {
	// LogKey is the key that signs the log's checkpoints, a note verifier key (`name+hash+base64`). Required.
	LogKey string
	// PastLogKeys are those that signed before it: checkpoints of then are believed, too.
	PastLogKeys []string
	// Issuers are the keys that sign roots, past ones too. Required where the log has sessions.
	Issuers []aat.Anchor
	// Governors are the governor's keys, past ones too. Empty: whichever the admitted offers name, so that whoever wrote
	// the log is believed about those.
	Governors []ed25519.PublicKey
	// Seen are signed checkpoints of the log that the verifier was given before. The log must still hold them: one that
	// was rewritten, or forked, does not.
	Seen [][]byte
	// Skew is how far in the future of an entry a link in it may have been issued. Zero: 60 seconds.
	Skew time.Duration
}

// Report tells what was verified.
type Report struct {
	Checkpoint  Checkpoint
	Entries     uint64 // read, those that the checkpoint does not cover included
	Unsigned    uint64 // of them, beyond the checkpoint: they may still change
	Kinds       map[Kind]uint64
	First, Last time.Time
	Links       uint64 // AAT links verified, with the payloads of claims
	Results     uint64 // result statements verified
	Bodies      uint64 // stored bodies that match their hash
	BodiesGone  uint64 // bodies that are not there, or no more
	// Bundles are the digests of the bundles that were in force, with the entry that named each first. What is kept under them is
	// for whoever knows what a bundle is to check.
	Bundles map[string]uint64
}

// Problem is the first thing found wrong with a log.
type Problem struct {
	Index  uint64 // of the entry
	Field  string // the member that is wrong, as in "claimed.payload.exp"; empty: the entry's bytes as a whole
	Reason string
}

func (p *Problem) Error() string {
	if p.Field == "" {
		return fmt.Sprintf("entry %d: %s", p.Index, p.Reason)
	}
	return fmt.Sprintf("entry %d, %s: %s", p.Index, p.Field, p.Reason)
}

// Verify reads a whole log and tells whether it is one that an honest governor could have written and has signed:
//
//   - its entries are canonical, gapless, in the order of time, and point back to where they should;
//   - every root is signed by its issuer, every offer by the holder of the grant it was made under, every result by the
//     holder of the grant that made it; every claim's payload follows from its offer; and no link is wider, longer or
//     deeper than the one before it, nor than what was decided;
//   - every decision agrees with the answer it records, and names the bundle in force;
//   - nothing was claimed that was not admitted, answered that was not claimed, or done under a grant that had ended; no
//     task had two live grants or two results; no ID was used twice;
//   - whoever was withdrawn had nothing left, and did nothing until it was restored;
//   - bodies that are still there have the hashes that were signed;
//   - where src is an [IndexSource], every ID and every session is found at its entry;
//   - the Merkle tree over the entries is the one that the log signed, and grew from those in [Config.Seen].
//
// The error is a *[Problem] where the log is at fault; the report then tells how far it got. What only policy can tell,
// that each decision comes out the same again, is for a replay. It uses one core, reads every entry once, and keeps
// about 200 bytes for each ID ever used.
func Verify(ctx context.Context, src Source, cfg Config) (Report, error) {
	signed, err := src.Checkpoint()
	if err != nil {
		return Report{}, fmt.Errorf("reading the checkpoint: %w", err)
	}
	checkpoint, err := cfg.OpenCheckpoint(signed)
	if err != nil {
		return Report{}, err
	}
	report := Report{Checkpoint: checkpoint, Kinds: map[Kind]uint64{}, Bundles: map[string]uint64{}}
	milestones, err := cfg.milestones(checkpoint)
	if err != nil {
		return report, err
	}
	chains := newChains(cfg, &report)
	chains.index, _ = src.(IndexSource)
	leaves, _ := src.(LeafSource)
	bodies, _ := src.(BodySource)
	var grown tree
	if err := milestones.check(&grown); err != nil {
		return report, err
	}
	for encoded, err := range src.Entries(0) {
		if err == nil {
			err = ctx.Err()
		}
		if err != nil {
			return report, fmt.Errorf("reading entry %d: %w", grown.size, err)
		}
		index := grown.size
		if report.Entries++; index >= checkpoint.Size {
			report.Unsigned++
		}
		if err := chains.read(index, encoded, bodies); err != nil {
			return report, err
		}
		hash := LeafHash(encoded)
		if leaves != nil {
			if stored, err := leaves.LeafHash(index); err != nil || stored != hash {
				return report, &Problem{index, "", "its bytes do not have the hash that was stored with it"}
			}
		}
		grown.add(hash)
		if err := milestones.check(&grown); err != nil {
			return report, err
		}
	}
	if grown.size < checkpoint.Size {
		return report, &Problem{grown.size, "", fmt.Sprintf("is missing: the log signed %d entries", checkpoint.Size)}
	}
	return report, chains.heads(grown.size)
}

// milestones are the sizes at which the tree's hash is known.
type milestones map[uint64]milestone

type milestone struct {
	root tlog.Hash
	seen bool // before this verification
}

// OpenCheckpoint reads a checkpoint that the log's key has signed, or one before it.
func (cfg Config) OpenCheckpoint(signed []byte) (Checkpoint, error) {
	c, err := OpenCheckpoint(signed, cfg.LogKey)
	for _, key := range cfg.PastLogKeys {
		if err == nil {
			break
		}
		if past, failed := OpenCheckpoint(signed, key); failed == nil {
			c, err = past, nil
		}
	}
	return c, err
}

func (cfg Config) milestones(newest Checkpoint) (milestones, error) {
	m := milestones{newest.Size: {root: newest.Root}}
	for _, signed := range cfg.Seen {
		c, err := cfg.OpenCheckpoint(signed)
		switch {
		case err != nil:
			return nil, fmt.Errorf("a checkpoint seen before: %w", err)
		case c.Size > newest.Size:
			return nil, &Problem{newest.Size, "", fmt.Sprintf("is missing: the log once signed %d entries", c.Size)}
		}
		if known, ok := m[c.Size]; ok && known.root != c.Root {
			return nil, &Problem{c.Size, "", "two histories: the log signed two different trees of this size"}
		}
		m[c.Size] = milestone{root: c.Root, seen: true}
	}
	return m, nil
}

func (m milestones) check(t *tree) error {
	want, ok := m[t.size]
	switch {
	case !ok || want.root == t.root():
		return nil
	case want.seen:
		return &Problem{t.size, "", "the entries before it are not those that the log once signed: it was rewritten"}
	}
	return &Problem{t.size, "", "the entries before it are not those that the log signed: one of them was changed"}
}

// tree computes the root of a growing RFC 6962 tree. It holds the roots of its complete subtrees, the largest first: as
// many as size has bits set.
type tree struct {
	size  uint64
	roots []tlog.Hash
}

func (t *tree) add(h tlog.Hash) {
	for n := t.size; n&1 == 1; n >>= 1 {
		last := len(t.roots) - 1
		h = tlog.NodeHash(t.roots[last], h)
		t.roots = t.roots[:last]
	}
	t.roots = append(t.roots, h)
	t.size++
}

func (t *tree) root() tlog.Hash {
	if t.size == 0 {
		empty, _ := tlog.TreeHash(0, nil)
		return empty
	}
	last := len(t.roots) - 1
	h := t.roots[last]
	for i := last - 1; i >= 0; i-- {
		h = tlog.NodeHash(t.roots[i], h)
	}
	return h
}
