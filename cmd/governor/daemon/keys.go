package daemon

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/mod/sumdb/note"
)

// keys are the three of a data directory, apart so that each can be taken away on its own.
type keys struct {
	governor    ed25519.PrivateKey
	issuer      ed25519.PrivateKey
	log         string // note signer key
	logVerifier string
}

const (
	keysDir      = "keys"
	governorFile = "governor.pem"
	issuerFile   = "issuer.pem"
	logFile      = "log.note"
)

// keyFiles are those of every directory that has a ledger.
var keyFiles = []string{governorFile, issuerFile, logFile}

// loadKeys reads the keys, and makes those that a new directory lacks.
func loadKeys(dir, logName string) (keys, error) {
	var k keys
	home := dir
	dir = filepath.Join(home, keysDir)
	err := os.Mkdir(dir, 0o700)
	if err == nil {
		err = syncDir(home)
	} else if errors.Is(err, os.ErrExist) {
		err = os.Chmod(dir, 0o700)
	}
	if err != nil {
		return k, err
	}
	if k.governor, err = loadKey(filepath.Join(dir, governorFile)); err != nil {
		return k, err
	}
	if k.issuer, err = loadKey(filepath.Join(dir, issuerFile)); err != nil {
		return k, err
	}
	file := filepath.Join(dir, logFile)
	raw, err := readPrivate(file)
	if errors.Is(err, os.ErrNotExist) {
		var signer, verifier string
		if signer, verifier, err = note.GenerateKey(rand.Reader, logName); err != nil {
			return k, err
		}
		if err = createFile(file, []byte(signer+"\n"+verifier+"\n")); err == nil || errors.Is(err, os.ErrExist) {
			raw, err = readPrivate(file)
		}
	}
	if err != nil {
		return k, err
	}
	var ok bool
	if k.log, k.logVerifier, ok = strings.Cut(strings.TrimSpace(string(raw)), "\n"); !ok {
		return k, fmt.Errorf("%s must have two lines: the signer's key and the verifier's", file)
	}
	return k, nil
}

// loadKey reads an Ed25519 key in PKCS #8 PEM, and makes one where there is none.
func loadKey(file string) (ed25519.PrivateKey, error) {
	raw, err := readPrivate(file)
	if errors.Is(err, os.ErrNotExist) {
		_, key, err := ed25519.GenerateKey(rand.Reader)
		if err != nil {
			return nil, err
		}
		der, err := x509.MarshalPKCS8PrivateKey(key)
		if err != nil {
			return nil, err
		}
		err = createFile(file, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
		if errors.Is(err, os.ErrExist) {
			return loadKey(file)
		}
		return key, err
	}
	if err != nil {
		return nil, err
	}
	block, rest := pem.Decode(raw)
	if block == nil || len(rest) > 0 || block.Type != "PRIVATE KEY" {
		return nil, fmt.Errorf("%s is not one PEM block of a private key", file)
	}
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	key, ok := parsed.(ed25519.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("%s is not an Ed25519 key", file)
	}
	return key, nil
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

func publicOf(key ed25519.PrivateKey) ed25519.PublicKey { return key.Public().(ed25519.PublicKey) }
