package handoff

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/handoff-governor/handoff-governor/handoff/aat"
	"github.com/handoff-governor/handoff-governor/handoff/wire"
)

// keys are whom to trust, as the governor says, and when it did.
type keys struct {
	wire.Keys
	verifier *aat.Verifier
	read     time.Time
}

// Keys asks the governor for its keys, the issuer's and the log's.
func (c *Client) Keys(ctx context.Context) (wire.Keys, error) {
	k, err := c.askKeys(ctx)
	if err != nil {
		return wire.Keys{}, err
	}
	return k.Keys, nil
}

func (c *Client) askKeys(ctx context.Context) (*keys, error) {
	type answer struct {
		Error *wire.Error `json:"error"`
		wire.Keys
	}
	a, err := call(ctx, c, wire.SubjectKeys, func() ([]byte, error) { return []byte("{}"), nil },
		func(a *answer) *wire.Error { return a.Error })
	if err != nil {
		return nil, err
	}
	k := &keys{Keys: a.Keys, verifier: &aat.Verifier{Now: c.cfg.Now}, read: c.cfg.Now()}
	if k.Governor == "" || len(k.GovernorKeys) == 0 {
		return nil, errors.New("handoff: the governor's answer has no keys")
	}
	for _, jwk := range k.IssuerKeys {
		key, err := jwk.Key()
		if err != nil {
			return nil, fmt.Errorf("handoff: the issuer's key: %w", err)
		}
		k.verifier.Anchors = append(k.verifier.Anchors, aat.Anchor{Issuer: k.Issuer, Key: key})
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.keys = k
	return k, nil
}

// trusted returns the governor's keys, not older than keysAge: the current one is what an offer must name, and the old
// ones go on to be good for a while after a rotation.
func (c *Client) trusted(ctx context.Context) (*keys, error) {
	c.mu.Lock()
	k := c.keys
	c.mu.Unlock()
	if k != nil && c.cfg.Now().Sub(k.read).Abs() < keysAge {
		return k, nil
	}
	return c.askKeys(ctx)
}

// replaced has the keys asked for again where they are not those of now: the governor names another for the next offer. Nil:
// it takes no offers that name this one.
func (c *Client) replaced(now *aat.JWK) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if now == nil || c.keys != nil && c.keys.GovernorKeys[0] != *now {
		c.keys = nil
	}
}
