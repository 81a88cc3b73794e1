package guard

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/handoff-governor/handoff-governor/handoff/identity"
	"github.com/handoff-governor/handoff-governor/handoff/wire"
)

// Request is the body of a call over HTTP.
type Request struct {
	Tool string         `json:"tool"`
	Args jsontext.Value `json:"args"` // an object
	Presentation
}

// Options of a [Handler].
type Options struct {
	// MaxBody is the size in bytes that a request's body may have. Zero: 2 MiB.
	MaxBody int64
	// RequireCaller refuses requests whose connection does not say who calls.
	RequireCaller bool
	// Caller returns the name of the agent that the transport has authenticated, "" where it has not. Nil: the SPIFFE ID
	// in the TLS client certificate, which the server's TLS configuration must have verified ([identity.ServerTLS]).
	Caller func(*http.Request) (string, error)
}

// Handler lets next serve the calls that g permits. They reach it with the [Call] in their context ([FromContext]) and
// without their body: what is in the Call is what was checked.
func Handler(g *Guard, next http.Handler, o Options) http.Handler {
	if o.MaxBody <= 0 {
		o.MaxBody = 2 << 20
	}
	if o.Caller == nil {
		o.Caller = peer
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodPost {
			w.Header().Set("Allow", http.MethodPost)
			refuse(w, http.StatusMethodNotAllowed, wire.Refuse(wire.CodeMalformed, "send the call as a POST"))
			return
		}
		req, status, refusal := read(w, r, o.MaxBody)
		if refusal != nil {
			refuse(w, status, refusal)
			return
		}
		caller, err := o.Caller(r)
		if err != nil || caller == "" && o.RequireCaller {
			refuse(w, http.StatusForbidden, wire.Refuse(wire.CodeCaller, "connect with the X.509-SVID of an agent"))
			return
		}
		call, err := g.Check(r.Context(), req.Presentation, req.Tool, req.Args, caller)
		if err != nil {
			refusal, _ := errors.AsType[*wire.Error](err)
			refuse(w, http.StatusForbidden, refusal)
			return
		}
		r = r.WithContext(context.WithValue(r.Context(), callKey{}, call))
		r.Body, r.ContentLength = http.NoBody, 0
		next.ServeHTTP(w, r)
	})
}

type callKey struct{}

// FromContext returns the call that a [Handler] has permitted.
func FromContext(ctx context.Context) (*Call, bool) {
	call, ok := ctx.Value(callKey{}).(*Call)
	return call, ok
}

func peer(r *http.Request) (string, error) {
	if r.TLS == nil || len(r.TLS.PeerCertificates) == 0 {
		return "", nil
	}
	id, err := x509svid.IDFromCert(r.TLS.PeerCertificates[0])
	if err != nil {
		return "", err
	}
	name, err := identity.NameOf(id)
	return string(name), err
}

func read(w http.ResponseWriter, r *http.Request, max int64) (*Request, int, *wire.Error) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, max))
	if err != nil {
		if _, ok := errors.AsType[*http.MaxBytesError](err); ok {
			return nil, http.StatusRequestEntityTooLarge,
				wire.Refuse(wire.CodeTooLarge, fmt.Sprintf("the body is larger than %d bytes", max))
		}
		return nil, http.StatusBadRequest, wire.Refuse(wire.CodeMalformed, "the body could not be read")
	}
	req, err := ParseRequest(body)
	if err != nil {
		refusal, _ := errors.AsType[*wire.Error](err)
		return nil, http.StatusBadRequest, refusal
	}
	return req, 0, nil
}

// ParseRequest reads the body of a call strictly: one JSON object, members that appear twice and invalid UTF-8
// refused. The error is a *[wire.Error] of wire.CodeMalformed.
func ParseRequest(body []byte) (*Request, error) {
	req := &Request{}
	if err := json.Unmarshal(body, req); err != nil {
		return nil, wire.Refuse(wire.CodeMalformed, "the body is not a call: "+err.Error())
	}
	switch {
	case req.Tool == "":
		return nil, wire.Refuse(wire.CodeMalformed, `"tool" is missing`)
	case req.Args.Kind() != '{':
		return nil, wire.Refuse(wire.CodeMalformed, `"args" must be an object, {} where there are none`)
	case len(req.Chain) == 0 || req.PoP == "":
		return nil, wire.Refuse(wire.CodeMalformed, `"aat_chain" or "aat_pop" is missing`)
	}
	return req, nil
}

func refuse(w http.ResponseWriter, status int, refusal *wire.Error) {
	body, err := json.Marshal(map[string]*wire.Error{"error": refusal}, jsontext.AllowInvalidUTF8(true))
	if err != nil {
		status, body = http.StatusInternalServerError, nil
	}
	h := w.Header()
	h.Set("Content-Type", "application/json")
	h.Set("Cache-Control", "no-store")
	if refusal.RetryAfter > 0 {
		h.Set("Retry-After", strconv.Itoa(refusal.RetryAfter))
	}
	w.WriteHeader(status)
	w.Write(body)
}
