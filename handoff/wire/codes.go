package wire

// Code names a refusal. Codes are stable: a program may branch on one; the message beside it is for people.
type Code string

// Every code that the governor, the guard or the client can answer with. The comment says what to do.
const (
	// The message itself.
	CodeMalformed         Code = "malformed"              // send what docs/wire.md shows: the message names the member
	CodeTooLarge          Code = "too_large"              // stay within the limits of package wire
	CodeHeaderRepeated    Code = "header_repeated"        // send each header once, spelled as documented
	CodeHeaderMissing     Code = "header_missing"         // add the header that the message names
	CodeContentType       Code = "content_type"           // send the Content-Type that the token names
	CodeSalt              Code = "salt_invalid"           // Handoff-Salt: 32 random bytes, base64url, no padding
	CodeSubjectMismatch   Code = "subject_mismatch"       // publish on the subject that names the token's session and receiver
	CodeFederation        Code = "federation_unsupported" // do not send Handoff-Chain
	CodeTaskHash          Code = "task_hash_mismatch"     // sign SHA-256(salt ‖ body) of the very bytes you send
	CodeQuarantineUnknown Code = "unattributable"         // only in quarantine: nobody could be told
	CodeNotQuarantined    Code = "not_quarantined"        // no such message is in quarantine: list them again
	CodeQuarantineCut     Code = "quarantine_cut"         // it was kept in part: have its sender send it anew

	// Identity and time.
	CodeID           Code = "id_invalid"       // IDs are lower-case UUIDv7
	CodeIDTime       Code = "id_time"          // a new ID's time must be within ten minutes of the governor's clock
	CodeIDConflict   Code = "id_conflict"      // this ID was used for something else: make a new one
	CodeToken        Code = "token_invalid"    // the message names the step of AAT section 8 that failed
	CodeProof        Code = "proof_invalid"    // sign a fresh proof with the key that the request names
	CodeKey          Code = "key_invalid"      // an Ed25519 public key as {kty: OKP, crv: Ed25519, x}
	CodeKeyBound     Code = "key_bound"        // this key belongs to another agent: generate one
	CodeGovernorKey  Code = "governor_key"     // name the governor_jwk of your last claim or session answer in cnf.jwk
	CodeUnknownAgent Code = "unknown_receiver" // the receiver is not an agent of any known trust domain
	CodeExpired      Code = "expired"          // the deadline or lifetime has run out: make a new offer
	CodeClock        Code = "clock"            // the governor's clock went wrong; it refuses until it is right

	// Sessions, grants and handoffs.
	CodeSessionUnknown Code = "session_unknown"  // open the session first
	CodeSessionClosed  Code = "session_closed"   // open another session
	CodeSessionExpired Code = "session_expired"  // open another session, with a longer ttl
	CodeSessionLimit   Code = "session_limit"    // you have too many open sessions: close one first
	CodeNotYours       Code = "not_yours"        // only its holder, opener or receiver may do that
	CodeParentUnknown  Code = "parent_unknown"   // par_hash must name a grant that the governor gave you
	CodeParentNotYours Code = "parent_not_yours" // par_hash names another agent's grant
	CodeParentEnded    Code = "parent_ended"     // that grant has ended
	CodeParentRevoked  Code = "parent_revoked"   // that grant was revoked
	CodeHopLimit       Code = "hop_limit"        // the chain may not grow further: ask for more max_hops at session.open
	CodeWidened        Code = "widened"          // ask for no more than the parent grants
	CodeTransferOpen   Code = "transfer_open"    // wait for the results of your delegated handoffs before you transfer
	CodeHandoffUnknown Code = "handoff_unknown"  // no such handoff, or not for you
	CodeNotAdmitted    Code = "not_admitted"     // the handoff was denied, is held, or was already finished
	CodeAlreadyClaimed Code = "already_claimed"  // another process of yours works on it: retry after retry_after seconds
	CodeSuperseded     Code = "superseded"       // another process took over: stop working on this handoff
	CodeResultConflict Code = "result_conflict"  // another result was accepted first
	CodeInboxFull      Code = "inbox_full"       // the receiver has too many open handoffs: try later
	CodeBudget         Code = "budget_exhausted" // the session's budget is used up
	CodeRevoked        Code = "revoked"          // the handoff was revoked

	// Identities that were withdrawn.
	CodeWithdrawn      Code = "withdrawn"       // the identity was withdrawn: an operator restores it, or another takes its place
	CodeNotWithdrawn   Code = "not_withdrawn"   // the identity is not withdrawn: there is nothing to restore
	CodeRotating       Code = "key_rotating"    // the last rotation of this key is not over: wait, or say that the key was stolen
	CodeWithdrawnLimit Code = "withdrawn_limit" // too many identities are withdrawn: restore those that get no SVIDs any more

	// Policy.
	CodePolicyDenied    Code = "policy_denied"    // the reasons say which rule
	CodePolicyHeld      Code = "policy_held"      // a person must approve
	CodeApprovalDenied  Code = "approval_denied"  // a person was asked, and said no
	CodePolicyError     Code = "policy_error"     // the policy failed; the operator's log says how
	CodePolicyTimeout   Code = "policy_timeout"   // the policy took too long
	CodePolicyUndefined Code = "policy_undefined" // the policy has no answer for this input
	CodePolicyAnswer    Code = "policy_answer"    // the policy's answer has the wrong shape
	CodeCeiling         Code = "above_ceiling"    // the policy's ceiling leaves nothing of what was asked

	// Rules of the default bundle; a bundle of one's own may give others. The reason says what would have passed.
	CodeRuleInput     Code = "input_invalid"        // the governor gave the policy an incomplete input: report it
	CodeRuleTrust     Code = "trust_domain"         // this trust domain may not do that here
	CodeRuleAgent     Code = "agent_unlisted"       // no role is given to this agent
	CodeRulePrincipal Code = "principal"            // the opener may not act for this principal
	CodeRuleHandsTo   Code = "hands_to"             // the sender may not hand tasks to this receiver
	CodeRuleRole      Code = "role_ceiling"         // no role of the agent allows this call now
	CodeRuleZone      Code = "label_zone"           // data so labelled may not reach this agent
	CodeRuleLabelTool Code = "label_tool"           // this tool must not be held together with data so labelled
	CodeRuleImpact    Code = "impact"               // a tool in the chain has too high an impact
	CodeRuleDuties    Code = "separation_of_duties" // one agent would hold tools that must not meet
	CodeRuleBudget    Code = "session_budget"       // open the session with a smaller budget
	CodeRuleApproval  Code = "approval_required"    // a person must approve

	// The guard.
	CodeGuardFeed     Code = "guard_no_feed"     // the guard has no fresh revocation feed and refuses until it has
	CodeGuardStart    Code = "guard_started"     // the proof is older than the guard: sign a new one
	CodeGuardGovernor Code = "guard_no_governor" // configure the governor's keys
	CodeNotGranted    Code = "not_granted"       // the grant does not allow this call: the message names what it lacks
	CodeAudience      Code = "audience_mismatch" // the credential or the proof was made for another guard
	CodeCaller        Code = "caller_mismatch"   // the connection's identity is not the one that holds the grant
	CodeAlternation   Code = "alternation"       // a link is missing between two agents: hand off through the governor
	CodeProfile       Code = "profile_mismatch"  // a handoff claim contradicts its neighbours

	// The service.
	CodeBundle      Code = "bundle_invalid" // the bundle does not compile; the one before stays in force
	CodeUnavailable Code = "unavailable"    // nothing was decided: send the same again later
	CodeForbidden   Code = "forbidden"      // this identity may not do that
)

// Reason explains a part of a decision.
type Reason struct {
	Code     Code   `json:"code"`
	Message  string `json:"message"`
	Tool     string `json:"tool,omitempty"`
	Argument string `json:"argument,omitempty"`
	Hop      int    `json:"hop,omitzero"`
	// Nearest is the nearest request that would have passed, in words.
	Nearest string `json:"nearest,omitempty"`
}

// Error is a refusal as the wire carries it. It is an error, so that clients can return it as it came.
type Error struct {
	Code       Code   `json:"code"`
	Message    string `json:"message"`
	RetryAfter int    `json:"retry_after,omitzero"` // seconds
	Step       string `json:"step,omitempty"`       // of a guard: the step of AAT section 8 that failed, e.g. "4p2"
}

func (e *Error) Error() string { return string(e.Code) + ": " + e.Message }

// Is lets errors.Is compare by code alone.
func (e *Error) Is(target error) bool {
	t, ok := target.(*Error)
	return ok && t.Code == e.Code
}

// Refuse makes an [Error].
func Refuse(code Code, message string) *Error { return &Error{Code: code, Message: message} }
