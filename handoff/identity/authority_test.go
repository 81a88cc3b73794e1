package identity_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"net/url"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	"github.com/spiffe/go-spiffe/v2/bundle/jwtbundle"
	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
)

// authority is a trust domain's root that signs whatever it is told to, good or bad.
type authority struct {
	t    testing.TB
	td   spiffeid.TrustDomain
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t testing.TB, trustDomain string) *authority {
	t.Helper()
	a := &authority{t: t, td: spiffeid.RequireTrustDomainFromString(trustDomain), key: newKey(t)}
	a.cert = a.certificate(a.key, caTemplate(time.Now().Add(24*time.Hour)))
	return a
}

func caTemplate(notAfter time.Time) func(*x509.Certificate) {
	return func(c *x509.Certificate) {
		c.IsCA = true
		c.KeyUsage = x509.KeyUsageCertSign
		c.NotAfter = notAfter
	}
}

// certificate signs a certificate that is an X.509-SVID of /agent/planner for an hour, but for what change does to it.
func (a *authority) certificate(key *ecdsa.PrivateKey, change func(*x509.Certificate)) *x509.Certificate {
	a.t.Helper()
	serial, err := rand.Int(rand.Reader, big.NewInt(1<<62))
	if err != nil {
		a.t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber:          serial,
		Subject:               pkix.Name{CommonName: a.td.Name()},
		URIs:                  []*url.URL{{Scheme: "spiffe", Host: a.td.Name(), Path: "/agent/planner"}},
		NotBefore:             time.Now().Add(-time.Hour),
		NotAfter:              time.Now().Add(time.Hour),
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		BasicConstraintsValid: true,
	}
	if change != nil {
		change(template)
	}
	parent := a.cert
	if parent == nil {
		parent = template
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), a.key)
	if err != nil {
		a.t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		a.t.Fatal(err)
	}
	return cert
}

func (a *authority) svid(change func(*x509.Certificate)) *x509svid.SVID {
	a.t.Helper()
	key := newKey(a.t)
	cert := a.certificate(key, change)
	id, err := x509svid.IDFromCert(cert)
	if err != nil {
		a.t.Fatal(err)
	}
	return &x509svid.SVID{ID: id, Certificates: []*x509.Certificate{cert}, PrivateKey: key}
}

func (a *authority) x509Bundle() *x509bundle.Bundle {
	return x509bundle.FromX509Authorities(a.td, []*x509.Certificate{a.cert})
}

func (a *authority) jwtBundle() *jwtbundle.Bundle {
	return jwtbundle.FromJWTAuthorities(a.td, map[string]crypto.PublicKey{"k1": a.key.Public()})
}

// token signs a JWT-SVID of /agent/planner for the audience "nats", valid for five minutes, but for what change does.
func (a *authority) token(change func(claims map[string]any, header *jose.SignerOptions)) string {
	a.t.Helper()
	claims := map[string]any{
		"sub": a.td.IDString() + "/agent/planner",
		"aud": []string{"nats"},
		"iat": time.Now().Unix(),
		"exp": time.Now().Add(5 * time.Minute).Unix(),
	}
	options := &jose.SignerOptions{}
	if change != nil {
		change(claims, options)
	}
	token, err := jwt.Signed(a.signer(options)).Claims(claims).Serialize()
	if err != nil {
		a.t.Fatal(err)
	}
	return token
}

// sign signs a payload as it stands.
func (a *authority) sign(payload string) string {
	a.t.Helper()
	jws, err := a.signer(nil).Sign([]byte(payload))
	if err != nil {
		a.t.Fatal(err)
	}
	token, err := jws.CompactSerialize()
	if err != nil {
		a.t.Fatal(err)
	}
	return token
}

func (a *authority) signer(options *jose.SignerOptions) jose.Signer {
	a.t.Helper()
	key := jose.SigningKey{Algorithm: jose.ES256, Key: jose.JSONWebKey{Key: a.key, KeyID: "k1"}}
	signer, err := jose.NewSigner(key, options)
	if err != nil {
		a.t.Fatal(err)
	}
	return signer
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}
