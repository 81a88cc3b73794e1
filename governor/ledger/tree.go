package ledger

import (
	"bytes"
	"fmt"
	"slices"

	"go.etcd.io/bbolt"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/handoff-governor/handoff-governor/handoff/entry"
)

// A tile holds the hashes of 256 neighbours of one level; the hash over them is one hash of the tile above.
const (
	tileHeight = 8
	tileWidth  = 1 << tileHeight
	tileBytes  = tileWidth * tlog.HashSize
)

// tree is the right edge of the Merkle tree: all that is needed to add entries and to know the root.
type tree struct {
	size uint64
	// edge[l] is the part that exists of the last tile of level l: hashes, one after the other. Bytes once written are
	// never changed, so that copies may share them.
	edge [][]byte
	full []fullTile // completed since the tree was loaded or cloned
}

type fullTile struct {
	level int
	n     uint64
	data  []byte
}

func (t *tree) clone() tree { return tree{size: t.size, edge: slices.Clone(t.edge)} }

// add puts a leaf at the end.
func (t *tree) add(h tlog.Hash) {
	for level := 0; ; level++ {
		if level == len(t.edge) {
			t.edge = append(t.edge, nil)
		}
		if t.edge[level] == nil {
			t.edge[level] = make([]byte, 0, tileBytes)
		}
		t.edge[level] = append(t.edge[level], h[:]...)
		if len(t.edge[level]) < tileBytes {
			break
		}
		t.full = append(t.full, fullTile{level, t.size >> (tileHeight * (level + 1)), t.edge[level]})
		h = hashOver(t.edge[level])
		t.edge[level] = nil
	}
	t.size++
}

// hashOver is the RFC 6962 hash over 2^k hashes.
func hashOver(hashes []byte) tlog.Hash {
	if len(hashes) == tlog.HashSize {
		return tlog.Hash(hashes)
	}
	half := len(hashes) / 2
	return tlog.NodeHash(hashOver(hashes[:half]), hashOver(hashes[half:]))
}

// root is the RFC 6962 tree hash. What each level holds are complete subtrees, smaller ones to the right; the hash over
// them grows from the right.
func (t *tree) root() tlog.Hash {
	var root tlog.Hash
	started := false
	for _, hashes := range t.edge {
		for len(hashes) > 0 {
			count := len(hashes) / tlog.HashSize
			block := count & -count * tlog.HashSize // the rightmost complete subtree
			h := hashOver(hashes[len(hashes)-block:])
			if started {
				h = tlog.NodeHash(h, root)
			}
			root, started = h, true
			hashes = hashes[:len(hashes)-block]
		}
	}
	if !started {
		root, _ = tlog.TreeHash(0, nil)
	}
	return root
}

// put stores what changed since the tree had before leaves.
func (t *tree) put(tx *bbolt.Tx, before uint64) error {
	tiles := tx.Bucket(bucketTile)
	for _, f := range t.full {
		if err := tiles.Put(tileKey(f.level, f.n), f.data); err != nil {
			return err
		}
	}
	t.full = nil
	for level, hashes := range t.edge {
		shift := tileHeight * level
		if len(hashes) == 0 || t.size>>shift == before>>shift {
			continue
		}
		if err := tiles.Put(tileKey(level, t.size>>(shift+tileHeight)), hashes); err != nil {
			return err
		}
	}
	return nil
}

// loadTree reads the right edge, and checks the entries under its lowest tile against it: the only ones that a crash
// or a torn copy could have left half written.
func loadTree(tx *bbolt.Tx, size uint64) (tree, error) {
	t := tree{size: size}
	for level := 0; size>>(tileHeight*level) > 0; level++ {
		count := size >> (tileHeight * level)
		width := int(count%tileWidth) * tlog.HashSize
		if width == 0 {
			t.edge = append(t.edge, nil)
			continue
		}
		data := tx.Bucket(bucketTile).Get(tileKey(level, count/tileWidth))
		if len(data) != width {
			return t, fmt.Errorf("%w: of %d entries, tile %d/%d should have %d bytes, and has %d", ErrDamaged, size,
				level, count/tileWidth, width, len(data))
		}
		t.edge = append(t.edge, append(make([]byte, 0, tileBytes), data...))
	}
	if size == 0 {
		return t, nil
	}
	first := (size - 1) / tileWidth * tileWidth
	leaves := tx.Bucket(bucketTile).Get(tileKey(0, first/tileWidth))
	for i := first; i < size; i++ {
		e := tx.Bucket(bucketEntry).Get(u64(i))
		h := entry.LeafHash(e)
		at := (i - first) * tlog.HashSize
		if e == nil || uint64(len(leaves)) < at+tlog.HashSize || !bytes.Equal(leaves[at:at+tlog.HashSize], h[:]) {
			return t, fmt.Errorf("%w: entry %d is not the one that was written", ErrDamaged, i)
		}
	}
	return t, nil
}

// tileKey sorts the tiles by level.
func tileKey(level int, n uint64) []byte { return append([]byte{byte(level)}, u64(n)...) }

// tileHashes reads hashes for proofs out of tiles, whose bytes never change once they are there.
type tileHashes struct{ tiles *bbolt.Bucket }

func (r tileHashes) ReadHashes(indexes []int64) ([]tlog.Hash, error) {
	out := make([]tlog.Hash, len(indexes))
	for i, index := range indexes {
		t := tlog.TileForIndex(tileHeight, index)
		h, err := tlog.HashFromTile(t, r.tiles.Get(tileKey(t.L, uint64(t.N))), index)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrDamaged, err)
		}
		out[i] = h
	}
	return out, nil
}

// SignWith has checkpoints signed by these keys from now on, each by all: so whoever knows one of them can check it, while one
// takes the place of another.
func (l *Ledger) SignWith(signers ...note.Signer) error {
	for _, s := range signers {
		if s.Name() != l.cfg.LogName {
			return fmt.Errorf("a checkpoint key is named %q, the log %q: they must be the same", s.Name(), l.cfg.LogName)
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.signers, l.checkpoint, l.signed = signers, nil, 0
	return nil
}

func (l *Ledger) signs() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.signers) > 0
}

// Checkpoint returns the signed checkpoint of all entries (C2SP tlog-checkpoint, a signed note). Without a signer it is
// the newest that the file holds, which may be of fewer entries, or [ErrNotFound].
func (l *Ledger) Checkpoint() ([]byte, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.signers) == 0 {
		if l.checkpoint == nil {
			return nil, fmt.Errorf("%w: no checkpoint was ever signed", ErrNotFound)
		}
		return l.checkpoint, nil
	}
	if l.checkpoint != nil && l.signed == l.tree.size {
		return l.checkpoint, nil
	}
	c := entry.Checkpoint{Origin: l.cfg.LogName, Size: l.tree.size, Root: l.tree.root()}
	signed, err := note.Sign(&note.Note{Text: c.String()}, l.signers...)
	if err != nil {
		return nil, fmt.Errorf("signing the checkpoint of %d entries: %w", c.Size, err)
	}
	l.checkpoint, l.signed = signed, c.Size
	return signed, nil
}

// Inclusion proves that the entry index is in the tree of the first size entries (RFC 6962 section 2.1.1). Check it
// with [entry.CheckInclusion].
func (l *Ledger) Inclusion(index, size uint64) (proof tlog.RecordProof, err error) {
	if all := l.Size(); index >= size || size > all {
		return nil, fmt.Errorf("%w: entry %d in a tree of %d; there are %d entries", ErrNotFound, index, size, all)
	}
	err = l.view(func(tx *bbolt.Tx) error {
		proof, err = tlog.ProveRecord(int64(size), int64(index), tileHashes{tx.Bucket(bucketTile)})
		return err
	})
	return proof, err
}

// Consistency proves that the tree of the first old entries is a prefix of the tree of the first size (RFC 6962 section
// 2.1.2). Check it with [entry.CheckConsistency].
func (l *Ledger) Consistency(old, size uint64) (proof tlog.TreeProof, err error) {
	if all := l.Size(); old == 0 || old > size || size > all {
		return nil, fmt.Errorf("%w: a tree of %d in a tree of %d; there are %d entries", ErrNotFound, old, size, all)
	}
	err = l.view(func(tx *bbolt.Tx) error {
		proof, err = tlog.ProveTree(int64(size), int64(old), tileHashes{tx.Bucket(bucketTile)})
		return err
	})
	return proof, err
}

// LeafHash returns the hash that was stored with an entry. A verifier compares it with the entry's own, to name the one
// that was changed.
func (l *Ledger) LeafHash(index uint64) (h tlog.Hash, err error) {
	if index >= l.Size() {
		return h, fmt.Errorf("entry %d: %w", index, ErrNotFound)
	}
	err = l.view(func(tx *bbolt.Tx) error {
		hashes, err := tileHashes{tx.Bucket(bucketTile)}.ReadHashes([]int64{tlog.StoredHashIndex(0, int64(index))})
		if err == nil {
			h = hashes[0]
		}
		return err
	})
	return h, err
}
