package daemon

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/handoff-governor/handoff-governor/governor/issuer"
	"github.com/handoff-governor/handoff-governor/handoff/aat"
	"github.com/handoff-governor/handoff-governor/handoff/identity"
)

// This file is an issuer as a process of its own: whoever has the governor, all of it, cannot sign a root, nor have one signed in
// the name of an agent whose SVID it does not have.

// IssuerConfig of an issuer. Dir, Listen and WorkloadAPI must be there.
type IssuerConfig struct {
	// Dir has issuer.pem; both are made where they are not there.
	Dir string
	// Listen is host:port for the governor.
	Listen string
	// WorkloadAPI knows this process as /issuer.
	WorkloadAPI string
	// Ceiling, People and MaxTTL are as in [issuer.Config].
	Ceiling aat.Tools
	People  map[string]aat.JWK
	MaxTTL  time.Duration
	// Logger hears of every root. Nil: nobody does.
	Logger *slog.Logger
}

// IssuerServer is a running issuer.
type IssuerServer struct {
	URI string
	URL string

	workload *workload
	server   *http.Server
	cancel   context.CancelFunc
	done     chan struct{}
	err      error
}

// IssuerKeys is the file of an issuer's keys.
func IssuerKeys(dir string) string { return filepath.Join(dir, issuerFile) }

// StartIssuer serves an issuer. Stop it with Close.
func StartIssuer(ctx context.Context, cfg IssuerConfig) (_ *IssuerServer, err error) {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, err
	}
	if err := os.Chmod(cfg.Dir, 0o700); err != nil {
		return nil, err
	}
	ring, err := LoadRing(IssuerKeys(cfg.Dir))
	if err != nil {
		return nil, err
	}
	s := &IssuerServer{done: make(chan struct{})}
	if s.workload, err = newWorkload(ctx, cfg.WorkloadAPI, "/issuer", cfg.Logger); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.workload.Close())
		}
	}()
	governor, err := spiffeid.FromPath(s.workload.id.TrustDomain(), "/governor")
	if err != nil {
		return nil, err
	}
	s.URI = s.workload.id.String()
	i, err := issuer.New(issuer.Config{
		URI: s.URI, Keys: ring, Governor: governor.String(), Bundles: s.workload, Ceiling: cfg.Ceiling, People: cfg.People, MaxTTL: cfg.MaxTTL,
	})
	if err != nil {
		return nil, err
	}
	listener, err := net.Listen("tcp", cfg.Listen)
	if err != nil {
		return nil, fmt.Errorf("cannot listen on %s: %w", cfg.Listen, err)
	}
	s.URL = "https://" + listener.Addr().String()
	s.server = &http.Server{
		Handler: issuer.Handler(i, cfg.Logger), TLSConfig: identity.ServerTLS(s.workload.svids, s.workload, identity.AnyPeer),
		ReadTimeout: 10 * time.Second, WriteTimeout: 10 * time.Second, IdleTimeout: time.Minute, MaxHeaderBytes: 16 << 10,
		ErrorLog: slog.NewLogLogger(cfg.Logger.Handler(), slog.LevelDebug),
	}
	ctx, s.cancel = context.WithCancel(context.WithoutCancel(ctx))
	go func() {
		defer close(s.done)
		follow(ctx, IssuerKeys(cfg.Dir), i, cfg.Logger)
	}()
	go func() {
		if err := s.server.Serve(tls.NewListener(listener, s.server.TLSConfig)); !errors.Is(err, http.ErrServerClosed) {
			s.err = err
		}
		s.cancel()
	}()
	return s, nil
}

// follow takes over the keys of a file whenever it is another one, and destroys those whose time is over, until ctx ends.
func follow(ctx context.Context, file string, i *issuer.Issuer, log *slog.Logger) {
	tick := time.NewTicker(keepEvery)
	defer tick.Stop()
	var last os.FileInfo
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		now, err := os.Stat(file)
		if err == nil && last != nil && os.SameFile(now, last) && now.ModTime().Equal(last.ModTime()) && len(i.Keys()) == i.Held() {
			continue
		}
		ring, err := LoadRing(file)
		if err == nil {
			left, less := ring.Prune(time.Now())
			if less {
				err = SaveRing(file, left)
			}
			err = errors.Join(err, i.Replace(left))
		}
		if err != nil {
			log.ErrorContext(ctx, "the keys cannot be read again; those before are used on", "err", err)
			continue
		}
		last = now
	}
}

// Done is closed when the issuer has stopped.
func (s *IssuerServer) Done() <-chan struct{} { return s.done }

// Close ends it, once what was begun is answered.
func (s *IssuerServer) Close() error {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	err := s.server.Shutdown(ctx)
	s.cancel()
	<-s.done
	return errors.Join(err, s.err, s.workload.Close())
}
