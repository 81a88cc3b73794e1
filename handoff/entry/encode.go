package entry

import (
	"bytes"
	"errors"
	"fmt"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"golang.org/x/mod/sumdb/tlog"
)

// MaxSize is the largest encoded entry, in bytes: one fits a NATS message, with an operator's answer around it.
const MaxSize = 2<<20 - 64<<10

// maxExact is the largest integer that every JSON reader takes for what it is (RFC 7493 section 2.2).
const maxExact = 1<<53 - 1

// Encode returns the entry's canonical JSON (RFC 8785), the bytes that are stored and hashed. It refuses an entry that
// [Decode] would not give back: one without the member of its kind, for one, or longer than [MaxSize].
func (e *Entry) Encode() ([]byte, error) {
	if err := e.check(); err != nil {
		return nil, err
	}
	b, err := e.canonical()
	if err != nil {
		return nil, fmt.Errorf("encoding entry %d: %w", e.Index, err)
	}
	if len(b) > MaxSize {
		return nil, fmt.Errorf("entry %d has %d bytes; at most %d are allowed", e.Index, len(b), MaxSize)
	}
	return b, nil
}

func (e *Entry) canonical() ([]byte, error) {
	b, err := json.Marshal(e, json.Deterministic(true))
	if err != nil {
		return nil, err
	}
	if err := (*jsontext.Value)(&b).Canonicalize(); err != nil {
		return nil, err
	}
	for _, raw := range e.raw() {
		// What was judged or will be signed must be kept to the byte, so it must have come in canonical form. Then, and only
		// then, b has it verbatim: in canonical JSON {" stands nowhere but at the beginning of an object.
		if raw != nil && (!bytes.HasPrefix(raw, []byte(`{"`)) && string(raw) != "{}" || !bytes.Contains(b, raw)) {
			return nil, fmt.Errorf("not an object in canonical form (RFC 8785): %.60s", raw)
		}
	}
	return b, nil
}

// raw lists what the entry holds as JSON.
func (e *Entry) raw() []jsontext.Value {
	var raw []jsontext.Value
	add := func(d *Decision) {
		if d != nil {
			raw = append(raw, d.Input, d.Answer)
		}
	}
	switch {
	case e.Opened != nil:
		add(&e.Opened.Decision)
	case e.Decided != nil:
		add(e.Decided.Decision)
	case e.Approved != nil && e.Approved.Decided != nil:
		add(e.Approved.Decided.Decision)
	case e.Claimed != nil:
		add(&e.Claimed.Decision)
		raw = append(raw, e.Claimed.Payload)
	case e.Result != nil:
		add(e.Result.Decision)
	case e.Rejudged != nil:
		add(&e.Rejudged.Decision)
	}
	return raw
}

// Decode reads an encoded entry. Exactly the bytes that [Entry.Encode] makes are accepted: canonical, without unknown or
// repeated members, of a known version and kind.
func Decode(b []byte) (*Entry, error) {
	if len(b) > MaxSize {
		return nil, fmt.Errorf("entry has %d bytes; at most %d are allowed", len(b), MaxSize)
	}
	var e Entry
	if err := json.Unmarshal(b, &e, json.RejectUnknownMembers(true)); err != nil {
		return nil, fmt.Errorf("decoding entry: %w", err)
	}
	if err := e.check(); err != nil {
		return nil, err
	}
	again, err := e.canonical()
	if err != nil {
		return nil, fmt.Errorf("decoding entry %d: %w", e.Index, err)
	}
	if !bytes.Equal(again, b) {
		return nil, fmt.Errorf("entry %d is not in canonical form", e.Index)
	}
	return &e, nil
}

// LeafHash is the hash of an encoded entry in the Merkle tree: SHA-256(0x00 ‖ b), RFC 6962 section 2.1.
func LeafHash(b []byte) tlog.Hash { return tlog.RecordHash(b) }

// check refuses what no reader could make sense of.
func (e *Entry) check() error {
	switch {
	case e.Version != Version:
		return fmt.Errorf("entry has version %d; this program knows %d", e.Version, Version)
	case e.Log == "":
		return errors.New("entry names no log")
	case e.Index > maxExact:
		return fmt.Errorf("entry's index is above %d", uint64(maxExact))
	case e.Time < 0 || e.Time > maxExact:
		return fmt.Errorf("entry %d: its time must be between 1970 and %d ms after", e.Index, uint64(maxExact))
	}
	if e.Claimed != nil && e.Claimed.Payload == nil {
		return fmt.Errorf("entry %d: a claim without a payload", e.Index)
	}
	members := [...]struct {
		kind    Kind
		present bool
	}{
		{KindSession, e.Opened != nil}, {KindClosed, e.Closed != nil}, {KindDecided, e.Decided != nil},
		{KindApproved, e.Approved != nil}, {KindClaimed, e.Claimed != nil}, {KindResult, e.Result != nil},
		{KindRevoked, e.Revoked != nil}, {KindBundle, e.Bundle != nil}, {KindRejudged, e.Rejudged != nil},
		{KindQuarantined, e.Quarantined != nil}, {KindIdentity, e.Identity != nil},
		{KindRotated, e.Rotated != nil},
	}
	known := false
	for _, m := range members {
		mine := m.kind == e.Kind
		known = known || mine
		if m.present != mine {
			return fmt.Errorf("entry %d of kind %.50q must have the member of its kind, and of no other", e.Index, e.Kind)
		}
	}
	if !known {
		return fmt.Errorf("entry %d: unknown kind %.50q", e.Index, e.Kind)
	}
	return nil
}
