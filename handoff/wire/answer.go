package wire

import (
	"fmt"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/handoff-governor/handoff-governor/handoff/aat"
)

// Limits of an [Answer]; one beyond them is refused with [CodePolicyAnswer].
const (
	MaxAnswer       = 256 << 10 // bytes of its JSON
	MaxReasons      = 64
	MaxReasonText   = 1 << 10 // bytes of a message or of nearest
	MaxReasonName   = 512     // bytes of a tool or an argument
	maxCode         = 64
	maxAnswerNumber = 1<<31 - 1
)

// NoHopCap is the MaxHops of an [Answer] that does not limit hops.
const NoHopCap = -1

// Answer is what every entry point of a policy yields.
type Answer struct {
	Effect      string                    // EffectAllow, EffectDeny or EffectHold
	Reasons     []Reason                  // at least one for deny and hold
	Ceiling     aat.Tools                 // nil: the policy sets none; empty: nothing may be granted
	TTL         int                       // seconds a grant may live; 0: no cap
	MaxHops     int                       // hops that may follow; NoHopCap: no cap; 0: none
	Obligations map[string]jsontext.Value // handed on unread
}

// ParseAnswer reads the JSON of an answer:
//
//	{"effect": "allow"|"deny"|"hold",
//	 "reasons": [{"code", "message", "tool"?, "argument"?, "hop"?, "nearest"?}],
//	 "ceiling": {tool: {argument: constraint}} | null, "ttl": seconds, "max_hops": n, "obligations": {…}}
//
// Only effect is required. An absent or null ceiling, ttl or max_hops sets no limit; so do a ttl of 0 and a max_hops of
// -1. Deny and hold must give a reason. A repeated or unknown member, a constraint that is not well-formed, a number out
// of range or a text beyond its limit is an [Error] of [CodePolicyAnswer].
func ParseAnswer(data []byte) (Answer, error) {
	if len(data) > MaxAnswer {
		return Answer{}, refuseAnswer("it has %d bytes; at most %d are allowed", len(data), MaxAnswer)
	}
	var raw struct {
		Effect      string                    `json:"effect"`
		Reasons     []Reason                  `json:"reasons"`
		Ceiling     aat.Tools                 `json:"ceiling"`
		TTL         *int                      `json:"ttl"`
		MaxHops     *int                      `json:"max_hops"`
		Obligations map[string]jsontext.Value `json:"obligations"`
	}
	if err := json.Unmarshal(data, &raw, json.RejectUnknownMembers(true)); err != nil {
		return Answer{}, refuseAnswer("%v", err)
	}
	a := Answer{
		Effect: raw.Effect, Reasons: raw.Reasons, Ceiling: raw.Ceiling, MaxHops: NoHopCap, Obligations: raw.Obligations,
	}
	switch a.Effect {
	case EffectAllow, EffectDeny, EffectHold:
	default:
		return Answer{}, refuseAnswer("effect is %.32q; it must be allow, deny or hold", a.Effect)
	}
	if a.Effect != EffectAllow && len(a.Reasons) == 0 {
		return Answer{}, refuseAnswer("effect %s needs at least one reason", a.Effect)
	}
	if len(a.Reasons) > MaxReasons {
		return Answer{}, refuseAnswer("it has %d reasons; at most %d are allowed", len(a.Reasons), MaxReasons)
	}
	for i, r := range a.Reasons {
		if err := checkReason(r); err != nil {
			return Answer{}, refuseAnswer("reason %d: %v", i, err)
		}
	}
	if raw.TTL != nil {
		if *raw.TTL < 0 || *raw.TTL > maxAnswerNumber {
			return Answer{}, refuseAnswer("ttl is %d; it must be 0 or a number of seconds", *raw.TTL)
		}
		a.TTL = *raw.TTL
	}
	if raw.MaxHops != nil {
		if *raw.MaxHops < NoHopCap || *raw.MaxHops > maxAnswerNumber {
			return Answer{}, refuseAnswer("max_hops is %d; it must be -1 or a number of hops", *raw.MaxHops)
		}
		a.MaxHops = *raw.MaxHops
	}
	return a, nil
}

func checkReason(r Reason) error {
	switch {
	case !validCode(r.Code):
		return fmt.Errorf("code is %.70q; it must be lower-case letters, digits and underscores", r.Code)
	case r.Message == "" || len(r.Message) > MaxReasonText:
		return fmt.Errorf("message must have 1 to %d bytes", MaxReasonText)
	case len(r.Nearest) > MaxReasonText:
		return fmt.Errorf("nearest must have at most %d bytes", MaxReasonText)
	case len(r.Tool) > MaxReasonName || len(r.Argument) > MaxReasonName:
		return fmt.Errorf("tool and argument must have at most %d bytes", MaxReasonName)
	case r.Hop < 0 || r.Hop > MaxHops:
		return fmt.Errorf("hop is %d; hops count from 1 to %d, 0 names none", r.Hop, MaxHops)
	}
	return nil
}

func validCode(c Code) bool {
	if c == "" || len(c) > maxCode || c[0] < 'a' || c[0] > 'z' {
		return false
	}
	for i := range len(c) {
		if b := c[i]; (b < 'a' || b > 'z') && (b < '0' || b > '9') && b != '_' {
			return false
		}
	}
	return true
}

func refuseAnswer(format string, args ...any) error {
	return Refuse(CodePolicyAnswer, "the policy's answer: "+fmt.Sprintf(format, args...))
}
