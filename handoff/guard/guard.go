package guard

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/handoff-governor/handoff-governor/handoff/aat"
	"github.com/handoff-governor/handoff-governor/handoff/wire"
)

// Config is what a [Guard] needs to know.
type Config struct {
	// Audience are the names of this guard, usually one: the origin of its URL, such as "https://tools.example.com".
	// Every proof, and every link that names an audience at all, must name one of them. No other process may have one of
	// them: it would not know which proofs were used here. Required.
	Audience []string
	// Issuers are trusted to sign roots. Without one, everything is refused. [Guard.Trust] replaces them.
	Issuers []Issuer

	// Skew is how far other clocks may be ahead of this one, and how long after its own start the guard refuses calls:
	// a proof made before that may have been used at its predecessor. Zero: 5 s.
	Skew time.Duration
	// ProofWindow is how old a proof may be. Zero: 30 s, as the draft recommends (section 9.10).
	ProofWindow time.Duration
	// MaxLifetime of a root, from its iat to its exp. Zero: as [aat.Verifier] has it.
	MaxLifetime time.Duration
	// FeedTimeout is how long the guard works on after the governor's last sign of life. One that a network holds back counts
	// from when it was made, give or take Skew: what the governor revoked more than FeedTimeout + Skew ago is refused, as
	// far as the governor's clock is right. Zero: 5 s.
	FeedTimeout time.Duration

	// SeenChains is how many verified chains are remembered, of 16 KiB on average. Zero: 4096.
	SeenChains int
	// MaxProofs is how many proofs are remembered until their windows close; beyond it calls are refused. One agent has
	// a quarter of it at the most. Zero: 262,144, which takes about 40 MiB and lasts for 7,000 calls/s.
	MaxProofs int
	// MaxRevocations is how many revoked links are remembered until they expire; beyond it everything is refused.
	// Zero: 2,097,152, which takes about 250 MiB when it is full.
	MaxRevocations int

	// Decide may object to a call that passed everything else; the policy's entry point "call" can be asked here. A
	// *[wire.Error] is handed to the caller as it is, any other error only logged and answered as policy_error.
	Decide func(context.Context, *Call) error

	// Now is the wall clock; nil: time.Now. The guard's own clock is the latest that Now has ever said, so one that is set
	// back revives nothing: the guard's time stands still until Now has caught up. The other side of it: one reading that
	// is wrong by hours ahead closes the guard until it is started anew, or until Now gets there.
	Now    func() time.Time
	Logger *slog.Logger // nil: none. One line for each refusal; never a credential
}

// Issuer is a trust anchor, and the governor that is trusted for the chains of its roots.
type Issuer struct {
	URI  string // iss of its roots
	Keys []ed25519.PublicKey
	// Governor is the URI that its feed carries as iss. Issuers that name the same one share its feed, and must have the
	// same GovernorKeys.
	Governor string
	// GovernorKeys hold the odd links of a chain and sign the feed. Without one, everything is refused.
	GovernorKeys []GovernorKey
}

// GovernorKey is a governor's key and when to stop trusting it.
type GovernorKey struct {
	Key   ed25519.PublicKey
	Until time.Time // zero: until [Guard.Trust] says otherwise
}

// IssuerOf takes whatever the governor's own answer says as true. It is for development: who pins the issuer's keys by
// configuration instead is protected even from a stolen governor.
func IssuerOf(keys wire.Keys) (Issuer, error) {
	issuer := Issuer{URI: keys.Issuer, Governor: keys.Governor}
	for _, jwk := range keys.IssuerKeys {
		key, err := jwk.Key()
		if err != nil {
			return Issuer{}, fmt.Errorf("issuer's key: %w", err)
		}
		issuer.Keys = append(issuer.Keys, key)
	}
	for _, jwk := range keys.GovernorKeys {
		key, err := jwk.Key()
		if err != nil {
			return Issuer{}, fmt.Errorf("governor's key: %w", err)
		}
		trusted := GovernorKey{Key: key}
		for _, ending := range keys.Ending {
			if ending.JWK == jwk {
				trusted.Until = time.Unix(ending.Until, 0)
			}
		}
		issuer.GovernorKeys = append(issuer.GovernorKeys, trusted)
	}
	return issuer, nil
}

// Guard decides on calls. It is safe for use by several goroutines at once.
type Guard struct {
	cfg     Config
	latest  atomic.Int64 // Unix nanoseconds: the latest time seen; see now
	started time.Time
	proofs  *proofs

	trusting sync.Mutex // held to replace trust
	trust    atomic.Pointer[trust]
}

// Presentation is what a holder sends with one call (draft section 7.4).
type Presentation struct {
	Chain []string `json:"aat_chain"` // root first, each link a compact JWS
	PoP   string   `json:"aat_pop"`
}

// Call is a call that was permitted.
type Call struct {
	Tool string
	Args jsontext.Value // the JSON object, byte for byte as it was checked

	Agent   string // name of the agent that holds the grant
	Session string
	Handoff string   // ID of the handoff that the grant is for; "" for a session's root grant
	Labels  []string // of the grant
	Issuer  string
	Expires time.Time   // the end of the grant
	Links   []*aat.Link // the chain, root first; the links are for reading, other calls have the same
}

// New returns a guard, which refuses all calls until [Guard.Feed] has brought it a snapshot of the revocations.
func New(cfg Config) (*Guard, error) {
	if len(cfg.Audience) == 0 || slices.Contains(cfg.Audience, "") {
		return nil, errors.New("guard: Config.Audience must name the guard")
	}
	for _, d := range []struct {
		value *time.Duration
		zero  time.Duration
		name  string
	}{
		{&cfg.Skew, 5 * time.Second, "Skew"},
		{&cfg.ProofWindow, 30 * time.Second, "ProofWindow"},
		{&cfg.FeedTimeout, 5 * time.Second, "FeedTimeout"},
	} {
		if *d.value < 0 || *d.value > time.Hour {
			return nil, fmt.Errorf("guard: Config.%s is %s; it must be between 0 and an hour", d.name, *d.value)
		}
		if *d.value == 0 {
			*d.value = d.zero
		}
	}
	for _, n := range []struct {
		value *int
		zero  int
		name  string
	}{
		{&cfg.SeenChains, 4096, "SeenChains"},
		{&cfg.MaxProofs, 1 << 18, "MaxProofs"},
		{&cfg.MaxRevocations, 1 << 21, "MaxRevocations"},
	} {
		if *n.value < 0 {
			return nil, fmt.Errorf("guard: Config.%s is negative", n.name)
		}
		if *n.value == 0 {
			*n.value = n.zero
		}
	}
	cfg.Audience = slices.Clone(cfg.Audience)
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	g := &Guard{cfg: cfg, proofs: newProofs(cfg.MaxProofs)}
	g.started = g.now()
	if err := g.Trust(cfg.Issuers...); err != nil {
		return nil, err
	}
	return g, nil
}

// now is the guard's clock: it never goes back, because what has been forgotten, a used proof or the revocation of a link
// that has expired, must never be needed again. It has no monotonic reading: Go would compare by that alone, and miss that
// the wall clock was set.
func (g *Guard) now() time.Time {
	now := g.cfg.Now().UnixNano()
	for {
		latest := g.latest.Load()
		if now <= latest {
			return time.Unix(0, latest)
		}
		if g.latest.CompareAndSwap(latest, now) {
			return time.Unix(0, now)
		}
	}
}

// Check permits a call or refuses it. The args are the JSON object of the invocation's arguments; caller is the name of
// the agent that the transport authenticated, "" where it does not authenticate. Every error is a *[wire.Error], whose
// Step names the step of the draft's section 8 where one failed.
func (g *Guard) Check(ctx context.Context, p Presentation, tool string, args []byte, caller string) (*Call, error) {
	call, refusal := g.check(ctx, p, tool, args, caller)
	if refusal != nil {
		g.cfg.Logger.WarnContext(ctx, "call refused", "code", refusal.Code, "step", refusal.Step, "tool", limit(tool),
			"caller", limit(caller), "agent", call.Agent, "session", call.Session, "handoff", call.Handoff)
		return nil, refusal
	}
	return call, nil
}

// limit keeps what a stranger wrote from filling the log.
func limit(s string) string { return s[:min(len(s), 256)] }

// check returns what it knows of the call even when it refuses.
func (g *Guard) check(ctx context.Context, p Presentation, tool string, args []byte, caller string) (*Call, *wire.Error) {
	now := g.now()
	t := g.trusted(now)
	if len(t.issuers) == 0 {
		return &Call{}, wire.Refuse(wire.CodeGuardGovernor, "the guard trusts nobody yet: its operator must configure an issuer")
	}

	// 1. The chain: signatures, attenuation, profile. Once for each chain.
	v := t.chains.get(p.Chain)
	if v == nil {
		links, err := t.verifier.Chain(p.Chain)
		if err != nil {
			return &Call{}, refused(err)
		}
		if v, err = t.admit(links); err != nil {
			return &Call{}, refused(err)
		}
		t.chains.put(v)
	}
	call := v.call
	call.Tool, call.Args = tool, args

	// 2. What may have changed since it was made.
	feed := t.feeds[call.Issuer]
	if feed == nil || !feed.fresh(now) {
		return &call, &wire.Error{Code: wire.CodeGuardFeed, RetryAfter: 1,
			Message: "the guard has not heard from the governor for too long and cannot know what was revoked; retry later"}
	}
	for depth := 0; depth < len(v.links); depth += 2 {
		switch state := feed.state(v.links[depth].Hash); {
		case state == wire.StateRevoked:
			return &call, wire.Refuse(wire.CodeRevoked, fmt.Sprintf("link %d of the chain was revoked", depth))
		case state == wire.StateEnded && depth == len(v.links)-1:
			return &call, wire.Refuse(wire.CodeParentEnded, "the grant has ended: its task was finished or handed on for good")
		}
	}

	// 3. Who calls.
	if caller != "" && caller != call.Agent {
		return &call, wire.Refuse(wire.CodeCaller, fmt.Sprintf("the grant is %s's, the connection is %s's",
			call.Agent, limit(caller)))
	}

	// 4. The call itself: lifetimes, audience, proof, arguments; and the proof is used up.
	if err := g.present(t, v, tool, args, p.PoP, now); err != nil {
		return &call, refused(err)
	}
	// What a Decide or a tool does to its Call must not reach the next one.
	call.Labels, call.Links = slices.Clone(call.Labels), slices.Clone(call.Links)
	if g.cfg.Decide != nil {
		if err := g.cfg.Decide(ctx, &call); err != nil {
			if e, ok := errors.AsType[*wire.Error](err); ok {
				return &call, e
			}
			g.cfg.Logger.ErrorContext(ctx, "deciding on a call failed", "error", err)
			return &call, wire.Refuse(wire.CodePolicyError, "the policy for calls failed; ask the tool's operator")
		}
	}
	return &call, nil
}

// present runs the draft's steps 5 to 8. The proof is tracked for every call, and must be younger than the guard: an
// older one may have been used before the guard was restarted and forgot.
func (g *Guard) present(t *trust, v *verified, tool string, args []byte, pop string, now time.Time) error {
	var refusal *wire.Error
	verifier := t.verifier
	verifier.Seen = func(jti string, until time.Time) bool {
		switch issued := until.Add(-g.cfg.ProofWindow).Truncate(time.Second); {
		case issued.After(now.Add(g.cfg.Skew)):
			refusal = &wire.Error{Code: wire.CodeProof, Step: "7g",
				Message: "iat of the proof is in the future: set the clock right and sign a new one"}
		case issued.Before(g.started.Add(g.cfg.Skew)):
			wait := g.started.Add(g.cfg.Skew).Sub(now)
			refusal = &wire.Error{Code: wire.CodeGuardStart, Step: "7i", RetryAfter: max(1, int(wait/time.Second)+2),
				Message: "the guard has just started and cannot know whether this proof was used before; sign a new one later"}
		default:
			refusal = g.proofs.accept(v.leaf().Hash, v.call.Agent, jti, until, now)
		}
		return refusal != nil
	}
	_, err := verifier.Present(v.links, tool, args, pop)
	if refusal != nil {
		return refusal
	}
	return err
}

// refused words an error of package aat or profile for the caller.
func refused(err error) *wire.Error {
	if e, ok := errors.AsType[*wire.Error](err); ok {
		return e
	}
	step, ok := errors.AsType[*aat.StepError](err)
	if !ok {
		return wire.Refuse(wire.CodeToken, err.Error())
	}
	e := &wire.Error{Code: wire.CodeToken, Step: step.Step, Message: fmt.Sprintf("link %d: %s", step.Link, step.Reason)}
	switch {
	case step.Step == "3e" || step.Step == "4i":
		e.Code, e.Message = wire.CodeExpired, e.Message+"; ask for a new handoff"
	case step.Step == "6a" || step.Step == "6b":
		e.Code, e.Message = wire.CodeNotGranted, step.Reason+"; call within the grant, or ask for a wider one"
	case step.Step == "6c" || step.Step == "7d":
		e.Code, e.Message = wire.CodeAudience, e.Message+"; present it to the guard that it was made for"
	case strings.HasPrefix(step.Step, "7"):
		e.Code, e.Message = wire.CodeProof, step.Reason+"; sign a fresh proof with the grant's key for this very call"
	}
	return e
}
