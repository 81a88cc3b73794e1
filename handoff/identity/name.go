package identity

import (
	"errors"
	"fmt"
	"strings"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// MaxName is the length in bytes that a [Name] may have. IDs that encode above it are refused rather than hashed, so
// that every name can be read back.
const MaxName = 180

// maxTyped bounds what [Expand] looks at: a SPIFFE ID has at most 2048 bytes (SPIFFE-ID, section 2.3).
const maxTyped = 2048

const (
	scheme      = "spiffe://"
	agentFolder = "/agent/"
)

// ErrName is wrapped by the refusal of every string or ID that is no agent name.
var ErrName = errors.New("invalid agent name")

// Name is a SPIFFE ID in a form that is one NATS token: `spiffe://` dropped, `.` written `=d` and `/` written `=s`.
// `=` is outside the character set of SPIFFE IDs, so no two IDs share a name.
//
//	spiffe://acme.example/agent/planner  ↔  acme=dexample=sagent=splanner
//
// It consists of [A-Za-z0-9_=-], has at most [MaxName] bytes, and its ID has a path. A Name that did not come from
// [NameOf], [ParseName] or [Expand] may be anything: parse it first.
type Name string

// NameOf returns the name of id. It refuses the zero ID, IDs without a path (those of a trust domain itself), the
// trust domains `.` and `..`, and IDs whose name would exceed [MaxName].
func NameOf(id spiffeid.ID) (Name, error) {
	rest, ok := strings.CutPrefix(id.String(), scheme)
	if !ok {
		return "", fmt.Errorf("%w: there is no SPIFFE ID", ErrName)
	}
	if err := checkID(id); err != nil {
		return "", err
	}
	var b strings.Builder
	b.Grow(len(rest) + 16)
	for i := range len(rest) {
		switch c := rest[i]; {
		case c == '.':
			b.WriteString("=d")
		case c == '/':
			b.WriteString("=s")
		case plain(c):
			b.WriteByte(c)
		default:
			// go-spiffe refuses these, except when built with the tag spiffeid_charset_backcompat.
			return "", fmt.Errorf("%w: %q has the character %q; use letters, digits, '.', '-' and '_'", ErrName, id, c)
		}
		if b.Len() > MaxName {
			return "", fmt.Errorf("%w: the SPIFFE ID is too long; its encoded form may have %d bytes", ErrName, MaxName)
		}
	}
	return Name(b.String()), nil
}

// ParseName returns s as a Name. It accepts exactly the strings that [NameOf] can return.
func ParseName(s string) (Name, error) {
	if _, err := decode(s); err != nil {
		return "", err
	}
	return Name(s), nil
}

// ID returns the SPIFFE ID that n stands for, or the error of [ParseName].
func (n Name) ID() (spiffeid.ID, error) { return decode(string(n)) }

// TrustDomain returns the trust domain of n; it is zero where n is not a valid name.
func (n Name) TrustDomain() spiffeid.TrustDomain {
	id, err := n.ID()
	if err != nil {
		return spiffeid.TrustDomain{}
	}
	return id.TrustDomain()
}

// Short returns n for people: the last segment where n is directly below /agent/ of the home trust domain, else the
// whole SPIFFE ID. Nothing foreign prints short, and [Expand] with the same home leads back to n.
func (n Name) Short(home spiffeid.TrustDomain) string {
	id, err := n.ID()
	if err != nil {
		return fmt.Sprintf("invalid name %q", string(n))
	}
	if short, ok := strings.CutPrefix(id.Path(), agentFolder); ok && id.MemberOf(home) && !strings.Contains(short, "/") {
		return short
	}
	return id.String()
}

// Expand reads what a person typed: a SPIFFE ID in full, a name as [NameOf] writes it, or a single path segment
// (`planner`), which means that agent of the home trust domain. Only programs that people type at should call it;
// the wire, tokens and policy carry full names.
func Expand(typed string, home spiffeid.TrustDomain) (Name, error) {
	switch {
	case len(typed) > maxTyped:
		return "", fmt.Errorf("%w: it has %d bytes", ErrName, len(typed))
	case strings.HasPrefix(typed, scheme):
		id, err := spiffeid.FromString(typed)
		if err != nil {
			return "", fmt.Errorf("%w: %q: %w", ErrName, typed, err)
		}
		return NameOf(id)
	case strings.Contains(typed, "="):
		return ParseName(typed)
	}
	if err := spiffeid.ValidatePathSegment(typed); err != nil {
		return "", fmt.Errorf("%w: %q: type a short name (planner) or a SPIFFE ID (spiffe://…/agent/planner): %w",
			ErrName, typed, err)
	}
	id, err := spiffeid.FromPath(home, agentFolder+typed)
	if err != nil {
		return "", fmt.Errorf("%w: %q is short, and the home trust domain is not known: type the SPIFFE ID in full",
			ErrName, typed)
	}
	return NameOf(id)
}

// decode is the inverse of NameOf. Whatever it accepts is canonical: each byte of s stands for itself or belongs to
// one of two escapes, and `.` and `/` never stand for themselves.
func decode(s string) (spiffeid.ID, error) {
	if s == "" || len(s) > MaxName {
		return spiffeid.ID{}, fmt.Errorf("%w: a name has 1 to %d bytes, not %d", ErrName, MaxName, len(s))
	}
	var b strings.Builder
	b.Grow(len(scheme) + len(s))
	b.WriteString(scheme)
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case plain(c):
			b.WriteByte(c)
		case c == '=' && strings.HasPrefix(s[i:], "=d"):
			b.WriteByte('.')
			i++
		case c == '=' && strings.HasPrefix(s[i:], "=s"):
			b.WriteByte('/')
			i++
		default:
			return spiffeid.ID{}, fmt.Errorf("%w: %q at byte %d; '.' is written =d and '/' is written =s", ErrName, s, i)
		}
	}
	id, err := spiffeid.FromString(b.String())
	if err != nil {
		return spiffeid.ID{}, fmt.Errorf("%w: %q: %w", ErrName, s, err)
	}
	return id, checkID(id)
}

// checkID refuses what go-spiffe accepts as an ID and no workload may have.
func checkID(id spiffeid.ID) error {
	if id.Path() == "" {
		return fmt.Errorf("%w: %q names a trust domain; a workload's ID has a path", ErrName, id)
	}
	if td := id.TrustDomain().Name(); td == "." || td == ".." {
		return fmt.Errorf("%w: %q is no trust domain", ErrName, td)
	}
	return nil
}

// plain reports whether c stands for itself in a name.
func plain(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '-' || c == '_'
}
