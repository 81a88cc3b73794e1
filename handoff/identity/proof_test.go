package identity_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"math/big"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/handoff-governor/handoff-governor/handoff/identity"
)

// signed are SVIDs of one trust domain, each with a key of another kind.
func signed(t testing.TB) (*x509bundle.Bundle, map[string]*x509svid.SVID) {
	t.Helper()
	fatal := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	td := spiffeid.RequireTrustDomainFromString("acme.example")
	root, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	fatal(err)
	template := func(id string, ca bool) *x509.Certificate {
		u, err := url.Parse(id)
		fatal(err)
		usage := x509.KeyUsageDigitalSignature
		if ca {
			usage = x509.KeyUsageCertSign
		}
		return &x509.Certificate{
			SerialNumber: big.NewInt(1), URIs: []*url.URL{u}, IsCA: ca, BasicConstraintsValid: true, KeyUsage: usage,
			NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour),
		}
	}
	parent := template("spiffe://acme.example", true)
	der, err := x509.CreateCertificate(rand.Reader, parent, parent, root.Public(), root)
	fatal(err)
	authority, err := x509.ParseCertificate(der)
	fatal(err)
	bundle := x509bundle.FromX509Authorities(td, []*x509.Certificate{authority})
	p256, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	fatal(err)
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	fatal(err)
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	fatal(err)
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	fatal(err)
	svids := map[string]*x509svid.SVID{}
	for name, key := range map[string]crypto.Signer{"P-256": p256, "P-384": p384, "RSA": rsaKey, "Ed25519": ed} {
		id := spiffeid.RequireFromPath(td, "/agent/planner")
		der, err := x509.CreateCertificate(rand.Reader, template(id.String(), false), authority, key.Public(), root)
		fatal(err)
		leaf, err := x509.ParseCertificate(der)
		fatal(err)
		svids[name] = &x509svid.SVID{ID: id, Certificates: []*x509.Certificate{leaf}, PrivateKey: key}
	}
	return bundle, svids
}

// What an SVID of any kind has signed is believed, and nothing else.
func TestSignX509(t *testing.T) {
	bundle, svids := signed(t)
	for name, svid := range svids {
		token, err := identity.SignX509(svid, "opener+jwt", []byte(`{"a":1}`))
		if err != nil {
			t.Fatal(name, err)
		}
		peer, payload, err := identity.VerifySigned(token, "opener+jwt", bundle, time.Now())
		if err != nil || peer.ID != svid.ID || string(payload) != `{"a":1}` {
			t.Errorf("%s: %v, %s, %v", name, peer, payload, err)
		}
		parts := strings.Split(token, ".")
		other, err := identity.SignX509(svids["P-256"], "opener+jwt", []byte(`{"a":2}`))
		if err != nil {
			t.Fatal(err)
		}
		strangers, foreign := signed(t)
		theirs, err := identity.SignX509(foreign[name], "opener+jwt", []byte(`{"a":1}`))
		if err != nil {
			t.Fatal(err)
		}
		for what, bad := range map[string]string{
			"another payload":     parts[0] + "." + strings.Split(other, ".")[1] + "." + parts[2],
			"no signature":        parts[0] + "." + parts[1] + ".",
			"no header":           "." + parts[1] + "." + parts[2],
			"nothing":             "",
			"alg none":            base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"none","typ":"opener+jwt","x5c":[]}`)) + "." + parts[1] + ".",
			"another trust":       theirs,
			"very long":           token + strings.Repeat("A", 64<<10),
			"a header with a jwk": base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"EdDSA","typ":"opener+jwt","x5c":[],"jwk":{}}`)) + "." + parts[1] + "." + parts[2],
		} {
			if _, _, err := identity.VerifySigned(bad, "opener+jwt", bundle, time.Now()); !errors.Is(err, identity.ErrUnauthenticated) {
				t.Errorf("%s, %s: %v", name, what, err)
			}
		}
		if _, _, err := identity.VerifySigned(token, "another+jwt", bundle, time.Now()); !errors.Is(err, identity.ErrUnauthenticated) {
			t.Errorf("%s: of another type: %v", name, err)
		}
		if _, _, err := identity.VerifySigned(token, "opener+jwt", bundle, time.Now().Add(2*time.Hour)); !errors.Is(err, identity.ErrUnauthenticated) {
			t.Errorf("%s: by an SVID that has expired: %v", name, err)
		}
		if _, _, err := identity.VerifySigned(token, "opener+jwt", strangers, time.Now()); !errors.Is(err, identity.ErrUnauthenticated) {
			t.Errorf("%s: with other roots: %v", name, err)
		}
	}
}

// Whatever a stranger sends is refused, and nothing else happens.
func FuzzVerifySigned(f *testing.F) {
	bundle, svids := signed(f)
	for _, svid := range svids {
		token, err := identity.SignX509(svid, "opener+jwt", []byte(`{}`))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(token)
	}
	f.Fuzz(func(t *testing.T, token string) {
		peer, _, err := identity.VerifySigned(token, "opener+jwt", bundle, time.Now())
		if (err == nil) != (peer.Name != "") || err != nil && !errors.Is(err, identity.ErrUnauthenticated) {
			t.Errorf("%v: %v", peer, err)
		}
	})
}
