// Package entry is the encoding of the governor's ledger, and the verifier of it.
//
// An [Entry] is one thing that happened: a session was opened, an offer decided, a task claimed. A [Checkpoint] is the
// log's signature over all entries up to one, by way of their Merkle tree. [Verify] reads a whole log and finds the
// first entry that cannot be true; [CheckInclusion] and [CheckConsistency] need only a proof.
//
// The verifier shares nothing with the writer but this encoding and the reading of tokens (package aat): whoever
// distrusts the governor needs this package, or docs/ledger.md and any JSON and SHA-256, with the log's public key and
// the issuer's, and nothing else.
package entry

import (
	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/handoff-governor/handoff-governor/handoff/aat"
	"github.com/handoff-governor/handoff-governor/handoff/aat/jws"
	"github.com/handoff-governor/handoff-governor/handoff/wire"
)

// Version is the version of the encoding, in every entry.
const Version = 1

// Kind says what an entry records. For each there is one member of [Entry] that holds the rest.
type Kind string

// The kinds of entries.
const (
	KindSession     Kind = "session_opened"
	KindClosed      Kind = "session_closed"
	KindDecided     Kind = "decided"  // an offer, or a claim or a session that was not granted
	KindApproved    Kind = "approved" // a person's answer to a held decision
	KindClaimed     Kind = "claimed"
	KindResult      Kind = "result"
	KindRevoked     Kind = "revoked"
	KindBundle      Kind = "bundle_activated"
	KindRejudged    Kind = "rejudged"
	KindQuarantined Kind = "quarantined"
	KindIdentity    Kind = "identity" // withdrawn, or restored
	KindRotated     Kind = "key_rotated"
)

// Entry is one record of the ledger. Its bytes are its RFC 8785 JSON; its leaf in the Merkle tree is SHA-256(0x00 ‖
// bytes), RFC 6962 section 2.1.
type Entry struct {
	Version int    `json:"v"`
	Log     string `json:"log"`   // the checkpoint origin
	Index   uint64 `json:"index"` // from 0, gapless
	Time    int64  `json:"time"`  // Unix milliseconds; one reading a batch, never backwards
	Kind    Kind   `json:"kind"`

	Session string `json:"session,omitempty"`
	Handoff string `json:"handoff,omitempty"` // its ID: the jti of its offer link
	From    string `json:"from,omitempty"`    // agent names
	To      string `json:"to,omitempty"`
	// Grant is the jti of the grant acted under: the parent of an offer, the maker of a result, the root of an opened or
	// closed session; of a claim, the grant that it makes.
	Grant string `json:"grant,omitempty"`

	Prev Prev `json:"prev"`

	Opened      *Opened      `json:"opened,omitempty"`
	Closed      *Closed      `json:"closed,omitempty"`
	Decided     *Decided     `json:"decided,omitempty"`
	Approved    *Approved    `json:"approved,omitempty"`
	Claimed     *Claimed     `json:"claimed,omitempty"`
	Result      *Result      `json:"result,omitempty"`
	Revoked     *Revoked     `json:"revoked,omitempty"`
	Bundle      *Bundle      `json:"bundle,omitempty"`
	Rejudged    *Rejudged    `json:"rejudged,omitempty"`
	Quarantined *Quarantined `json:"quarantined,omitempty"`
	Identity    *Identity    `json:"identity,omitempty"`
	Rotated     *Rotated     `json:"rotated,omitempty"`
}

// Prev points back to the newest earlier entry of the same session, sender, receiver and grant. A member is absent
// where there is none.
type Prev struct {
	Session  *uint64 `json:"session,omitzero"`
	Sender   *uint64 `json:"sender,omitzero"`
	Receiver *uint64 `json:"receiver,omitzero"`
	Grant    *uint64 `json:"grant,omitzero"`
}

// Decision is what a policy said, and everything needed to hear it say so again.
type Decision struct {
	Entrypoint string         `json:"entrypoint"`        // session | decision | result
	Input      jsontext.Value `json:"input,omitempty"`   // the exact input, RFC 8785
	Answer     jsontext.Value `json:"answer,omitempty"`  // the exact answer, RFC 8785; absent where the policy gave none
	Bundle     string         `json:"bundle"`            // digest
	Engine     string         `json:"engine"`            // OPA's version and ours
	Failure    wire.Code      `json:"failure,omitempty"` // policy_error, policy_timeout, policy_undefined, policy_answer
}

// Opened records a session and its root grant.
type Opened struct {
	Root          string         `json:"root"` // the root link, compact
	Opener        string         `json:"opener"`
	Principal     wire.Principal `json:"principal"`
	ObjectiveHash string         `json:"objective_hash"` // of salt ‖ objective, which are stored as the entry's body
	Labels        []string       `json:"labels,omitempty"`
	MaxHops       int            `json:"max_hops"`
	Budget        *wire.Budget   `json:"budget,omitempty"`
	Decision      Decision       `json:"decision"`
}

// Closed ends a session, and revokes everything under it.
type Closed struct {
	By     string `json:"by"`     // an agent's name, an operator's, or "expiry"
	Reason string `json:"reason"` // closed | expired | what the operator gave
}

// Stages at which a session or a handoff is judged.
const (
	StageSession = "session" // only what was not allowed; a session that opens has an entry of its own
	StageOffer   = "offer"
	StageClaim   = "claim"
	StageResult  = "result"
)

// Decided records the judgement of an offer, or of a claim or a session that was denied or held.
type Decided struct {
	Stage    string        `json:"stage"`
	Offer    string        `json:"offer,omitempty"` // the offer link, compact; absent at the claim stage
	Effect   string        `json:"effect"`          // allow | deny | hold
	Reasons  []wire.Reason `json:"reasons,omitempty"`
	Granted  aat.Tools     `json:"granted,omitzero"` // Meet(offer, ceiling), for allow and hold
	Labels   []string      `json:"labels,omitempty"` // those that count
	TaskHash string        `json:"task_hash,omitempty"`
	Expires  int64         `json:"exp,omitzero"`      // Unix seconds: last moment of the work
	Deadline int64         `json:"deadline,omitzero"` // Unix seconds: last moment to claim
	MaxDepth int           `json:"max_depth,omitzero"`
	Decision *Decision     `json:"decision,omitempty"` // absent where the offer failed before policy was asked
}

// Approved answers a held decision.
type Approved struct {
	Of      uint64   `json:"of"` // index of the held decision
	By      string   `json:"by"`
	Approve bool     `json:"approve"`
	Decided *Decided `json:"decided,omitempty"` // the judgement made again with the approval in its input
}

// Claimed records a credential that is about to be signed: the payload is exactly what the signature will cover.
type Claimed struct {
	Payload    jsontext.Value `json:"payload"`              // of the claim link, RFC 8785
	Governor   string         `json:"governor"`             // thumbprint of the key that signs it
	Supersedes string         `json:"supersedes,omitempty"` // jti of the grant that this take-over revokes
	Ends       string         `json:"ends,omitempty"`       // jti of the sender's grant, ended by a transfer
	Labels     []string       `json:"labels,omitempty"`
	Decision   Decision       `json:"decision"`
}

// Result records a result: accepted, denied or held.
type Result struct {
	Token    string        `json:"token"`
	Status   string        `json:"status"` // completed | failed
	Effect   string        `json:"effect"`
	Reasons  []wire.Reason `json:"reasons,omitempty"`
	Labels   []string      `json:"labels,omitempty"`
	BodyHash string        `json:"body_hash"`
	Answers  string        `json:"answers,omitempty"` // the handoff whose sender receives it; none: the session's opener
	Decision *Decision     `json:"decision,omitempty"`
}

// Revoked withdraws a grant and all below it.
type Revoked struct {
	By     string   `json:"by"`
	Reason string   `json:"reason"`
	Grants []string `json:"grants"` // jtis of every link revoked by this entry
}

// Bundle puts a bundle in force. Its bytes are committed with it.
type Bundle struct {
	Digest string `json:"digest"`
	By     string `json:"by"`
	Size   int    `json:"size"`
}

// Rejudged records what a change of policy did to a live grant.
type Rejudged struct {
	Effect   string        `json:"effect"`
	Reasons  []wire.Reason `json:"reasons,omitempty"`
	Decision Decision      `json:"decision"`
}

// Quarantined counts messages that nobody could be told about; they themselves are in the quarantine stream.
type Quarantined struct {
	Agent string    `json:"agent"`
	Code  wire.Code `json:"code"`
	Count int       `json:"count"`
}

// What an operator does with an identity.
const (
	Withdrawn = "withdrawn"
	Restored  = "restored"
)

// Whose keys are rotated.
const (
	OfGovernor = "governor"
	OfIssuer   = "issuer"
	OfLog      = "log"
)

// Rotated says that a key of the governor, the issuer or the log takes the place of those before it.
type Rotated struct {
	Of     string  `json:"of"`    // governor | issuer | log
	JWK    aat.JWK `json:"jwk"`   // the new key
	From   int64   `json:"from"`  // Unix seconds: from then on it signs what is new
	Until  int64   `json:"until"` // Unix seconds: those before it are trusted until then; at From where they are not trusted any more
	By     string  `json:"by"`
	Reason string  `json:"reason,omitempty"`
}

// Identity withdraws an identity, or restores it. What is withdrawn acts no more until it is restored, though its SVID be
// valid: it opens nothing, offers nothing, is offered nothing, claims and answers nothing. What it held is revoked or closed
// by entries before this one, and stays so.
type Identity struct {
	Name   string `json:"name"`   // of an agent, a guard or an operator
	Effect string `json:"effect"` // withdrawn | restored
	By     string `json:"by"`     // another operator
	Reason string `json:"reason,omitempty"`
}

// BodyHash is what the entry says of the body that is stored beside it until retention deletes that: the member with the hash,
// as in "decided.task_hash", and SHA-256(salt ‖ body) as [wire.TaskHash] writes it. Both are empty where nothing is stored: what
// was denied is not kept.
func (e *Entry) BodyHash() (member, hash string) {
	switch {
	case e.Kind == KindSession && e.Opened != nil:
		return "opened.objective_hash", e.Opened.ObjectiveHash
	case e.Kind == KindDecided && e.Decided != nil && e.Decided.Effect != wire.EffectDeny && e.Decided.TaskHash != "":
		return "decided.task_hash", e.Decided.TaskHash
	case e.Kind == KindResult && e.Result != nil && e.Result.Effect != wire.EffectDeny:
		return "result.body_hash", e.Result.BodyHash
	}
	return "", ""
}

// ID is the UUID that the entry uses up for ever: of a session, an offer, a claim's grant or a result. It is empty where the
// entry uses up none, and may be any text where the entry is not one that [Verify] would let pass.
func (e *Entry) ID() string {
	switch {
	case e.Kind == KindSession:
		return e.Session
	case e.Kind == KindDecided && e.Decided != nil && e.Decided.Stage == StageSession:
		return e.Session
	case e.Kind == KindDecided && e.Decided != nil && e.Decided.Stage == StageOffer:
		return e.Handoff
	case e.Kind == KindClaimed:
		return e.Grant
	case e.Kind == KindResult && e.Result != nil:
		var said struct {
			ID string `json:"jti"`
		}
		token, err := jws.Split(e.Result.Token, wire.MaxToken)
		if err != nil || json.Unmarshal(token.Payload, &said) != nil {
			return ""
		}
		return said.ID
	}
	return ""
}
