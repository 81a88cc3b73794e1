package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/handoff-governor/handoff-governor/governor"
	"github.com/handoff-governor/handoff-governor/governor/issuer"
	"github.com/handoff-governor/handoff-governor/handoff/aat"
	"github.com/handoff-governor/handoff-governor/handoff/identity"
	"github.com/handoff-governor/handoff-governor/handoff/wire"
)

// RemoteIssuer is an issuer that is a process of its own: see "governor issuer".
type RemoteIssuer struct {
	URL string // https://host:port
}

// knownFile keeps what the issuer said last of its keys, so that a governor can start while the issuer is away.
const knownFile = "issuer.jwks"

// remoteIssuer finds the issuer. It must have been there once; then its sessions go on without it.
func (d *Daemon) remoteIssuer(ctx context.Context, cfg Config) (governor.Issuer, error) {
	if d.workload == nil {
		return nil, errors.New("an issuer elsewhere needs a Workload API: it has to prove itself, and the governor to it")
	}
	if u, err := url.Parse(cfg.Issuer.URL); err != nil || u.Scheme != "https" || u.Host == "" {
		return nil, fmt.Errorf("the issuer's URL is %q; it must be as in https://issuer:8443", cfg.Issuer.URL)
	}
	id, err := spiffeid.FromString(d.Endpoint.Issuer)
	if err != nil {
		return nil, err
	}
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.Proxy = nil // the issuer proves itself to nobody in between
	transport.TLSClientConfig = identity.ClientTLS(d.svid, d.trust, identity.OnlyPeer(id))
	d.closers = append(d.closers, func() error { transport.CloseIdleConnections(); return nil })
	known, err := d.keys.knownIssuers()
	if err != nil {
		return nil, err
	}
	remote := issuer.NewRemote(d.Endpoint.Issuer, cfg.Issuer.URL, &http.Client{Transport: transport}, known)
	if err := remote.Refresh(ctx); err != nil {
		if len(known) == 0 {
			return nil, fmt.Errorf("%w; it must be there for the first start: run \"governor issuer serve\"", err)
		}
		cfg.Logger.WarnContext(ctx, "the issuer is away; what it has signed is good, and no session can be opened", "err", err)
	}
	d.remote, d.root = remote, remote
	return remote, d.keys.keepIssuers(remote.Keys())
}

// knownIssuers are the keys that a remote issuer had last.
func (k *keys) knownIssuers() ([]aat.JWK, error) {
	raw, err := readPrivate(filepath.Join(k.dir, knownFile))
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var set wire.JWKS
	if err := json.Unmarshal(raw, &set); err != nil {
		return nil, fmt.Errorf("%s: %w", knownFile, err)
	}
	return set.JWKs(), nil
}

func (k *keys) keepIssuers(keys []aat.JWK) error {
	known, err := k.knownIssuers()
	if err != nil || slices.Equal(known, keys) {
		return err
	}
	raw, err := json.Marshal(wire.NewJWKS(keys))
	if err != nil {
		return err
	}
	return replaceFile(filepath.Join(k.dir, knownFile), raw)
}

// followIssuer keeps what is known of a remote issuer's keys, until ctx ends.
func (d *Daemon) followIssuer(ctx context.Context, log *slog.Logger) {
	tick := time.NewTicker(keepEvery)
	defer tick.Stop()
	away := false
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		err := d.remote.Refresh(ctx)
		if err == nil {
			err = d.keys.keepIssuers(d.remote.Keys())
		}
		if ctx.Err() != nil {
			return
		}
		if err != nil && !away {
			log.WarnContext(ctx, "the issuer is away; no session can be opened", "err", err)
		} else if err == nil && away {
			log.InfoContext(ctx, "the issuer is back")
		}
		away = err != nil
	}
}
