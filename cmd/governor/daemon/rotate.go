package daemon

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"time"

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
		err := d.keys.tell(d.root.Keys())
		d.keys.mu.Unlock()
		if err != nil {
			log.ErrorContext(ctx, "governor.json lacks a key of the issuer; trying again", "err", err)
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
	for of, file := range map[string]string{entry.OfGovernor: governorFile, entry.OfIssuer: issuerFile} {
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
