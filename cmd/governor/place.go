package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"

	"github.com/handoff-governor/handoff-governor/cmd/governor/daemon"
	"github.com/handoff-governor/handoff-governor/governor/ledger"
	"github.com/handoff-governor/handoff-governor/handoff"
	"github.com/handoff-governor/handoff-governor/handoff/identity"
	"github.com/handoff-governor/handoff-governor/handoff/wire"
)

// This file finds the governor of a data directory: the one that runs, or what one left behind.

// operatorPath is the identity that a data directory always has a socket for.
const operatorPath = "/operator/local"

// operatorSocket is the file name of that socket.
const operatorSocket = "=soperator=slocal.sock"

const (
	connectWithin = 5 * time.Second
	answerWithin  = 30 * time.Second // of one request; an activation judges every live grant again
)

// record is a ledger to read: a running governor's, or one that lies still.
type record interface {
	daemon.Record
	Session(id string) iter.Seq2[[]byte, error] // its entries, newest first
	Close() error
}

// place is a data directory.
type place struct {
	dir string
	daemon.Endpoint
}

func findPlace(cmd *cobra.Command) (*place, error) {
	dir, err := cmd.Flags().GetString("data")
	if err != nil {
		return nil, err
	}
	endpoint, err := daemon.LoadEndpoint(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("there is no governor's data in %s: name the directory with --data, or begin with \"governor up\"", dir)
	}
	if err != nil {
		return nil, err
	}
	return &place{dir: dir, Endpoint: endpoint}, nil
}

// runs tells whether a governor serves the directory.
func (p *place) runs() bool { return ledger.InUse(daemon.LedgerPath(p.dir)) }

// start is how a governor is started there.
func (p *place) start() string {
	if p.Sockets == "" {
		return "governor serve --config governor.yaml"
	}
	return "governor up --data " + p.dir
}

// operator connects to the running governor.
func (p *place) operator(ctx context.Context) (*operator, error) {
	if !p.runs() {
		return nil, fmt.Errorf("no governor runs on %s: start it with \"%s\"", p.dir, p.start())
	}
	ctx, cancel := context.WithTimeout(ctx, connectWithin)
	defer cancel()
	address := os.Getenv("SPIFFE_ENDPOINT_SOCKET")
	if p.Sockets != "" {
		socket, err := filepath.Abs(filepath.Join(p.dir, "ca", "sock", operatorSocket))
		if err != nil {
			return nil, err
		}
		address = "unix://" + socket
	} else if address == "" {
		return nil, fmt.Errorf("SPIFFE_ENDPOINT_SOCKET is not set: operators of %s have their identity, below /operator/, from its Workload API", p.TrustDomain)
	}
	source, err := workloadapi.NewX509Source(ctx, workloadapi.WithClientOptions(workloadapi.WithAddr(address)),
		workloadapi.WithDefaultX509SVIDPicker(operatorSVID))
	if err != nil {
		return nil, fmt.Errorf("the Workload API at %s gives no identity: %w", address, err)
	}
	o, err := handoff.ConnectOperator(ctx, handoff.Config{URL: p.URL, Source: source})
	if err != nil {
		return nil, errors.Join(err, source.Close())
	}
	return &operator{o, source}, nil
}

// operatorSVID finds an operator's among those of a process that is registered for several.
func operatorSVID(svids []*x509svid.SVID) *x509svid.SVID {
	for _, svid := range svids {
		if role, err := identity.RoleOf(svid.ID, svid.ID.TrustDomain()); err == nil && role == identity.RoleOperator {
			return svid
		}
	}
	return svids[0]
}

// operator is a connection together with the identity it was made with.
type operator struct {
	*handoff.Operator
	source *workloadapi.X509Source
}

func (o *operator) Close() error { return errors.Join(o.Operator.Close(), o.source.Close()) }

// open opens the record, whoever holds it.
func (p *place) open(ctx context.Context) (record, error) {
	if p.runs() {
		o, err := p.operator(ctx)
		if err != nil {
			return nil, err
		}
		return &remote{ctx, o}, nil
	}
	if err := daemon.CheckLedger(p.dir); err != nil {
		return nil, err
	}
	l, err := ledger.Open(daemon.LedgerPath(p.dir), ledger.Config{ReadOnly: true})
	if err != nil {
		return nil, err
	}
	return l, nil
}

// remote is the record of a running governor.
type remote struct {
	ctx context.Context
	*operator
}

func (r *remote) within() (context.Context, context.CancelFunc) {
	return context.WithTimeout(r.ctx, answerWithin)
}

func (r *remote) Checkpoint() ([]byte, error) {
	ctx, cancel := r.within()
	defer cancel()
	return r.operator.Checkpoint(ctx)
}

func (r *remote) Entries(from uint64) iter.Seq2[[]byte, error] {
	return r.operator.Entries(r.ctx, from)
}

func (r *remote) Session(id string) iter.Seq2[[]byte, error] {
	return r.operator.Session(r.ctx, id)
}

func (r *remote) Body(index uint64) (salt, data []byte, err error) {
	ctx, cancel := r.within()
	defer cancel()
	salt, data, err = r.operator.Body(ctx, index)
	if errors.Is(err, &wire.Error{Code: wire.CodeHandoffUnknown}) {
		err = fmt.Errorf("%w: %w", ledger.ErrNotFound, err)
	}
	return salt, data, err
}

func (r *remote) Bundle(digest string) ([]byte, error) {
	ctx, cancel := r.within()
	defer cancel()
	content, err := r.operator.Bundle(ctx, digest)
	if errors.Is(err, &wire.Error{Code: wire.CodeBundle}) {
		err = fmt.Errorf("%w: %w", ledger.ErrNotFound, err)
	}
	return content, err
}

// reading runs f on the record of the command's data directory.
func reading(cmd *cobra.Command, f func(*place, record) error) (err error) {
	p, err := findPlace(cmd)
	if err != nil {
		return err
	}
	r, err := p.open(cmd.Context())
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	return f(p, r)
}

// operating runs f as the operator of the running governor.
func operating(cmd *cobra.Command, f func(context.Context, *place, *operator) error) (err error) {
	p, err := findPlace(cmd)
	if err != nil {
		return err
	}
	o, err := p.operator(cmd.Context())
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, o.Close()) }()
	ctx, cancel := context.WithTimeout(cmd.Context(), answerWithin)
	defer cancel()
	return f(ctx, p, o)
}
