package wire

import "errors"

import "time"

// The types below are the seam between the governor and whatever carries its messages. They name no carrier, so that
// the governor's path needs none to be read or tested.

// Kinds of [Inbound].
const (
	InboundOffer  = "offer"
	InboundResult = "result"
)

// Inbound is an offer or a result as an agent published it. Kind, Sender, Session and To come from the subject, which
// the server stamped; everything else is the sender's word and unchecked. Exactly one of Ack, Retry or the carrier's
// Quarantine settles it; a message that is not settled comes again, with Deliveries counted up.
type Inbound struct {
	Kind       string
	Sender     string
	Session    string
	To         string              // of an offer; "" for a result
	Header     map[string][]string // as sent: spelling, order and repetitions kept
	Body       []byte
	Queued     time.Time // when the server stored it
	Deliveries int       // 1 the first time

	// Ack removes it from the queue. It does not wait for the server: the ledger, not the queue, knows what was seen.
	Ack func() error
	// Retry has it delivered again after delay.
	Retry func(delay time.Duration) error
	// Term removes it as undeliverable; use the carrier's Quarantine, which keeps a copy.
	Term func(reason string) error
}

// Outbound is a message for an agent's inbox.
type Outbound struct {
	To     string // agent name
	Header map[string][]string
	Body   []byte
}

// UndeliveredError says which of several [Outbound] did not reach their inbox. The others did.
type UndeliveredError struct {
	Failed map[int]error // by position in the batch
}

func (e *UndeliveredError) Error() string {
	for _, err := range e.Failed {
		if len(e.Failed) == 1 {
			return "message not delivered: " + err.Error()
		}
		return "messages not delivered, among them: " + err.Error()
	}
	return "nothing undelivered"
}

// Unwrap makes errors.Is look at every failure.
func (e *UndeliveredError) Unwrap() []error {
	errs := make([]error, 0, len(e.Failed))
	for _, err := range e.Failed {
		errs = append(errs, err)
	}
	return errs
}

// ErrStreamsLost says that messages are gone which were stored in inboxes, since the server has lost its power.
var ErrStreamsLost = errors.New("the streams have lost messages that were stored in them")

// Verbs of [Request], besides [VerbSessionClose]. An operator's are VerbOperator + one of the verbs of its account.
const (
	VerbClaim         = "claim"
	VerbSessionOpen   = "session.open"
	VerbSessionStatus = "session.status"
	VerbKeys          = "keys"
	VerbRevocations   = "revocations"
	VerbOperator      = "operator."
)

// Request is a call by an agent, a guard or an operator. Verb, Sender and Session come from the subject, which the
// server stamped. Only an operator's account can make a Request whose Verb begins with [VerbOperator], only a guard's
// one with [VerbRevocations].
type Request struct {
	Verb    string
	Sender  string
	Session string // of a claim
	Body    []byte
	// Respond answers, once. The answer may be at most MaxPayload bytes.
	Respond func(body []byte) error
}
