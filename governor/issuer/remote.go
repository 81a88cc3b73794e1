package issuer

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/handoff-governor/handoff-governor/governor"
	"github.com/handoff-governor/handoff-governor/handoff/aat"
	"github.com/handoff-governor/handoff-governor/handoff/wire"
)

// This file is an issuer in a process of its own, and the governor's side of it: HTTP with JSON, over mTLS with SVIDs. The governor
// alone can have roots signed; the keys are for everybody whom the trust bundles vouch for.

// Paths of an issuer's server.
const (
	pathRoots = "/v1/roots" // POST a rootRequest, answered with a rootResponse
	pathKeys  = "/v1/jwks"  // GET the keys that sign roots, as a JWK set
)

type rootRequest struct {
	Opener  string             `json:"opener"`
	Request []byte             `json:"request"` // the opener's own bytes, base64
	Terms   governor.RootTerms `json:"terms"`
}

type rootResponse struct {
	Root  string      `json:"root,omitempty"`
	Error *wire.Error `json:"error,omitempty"`
	Keys  wire.JWKS   `json:"keys"`
}

// Bounds of what is read: a request has at most wire.MaxRequest, in base64, and the terms no more tools than it asks for.
const (
	maxRoot    = 4 * wire.MaxRequest
	maxAnswer  = 4 * wire.MaxToken
	askWithin  = 5 * time.Second
	keysWithin = time.Minute // how old what is known of the keys may get
)

// Handler serves an issuer. The server's TLS configuration must have checked the SVID of whoever asks.
func Handler(i *Issuer, log *slog.Logger) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST "+pathRoots, func(w http.ResponseWriter, r *http.Request) {
		if peer := peerOf(r); peer != i.cfg.Governor {
			log.WarnContext(r.Context(), "refused: not the governor", "spiffe_id", peer, "remote", r.RemoteAddr)
			http.Error(w, "only the governor has roots signed", http.StatusForbidden)
			return
		}
		var asked rootRequest
		answer := rootResponse{Keys: wire.NewJWKS(i.Keys())}
		err := json.UnmarshalRead(http.MaxBytesReader(w, r.Body, maxRoot), &asked, json.RejectUnknownMembers(true))
		if err != nil {
			answer.Error = wire.Refuse(wire.CodeMalformed, "the governor's request cannot be read: is it of another version?")
		} else if answer.Root, err = i.Issue(r.Context(), asked.Opener, asked.Request, asked.Terms); err != nil {
			answer.Error = refusalOf(err)
		}
		if answer.Error != nil {
			log.WarnContext(r.Context(), "root refused", "opener", asked.Opener, "code", answer.Error.Code, "reason", answer.Error.Message)
		} else {
			log.InfoContext(r.Context(), "root signed", "opener", asked.Opener, "expires", time.Unix(asked.Terms.Expires, 0).UTC())
		}
		respond(w, answer)
	})
	mux.HandleFunc("GET "+pathKeys, func(w http.ResponseWriter, _ *http.Request) { respond(w, wire.NewJWKS(i.Keys())) })
	return mux
}

// peerOf is the SPIFFE ID of whoever asks, "" for nobody.
func peerOf(r *http.Request) string {
	if r.TLS == nil || len(r.TLS.PeerCertificates) == 0 {
		return ""
	}
	id, err := x509svid.IDFromCert(r.TLS.PeerCertificates[0])
	if err != nil {
		return ""
	}
	return id.String()
}

func respond(w http.ResponseWriter, answer any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.MarshalWrite(w, answer) // whoever has gone asks again
}

// refusalOf is what to tell of an error.
func refusalOf(err error) *wire.Error {
	if refusal, ok := errors.AsType[*wire.Error](err); ok {
		return refusal
	}
	if step, ok := errors.AsType[*aat.StepError](err); ok && step.Step == "2a" {
		return wire.Refuse(wire.CodeTooLarge, "the root would be larger than 60 KiB; ask for fewer tools or constraints")
	}
	return wire.Refuse(wire.CodeUnavailable, "the issuer failed; its log says how")
}

// Remote is an issuer in another process. It is safe for use by several goroutines at once.
type Remote struct {
	uri, url string
	client   *http.Client

	mu    sync.Mutex
	keys  []aat.JWK
	asked time.Time
}

// NewRemote asks the issuer at url, as in https://issuer:8443, for what it is named uri. The keys are those that were known last,
// for as long as it does not answer. The client authenticates the server, and itself.
func NewRemote(uri, url string, client *http.Client, known []aat.JWK) *Remote {
	return &Remote{uri: uri, url: strings.TrimSuffix(url, "/"), client: client, keys: known}
}

// URI is the issuer's name.
func (r *Remote) URI() string { return r.uri }

// Keys are the trust anchors, as the issuer said last.
func (r *Remote) Keys() []aat.JWK {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.keys)
}

func (r *Remote) learn(set wire.JWKS) error {
	keys := set.JWKs()
	if len(keys) == 0 {
		return errors.New("the issuer has no key")
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.keys, r.asked = keys, time.Now()
	return nil
}

// Refresh asks for the keys, unless it was answered a moment ago.
func (r *Remote) Refresh(ctx context.Context) error {
	r.mu.Lock()
	fresh := time.Since(r.asked) < keysWithin
	r.mu.Unlock()
	if fresh {
		return nil
	}
	var set wire.JWKS
	if err := r.ask(ctx, http.MethodGet, pathKeys, nil, &set); err != nil {
		return err
	}
	return r.learn(set)
}

// Issue has the issuer judge a request, and sign the root.
func (r *Remote) Issue(ctx context.Context, opener string, request []byte, terms governor.RootTerms) (string, error) {
	body, err := json.Marshal(rootRequest{Opener: opener, Request: request, Terms: terms})
	if err != nil {
		return "", err
	}
	var answer rootResponse
	if err := r.ask(ctx, http.MethodPost, pathRoots, body, &answer); err != nil {
		return "", wire.Refuse(wire.CodeUnavailable, "the issuer cannot be reached, and nobody else signs roots; ask again later")
	}
	if answer.Error != nil {
		return "", answer.Error
	}
	return answer.Root, r.learn(answer.Keys) // it may have signed with a new one
}

func (r *Remote) ask(ctx context.Context, method, path string, body []byte, answer any) error {
	ctx, cancel := context.WithTimeout(ctx, askWithin)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, method, r.url+path, bytes.NewReader(body))
	if err != nil {
		return err
	}
	request.Header.Set("Content-Type", "application/json")
	response, err := r.client.Do(request)
	if err != nil {
		return fmt.Errorf("asking the issuer: %w", err)
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("asking the issuer: %s", response.Status)
	}
	raw, err := io.ReadAll(io.LimitReader(response.Body, maxAnswer))
	if err != nil {
		return fmt.Errorf("asking the issuer: %w", err)
	}
	if err := json.Unmarshal(raw, answer); err != nil {
		return fmt.Errorf("the issuer's answer: %w", err)
	}
	return nil
}
