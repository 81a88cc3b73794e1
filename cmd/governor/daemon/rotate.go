package daemon

import (
	"cmp"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/mod/sumdb/note"

	"github.com/handoff-governor/handoff-governor/governor"
	"github.com/handoff-governor/handoff-governor/governor/issuer"
	"github.com/handoff-governor/handoff-governor/governor/keyring"
	"github.com/handoff-governor/handoff-governor/handoff/aat"
	"github.com/handoff-governor/handoff-governor/handoff/entry"
	"github.com/handoff-governor/handoff-governor/handoff/wire"
)

// open makes the governor's keys usable.
func (k *keys) open(now func() time.Time) (_ *governor.Keys, err error) {
	k.opened, err = governor.NewKeys(k.governor, now)
	return k.opened, err
}

// rotate prepares a key that takes the place of those there are, as [governor.Config.Rotate] says.
func (d *Daemon) rotate(of string, stolen bool) (keyring.Ring, func() error, error) {
	k := d.keys
	k.mu.Lock()
	defer k.mu.Unlock()
	ring, file, replace := &k.governor, governorFile, func(r keyring.Ring) error { return k.opened.Replace(r) }
	if of == entry.OfIssuer {
		if k.here == nil {
			return nil, nil, wire.Refuse(wire.CodeForbidden,
				"the issuer runs elsewhere, and its keys are there: run \"governor issuer rotate\" where it does")
		}
		ring, file, replace = &k.issuer, issuerFile, func(r keyring.Ring) error { return k.here.Replace(r) }
	}
	schedule := k.schedule
	if of == entry.OfLog {
		ring, file, replace, schedule = &k.log, logFile, func(keyring.Ring) error { return d.signLog() }, k.logTimes
	}
	if stolen {
		schedule = keyring.Schedule{}
	}
	next, err := RotateRing(*ring, k.now(), schedule)
	if err != nil {
		return nil, nil, err
	}
	commit := func() error {
		k.mu.Lock()
		defer k.mu.Unlock()
		if of == entry.OfIssuer { // before a root is signed with it
			if err := k.tell([]aat.JWK{next[0].JWK()}); err != nil {
				return err
			}
		}
		if err := SaveRing(filepath.Join(k.dir, file), next); err != nil {
			return err
		}
		*ring = next
		return replace(next)
	}
	return next, commit, nil
}

// RotateRing adds a new key to a ring.
func RotateRing(ring keyring.Ring, now time.Time, schedule keyring.Schedule) (keyring.Ring, error) {
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, err
	}
	return ring.Rotate(key, now, schedule)
}

// keepEvery is how often keys are looked after.
const keepEvery = time.Second

// keepKeys destroys keys whose time is over, and keeps governor.json true, until ctx ends.
func (d *Daemon) keepKeys(ctx context.Context, log *slog.Logger) {
	tick := time.NewTicker(keepEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if err := d.keys.prune(); err != nil {
			log.ErrorContext(ctx, "a key whose time is over could not be destroyed; trying again", "err", err)
		}
		d.keys.mu.Lock()
		err := errors.Join(d.keys.tell(d.root.Keys()), d.signLog())
		d.keys.mu.Unlock()
		if err != nil {
			log.ErrorContext(ctx, "governor.json lacks a key; trying again", "err", err)
		}
	}
}

// tell has governor.json name keys of the issuer, as it must all that ever signed a root. The caller has locked.
func (k *keys) tell(issuers []aat.JWK) error {
	now := k.endpoint
	now.IssuerKeys = allKeys(issuers, now.IssuerKeys)
	if len(now.IssuerKeys) == len(k.endpoint.IssuerKeys) {
		return nil
	}
	if err := saveEndpoint(filepath.Dir(k.dir), now); err != nil {
		return err
	}
	k.endpoint = now
	return nil
}

// prune destroys the keys whose time is over.
func (k *keys) prune() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if left, less := k.governor.Prune(k.now()); less {
		if err := SaveRing(filepath.Join(k.dir, governorFile), left); err != nil {
			return err
		}
		k.governor = left
		if err := k.opened.Replace(left); err != nil {
			return err
		}
	}
	if left, less := k.log.Prune(k.now()); less {
		if err := SaveRing(filepath.Join(k.dir, logFile), left); err != nil {
			return err
		}
		k.log = left
	}
	if left, less := k.issuer.Prune(k.now()); less {
		if err := SaveRing(filepath.Join(k.dir, issuerFile), left); err != nil {
			return err
		}
		k.issuer = left
		return k.here.Replace(left)
	}
	return nil
}

// allKeys puts new keys before those that were known.
func allKeys(live, known []aat.JWK) []aat.JWK {
	var all []aat.JWK
	for _, jwk := range slices.Concat(live, known) {
		if !slices.Contains(all, jwk) {
			all = append(all, jwk)
		}
	}
	return all
}

// issuer is who signs roots: here, or elsewhere.
func (d *Daemon) issuer(ctx context.Context, cfg Config) (governor.Issuer, error) {
	if cfg.Issuer != nil {
		return d.remoteIssuer(ctx, cfg)
	}
	var err error
	d.keys.here, err = issuer.New(issuer.Config{
		URI: d.Endpoint.Issuer, Keys: d.keys.issuer, Governor: d.Endpoint.Governor, Ceiling: cfg.Ceiling, People: cfg.People,
		Now: cfg.Now,
	})
	d.root = d.keys.here
	return d.root, err
}

// ReadKeyTimes reads the keys of a data directory whose governor does not run.
func ReadKeyTimes(dir string, now time.Time) ([]wire.KeyTimes, error) {
	var times []wire.KeyTimes
	for of, file := range map[string]string{entry.OfGovernor: governorFile, entry.OfIssuer: issuerFile, entry.OfLog: logFile} {
		path := filepath.Join(dir, keysDir, file)
		if _, err := os.Stat(path); errors.Is(err, os.ErrNotExist) {
			continue // it is elsewhere
		}
		ring, err := LoadRing(path)
		if err != nil {
			return nil, err
		}
		for _, k := range ring.Live(now) {
			times = append(times, governor.KeyTimes(of, k))
		}
	}
	return times, nil
}

// noteKeys are a key of the log as C2SP's signed notes have them.
func noteKeys(name string, key ed25519.PrivateKey) (note.Signer, string, error) {
	verifier, err := note.NewEd25519VerifierKey(name, key.Public().(ed25519.PublicKey))
	if err != nil {
		return nil, "", err
	}
	hash := strings.Split(strings.TrimPrefix(verifier, name+"+"), "+")[0]
	const ed25519Note = 1 // its algorithm
	secret := base64.StdEncoding.EncodeToString(append([]byte{ed25519Note}, key.Seed()...))
	signer, err := note.NewSigner("PRIVATE+KEY+" + name + "+" + hash + "+" + secret)
	return signer, verifier, err
}

// logSigners are the keys that sign checkpoints now, the current one first, with its verifier key. The caller has locked, or is alone.
func (k *keys) logSigners() (signers []note.Signer, current string, err error) {
	for _, key := range k.log.Live(k.now()) {
		if k.now().Before(key.From) {
			continue // announced
		}
		signer, verifier, err := noteKeys(k.logName, key.Private)
		if err != nil {
			return nil, "", fmt.Errorf("the log's key: %w", err)
		}
		signers = append(signers, signer)
		current = cmp.Or(current, verifier)
	}
	if len(signers) == 0 { // the clock was set back behind all of them
		signer, verifier, err := noteKeys(k.logName, k.log[0].Private)
		return []note.Signer{signer}, verifier, err
	}
	return signers, current, nil
}

// logKeys are the verifier key in use, and the keys that are trusted.
func (k *keys) logKeys() (current string, ring keyring.Ring) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.endpoint.LogKey, k.log.Live(k.now())
}

// signLog has checkpoints signed by the keys of now, and governor.json say so first. The caller has locked.
func (d *Daemon) signLog() error {
	signers, current, err := d.keys.logSigners()
	if err != nil {
		return err
	}
	if current == d.keys.endpoint.LogKey && len(signers) == d.keys.signing {
		return nil
	}
	now := d.keys.endpoint
	now.PastLogKeys = pastKeys(now, current)
	now.LogKey = current
	if err := saveEndpoint(filepath.Dir(d.keys.dir), now); err != nil {
		return err
	}
	d.keys.endpoint, d.keys.signing = now, len(signers)
	return d.ledger.SignWith(signers...)
}

// pastKeys are those that signed checkpoints before current.
func pastKeys(e Endpoint, current string) []string {
	past := e.PastLogKeys
	if e.LogKey != "" && e.LogKey != current && !slices.Contains(past, e.LogKey) {
		past = append(slices.Clip(past), e.LogKey)
	}
	return past
}
