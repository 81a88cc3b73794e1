package identity

import (
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/jwtbundle"
	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
)

const (
	// MaxJWT is the size in bytes that a JWT-SVID may have; SPIRE's have about 600.
	MaxJWT = 8 << 10
	// maxCertificates bounds a peer's chain, leaf included; nested SPIRE servers add one each.
	maxCertificates = 8
	// skew is how far in the future a token's nbf and iat may lie. Expiry has no such leeway.
	skew = time.Minute
)

// ErrUnauthenticated is wrapped by the refusal of every SVID. [ErrExpired] and [ErrNotYetValid] are cases of it.
var (
	ErrUnauthenticated = errors.New("not authenticated")
	ErrExpired         = fmt.Errorf("%w: expired", ErrUnauthenticated)
	ErrNotYetValid     = fmt.Errorf("%w: not yet valid", ErrUnauthenticated)
)

// Peer is a workload whose SVID was checked.
type Peer struct {
	Name Name
	ID   spiffeid.ID
	// Expires is when what was checked stops being valid. A connection must not outlive it: Go checks certificates
	// at the handshake only.
	Expires time.Time
}

// VerifyX509 checks the X.509-SVID certs, leaf first, against the bundle of its own trust domain at the time now
// (X509-SVID, section 5): a chain to that bundle, exactly one URI SAN, not a CA, allowed to sign, and within its
// validity, where the last moment counts as expired. At most 8 certificates are looked at.
func VerifyX509(certs []*x509.Certificate, bundles x509bundle.Source, now time.Time) (Peer, error) {
	switch {
	case len(certs) == 0 || certs[0] == nil:
		return Peer{}, fmt.Errorf("%w: no certificate: connect with an X.509-SVID", ErrUnauthenticated)
	case len(certs) > maxCertificates:
		return Peer{}, fmt.Errorf("%w: a chain of %d certificates, above %d", ErrUnauthenticated, len(certs), maxCertificates)
	case bundles == nil || now.IsZero():
		return Peer{}, fmt.Errorf("%w: no trust bundles or no clock", ErrUnauthenticated)
	}
	leaf := certs[0]
	if err := checkValidity(leaf.NotBefore, leaf.NotAfter, now); err != nil {
		return Peer{}, err
	}
	if leaf.KeyUsage&x509.KeyUsageDigitalSignature == 0 {
		return Peer{}, fmt.Errorf("%w: the certificate may not sign (X509-SVID, section 4.3)", ErrUnauthenticated)
	}
	id, chains, err := x509svid.Verify(certs, bundles, x509svid.WithTime(now))
	if err != nil {
		return Peer{}, fmt.Errorf("%w: %w", ErrUnauthenticated, err)
	}
	name, err := NameOf(id)
	if err != nil {
		return Peer{}, fmt.Errorf("%w: %w", ErrUnauthenticated, err)
	}
	return Peer{Name: name, ID: id, Expires: chainsExpire(chains)}, nil
}

// chainsExpire returns when the last of the chains breaks; each breaks with the first of its certificates.
func chainsExpire(chains [][]*x509.Certificate) time.Time {
	var last time.Time
	for _, chain := range chains {
		first := chain[0].NotAfter
		for _, c := range chain[1:] {
			if c.NotAfter.Before(first) {
				first = c.NotAfter
			}
		}
		if first.After(last) {
			last = first
		}
	}
	return last
}

// VerifyJWT checks a JWT-SVID that was made for audience against the JWT bundle of its own trust domain at the time
// now (JWT-SVID, sections 4 and 6). Unlike go-spiffe it gives no leeway on `exp`, refuses tokens above [MaxJWT], and
// takes base64url only as RFC 7515 writes it. go-spiffe checks the times, too, by the clock of the machine; its
// refusals are [ErrUnauthenticated] and no more.
//
// A JWT-SVID is a bearer token: whoever reads it can use it until it expires. Prefer [VerifyX509].
func VerifyJWT(token, audience string, bundles jwtbundle.Source, now time.Time) (Peer, error) {
	switch {
	case len(token) > MaxJWT:
		return Peer{}, fmt.Errorf("%w: a token of %d bytes, above %d", ErrUnauthenticated, len(token), MaxJWT)
	case audience == "":
		return Peer{}, fmt.Errorf("%w: no audience to check for", ErrUnauthenticated)
	case bundles == nil || now.IsZero():
		return Peer{}, fmt.Errorf("%w: no trust bundles or no clock", ErrUnauthenticated)
	case !compactJWS(token):
		return Peer{}, fmt.Errorf("%w: not a compact JWS (RFC 7515, section 7.1)", ErrUnauthenticated)
	}
	svid, err := jwtsvid.ParseAndValidate(token, bundles, []string{audience})
	if err != nil {
		return Peer{}, fmt.Errorf("%w: %w", ErrUnauthenticated, err)
	}
	for _, claim := range []string{"nbf", "iat"} {
		if from, ok := svid.Claims[claim].(float64); ok && from > float64(now.Add(skew).Unix()) {
			return Peer{}, fmt.Errorf("%w: the token's %s lies in the future", ErrNotYetValid, claim)
		}
	}
	if err := checkValidity(time.Time{}, svid.Expiry, now); err != nil {
		return Peer{}, err
	}
	name, err := NameOf(svid.ID)
	if err != nil {
		return Peer{}, fmt.Errorf("%w: %w", ErrUnauthenticated, err)
	}
	return Peer{Name: name, ID: svid.ID, Expires: svid.Expiry}, nil
}

// compactJWS reports whether token is three non-empty parts of canonical base64url without padding.
func compactJWS(token string) bool {
	strict := base64.RawURLEncoding.Strict()
	parts := 0
	for part := range strings.SplitSeq(token, ".") {
		// The decoder skips line breaks, which RFC 7515 does not allow.
		if parts++; parts > 3 || part == "" || strings.ContainsAny(part, "\r\n") {
			return false
		}
		if _, err := strict.DecodeString(part); err != nil {
			return false
		}
	}
	return parts == 3
}

func checkValidity(notBefore, notAfter, now time.Time) error {
	if now.Before(notBefore) {
		return fmt.Errorf("%w until %s: check both clocks", ErrNotYetValid, notBefore.UTC().Format(time.RFC3339))
	}
	if !now.Before(notAfter) {
		return fmt.Errorf("%w at %s: is the Workload API running, and the workload still registered?",
			ErrExpired, notAfter.UTC().Format(time.RFC3339))
	}
	return nil
}
