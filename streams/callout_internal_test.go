package streams

import (
	"testing"
	"time"

	"github.com/nats-io/jwt/v2"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nkeys"
)

// Only what a server has made for this governor, just now and sealed, is an auth callout.
func TestOpenCallout(t *testing.T) {
	t.Parallel()
	keys, _, err := NewClusterKeys()
	must(t, err)
	parsed, err := keys.parse()
	must(t, err)
	c := &Cluster{keys: parsed}
	server, err := nkeys.CreateServer()
	must(t, err)
	other, err := nkeys.CreateServer()
	must(t, err)
	xkey, err := nkeys.CreateCurveKeys()
	must(t, err)
	foreign, err := nkeys.CreateCurveKeys()
	must(t, err)
	account, err := nkeys.CreateAccount()
	must(t, err)
	public := func(pair nkeys.KeyPair) string {
		t.Helper()
		key, err := pair.PublicKey()
		must(t, err)
		return key
	}

	// forgery is what a request would be made with by somebody other than a server.
	type forgery struct {
		claims *jwt.AuthorizationRequestClaims
		signer nkeys.KeyPair // whose signature it has
		sealer nkeys.KeyPair // whose seal
		to     string        // whom it is sealed for
		header string        // whom the header says that it is from
	}
	user, err := nkeys.CreateUser()
	must(t, err)
	for name, test := range map[string]struct {
		change func(*forgery)
		good   bool
	}{
		"as a server makes it":     {func(*forgery) {}, true},
		"not sealed":               {func(f *forgery) { f.sealer, f.header = nil, "" }, false},
		"without the header":       {func(f *forgery) { f.header = "" }, false},
		"sealed for another":       {func(f *forgery) { f.to = public(foreign) }, false},
		"sealed by another":        {func(f *forgery) { f.sealer, f.header = foreign, public(foreign) }, false},
		"in another server's name": {func(f *forgery) { f.signer = other }, false},
		"another audience":         {func(f *forgery) { f.claims.Audience = "nats-authorization-response" }, false},
		"another account's":        {func(f *forgery) { f.claims.Subject = public(account) }, false},
		"expired":                  {func(f *forgery) { f.claims.Expires = time.Now().Add(-2 * time.Second).Unix() }, false},
		"without an end":           {func(f *forgery) { f.claims.Expires = 0 }, false},
	} {
		claims := jwt.NewAuthorizationRequestClaims(parsed.calloutKey)
		claims.Audience = calloutAsk
		claims.Server = jwt.ServerID{Name: "nats-1", ID: public(server), XKey: public(xkey)}
		claims.UserNkey = public(user)
		claims.Expires = time.Now().Add(5 * time.Second).Unix()
		f := &forgery{claims: claims, signer: server, sealer: xkey, to: parsed.xkeyKey, header: public(xkey)}
		test.change(f)
		token, err := f.claims.Encode(f.signer)
		if err != nil {
			t.Errorf("%s: cannot be made: %v", name, err)
			continue
		}
		body := []byte(token)
		if f.sealer != nil {
			body, err = f.sealer.Seal(body, f.to)
			must(t, err)
		}
		msg := nats.NewMsg(subjectCallout)
		msg.Data = body
		if f.header != "" {
			msg.Header.Set(headerXKey, f.header)
		}
		if _, err := c.openCallout(msg); (err == nil) != test.good {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
