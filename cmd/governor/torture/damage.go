package torture

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"github.com/handoff-governor/handoff-governor/cmd/governor/daemon"
)

// damage takes a copy of the data of a governor that was killed, writes over the page that the ledger's newest transaction
// begins at, and has that verified, and started. Neither may take it for whole.
func (t *torture) damage(ctx context.Context) (err error) {
	dir, err := os.MkdirTemp(t.Dir, "damaged-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	if err := copyFiles(dir, t.data, streamsDir); err != nil {
		return err
	}
	if err := blot(daemon.LedgerPath(dir), t.done%2 == 0); err != nil {
		return err
	}
	if _, err := audits(ctx, dir); err == nil {
		t.load.books.amiss("a damaged page was not found by verifying the ledger")
	}
	switch c, err := start(ctx, t.log, t.Program, t.args(dir)...); {
	case err == nil:
		c.kill()
		t.load.books.amiss("the governor has started on a damaged page")
	case !errors.Is(err, errNotStarted):
		return err
	}
	return nil
}

// loseTail kills the governor, and puts its streams back to where they were a while before: they are not synced, so that this is
// what a loss of power may leave. The ledger is.
func (t *torture) loseTail(ctx context.Context, tail time.Duration) error {
	streams, before := filepath.Join(t.data, streamsDir), filepath.Join(t.Dir, "before")
	if err := t.governor.signal(syscall.SIGSTOP); err != nil {
		return err
	}
	if err := copyFiles(before, streams); err != nil {
		return err
	}
	if err := t.governor.signal(syscall.SIGCONT); err != nil {
		return err
	}
	wait(ctx, tail)
	t.kill()
	if err := os.RemoveAll(streams); err != nil {
		return err
	}
	if err := os.Rename(before, streams); err != nil {
		return err
	}
	return t.start(ctx)
}

// streamsDir is where the embedded NATS server keeps its streams, in the data directory.
const streamsDir = "streams"

// copyFiles copies a directory, but for directories named in except, and for sockets.
func copyFiles(to, from string, except ...string) error {
	return filepath.WalkDir(from, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		relative, err := filepath.Rel(from, path)
		if err != nil {
			return err
		}
		target := filepath.Join(to, relative)
		switch {
		case d.IsDir() && slices.Contains(except, relative):
			return fs.SkipDir
		case d.IsDir():
			return os.MkdirAll(target, 0o700)
		case d.Type().IsRegular():
			return copyFile(target, path)
		}
		return nil // a socket
	})
}

func copyFile(to, from string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}

// blot writes over the page that the root of bbolt's newest transaction lies on: as if it had never been written, or with
// something else. The places are those of bbolt's meta pages, the first two of the file; the one with the higher transaction
// holds.
func blot(path string, unwritten bool) error {
	const (
		sizeAt = 24 // u32: of a page
		rootAt = 32 // u64: page of the root bucket
		idAt   = 64 // u64: of the transaction
		metaTo = 80
	)
	file, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer file.Close()
	var metas [2][metaTo]byte
	if _, err := file.ReadAt(metas[0][:], 0); err != nil {
		return err
	}
	size := int64(binary.NativeEndian.Uint32(metas[0][sizeAt:]))
	if _, err := file.ReadAt(metas[1][:], size); err != nil {
		return err
	}
	newest := metas[0]
	if binary.NativeEndian.Uint64(metas[1][idAt:]) > binary.NativeEndian.Uint64(newest[idAt:]) {
		newest = metas[1]
	}
	page := make([]byte, size)
	for i := range page {
		if !unwritten {
			page[i] = byte(i*7 + 1)
		}
	}
	if _, err := file.WriteAt(page, int64(binary.NativeEndian.Uint64(newest[rootAt:]))*size); err != nil {
		return err
	}
	return file.Close()
}
