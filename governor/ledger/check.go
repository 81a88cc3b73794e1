package ledger

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"

	"go.etcd.io/bbolt"

	"github.com/handoff-governor/handoff-governor/handoff/entry"
)

// Check reads all of the file and finds what is wrong with it beside the record: pages that do not fit together, a header with a
// wrong checksum, tiles that are not over the entries, bodies that are missing among others, a cache that was changed. What
// [entry.Verify] finds, it leaves to that; together they find any byte that was changed, but for those that nobody reads.
//
// The ledger must be open for reading only, so that nothing moves meanwhile. The error is [ErrDamaged] with the page, bucket or
// entry that is wrong first. It reads the file twice, and keeps a byte for each page.
func (l *Ledger) Check(ctx context.Context) error {
	if !l.cfg.ReadOnly {
		return errors.New("a ledger can be checked where it is open for reading only")
	}
	p, file, err := l.pages()
	if err != nil {
		return err
	}
	defer file.Close()
	if p.damaged != nil {
		return p.damaged
	}
	p.leaves = true
	var live liveSum
	keys := map[string]uint64{} // :: bucket → how many
	p.each = func(bucket, key, value []byte) error {
		keys[string(bucket)]++
		if bytes.Equal(bucket, bucketLive) {
			live.toggle(key, value)
		}
		return ctx.Err()
	}
	if err := p.check(); err != nil {
		return err
	}
	if err := l.checkMeta(live); err != nil {
		return err
	}
	tiles, err := l.checkTiles(ctx)
	if err != nil {
		return err
	}
	if n := keys[string(bucketTile)]; n != tiles {
		return fmt.Errorf("%w: it has %d tiles; over %d entries there are %d", ErrDamaged, n, l.Size(), tiles)
	}
	return l.checkBodies(ctx, keys[string(bucketBody)])
}

// checkMeta compares what is noted beside the entries with what it is about: the sum over the live bucket, and the bundle that was
// put in force last.
func (l *Ledger) checkMeta(live liveSum) error {
	return l.view(func(tx *bbolt.Tx) error {
		meta := tx.Bucket(bucketMeta)
		if mark := meta.Get(metaWatermark); mark != nil {
			live.toggle(nil, mark)
		}
		if want, summed := liveSumOf(meta); summed && want != live {
			return fmt.Errorf("%w: bucket %q does not have its sum; a governor that starts makes it anew", ErrDamaged, bucketLive)
		}
		if digest := meta.Get(metaBundle); digest != nil && tx.Bucket(bucketBundle).Get(digest) == nil {
			return fmt.Errorf("%w: the bundle in force, %q, is not kept", ErrDamaged, digest)
		}
		return nil
	})
}

// pages opens the file beside bbolt.
func (l *Ledger) pages() (p *pages, file *os.File, err error) {
	file, err = os.Open(l.db.Path())
	if err != nil {
		return nil, nil, err
	}
	info, err := file.Stat()
	if err != nil {
		return nil, nil, errors.Join(err, file.Close())
	}
	p = &pages{file: file, size: info.Size(), pageSize: l.db.Info().PageSize}
	p.header, p.damaged = newestHeader(file, p.pageSize)
	return p, file, nil
}

// checkTiles compares what is stored of the Merkle tree with the entries, and counts the tiles.
func (l *Ledger) checkTiles(ctx context.Context) (n uint64, err error) {
	compare := func(level int, number uint64, want []byte) error {
		n++
		got, err := l.get(bucketTile, tileKey(level, number), func() string { return "a tile" })
		if err != nil && !errors.Is(err, ErrNotFound) {
			return err
		}
		if !bytes.Equal(got, want) {
			return fmt.Errorf("%w: tile %d/%d is not over its entries", ErrDamaged, level, number)
		}
		return nil
	}
	var t tree
	for encoded, err := range l.Entries(0) {
		if err == nil {
			err = ctx.Err()
		}
		if err != nil {
			return n, err
		}
		t.add(entry.LeafHash(encoded))
		for _, f := range t.full {
			if err := compare(f.level, f.n, f.data); err != nil {
				return n, err
			}
		}
		t.full = t.full[:0]
	}
	for level, hashes := range t.edge {
		if len(hashes) == 0 {
			continue
		}
		if err := compare(level, t.size>>(tileHeight*(level+1)), hashes); err != nil {
			return n, err
		}
	}
	return n, nil
}

// checkBodies finds bodies that are missing, though retention, which takes the oldest first, has left older ones, and such that
// belong to nothing.
func (l *Ledger) checkBodies(ctx context.Context, stored uint64) error {
	first, err := l.firstBody()
	if err != nil {
		return err
	}
	found := uint64(0)
	for encoded, err := range l.Entries(min(first, l.Size())) {
		if err == nil {
			err = ctx.Err()
		}
		if err != nil {
			return err
		}
		e, err := entry.Decode(encoded)
		if err != nil {
			return nil // Verify says which, and why
		}
		if _, hash := e.BodyHash(); hash == "" {
			continue
		}
		if _, _, err := l.Body(e.Index); err != nil {
			return fmt.Errorf("%w: the body of entry %d is missing, and there are older ones", ErrDamaged, e.Index)
		}
		found++
	}
	if found != stored {
		return fmt.Errorf("%w: it has %d bodies, and %d that belong to an entry", ErrDamaged, stored, found)
	}
	return nil
}

// liveSum is a sum over what the live bucket holds, watermark and all, in whatever order it was put there. It tells a damaged
// cache from a whole one; whoever wants to write a wrong one can.
type liveSum [sha256.Size]byte

// toggle adds an item, or takes it away.
func (s *liveSum) toggle(key, value []byte) {
	h := sha256.New()
	h.Write(u64(uint64(len(key))))
	h.Write(key)
	h.Write(value)
	for i, b := range h.Sum(nil) {
		s[i] ^= b
	}
}
