package governor

import (
	"fmt"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/go-json-experiment/json"

	"github.com/handoff-governor/handoff-governor/handoff/wire"
)

// headers of an inbound message, each known name once.
type headers map[string]string

func (h headers) get(name string) string { return h[name] }

// readHeaders refuses what two readers could read differently: a known header twice, or in another spelling. Headers
// that are not ours are ignored, and never copied.
func readHeaders(in map[string][]string, required ...string) (headers, *wire.Error) {
	out := headers{}
	for name, values := range in {
		known := wire.CanonicalHeader(name)
		if known == name && !wire.IsHeader(name) {
			continue
		}
		if _, twice := out[known]; twice || len(values) != 1 || known != name {
			return nil, wire.Refuse(wire.CodeHeaderRepeated, "send the header "+known+" once, spelled like this")
		}
		out[known] = values[0]
	}
	if _, chain := out[wire.HeaderChain]; chain {
		return nil, wire.Refuse(wire.CodeFederation, "Handoff-Chain is reserved; chains of other governors are not accepted")
	}
	for _, name := range required {
		if out[name] == "" {
			return nil, wire.Refuse(wire.CodeHeaderMissing, "the header "+name+" is missing")
		}
	}
	return out, nil
}

// traceparentForm is version 00 of W3C Trace Context.
var traceparentForm = regexp.MustCompile(`^00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}$`)

// traceparent is the only header that is handed on, and only when it is well-formed.
func (h headers) traceparent() string {
	if v := h[wire.HeaderTraceparent]; traceparentForm.MatchString(v) {
		return v
	}
	return ""
}

func contentType(in map[string][]string) string { return http.Header(in).Get(wire.HeaderContentType) }

// envelope starts an inbox message about a handoff; everything in it is from verified claims.
func envelope(to, from, id, session, kind string, index uint64) wire.Outbound {
	return wire.Outbound{To: to, Header: map[string][]string{
		wire.HeaderID:      {id},
		wire.HeaderFrom:    {from},
		wire.HeaderSession: {session},
		wire.HeaderKind:    {kind},
		wire.HeaderEntry:   {strconv.FormatUint(index, 10)},
	}}
}

// notice tells the receiver that a task waits. The task itself comes with the claim.
func notice(h *handoff, trace string) wire.Outbound {
	out := envelope(h.to, h.from, h.id, h.session.id, wire.KindTask, h.decided)
	if h.claim.ContentType != "" {
		out.Header[wire.HeaderContentType] = []string{h.claim.ContentType}
	}
	if trace != "" {
		out.Header[wire.HeaderTraceparent] = []string{trace}
	}
	return out
}

// verdict tells the sender what became of its offer.
func verdict(h *handoff) wire.Outbound {
	v := wire.Verdict{ID: h.id, Effect: wire.EffectAllow, Reasons: h.reasons, Entry: &h.newest}
	switch h.status {
	case statusDenied, statusRevoked, statusExpired:
		v.Effect = wire.EffectDeny
	case statusHeld:
		v.Effect = wire.EffectHold
	default:
		v.Granted = h.granted
	}
	return verdictMessage(h.from, h.session.id, v)
}

func verdictMessage(to, session string, v wire.Verdict) wire.Outbound {
	if v.Reasons == nil {
		v.Reasons = []wire.Reason{}
	}
	out := wire.Outbound{To: to, Header: map[string][]string{
		wire.HeaderID:          {v.ID},
		wire.HeaderSession:     {session},
		wire.HeaderKind:        {wire.KindVerdict},
		wire.HeaderContentType: {"application/json"},
	}}
	if v.Entry != nil {
		out.Header[wire.HeaderEntry] = []string{strconv.FormatUint(*v.Entry, 10)}
	}
	body, err := json.Marshal(v, json.Deterministic(true))
	if err != nil { // our own type, with valid UTF-8 that came through a parser
		body = fmt.Appendf(nil, `{"id":%q,"effect":"deny","reasons":[]}`, v.ID)
	}
	out.Body = body
	return out
}

// refusalVerdict tells a sender that its message was not taken. An ID that is not one is not repeated.
func refusalVerdict(to, session, id, result string, refusal *wire.Error) wire.Outbound {
	if len(id) > 64 || strings.ContainsFunc(id, func(r rune) bool { return r < ' ' || r > '~' }) {
		id = ""
	}
	return verdictMessage(to, session, wire.Verdict{
		ID: id, Result: result, Effect: wire.EffectDeny, Reasons: []wire.Reason{{Code: refusal.Code, Message: refusal.Message}},
	})
}

// receipt publishes what the ledger holds of an agent, in pieces that fit a message.
func (g *Governor) receipt(agent string, entries []wire.Receipt) error {
	for piece := range slices.Chunk(entries, 10_000) {
		body, err := json.Marshal(wire.Receipts{Log: g.cfg.LogName, Entries: piece})
		if err != nil {
			return err
		}
		if err := g.cfg.Bus.Receipt(agent, body); err != nil {
			return err
		}
	}
	return nil
}
