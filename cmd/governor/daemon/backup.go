package daemon

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/handoff-governor/handoff-governor/governor/ledger"
	"github.com/handoff-governor/handoff-governor/handoff/entry"
	"github.com/handoff-governor/handoff-governor/policies"
)

// A backup is a directory with a ledger and governor.json, as a data directory has them, and with the keys if they were asked for.
// Whatever reads a data directory in which no governor runs reads a backup.

// Trust is whom to believe about the record.
func (e Endpoint) Trust() (entry.Config, error) {
	issuers, err := e.Anchors()
	return entry.Config{LogKey: e.LogKey, PastLogKeys: e.PastLogKeys, Issuers: issuers}, err
}

// Record is a ledger that can be verified: a file, or a running governor's.
type Record interface {
	ledger.Source
	entry.BodySource
}

// Verify verifies a record, the bundles that were in force, and the file where the record is one. What is wrong with it is an
// *[entry.Problem], or a [ledger.ErrDamaged].
func Verify(ctx context.Context, r Record, trust entry.Config) (entry.Report, error) {
	report, err := entry.Verify(ctx, r, trust)
	if err != nil {
		return report, err
	}
	for digest, index := range report.Bundles {
		content, err := r.Bundle(digest)
		if errors.Is(err, ledger.ErrNotFound) {
			return report, &entry.Problem{Index: index, Field: "bundle.digest", Reason: "the bundle is not kept"}
		}
		if err != nil {
			return report, err
		}
		if bundle, err := policies.Parse(content); err != nil || bundle.Digest() != digest {
			return report, &entry.Problem{Index: index, Field: "bundle.digest", Reason: "the bundle that is kept was changed"}
		}
	}
	if file, ok := r.(*ledger.Ledger); ok {
		return report, file.Check(ctx)
	}
	return report, nil
}

// Backup brings the backup in the directory to up to the record src, of the data directory from. Its cost is that of what is new.
// Keys go with it where keys says so. An error of the kind [ledger.ErrForked] tells that the record is not the one of the backup
// any more. Far is told of the number of entries as they are copied.
func Backup(ctx context.Context, from, to string, src ledger.Source, keys bool, far func(entries uint64)) (copied ledger.Followed, err error) {
	endpoint, err := LoadEndpoint(from)
	if err != nil {
		return copied, err
	}
	trust, err := endpoint.Trust()
	if err != nil {
		return copied, err
	}
	if err := os.MkdirAll(to, 0o700); err != nil {
		return copied, err
	}
	if same, err := sameFile(from, to); err != nil {
		return copied, err
	} else if same {
		return copied, fmt.Errorf("%s is the data directory itself: name another one for the backup", to)
	}
	l, err := ledger.Open(LedgerPath(to), ledger.Config{LogName: endpoint.Log})
	if err != nil {
		return copied, err
	}
	copied, err = l.Follow(ctx, telling{src, far}, trust)
	if err := errors.Join(err, l.Close()); err != nil {
		return copied, err
	}
	endpoint.URL, endpoint.Sockets = "", "" // nobody serves a backup
	if err := saveEndpoint(to, endpoint); err != nil {
		return copied, err
	}
	if !keys {
		return copied, nil
	}
	for _, dir := range []string{keysDir, caDir} {
		if err := copyFiles(filepath.Join(from, dir), filepath.Join(to, dir), replaceFile); err != nil {
			return copied, err
		}
	}
	return copied, nil
}

// telling is a source that tells how far it was read.
type telling struct {
	ledger.Source
	far func(entries uint64)
}

func (t telling) Body(index uint64) (salt, data []byte, err error) {
	t.far(index)
	return t.Source.Body(index)
}

// Restored tells what a restore has done.
type Restored struct {
	Entries uint64   // that the ledger has now
	Lost    uint64   // that the ledger before it had beyond them, where it could be read
	Aside   string   // where the ledger before it lies now, or empty
	Missing []string // files of keys that the governor needs, and that neither the backup nor the directory has
}

// ErrLedgerThere is a directory that has a ledger already.
var ErrLedgerThere = errors.New("there is a ledger already")

// Restore puts a backup's ledger into a data directory where no governor runs, once it was verified, and what else the directory
// lacks of it. A ledger that is there is put aside if replace says so; else the error is [ErrLedgerThere].
func Restore(ctx context.Context, from, to string, replace bool) (done Restored, err error) {
	endpoint, err := LoadEndpoint(from)
	if errors.Is(err, fs.ErrNotExist) {
		err = fmt.Errorf("%s is no backup: it has no %s", from, endpointFile)
	}
	if err != nil {
		return done, err
	}
	if err := CheckLedger(from); err != nil {
		return done, err
	}
	if err := os.MkdirAll(to, 0o700); err != nil {
		return done, err
	}
	known, err := LoadEndpoint(to)
	fresh := errors.Is(err, fs.ErrNotExist)
	switch {
	case err != nil && !fresh:
		return done, err
	case !fresh && !sameLog(endpoint, known):
		return done, fmt.Errorf("%w: %s is of %s, with another key: restore into another directory", ledger.ErrOtherLog, to, known.Log)
	case ledger.InUse(LedgerPath(to)):
		return done, fmt.Errorf("%w: stop the governor of %s first", ledger.ErrInUse, to)
	}
	there, err := hasLedger(to)
	if err != nil {
		return done, err
	}
	if there && !replace {
		return done, fmt.Errorf("%w in %s: have it put aside, or name another directory", ErrLedgerThere, to)
	}

	// Verified is what will lie there, not what lay in the backup a moment before.
	arriving := filepath.Join(to, ".restoring.db")
	defer os.Remove(arriving)
	if err := copyFile(LedgerPath(from), arriving); err != nil {
		return done, err
	}
	if done.Entries, err = verifyBackup(ctx, arriving, endpoint); err != nil {
		return done, fmt.Errorf("the backup is not restored: %w", err)
	}
	if there {
		if old, err := ledger.Open(LedgerPath(to), ledger.Config{ReadOnly: true}); err == nil {
			done.Lost = max(old.Size(), done.Entries) - done.Entries
			if err := old.Close(); err != nil {
				return done, err
			}
		}
		done.Aside = LedgerPath(to) + ".replaced-" + time.Now().UTC().Format("20060102T150405Z")
		if err := os.Rename(LedgerPath(to), done.Aside); err != nil {
			return done, err
		}
	}
	if err := os.Rename(arriving, LedgerPath(to)); err != nil {
		return done, err
	}
	for _, dir := range []string{keysDir, caDir} {
		if err := copyFiles(filepath.Join(from, dir), filepath.Join(to, dir), createFile); err != nil {
			return done, err
		}
	}
	if fresh {
		if err := saveEndpoint(to, endpoint); err != nil {
			return done, err
		}
	}
	for _, name := range []string{governorFile, issuerFile, logFile} {
		if _, err := os.Stat(filepath.Join(to, keysDir, name)); err != nil {
			done.Missing = append(done.Missing, filepath.Join(to, keysDir, name))
		}
	}
	return done, syncDir(to)
}

// sameLog tells whether two directories are of one log: the key of one is the other's, or was.
func sameLog(a, b Endpoint) bool {
	if a.Log != b.Log {
		return false
	}
	for _, x := range append([]string{a.LogKey}, a.PastLogKeys...) {
		for _, y := range append([]string{b.LogKey}, b.PastLogKeys...) {
			if x == y {
				return true
			}
		}
	}
	return false
}

// verifyBackup verifies a backup's ledger, all of which its log must have signed.
func verifyBackup(ctx context.Context, path string, endpoint Endpoint) (entries uint64, err error) {
	trust, err := endpoint.Trust()
	if err != nil {
		return 0, err
	}
	l, err := ledger.Open(path, ledger.Config{ReadOnly: true, LogName: endpoint.Log})
	if err != nil {
		return 0, err
	}
	defer l.Close()
	report, err := Verify(ctx, l, trust)
	if err == nil && report.Unsigned > 0 {
		err = fmt.Errorf("%d of its entries are newer than what was signed: \"governor backup\" makes a backup that has none", report.Unsigned)
	}
	return report.Entries, err
}

// copyFile copies a file that may be large to one that only its owner may read.
func copyFile(from, to string) (err error) {
	src, err := os.Open(from)
	if err != nil {
		return err
	}
	defer src.Close()
	dst, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(dst, src)
	if err == nil {
		err = dst.Sync()
	}
	return errors.Join(err, dst.Close())
}

// copyFiles copies the files of a directory, if that is there, by put. Files that put finds in their place stay.
func copyFiles(from, to string, put func(file string, content []byte) error) error {
	files, err := os.ReadDir(from)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := os.MkdirAll(to, 0o700); err != nil {
		return err
	}
	for _, f := range files {
		if !f.Type().IsRegular() { // sockets, and what they lie in
			continue
		}
		content, err := os.ReadFile(filepath.Join(from, f.Name()))
		if err != nil {
			return err
		}
		if err := put(filepath.Join(to, f.Name()), content); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
	}
	return syncDir(to)
}

func sameFile(a, b string) (bool, error) {
	x, err := os.Stat(a)
	if err != nil {
		return false, err
	}
	y, err := os.Stat(b)
	return err == nil && os.SameFile(x, y), err
}
