package ledger_test

import (
	"bytes"
	"compress/gzip"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/go-json-experiment/json"
	"go.etcd.io/bbolt"

	"github.com/handoff-governor/handoff-governor/governor/ledger"
	"github.com/handoff-governor/handoff-governor/handoff/aat"
	"github.com/handoff-governor/handoff-governor/handoff/entry"
)

// oldFile is the ledger of a governor from before the format was raised, in a file of the test's own, and whom to believe about it.
func oldFile(t *testing.T) (path string, trust entry.Config) {
	t.Helper()
	zipped, err := os.Open("testdata/format1.db.gz")
	if err != nil {
		t.Fatal(err)
	}
	defer zipped.Close()
	unzipped, err := gzip.NewReader(zipped)
	if err != nil {
		t.Fatal(err)
	}
	content, err := io.ReadAll(unzipped)
	if err != nil {
		t.Fatal(err)
	}
	path = filepath.Join(t.TempDir(), "ledger.db")
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	var endpoint struct {
		LogKey     string    `json:"log_key"`
		Issuer     string    `json:"issuer"`
		IssuerKeys []aat.JWK `json:"issuer_keys"`
	}
	encoded, err := os.ReadFile("testdata/format1.json")
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(encoded, &endpoint); err != nil {
		t.Fatal(err)
	}
	trust.LogKey = endpoint.LogKey
	for _, jwk := range endpoint.IssuerKeys {
		key, err := jwk.Key()
		if err != nil {
			t.Fatal(err)
		}
		trust.Issuers = append(trust.Issuers, aat.Anchor{Issuer: endpoint.Issuer, Key: key})
	}
	return path, trust
}

func formatOf(t *testing.T, path string) (format byte) {
	t.Helper()
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{ReadOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	err = db.View(func(tx *bbolt.Tx) error {
		format = tx.Bucket([]byte("meta")).Get([]byte("format"))[7]
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return format
}

// A file of format 1 becomes one of today's with everything in it, once it is opened for writing; a reader leaves it as it is.
func TestMigrateFromFormat1(t *testing.T) {
	path, trust := oldFile(t)
	original, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	verify := func(l *ledger.Ledger) {
		t.Helper()
		if report, err := entry.Verify(t.Context(), l, trust); err != nil || report.Entries != 13 || report.Bodies != 7 || report.Unsigned != 0 {
			t.Fatalf("%+v, %v", report, err)
		}
	}
	open := func(readOnly bool) *ledger.Ledger {
		t.Helper()
		l, err := ledger.Open(path, ledger.Config{ReadOnly: readOnly})
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	closed := func(l *ledger.Ledger) {
		t.Helper()
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	}

	l := open(true)
	verify(l)
	if err := l.Check(t.Context()); err != nil {
		t.Error(err)
	}
	watermark, live, err := l.Live()
	if err != nil || watermark != 13 || len(live) == 0 {
		t.Fatalf("watermark %d, %d items, %v", watermark, len(live), err)
	}
	closed(l)
	if now, err := os.ReadFile(path); err != nil || !bytes.Equal(now, original) {
		t.Error("reading has changed the file")
	}

	for range 2 { // the second time there is nothing to migrate
		l = open(false)
		mark, now, err := l.Live()
		if err != nil || mark != watermark || !maps.EqualFunc(live, now, bytes.Equal) {
			t.Errorf("the live state has changed: watermark %d, %v, %v", mark, slices.Sorted(maps.Keys(now)), err)
		}
		if err := l.NoteLive(map[string][]byte{"numbers": live["numbers"]}); err != nil {
			t.Error(err)
		}
		closed(l)
		if format := formatOf(t, path); format != ledger.FormatVersion {
			t.Errorf("format %d, want %d", format, ledger.FormatVersion)
		}
	}
	l = open(true)
	verify(l)
	if err := l.Check(t.Context()); err != nil {
		t.Error(err)
	}
	closed(l)
}

// A damaged cache is not believed, and does not stay.
func TestLiveThatIsDamaged(t *testing.T) {
	for name, damage := range map[string]func(live, meta *bbolt.Bucket) error{
		"value":     func(live, _ *bbolt.Bucket) error { return live.Put([]byte("agent/a"), []byte("x")) },
		"item":      func(live, _ *bbolt.Bucket) error { return live.Delete([]byte("agent/a")) },
		"key":       func(live, _ *bbolt.Bucket) error { return live.Put([]byte("agent/b"), []byte("1")) },
		"watermark": func(_, meta *bbolt.Bucket) error { return meta.Put([]byte("watermark"), make([]byte, 8)) },
	} {
		t.Run(name, func(t *testing.T) {
			log := history(20)
			path := filepath.Join(t.TempDir(), "ledger.db")
			l, err := ledger.Open(path, ledger.Config{LogName: log.Name, Signer: log.Signer})
			if err != nil {
				t.Fatal(err)
			}
			mustAppend(t, l, log.Items)
			if err := l.PutLive(20, map[string][]byte{"agent/a": []byte("1")}); err != nil {
				t.Fatal(err)
			}
			if err := l.Close(); err != nil {
				t.Fatal(err)
			}
			db, err := bbolt.Open(path, 0o600, nil)
			if err != nil {
				t.Fatal(err)
			}
			err = db.Update(func(tx *bbolt.Tx) error {
				return damage(tx.Bucket([]byte("live")), tx.Bucket([]byte("meta")))
			})
			if err != nil {
				t.Fatal(err)
			}
			if err := db.Close(); err != nil {
				t.Fatal(err)
			}
			l, err = ledger.Open(path, ledger.Config{LogName: log.Name, Signer: log.Signer})
			if err != nil {
				t.Fatal(err)
			}
			if watermark, live, err := l.Live(); watermark != 0 || len(live) != 0 || err != nil {
				t.Errorf("watermark %d, %d items, %v; want nothing", watermark, len(live), err)
			}
			if err := l.PutLive(19, map[string][]byte{"agent/c": []byte("3")}); err != nil {
				t.Fatal(err)
			}
			if watermark, live, err := l.Live(); watermark != 19 || string(live["agent/c"]) != "3" || len(live) != 1 || err != nil {
				t.Errorf("watermark %d, %v, %v", watermark, live, err)
			}
			if err := l.Close(); err != nil {
				t.Fatal(err)
			}
		})
	}
}
