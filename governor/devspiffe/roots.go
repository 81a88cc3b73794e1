package devspiffe

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"net/url"
	"slices"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	"github.com/spiffe/go-spiffe/v2/bundle/jwtbundle"
	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
)

const (
	jwtTTL = 5 * time.Minute
	// backdate is how long before its making a certificate is valid already, for clocks that are set back a little.
	backdate = time.Minute
	// maxSettle is the longest that a new root waits, published, before it signs.
	maxSettle = time.Hour
	// retryRoots is when to try again where the next root could not be written.
	retryRoots = time.Minute
)

// signingKeys is one generation of root keys. The certificate's times are those of both keys.
type signingKeys struct {
	cert   *x509.Certificate
	x509   *ecdsa.PrivateKey
	jwt    *ecdsa.PrivateKey
	jwtKID string // RFC 7638 thumbprint
}

func (k *signingKeys) made() time.Time { return k.cert.NotBefore.Add(backdate) }

// usable reports whether k is valid at now.
func (k *signingKeys) usable(now time.Time) bool {
	return !now.Before(k.cert.NotBefore) && now.Before(k.cert.NotAfter)
}

// halfLife is when k's successor is made.
func (k *signingKeys) halfLife() time.Time { return k.made().Add(k.cert.NotAfter.Sub(k.made()) / 2) }

// roots is what the authority trusts and signs with from one change to the next. It never changes itself, and is a
// function of the keys on disk and the time, so that a restart does not show.
type roots struct {
	keys        []*signingKeys // oldest first, as on disk
	signer      *signingKeys
	x509        *x509bundle.Bundle
	jwt         *jwtbundle.Bundle
	from, until time.Time // between two changes; outside of it, [Authority.current] makes others
}

// current returns the roots for now. Roots are on disk before anyone sees them.
func (a *Authority) current() (*roots, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	now := a.config.Now()
	if !now.Before(a.roots.from) && now.Before(a.roots.until) {
		return a.roots, nil
	}
	keys := a.roots.keys
	var retry time.Time
	if newest := newestUsable(keys, now); newest == nil || !now.Before(newest.halfLife()) {
		grown, err := a.grow(keys, now)
		switch {
		case err == nil:
			keys = grown
		case newest == nil:
			return nil, fmt.Errorf("development authority: making new root keys: %w", err)
		default:
			retry = now.Add(retryRoots)
			a.config.Logger.Error("development authority: the next root keys could not be written; the present ones"+
				" go on", slog.Time("until", newest.cert.NotAfter), slog.Any("error", err))
		}
	}
	a.roots = a.newRoots(keys, now, retry)
	return a.roots, nil
}

// newestUsable returns nil where no key is valid: at the first start, after a long rest, or when the clock was wrong.
func newestUsable(keys []*signingKeys, now time.Time) *signingKeys {
	for _, k := range slices.Backward(keys) {
		if k.usable(now) {
			return k
		}
	}
	return nil
}

// grow drops the keys that have ended, adds a generation, and writes them all.
func (a *Authority) grow(keys []*signingKeys, now time.Time) ([]*signingKeys, error) {
	next, err := newKeys(a.config.TrustDomain, now, a.config.AuthorityTTL)
	if err != nil {
		return nil, err
	}
	keys = slices.DeleteFunc(slices.Clone(keys), func(k *signingKeys) bool { return !now.Before(k.cert.NotAfter) })
	keys = append(keys, next)
	sortKeys(keys)
	if err := saveKeys(a.keysFile(), keys); err != nil {
		return nil, err
	}
	a.config.Logger.Info("development authority: new root keys", slog.Time("expires", next.cert.NotAfter))
	return keys, nil
}

// newRoots makes roots of keys, at least one of which is usable. The signer is the newest that has settled, so that
// everybody has heard of it, while it lasts for a whole SVID. Where there is none (a first start, a long rest), there
// is nothing better than the newest of all. They are looked at again by the time retry, unless it is zero.
func (a *Authority) newRoots(keys []*signingKeys, now, retry time.Time) *roots {
	newest := newestUsable(keys, now)
	r := &roots{keys: keys, signer: newest, until: newest.halfLife()}
	if !retry.IsZero() {
		r.until = retry
	}
	settle := min(maxSettle, a.config.AuthorityTTL/10)
	var certs []*x509.Certificate
	jwtKeys := map[string]crypto.PublicKey{}
	for _, k := range keys {
		if now.Before(k.cert.NotAfter) {
			certs = append(certs, k.cert)
			jwtKeys[k.jwtKID] = k.jwt.Public()
		}
		signs, lasts := k.made().Add(settle), k.cert.NotAfter.Add(-a.config.TTL)
		if k.usable(now) && !now.Before(signs) && now.Before(lasts) {
			r.signer = k
		}
		for _, change := range []time.Time{k.cert.NotBefore, signs, lasts, k.cert.NotAfter} {
			if now.Before(change) {
				r.until = earlier(r.until, change)
			} else if change.After(r.from) {
				r.from = change
			}
		}
	}
	r.x509 = x509bundle.FromX509Authorities(a.config.TrustDomain, certs)
	r.jwt = jwtbundle.FromJWTAuthorities(a.config.TrustDomain, jwtKeys)
	return r
}

func sortKeys(keys []*signingKeys) {
	slices.SortStableFunc(keys, func(a, b *signingKeys) int { return a.made().Compare(b.made()) })
}

// issueX509 makes an X.509-SVID (X509-SVID, section 4) that lives for ttl, within the life of its root.
func (r *roots) issueX509(id spiffeid.ID, dnsNames []string, now time.Time, ttl time.Duration) (*x509svid.SVID, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	cert, err := sign(&x509.Certificate{
		Subject:               pkix.Name{Organization: []string{"Handoff Governor development"}},
		URIs:                  []*url.URL{id.URL()},
		DNSNames:              dnsNames,
		NotBefore:             later(now.Add(-backdate), r.signer.cert.NotBefore),
		NotAfter:              earlier(wholeSecond(now.Add(ttl)), r.signer.cert.NotAfter),
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		BasicConstraintsValid: true,
	}, r.signer.cert, key, r.signer.x509)
	if err != nil {
		return nil, err
	}
	return &x509svid.SVID{ID: id, Certificates: []*x509.Certificate{cert}, PrivateKey: key}, nil
}

// issueJWT makes a JWT-SVID (JWT-SVID, section 3).
func (r *roots) issueJWT(id spiffeid.ID, audience []string, now time.Time) (string, error) {
	signer, err := jose.NewSigner(
		jose.SigningKey{Algorithm: jose.ES256, Key: jose.JSONWebKey{Key: r.signer.jwt, KeyID: r.signer.jwtKID}},
		(&jose.SignerOptions{}).WithType("JWT"))
	if err != nil {
		return "", err
	}
	return jwt.Signed(signer).Claims(jwt.Claims{
		Subject:  id.String(),
		Audience: audience,
		IssuedAt: jwt.NewNumericDate(now),
		Expiry:   jwt.NewNumericDate(earlier(now.Add(jwtTTL), r.signer.cert.NotAfter)),
	}).Serialize()
}

func newKeys(td spiffeid.TrustDomain, now time.Time, ttl time.Duration) (*signingKeys, error) {
	x509Key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	jwtKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		Subject:               pkix.Name{Organization: []string{"Handoff Governor development"}, CommonName: td.Name()},
		URIs:                  []*url.URL{td.ID().URL()},
		NotBefore:             now.Add(-backdate),
		NotAfter:              wholeSecond(now.Add(ttl)),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
		MaxPathLenZero:        true,
	}
	cert, err := sign(template, template, x509Key, x509Key)
	if err != nil {
		return nil, err
	}
	return withKID(&signingKeys{cert: cert, x509: x509Key, jwt: jwtKey})
}

func withKID(k *signingKeys) (*signingKeys, error) {
	jwk := jose.JSONWebKey{Key: k.jwt.Public()}
	thumbprint, err := jwk.Thumbprint(crypto.SHA256)
	if err != nil {
		return nil, err
	}
	k.jwtKID = base64.RawURLEncoding.EncodeToString(thumbprint)
	return k, nil
}

func sign(template, parent *x509.Certificate, key, parentKey *ecdsa.PrivateKey) (*x509.Certificate, error) {
	serial := make([]byte, 16)
	if _, err := rand.Read(serial); err != nil {
		return nil, err
	}
	serial[0] = serial[0]&0x7f | 0x40 // positive, and always 16 bytes (RFC 5280, section 4.1.2.2)
	template.SerialNumber = new(big.Int).SetBytes(serial)
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), parentKey)
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificate(der)
}

// saveKeys writes generations as PEM: certificate, X.509 key, JWT key; certificate, …
func saveKeys(file string, keys []*signingKeys) error {
	var b bytes.Buffer
	for _, k := range keys {
		if err := pem.Encode(&b, &pem.Block{Type: pemCertificate, Bytes: k.cert.Raw}); err != nil {
			return err
		}
		for _, key := range []*ecdsa.PrivateKey{k.x509, k.jwt} {
			der, err := x509.MarshalPKCS8PrivateKey(key)
			if err != nil {
				return err
			}
			if err := pem.Encode(&b, &pem.Block{Type: pemPrivateKey, Bytes: der}); err != nil {
				return err
			}
		}
	}
	return writeFile(file, b.Bytes())
}

const (
	pemCertificate = "CERTIFICATE"
	pemPrivateKey  = "PRIVATE KEY"
)

// loadKeys reads what saveKeys wrote; a missing file is no keys.
func loadKeys(file string, td spiffeid.TrustDomain) ([]*signingKeys, error) {
	rest, err := readFile(file)
	if err != nil || rest == nil {
		return nil, err
	}
	keys, err := parseKeys(rest, td)
	if err != nil {
		return nil, fmt.Errorf("%s: %w; restore it, or move it away to start with new root keys", file, err)
	}
	return keys, nil
}

func parseKeys(rest []byte, td spiffeid.TrustDomain) ([]*signingKeys, error) {
	var keys []*signingKeys
	for len(bytes.TrimSpace(rest)) > 0 {
		k := new(signingKeys)
		der, err := nextBlock(&rest, pemCertificate)
		if err != nil {
			return nil, err
		}
		if k.cert, err = x509.ParseCertificate(der); err != nil {
			return nil, err
		}
		if len(k.cert.URIs) != 1 || k.cert.URIs[0].String() != td.IDString() {
			return nil, fmt.Errorf("these are the root keys of %v, not of %s", k.cert.URIs, td.IDString())
		}
		for _, key := range []**ecdsa.PrivateKey{&k.x509, &k.jwt} {
			if der, err = nextBlock(&rest, pemPrivateKey); err != nil {
				return nil, err
			}
			parsed, err := x509.ParsePKCS8PrivateKey(der)
			if err != nil {
				return nil, err
			}
			var ok bool
			if *key, ok = parsed.(*ecdsa.PrivateKey); !ok || (*key).Curve != elliptic.P256() {
				return nil, errors.New("a private key is not one of P-256")
			}
		}
		if !k.x509.PublicKey.Equal(k.cert.PublicKey) || !k.cert.IsCA {
			return nil, errors.New("a root certificate does not belong to its key")
		}
		if k, err = withKID(k); err != nil {
			return nil, err
		}
		keys = append(keys, k)
	}
	if len(keys) == 0 {
		return nil, errors.New("the file is empty")
	}
	sortKeys(keys)
	return keys, nil
}

func nextBlock(rest *[]byte, kind string) ([]byte, error) {
	block, after := pem.Decode(*rest)
	if block == nil || block.Type != kind {
		return nil, fmt.Errorf("expected a PEM block %q", kind)
	}
	*rest = after
	return block.Bytes, nil
}

func earlier(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}

func later(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}

// wholeSecond rounds t up: certificates have whole seconds, and truncating would halve a lifetime of a second.
func wholeSecond(t time.Time) time.Time {
	if whole := t.Truncate(time.Second); whole.Before(t) {
		return whole.Add(time.Second)
	}
	return t
}
