package governor_test

import (
	"crypto/ed25519"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/nats-io/nats.go"

	"github.com/handoff-governor/handoff-governor/cmd/governor/daemon/daemontest"
	"github.com/handoff-governor/handoff-governor/handoff/aat"
	"github.com/handoff-governor/handoff-governor/handoff/aat/jws"
	"github.com/handoff-governor/handoff-governor/handoff/wire"
)

// credentialAttacks are made with tokens, proofs and keys, over the wire.
var credentialAttacks = []attack{
	// A wider token, at every dimension.
	widening("asks for a tool that she was not given", func(t aat.Tools) { t["fs.write"] = nil }),
	widening("widens an exact argument", func(t aat.Tools) { t["t"]["exact"] = aat.Exact("b") }),
	widening("widens a set of values", func(t aat.Tools) { t["t"]["one_of"] = aat.OneOf("a", "b", "c") }),
	widening("forgets a value that is excluded", func(t aat.Tools) { t["t"]["not_one_of"] = aat.NotOneOf("x") }),
	widening("widens a range", func(t aat.Tools) { t["t"]["range"] = aat.Range(aat.AtLeast("1"), aat.AtMost("10.000001")) }),
	widening("includes the end of a range that is excluded", func(t aat.Tools) { t["t"]["open"] = aat.Range(aat.AtLeast("1"), aat.AtMost("10")) }),
	widening("requires less of a list", func(t aat.Tools) { t["t"]["contains"] = aat.Contains("a") }),
	widening("allows more in a list", func(t aat.Tools) { t["t"]["subset"] = aat.Subset("a", "b", "c") }),
	widening("leaves out one of several conditions", func(t aat.Tools) { t["t"]["all"] = aat.All(aat.OneOf("a", "b")) }),
	widening("adds an alternative", func(t aat.Tools) { t["t"]["any"] = aat.Any(aat.Exact("a"), aat.Exact("c")) }),
	widening("makes an argument optional", func(t aat.Tools) { t["t"]["exact"] = aat.Exact("a").AsOptional() }),
	widening("replaces a condition by a wildcard", func(t aat.Tools) { t["t"]["one_of"] = aat.Wildcard() }),
	widening("leaves out a condition", func(t aat.Tools) { delete(t["t"], "range") }),
	widening("replaces a condition by one of another kind", func(t aat.Tools) { t["t"]["subset"] = aat.OneOf("a") }),
	offers("lives longer than her grant", "authority after its end", wire.CodeExpired, func(a *arena, h held, o *offering) {
		o.claims.ExpiresAt = h.leaf().Claims.ExpiresAt + 1
	}),
	offers("has the claim later than the work ends", "a task that begins after its end", wire.CodeProfile, func(a *arena, h held, o *offering) {
		o.handoff.Deadline = o.claims.ExpiresAt + 1
	}),
	offers("adds hops", "the task travels further than was allowed", wire.CodeHopLimit, func(a *arena, h held, o *offering) {
		o.claims.MaxDepth += 2
	}),
	{
		name: "drops a label", wins: "secret data goes where secrets may not",
		try: func(a *arena) string {
			h := a.mallory.session(readFiles(), func(r *wire.OpenRequest) { r.Labels = []string{"secret"} })
			o := h.offer(a.bob().name, "work", func(o *offering) { o.handoff.Labels = nil })
			a.mallory.receipt(o.id)
			_, c := a.bob().claim(h.session, o.id)
			if len(c.Labels) != 1 || c.Labels[0] != "secret" {
				a.t.Errorf("bob works on it with the labels %q", c.Labels)
			}
			return "governor: the labels of the parent count"
		},
	},
	{
		name: "hands on more often than the budget allows", wins: "work without end in one session",
		try: func(a *arena) string {
			h := a.mallory.session(readFiles(), func(r *wire.OpenRequest) { r.Budget = &wire.Budget{Handoffs: 1} })
			a.mallory.receipt(h.offer(a.bob().name, "work").id)
			return a.offerRefused(h, wire.CodeBudget, func(*offering) {})
		},
	},

	// Tokens that are not what they seem.
	resigning("leaves the signature out", "a token that anybody can make", `{"alg":"none","typ":"aat+jwt"}`, nil),
	resigning("names another algorithm", "a verifier that takes the sender's word for it", `{"alg":"EdDSA","typ":"aat+jwt"}`, nil),
	resigning("signs with the public key as if it were a secret", "a token in anybody's name", `{"alg":"HS256","typ":"aat+jwt"}`,
		func(input string, a *arena) []byte {
			mac := hmac.New(sha256.New, a.mallory.key.Public().(ed25519.PublicKey))
			mac.Write([]byte(input))
			return mac.Sum(nil)
		}),
	resigning("passes off another kind of statement as a token", "a proof of hers is worth a grant", `{"alg":"Ed25519","typ":"aat-pop+jwt"}`, nil),
	resigning("demands an extension that nobody knows", "readers that differ in what they ignore", `{"alg":"Ed25519","typ":"aat+jwt","crit":["b64"],"b64":false}`, nil),
	resigning("says alg twice", "two readers, two algorithms", `{"alg":"none","alg":"Ed25519","typ":"aat+jwt"}`, nil),
	{
		name: "brings her own key in the header", wins: "the key that is checked with is hers",
		try: func(a *arena) string {
			_, other, _ := ed25519.GenerateKey(rand.Reader)
			header := fmt.Sprintf(`{"alg":"Ed25519","typ":"aat+jwt","jwk":{"kty":"OKP","crv":"Ed25519","x":%q}}`, b64(other.Public().(ed25519.PublicKey)))
			return a.headed(header, func(input string) []byte { return ed25519.Sign(other, []byte(input)) })
		},
	},
	{
		name: "signs with another key than her grant's", wins: "a grant is not bound to a process",
		try: func(a *arena) string {
			_, other, _ := ed25519.GenerateKey(rand.Reader)
			return a.offerRefused(a.mallory.session(readFiles()), wire.CodeToken, func(o *offering) { o.key = other })
		},
	},
	{
		name: "changes a token after it was signed", wins: "the signature of one offer, the content of another",
		try: func(a *arena) string {
			h := a.mallory.session(readFiles())
			return a.offerRefused(h, wire.CodeToken, func(o *offering) {
				h.seal(o)
				head, rest, _ := strings.Cut(o.token, ".")
				payload, signature, _ := strings.Cut(rest, ".")
				raw, _ := base64.RawURLEncoding.DecodeString(payload)
				changed := strings.Replace(string(raw), `"/a"`, `"/c"`, 1)
				o.header[wire.HeaderToken] = []string{head + "." + b64([]byte(changed)) + "." + signature}
			})
		},
	},
	{
		name: "swaps the task under a signed offer", wins: "the receiver works on what nobody has judged",
		try: func(a *arena) string {
			return a.offerRefused(a.mallory.session(readFiles()), wire.CodeTaskHash, func(o *offering) {
				o.handoff.TaskHash = wire.TaskHash(o.salt, []byte("harmless"))
			})
		},
	},

	// Other parents.
	offers("grafts her offer on the planner's grant", "the planner's authority", wire.CodeParentNotYours, func(a *arena, h held, o *offering) {
		o.claims.ParentHash = a.root.leaf().HashString()
		o.handoff.Session, o.subject = a.root.session, wire.OfferSubject(a.root.session, o.handoff.To)
	}),
	offers("grafts her offer on a grant of another session", "labels and limits of this one do not count", wire.CodeSubjectMismatch, func(a *arena, h held, o *offering) {
		o.claims.ParentHash = a.mallory.session(aat.Tools{"fs.write": {}}).leaf().HashString()
	}),
	offers("grafts her offer on nothing", "authority out of thin air", wire.CodeParentUnknown, func(a *arena, h held, o *offering) {
		o.claims.ParentHash = b64(make([]byte, 32))
	}),
	{
		name: "goes on from an offer that nobody has claimed", wins: "authority before it was handed over",
		try: func(a *arena) string {
			h := a.mallory.session(readFiles())
			first := h.offer(a.bob().name, "work")
			a.mallory.receipt(first.id)
			sum := sha256.Sum256([]byte(first.token[:strings.LastIndex(first.token, ".")]))
			return a.offerRefused(h, wire.CodeParentUnknown, func(o *offering) { o.claims.ParentHash = b64(sum[:]) })
		},
	},
	{
		name: "goes on from a task that is done", wins: "authority after the work",
		try: func(a *arena) string {
			h := a.task(a.bob())
			h.a.receipt(h.result("done"))
			return a.offerRefused(h, wire.CodeParentEnded, func(*offering) {})
		},
	},
	{
		name: "goes on from a grant that was revoked", wins: "a revocation stops nobody",
		try: func(a *arena) string {
			h := a.task(a.bob())
			if out := a.operator.operate(wire.VerbRevoke, wire.OperatorRequest{ID: h.handoff, Reason: "test"}); out.Error != nil {
				a.t.Fatal(out.Error)
			}
			return a.offerRefused(h, wire.CodeParentRevoked, func(*offering) {})
		},
	},
	{
		name: "offers in a session that is closed", wins: "work after its end",
		try: func(a *arena) string {
			h := a.mallory.session(readFiles())
			a.mallory.closing(h.session)
			return a.offerRefused(h, wire.CodeSessionClosed, func(*offering) {})
		},
	},

	// Around the governor.
	offers("hands on to an agent's key directly", "a hop that nobody has judged", wire.CodeGovernorKey, func(a *arena, h held, o *offering) {
		o.claims.Holder = a.bob().jwk()
	}),
	offers("hands on to a second key of her own, posing as the governor", "the claim is hers to sign", wire.CodeGovernorKey, func(a *arena, h held, o *offering) {
		_, second, _ := ed25519.GenerateKey(rand.Reader)
		o.claims.Holder = aat.NewJWK(second.Public().(ed25519.PublicKey))
	}),
	offers("offers to nobody", "a task that waits for an identity to come", wire.CodeUnknownAgent, func(a *arena, h held, o *offering) {
		o.handoff.To = strings.Replace(o.handoff.To, "handoff", "elsewhere", 1)
		o.subject = wire.OfferSubject(h.session, o.handoff.To)
	}),
	offers("offers to the governor itself", "the governor holds authority", wire.CodeUnknownAgent, func(a *arena, h held, o *offering) {
		o.handoff.To = daemontest.Name(a.t, "/governor")
		o.subject = wire.OfferSubject(h.session, o.handoff.To)
	}),
	offers("offers to an operator", "a task in an inbox that people read", wire.CodeUnknownAgent, func(a *arena, h held, o *offering) {
		o.handoff.To = daemontest.Name(a.t, "/operator/local")
		o.subject = wire.OfferSubject(h.session, o.handoff.To)
	}),
	offers("names one receiver to the server and another in the token", "a task for bob in the writer's inbox", wire.CodeSubjectMismatch, func(a *arena, h held, o *offering) {
		o.subject = wire.OfferSubject(h.session, a.writer.name)
	}),
	offers("sends a chain along", "a parent that the governor never recorded", wire.CodeFederation, func(a *arena, h held, o *offering) {
		o.header[wire.HeaderChain] = []string{h.leaf().Compact}
	}),

	// IDs.
	offers("uses the ID of another's handoff", "the planner's task is taken for hers", wire.CodeIDConflict, func(a *arena, h held, o *offering) {
		theirs := a.root.offer(a.bob().name, "work")
		a.planner.receipt(theirs.id)
		o.id, o.claims.ID = theirs.id, theirs.id
	}),
	offers("uses the ID of another's session", "a session is taken for a handoff", wire.CodeIDConflict, func(a *arena, h held, o *offering) {
		o.id, o.claims.ID = a.root.session, a.root.session
	}),
	offers("uses an ID of yesterday", "what was forgotten is new again", wire.CodeIDTime, func(a *arena, h held, o *offering) {
		o.id = idAt(a, -24*time.Hour)
		o.claims.ID = o.id
	}),
	offers("uses an ID of tomorrow", "an ID that she can use up for somebody", wire.CodeIDTime, func(a *arena, h held, o *offering) {
		o.id = idAt(a, 24*time.Hour)
		o.claims.ID = o.id
	}),
	offers("uses a random ID", "IDs without an order", wire.CodeID, func(a *arena, h held, o *offering) {
		o.id = uuid.NewString()
		o.claims.ID = o.id
	}),
	{
		name: "opens a session with the ID of another's", wins: "the planner's session is hers",
		try: func(a *arena) string {
			request := a.mallory.openRequest(readFiles())
			request.ID = a.root.session
			return a.openRefused(a.mallory.prove(request), wire.CodeIDConflict)
		},
	},

	// Replays.
	{
		name: "sends the planner's offer again as her own", wins: "the planner's task twice, or in her name",
		try: func(a *arena) string {
			theirs := a.root.offer(a.bob().name, "work")
			index := a.planner.receipt(theirs.id)
			before := a.entries()
			a.mallory.publish(theirs)
			v := a.mallory.verdict(theirs.id)
			if v.Effect != wire.EffectDeny || v.Reasons[0].Code != wire.CodeIDConflict {
				a.t.Errorf("the verdict is %+v", v)
			}
			a.planner.publish(theirs)
			if again := a.planner.receipt(theirs.id); again != index {
				a.t.Errorf("the planner's own repeat has entry %d, not %d", again, index)
			}
			a.wrote(before, 0)
			return "governor: " + string(v.Reasons[0].Code)
		},
	},
	{
		name: "sends her own offer again with another task", wins: "what is worked on is not what was decided",
		try: func(a *arena) string {
			h := a.mallory.session(readFiles())
			first := h.offer(a.bob().name, "work")
			a.mallory.receipt(first.id)
			other := *first
			other.body = []byte("other work")
			a.mallory.publish(&other)
			v := a.mallory.verdict(first.id)
			if _, c := a.bob().claim(h.session, first.id); string(c.Task) != "work" {
				a.t.Errorf("bob works on %q", c.Task)
			}
			return a.code(v, wire.CodeIDConflict)
		},
	},
	{
		name: "opens a session with the planner's own request", wins: "a session in the planner's name",
		try: func(a *arena) string {
			return a.openRefused(a.planner.prove(a.planner.openRequest(readFiles())), wire.CodeForbidden)
		},
	},
	{
		name: "closes a session with a proof for looking at it", wins: "leave to look is leave to close",
		try: func(a *arena) string {
			h := a.mallory.session(readFiles())
			body := a.mallory.proveFor(wire.VerbSessionStatus, wire.SessionRequest{Session: h.session})
			return a.closeRefused(h.session, body, wire.CodeProof)
		},
	},
	{
		name: "closes a session with a proof for another", wins: "one proof closes everything",
		try: func(a *arena) string {
			h, other := a.mallory.session(readFiles()), a.mallory.session(readFiles())
			body := a.mallory.proveFor(wire.VerbSessionClose, wire.SessionRequest{Session: other.session})
			return a.closeRefused(h.session, []byte(strings.Replace(string(body), other.session, h.session, 1)), wire.CodeProof)
		},
	},
	{
		name: "claims with bob's own proof", wins: "bob's task, for who listens to bob",
		try: func(a *arena) string {
			h := a.mallory.session(readFiles())
			o := h.offer(a.bob().name, "work")
			a.mallory.receipt(o.id)
			return a.claimRefused(a.mallory, h.session, a.bob().claimRequest(h.session, []string{o.id}), wire.CodeProof)
		},
	},
	{
		name: "claims with a proof for another governor", wins: "a proof from elsewhere",
		try: func(a *arena) string {
			h := a.mallory.session(readFiles())
			o := h.offer(a.bob().name, "work")
			a.mallory.receipt(o.id)
			return a.claimRefused(a.bob(), h.session, a.bob().claimRequest(h.session, []string{o.id}, func(p *wire.ClaimProof) {
				p.Audience = "spiffe://elsewhere/governor"
			}), wire.CodeProof)
		},
	},
	{
		name: "claims with a proof of an hour ago", wins: "a proof that was found in a log",
		try: func(a *arena) string {
			h := a.mallory.session(readFiles())
			o := h.offer(a.bob().name, "work")
			a.mallory.receipt(o.id)
			return a.claimRefused(a.bob(), h.session, a.bob().claimRequest(h.session, []string{o.id}, func(p *wire.ClaimProof) {
				p.IssuedAt, p.Expires = p.IssuedAt-3600, p.Expires-3600
			}), wire.CodeProof)
		},
	},
	{
		name: "claims with a proof for other tasks", wins: "one proof claims everything",
		try: func(a *arena) string {
			h := a.mallory.session(readFiles())
			o := h.offer(a.bob().name, "work")
			a.mallory.receipt(o.id)
			return a.claimRefused(a.bob(), h.session, a.bob().claimRequest(h.session, []string{o.id}, func(p *wire.ClaimProof) {
				p.IDs = []string{newID(a.t)}
			}), wire.CodeProof)
		},
	},

	// What belongs to others.
	{
		name: "claims a task of another", wins: "the planner's task, with the authority for it",
		try: func(a *arena) string {
			o := a.root.offer(a.bob().name, "work")
			a.planner.receipt(o.id)
			refused := a.claimRefused(a.mallory, a.root.session, a.mallory.claimRequest(a.root.session, []string{o.id}), wire.CodeHandoffUnknown)
			if _, c := a.bob().claim(a.root.session, o.id); string(c.Task) != "work" {
				a.t.Errorf("bob is given %q", c.Task)
			}
			return refused
		},
	},
	{
		name: "claims a task of another with the stolen key of its process", wins: "a key is an identity",
		try: func(a *arena) string {
			h := a.task(a.bob())
			o := a.root.offer(a.bob().name, "more")
			a.planner.receipt(o.id)
			thief := *a.mallory
			thief.key = h.a.key
			return a.claimRefused(a.mallory, a.root.session, thief.claimRequest(a.root.session, []string{o.id}), wire.CodeHandoffUnknown)
		},
	},
	{
		name: "claims her own task with the stolen key of another", wins: "a grant that the other is blamed for",
		try: func(a *arena) string {
			h := a.task(a.bob())
			o := a.root.offer(a.mallory.name, "work")
			a.planner.receipt(o.id)
			thief := *a.mallory
			thief.key = h.a.key
			return a.claimRefused(a.mallory, a.root.session, thief.claimRequest(a.root.session, []string{o.id}), wire.CodeKeyBound)
		},
	},
	{
		name: "claims with the stolen identity what a process works on", wins: "two hold one task",
		try: func(a *arena) string {
			h := a.task(a.bob())
			second := a.bob().process()
			return a.claimRefused(second, h.session, second.claimRequest(h.session, []string{h.handoff}), wire.CodeAlreadyClaimed)
		},
	},
	{
		name: "claims a task in another session", wins: "a task is judged by another session's facts",
		try: func(a *arena) string {
			h, other := a.mallory.session(readFiles()), a.mallory.session(readFiles())
			o := h.offer(a.bob().name, "work")
			a.mallory.receipt(o.id)
			return a.claimRefused(a.bob(), other.session, a.bob().claimRequest(other.session, []string{o.id}), wire.CodeHandoffUnknown)
		},
	},
	{
		name: "claims a task that was denied", wins: "a denial is advice",
		try: func(a *arena) string {
			h := a.mallory.session(readFiles())
			o := h.offer(a.bob().name, "work", func(o *offering) { o.claims.Tools = aat.Tools{"fs.write": {}} })
			a.mallory.verdict(o.id)
			return a.claimRefused(a.bob(), h.session, a.bob().claimRequest(h.session, []string{o.id}), wire.CodeHandoffUnknown)
		},
	},
	{
		name: "returns a result for another's task", wins: "the planner believes her",
		try: func(a *arena) string {
			h := a.task(a.bob())
			forged := h
			forged.a = a.mallory
			before := a.entries()
			forged.result("lies")
			v := a.mallory.verdict("")
			h.a.receipt(h.result("truth"))
			a.wrote(before, 1)
			return a.code(v, wire.CodeToken, wire.CodeHandoffUnknown, wire.CodeNotYours)
		},
	},
	{
		name: "returns another result after the first", wins: "the answer changes after it was used",
		try: func(a *arena) string {
			h := a.task(a.bob())
			h.a.receipt(h.result("first"))
			h.result("second")
			return a.code(h.a.verdict(h.handoff), wire.CodeResultConflict)
		},
	},
	{
		name: "returns a result that was made for another handoff", wins: "one signature answers everything",
		try: func(a *arena) string {
			h := a.task(a.bob())
			h.result("done", func(r *wire.ResultToken, _ *nats.Msg) { r.Handoff = newID(a.t) })
			return a.code(h.a.verdict(h.handoff), wire.CodeSubjectMismatch)
		},
	},
	{
		name: "returns another body than she has signed", wins: "a result that nobody stands for",
		try: func(a *arena) string {
			h := a.task(a.bob())
			h.result("done", func(_ *wire.ResultToken, m *nats.Msg) { m.Data = []byte("else") })
			return a.code(h.a.verdict(h.handoff), wire.CodeTaskHash)
		},
	},
	{
		name: "closes the session of another", wins: "the planner's work ends",
		try: func(a *arena) string {
			return a.closeRefused(a.root.session, a.mallory.prove(wire.SessionRequest{Session: a.root.session}), wire.CodeNotYours)
		},
	},
	{
		name: "looks at the session of another", wins: "what the planner is about",
		try: func(a *arena) string {
			var out wire.SessionStatus
			a.mallory.ask(wire.SubjectSessionStatus, a.mallory.proveFor(wire.VerbSessionStatus, wire.SessionRequest{Session: a.root.session}), &out)
			if out.Error == nil || out.Error.Code != wire.CodeNotYours || out.Opener != "" {
				a.t.Errorf("she is told %+v", out)
			}
			return "governor: " + string(out.Error.Code)
		},
	},

	// Roots.
	{
		name: "opens a session for another workload", wins: "the planner's rights",
		try: func(a *arena) string {
			request := a.mallory.openRequest(readFiles())
			request.Principal.Name = a.planner.name
			return a.openRefused(a.mallory.prove(request), wire.CodeRulePrincipal, wire.CodePolicyDenied, wire.CodeProof, wire.CodeNotYours, wire.CodeForbidden)
		},
	},
	{
		name: "opens a session for a person who is not asked", wins: "what that person may",
		try: func(a *arena) string {
			request := a.mallory.openRequest(readFiles())
			request.Principal = wire.Principal{Kind: wire.PrincipalHuman, Name: "alice"}
			return a.openRefused(a.mallory.prove(request), wire.CodeProof, wire.CodeRulePrincipal, wire.CodePolicyDenied, wire.CodeForbidden)
		},
	},
	{
		name: "signs for a person herself", wins: "what that person may",
		try: func(a *arena) string {
			request := a.mallory.openRequest(readFiles())
			request.Principal = wire.Principal{Kind: wire.PrincipalHuman, Name: "alice"}
			proof, err := jws.SignJSON(wire.TypePrincipal, wire.PrincipalProof{
				ID: newID(a.t), IssuedAt: a.now(), Expires: a.now() + 60, Audience: a.d.Endpoint.Issuer, Subject: "alice", RequestHash: b64(make([]byte, 32)),
			}, a.mallory.key)
			if err != nil {
				a.t.Fatal(err)
			}
			request.Principal.Proof = proof
			return a.openRefused(a.mallory.prove(request), wire.CodeProof, wire.CodeRulePrincipal, wire.CodePolicyDenied, wire.CodeForbidden)
		},
	},
	{
		name: "opens a session for a day and a second", wins: "a session that outlives its purpose",
		try: func(a *arena) string {
			request := a.mallory.openRequest(readFiles())
			request.TTL = 24*3600 + 1
			return a.openRefused(a.mallory.prove(request), wire.CodeMalformed)
		},
	},
	{
		name: "opens a session with the governor's key as hers", wins: "she holds what the governor holds",
		try: func(a *arena) string {
			var keys wire.Keys
			a.mallory.ask(wire.SubjectKeys, nil, &keys)
			request := a.mallory.openRequest(readFiles())
			request.JWK = keys.GovernorKeys[0]
			return a.openRefused(a.mallory.prove(request), wire.CodeProof, wire.CodeKey)
		},
	},
	{
		name: "opens a session with a key that fits every signature", wins: "anybody can sign for her",
		try: func(a *arena) string {
			request := a.mallory.openRequest(readFiles())
			small := make([]byte, 32)
			small[0] = 1 // the neutral element: of small order
			request.JWK = aat.JWK{X: b64(small)}
			body := strings.Replace(string(a.mallory.prove(a.mallory.openRequest(readFiles()))), a.mallory.jwk().X, b64(small), 1)
			return a.openRefused([]byte(body), wire.CodeKey, wire.CodeMalformed)
		},
	},
	{
		name: "opens a session with her private key in the request", wins: "the key stands in the ledger for ever",
		try: func(a *arena) string {
			body := strings.Replace(string(a.mallory.prove(a.mallory.openRequest(readFiles()))), `"kty":"OKP"`, `"kty":"OKP","d":"AAAA"`, 1)
			return a.openRefused([]byte(body), wire.CodeKey, wire.CodeMalformed)
		},
	},
	{
		name: "opens a session with the stolen key of another", wins: "a root that the other is blamed for",
		try: func(a *arena) string {
			h := a.task(a.bob())
			thief := *a.mallory
			thief.key = h.a.key
			return a.openRefused(thief.prove(thief.openRequest(readFiles())), wire.CodeKeyBound)
		},
	},
}

// widening is an attack that asks for more than wideTools in one respect.
func widening(name string, change func(aat.Tools)) attack {
	return attack{name, "calls that her own grant does not permit", func(a *arena) string {
		h := a.mallory.session(wideTools())
		return a.offerRefused(h, wire.CodeWidened, func(o *offering) {
			o.claims.Tools = wideTools()
			change(o.claims.Tools)
		})
	}}
}

// wideTools have a constraint of each type.
func wideTools() aat.Tools {
	return aat.Tools{"t": {
		"exact": aat.Exact("a"), "one_of": aat.OneOf("a", "b"), "not_one_of": aat.NotOneOf("x", "y"),
		"range": aat.Range(aat.AtLeast("1"), aat.AtMost("10")), "open": aat.Range(aat.AtLeast("1"), aat.LessThan("10")),
		"contains": aat.Contains("a", "b"), "subset": aat.Subset("a", "b"),
		"all": aat.All(aat.OneOf("a", "b"), aat.NotOneOf("b")), "any": aat.Any(aat.Exact("a"), aat.Exact("b")),
	}}
}

// offers is an attack by an offer from a session of mallory's own.
func offers(name, wins string, code wire.Code, change func(*arena, held, *offering)) attack {
	return attack{name, wins, func(a *arena) string {
		h := a.mallory.session(readFiles())
		return a.offerRefused(h, code, func(o *offering) { change(a, h, o) })
	}}
}

// resigning is an attack by a token with another header; sign makes its signature, which is a good one where nil.
func resigning(name, wins, header string, sign func(input string, a *arena) []byte) attack {
	return attack{name, wins, func(a *arena) string {
		return a.headed(header, func(input string) []byte {
			if sign == nil {
				return ed25519.Sign(a.mallory.key, []byte(input))
			}
			return sign(input, a)
		})
	}}
}

// headed makes an offer whose token has another header and signature.
func (a *arena) headed(header string, sign func(input string) []byte) string {
	a.t.Helper()
	h := a.mallory.session(readFiles())
	return a.offerRefused(h, wire.CodeToken, func(o *offering) {
		h.seal(o)
		u, err := jws.Split(o.token, wire.MaxToken)
		if err != nil {
			a.t.Fatal(err)
		}
		input := b64([]byte(header)) + "." + b64(u.Payload)
		o.header[wire.HeaderToken] = []string{input + "." + b64(sign(input))}
	})
}

// task is one that somebody has handed to an agent, and the agent works on.
func (a *arena) task(to *agent) held {
	a.t.Helper()
	employer := a.agent(fmt.Sprintf("employer-%d", a.n))
	root := employer.session(readFiles())
	o := root.offer(to.name, "work")
	employer.receipt(o.id)
	h, _ := to.claim(root.session, o.id)
	return h
}

// code is that of a denial, which must be one of those.
func (a *arena) code(v wire.Verdict, want ...wire.Code) string {
	a.t.Helper()
	if v.Effect != wire.EffectDeny || len(v.Reasons) == 0 {
		a.t.Fatalf("the verdict is %+v", v)
	}
	return a.oneOf(v.Reasons[0].Code, want)
}

func (a *arena) oneOf(got wire.Code, want []wire.Code) string {
	a.t.Helper()
	for _, code := range want {
		if got == code {
			return "governor: " + string(code)
		}
	}
	a.t.Fatalf("refused with %s, not one of %s", got, want)
	return ""
}

// openRefused has mallory send a request to open a session.
func (a *arena) openRefused(body []byte, want ...wire.Code) string {
	a.t.Helper()
	var out wire.OpenResponse
	a.mallory.ask(wire.SubjectSessionOpen, body, &out)
	if out.Error == nil || len(out.Chain) > 0 {
		a.t.Fatalf("she has a session: %+v", out)
	}
	return a.oneOf(out.Error.Code, want)
}

// closeRefused has mallory send a request to close a session, which stays open.
func (a *arena) closeRefused(session string, body []byte, want ...wire.Code) string {
	a.t.Helper()
	var out wire.SessionStatus
	a.mallory.ask(wire.SubjectSessionClose, body, &out)
	if out.Error == nil {
		a.t.Fatalf("it is closed: %+v", out)
	}
	for _, s := range a.operator.operate(wire.VerbSessionList, wire.OperatorRequest{}).Sessions {
		if s.Session == session && s.State != "open" {
			a.t.Errorf("it is %s", s.State)
		}
	}
	return a.oneOf(out.Error.Code, want)
}

func (a *agent) closing(session string) {
	a.t.Helper()
	var out wire.SessionStatus
	a.ask(wire.SubjectSessionClose, a.prove(wire.SessionRequest{Session: session}), &out)
	if out.Error != nil {
		a.t.Fatal(out.Error)
	}
}

// claimRefused has an agent send a request to claim one task.
func (a *arena) claimRefused(by *agent, session string, request wire.ClaimRequest, want ...wire.Code) string {
	a.t.Helper()
	var out wire.ClaimResponse
	by.ask(wire.ClaimSubject(session), encode(a.t, request), &out)
	refusal := out.Error
	if len(out.Claims) == 1 {
		refusal = out.Claims[0].Error
		if out.Claims[0].Chain != nil || out.Claims[0].Task != nil {
			a.t.Errorf("a refusal brings %+v", out.Claims[0])
		}
	}
	if refusal == nil {
		a.t.Fatalf("it is claimed: %+v", out)
	}
	return a.oneOf(refusal.Code, want)
}

// idAt is a UUIDv7 of another time.
func idAt(a *arena, d time.Duration) string {
	id, err := uuid.NewV7()
	if err != nil {
		a.t.Fatal(err)
	}
	ms := time.Now().Add(d).UnixMilli()
	for i := range 6 {
		id[i] = byte(ms >> (8 * (5 - i)))
	}
	return id.String()
}
