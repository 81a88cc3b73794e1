// Package keyring keeps the keys of one signer in a file: the one in use, the next one, and those before it that are still
// trusted. Each is replaced with overlap, so that whoever has to know a key does before it is used, and whatever was begun
// under an old one can end.
//
//	made ──── From ──────────── Taken ─────────────── Until
//	 │ others    │ it signs       │ the next one has     │ nobody trusts it;
//	 │ learn it  │ what is new    │ signed alone since   │ it is destroyed
//
// The file has the keys as PKCS #8 in PEM (RFC 7468), the newest first. The times stand above each as explanatory text, as in
// "From: 2026-11-27T07:00:00Z"; one that is not there is not set.
package keyring

import (
	"bytes"
	"crypto/ed25519"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/handoff-governor/handoff-governor/handoff/aat"
)

// Key is one of a ring, with its times. The zero time is no bound.
type Key struct {
	Private ed25519.PrivateKey
	From    time.Time // it signs what is new from then on
	Taken   time.Time // what is new and names it is taken until then
	Until   time.Time // it is trusted until then
}

// JWK is the public half.
func (k Key) JWK() aat.JWK { return aat.NewJWK(k.Private.Public().(ed25519.PublicKey)) }

// Dead tells whether nobody trusts the key any more.
func (k Key) Dead(now time.Time) bool { return !k.Until.IsZero() && !now.Before(k.Until) }

// Takes tells whether what is new may name the key.
func (k Key) Takes(now time.Time) bool {
	return (k.Taken.IsZero() || now.Before(k.Taken)) && !k.Dead(now)
}

// Ring is the keys of one signer, the newest first. There is always one that is in use.
type Ring []Key

// Of is a ring of one key without any bound.
func Of(key ed25519.PrivateKey) Ring { return Ring{{Private: key}} }

// Current is the newest key that is in use.
func (r Ring) Current(now time.Time) Key {
	for _, k := range r {
		if !now.Before(k.From) && !k.Dead(now) {
			return k
		}
	}
	return r[0] // the clock was set back behind all of them
}

// Live returns the keys that are trusted, the current one first.
func (r Ring) Live(now time.Time) Ring {
	current := r.Current(now)
	live := Ring{current}
	for _, k := range r {
		if !k.Dead(now) && !k.Private.Equal(current.Private) {
			live = append(live, k)
		}
	}
	return live
}

// Schedule says how long a replacement takes.
type Schedule struct {
	Announce time.Duration // until the new key is used: everybody who must know it asks more often than that
	Overlap  time.Duration // after that, how long what names the old one is taken
	Keep     time.Duration // after that, how long what was taken may live
}

// ErrPending is a ring whose newest key is not in use yet.
var ErrPending = errors.New("the last rotation is not over: its key is not in use")

// Rotate returns the ring with a new key, and without those that are dead. The schedule zero ends all others at once: for a key
// that was stolen.
func (r Ring) Rotate(key ed25519.PrivateKey, now time.Time, s Schedule) (Ring, error) {
	at := now.UTC().Truncate(time.Second) // what the file can say
	if s == (Schedule{}) {
		return Ring{{Private: key, From: at}}, nil
	}
	if now.Before(r[0].From) {
		return nil, fmt.Errorf("%w before %s", ErrPending, r[0].From.Format(time.RFC3339))
	}
	from := at.Add(s.Announce)
	next := Ring{{Private: key, From: from}}
	for _, k := range r.Live(now) {
		if k.Taken.IsZero() {
			k.Taken = from.Add(s.Overlap)
		}
		if k.Until.IsZero() {
			k.Until = k.Taken.Add(s.Keep)
		}
		next = append(next, k)
	}
	return next, nil
}

// Prune returns the ring without what is dead, and whether that is less.
func (r Ring) Prune(now time.Time) (Ring, bool) {
	left := slices.DeleteFunc(slices.Clone(r), func(k Key) bool { return k.Dead(now) })
	return left, len(left) < len(r) && len(left) > 0
}

const (
	block   = "PRIVATE KEY"
	opening = "-----BEGIN "
)

// Marshal returns the content of a file.
func (r Ring) Marshal() ([]byte, error) {
	var out bytes.Buffer
	for _, k := range r {
		for _, bound := range k.bounds() {
			if !bound.at.IsZero() {
				fmt.Fprintf(&out, "%s: %s\n", bound.name, bound.at.UTC().Format(time.RFC3339))
			}
		}
		der, err := x509.MarshalPKCS8PrivateKey(k.Private)
		if err != nil {
			return nil, err
		}
		if err := pem.Encode(&out, &pem.Block{Type: block, Bytes: der}); err != nil {
			return nil, err
		}
	}
	return out.Bytes(), nil
}

type bound struct {
	name string
	at   *time.Time
}

func (k *Key) bounds() []bound {
	return []bound{{"From", &k.From}, {"Taken", &k.Taken}, {"Until", &k.Until}}
}

// maxKeys bounds what is read: a ring has one key in use, one to come and those that end.
const maxKeys = 64

// Parse reads the content of a file.
func Parse(content []byte) (Ring, error) {
	var r Ring
	for rest := string(content); strings.TrimSpace(rest) != ""; {
		text, _, ok := strings.Cut(rest, opening)
		if !ok {
			return nil, errors.New("there is text after the last key")
		}
		if len(r) == maxKeys {
			return nil, fmt.Errorf("there are more than %d keys", maxKeys)
		}
		var k Key
		if err := k.readBounds(text); err != nil {
			return nil, err
		}
		decoded, after := pem.Decode([]byte(rest[len(text):]))
		// A block that is none is skipped by pem.Decode, and the next one must not have its times.
		if decoded == nil || decoded.Type != block || len(decoded.Headers) > 0 ||
			strings.Count(rest[len(text):len(rest)-len(after)], opening) != 1 {
			return nil, errors.New("not PEM blocks of private keys")
		}
		parsed, err := x509.ParsePKCS8PrivateKey(decoded.Bytes)
		if err != nil {
			return nil, err
		}
		if k.Private, ok = parsed.(ed25519.PrivateKey); !ok {
			return nil, errors.New("not Ed25519 keys")
		}
		if slices.ContainsFunc(r, func(other Key) bool { return other.Private.Equal(k.Private) }) {
			return nil, errors.New("a key stands there twice")
		}
		r = append(r, k)
		rest = string(after)
	}
	if len(r) == 0 {
		return nil, errors.New("there is no key")
	}
	return r, nil
}

func (k *Key) readBounds(text string) error {
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if line == "" {
			continue
		}
		name, value, _ := strings.Cut(line, ": ")
		bounds := k.bounds()
		i := slices.IndexFunc(bounds, func(b bound) bool { return b.name == name && b.at.IsZero() })
		if i < 0 {
			return errors.New("what stands above a key must be From, Taken and Until, each once")
		}
		at, err := time.Parse(time.RFC3339, value)
		at = at.Truncate(time.Second)
		if err != nil || at.IsZero() {
			return fmt.Errorf("%s is no time as in 2026-11-27T07:00:00Z", name)
		}
		*bounds[i].at = at
	}
	return nil
}
