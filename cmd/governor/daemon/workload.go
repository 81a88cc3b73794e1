package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/jwtbundle"
	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
)

// workload is the governor, or the issuer, among the workloads of a trust domain that somebody else runs: its SVID and the trust bundles,
// from the Workload API, as they are now.
type workload struct {
	*workloadapi.BundleSource
	svids *workloadapi.X509Source
	id    spiffeid.ID
}

// trust is who vouches for those who connect.
type trust interface {
	x509bundle.Source
	jwtbundle.Source
}

const (
	svidWithin  = 30 * time.Second // of the start: the governor may have been registered a moment ago
	recheckWait = time.Second      // until another try
)

// newWorkload returns once there are bundles, and the SVID whose SPIFFE ID has this path.
func newWorkload(ctx context.Context, address, path string, log *slog.Logger) (_ *workload, err error) {
	if err := workloadapi.ValidateAddress(address); err != nil {
		return nil, fmt.Errorf("the Workload API %q: %w; it must be as in unix:///run/spire/agent.sock", address, err)
	}
	ctx, cancel := context.WithTimeout(ctx, svidWithin)
	defer cancel()
	options := workloadapi.WithClientOptions(workloadapi.WithAddr(address), workloadapi.WithLogger(spiffeLog{context.WithoutCancel(ctx), log}))
	w := &workload{}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("the Workload API at %s: %w; is it running, and is this process registered there as"+
				" spiffe://…%s?", address, err, path), w.Close())
		}
	}()
	if w.svids, err = workloadapi.NewX509Source(ctx, options, workloadapi.WithDefaultX509SVIDPicker(ownSVID(path))); err != nil {
		return nil, err
	}
	if w.BundleSource, err = workloadapi.NewBundleSource(ctx, options); err != nil {
		return nil, err
	}
	svid, err := w.svids.GetX509SVID()
	if err != nil {
		return nil, err
	}
	w.id = svid.ID
	if w.id.Path() != path {
		return nil, fmt.Errorf("it knows this process as %s", w.id)
	}
	return w, nil
}

// ownSVID finds the one with this path among those of a process that is registered for several.
func ownSVID(path string) func([]*x509svid.SVID) *x509svid.SVID {
	return func(svids []*x509svid.SVID) *x509svid.SVID {
		for _, svid := range svids {
			if svid.ID.Path() == path {
				return svid
			}
		}
		return svids[0]
	}
}

// recheck judges all connections again with each new trust bundle, until ctx ends.
func (w *workload) recheck(ctx context.Context, bus bus, log *slog.Logger) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-w.Updated():
		}
		for {
			err := bus.Recheck(ctx)
			if err == nil || ctx.Err() != nil {
				break
			}
			log.ErrorContext(ctx, "connections could not be judged by the new trust bundles; trying again", "err", err)
			select {
			case <-ctx.Done():
				return
			case <-time.After(recheckWait):
			}
		}
	}
}

func (w *workload) Close() error {
	var errs []error
	if w.BundleSource != nil {
		errs = append(errs, w.BundleSource.Close())
	}
	if w.svids != nil {
		errs = append(errs, w.svids.Close())
	}
	return errors.Join(errs...)
}

// spiffeLog brings go-spiffe's log into ours.
type spiffeLog struct {
	ctx context.Context
	log *slog.Logger
}

func (l spiffeLog) Debugf(f string, v ...any) { l.write(slog.LevelDebug, f, v) }
func (l spiffeLog) Infof(f string, v ...any)  { l.write(slog.LevelDebug, f, v) }
func (l spiffeLog) Warnf(f string, v ...any)  { l.write(slog.LevelWarn, f, v) }
func (l spiffeLog) Errorf(f string, v ...any) { l.write(slog.LevelWarn, f, v) } // it tries again

func (l spiffeLog) write(level slog.Level, format string, args []any) {
	l.log.Log(l.ctx, level, "workload api: "+fmt.Sprintf(format, args...))
}
