package handoff

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"fmt"
	"time"

	"github.com/go-json-experiment/json"

	"github.com/handoff-governor/handoff-governor/handoff/aat"
	"github.com/handoff-governor/handoff-governor/handoff/aat/jws"
	"github.com/handoff-governor/handoff-governor/handoff/aat/profile"
	"github.com/handoff-governor/handoff-governor/handoff/identity"
	"github.com/handoff-governor/handoff-governor/handoff/wire"
)

// SessionRequest is what an agent asks a session for. The policy may grant less.
type SessionRequest struct {
	// ID is a UUIDv7 with about the present time. "": a new one. The same ID with the same process key gets the same
	// session again.
	ID        string
	Objective string // 1 to 4096 bytes; stored like a body, never read by policy
	Tools     aat.Tools
	TTL       time.Duration // whole seconds, up to a day. Zero: an hour
	MaxHops   int           // handoffs one after another, up to 16. 0: none
	Labels    []string
	Budget    *wire.Budget

	// Principal is on whose behalf the session runs. Zero: the agent itself.
	Principal wire.Principal
	// Person proves a human principal: it returns a wire.TypePrincipal statement over this hash of the request, for the
	// issuer of that URI. Required for one, see [PersonKey].
	Person func(ctx context.Context, issuer, requestHash string) (proof string, err error)
}

// Session is an open session, with its root grant.
type Session struct {
	*Grant
	// Reasons say what the policy has left out of the request; there may be none.
	Reasons []wire.Reason
}

// PersonKey proves a person by a key that the issuer knows for that name. Wherever a person has better means, such as a
// hardware key behind a prompt, use those.
func PersonKey(name string, key ed25519.PrivateKey) func(context.Context, string, string) (string, error) {
	return func(_ context.Context, issuer, requestHash string) (string, error) {
		now := time.Now().Unix()
		return jws.SignJSON(wire.TypePrincipal, wire.PrincipalProof{
			ID: rand.Text(), IssuedAt: now, Expires: now + wire.ProofLifetime, Audience: issuer, Subject: name,
			RequestHash: requestHash,
		}, key)
	}
}

// OpenSession opens a session, or returns the one that was opened with this ID before. It asks until it is answered or
// ctx ends. A refusal is a *[Denied] where the policy gave reasons, else a *[wire.Error].
func (c *Client) OpenSession(ctx context.Context, r SessionRequest) (*Session, error) {
	request, err := c.openRequest(r)
	if err != nil {
		return nil, err
	}
	answer, err := call(ctx, c, wire.SubjectSessionOpen, func() ([]byte, error) {
		return c.proveOpen(ctx, *request, r.Person)
	}, func(a *wire.OpenResponse) *wire.Error { return a.Error })
	if e, ok := errors.AsType[*wire.Error](err); ok && answer != nil {
		return nil, refusedWith(request.ID, e, answer.Reasons, answer.Entry)
	}
	if err != nil {
		return nil, err
	}
	c.replaced(answer.GovernorJWK)
	grant, err := c.grant(ctx, answer.Chain)
	if err != nil {
		return nil, fmt.Errorf("handoff: the root of session %s: %w", request.ID, err)
	}
	return &Session{Grant: grant, Reasons: answer.Reasons}, nil
}

func (c *Client) openRequest(r SessionRequest) (*wire.OpenRequest, error) {
	if r.ID == "" {
		id, err := newID()
		if err != nil {
			return nil, err
		}
		r.ID = id
	}
	if r.TTL == 0 {
		r.TTL = time.Hour
	}
	if r.TTL < time.Second {
		return nil, wire.Refuse(wire.CodeMalformed, "a session lives for at least a second")
	}
	if r.Principal == (wire.Principal{}) {
		r.Principal = wire.Principal{Kind: wire.PrincipalWorkload, Name: string(c.name)}
	}
	if r.Principal.Kind == wire.PrincipalHuman && r.Person == nil {
		return nil, wire.Refuse(wire.CodeMalformed, "a human principal needs SessionRequest.Person to prove it")
	}
	if r.Tools == nil {
		r.Tools = aat.Tools{}
	}
	return &wire.OpenRequest{
		ID: r.ID, Objective: r.Objective, Principal: r.Principal, Tools: r.Tools, Labels: r.Labels,
		TTL: int(r.TTL / time.Second), MaxHops: r.MaxHops, Budget: r.Budget, JWK: c.jwk,
	}, nil
}

// proveOpen makes the body of a request, proved by the person first, then by the process.
func (c *Client) proveOpen(ctx context.Context, request wire.OpenRequest, person func(context.Context, string, string) (string, error)) ([]byte, error) {
	k, err := c.trusted(ctx)
	if err != nil {
		return nil, err
	}
	if request.Principal.Kind == wire.PrincipalHuman {
		body, err := json.Marshal(request)
		if err != nil {
			return nil, fmt.Errorf("handoff: encoding the request: %w", err)
		}
		hash, err := wire.PrincipalRequestHash(body)
		if err != nil {
			return nil, err
		}
		if request.Principal.Proof, err = person(ctx, k.Issuer, hash); err != nil {
			return nil, fmt.Errorf("handoff: proving the principal: %w", err)
		}
	}
	if request.SVIDProof, err = c.proveOpener(&request, k.Issuer); err != nil {
		return nil, fmt.Errorf("handoff: signing with the SVID: %w", err)
	}
	return proveRequest(c, k.Governor, wire.VerbSessionOpen, &request, &request.Proof)
}

// proveOpener signs a request with the key of the SVID, for an issuer that does not take the governor's word.
func (c *Client) proveOpener(request *wire.OpenRequest, issuer string) (string, error) {
	svid, err := c.cfg.Source.GetX509SVID()
	if err != nil {
		return "", err
	}
	body, err := json.Marshal(request)
	if err != nil {
		return "", err
	}
	hash, err := wire.OpenerRequestHash(body)
	if err != nil {
		return "", err
	}
	now := c.cfg.Now().Unix()
	payload, err := json.Marshal(wire.PrincipalProof{
		ID: rand.Text(), IssuedAt: now, Expires: now + wire.ProofLifetime, Audience: issuer, Subject: string(c.name),
		RequestHash: hash,
	})
	if err != nil {
		return "", err
	}
	return identity.SignX509(svid, wire.TypeOpener, payload)
}

// proveRequest encodes the request twice: without its proof, to sign that, and with it.
func proveRequest[T any](c *Client, governor, verb string, request *T, proof *string) ([]byte, error) {
	body, err := json.Marshal(request)
	if err != nil {
		return nil, fmt.Errorf("handoff: encoding the request: %w", err)
	}
	hash, err := wire.RequestHash(body)
	if err != nil {
		return nil, err
	}
	now := c.cfg.Now().Unix()
	*proof, err = jws.SignJSON(wire.TypeSession, wire.SessionProof{
		ID: rand.Text(), IssuedAt: now, Expires: now + wire.ProofLifetime, Audience: governor, Subject: string(c.name),
		Verb: verb, RequestHash: hash,
	}, c.key)
	if err != nil {
		return nil, err
	}
	return json.Marshal(request)
}

// Close ends the session and revokes everything under it. The reason is for the record and may be "".
func (s *Session) Close(ctx context.Context, reason string) error {
	_, err := s.client.session(ctx, wire.SubjectSessionClose, wire.VerbSessionClose, s.Session(), reason)
	return err
}

// Status says how the session stands.
func (s *Session) Status(ctx context.Context) (*wire.SessionStatus, error) {
	return s.client.SessionStatus(ctx, s.Session())
}

// SessionStatus says how a session stands that this process has opened.
func (c *Client) SessionStatus(ctx context.Context, id string) (*wire.SessionStatus, error) {
	return c.session(ctx, wire.SubjectSessionStatus, wire.VerbSessionStatus, id, "")
}

// CloseSession ends a session that this process has opened; see [Session.Close].
func (c *Client) CloseSession(ctx context.Context, id, reason string) error {
	_, err := c.session(ctx, wire.SubjectSessionClose, wire.VerbSessionClose, id, reason)
	return err
}

func (c *Client) session(ctx context.Context, subject, verb, id, reason string) (*wire.SessionStatus, error) {
	if !profile.IsID(id) {
		return nil, wire.Refuse(wire.CodeID, "a session's ID is a UUIDv7 in lower case with hyphens")
	}
	return call(ctx, c, subject, func() ([]byte, error) {
		k, err := c.trusted(ctx)
		if err != nil {
			return nil, err
		}
		request := &wire.SessionRequest{Session: id, Reason: reason}
		return proveRequest(c, k.Governor, verb, request, &request.Proof)
	}, func(a *wire.SessionStatus) *wire.Error { return a.Error })
}
