package handoff

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/handoff-governor/handoff-governor/handoff/aat"
	"github.com/handoff-governor/handoff-governor/handoff/aat/profile"
	"github.com/handoff-governor/handoff-governor/handoff/guard"
	"github.com/handoff-governor/handoff-governor/handoff/wire"
)

// Grant is authority held by this process for one task, or for a whole session where it is the root.
type Grant struct {
	client *Client
	leaf   *aat.Link
	claim  wire.HandoffClaim // of the leaf
	task   *Task             // nil for a root
}

// grant checks a chain that the governor has given to this process.
func (c *Client) grant(ctx context.Context, chain []string) (*Grant, error) {
	k, err := c.trusted(ctx)
	if err != nil {
		return nil, err
	}
	links, err := k.verifier.Chain(chain)
	if step, ok := errors.AsType[*aat.StepError](err); ok && step.Step == "3b" { // the issuer may have a new key
		if k, err = c.askKeys(ctx); err != nil {
			return nil, err
		}
		links, err = k.verifier.Chain(chain)
	}
	if err != nil {
		return nil, fmt.Errorf("the credential does not verify: %w", err)
	}
	g := &Grant{client: c, leaf: links[len(links)-1]}
	if err := json.Unmarshal(g.leaf.Claims.Extra[profile.ClaimName], &g.claim); err != nil {
		return nil, fmt.Errorf("the credential's claim %q cannot be read: %w", profile.ClaimName, err)
	}
	switch {
	case g.leaf.Claims.Holder != c.jwk:
		return nil, errors.New("the credential is bound to another key")
	case g.claim.To != string(c.name):
		return nil, errors.New("the credential was made for another agent")
	}
	return g, nil
}

// Session is the ID of the session that the grant is in.
func (g *Grant) Session() string { return g.claim.Session }

// Tools are what the grant permits. Do not change them.
func (g *Grant) Tools() aat.Tools { return g.leaf.Claims.Tools }

// Expires is when the grant ends at the latest.
func (g *Grant) Expires() time.Time { return time.Unix(g.leaf.Claims.ExpiresAt, 0) }

// Chain is the credential, root first. It is worth nothing without the process key; still, do not publish it.
func (g *Grant) Chain() []string { return g.leaf.Tokens() }

// Call makes the presentation for one call of a tool at the guard that audience names. Args are the tool's arguments:
// JSON as a []byte or [jsontext.Value], nil for none, or anything that encodes as a JSON object. Each call needs a new
// one; it is good for half a minute. A tool or argument that the grant does not permit is a *[wire.Error] of
// wire.CodeNotGranted, before anything is signed.
func (g *Grant) Call(ctx context.Context, audience, tool string, args any) (*guard.Request, error) {
	if err := ctx.Err(); err != nil {
		return nil, context.Cause(ctx)
	}
	raw, err := encodeArgs(args)
	if err != nil {
		return nil, wire.Refuse(wire.CodeMalformed, "the arguments cannot be encoded: "+err.Error())
	}
	allowed, ok := g.leaf.Claims.Tools[tool]
	if !ok {
		return nil, wire.Refuse(wire.CodeNotGranted, fmt.Sprintf("the grant does not have the tool %q", tool))
	}
	if err := aat.CheckInvocation(allowed, raw); err != nil {
		return nil, wire.Refuse(wire.CodeNotGranted, err.Error())
	}
	pop, err := aat.CreatePoP(g.leaf, tool, raw, audience, "", g.client.cfg.Now(), g.client.key)
	if err != nil {
		return nil, fmt.Errorf("handoff: %w", err)
	}
	return &guard.Request{Tool: tool, Args: raw, Presentation: guard.Presentation{Chain: g.Chain(), PoP: pop}}, nil
}

func encodeArgs(args any) (jsontext.Value, error) {
	switch a := args.(type) {
	case nil:
		return jsontext.Value("{}"), nil
	case []byte:
		return a, nil
	case jsontext.Value:
		return a, nil
	}
	return json.Marshal(args)
}

// CallHTTP calls a tool behind a [guard.Handler] at a URL, and returns the tool's answer, whose body the caller must
// close. The guard's audience is taken to be the origin of the URL, such as "https://tools.example.com". What the guard
// refuses is a *[wire.Error], with the step that failed and, where waiting may help, after how long. The client must be
// one that checks the server; nil is [http.DefaultClient].
func (g *Grant) CallHTTP(ctx context.Context, client *http.Client, target, tool string, args any) (*http.Response, error) {
	u, err := url.Parse(target)
	if err != nil || u.Scheme == "" || u.Host == "" {
		return nil, fmt.Errorf("handoff: the tool's URL %q needs a scheme and a host", target)
	}
	request, err := g.Call(ctx, u.Scheme+"://"+u.Host, tool, args)
	if err != nil {
		return nil, err
	}
	body, err := json.Marshal(request)
	if err != nil {
		return nil, fmt.Errorf("handoff: encoding the call: %w", err)
	}
	post, err := http.NewRequestWithContext(ctx, http.MethodPost, target, bytes.NewReader(body))
	if err != nil {
		return nil, fmt.Errorf("handoff: %w", err)
	}
	post.Header.Set("Content-Type", "application/json")
	if client == nil {
		client = http.DefaultClient
	}
	response, err := client.Do(post)
	if err != nil {
		return nil, fmt.Errorf("handoff: calling %s: %w", tool, err)
	}
	return response, guardRefusal(response)
}

// maxRefusal bounds what is read of a refusal, in bytes.
const maxRefusal = 64 << 10

// guardRefusal turns a guard's refusal into an error. Another answer of that status is the tool's own, and left whole.
func guardRefusal(response *http.Response) error {
	if response.StatusCode != http.StatusForbidden {
		return nil
	}
	start, err := io.ReadAll(io.LimitReader(response.Body, maxRefusal))
	var answer struct {
		Error *wire.Error `json:"error"`
	}
	if err == nil && json.Unmarshal(start, &answer) == nil && answer.Error != nil && answer.Error.Code != "" {
		response.Body.Close()
		return answer.Error
	}
	response.Body = struct {
		io.Reader
		io.Closer
	}{io.MultiReader(bytes.NewReader(start), response.Body), response.Body}
	return nil
}
