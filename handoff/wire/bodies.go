package wire

import (
	"github.com/handoff-governor/handoff-governor/handoff/aat"
)

// Principal is on whose behalf a session runs. People are never workloads.
//
// A workload is the opener itself, proved by its connection. A person proves to be one with a [PrincipalProof] under a
// key that the issuer knows for that name.
type Principal struct {
	Kind  string `json:"kind"` // [PrincipalHuman] or [PrincipalWorkload]
	Name  string `json:"name"` // an agent name for a workload; for a person the name the issuer knows
	Proof string `json:"proof,omitempty"`
}

// Kinds of principals.
const (
	PrincipalHuman    = "human"
	PrincipalWorkload = "workload"
)

// Budget bounds a whole session; the governor conserves it. Nil means unbounded by the opener.
type Budget struct {
	Handoffs int `json:"handoffs"` // handoffs admitted in the session, at the most
}

// OpenRequest is the body of [SubjectSessionOpen].
type OpenRequest struct {
	ID        string    `json:"id"` // UUIDv7, chosen by the client; also the root's jti
	Objective string    `json:"objective"`
	Principal Principal `json:"principal"`
	Tools     aat.Tools `json:"tools"`
	Labels    []string  `json:"labels,omitempty"`
	TTL       int       `json:"ttl"` // seconds
	MaxHops   int       `json:"max_hops"`
	Budget    *Budget   `json:"budget,omitempty"`
	JWK       aat.JWK   `json:"jwk"`   // the opening process's public key
	Proof     string    `json:"proof"` // [SessionProof] signed by it
	// SVIDProof is a [PrincipalProof] of the opener, of type [TypeOpener], signed with the key of its X.509-SVID: the issuer's own
	// evidence of who asks. Its hash is [OpenerRequestHash].
	SVIDProof string `json:"svid_proof,omitempty"`
}

// OpenResponse answers an [OpenRequest].
type OpenResponse struct {
	Error       *Error   `json:"error,omitempty"`
	Reasons     []Reason `json:"reasons,omitempty"`
	Chain       []string `json:"aat_chain,omitempty"` // the root alone
	GovernorJWK *aat.JWK `json:"governor_jwk,omitempty"`
	ExpiresAt   int64    `json:"expires_at,omitzero"` // Unix seconds
	Repeat      bool     `json:"repeat,omitzero"`
	Entry       uint64   `json:"entry,omitzero"`
}

// SessionRequest is the body of [SubjectSessionClose] and [SubjectSessionStatus].
type SessionRequest struct {
	Session string `json:"session"`
	Reason  string `json:"reason,omitempty"`
	Proof   string `json:"proof"` // [SessionProof] by the opener's key
}

// SessionStatus answers a [SessionRequest], and is a line of the operator's session list.
type SessionStatus struct {
	Error     *Error    `json:"error,omitempty"`
	Session   string    `json:"session,omitempty"`
	State     string    `json:"state,omitempty"` // open | closed | expired | revoked
	Opener    string    `json:"opener,omitempty"`
	Principal Principal `json:"principal,omitzero"`
	OpenedAt  int64     `json:"opened_at,omitzero"`  // Unix seconds
	ExpiresAt int64     `json:"expires_at,omitzero"` // Unix seconds
	Handoffs  int       `json:"handoffs"`            // decided in it
	Open      int       `json:"open"`                // admitted or claimed, without a result
	Denied    int       `json:"denied"`
	Entry     uint64    `json:"entry,omitzero"` // the session's newest entry
}

// ClaimRequest is the body of [ClaimSubject].
type ClaimRequest struct {
	IDs   []string `json:"ids"`
	JWK   aat.JWK  `json:"jwk"`
	Proof string   `json:"proof"` // [ClaimProof] signed by the key in JWK
	// Renew asks for the lease alone: answers to repeats may leave out the task and the chain.
	Renew bool `json:"renew,omitzero"`
}

// ClaimResponse answers a [ClaimRequest]: either Error, or one [Claimed] for each ID, in the order asked.
type ClaimResponse struct {
	Error  *Error    `json:"error,omitempty"`
	Claims []Claimed `json:"claims,omitempty"`
}

// Claimed is one task with its credential, or why there is none.
type Claimed struct {
	ID          string   `json:"id"`
	Error       *Error   `json:"error,omitempty"`
	Reasons     []Reason `json:"reasons,omitempty"`
	Chain       []string `json:"aat_chain,omitempty"`
	GovernorJWK *aat.JWK `json:"governor_jwk,omitempty"`
	ExpiresAt   int64    `json:"expires_at,omitzero"` // Unix seconds: the last moment of the work
	Lease       int      `json:"lease,omitzero"`      // seconds
	Repeat      bool     `json:"repeat,omitzero"`
	From        string   `json:"from,omitempty"`
	Mode        string   `json:"mode,omitempty"`
	Purpose     string   `json:"purpose,omitempty"`
	Labels      []string `json:"labels,omitempty"`
	ContentType string   `json:"content_type,omitempty"`
	Task        []byte   `json:"task,omitempty"` // base64
	Entry       uint64   `json:"entry,omitzero"`
}

// Receipts is the body of [SubjectReceipt]: the ledger holds these, whatever happens now.
type Receipts struct {
	Log     string    `json:"log"`
	Entries []Receipt `json:"entries"`
}

// Receipt names the entry that decided an offer, or accepted or refused a result.
type Receipt struct {
	ID    string `json:"id"` // of an offer its handoff's; of a result its token's
	Index uint64 `json:"index"`
	// Effect tells whether a verdict follows: allow (none, unless asked for), deny or hold. What was revoked or has run out of
	// time since is deny.
	Effect string `json:"effect,omitempty"`
}

// Verdict is the body of an inbox message of kind [KindVerdict].
type Verdict struct {
	ID      string    `json:"id"`
	Result  string    `json:"result,omitempty"` // jti of the result token, where the verdict is about a result
	Effect  string    `json:"effect"`
	Reasons []Reason  `json:"reasons"`
	Granted aat.Tools `json:"granted,omitempty"`
	Entry   *uint64   `json:"entry,omitzero"` // absent where nothing was recorded: the message could not be trusted
}

// EndingKey is a key with the time from which nobody may trust it.
type EndingKey struct {
	JWK   aat.JWK `json:"jwk"`
	Until int64   `json:"until"` // Unix seconds
}

// Keys answers [SubjectKeys].
type Keys struct {
	Governor     string    `json:"governor"`      // URI that proofs name as aud
	Issuer       string    `json:"issuer"`        // URI that roots name as iss
	IssuerKeys   []aat.JWK `json:"issuer_keys"`   // trust anchors
	GovernorKeys []aat.JWK `json:"governor_keys"` // keys of the odd links, current first
	// Ending are those of the governor's keys that another one replaces, and until when guards are to trust them.
	Ending []EndingKey `json:"ending,omitempty"`
	Log    string      `json:"log"`     // checkpoint origin
	LogKey string      `json:"log_key"` // note verifier key, `name+hash+base64`
}
