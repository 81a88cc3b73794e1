package daemon

import (
	"context"
	"fmt"
	"sync"

	"github.com/handoff-governor/handoff-governor/handoff/identity"
)

// cutOff are the identities that operators have withdrawn: their SVIDs are valid until they expire, and whoever issues them
// need not know. The ledger says who they are, and the governor reads it once NATS is there.
type cutOff struct {
	known chan struct{} // closed once all are in names

	mu    sync.RWMutex
	names map[identity.Name]bool
}

func newCutOff() *cutOff {
	return &cutOff{known: make(chan struct{}), names: map[identity.Name]bool{}}
}

// complete says that all are in it that the ledger names.
func (c *cutOff) complete() { close(c.known) }

// wait waits until it is complete: nobody connects before.
func (c *cutOff) wait(ctx context.Context) error {
	select {
	case <-c.known:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("the ledger is still being read: %w", ctx.Err())
	}
}

func (c *cutOff) has(name identity.Name) bool {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return c.names[name]
}

func (c *cutOff) set(name identity.Name, withdrawn bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if withdrawn {
		c.names[name] = true
	} else {
		delete(c.names, name)
	}
}

// setWithdrawn is [governor.Config].Withdrawn. No connection is admitted any more before those that are there are cut.
func (d *Daemon) setWithdrawn(ctx context.Context, name string, withdrawn bool) error {
	d.cutOff.set(identity.Name(name), withdrawn)
	if !withdrawn {
		return nil
	}
	return d.bus.Disconnect(ctx, name)
}
