package ledger

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"go.etcd.io/bbolt"
)

var smallBuckets = [][]byte{bucketEntry, bucketID, bucketLive}

// smallFile is a bbolt file with small pages, so that few entries make branches.
func smallFile(tb testing.TB, pageSize int) []byte {
	tb.Helper()
	path := filepath.Join(tb.TempDir(), "small.db")
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{PageSize: pageSize})
	if err != nil {
		tb.Fatal(err)
	}
	for i := range 3 {
		err := db.Update(func(tx *bbolt.Tx) error {
			for _, name := range smallBuckets {
				b, err := tx.CreateBucketIfNotExists(name)
				if err != nil {
					return err
				}
				if bytes.Equal(name, bucketLive) {
					continue // a bucket within its parent's page
				}
				for n := range 6 {
					if err := b.Put(u64(uint64(100*i+n)), bytes.Repeat([]byte{byte(n)}, 10*n)); err != nil {
						return err
					}
				}
			}
			return nil
		})
		if err != nil {
			tb.Fatal(err)
		}
	}
	if err := db.Close(); err != nil {
		tb.Fatal(err)
	}
	content, err := os.ReadFile(path)
	if err != nil {
		tb.Fatal(err)
	}
	newest, err := newestHeader(bytes.NewReader(content), pageSize)
	if err != nil {
		tb.Fatal(err)
	}
	return content[:newest.pages*uint64(pageSize)] // the rest was never used
}

// What the reader of pages makes of a whole file is what bbolt does.
func TestPagesAreRead(t *testing.T) {
	const pageSize = 512
	content := smallFile(t, pageSize)
	p := &pages{file: bytes.NewReader(content), size: int64(len(content)), pageSize: pageSize, leaves: true}
	if p.header, p.damaged = newestHeader(p.file, pageSize); p.damaged != nil {
		t.Fatal(p.damaged)
	}
	found := map[string]int{}
	p.each = func(bucket, key, value []byte) error {
		if n, ok := parseU64(key); !ok || !bytes.Equal(value, bytes.Repeat([]byte{byte(n % 100)}, int(10*(n%100)))) {
			return fmt.Errorf("key %x", key)
		}
		found[string(bucket)]++
		return nil
	}
	if err := p.check(); err != nil {
		t.Fatal(err)
	}
	for _, name := range smallBuckets {
		if want := map[bool]int{false: 18, true: 0}[bytes.Equal(name, bucketLive)]; found[string(name)] != want {
			t.Errorf("bucket %s has %d keys, want %d", name, found[string(name)], want)
		}
	}
}

// Whatever is in a file, reading its pages comes to an end, with an error or without, and takes no more memory than the file has.
func FuzzPages(f *testing.F) {
	const pageSize = 512
	content := smallFile(f, pageSize)
	whole, err := newestHeader(bytes.NewReader(content), pageSize)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(content, whole.root, whole.freelist, whole.pages)
	f.Add(content[:8*pageSize], uint64(4), uint64(3), uint64(8))
	f.Fuzz(func(t *testing.T, content []byte, root, freelist, count uint64) {
		for _, leaves := range []bool{false, true} {
			p := &pages{file: bytes.NewReader(content), size: int64(len(content)), pageSize: pageSize, leaves: leaves}
			p.header = header{root: root, freelist: freelist, pages: count}
			_ = p.check()
		}
		_, _ = newestHeader(bytes.NewReader(content), pageSize)
	})
}
