package wire

// The statements below are small JWS of their own `typ`, signed by an agent's process key or by the governor. All
// times are Unix seconds; all hashes are base64url of SHA-256 without padding.

// HandoffClaim is the claim `handoff` of an AAT link, which says what the link was made for. Which members a link has
// depends on its place in the chain: root {session, to}; offer {session, to, mode, task_hash, content_type, purpose,
// labels, deadline, in_reply_to}; claim {id, session, from, to, labels, decision, bundle}.
type HandoffClaim struct {
	Session     string    `json:"session"`
	To          string    `json:"to"`
	ID          string    `json:"id,omitempty"`
	From        string    `json:"from,omitempty"`
	Mode        string    `json:"mode,omitempty"`
	TaskHash    string    `json:"task_hash,omitempty"`
	ContentType string    `json:"content_type,omitempty"`
	Purpose     string    `json:"purpose,omitempty"`
	Labels      []string  `json:"labels,omitempty"`
	Deadline    int64     `json:"deadline,omitzero"`
	InReplyTo   string    `json:"in_reply_to,omitempty"`
	Decision    *EntryRef `json:"decision,omitempty"`
	Bundle      string    `json:"bundle,omitempty"`
}

// EntryRef names an entry of a log.
type EntryRef struct {
	Log   string `json:"log"`
	Index uint64 `json:"index"`
}

// ClaimProof is the payload of a [TypeClaim] statement.
type ClaimProof struct {
	ID       string   `json:"jti"`
	IssuedAt int64    `json:"iat"`
	Expires  int64    `json:"exp"`
	Audience string   `json:"aud"` // the governor's URI
	Subject  string   `json:"sub"` // the agent's name
	IDs      []string `json:"ids"`
}

// SessionProof is the payload of a [TypeSession] statement.
type SessionProof struct {
	ID          string `json:"jti"`
	IssuedAt    int64  `json:"iat"`
	Expires     int64  `json:"exp"`
	Audience    string `json:"aud"`
	Subject     string `json:"sub"`
	Verb        string `json:"verb"`         // what is asked for: "session.open", "session.close" or "session.status"
	RequestHash string `json:"request_hash"` // of the request as RFC 8785 JSON with proof set to ""
}

// PrincipalProof is the payload of a [TypePrincipal] statement: a person's own signature under one request.
type PrincipalProof struct {
	ID          string `json:"jti"`
	IssuedAt    int64  `json:"iat"`
	Expires     int64  `json:"exp"`
	Audience    string `json:"aud"`          // the issuer's URI
	Subject     string `json:"sub"`          // the person's name
	RequestHash string `json:"request_hash"` // of the request with principal.proof and proof set to ""
}

// ResultToken is the payload of a [TypeResult] statement: what a grant's holder says of its own work.
type ResultToken struct {
	ID          string   `json:"jti"` // UUIDv7
	IssuedAt    int64    `json:"iat"`
	Audience    string   `json:"aud"`
	Handoff     string   `json:"id"`
	Status      string   `json:"status"`
	BodyHash    string   `json:"body_hash"` // of salt ‖ body
	ContentType string   `json:"content_type"`
	Labels      []string `json:"labels,omitempty"`
}

// RevocationFeed is the payload of a [TypeRevocation] statement: an event, a heartbeat (no links) or a page of a snapshot.
// Snapshots come in pages, since one message cannot hold a busy governor's: a page has the links in force at its own
// Sequence whose hash sorts after After, in that order, and names the last of them as Next unless it is the last page.
type RevocationFeed struct {
	Governor string        `json:"iss"`
	Epoch    string        `json:"epoch"` // new at each start of the governor
	Sequence uint64        `json:"seq"`   // gapless within the epoch
	Time     int64         `json:"time"`
	Snapshot bool          `json:"snapshot,omitzero"`
	After    string        `json:"after,omitempty"` // of a snapshot: what the request asked for, "" for the first page
	Next     string        `json:"next,omitempty"`  // of a snapshot: ask for the rest after this hash
	Links    []RevokedLink `json:"links,omitempty"`
}

// RevocationsRequest is the body of [SubjectRevocations]; the answer is one [RevocationFeed] statement, or an [Error] as
// {"error": …}. An empty body asks for the first page.
type RevocationsRequest struct {
	After string `json:"after,omitempty"`
}

// RevokedLink names an even link by the hash of its signing input.
type RevokedLink struct {
	Hash    string `json:"hash"`
	State   string `json:"state"` // "revoked": nothing through it; "ended": not as a leaf
	Expires int64  `json:"exp"`   // the link's own exp
}

// States of a [RevokedLink].
const (
	StateRevoked = "revoked"
	StateEnded   = "ended"
)
