package daemon

import (
	"cmp"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/handoff-governor/handoff-governor/governor"
	"github.com/handoff-governor/handoff-governor/governor/issuer"
	"github.com/handoff-governor/handoff-governor/governor/keyring"
)

// keys are those of a data directory, apart so that each can be taken away on its own.
type keys struct {
	dir     string
	logName string

	mu       sync.Mutex
	log      keyring.Ring
	governor keyring.Ring
	issuer   keyring.Ring // empty where roots are signed elsewhere
	now      func() time.Time
	schedule keyring.Schedule
	logTimes keyring.Schedule // schedule of the log's key
	opened   *governor.Keys
	here     *issuer.Issuer // where it is
	endpoint Endpoint       // as governor.json says
	signing  int            // keys that sign checkpoints
}

const (
	keysDir      = "keys"
	governorFile = "governor.pem"
	issuerFile   = "issuer.pem"
	logFile      = "log.pem"
	oldLogFile   = "log.note"
)

// DefaultRotation is how long the replacement of a key takes: agents and guards ask for keys every minute, and no grant lives
// longer than a day.
var DefaultRotation = keyring.Schedule{Announce: 2 * time.Minute, Overlap: 10 * time.Minute, Keep: 24 * time.Hour}

// LogRotation is how long the replacement of the log's key takes: people and programs elsewhere hold it against checkpoints.
var LogRotation = keyring.Schedule{Announce: 24 * time.Hour, Keep: 30 * 24 * time.Hour}

// keyFiles are those of every directory that has a ledger.
func keyFiles(cfg Config) []string {
	if cfg.Issuer != nil {
		return []string{governorFile, logFile}
	}
	return []string{governorFile, issuerFile, logFile}
}

// loadKeys reads the keys, and makes those that a new directory lacks.
func loadKeys(cfg Config, logName string) (*keys, error) {
	k := &keys{dir: filepath.Join(cfg.Dir, keysDir), logName: logName, now: cfg.Now, schedule: cmp.Or(cfg.Rotation, DefaultRotation), logTimes: cmp.Or(cfg.Rotation, LogRotation)}
	if k.now == nil {
		k.now = time.Now
	}
	err := os.Mkdir(k.dir, 0o700)
	if err == nil {
		err = syncDir(cfg.Dir)
	} else if errors.Is(err, os.ErrExist) {
		err = os.Chmod(k.dir, 0o700)
	}
	if err != nil {
		return nil, err
	}
	if k.governor, err = LoadRing(filepath.Join(k.dir, governorFile)); err != nil {
		return nil, err
	}
	if cfg.Issuer == nil {
		if k.issuer, err = LoadRing(filepath.Join(k.dir, issuerFile)); err != nil {
			return nil, err
		}
	}
	if k.log, err = k.loadLog(); err != nil {
		return nil, err
	}
	return k, nil
}

// loadLog reads the log's keys. A directory of before they could be replaced has one as a note's signer key.
func (k *keys) loadLog() (keyring.Ring, error) {
	file, old := filepath.Join(k.dir, logFile), filepath.Join(k.dir, oldLogFile)
	raw, err := readPrivate(old)
	if errors.Is(err, os.ErrNotExist) {
		return LoadRing(file)
	}
	if err != nil {
		return nil, err
	}
	signer, _, _ := strings.Cut(string(raw), "\n")
	fields := strings.SplitN(signer, "+", 5) // PRIVATE+KEY+name+hash+base64, which may have more of these
	seed, err := base64.StdEncoding.DecodeString(fields[len(fields)-1])
	if err != nil || len(seed) != 1+ed25519.SeedSize {
		return nil, fmt.Errorf("%s is no note's signer key", old)
	}
	ring := keyring.Of(ed25519.NewKeyFromSeed(seed[1:]))
	if err := SaveRing(file, ring); err != nil {
		return nil, err
	}
	return ring, os.Remove(old)
}

// LoadRing reads the keys of a file, and makes one where there is none.
func LoadRing(file string) (keyring.Ring, error) {
	raw, err := readPrivate(file)
	if errors.Is(err, os.ErrNotExist) {
		_, key, err := ed25519.GenerateKey(rand.Reader)
		if err != nil {
			return nil, err
		}
		ring := keyring.Of(key)
		content, err := ring.Marshal()
		if err != nil {
			return nil, err
		}
		err = createFile(file, content)
		if errors.Is(err, os.ErrExist) {
			return LoadRing(file)
		}
		return ring, err
	}
	if err != nil {
		return nil, err
	}
	ring, err := keyring.Parse(raw)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return ring, nil
}

// SaveRing writes the keys of a file.
func SaveRing(file string, ring keyring.Ring) error {
	content, err := ring.Marshal()
	if err != nil {
		return err
	}
	return replaceFile(file, content)
}

// readPrivate reads a file that nobody else may read.
func readPrivate(file string) ([]byte, error) {
	info, err := os.Stat(file)
	if err != nil {
		return nil, err
	}
	if info.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("%s can be read by others: chmod 600 it, and think about who has read it", file)
	}
	return os.ReadFile(file)
}

// replaceFile writes a file whole or not at all, with mode 0600. Once it returns, the file is there whatever happens.
func replaceFile(file string, content []byte) error { return placeFile(file, content, os.Rename) }

// createFile is replaceFile, but that it fails with os.ErrExist where there is a file: two first starts at once must not
// end with a daemon whose keys are lost.
func createFile(file string, content []byte) error {
	return placeFile(file, content, func(from, to string) error {
		if err := os.Link(from, to); err != nil {
			return err
		}
		return os.Remove(from)
	})
}

func placeFile(file string, content []byte, place func(from, to string) error) (err error) {
	f, err := os.CreateTemp(filepath.Dir(file), ".new-*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = os.Remove(f.Name()) // gone already, where it is in its place
		}
	}()
	if _, err = f.Write(content); err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err = place(f.Name(), file); err != nil {
		return err
	}
	return syncDir(filepath.Dir(file))
}

// syncDir makes durable which files a directory has.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
