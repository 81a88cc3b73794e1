package streams

import (
	"crypto/sha256"
	"fmt"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/handoff-governor/handoff-governor/handoff/wire"
)

// This file is the whole topology: every account, subject, import, permission and stream. The embedded server and a
// cluster are both made from it, and so have the same boundary.
//
//	an agent's account                    the governor's account
//	handoff.offer.<session>.<to>       →  in.<name>.offer.<session>.<to>    stream INGRESS
//	handoff.result.<session>           →  in.<name>.result.<session>        stream INGRESS
//	handoff.claim.<session>            →  call.<name>.claim.<session>
//	handoff.session.<verb>             →  call.<name>.session.<verb>
//	handoff.keys                       →  call.<name>.keys
//	handoff.inbox.CONSUMER.…           →  $JS.API.CONSUMER.….INBOX.<name>   stream INBOX
//	$JS.ACK.INBOX.<name>.…             →  $JS.ACK.INBOX.<name>.…
//	handoff.receipt                    ←  receipt.<name>
//	a guard's account
//	handoff.revocations, handoff.keys  →  call.<name>.revocations, .keys
//	handoff.revoked.feed               ←  revoked.feed
//	an operator's account
//	handoff.operator.<verb>            →  call.<name>.operator.<verb>
//	handoff.keys                       →  call.<name>.keys
//
// The name in the middle is a literal of the import, so the server writes it and the sender cannot.
const (
	streamIngress    = "INGRESS"
	streamInbox      = wire.InboxStream
	streamQuarantine = "QUARANTINE"
	consumerIngress  = "governor"

	subjectIngress    = "in."         // + <name>.offer.<session>.<to> or <name>.result.<session>
	subjectBusy       = "busy."       // + <name>: where a throttled agent's offers and results go
	subjectCall       = "call."       // + <name>.<verb>
	subjectInbox      = "inbox."      // + <name>
	subjectSkipped    = "skipped"     // in the inboxes' stream, of nobody
	subjectReceipt    = "receipt."    // + <name>
	subjectQuarantine = "quarantine." // + <name>
	subjectRevoked    = "revoked.feed"

	// Local names, beside those of package wire.
	localOffer  = "handoff.offer.*.*"
	localResult = "handoff.result.*"
	localBusy   = "handoff.busy"
	pullIngress = "$JS.API.CONSUMER.MSG.NEXT." + streamIngress + "." + consumerIngress
	apiInfo     = "$JS.API.CONSUMER.INFO." + streamInbox + "."
	apiNext     = "$JS.API.CONSUMER.MSG.NEXT." + streamInbox + "."
	localInfo   = wire.InboxPrefix + ".CONSUMER.INFO." + streamInbox + "." + wire.InboxConsumer
	localNext   = wire.InboxPrefix + ".CONSUMER.MSG.NEXT." + streamInbox + "." + wire.InboxConsumer
)

// Headers of a quarantined message. The headers that it came with follow, each name behind headerOriginal, so that
// none of them can mean anything to JetStream.
const (
	headerCode      = "Handoff-Code"
	headerReason    = "Handoff-Reason"
	headerSubject   = "Handoff-Subject"
	headerTruncated = "Handoff-Truncated" // it is not whole; length of the body as it came
	headerOriginal  = "Original-"
)

// maxName is the longest agent name in bytes (DESIGN.md section 2).
const maxName = 180

// Times after which the server forgets that it owes an answer. Pulls wait for messages, so theirs must outlast the
// longest pull; the consumer refuses longer ones.
const (
	answerWithin = 10 * time.Second
	longestPull  = 30 * time.Second
	pullWithin   = longestPull + 2*time.Second
)

// checkName refuses what is not a single literal subject token that is safe as a consumer's and a directory's name.
func checkName(name string) error {
	if name == "" || len(name) > maxName {
		return fmt.Errorf("name of %d bytes: want 1 to %d", len(name), maxName)
	}
	for _, r := range name {
		switch {
		case 'a' <= r && r <= 'z', 'A' <= r && r <= 'Z', '0' <= r && r <= '9', r == '-', r == '_', r == '=':
		default:
			return fmt.Errorf("name %q: %q is not allowed in a subject token", name, r)
		}
	}
	return nil
}

// accountName is the account of one identity. Roles never share one, even under the same name.
func accountName(role Role, name string) string { return string(role) + "-" + name }

// ackSubjects are the two forms of the acks of an agent's own consumer. Both are exact up to the consumer's name:
// `$JS.ACK.*.*.INBOX.<name>.>`, which would cover the second form, also matches a first-form ack of any other consumer
// (`$JS.ACK.INGRESS.governor.INBOX.<name>.…`), and with the body +NXT that reads other agents' messages.
func ackSubjects(name, gov string) [2]string {
	return [2]string{
		"$JS.ACK." + streamInbox + "." + name + ".*.*.*.*.*",
		"$JS.ACK._." + accountHash(gov) + "." + streamInbox + "." + name + ".>",
	}
}

// accountHash is the server's short name of an account in the second form of acks (ADR-15).
func accountHash(account string) string {
	const digits = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
	sum := sha256.Sum256([]byte(account))
	hash := make([]byte, 8)
	for i := range hash {
		hash[i] = digits[int(sum[i])%len(digits)]
	}
	return string(hash)
}

// exported is a service or a stream of the governor's account. The exports are open because only the governor makes
// imports: no identity can change its account.
type exported struct {
	subject  string
	stream   bool          // else a service
	streamed bool          // a service that answers more than once
	within   time.Duration // after which the server forgets that it owes an answer
}

// exports are those of the governor's account, whose name is gov.
func exports(gov string) []exported {
	return []exported{
		{subject: subjectIngress + "*.offer.*.*", within: answerWithin},
		{subject: subjectIngress + "*.result.*", within: answerWithin},
		{subject: subjectBusy + "*", within: answerWithin},
		{subject: subjectCall + "*.>", within: answerWithin},
		{subject: apiInfo + "*", within: answerWithin},
		{subject: apiNext + "*", within: pullWithin, streamed: true},
		{subject: "$JS.ACK." + streamInbox + ".*.*.*.*.*.*", within: answerWithin},
		{subject: "$JS.ACK._." + accountHash(gov) + "." + streamInbox + ".*.>", within: answerWithin},
		{subject: subjectReceipt + "*", stream: true},
		{subject: subjectRevoked, stream: true},
	}
}

// imported is a subject of the governor's account under the local name that an identity's account has for it.
type imported struct {
	local  string // with $1 for the first wildcard of theirs, and so on
	theirs string
	stream bool // else a service
}

// imports are all that an identity's account has; gov is the name of the governor's account.
func imports(role Role, name, gov string) []imported {
	call := subjectCall + name + "."
	all := []imported{{local: wire.SubjectKeys, theirs: call + wire.VerbKeys}}
	switch role {
	case RoleAgent:
		all = append(all,
			imported{local: "handoff.offer.$1.$2", theirs: subjectIngress + name + ".offer.*.*"},
			imported{local: "handoff.result.$1", theirs: subjectIngress + name + ".result.*"},
			imported{local: localBusy, theirs: subjectBusy + name},
			imported{local: wire.ClaimSubject("$1"), theirs: call + wire.VerbClaim + ".*"},
			imported{local: wire.SubjectSessionOpen, theirs: call + wire.VerbSessionOpen},
			imported{local: wire.SubjectSessionClose, theirs: call + wire.VerbSessionClose},
			imported{local: wire.SubjectSessionStatus, theirs: call + wire.VerbSessionStatus},
			imported{local: localInfo, theirs: apiInfo + name},
			imported{local: localNext, theirs: apiNext + name},
			imported{local: wire.SubjectReceipt, theirs: subjectReceipt + name, stream: true},
		)
		for _, ack := range ackSubjects(name, gov) {
			all = append(all, imported{local: ack, theirs: ack})
		}
	case RoleGuard:
		all = append(all,
			imported{local: wire.SubjectRevocations, theirs: call + wire.VerbRevocations},
			imported{local: wire.SubjectRevoked, theirs: subjectRevoked, stream: true},
		)
	case RoleOperator:
		all = append(all,
			imported{local: wire.OperatorSubject("$1"), theirs: call + wire.VerbOperator + "*"},
			imported{local: wire.OperatorSubject("$1.$2"), theirs: call + wire.VerbOperator + "*.*"},
		)
	}
	return all
}

// allowed is what a connection may publish and subscribe; nil is anything.
type allowed struct{ publish, subscribe []string }

// permissions repeat what the imports allow. The accounts are the boundary; these keep a client from using its own
// account as a message bus of its own, and hold if an import is ever made too wide.
func permissions(role Role, name, gov string) *allowed {
	may := &allowed{publish: []string{wire.SubjectKeys}, subscribe: []string{"_INBOX.>"}}
	switch role {
	case RoleAgent:
		ack := ackSubjects(name, gov)
		may.publish = append(may.publish, localOffer, localResult, localBusy, wire.ClaimSubject("*"), wire.SubjectSessionOpen,
			wire.SubjectSessionClose, wire.SubjectSessionStatus, localInfo, localNext, ack[0], ack[1])
		may.subscribe = append(may.subscribe, wire.SubjectReceipt)
	case RoleGuard:
		may.publish = append(may.publish, wire.SubjectRevocations)
		may.subscribe = append(may.subscribe, wire.SubjectRevoked)
	case RoleOperator:
		may.publish = append(may.publish, wire.OperatorSubject("*"), wire.OperatorSubject("*.*"))
	}
	return may
}

// streamConfigs are the governor's streams. What is off matters as much as what is on: message schedules, rollups,
// TTLs, counters and batches each let a publisher touch messages that are not its own, so INGRESS allows none of them.
// The duplicates window is the shortest that the server takes: an agent that sends Nats-Msg-Id shares one name space
// with all others, and within the window another agent's equal ID would swallow its message. The ledger, not the
// stream, knows repeats, so clients need no such header.
func streamConfigs(limits Limits, replicas int) []jetstream.StreamConfig {
	configs := []jetstream.StreamConfig{{
		Name:         streamIngress,
		Description:  "offers and results, as agents publish them",
		Subjects:     []string{subjectIngress + "*.offer.*.*", subjectIngress + "*.result.*"},
		Retention:    jetstream.WorkQueuePolicy,
		Storage:      jetstream.FileStorage,
		Discard:      jetstream.DiscardNew,
		MaxBytes:     limits.IngressBytes,
		MaxMsgSize:   wire.MaxPayload,
		MaxConsumers: 1,
		Duplicates:   100 * time.Millisecond,
		DenyDelete:   true,
	}, {
		Name:                 streamInbox,
		Description:          "notices, verdicts and results for agents",
		Subjects:             []string{subjectInbox + "*", subjectSkipped},
		Retention:            jetstream.WorkQueuePolicy,
		Storage:              jetstream.FileStorage,
		Discard:              jetstream.DiscardNew,
		DiscardNewPerSubject: true,
		MaxMsgsPerSubject:    limits.InboxMessages,
		MaxBytes:             limits.InboxBytes,
		MaxAge:               limits.InboxAge,
		MaxMsgSize:           wire.MaxPayload,
		MaxConsumers:         limits.Agents,
		Duplicates:           100 * time.Millisecond,
	}, {
		Name:        streamQuarantine,
		Description: "messages that nobody could be told about, with the reason",
		Subjects:    []string{subjectQuarantine + "*"},
		Retention:   jetstream.LimitsPolicy,
		Storage:     jetstream.FileStorage,
		Discard:     jetstream.DiscardOld,
		MaxBytes:    limits.QuarantineBytes,
		MaxAge:      limits.QuarantineAge,
		MaxMsgSize:  wire.MaxPayload,
		Duplicates:  100 * time.Millisecond,
	}}
	for i := range configs {
		configs[i].Replicas = replicas
	}
	return configs
}

func ingressConsumer(limits Limits) jetstream.ConsumerConfig {
	return jetstream.ConsumerConfig{
		Durable:       consumerIngress,
		AckPolicy:     jetstream.AckExplicitPolicy,
		AckWait:       limits.AckWait,
		MaxDeliver:    -1,
		MaxAckPending: limits.InFlight,
	}
}

func inboxConsumer(limits Limits, name string) jetstream.ConsumerConfig {
	return jetstream.ConsumerConfig{
		Durable:           name,
		FilterSubject:     subjectInbox + name,
		AckPolicy:         jetstream.AckExplicitPolicy,
		AckWait:           limits.AckWait,
		MaxDeliver:        -1,
		MaxAckPending:     int(limits.InboxMessages),
		MaxWaiting:        2 * limits.Connections, // a pull may ask for a heartbeat every nanosecond, and gets hundreds a second
		MaxRequestExpires: longestPull,
	}
}

// parseIngress reads what the server stamped.
func parseIngress(subject string) (in wire.Inbound, err error) {
	tokens := strings.Split(subject, ".")
	switch {
	case len(tokens) == 5 && tokens[2] == wire.InboundOffer:
		return wire.Inbound{Kind: wire.InboundOffer, Sender: tokens[1], Session: tokens[3], To: tokens[4]}, nil
	case len(tokens) == 4 && tokens[2] == wire.InboundResult:
		return wire.Inbound{Kind: wire.InboundResult, Sender: tokens[1], Session: tokens[3]}, nil
	}
	return wire.Inbound{}, fmt.Errorf("unexpected subject %q in %s", subject, streamIngress)
}

// ingressSubject is what parseIngress read.
func ingressSubject(in wire.Inbound) string {
	subject := subjectIngress + in.Sender + "." + in.Kind + "." + in.Session
	if in.To != "" {
		subject += "." + in.To
	}
	return subject
}

// parseCall reads what the server stamped.
func parseCall(subject string) (req wire.Request, err error) {
	rest, ok := strings.CutPrefix(subject, subjectCall)
	name, verb, ok2 := strings.Cut(rest, ".")
	if !ok || !ok2 {
		return wire.Request{}, fmt.Errorf("unexpected subject %q", subject)
	}
	if session, ok := strings.CutPrefix(verb, wire.VerbClaim+"."); ok {
		return wire.Request{Verb: wire.VerbClaim, Sender: name, Session: session}, nil
	}
	return wire.Request{Verb: verb, Sender: name}, nil
}
