package identity

import (
	"crypto/x509"
	"encoding/base64"
	"fmt"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/cryptosigner"
	"github.com/go-json-experiment/json"
	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
)

// This file is how a workload signs a statement with its X.509-SVID, for somebody that it is not connected to: a compact JWS
// (RFC 7515) whose header x5c (section 4.1.6) is the SVID, leaf first.

// algorithms are those of keys that SVIDs have.
var algorithms = []jose.SignatureAlgorithm{jose.ES256, jose.ES384, jose.EdDSA, jose.RS256}

// maxProof bounds a statement, with up to 8 certificates.
const maxProof = 32 << 10

// SignX509 signs payload with an SVID's key, as a statement of that type.
func SignX509(svid *x509svid.SVID, typ string, payload []byte) (string, error) {
	signer := cryptosigner.Opaque(svid.PrivateKey)
	algs := signer.Algs()
	if len(algs) == 0 {
		return "", fmt.Errorf("an SVID's key of type %T cannot sign", svid.PrivateKey)
	}
	chain := make([]string, len(svid.Certificates))
	for i, cert := range svid.Certificates {
		chain[i] = base64.StdEncoding.EncodeToString(cert.Raw)
	}
	options := (&jose.SignerOptions{}).WithType(jose.ContentType(typ)).WithHeader("x5c", chain)
	s, err := jose.NewSigner(jose.SigningKey{Algorithm: algs[0], Key: signer}, options)
	if err != nil {
		return "", err
	}
	signed, err := s.Sign(payload)
	if err != nil {
		return "", err
	}
	return signed.CompactSerialize()
}

// VerifySigned checks a statement that [SignX509] made, and says whose it is.
func VerifySigned(token, typ string, bundles x509bundle.Source, now time.Time) (Peer, []byte, error) {
	if len(token) > maxProof {
		return Peer{}, nil, fmt.Errorf("%w: a statement of %d bytes, above %d", ErrUnauthenticated, len(token), maxProof)
	}
	protected, _, _ := strings.Cut(token, ".")
	raw, err := base64.RawURLEncoding.Strict().DecodeString(protected)
	if err != nil {
		return Peer{}, nil, fmt.Errorf("%w: the statement is no compact JWS", ErrUnauthenticated)
	}
	var header struct {
		Alg  string   `json:"alg"`
		Type string   `json:"typ"`
		X5C  [][]byte `json:"x5c"`
	}
	if err := json.Unmarshal(raw, &header, json.RejectUnknownMembers(true)); err != nil {
		return Peer{}, nil, fmt.Errorf("%w: the statement's header must be alg, typ and x5c", ErrUnauthenticated)
	}
	if header.Type != typ || len(header.X5C) == 0 || len(header.X5C) > maxCertificates {
		return Peer{}, nil, fmt.Errorf("%w: the statement must be of type %s, with 1 to %d certificates", ErrUnauthenticated, typ, maxCertificates)
	}
	certs := make([]*x509.Certificate, len(header.X5C))
	for i, der := range header.X5C {
		if certs[i], err = x509.ParseCertificate(der); err != nil {
			return Peer{}, nil, fmt.Errorf("%w: x5c: %w", ErrUnauthenticated, err)
		}
	}
	peer, err := VerifyX509(certs, bundles, now)
	if err != nil {
		return Peer{}, nil, err
	}
	signed, err := jose.ParseSignedCompact(token, algorithms)
	if err != nil {
		return Peer{}, nil, fmt.Errorf("%w: %w", ErrUnauthenticated, err)
	}
	payload, err := signed.Verify(certs[0].PublicKey)
	if err != nil {
		return Peer{}, nil, fmt.Errorf("%w: the SVID's key has not signed this", ErrUnauthenticated)
	}
	return peer, payload, nil
}
