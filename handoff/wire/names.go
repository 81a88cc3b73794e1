package wire

import (
	"slices"
	"strings"
)

// Subjects of an agent's own account. They are local names: the server maps each into the governor's account and
// stamps the agent's name into it on the way, so nothing an agent writes can name another sender.
const (
	subjectOffer   = "handoff.offer."  // + <session>.<to>
	subjectResult  = "handoff.result." // + <session>
	subjectClaim   = "handoff.claim."  // + <session>
	SubjectReceipt = "handoff.receipt"

	SubjectSessionOpen   = "handoff.session.open"
	SubjectSessionClose  = "handoff.session.close"
	SubjectSessionStatus = "handoff.session.status"

	// SubjectKeys answers with [Keys]: whom to trust, and which governor URI proofs must name.
	SubjectKeys = "handoff.keys"

	// SubjectRevoked carries the revocation feed ([RevocationFeed] tokens); SubjectRevocations answers with a snapshot
	// of it. Only guard accounts import them.
	SubjectRevoked     = "handoff.revoked.feed"
	SubjectRevocations = "handoff.revocations"

	// InboxPrefix is the JetStream API prefix under which an agent reaches its one consumer, and the only one.
	InboxPrefix   = "handoff.inbox"
	InboxStream   = "INBOX"
	InboxConsumer = "inbox"

	// subjectOperator prefixes the operators' requests; only operator accounts import it.
	subjectOperator = "handoff.operator." // + <verb>
)

// OfferSubject is where an offer to the agent named to is published, within session.
func OfferSubject(session, to string) string { return subjectOffer + session + "." + to }

// ResultSubject is where a result is published.
func ResultSubject(session string) string { return subjectResult + session }

// ClaimSubject is where tasks of session are claimed.
func ClaimSubject(session string) string { return subjectClaim + session }

// OperatorSubject is where an operator's verb is requested.
func OperatorSubject(verb string) string { return subjectOperator + verb }

// Verbs of the operator's account.
const (
	VerbHealth         = "health"
	VerbSessionList    = "session.list"
	VerbSessionClose   = "session.close"
	VerbChainEntries   = "chain.entries" // pages of entries, by session or by index
	VerbCheckpoint     = "checkpoint"
	VerbBody           = "body"
	VerbBundle         = "bundle"
	VerbBundleActivate = "bundle.activate"
	VerbRevoke         = "revoke"
	VerbApprove        = "approve"

	VerbIdentityWithdraw = "identity.withdraw"
	VerbIdentityRestore  = "identity.restore"
	VerbIdentityList     = "identity.list" // those that are withdrawn

	VerbKeysList   = "keys.list"
	VerbKeysRotate = "keys.rotate"

	VerbQuarantineList  = "quarantine.list"
	VerbQuarantineShow  = "quarantine.show"
	VerbQuarantineRetry = "quarantine.retry"
	VerbQuarantineDrop  = "quarantine.drop"
)

// Header names. NATS header names are case-sensitive; one that differs from these only in case is refused
// ([CodeHeaderRepeated]), so that no two readers of a message can disagree about it.
const (
	HeaderToken       = "Handoff-Token"   // offer link or result token, compact JWS
	HeaderSalt        = "Handoff-Salt"    // 32 bytes, base64url without padding
	HeaderVerdict     = "Handoff-Verdict" // "always": send a verdict for allow, too
	HeaderChain       = "Handoff-Chain"   // reserved for federation
	HeaderID          = "Handoff-Id"
	HeaderFrom        = "Handoff-From"
	HeaderSession     = "Handoff-Session"
	HeaderKind        = "Handoff-Kind"
	HeaderEntry       = "Handoff-Entry"
	HeaderStatus      = "Handoff-Status" // of a result: "completed" or "failed"
	HeaderContentType = "Content-Type"
	HeaderTraceparent = "traceparent" // W3C Trace Context, lower case as the W3C writes it
)

// Kinds of inbox message, the values of [HeaderKind].
const (
	KindTask    = "task"
	KindResult  = "result"
	KindVerdict = "verdict"
)

// Types of the signed statements that are not AATs: the `typ` of their JWS header.
const (
	TypeClaim      = "handoff-claim+jwt"
	TypeSession    = "handoff-session+jwt"
	TypeResult     = "handoff-result+jwt"
	TypePrincipal  = "handoff-principal+jwt"
	TypeOpener     = "handoff-opener+jwt"
	TypeRevocation = "handoff-revocation+jwt"
)

// Modes of a handoff.
const (
	ModeDelegate = "delegate" // the sender keeps its grant and awaits a result
	ModeTransfer = "transfer" // the sender's grant ends when the receiver claims
)

// Effects of a decision.
const (
	EffectAllow = "allow"
	EffectDeny  = "deny"
	EffectHold  = "hold"
)

// Statuses of a result.
const (
	StatusCompleted = "completed"
	StatusFailed    = "failed"
)

// Limits of the wire, in bytes unless they say otherwise.
const (
	MaxBody        = 1 << 20   // a task's or a result's bytes
	MaxPayload     = 2 << 20   // a NATS message with its headers
	MaxRequest     = 64 << 10  // the body of a claim, or of a request about a session
	MaxToken       = 60 << 10  // one link: JetStream allows 64 KiB for all headers of a message together
	MaxChain       = 256 << 10 // all links of a chain together
	SaltSize       = 32        // before base64url
	MaxClaimIDs    = 64        // IDs in one claim request
	MaxTools       = 256       // tools of one link
	MaxConstraints = 1024      // constraints of one link, those within all and any among them
	MaxPerson      = 256       // name of a principal
	MaxLabels      = 64        // labels of one handoff
	MaxLabel       = 128       // one label
	MaxPurpose     = 4 << 10   // purpose or objective
	IDWindow       = 10 * 60   // seconds an unseen ID's time may differ from the governor's clock
	ProofLifetime  = 60        // seconds between a proof's iat and exp, at the most
	Lease          = 30        // seconds a claim protects its process from take-over
	MaxHops        = 16        // hops of a session: an AAT chain of depth 32
)

// CanonicalHeader returns the known header that name equals but for case, or name itself.
func CanonicalHeader(name string) string {
	for _, h := range knownHeaders {
		if strings.EqualFold(h, name) {
			return h
		}
	}
	return name
}

// IsHeader tells whether name is one of the header names above, spelled like it.
func IsHeader(name string) bool { return slices.Contains(knownHeaders, name) }

var knownHeaders = []string{
	HeaderToken, HeaderSalt, HeaderVerdict, HeaderChain, HeaderID, HeaderFrom, HeaderSession, HeaderKind, HeaderEntry,
	HeaderStatus, HeaderContentType, HeaderTraceparent,
}
