package handoff

import (
	"context"
	"fmt"

	"github.com/go-json-experiment/json"
	"github.com/nats-io/nats.go"

	"github.com/handoff-governor/handoff-governor/handoff/guard"
	"github.com/handoff-governor/handoff-governor/handoff/wire"
)

// maxFeedBacklog is how many statements may wait for a guard; beyond it some are lost, and a snapshot makes up for them.
const maxFeedBacklog = 8192

// WatchRevocations brings a guard the governor's revocations until ctx ends; it returns why it did. The guard refuses
// calls until its first snapshot is there, which takes milliseconds, and whenever the governor has not been heard for
// too long. The client must be a guard's, /guard/… in the governor's trust domain: agents have no such feed.
func (c *Client) WatchRevocations(ctx context.Context, g *guard.Guard) error {
	ctx, cancel := c.until(ctx)
	defer cancel()
	statements := make(chan *nats.Msg, maxFeedBacklog)
	sub, err := c.nc.ChanSubscribe(wire.SubjectRevoked, statements)
	if err != nil {
		return fmt.Errorf("handoff: subscribing to revocations: %w", err)
	}
	defer sub.Unsubscribe()
	// The subscription first, the snapshot after it: nothing falls between them.
	k, err := c.trusted(ctx)
	if err != nil {
		return err
	}
	for {
		for after, needed := g.NeedSnapshot(k.Governor); needed; after, needed = g.NeedSnapshot(k.Governor) {
			if err := c.snapshot(ctx, g, after); err != nil {
				if ctx.Err() != nil {
					return context.Cause(ctx)
				}
				c.log.WarnContext(ctx, "reading the revocations failed; the guard refuses calls", "error", err)
				if !pause(ctx, firstRetry) {
					return context.Cause(ctx)
				}
			}
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case msg := <-statements:
			if err := g.Feed(string(msg.Data)); err != nil {
				c.log.WarnContext(ctx, "a revocation statement was not believed", "error", err)
			}
		}
	}
}

// snapshot brings the guard one page of what is revoked.
func (c *Client) snapshot(ctx context.Context, g *guard.Guard, after string) error {
	request, err := json.Marshal(wire.RevocationsRequest{After: after})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, tryTimeout)
	defer cancel()
	life, err := c.line.wait(ctx)
	if err != nil {
		return err
	}
	ctx, done := during(ctx, life)
	defer done()
	page, err := c.nc.RequestWithContext(ctx, wire.SubjectRevocations, request)
	if err != nil {
		return err
	}
	return g.Feed(string(page.Data))
}

// WatchKeys gives a guard the keys that the governor says it and the issuer have, every minute until ctx ends; it returns why it did.
// It is for guards that were made with [guard.IssuerOf]: who has pinned keys by configuration replaces them there.
func (c *Client) WatchKeys(ctx context.Context, g *guard.Guard) error {
	ctx, cancel := c.until(ctx)
	defer cancel()
	for pause(ctx, keysAge) {
		k, err := c.askKeys(ctx)
		if err != nil {
			break // ctx has ended: it asks until then
		}
		issuer, err := guard.IssuerOf(k.Keys)
		if err == nil {
			err = g.Update(issuer)
		}
		if err != nil {
			c.log.ErrorContext(ctx, "the governor's keys cannot be used; those before are trusted on", "error", err)
		}
	}
	return context.Cause(ctx)
}
