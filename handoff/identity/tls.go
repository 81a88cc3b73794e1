package identity

import (
	"crypto/tls"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
)

// Authorizer decides whether an authenticated peer may connect; an error refuses. A nil Authorizer refuses everyone.
type Authorizer func(Peer) error

// AnyPeer admits every peer whose SVID a bundle vouches for. The caller decides later what it may do.
func AnyPeer(Peer) error { return nil }

// OnlyPeer admits the workloads named by ids, and nobody else.
func OnlyPeer(ids ...spiffeid.ID) Authorizer {
	return func(p Peer) error {
		for _, id := range ids {
			if p.ID == id {
				return nil
			}
		}
		return fmt.Errorf("%w: connected to %q, expected %q", ErrUnauthenticated, p.ID, ids)
	}
}

// ServerOf admits what an agent may find where it connects to governor: the governor itself, or one of the NATS servers of
// its cluster, whose path is below /nats/ in the governor's trust domain.
func ServerOf(governor spiffeid.ID) Authorizer {
	return func(p Peer) error {
		if p.ID == governor || p.ID.MemberOf(governor.TrustDomain()) && strings.HasPrefix(p.ID.Path(), pathNATS) {
			return nil
		}
		return fmt.Errorf("%w: connected to %q, expected %q or a NATS server of its cluster", ErrUnauthenticated, p.ID, governor)
	}
}

// ServerTLS returns the configuration of a server that proves itself with the current X.509-SVID of svid and admits
// peers whose X.509-SVID bundles vouch for and authorize admits.
//
// Own SVID and bundles are read at each handshake, so rotation needs no restart; an own SVID that has expired fails
// the handshake, since sources go on serving one after deregistration. Sessions cannot be resumed, and the check is
// one that runs on resumed sessions too: resumption would skip the check of a peer that was removed meanwhile. TLS
// 1.3 only. Whoever accepts a connection must still end it when the peer's SVID expires ([Peer.Expires]).
func ServerTLS(svid x509svid.Source, bundles x509bundle.Source, authorize Authorizer) *tls.Config {
	return &tls.Config{
		MinVersion:             tls.VersionTLS13,
		SessionTicketsDisabled: true,
		ClientAuth:             tls.RequireAnyClientCert,
		GetCertificate:         func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return ownCertificate(svid) },
		VerifyConnection:       verifyConnection(bundles, authorize),
	}
}

// ServerTLSAllowAnonymous is [ServerTLS], but it also lets clients in that present no certificate at all. The caller
// MUST authenticate those another way ([VerifyJWT]) before it does anything for them.
func ServerTLSAllowAnonymous(svid x509svid.Source, bundles x509bundle.Source, authorize Authorizer) *tls.Config {
	config := ServerTLS(svid, bundles, authorize)
	verify := config.VerifyConnection
	config.ClientAuth = tls.RequestClientCert
	config.VerifyConnection = func(state tls.ConnectionState) error {
		if len(state.PeerCertificates) == 0 {
			return nil
		}
		return verify(state)
	}
	return config
}

// ClientTLS is [ServerTLS] for the side that dials: authorize says which server may answer. Host names play no part;
// pass [OnlyPeer] with the server's SPIFFE ID.
func ClientTLS(svid x509svid.Source, bundles x509bundle.Source, authorize Authorizer) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		// Turns off the check by host name and system roots; VerifyConnection checks by SPIFFE ID instead.
		InsecureSkipVerify:   true,
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return ownCertificate(svid) },
		VerifyConnection:     verifyConnection(bundles, authorize),
	}
}

func verifyConnection(bundles x509bundle.Source, authorize Authorizer) func(tls.ConnectionState) error {
	return func(state tls.ConnectionState) error {
		peer, err := VerifyX509(state.PeerCertificates, bundles, time.Now())
		if err != nil {
			return err
		}
		if authorize == nil {
			return fmt.Errorf("%w: nobody is authorized", ErrUnauthenticated)
		}
		return authorize(peer)
	}
}

func ownCertificate(source x509svid.Source) (*tls.Certificate, error) {
	if source == nil {
		return nil, errors.New("no source of X.509-SVIDs")
	}
	svid, err := source.GetX509SVID()
	if err != nil {
		return nil, fmt.Errorf("own X.509-SVID: %w", err)
	}
	if svid == nil || len(svid.Certificates) == 0 {
		return nil, errors.New("own X.509-SVID: the source has none")
	}
	leaf := svid.Certificates[0]
	if err := checkValidity(leaf.NotBefore, leaf.NotAfter, time.Now()); err != nil {
		return nil, fmt.Errorf("own X.509-SVID: %w", err)
	}
	cert := &tls.Certificate{PrivateKey: svid.PrivateKey, Leaf: leaf}
	for _, c := range svid.Certificates {
		cert.Certificate = append(cert.Certificate, c.Raw)
	}
	return cert, nil
}
