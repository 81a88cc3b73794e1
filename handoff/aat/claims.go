package aat

import (
	"bytes"
	"crypto/ed25519"
	"errors"
	"fmt"
	"math"
	"strconv"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/handoff-governor/handoff-governor/handoff/aat/jcs"
)

// Claims are what a link says (draft section 3.2).
type Claims struct {
	ID        string // jti; not empty
	Issuer    string // iss: the root issuer's URI, or the thumbprint URI of the key that signed a derived token
	IssuedAt  int64  // iat, Unix seconds
	ExpiresAt int64  // exp, Unix seconds; the link is valid before, not at, this second
	Holder    JWK    // cnf.jwk: who may derive from the link, or present it as a leaf
	// Audience is aud: nil where the link has none. One value is written as a string, any other number as an array.
	// An aud that is neither a string nor an array of strings is read as empty and not nil: it names nobody.
	Audience []string
	Depth    int // del_depth: 0 for a root
	// MaxDepth is del_max_depth: the depth that no link of this chain may exceed, not a remaining count.
	MaxDepth   int
	ParentHash string // par_hash: "" for a root
	// Tools is the authorization_details entry of type attenuating_agent_token. Nil means that there is no such entry:
	// the link permits nothing, and cannot be presented as a leaf.
	Tools Tools
	// Extra has all other top-level claims, as written. AAT ignores them and does not attenuate them.
	Extra map[string]jsontext.Value // :: claim → its JSON
}

// detailsType marks our entry among those of authorization_details.
const detailsType = "attenuating_agent_token"

// payload writes the claims as canonical JSON (RFC 8785), as draft section 3.5 advises.
func (c *Claims) payload() ([]byte, error) {
	claims := map[string]jsontext.Value{}
	for name, v := range c.Extra {
		if isOurs(name) {
			return nil, fmt.Errorf("claim %q belongs to AAT and cannot be an extra one", name)
		}
		if !v.IsValid() {
			return nil, fmt.Errorf("claim %q is not JSON", name)
		}
		claims[name] = v
	}
	var errs []error
	quote := func(s string) jsontext.Value {
		b, err := jsontext.AppendQuote(nil, s)
		errs = append(errs, err)
		return b
	}
	integer := func(n int64) jsontext.Value { return strconv.AppendInt(nil, n, 10) }
	claims["jti"], claims["iss"] = quote(c.ID), quote(c.Issuer)
	claims["iat"], claims["exp"] = integer(c.IssuedAt), integer(c.ExpiresAt)
	claims["del_depth"], claims["del_max_depth"] = integer(int64(c.Depth)), integer(int64(c.MaxDepth))
	claims["cnf"] = fmt.Appendf(nil, `{"jwk":{"crv":%s,"kty":%s,"x":%s}}`,
		quote(c.Holder.Crv), quote(c.Holder.Kty), quote(c.Holder.X))
	if c.ParentHash != "" {
		claims["par_hash"] = quote(c.ParentHash)
	}
	switch {
	case len(c.Audience) == 1:
		claims["aud"] = quote(c.Audience[0])
	case c.Audience != nil:
		aud, err := json.Marshal(c.Audience)
		errs = append(errs, err)
		claims["aud"] = aud
	}
	claims["authorization_details"] = jsontext.Value("[]")
	if c.Tools != nil {
		tools, err := c.Tools.MarshalJSON()
		errs = append(errs, err)
		claims["authorization_details"] = fmt.Appendf(nil, `[{"tools":%s,"type":"%s"}]`, tools, detailsType)
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	payload, err := appendMap(nil, claims, func(b []byte, _ string, v jsontext.Value) ([]byte, error) {
		return append(b, v...), nil
	})
	if err != nil {
		return nil, err
	}
	return jcs.Canonical(payload)
}

// members are the claims of AAT as they were written, each nil where it is absent.
type members struct {
	jti, iss, iat, exp, cnf, aud, depth, maxDepth, parHash, details jsontext.Value
	extra                                                           map[string]jsontext.Value
}

// slot returns where the claim is kept, nil for a claim that is not AAT's.
func (m *members) slot(claim string) *jsontext.Value {
	switch claim {
	case "jti":
		return &m.jti
	case "iss":
		return &m.iss
	case "iat":
		return &m.iat
	case "exp":
		return &m.exp
	case "cnf":
		return &m.cnf
	case "aud":
		return &m.aud
	case "del_depth":
		return &m.depth
	case "del_max_depth":
		return &m.maxDepth
	case "par_hash":
		return &m.parHash
	case "authorization_details":
		return &m.details
	}
	return nil
}

func isOurs(claim string) bool { return new(members).slot(claim) != nil }

func readMembers(payload []byte) (*members, error) {
	m := &members{}
	err := rawMembers(payload, func(name string, value jsontext.Value) {
		if slot := m.slot(name); slot != nil {
			*slot = value
			return
		}
		if m.extra == nil {
			m.extra = map[string]jsontext.Value{}
		}
		m.extra[name] = value
	})
	return m, err
}

func (m *members) readHolder() (holder JWK, key ed25519.PublicKey, err error) {
	if m.cnf == nil {
		return holder, nil, errMissing
	}
	var jwk jsontext.Value
	if err := rawMembers(m.cnf, func(name string, value jsontext.Value) {
		if name == "jwk" {
			jwk = value
		}
	}); err != nil {
		return holder, nil, err
	}
	if jwk == nil {
		return holder, nil, errors.New("it has no jwk")
	}
	if err := holder.UnmarshalJSON(jwk); err != nil {
		return holder, nil, err
	}
	key, err = holder.Key()
	return holder, key, err
}

// readAudience cannot fail: an aud that is no audience names nobody, which is for step 6c to refuse.
func (m *members) readAudience() []string {
	if m.aud == nil {
		return nil
	}
	if one, err := stringOf(m.aud); err == nil {
		return []string{one}
	}
	audience := []string{}
	err := decodeWhole(m.aud, func(dec *jsontext.Decoder) error {
		return readArray(dec, func() error {
			one, err := readString(dec)
			audience = append(audience, one)
			return err
		})
	})
	if err != nil {
		return []string{}
	}
	return audience
}

var (
	errDetails = errors.New("want an array")
	errEntry   = errors.New("want an entry whose tools is an object of objects")
	errTwice   = errors.New("more than one entry of type " + detailsType)
)

// readTools finds the one entry of our type and reads its tools, nil where there is none. An error that is none of the
// three above is about a constraint.
func (m *members) readTools() (Tools, error) {
	if m.details.Kind() != '[' {
		return nil, errDetails
	}
	ours := 0
	var raw jsontext.Value // tools of the last entry of our type
	err := decodeWhole(m.details, func(dec *jsontext.Decoder) error {
		return readArray(dec, func() error {
			if dec.PeekKind() != '{' {
				return dec.SkipValue()
			}
			var typ, tools jsontext.Value
			err := readObject(dec, func(name string) error {
				v, err := rawValue(dec, m.details)
				switch name {
				case "type":
					typ = v
				case "tools":
					tools = v
				}
				return err
			})
			if s, _ := stringOf(typ); s == detailsType {
				ours++
				raw = tools
			}
			return err
		})
	})
	switch {
	case err != nil:
		return nil, err
	case ours > 1:
		return nil, errTwice
	case ours == 0:
		return nil, nil
	case raw == nil:
		return nil, errEntry
	}
	var tools Tools
	err = decodeWhole(raw, func(dec *jsontext.Decoder) (err error) {
		tools, err = readTools(dec)
		return err
	})
	// The draft looks at the whole shape before it looks at any constraint.
	if err != nil && !isObjectOfObjects(raw) {
		return nil, errEntry
	}
	return tools, err
}

func isObjectOfObjects(v jsontext.Value) bool {
	ok := v.Kind() == '{'
	return ok && rawMembers(v, func(_ string, value jsontext.Value) { ok = ok && value.Kind() == '{' }) == nil && ok
}

var errMissing = errors.New("it is missing")

func stringOf(v jsontext.Value) (string, error) {
	if v == nil {
		return "", errMissing
	}
	if v.Kind() != '"' {
		return "", errors.New("it is not a string")
	}
	if bytes.IndexByte(v, '\\') < 0 { // nothing is escaped, and the syntax was checked when v was read
		return string(v[1 : len(v)-1]), nil
	}
	b, err := jsontext.AppendUnquote(nil, v)
	return string(b), err
}

// nonEmpty is [stringOf] for what may not be empty either.
func nonEmpty(v jsontext.Value) (string, error) {
	s, err := stringOf(v)
	if err == nil && s == "" {
		err = errors.New("it is empty")
	}
	return s, err
}

// integer reads a JSON number without fraction or exponent, as the draft wants NumericDates and depths (section 3.2). One
// that does not fit becomes the largest or the smallest that does: which limit it exceeds is for later steps to say.
func integer(v jsontext.Value) (int64, error) {
	if v == nil {
		return 0, errMissing
	}
	n, err := strconv.ParseInt(string(v), 10, 64)
	if err != nil && !errors.Is(err, strconv.ErrRange) {
		return 0, errors.New("it is not an integer")
	}
	return n, nil
}

// count reads a non-negative integer. What does not fit in 31 bits exceeds every limit there is, and stays that large.
func count(v jsontext.Value) (int, error) {
	n, err := integer(v)
	if err == nil && n < 0 {
		err = errors.New("it is negative")
	}
	return int(min(n, math.MaxInt32)), err
}
