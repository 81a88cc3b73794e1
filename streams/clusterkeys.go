package streams

import (
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"

	"github.com/nats-io/jwt/v2"
	"github.com/nats-io/nkeys"

	"github.com/handoff-governor/handoff-governor/handoff/wire"
)

// ClusterKeys are what the governor needs to make accounts in a cluster and to answer its auth callout. All are secret.
// Seeds are nkeys in their own text form.
type ClusterKeys struct {
	// Operator is a signing key of the operator: it signs accounts. The operator's own key is needed only to replace it.
	Operator string `json:"operator"`
	// System, Governor and Callout are the accounts of the same names.
	System   string `json:"system"`
	Governor string `json:"governor"`
	Callout  string `json:"callout"`
	// CalloutUser answers the auth callout.
	CalloutUser string `json:"callout_user"`
	// XKey opens what servers ask.
	XKey string `json:"xkey"`
	// Accounts is what the keys of all identities' accounts are derived from: 32 bytes in base64.
	Accounts []byte `json:"accounts"`
	// Routes is the password that the servers have for one another.
	Routes string `json:"routes"`
	// OperatorJWT are the claims of the operator, which are public, and SystemJWT those of the account System. The latter are
	// made once: servers that have different ones take them from one another every half minute.
	OperatorJWT string `json:"operator_jwt"`
	SystemJWT   string `json:"system_jwt"`
}

// clusterKeys are ClusterKeys, ready for use.
type clusterKeys struct {
	operator, system, governor, callout, calloutUser, xkey nkeys.KeyPair
	secret                                                 []byte

	governorKey, calloutKey, systemKey, calloutUserKey, xkeyKey string
}

// NewClusterKeys makes keys under a new operator, whose seed nobody needs from day to day.
func NewClusterKeys() (keys *ClusterKeys, operatorSeed string, err error) {
	root, err := nkeys.CreateOperator()
	if err != nil {
		return nil, "", err
	}
	pairs := make([]nkeys.KeyPair, 6)
	seeds := make([]string, len(pairs))
	for i, prefix := range []nkeys.PrefixByte{
		nkeys.PrefixByteOperator, nkeys.PrefixByteAccount, nkeys.PrefixByteAccount, nkeys.PrefixByteAccount,
		nkeys.PrefixByteUser, nkeys.PrefixByteCurve,
	} {
		if pairs[i], err = nkeys.CreatePair(prefix); err != nil {
			return nil, "", err
		}
		seed, err := pairs[i].Seed()
		if err != nil {
			return nil, "", err
		}
		seeds[i] = string(seed)
	}
	keys = &ClusterKeys{
		Operator: seeds[0], System: seeds[1], Governor: seeds[2], Callout: seeds[3], CalloutUser: seeds[4], XKey: seeds[5],
		Accounts: make([]byte, 32), Routes: rand.Text(),
	}
	if _, err := rand.Read(keys.Accounts); err != nil {
		return nil, "", err
	}
	public, err := root.PublicKey()
	if err != nil {
		return nil, "", err
	}
	signing, err := pairs[0].PublicKey()
	if err != nil {
		return nil, "", err
	}
	claims := jwt.NewOperatorClaims(public)
	claims.Name = "handoff-governor"
	claims.SigningKeys.Add(signing)
	if claims.SystemAccount, err = pairs[1].PublicKey(); err != nil {
		return nil, "", err
	}
	if keys.OperatorJWT, err = claims.Encode(root); err != nil {
		return nil, "", err
	}
	parsed, err := keys.parse()
	if err != nil {
		return nil, "", err
	}
	if keys.SystemJWT, err = parsed.systemAccount().Encode(parsed.operator); err != nil {
		return nil, "", err
	}
	seed, err := root.Seed()
	return keys, string(seed), err
}

func (k *ClusterKeys) parse() (*clusterKeys, error) {
	if len(k.Accounts) < 32 {
		return nil, errors.New("the cluster's keys: accounts must have 32 bytes")
	}
	parsed := &clusterKeys{secret: k.Accounts}
	for _, key := range []struct {
		name, seed string
		prefix     nkeys.PrefixByte
		pair       *nkeys.KeyPair
		public     *string
	}{
		{"operator", k.Operator, nkeys.PrefixByteOperator, &parsed.operator, nil},
		{"system", k.System, nkeys.PrefixByteAccount, &parsed.system, &parsed.systemKey},
		{"governor", k.Governor, nkeys.PrefixByteAccount, &parsed.governor, &parsed.governorKey},
		{"callout", k.Callout, nkeys.PrefixByteAccount, &parsed.callout, &parsed.calloutKey},
		{"callout_user", k.CalloutUser, nkeys.PrefixByteUser, &parsed.calloutUser, &parsed.calloutUserKey},
		{"xkey", k.XKey, nkeys.PrefixByteCurve, &parsed.xkey, &parsed.xkeyKey},
	} {
		prefix, _, err := nkeys.DecodeSeed([]byte(key.seed))
		if err != nil || prefix != key.prefix {
			return nil, fmt.Errorf("the cluster's keys: %s is not a seed of kind %s", key.name, key.prefix)
		}
		if *key.pair, err = nkeys.FromSeed([]byte(key.seed)); err != nil {
			return nil, fmt.Errorf("the cluster's keys: %s: %w", key.name, err)
		}
		if key.public == nil {
			continue
		}
		if *key.public, err = (*key.pair).PublicKey(); err != nil {
			return nil, fmt.Errorf("the cluster's keys: %s: %w", key.name, err)
		}
	}
	return parsed, nil
}

// accountPair is the key of an identity's account. It is derived, so that nothing has to be kept of each.
func (k *clusterKeys) accountPair(role Role, name string) (nkeys.KeyPair, error) {
	raw, err := hkdf.Key(sha256.New, k.secret, nil, "handoff account "+accountName(role, name), 32)
	if err != nil {
		return nil, err
	}
	return nkeys.FromRawSeed(nkeys.PrefixByteAccount, raw)
}

// accountKey is the public half of accountPair, which is what servers call the account.
func (k *clusterKeys) accountKey(role Role, name string) string {
	pair, err := k.accountPair(role, name)
	if err != nil {
		return ""
	}
	public, err := pair.PublicKey()
	if err != nil {
		return ""
	}
	return public
}

// ownAccounts are the governor's: the system account, its own, and the callout's.
func (k *clusterKeys) ownAccounts() []*jwt.AccountClaims {
	governor := jwt.NewAccountClaims(k.governorKey)
	governor.Name = governorAccount
	governor.Limits.JetStreamLimits = jwt.JetStreamLimits{
		MemoryStorage: 0, DiskStorage: jwt.NoLimit, Streams: jwt.NoLimit, Consumer: jwt.NoLimit,
	}
	governor.Limits.LeafNodeConn = 0
	for _, e := range exports(k.governorKey) {
		export := &jwt.Export{Name: e.subject, Subject: jwt.Subject(e.subject), Type: jwt.Service, ResponseThreshold: e.within}
		if e.stream {
			export.Type, export.ResponseThreshold = jwt.Stream, 0
		}
		if e.streamed {
			export.ResponseType = jwt.ResponseTypeStream
		}
		governor.Exports.Add(export)
	}

	callout := jwt.NewAccountClaims(k.calloutKey)
	callout.Name = "CALLOUT"
	callout.Limits.LeafNodeConn = 0
	callout.Authorization = jwt.ExternalAuthorization{
		AuthUsers: jwt.StringList{k.calloutUserKey}, AllowedAccounts: jwt.StringList{jwt.AnyAccount}, XKey: k.xkeyKey,
	}
	return []*jwt.AccountClaims{k.systemAccount(), governor, callout}
}

// systemAccount is the one that servers must know before anybody can tell them of others.
func (k *clusterKeys) systemAccount() *jwt.AccountClaims {
	system := jwt.NewAccountClaims(k.systemKey)
	system.Name = "SYSTEM"
	return system
}

// identityAccount is the account of one identity.
func (k *clusterKeys) identityAccount(role Role, name string, limits Limits, throttled, closed bool) *jwt.AccountClaims {
	claims := jwt.NewAccountClaims(k.accountKey(role, name))
	claims.Name = accountName(role, name)
	claims.Limits.Conn = int64(limits.Connections)
	if closed {
		claims.Limits.Conn = 0
	}
	claims.Limits.LeafNodeConn = 0
	claims.Limits.Payload = wire.MaxPayload
	// The server holds each connection of the account to this. It does not look at the limits of users that a callout made.
	claims.Limits.Subs = int64(limits.Subscriptions)
	claims.Limits.Exports = 0
	claims.Limits.WildcardExports = false
	claims.Limits.DisallowBearer = true
	for _, i := range imports(role, name, k.governorKey) {
		entry := &jwt.Import{
			Name: i.local, Account: k.governorKey, Subject: jwt.Subject(i.theirs), LocalSubject: jwt.RenamingSubject(i.local),
			Type: jwt.Service,
		}
		if i.stream {
			entry.Type = jwt.Stream
		}
		claims.Imports.Add(entry)
	}
	if throttled {
		claims.Mappings = jwt.Mapping{}
		for _, subject := range []jwt.Subject{localOffer, localResult} {
			claims.AddMapping(subject, jwt.WeightedMapping{Subject: localBusy})
		}
	}
	return claims
}

// sentinel is the user that a client is until the callout has said who it is: it may nothing, and holding it is nothing.
func (k *clusterKeys) sentinel() (string, error) {
	user, err := nkeys.CreateUser()
	if err != nil {
		return "", err
	}
	public, err := user.PublicKey()
	if err != nil {
		return "", err
	}
	claims := jwt.NewUserClaims(public)
	claims.Name = "unknown"
	claims.BearerToken = true
	claims.Pub.Deny, claims.Sub.Deny = jwt.StringList{">"}, jwt.StringList{">"}
	return claims.Encode(k.callout)
}
