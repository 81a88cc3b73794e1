// Package ledgertest opens ledgers for tests, and proves each of them when its test ends.
package ledgertest

import (
	"context"
	"crypto/rand"
	"path/filepath"
	"testing"
	"time"

	"go.etcd.io/bbolt"
	"golang.org/x/mod/sumdb/note"

	"github.com/handoff-governor/handoff-governor/governor/ledger"
	"github.com/handoff-governor/handoff-governor/handoff/entry"
)

// Name is the name of the log that [Open] opens.
const Name = "log.example"

// Open opens a new ledger in a directory of the test's own. When the test ends, the ledger is closed, opened again as
// a stranger would, and checked: the file by bbolt, the record by [entry.Verify] under trust's issuers. LogKey of trust
// is filled in. A test that has closed the ledger itself is checked all the same.
func Open(t testing.TB, trust entry.Config) *ledger.Ledger {
	t.Helper()
	signer, key := Key(t)
	return OpenFile(t, filepath.Join(t.TempDir(), "ledger.db"), signer, key, trust)
}

// OpenFile is [Open] for a file and a key that the test chooses.
func OpenFile(t testing.TB, path string, signer note.Signer, key string, trust entry.Config) *ledger.Ledger {
	t.Helper()
	l, err := ledger.Open(path, ledger.Config{LogName: signer.Name(), Signer: signer})
	if err != nil {
		t.Fatal(err)
	}
	trust.LogKey = key
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Errorf("closing the ledger: %v", err)
		}
		Check(t, path, trust)
	})
	return l
}

// Key makes a key for the checkpoints of a log called [Name].
func Key(t testing.TB) (signer note.Signer, key string) {
	t.Helper()
	secret, key, err := note.GenerateKey(rand.Reader, Name)
	if err != nil {
		t.Fatal(err)
	}
	signer, err = note.NewSigner(secret)
	if err != nil {
		t.Fatal(err)
	}
	return signer, key
}

// Check opens the file of a ledger that is not in use and fails the test unless it is whole: the file, and every entry
// of the record. It returns what was verified.
func Check(t testing.TB, path string, trust entry.Config) entry.Report {
	t.Helper()
	pages(t, path)
	l, err := ledger.Open(path, ledger.Config{ReadOnly: true})
	if err != nil {
		t.Errorf("opening the ledger to check it: %v", err)
		return entry.Report{}
	}
	defer l.Close()
	report, err := entry.Verify(context.WithoutCancel(t.Context()), l, trust)
	if err != nil {
		t.Errorf("verifying the record: %v", err)
	}
	return report
}

// pages lets bbolt check that the file's pages fit together: each is in use once, or free.
func pages(t testing.TB, path string) {
	t.Helper()
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{ReadOnly: true, Timeout: time.Second})
	if err != nil {
		t.Errorf("opening the file to check it: %v", err)
		return
	}
	defer db.Close()
	err = db.View(func(tx *bbolt.Tx) error {
		for err := range tx.Check() {
			t.Errorf("checking the file: %v", err)
		}
		return nil
	})
	if err != nil {
		t.Errorf("checking the file: %v", err)
	}
}
