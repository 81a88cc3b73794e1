package wire

import (
	"github.com/go-json-experiment/json/jsontext"

	"github.com/handoff-governor/handoff-governor/handoff/aat"
)

// OperatorRequest is the body of every operator's request; each verb reads the members that its comment names.
type OperatorRequest struct {
	Session string `json:"session,omitempty"` // session.close; session.list: those before it; chain.entries: only this one's, newest first
	Reason  string `json:"reason,omitempty"`  // session.close, revoke, identity.withdraw, identity.restore, keys.rotate
	ID      string `json:"id,omitempty"`      // revoke: a link's jti, a handoff's or a session's ID
	From    uint64 `json:"from,omitzero"`     // chain.entries: the first index; of a session, the answer's next; quarantine.list: the first number
	Index   uint64 `json:"index,omitzero"`    // body, approve; quarantine.show, .retry, .drop: the number
	Approve bool   `json:"approve,omitzero"`  // approve: false turns it down
	Digest  string `json:"digest,omitempty"`  // bundle
	Bundle  []byte `json:"bundle,omitempty"`  // bundle.activate, base64
	Of      string `json:"of,omitempty"`      // keys.rotate: governor | issuer | log
	Stolen  bool   `json:"stolen,omitzero"`   // keys.rotate: the keys there are end at once
	Name    string `json:"name,omitempty"`    // identity.withdraw, identity.restore: whose; identity.list: those after it
}

// OperatorResponse answers an [OperatorRequest]; session.close is answered with a [SessionStatus].
type OperatorResponse struct {
	Error       *Error           `json:"error,omitempty"`
	Sessions    []SessionStatus  `json:"sessions,omitempty"`
	Identities  []Withdrawn      `json:"identities,omitempty"`
	Quarantined []Quarantined    `json:"quarantined,omitempty"`
	More        bool             `json:"more,omitzero"`     // there are sessions before the last of these, or others after
	Entries     []jsontext.Value `json:"entries,omitempty"` // as they stand in the ledger, byte for byte
	Size        uint64           `json:"size,omitzero"`     // of the ledger
	Next        uint64           `json:"next,omitzero"`     // of a session: where the next page begins; 0 for none, an opening is never further
	Checkpoint  string           `json:"checkpoint,omitempty"`
	Salt        []byte           `json:"salt,omitempty"`
	Body        []byte           `json:"body,omitempty"`
	Bundle      []byte           `json:"bundle,omitempty"`
	Entry       uint64           `json:"entry,omitzero"`
	Effect      string           `json:"effect,omitempty"` // what is so now: of approve, a handoff's status; of identity.…, see below
	Health      *Health          `json:"health,omitempty"`
	Keys        []KeyTimes       `json:"keys,omitempty"` // keys.list: the newest of each signer first
}

// Health is what an operator should look at first.
type Health struct {
	Log      string `json:"log"`
	Entries  uint64 `json:"entries"`
	Bundle   string `json:"bundle"`
	Sessions int    `json:"sessions"` // in memory: open, or over and not yet expired
	Handoffs int    `json:"handoffs"`
	Held     int    `json:"held"` // decisions that wait for approval
	// Troubles are faults of the infrastructure: while there are any, something is not done that should be.
	Troubles []Trouble `json:"troubles,omitempty"`
}

// Trouble is a fault that there is now. It ends by itself with its cause.
type Trouble struct {
	Of      string `json:"of"`      // ledger | streams | clock
	Since   int64  `json:"since"`   // Unix seconds
	Message string `json:"message"` // what does not happen, and what to do
}

// KeyTimes are the times of a key of the governor, the issuer or the log, in Unix seconds; 0 is no bound.
type KeyTimes struct {
	Of    string  `json:"of"` // governor | issuer | log
	JWK   aat.JWK `json:"jwk"`
	From  int64   `json:"from,omitzero"`  // it signs what is new from then on
	Taken int64   `json:"taken,omitzero"` // what is new and names it is taken until then
	Until int64   `json:"until,omitzero"` // it is trusted until then
}

// Quarantined is a message that was refused, and kept for operators.
type Quarantined struct {
	Number  uint64              `json:"number"`
	Agent   string              `json:"agent"` // that sent it
	Kind    string              `json:"kind"`  // offer | result
	Session string              `json:"session"`
	To      string              `json:"to,omitempty"` // of an offer
	Code    Code                `json:"code"`
	Reason  string              `json:"reason"`
	At      int64               `json:"at"`                // Unix seconds
	Bytes   int                 `json:"bytes"`             // of its body, as it came
	Cut     bool                `json:"cut,omitzero"`      // not all of it is kept, so that it cannot be tried again
	Headers map[string][]string `json:"headers,omitempty"` // quarantine.show
	Body    []byte              `json:"body,omitempty"`    // quarantine.show, base64
}

// Withdrawn is an identity that was withdrawn.
type Withdrawn struct {
	Name   string `json:"name"`
	By     string `json:"by"`
	At     int64  `json:"at"` // Unix seconds
	Reason string `json:"reason,omitempty"`
	Entry  uint64 `json:"entry"`
}

// Effects of identity.withdraw and identity.restore.
const (
	EffectRestored  = "restored"
	EffectWithdrawn = "withdrawn"
	EffectCutting   = "cutting" // it is refused, but servers could not be reached that may have a connection of it: tried again each second
)
