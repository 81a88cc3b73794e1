package identity_test

import (
	"crypto/ecdsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/base64"
	"errors"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/spiffe/go-spiffe/v2/bundle/jwtbundle"
	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"

	"github.com/handoff-governor/handoff-governor/handoff/identity"
)

func TestVerifyX509(t *testing.T) {
	acme := newAuthority(t, "acme.example")
	svid := acme.svid(nil)
	leaf := svid.Certificates[0]

	peer, err := identity.VerifyX509(svid.Certificates, acme.x509Bundle(), time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if peer.ID != svid.ID || peer.Name != "acme=dexample=sagent=splanner" || !peer.Expires.Equal(leaf.NotAfter) {
		t.Errorf("peer is %+v", peer)
	}
	// A DNS name beside the one URI is allowed (X509-SVID, section 4.1), and means nothing.
	dns := acme.svid(func(c *x509.Certificate) { c.DNSNames = []string{"governor.acme.example"} })
	if peer, err := identity.VerifyX509(dns.Certificates, acme.x509Bundle(), time.Now()); err != nil || peer.ID != svid.ID {
		t.Errorf("with a DNS name: %+v, %v", peer, err)
	}

	for _, at := range []struct {
		now  time.Time
		want error
	}{
		{leaf.NotBefore, nil},
		{leaf.NotBefore.Add(-time.Nanosecond), identity.ErrNotYetValid},
		{leaf.NotAfter.Add(-time.Nanosecond), nil},
		{leaf.NotAfter, identity.ErrExpired},
		{leaf.NotAfter.Add(time.Hour), identity.ErrExpired},
		{time.Time{}, identity.ErrUnauthenticated},
	} {
		// The root must not be what decides.
		bundle := newAuthorityLike(acme, at.now)
		_, err := identity.VerifyX509(svid.Certificates, bundle, at.now)
		if !errors.Is(err, at.want) || at.want != nil && !errors.Is(err, identity.ErrUnauthenticated) {
			t.Errorf("at %s (%s to %s): %v, want %v", at.now, leaf.NotBefore, leaf.NotAfter, err, at.want)
		}
	}
}

// newAuthorityLike returns a bundle with a's key in a root certificate that is valid around now.
func newAuthorityLike(a *authority, now time.Time) *x509bundle.Bundle {
	root := &authority{t: a.t, td: a.td, key: a.key}
	root.cert = root.certificate(a.key, func(c *x509.Certificate) {
		caTemplate(now.Add(48 * time.Hour))(c)
		c.NotBefore = now.Add(-48 * time.Hour)
	})
	return root.x509Bundle()
}

func TestVerifyX509Refuses(t *testing.T) {
	acme, other := newAuthority(t, "acme.example"), newAuthority(t, "other.example")
	impostor := newAuthority(t, "acme.example")
	agent := func(id string) *url.URL {
		u, err := url.Parse(id)
		if err != nil {
			t.Fatal(err)
		}
		return u
	}
	leaf := func(change func(*x509.Certificate)) []*x509.Certificate {
		return []*x509.Certificate{acme.certificate(newKey(t), change)}
	}
	uris := func(ids ...string) []*x509.Certificate {
		return leaf(func(c *x509.Certificate) {
			c.URIs = nil
			for _, id := range ids {
				c.URIs = append(c.URIs, agent(id))
			}
		})
	}
	good := acme.svid(nil).Certificates
	for name, certs := range map[string][]*x509.Certificate{
		"no certificates":      nil,
		"a nil certificate":    {nil},
		"no URI":               uris(),
		"two URIs":             uris("spiffe://acme.example/agent/a", "spiffe://acme.example/agent/b"),
		"the same URI twice":   uris("spiffe://acme.example/agent/a", "spiffe://acme.example/agent/a"),
		"a web address":        uris("https://acme.example/agent/a"),
		"a trust domain":       uris("spiffe://acme.example"),
		"a trailing slash":     uris("spiffe://acme.example/agent/"),
		"a port":               uris("spiffe://acme.example:443/agent/a"),
		"a user":               uris("spiffe://root@acme.example/agent/a"),
		"a query":              uris("spiffe://acme.example/agent/a?b"),
		"a fragment":           uris("spiffe://acme.example/agent/a#b"),
		"an escape":            uris("spiffe://acme.example/agent/%61"),
		"a wildcard":           uris("spiffe://acme.example/agent/*"),
		"a token's end":        uris("spiffe://acme.example/agent/>"),
		"dots":                 uris("spiffe://acme.example/agent/../governor"),
		"a long ID":            uris("spiffe://acme.example/agent/" + strings.Repeat("x", 300)),
		"an endless ID":        uris("spiffe://acme.example/agent/" + strings.Repeat("x/", 20000) + "x"),
		"a CA":                 leaf(caTemplate(time.Now().Add(time.Hour))),
		"may sign certs":       leaf(func(c *x509.Certificate) { c.KeyUsage |= x509.KeyUsageCertSign; c.IsCA = true }),
		"may sign CRLs":        leaf(func(c *x509.Certificate) { c.KeyUsage |= x509.KeyUsageCRLSign }),
		"may not sign":         leaf(func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageKeyEncipherment }),
		"no key usage":         leaf(func(c *x509.Certificate) { c.KeyUsage = 0 }),
		"the root itself":      {acme.cert},
		"another root":         impostor.svid(nil).Certificates,
		"another root, theirs": append(impostor.svid(nil).Certificates, impostor.cert),
		"an unknown domain":    other.svid(nil).Certificates,
		"signed by a leaf":     signedByLeaf(t, acme),
		"too many":             append(good, slices.Repeat([]*x509.Certificate{acme.cert}, 8)...),
		"unknown critical": leaf(func(c *x509.Certificate) {
			c.ExtraExtensions = []pkix.Extension{{Id: asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 99999, 1}, Critical: true}}
		}),
	} {
		peer, err := identity.VerifyX509(certs, acme.x509Bundle(), time.Now())
		if !errors.Is(err, identity.ErrUnauthenticated) || peer != (identity.Peer{}) {
			t.Errorf("%s: %+v, %v", name, peer, err)
		}
	}
	if _, err := identity.VerifyX509(good, nil, time.Now()); !errors.Is(err, identity.ErrUnauthenticated) {
		t.Errorf("without bundles: %v", err)
	}

	// Each trust domain's bundle vouches for its own workloads only, where both are known.
	both := x509bundle.NewSet(acme.x509Bundle(), other.x509Bundle())
	if peer, err := identity.VerifyX509(other.svid(nil).Certificates, both, time.Now()); err != nil ||
		peer.Name != "other=dexample=sagent=splanner" {
		t.Errorf("a federated peer: %+v, %v", peer, err)
	}
	forged := []*x509.Certificate{other.certificate(newKey(t), func(c *x509.Certificate) {
		c.URIs = []*url.URL{agent("spiffe://acme.example/governor")}
	})}
	if peer, err := identity.VerifyX509(forged, both, time.Now()); err == nil {
		t.Errorf("another trust domain's root made %+v", peer)
	}
}

func signedByLeaf(t *testing.T, a *authority) []*x509.Certificate {
	svid := a.svid(nil)
	signer := &authority{t: t, td: a.td, cert: svid.Certificates[0], key: svid.PrivateKey.(*ecdsa.PrivateKey)}
	return append(signer.svid(nil).Certificates, svid.Certificates[0])
}

// A peer's identity ends with the first certificate of its chain that does.
func TestVerifyX509ExpiresWithItsIntermediate(t *testing.T) {
	acme := newAuthority(t, "acme.example")
	soon := time.Now().Add(10 * time.Minute).Truncate(time.Second)
	middle := &authority{t: t, td: acme.td, key: newKey(t)}
	middle.cert = acme.certificate(middle.key, caTemplate(soon))
	chain := append(middle.svid(nil).Certificates, middle.cert)
	peer, err := identity.VerifyX509(chain, acme.x509Bundle(), time.Now())
	if err != nil || !peer.Expires.Equal(soon) {
		t.Errorf("expires %s, %v, want %s", peer.Expires, err, soon)
	}
	if _, err := identity.VerifyX509(chain, acme.x509Bundle(), soon.Add(time.Second)); err == nil {
		t.Error("an expired intermediate passed")
	}
}

func TestVerifyJWT(t *testing.T) {
	acme := newAuthority(t, "acme.example")
	now := time.Now()
	exp := now.Add(time.Minute).Truncate(time.Second)
	token := acme.token(func(c map[string]any, _ *jose.SignerOptions) { c["exp"] = exp.Unix() })
	peer, err := identity.VerifyJWT(token, "nats", acme.jwtBundle(), now)
	if err != nil || peer.Name != "acme=dexample=sagent=splanner" || !peer.Expires.Equal(exp) {
		t.Errorf("peer is %+v, %v", peer, err)
	}
	// No leeway after exp, by the clock that the caller goes by.
	if _, err := identity.VerifyJWT(token, "nats", acme.jwtBundle(), exp.Add(-time.Nanosecond)); err != nil {
		t.Errorf("just before exp: %v", err)
	}
	if _, err := identity.VerifyJWT(token, "nats", acme.jwtBundle(), exp); !errors.Is(err, identity.ErrExpired) {
		t.Errorf("at exp: %v", err)
	}
	for _, claim := range []string{"iat", "nbf"} {
		early := acme.token(func(c map[string]any, _ *jose.SignerOptions) { c[claim] = now.Unix() })
		if _, err := identity.VerifyJWT(early, "nats", acme.jwtBundle(), now.Add(-2*time.Minute)); !errors.Is(err,
			identity.ErrNotYetValid) {
			t.Errorf("two minutes before %s: %v", claim, err)
		}
	}
	several := acme.token(func(c map[string]any, _ *jose.SignerOptions) { c["aud"] = []string{"other", "nats"} })
	if _, err := identity.VerifyJWT(several, "nats", acme.jwtBundle(), now); err != nil {
		t.Errorf("several audiences: %v", err)
	}
}

func TestVerifyJWTRefuses(t *testing.T) {
	acme, other := newAuthority(t, "acme.example"), newAuthority(t, "other.example")
	impostor := newAuthority(t, "acme.example")
	good := acme.token(nil)
	parts := strings.Split(good, ".")
	with := func(key string, value any) string {
		return acme.token(func(c map[string]any, _ *jose.SignerOptions) {
			c[key] = value
			if value == nil {
				delete(c, key)
			}
		})
	}
	raw := func(header, payload string) string {
		enc := base64.RawURLEncoding.EncodeToString
		return enc([]byte(header)) + "." + enc([]byte(payload)) + "." + parts[2]
	}
	for name, token := range map[string]string{
		"nothing":            "",
		"two parts":          parts[0] + "." + parts[1],
		"four parts":         good + "." + parts[2],
		"five parts":         good + "." + parts[2] + "." + parts[2],
		"many parts":         strings.Repeat(".", identity.MaxJWT),
		"an empty part":      parts[0] + ".." + parts[2],
		"no signature":       parts[0] + "." + parts[1] + ".",
		"padding":            good + "=",
		"a line break":       good[:10] + "\n" + good[10:],
		"a break at the end": good + "\r\n",
		"a space":            " " + good,
		"JSON serialization": `{"payload":"` + parts[1] + `","protected":"` + parts[0] + `","signature":"` + parts[2] + `"}`,
		"a second spelling":  respell(good),
		"another signature":  parts[0] + "." + parts[1] + "." + strings.Split(acme.token(nil), ".")[2][1:] + "A",
		"too large":          with("x", strings.Repeat("x", identity.MaxJWT)),
		"alg none":           raw(`{"alg":"none","kid":"k1"}`, `{}`),
		"alg HS256":          raw(`{"alg":"HS256","kid":"k1"}`, `{"sub":"spiffe://acme.example/agent/a","exp":9999999999}`),
		"no kid":             raw(`{"alg":"ES256"}`, `{"sub":"spiffe://acme.example/agent/a","exp":9999999999}`),
		"no exp":             with("exp", nil),
		"expired":            with("exp", time.Now().Add(-time.Second).Unix()),
		"long expired":       with("exp", time.Now().Add(-time.Hour).Unix()),
		"exp as text":        with("exp", "9999999999"),
		"nbf ahead":          with("nbf", time.Now().Add(time.Hour).Unix()),
		"iat ahead":          with("iat", time.Now().Add(time.Hour).Unix()),
		"no audience":        with("aud", nil),
		"another audience":   with("aud", []string{"natsx"}),
		"an empty audience":  with("aud", []string{""}),
		"no subject":         with("sub", nil),
		"no SPIFFE ID":       with("sub", "planner"),
		"a trust domain":     with("sub", "spiffe://acme.example"),
		"a wildcard":         with("sub", "spiffe://acme.example/agent/*"),
		"a long ID":          with("sub", "spiffe://acme.example/agent/"+strings.Repeat("x", 300)),
		"an unknown domain":  other.token(nil),
		"another's key":      impostor.token(nil),
		"another's workload": with("sub", "spiffe://other.example/agent/planner"),
		"a proof's typ":      acme.token(func(_ map[string]any, o *jose.SignerOptions) { o.WithType("handoff-claim+jwt") }),
		"an unknown critical": acme.token(func(_ map[string]any, o *jose.SignerOptions) {
			o.WithCritical("x").WithHeader("x", 1)
		}),
		"two subjects": acme.sign(`{"sub":"spiffe://acme.example/agent/a","sub":"spiffe://acme.example/agent/b",` +
			`"aud":["nats"],"exp":9999999999}`),
		"trailing data": acme.sign(`{"sub":"spiffe://acme.example/agent/a","aud":["nats"],"exp":9999999999}{}`),
		"Sub, not sub":  acme.sign(`{"Sub":"spiffe://acme.example/agent/a","aud":["nats"],"exp":9999999999}`),
	} {
		peer, err := identity.VerifyJWT(token, "nats", jwtbundle.NewSet(acme.jwtBundle()), time.Now())
		if !errors.Is(err, identity.ErrUnauthenticated) || peer != (identity.Peer{}) {
			t.Errorf("%s: %+v, %v", name, peer, err)
		}
	}
	if _, err := identity.VerifyJWT(acme.sign(`{"sub":"spiffe://acme.example/agent/a","aud":["nats"],"exp":9999999999}`),
		"nats", acme.jwtBundle(), time.Now()); err != nil {
		t.Errorf("what the last three would be without their fault: %v", err)
	}
	// Nobody is the audience of a token by having forgotten to say who they are.
	if _, err := identity.VerifyJWT(with("aud", []string{""}), "", acme.jwtBundle(), time.Now()); !errors.Is(err, identity.ErrUnauthenticated) {
		t.Errorf("without an audience: %v", err)
	}
	if _, err := identity.VerifyJWT(good, "nats", nil, time.Now()); !errors.Is(err, identity.ErrUnauthenticated) {
		t.Errorf("without bundles: %v", err)
	}
}

// respell changes bits that base64 does not carry: the last of the 86 characters of an ES256 signature has four.
func respell(token string) string {
	const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
	last := len(token) - 1
	return token[:last] + string(alphabet[strings.IndexByte(alphabet, token[last])|1])
}

func FuzzVerifyJWT(f *testing.F) {
	acme := newAuthority(f, "acme.example")
	bundle, good := acme.jwtBundle(), acme.token(nil)
	for _, s := range []string{good, good[1:], "a.b.c", "..", strings.Repeat("eyJ", 99)} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, token string) {
		// The key signed one token only.
		if peer, err := identity.VerifyJWT(token, "nats", bundle, time.Now()); err == nil && token != good {
			t.Fatalf("%q is %+v", token, peer)
		}
	})
}

func BenchmarkVerifyX509(b *testing.B) {
	acme := newAuthority(b, "acme.example")
	svid, bundle, now := acme.svid(nil), acme.x509Bundle(), time.Now()
	for b.Loop() {
		if _, err := identity.VerifyX509(svid.Certificates, bundle, now); err != nil {
			b.Fatal(err)
		}
	}
}
