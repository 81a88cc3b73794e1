package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/handoff-governor/handoff-governor/cmd/internal/cli"
	"github.com/handoff-governor/handoff-governor/handoff/aat"
)

// Test vectors come in two formats: that of tests/vectors/aat-jws-vectors.json in the draft's repository
// (https://github.com/tenuo-ai/tenuo), as its generator ietf/vectors/gen_vectors.py writes it at the commit that package
// aat names, and that of our own handoff/aat/testdata/vectors.json. The first has "spec", the second "draft".
//
// A file is read from its beginning to its end and never kept: what is in front of the vectors goes for all of them.

const (
	vectorsDraft = "draft-niyikiza-oauth-attenuating-agent-tokens" // of any number
	// maxVector is how many bytes one vector may have, or any other member of the file. The draft's have 30 KB at most; a
	// chain and a proof as large as may be have 1.3 MB, and the format repeats them.
	maxVector = 8 << 20
)

// vectorOutcome is a line of --json.
type vectorOutcome struct {
	ID       string `json:"id"`
	Passed   bool   `json:"passed"`
	Expected string `json:"expected"` // "permit", "deny", or "deny STEP"
	Got      string `json:"got"`      // "permit" or "deny STEP"
	Reason   string `json:"reason,omitempty"`
}

// verifyVectors runs every vector of a file, and says of each whether it passed.
func verifyVectors(ctx context.Context, out *cli.Output, file string) error {
	done := make(chan error, 1)
	go func() { // no read of a terminal or a pipe ends by itself
		in := os.Stdin
		if file != "-" {
			f, err := os.Open(file)
			if err != nil {
				done <- err
				return
			}
			defer f.Close()
			in = f
		}
		done <- runVectors(out, in, file)
	}()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func runVectors(out *cli.Output, in io.Reader, file string) error {
	r := newVectorReader(in)
	passed, failed := 0, 0
	err := r.each(func(v vector) error {
		o := v.run()
		if o.Passed {
			passed++
		} else {
			failed++
		}
		return showOutcome(out, o)
	})
	if broken, ok := errors.AsType[*formatError](err); ok {
		return cli.Usagef("%s is no file of test vectors: %v", file, broken)
	}
	if err != nil {
		return err
	}
	if out.JSON {
		err = out.Value(map[string]any{"draft": r.draft, "passed": passed, "failed": failed})
	} else {
		err = out.Line("%d passed, %d failed, of %s", passed, failed, r.draft)
	}
	if err == nil && failed > 0 {
		return cli.ErrShown
	}
	return err
}

func showOutcome(out *cli.Output, o vectorOutcome) error {
	if out.JSON {
		return out.Value(o)
	}
	if o.Passed {
		return out.Bytes([]byte(out.Tint("passed") + "  " + cli.Clean(o.ID) + "  " + o.Got + "\n"))
	}
	text := fmt.Sprintf("%s  want %s, got %s", o.ID, o.Expected, o.Got)
	if o.Reason != "" {
		text += ": " + o.Reason
	}
	return out.Bytes([]byte(out.Tint("failed") + "  " + cli.Clean(text) + "\n"))
}

// vector is one call of the algorithm, and what must come of it.
type vector struct {
	id         string
	verifier   aat.Verifier
	chain      []string
	tool       string
	args       []byte
	pop        string
	permit     bool
	wantedStep string // "" for any; steps of which either is right have a slash between them
}

func (v *vector) run() vectorOutcome {
	o := vectorOutcome{ID: v.id, Expected: "permit", Got: "permit"}
	if !v.permit {
		o.Expected = strings.TrimSuffix("deny "+v.wantedStep, " ")
	}
	_, err := v.verifier.Verify(v.chain, v.tool, v.args, v.pop)
	if err == nil {
		o.Passed = v.permit
		return o
	}
	o.Got, o.Reason = "deny", err.Error()
	step := ""
	if refusal, ok := errors.AsType[*aat.StepError](err); ok {
		step = refusal.Step
		o.Got, o.Reason = "deny "+step, fmt.Sprintf("link %d: %s", refusal.Link, refusal.Reason)
	}
	o.Passed = !v.permit && (v.wantedStep == "" || slices.Contains(strings.Split(v.wantedStep, "/"), step))
	return o
}

// formatError says why a file is not one of test vectors.
type formatError struct{ text string }

func (e *formatError) Error() string { return e.text }

func badFormat(format string, args ...any) error { return &formatError{fmt.Sprintf(format, args...)} }

// vectorReader reads a file of either format.
type vectorReader struct {
	in    *metered
	dec   *jsontext.Decoder
	draft string // the draft that the file says it follows

	own     bool // the file is of our own format, where each vector says all for itself
	params  *vectorParams
	anchors []aat.Anchor
}

func newVectorReader(in io.Reader) *vectorReader {
	m := &metered{r: in, left: maxVector}
	return &vectorReader{in: m, dec: jsontext.NewDecoder(m)}
}

// each reads the file and hands its vectors on, one by one. What is wrong with the file is a [*formatError].
func (r *vectorReader) each(try func(vector) error) error {
	if r.dec.PeekKind() != '{' {
		return r.unexpected("a JSON object")
	}
	if _, err := r.dec.ReadToken(); err != nil {
		return r.broken("", err)
	}
	count, seen := 0, false
	for r.dec.PeekKind() != '}' {
		r.in.left = maxVector
		name, err := r.dec.ReadToken()
		if err != nil {
			return r.broken("", err)
		}
		switch name := name.String(); name {
		case "spec":
			err = r.value(name, &r.draft)
		case "draft":
			var draft struct {
				Name string `json:"name"`
			}
			err = r.value(name, &draft)
			r.draft, r.own = draft.Name, true
		case "params":
			err = r.value(name, &r.params, json.RejectUnknownMembers(true))
		case "trust_anchors":
			var anchors []vectorAnchor
			if err = r.value(name, &anchors); err == nil {
				r.anchors, err = trusted(name, anchors)
			}
		case "vectors":
			seen = true
			count, err = r.vectors(try)
		default:
			if err = r.dec.SkipValue(); err != nil {
				err = r.broken(name, err)
			}
		}
		if err != nil {
			return err
		}
	}
	if _, err := r.dec.ReadToken(); err != nil {
		return r.broken("", err)
	}
	r.in.left = maxVector
	switch _, err := r.dec.ReadToken(); {
	case err == nil:
		return badFormat("there is something behind its end")
	case !errors.Is(err, io.EOF):
		return r.broken("", err)
	case !seen:
		return badFormat(`it has no member "vectors"`)
	case count == 0:
		return badFormat(`"vectors" is empty`)
	}
	return nil
}

func (r *vectorReader) vectors(try func(vector) error) (count int, err error) {
	if !strings.HasPrefix(r.draft, vectorsDraft) {
		return 0, badFormat(`in front of "vectors" there must be "spec" (or "draft"), and name %s`, vectorsDraft)
	}
	if !r.own && r.anchors == nil {
		return 0, badFormat(`in front of "vectors" there must be "trust_anchors"`)
	}
	if err := r.params.check(); err != nil {
		return 0, err
	}
	if r.dec.PeekKind() != '[' {
		return 0, r.unexpected(`an array as "vectors"`)
	}
	if _, err := r.dec.ReadToken(); err != nil {
		return 0, r.broken("vectors", err)
	}
	for ; r.dec.PeekKind() != ']'; count++ {
		r.in.left = maxVector
		v, err := r.next(fmt.Sprintf("vectors[%d]", count))
		if err != nil {
			return count, err
		}
		if err := try(v); err != nil {
			return count, err
		}
	}
	if _, err := r.dec.ReadToken(); err != nil {
		return count, r.broken("vectors", err)
	}
	return count, nil
}

// next reads one vector, which is called so until it has said its ID.
func (r *vectorReader) next(name string) (v vector, err error) {
	if r.own {
		var own ownVector
		if err := r.value(name, &own, json.RejectUnknownMembers(true)); err != nil {
			return v, err
		}
		v, err = own.vector(called(name, own.ID))
	} else {
		var theirs draftVector
		if err := r.value(name, &theirs); err != nil {
			return v, err
		}
		v, err = theirs.vector(called(name, theirs.ID), r.params)
		v.verifier.Anchors = r.anchors
	}
	if err == nil && v.id == "" {
		err = badFormat("%s has no id", name)
	}
	return v, err
}

func called(name, id string) string {
	if id == "" {
		return name
	}
	return fmt.Sprintf("%s (%s)", name, id)
}

func (r *vectorReader) value(name string, into any, opts ...json.Options) error {
	if err := json.UnmarshalDecode(r.dec, into, opts...); err != nil {
		return r.broken(name, err)
	}
	return nil
}

// unexpected says what was wanted, unless what comes is no JSON at all.
func (r *vectorReader) unexpected(want string) error {
	if err := r.dec.SkipValue(); err != nil {
		return r.broken("", err)
	}
	return badFormat("want %s", want)
}

func (r *vectorReader) broken(name string, err error) error {
	if errors.Is(err, errMuch) {
		err = errMuch
	} else if errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF) {
		err = errors.New("it ends too early")
	} else if r.in.failed != nil {
		return r.in.failed // to read the file failed, which says nothing about what is in it
	} else if e, ok := errors.AsType[*json.SemanticError](err); ok {
		return badFormat("%s: %v", e.JSONPointer, cmp.Or(e.Err, errors.New("it is not of the form that is expected there")))
	}
	if name == "" {
		return badFormat("%v", cli.JSONError(err))
	}
	return badFormat("%s: %v", name, cli.JSONError(err))
}

var errMuch = fmt.Errorf("it has more than %d bytes", maxVector)

// metered is a reader that has only so much left to give.
type metered struct {
	r      io.Reader
	left   int
	failed error // that of r, io.EOF aside
}

func (m *metered) Read(b []byte) (int, error) {
	if m.left <= 0 {
		return 0, errMuch
	}
	n, err := m.r.Read(b[:min(len(b), m.left)])
	m.left -= n
	if err != nil && err != io.EOF {
		m.failed = err
	}
	return n, err
}

type vectorAnchor struct {
	Issuer string  `json:"iss"`
	JWK    aat.JWK `json:"jwk"`
}

func trusted(name string, anchors []vectorAnchor) ([]aat.Anchor, error) {
	out := []aat.Anchor{}
	for _, a := range anchors {
		key, err := a.JWK.Key()
		if err != nil {
			return nil, badFormat("%s: %v", name, err)
		}
		out = append(out, aat.Anchor{Issuer: a.Issuer, Key: key})
	}
	return out, nil
}

// vectorParams are what the draft leaves to an implementation. Times are in seconds.
type vectorParams struct {
	Now         *int64 `json:"now"`
	MaxIATSkew  *int64 `json:"max_iat_skew"`
	MaxLifetime *int64 `json:"max_token_lifetime"`
	MaxDepth    *int64 `json:"max_delegation_depth"`
	PoPWindow   *int64 `json:"pop_window"`
	Audience    string `json:"audience"`
}

func (p *vectorParams) check() error {
	if p == nil {
		return nil
	}
	for name, n := range map[string]*int64{
		"max_iat_skew": p.MaxIATSkew, "max_token_lifetime": p.MaxLifetime, "max_delegation_depth": p.MaxDepth,
		"pop_window": p.PoPWindow,
	} {
		if n != nil && (*n < 1 || *n > math.MaxInt32) {
			return badFormat("params: %s is %d; it must be 1 to %d", name, *n, math.MaxInt32)
		}
	}
	return nil
}

// verifier has what the parameters say, and what the draft recommends where they say nothing.
func (p *vectorParams) verifier() (v aat.Verifier) {
	if p == nil {
		return v
	}
	seconds := func(n *int64) time.Duration {
		if n == nil {
			return 0
		}
		return time.Duration(*n) * time.Second
	}
	v.MaxIATSkew, v.MaxLifetime, v.PoPWindow = seconds(p.MaxIATSkew), seconds(p.MaxLifetime), seconds(p.PoPWindow)
	if p.MaxDepth != nil {
		v.MaxDepth = int(*p.MaxDepth)
	}
	if p.Audience != "" {
		v.Audience = []string{p.Audience}
	}
	return v
}

// draftVector has what matters of a vector of the draft's repository. The rest repeats it, for people.
type draftVector struct {
	ID     string         `json:"id"`
	Now    *int64         `json:"now"`
	Tool   *string        `json:"tool"`
	Args   jsontext.Value `json:"args"` // as written: how a number is written matters
	Policy vectorPolicy   `json:"policy"`
	Chain  []string       `json:"chain_compact"`
	PoP    struct {
		Compact *string `json:"compact"`
	} `json:"pop"`
	// Presentation has the same chain and proof again, in newer files only.
	Presentation *struct {
		Chain []string `json:"aat_chain"`
		PoP   *string  `json:"aat_pop"`
	} `json:"presentation"`
	Expected struct {
		Verdict string  `json:"verdict"`
		Step    *string `json:"step"`
	} `json:"expected"`
}

// vectorPolicy is what an enforcement point asks beyond the algorithm. A member that is not here is refused: what it asks
// would not be asked.
type vectorPolicy struct {
	RequirePoPAudience bool    `json:"require_pop_aud"`
	RequireAudience    bool    `json:"require_chain_aud"`
	Nonce              *string `json:"nonce"` // the only one that was issued
}

func (p *vectorPolicy) UnmarshalJSONFrom(dec *jsontext.Decoder) error {
	type members vectorPolicy
	return json.UnmarshalDecode(dec, (*members)(p), json.RejectUnknownMembers(true))
}

func (d *draftVector) vector(name string, params *vectorParams) (vector, error) {
	now := d.Now
	if now == nil && params != nil {
		now = params.Now
	}
	if d.Presentation != nil {
		d.Chain, d.PoP.Compact = d.Presentation.Chain, d.Presentation.PoP
	}
	v := vector{id: d.ID, verifier: params.verifier(), chain: d.Chain, args: d.Args}
	switch d.Expected.Verdict {
	case "PERMIT":
		v.permit = true
	case "DENY":
	default:
		return v, badFormat(`%s: expected.verdict is %q; it must be "PERMIT" or "DENY"`, name, d.Expected.Verdict)
	}
	if d.Expected.Step != nil {
		v.wantedStep = *d.Expected.Step
	}
	missing := ""
	switch {
	case now == nil:
		missing = "now"
	case d.Tool == nil:
		missing = "tool"
	case d.Args == nil:
		missing = "args"
	case d.Chain == nil:
		missing = "chain_compact"
	case d.PoP.Compact == nil:
		missing = "pop.compact"
	}
	if missing != "" {
		return v, badFormat("%s has no %s", name, missing)
	}
	v.tool, v.pop = *d.Tool, *d.PoP.Compact
	v.verifier.Now = at(*now)
	v.verifier.RequirePoPAudience, v.verifier.RequireAudience = d.Policy.RequirePoPAudience, d.Policy.RequireAudience
	if d.Policy.Nonce != nil {
		v.verifier.Nonce = func(nonce string) bool { return nonce == *d.Policy.Nonce }
	}
	return v, nil
}

func at(second int64) func() time.Time { return func() time.Time { return time.Unix(second, 0) } }

// ownVector is a vector of handoff/aat/testdata/vectors.json.
type ownVector struct {
	ID          string         `json:"id"`
	Description string         `json:"description"`
	Invariant   string         `json:"invariant"`
	Now         int64          `json:"now"`
	Anchors     []vectorAnchor `json:"trust_anchors"`
	Audience    []string       `json:"audience"`
	Options     struct {
		RequireAudience    bool     `json:"require_aud"`
		RequirePoPAudience bool     `json:"require_aat_aud"`
		Nonces             []string `json:"nonces"`
		AcceptedIDs        []string `json:"accepted_jti"`
		MaxTokenSize       int      `json:"max_token_size"`
		MaxChainSize       int      `json:"max_chain_size"`
	} `json:"options"`
	Tool   string   `json:"tool"`
	Args   string   `json:"args"`
	Chain  []string `json:"chain"`
	PoP    string   `json:"pop"`
	Expect string   `json:"expect"`
	Step   string   `json:"step"`
}

func (o *ownVector) vector(name string) (vector, error) {
	anchors, err := trusted(name+": trust_anchors", o.Anchors)
	if err != nil {
		return vector{}, err
	}
	if o.Expect != "permit" && o.Expect != "deny" {
		return vector{}, badFormat(`%s: expect is %q; it must be "permit" or "deny"`, name, o.Expect)
	}
	v := vector{
		id: o.ID, chain: o.Chain, tool: o.Tool, args: []byte(o.Args), pop: o.PoP,
		permit: o.Expect == "permit", wantedStep: o.Step,
		verifier: aat.Verifier{
			Anchors: anchors, Audience: o.Audience, Now: at(o.Now),
			RequireAudience: o.Options.RequireAudience, RequirePoPAudience: o.Options.RequirePoPAudience,
			MaxTokenSize: o.Options.MaxTokenSize, MaxChainSize: o.Options.MaxChainSize,
		},
	}
	if nonces := o.Options.Nonces; nonces != nil {
		v.verifier.Nonce = func(nonce string) bool { return slices.Contains(nonces, nonce) }
	}
	if ids := o.Options.AcceptedIDs; ids != nil {
		v.verifier.Seen = func(jti string, _ time.Time) bool { return slices.Contains(ids, jti) }
	}
	return v, nil
}
