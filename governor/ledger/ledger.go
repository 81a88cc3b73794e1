package ledger

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"
	"golang.org/x/mod/sumdb/note"

	"github.com/handoff-governor/handoff-governor/handoff/entry"
	"github.com/handoff-governor/handoff-governor/handoff/wire"
)

// Why a ledger refuses. Each comes wrapped with what to do about it.
var (
	// When opening.
	ErrInUse     = errors.New("ledger is in use by another process")
	ErrNotLedger = errors.New("file is not a ledger")
	ErrNewer     = errors.New("ledger has a newer format than this program knows")
	ErrOtherLog  = errors.New("ledger belongs to another log")

	// When reading.
	ErrNotFound = errors.New("not in the ledger")
	ErrDamaged  = errors.New("ledger is damaged")

	// When writing.
	ErrFenced   = errors.New("ledger has moved on")
	ErrIDUsed   = errors.New("ID was used before")
	ErrReadOnly = errors.New("ledger is open for reading only")
	ErrBroken   = errors.New("ledger takes no more entries: a commit failed half way")
	ErrClosed   = errors.New("ledger is closed")
)

// formatVersion is raised whenever an older program would misread the file, or leave it so that this one does. What each changed:
//
//	1  as the package says, without meta's "live"
//	2  a sum over the live bucket, which tells a damaged cache from a whole one
const formatVersion = 2

// Sizes of the file.
const (
	pageSize = 16 << 10 // a dozen entries a page, so that a batch touches few
	mapSize  = 64 << 30 // of address space, not memory: below it no write ever waits for a reader
)

// lockWait is how long opening waits for another process to let the file go: long enough for one that is just ending.
var lockWait = time.Second

var (
	bucketEntry   = []byte("entry")
	bucketTile    = []byte("tile")
	bucketID      = []byte("id")
	bucketSession = []byte("session")
	bucketBody    = []byte("body")
	bucketBundle  = []byte("bundle")
	bucketLive    = []byte("live")
	bucketMeta    = []byte("meta")

	buckets = [][]byte{
		bucketEntry, bucketTile, bucketID, bucketSession, bucketBody, bucketBundle, bucketLive, bucketMeta,
	}

	metaFormat     = []byte("format")
	metaLog        = []byte("log")
	metaCheckpoint = []byte("checkpoint")
	metaWatermark  = []byte("watermark")
	metaLive       = []byte("live")   // sum over the live bucket and the watermark
	metaBundle     = []byte("bundle") // digest of the newest that an entry put in force
)

// Config of a ledger.
type Config struct {
	// LogName is the log's name: the origin of its checkpoints, and the member "log" of its entries. A file is of one
	// log for ever. Empty: whatever log the file is of, which must exist.
	LogName string
	// Signer signs checkpoints; its name must be LogName. Nil: [Ledger.Checkpoint] returns the newest that the file
	// holds. [Ledger.SignWith] replaces it.
	Signer note.Signer
	// ReadOnly opens the file of a governor that does not run. Several processes may do so at once.
	ReadOnly bool
	// Logger gets what an operator should know. Nil: nobody is told.
	Logger *slog.Logger

	// testingOnlyOpenFile sees the file that bbolt opens.
	testingOnlyOpenFile func(string, int, os.FileMode) (*os.File, error)
	// testingOnlyCommitted stands for the last sync of a commit, which can fail when everything is written.
	testingOnlyCommitted func() error
	// testingOnlyNoSync leaves the syncs out, to measure what they cost.
	testingOnlyNoSync bool
}

// Ledger is an open ledger. Its methods are safe for use by several goroutines at once.
type Ledger struct {
	db  *bbolt.DB
	cfg Config
	log *slog.Logger

	size atomic.Uint64 // committed entries

	writing sync.Mutex // held by whoever changes the file
	broken  error      // under writing: why nothing may change it any more
	stuck   bool       // under writing: bbolt gave up in the middle, and holds its lock for ever
	stored  uint64     // under writing: size of the checkpoint in the file

	mu         sync.Mutex // held for moments, never during a commit
	tree       tree       // over the committed entries
	bundle     string     // digest of the newest that a committed entry put in force
	signers    []note.Signer
	checkpoint []byte // the newest signed
	signed     uint64 // its size
}

// Open opens the ledger in the file path, and creates it where there is none. The file has mode 0600 and belongs to one
// process: a second gets [ErrInUse]. The tail of the record is checked; [entry.Verify] checks all of it, and [Ledger.Check] the
// file. Where it is not for reading only, a file of an older format becomes one of this format, in one transaction.
func Open(path string, cfg Config) (_ *Ledger, err error) {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Signer != nil && cfg.Signer.Name() != cfg.LogName {
		return nil, fmt.Errorf("the checkpoint key is named %q, the log %q: they must be the same", cfg.Signer.Name(),
			cfg.LogName)
	}
	l := &Ledger{cfg: cfg, log: cfg.Logger}
	if cfg.Signer != nil {
		l.signers = []note.Signer{cfg.Signer}
	}
	defer func() {
		if err != nil {
			err = fmt.Errorf("opening ledger %s: %w", path, explain(err))
			if l.db != nil {
				l.db.Close()
			}
		}
	}()
	_, missing := os.Stat(path)
	if l.db, err = openFile(path, cfg, lockWait); err != nil {
		return nil, err
	}
	if err := l.followable(); err != nil {
		return nil, err
	}
	if !cfg.ReadOnly {
		if err := l.prepare(); err != nil {
			return nil, err
		}
	}
	if errors.Is(missing, os.ErrNotExist) {
		if err := syncDir(filepath.Dir(path)); err != nil {
			return nil, err
		}
	}
	if err := l.view(l.load); err != nil {
		return nil, err
	}
	return l, nil
}

// InUse tells whether a process has the ledger in the file path open for writing. It does not wait.
func InUse(path string) bool {
	if _, err := os.Stat(path); err != nil {
		return false
	}
	db, err := openFile(path, Config{ReadOnly: true}, time.Nanosecond)
	if err == nil {
		db.Close()
	}
	return errors.Is(err, berrors.ErrTimeout)
}

func openFile(path string, cfg Config, wait time.Duration) (db *bbolt.DB, err error) {
	defer guard(&err)()
	options := &bbolt.Options{
		Timeout:      wait,
		ReadOnly:     cfg.ReadOnly,
		PageSize:     pageSize,
		FreelistType: bbolt.FreelistMapType,
		NoStatistics: true,
		OpenFile:     cfg.testingOnlyOpenFile,
		NoSync:       cfg.testingOnlyNoSync,
	}
	// A read-only file does not grow, and on Windows the map's size is the file's.
	if !cfg.ReadOnly && runtime.GOOS != "windows" {
		options.InitialMmapSize = mapSize
	}
	return bbolt.Open(path, 0o600, options)
}

// explain turns the ways in which opening fails into ours, with what to do.
func explain(err error) error {
	switch {
	case errors.Is(err, berrors.ErrTimeout):
		return fmt.Errorf("%w: ask that one, or stop it first", ErrInUse)
	case errors.Is(err, berrors.ErrInvalid), errors.Is(err, berrors.ErrVersionMismatch):
		return fmt.Errorf("%w (%w): check the path", ErrNotLedger, err)
	case errors.Is(err, berrors.ErrChecksum):
		return fmt.Errorf("%w (%w): restore a snapshot", ErrDamaged, err)
	case errors.Is(err, os.ErrPermission):
		return fmt.Errorf("%w: give this user the file and its directory", err)
	}
	return err
}

// followable reads where the file's pages lead, so that bbolt can follow them to an end.
func (l *Ledger) followable() error {
	p, file, err := l.pages()
	if err != nil {
		return err
	}
	defer file.Close()
	if p.damaged != nil && !l.cfg.ReadOnly && p.tx > createdBy {
		return fmt.Errorf("%w: what was committed last may be gone; restore a backup", p.damaged)
	}
	return p.check()
}

// prepare creates what a new file needs, and brings an older one up to this format. A newer program's is left as it is.
func (l *Ledger) prepare() (err error) {
	defer guard(&err)()
	made := false
	format := uint64(formatVersion)
	err = l.view(func(tx *bbolt.Tx) error {
		meta := tx.Bucket(bucketMeta)
		if made = meta != nil; made {
			format, _ = parseU64(meta.Get(metaFormat))
		}
		return nil
	})
	if err != nil || made && format != 1 {
		return err
	}
	if made {
		return l.db.Update(migrateFrom1)
	}
	return l.db.Update(func(tx *bbolt.Tx) error {
		if name, _ := tx.Cursor().First(); name != nil {
			return fmt.Errorf("%w: it holds other data", ErrNotLedger)
		}
		if l.cfg.LogName == "" {
			return errors.New("a new ledger needs the name of its log")
		}
		for _, name := range buckets {
			if _, err := tx.CreateBucket(name); err != nil {
				return err
			}
		}
		meta := tx.Bucket(bucketMeta)
		if err := meta.Put(metaFormat, u64(formatVersion)); err != nil {
			return err
		}
		if err := meta.Put(metaLog, []byte(l.cfg.LogName)); err != nil {
			return err
		}
		return meta.Put(metaLive, make([]byte, len(liveSum{})))
	})
}

// migrateFrom1 makes a file of format 1 one of format 2.
func migrateFrom1(tx *bbolt.Tx) error {
	meta := tx.Bucket(bucketMeta)
	live := tx.Bucket(bucketLive)
	if live == nil {
		return fmt.Errorf("%w: bucket %q is missing", ErrDamaged, bucketLive)
	}
	var sum liveSum
	if err := live.ForEach(func(k, v []byte) error { sum.toggle(k, v); return nil }); err != nil {
		return err
	}
	if watermark := meta.Get(metaWatermark); watermark != nil {
		sum.toggle(nil, watermark)
	}
	if err := meta.Put(metaLive, sum[:]); err != nil {
		return err
	}
	return meta.Put(metaFormat, u64(2))
}

// load reads what is kept in memory, and checks it against the newest entries.
func (l *Ledger) load(tx *bbolt.Tx) error {
	meta := tx.Bucket(bucketMeta)
	if meta == nil {
		return ErrNotLedger
	}
	switch format, ok := parseU64(meta.Get(metaFormat)); {
	case !ok || format == 0:
		return fmt.Errorf("%w: it names no format", ErrNotLedger)
	case format > formatVersion:
		return fmt.Errorf("%w (%d; this one knows %d): upgrade the program", ErrNewer, format, formatVersion)
	}
	name := string(meta.Get(metaLog))
	if l.cfg.LogName == "" {
		l.cfg.LogName = name
	}
	if name != l.cfg.LogName {
		return fmt.Errorf("%w (%q, not %q): check the path and the configured log name", ErrOtherLog, name,
			l.cfg.LogName)
	}
	for _, b := range buckets {
		if tx.Bucket(b) == nil {
			return fmt.Errorf("%w: bucket %q is missing", ErrDamaged, b)
		}
	}
	var size uint64
	if k, _ := tx.Bucket(bucketEntry).Cursor().Last(); k != nil {
		last, ok := parseU64(k)
		if !ok {
			return fmt.Errorf("%w: an entry's key is not an index", ErrDamaged)
		}
		size = last + 1
	}
	var err error
	if l.tree, err = loadTree(tx, size); err != nil {
		return err
	}
	if stored := meta.Get(metaCheckpoint); stored != nil {
		c, err := entry.ParseCheckpoint(stored)
		if err != nil || c.Origin != name || c.Size > size {
			return fmt.Errorf("%w: the newest checkpoint it signed is not of its %d entries: restore a snapshot",
				ErrDamaged, size)
		}
		l.checkpoint, l.signed, l.stored = bytes.Clone(stored), c.Size, c.Size
	}
	if watermark, _ := parseU64(meta.Get(metaWatermark)); watermark > size {
		return fmt.Errorf("%w: the live state is of %d entries, but there are %d", ErrDamaged, watermark, size)
	}
	l.bundle = string(meta.Get(metaBundle))
	l.size.Store(size)
	return nil
}

// Record is an entry with what is stored beside it.
type Record struct {
	// Entry is the encoded entry, at most [entry.MaxSize] bytes. Its index must be its place.
	Entry []byte
	// IDs are the UUIDs, in lower case, that the entry uses up. [Ledger.Lookup] finds the entry by each.
	IDs []string
	// Session is the UUID of the session that the entry belongs to, or empty.
	Session string
	// Body is the task, result or objective whose hash the entry has, or nil.
	Body *Body
	// Bundle is what an activation puts in force, or nil.
	Bundle *Bundle
}

// Body is what retention may delete.
type Body struct {
	Salt []byte // [wire.SaltSize] bytes
	Data []byte
}

// Bundle is a policy bundle. One that is stored already is not stored again.
type Bundle struct {
	Digest string
	Bytes  []byte
}

// Append makes batch durable as the entries from next on: all of it or nothing. It MUST have returned nil before
// anything that follows from the batch leaves the process.
//
// It fails with [ErrFenced] where the ledger's size is not next, and with [ErrIDUsed] where an ID was used before: then
// nothing has changed. Where the disk refuses (full, for one), nothing has changed either, and the same batch may be
// appended again. Only when the commit's outcome is unknown does it fail with [ErrBroken], as does every later write
// until the ledger is opened anew. A commit that has begun ignores ctx.
func (l *Ledger) Append(ctx context.Context, next uint64, batch []Record) error {
	prepared, err := prepareBatch(batch)
	if err != nil {
		return err
	}
	l.writing.Lock()
	defer l.writing.Unlock()
	if err := ctx.Err(); err != nil {
		return err
	}
	if size := l.size.Load(); next != size {
		return fmt.Errorf("%w: it has %d entries, not %d", ErrFenced, size, next)
	}
	if len(batch) == 0 {
		return nil
	}
	l.mu.Lock()
	grown := l.tree.clone()
	l.mu.Unlock()
	err = l.update(func(tx *bbolt.Tx) error { return putBatch(tx, &grown, next, prepared) })
	if err != nil {
		return fmt.Errorf("appending %d entries: %w", len(batch), err)
	}
	l.mu.Lock()
	l.tree = grown
	for _, r := range batch {
		if r.Bundle != nil {
			l.bundle = r.Bundle.Digest
		}
	}
	l.mu.Unlock()
	l.size.Store(grown.size)
	return nil
}

// prepared is a record as it is stored.
type prepared struct {
	Record
	ids     [][]byte
	session []byte
	body    []byte
}

// prepareBatch does everything that can fail, or takes time, before the file is locked.
func prepareBatch(batch []Record) ([]prepared, error) {
	out := make([]prepared, len(batch))
	for i, r := range batch {
		p := prepared{Record: r}
		if len(r.Entry) == 0 || len(r.Entry) > entry.MaxSize {
			return nil, fmt.Errorf("an entry has %d bytes; it must have 1 to %d", len(r.Entry), entry.MaxSize)
		}
		for _, id := range r.IDs {
			key, err := uuidKey(id)
			if err != nil {
				return nil, err
			}
			p.ids = append(p.ids, key)
		}
		if r.Session != "" {
			key, err := uuidKey(r.Session)
			if err != nil {
				return nil, err
			}
			p.session = key
		}
		if r.Body != nil {
			if len(r.Body.Salt) != wire.SaltSize {
				return nil, fmt.Errorf("a body's salt has %d bytes; it must have %d", len(r.Body.Salt), wire.SaltSize)
			}
			p.body = append(append(make([]byte, 0, wire.SaltSize+len(r.Body.Data)), r.Body.Salt...), r.Body.Data...)
		}
		out[i] = p
	}
	return out, nil
}

func putBatch(tx *bbolt.Tx, tree *tree, next uint64, batch []prepared) error {
	entries, ids, sessions := tx.Bucket(bucketEntry), tx.Bucket(bucketID), tx.Bucket(bucketSession)
	bodies, bundles := tx.Bucket(bucketBody), tx.Bucket(bucketBundle)
	// Keys that only ever come at the end leave full pages behind; nearly ordered ones need a little room.
	entries.FillPercent, bodies.FillPercent, ids.FillPercent, sessions.FillPercent = 1, 1, 0.9, 0.9
	heads := map[[16]byte][]byte{}
	for i, p := range batch {
		index := u64(next + uint64(i))
		if err := entries.Put(index, p.Entry); err != nil {
			return err
		}
		tree.add(entry.LeafHash(p.Entry))
		for _, id := range p.ids {
			if used := ids.Get(id); used != nil {
				at, _ := parseU64(used)
				return fmt.Errorf("%w: %s, by entry %d", ErrIDUsed, uuid.UUID(id), at)
			}
			if err := ids.Put(id, index); err != nil {
				return err
			}
		}
		if p.session != nil {
			heads[[16]byte(p.session)] = index
		}
		if p.body != nil {
			if err := bodies.Put(index, p.body); err != nil {
				return err
			}
		}
		if b := p.Bundle; b != nil {
			if bundles.Get([]byte(b.Digest)) == nil {
				if err := bundles.Put([]byte(b.Digest), b.Bytes); err != nil {
					return err
				}
			}
			if err := tx.Bucket(bucketMeta).Put(metaBundle, []byte(b.Digest)); err != nil {
				return err
			}
		}
	}
	for session, index := range heads {
		if err := sessions.Put(session[:], index); err != nil {
			return err
		}
	}
	return tree.put(tx, next)
}

// PutLive stores the governor's cache of its own state: changes holds the keys that changed, with nil for those that
// are gone, and watermark is the number of entries that the state stands on. It is a commit of its own, and stores a
// fresh checkpoint, so that after a crash the file can be verified where it lies.
func (l *Ledger) PutLive(watermark uint64, changes map[string][]byte) error {
	if l.signs() {
		if _, err := l.Checkpoint(); err != nil {
			return err
		}
	}
	l.writing.Lock()
	defer l.writing.Unlock()
	if size := l.size.Load(); watermark > size {
		return fmt.Errorf("live state of %d entries, but there are %d", watermark, size)
	}
	return l.update(func(tx *bbolt.Tx) error { return putLive(tx, changes, u64(watermark)) })
}

// NoteLive stores keys of that cache which the state does not follow from, so that they may be newer than its watermark. It is
// a commit of its own.
func (l *Ledger) NoteLive(changes map[string][]byte) error {
	l.writing.Lock()
	defer l.writing.Unlock()
	return l.update(func(tx *bbolt.Tx) error { return putLive(tx, changes, nil) })
}

// liveSumOf is the sum that is kept of the live bucket, if that has one. What is kept in a file of today's format always has.
func liveSumOf(meta *bbolt.Bucket) (sum liveSum, summed bool) {
	copy(sum[:], meta.Get(metaLive))
	format, _ := parseU64(meta.Get(metaFormat))
	return sum, format > 1 || meta.Get(metaLive) != nil
}

// putLive changes the live bucket and its sum. A watermark of nil stays as it is.
func putLive(tx *bbolt.Tx, changes map[string][]byte, watermark []byte) error {
	live, meta := tx.Bucket(bucketLive), tx.Bucket(bucketMeta)
	sum, _ := liveSumOf(meta)
	replace := func(bucket *bbolt.Bucket, at, key, value []byte) error {
		if old := bucket.Get(at); old != nil {
			sum.toggle(key, old)
		}
		if value == nil {
			return bucket.Delete(at)
		}
		sum.toggle(key, value)
		return bucket.Put(at, value)
	}
	for k, v := range changes {
		if err := replace(live, []byte(k), []byte(k), v); err != nil {
			return err
		}
	}
	if watermark != nil {
		if err := replace(meta, metaWatermark, nil, watermark); err != nil {
			return err
		}
	}
	return meta.Put(metaLive, sum[:])
}

// DropBodies deletes bodies of entries older than before, at most limit of them, oldest first, and tells how many. The
// entries keep their hashes, and every proof holds.
//
// Deleting a little and often keeps commits quick: the pages of what is deleted are listed in every commit until new
// entries have taken them. A thousand each second is no burden.
func (l *Ledger) DropBodies(before time.Time, limit int) (dropped int, err error) {
	end, err := l.after(before)
	if err != nil {
		return 0, err
	}
	return l.dropSome(end, limit)
}

// dropSome deletes up to limit bodies of entries before end, oldest first.
func (l *Ledger) dropSome(end uint64, limit int) (dropped int, err error) {
	l.writing.Lock()
	defer l.writing.Unlock()
	if k, err := l.firstBody(); err != nil || k >= end {
		return 0, err // no commit for nothing
	}
	err = l.update(func(tx *bbolt.Tx) error {
		c := tx.Bucket(bucketBody).Cursor()
		for k, _ := c.First(); k != nil && dropped < limit; k, _ = c.First() {
			if index, ok := parseU64(k); !ok || index >= end {
				break
			}
			if err := c.Delete(); err != nil {
				return err
			}
			dropped++
		}
		return nil
	})
	if err != nil {
		return 0, err
	}
	return dropped, nil
}

// dropBelow deletes all bodies of entries before end.
func (l *Ledger) dropBelow(ctx context.Context, end uint64) error {
	for {
		n, err := l.dropSome(end, pageEntries)
		if err == nil {
			err = ctx.Err()
		}
		if n == 0 || err != nil {
			return err
		}
	}
}

// Close signs a last checkpoint, so that the file can be verified where it lies, and lets the file go. Reads that are
// under way finish first. Closing twice does no harm.
func (l *Ledger) Close() error {
	l.writing.Lock()
	defer l.writing.Unlock()
	var err error
	if l.broken == nil && !l.cfg.ReadOnly && l.signs() {
		if _, err = l.Checkpoint(); err == nil {
			err = l.update(func(*bbolt.Tx) error { return nil })
		}
	}
	if l.broken == nil {
		l.broken = ErrClosed
	}
	if l.stuck {
		return errors.Join(err, l.broken) // only the end of the process lets the file go
	}
	return errors.Join(err, l.db.Close())
}

// update runs change in a transaction and commits it, with the newest checkpoint that was signed. Called with writing
// held.
func (l *Ledger) update(change func(*bbolt.Tx) error) error {
	switch {
	case l.cfg.ReadOnly:
		return ErrReadOnly
	case l.broken != nil:
		return l.broken
	}
	l.mu.Lock()
	checkpoint, signed := l.checkpoint, l.signed
	l.mu.Unlock()
	committing := 0 // the transaction's ID, once only the commit is left
	err := func() (err error) {
		defer guard(&err)()
		return l.db.Update(func(tx *bbolt.Tx) error {
			if err := change(tx); err != nil {
				return err
			}
			if len(checkpoint) > 0 && signed != l.stored { // there is none between new signers and their first
				if err := tx.Bucket(bucketMeta).Put(metaCheckpoint, checkpoint); err != nil {
					return err
				}
			}
			committing = tx.ID()
			return nil
		})
	}()
	if err == nil && l.cfg.testingOnlyCommitted != nil {
		err = l.cfg.testingOnlyCommitted()
	}
	l.stuck = errors.Is(err, ErrDamaged)
	switch {
	case err == nil:
		l.stored = signed
		return nil
	case l.stuck, committing != 0 && !l.unchanged(committing):
		l.broken = fmt.Errorf("%w (%w): end the process, check the disk, and start again", ErrBroken, err)
		l.log.Error("the ledger takes no more entries", "err", l.broken)
		return l.broken
	}
	return err
}

// unchanged tells whether the file certainly does not have the transaction whose commit failed: whether it failed
// before the page that makes it so was written.
func (l *Ledger) unchanged(tx int) bool {
	newest := tx
	err := l.view(func(tx *bbolt.Tx) error {
		newest = tx.ID()
		return nil
	})
	return err == nil && newest < tx
}

func u64(v uint64) []byte { return binary.BigEndian.AppendUint64(nil, v) }

func parseU64(b []byte) (uint64, bool) {
	if len(b) != 8 {
		return 0, false
	}
	return binary.BigEndian.Uint64(b), true
}

// uuidKey is the key of a UUID. Its bytes sort as its time does.
func uuidKey(id string) ([]byte, error) {
	u, err := uuid.Parse(id)
	if err != nil || u.String() != id {
		return nil, fmt.Errorf("%.50q is not a lower-case UUID", id)
	}
	return u[:], nil
}

// guard makes an error of the panic, or the fault, with which bbolt answers a damaged file.
func guard(err *error) func() {
	before := debug.SetPanicOnFault(true)
	return func() {
		debug.SetPanicOnFault(before)
		if p := recover(); p != nil {
			*err = fmt.Errorf("%w (%v): restore a snapshot", ErrDamaged, p)
		}
	}
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
