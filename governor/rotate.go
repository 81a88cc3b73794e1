package governor

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/handoff-governor/handoff-governor/governor/keyring"
	"github.com/handoff-governor/handoff-governor/handoff/entry"
	"github.com/handoff-governor/handoff-governor/handoff/wire"
)

// This file is how an operator has a key replaced, and what anybody may know of keys.

// rotate replaces the governor's key, the log's, or the issuer's where it is in this process. It is on record before it is so.
func (g *Governor) rotate(ctx context.Context, of string, stolen bool, by, reason string) (uint64, *wire.Error) {
	switch {
	case of != entry.OfGovernor && of != entry.OfIssuer && of != entry.OfLog:
		return 0, wire.Refuse(wire.CodeMalformed, "of must be governor, issuer or log")
	case len(reason) > wire.MaxPurpose:
		return 0, wire.Refuse(wire.CodeMalformed, fmt.Sprintf("reason must have at most %d bytes", wire.MaxPurpose))
	case g.cfg.Rotate == nil:
		return 0, wire.Refuse(wire.CodeForbidden, "the keys are not kept here")
	}
	g.rotating.Lock()
	defer g.rotating.Unlock()
	next, commit, err := g.cfg.Rotate(of, stolen)
	if errors.Is(err, keyring.ErrPending) {
		return 0, wire.Refuse(wire.CodeRotating, err.Error())
	}
	if refusal, ok := errors.AsType[*wire.Error](err); ok {
		return 0, refusal
	}
	if err != nil {
		return 0, unavailable(err)
	}
	made := next[0]
	rotated := &entry.Rotated{Of: of, JWK: made.JWK(), From: made.From.Unix(), Until: made.From.Unix(), By: by, Reason: reason}
	for _, k := range next[1:] {
		rotated.Until = max(rotated.Until, k.Until.Unix())
	}
	var index uint64
	var refusal *wire.Error
	err = g.do(ctx, func(b *batch) error {
		if refusal = b.st.acts(by); refusal != nil {
			return nil
		}
		if stolen {
			if err := g.endUnder(b, of, by); err != nil {
				return err
			}
		}
		e := &entry.Entry{Kind: entry.KindRotated, Rotated: rotated}
		if err := b.write(e, known{}, nil, nil); err != nil {
			return err
		}
		index = e.Index
		return nil
	})
	if err != nil {
		return 0, unavailable(err)
	}
	if refusal != nil {
		return 0, refusal
	}
	if err := commit(); err != nil {
		g.log.ErrorContext(ctx, "a key is on record and could not be stored", "of", of, "entry", index, "err", err)
		return 0, wire.Refuse(wire.CodeUnavailable, "the key could not be stored, and the ones before it are used on; see to the disk and rotate again")
	}
	if err := g.retrust(); err != nil {
		return 0, unavailable(err)
	}
	g.log.WarnContext(ctx, "key rotated", "of", of, "kid", rotated.JWK.Thumbprint(), "from", made.From, "by", by, "entry", index)
	return index, nil
}

// endUnder ends what hangs on a key that nobody trusts any more: under the issuer's all sessions, under the governor's all handoffs.
func (g *Governor) endUnder(b *batch, of, by string) error {
	reason := "the key of the " + of + " was stolen"
	if of == entry.OfLog {
		return nil
	}
	if of == entry.OfIssuer {
		for _, s := range b.st.opened() {
			if err := g.close(b, s, by, reason, nil); err != nil {
				return err
			}
		}
		return nil
	}
	for _, h := range b.st.openWhere(func(*handoff) bool { return true }) {
		if err := end(b, h, by, reason); err != nil {
			return err
		}
	}
	return nil
}

// keysList are the keys and their times.
func (g *Governor) keysList() wire.OperatorResponse {
	var out wire.OperatorResponse
	for _, k := range g.cfg.Keys.Live() {
		out.Keys = append(out.Keys, KeyTimes(entry.OfGovernor, k))
	}
	if g.cfg.LogKeys != nil {
		_, ring := g.cfg.LogKeys()
		for _, k := range ring {
			out.Keys = append(out.Keys, KeyTimes(entry.OfLog, k))
		}
	}
	if issuer, ok := g.cfg.Issuer.(interface{ Ring() keyring.Ring }); ok {
		for _, k := range issuer.Ring() {
			out.Keys = append(out.Keys, KeyTimes(entry.OfIssuer, k))
		}
		return out
	}
	for _, jwk := range g.cfg.Issuer.Keys() {
		out.Keys = append(out.Keys, wire.KeyTimes{Of: entry.OfIssuer, JWK: jwk})
	}
	return out
}

// KeyTimes are a key and its times, as operators are told.
func KeyTimes(of string, k keyring.Key) wire.KeyTimes {
	unix := func(t time.Time) int64 {
		if t.IsZero() {
			return 0
		}
		return t.Unix()
	}
	return wire.KeyTimes{Of: of, JWK: k.JWK(), From: unix(k.From), Taken: unix(k.Taken), Until: unix(k.Until)}
}
