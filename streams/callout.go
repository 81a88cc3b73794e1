package streams

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/nats-io/jwt/v2"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nkeys"
)

// This file answers the auth callout (NATS ADR-26): a server of the cluster asks who a client is, and gets a user of the
// account that is the client's own. Both ways are sealed. Only servers can ask: the callout's account has no other users.

const (
	subjectCallout = "$SYS.REQ.USER.AUTH"
	headerXKey     = "Nats-Server-Xkey"
	calloutAsk     = "nats-authorization-request"

	// calloutsAtOnce bounds the clients that are judged at a time; others wait, and time out.
	calloutsAtOnce = 64
	// maxCalloutCerts bounds what is parsed of one client, whatever the server has let through.
	maxCalloutCerts = 32
)

func (c *Cluster) answerCallout() error {
	turns := make(chan struct{}, calloutsAtOnce)
	sub, err := c.auth.Subscribe(subjectCallout, func(msg *nats.Msg) {
		select {
		case turns <- struct{}{}:
		case <-c.ctx.Done():
			return
		}
		c.owned.Go(func() {
			defer func() { <-turns }()
			c.callout(msg)
		})
	})
	if err != nil {
		return fmt.Errorf("answering the auth callout: %w", err)
	}
	if err := sub.SetPendingLimits(4096, 64<<20); err != nil {
		return fmt.Errorf("answering the auth callout: %w", err)
	}
	return c.auth.FlushTimeout(authTimeout)
}

// callout judges one client. Who cannot be told that it is refused is refused when the server's time is out.
func (c *Cluster) callout(msg *nats.Msg) {
	ctx, cancel := context.WithTimeout(c.ctx, authTimeout)
	defer cancel()
	req, err := c.openCallout(msg)
	if err != nil {
		c.log.ErrorContext(ctx, "auth callout dropped", "error", err)
		return
	}
	remote := fmt.Sprintf("%s:%d", req.ClientInformation.Host, req.ClientInformation.ID)
	id, user, err := c.admit(ctx, req)
	if err != nil {
		c.log.WarnContext(ctx, "connection refused", "remote", remote, "name", id.Name, "error", err)
	} else {
		c.log.InfoContext(ctx, "connected", "remote", remote, "name", id.Name, "role", id.Role)
	}
	answer, err := c.sealCallout(req, user, err)
	if err == nil {
		err = msg.Respond(answer)
	}
	if err != nil {
		c.log.WarnContext(ctx, "answering the auth callout", "error", err)
	}
}

// openCallout unseals a request and checks that a server made it for us.
func (c *Cluster) openCallout(msg *nats.Msg) (*jwt.AuthorizationRequestClaims, error) {
	xkey := msg.Header.Get(headerXKey)
	if xkey == "" {
		return nil, errors.New("a request that is not sealed")
	}
	body, err := c.keys.xkey.Open(msg.Data, xkey)
	if err != nil {
		return nil, fmt.Errorf("unsealing a request: %w", err)
	}
	req, err := jwt.DecodeAuthorizationRequestClaims(string(body)) // checks the signature by its issuer
	if err != nil {
		return nil, err
	}
	switch {
	case req.Issuer != req.Server.ID || req.Server.XKey != xkey || !nkeys.IsValidPublicServerKey(req.Issuer):
		return nil, errors.New("a request that was not made by the server that it names")
	case req.Audience != calloutAsk || req.Subject != c.keys.calloutKey:
		return nil, errors.New("a request that was made for another account")
	case req.Expires < time.Now().Unix():
		return nil, errors.New("a request that has expired")
	}
	return req, nil
}

// admit authenticates a client and makes the user that it is from now on.
func (c *Cluster) admit(ctx context.Context, req *jwt.AuthorizationRequestClaims) (Identity, string, error) {
	if info := req.ClientInformation; info.Kind != "Client" || info.Type != "nats" {
		return Identity{}, "", fmt.Errorf("connections of kind %s and type %s are not served", info.Kind, info.Type)
	}
	certs, err := certificates(req.TLS)
	if err != nil {
		return Identity{}, "", err
	}
	token := req.ConnectOptions.Token
	for {
		// Whoever is cut off while this client is judged might be this one: judge again.
		cuts := c.cuts.Load()
		id, acc, err := c.judge(ctx, certs, token)
		if err != nil {
			return id, "", err
		}
		user, again, err := c.user(ctx, req, id, acc, admission{certs: certs, token: token, expires: id.Expires}, cuts)
		if !again {
			return id, user, err
		}
	}
}

// user makes the user, unless somebody was cut off since cuts was read.
func (c *Cluster) user(ctx context.Context, req *jwt.AuthorizationRequestClaims, id Identity, acc *account, a admission, cuts uint64) (user string, again bool, err error) {
	acc.ready.Lock()
	defer acc.ready.Unlock()
	if c.cuts.Load() != cuts {
		return "", true, nil
	}
	if err := acc.admit(c.now(), req.Server.ID, a); err != nil {
		return "", false, err
	}
	if err := c.make(ctx, acc, req.Server.ID); err != nil {
		return "", false, err
	}
	claims := jwt.NewUserClaims(req.UserNkey)
	claims.Name = id.Name
	// The server's clock ends it, so it gets what is left by ours.
	claims.Expires = time.Now().Add(id.Expires.Sub(c.now())).Unix()
	claims.AllowedConnectionTypes = jwt.StringList{jwt.ConnectionTypeStandard}
	if may := c.permissions(id.Role, id.Name, c.keys.governorKey); may != nil {
		claims.Pub.Allow, claims.Sub.Allow = may.publish, may.subscribe
	}
	key, err := c.keys.accountPair(id.Role, id.Name)
	if err != nil {
		return "", false, err
	}
	user, err = claims.Encode(key)
	return user, false, err
}

// sealCallout makes the answer: the user, or that there is none. Why is in our log, not in the server's.
func (c *Cluster) sealCallout(req *jwt.AuthorizationRequestClaims, user string, refused error) ([]byte, error) {
	answer := jwt.NewAuthorizationResponseClaims(req.UserNkey)
	answer.Audience = req.Server.ID
	answer.Jwt = user
	if refused != nil {
		answer.Error = "refused by the governor"
	}
	token, err := answer.Encode(c.keys.callout)
	if err != nil {
		return nil, err
	}
	return c.keys.xkey.Seal([]byte(token), req.Server.XKey)
}

// certificates are the client's, leaf first. A server that checks clients by itself names only the chains that it found; one
// chain begins like the other.
func certificates(t *jwt.ClientTLS) ([]*x509.Certificate, error) {
	if t == nil {
		return nil, errors.New("a connection without TLS")
	}
	blocks := slices.Clone([]string(t.Certs))
	for _, chain := range t.VerifiedChains {
		blocks = append(blocks, chain...)
	}
	if len(blocks) > maxCalloutCerts {
		return nil, fmt.Errorf("%d certificates, above %d", len(blocks), maxCalloutCerts)
	}
	var certs []*x509.Certificate
	for _, text := range blocks {
		block, rest := pem.Decode([]byte(text))
		if block == nil || block.Type != "CERTIFICATE" || len(rest) > 0 {
			return nil, errors.New("a certificate that is not PEM")
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, err
		}
		if !slices.ContainsFunc(certs, cert.Equal) {
			certs = append(certs, cert)
		}
	}
	return certs, nil
}
