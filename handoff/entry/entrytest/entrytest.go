// Package entrytest writes logs for tests: with real keys, real links and real signatures, as a governor would, so that
// [entry.Verify] accepts them. What breaks the rules is for the test to add.
package entrytest

import (
	"crypto/ed25519"
	"encoding/binary"
	"fmt"
	"iter"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/google/uuid"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/handoff-governor/handoff-governor/handoff/aat"
	"github.com/handoff-governor/handoff-governor/handoff/aat/jws"
	"github.com/handoff-governor/handoff-governor/handoff/aat/profile"
	"github.com/handoff-governor/handoff-governor/handoff/entry"
	"github.com/handoff-governor/handoff-governor/handoff/wire"
)

// Issuer is the URI of the issuer of every root.
const Issuer = "https://issuer.example"

// Item is an entry with what is stored beside it.
type Item struct {
	Entry   []byte
	IDs     []string
	Session string
	Salt    []byte // with Body, or nil
	Body    []byte
	Digest  string // with Bundle, or empty
	Bundle  []byte
}

// Log is a log in memory, and an [entry.Source] with bodies and leaf hashes. Its methods panic where they are misused.
type Log struct {
	Name   string
	Items  []Item
	Now    time.Time // of the next entry; every entry moves it on by a millisecond
	LogKey string    // verifies checkpoints
	// Tamper changes each entry before it is written and pointed to. Nil: none is.
	Tamper func(*entry.Entry)
	Signer note.Signer
	// Operator revokes, withdraws and restores.
	Operator string

	rand             *rand.Rand
	issuer, governor ed25519.PrivateKey
	bundle           string
	heads            map[string]uint64 // :: what it is of, and whose → newest entry
	grants           []*Grant          // that were not ended
	handoffs         []*Handoff        // admitted and not claimed, under a live grant
	waiting          []*Handoff        // the same, also under a grant that has ended
	roots            []*Grant          // of sessions that are not closed
	claimed          []*Grant          // the newest of each handoff that is claimed and not over, those that a transfer has ended among them
	withdrawn        map[string]bool   // agents
}

// New starts a log with an activated bundle. Equal seeds give equal logs.
func New(name string, seed uint64) *Log {
	var key [32]byte
	binary.BigEndian.PutUint64(key[:], seed)
	l := &Log{
		Name: name, Now: time.Unix(1_800_000_000, 0), rand: rand.New(rand.NewChaCha8(key)), heads: map[string]uint64{},
		withdrawn: map[string]bool{}, Operator: "carol",
	}
	l.issuer, l.governor = l.key(), l.key()
	secret, public, err := note.GenerateKey(reader{l.rand}, name)
	check(err)
	l.LogKey = public
	l.Signer, err = note.NewSigner(secret)
	check(err)
	l.Activate("sha256:first")
	return l
}

// Config trusts the log's keys.
func (l *Log) Config() entry.Config {
	return entry.Config{
		LogKey:    l.LogKey,
		Issuers:   []aat.Anchor{{Issuer: Issuer, Key: l.issuer.Public().(ed25519.PublicKey)}},
		Governors: []ed25519.PublicKey{l.governor.Public().(ed25519.PublicKey)},
	}
}

// Write adds an entry: it fills in version, log, index, time and pointers.
func (l *Log) Write(e *entry.Entry, item Item) uint64 {
	e.Version, e.Log, e.Index, e.Time = entry.Version, l.Name, uint64(len(l.Items)), l.Now.UnixMilli()
	l.Now = l.Now.Add(time.Millisecond)
	if l.Tamper != nil {
		l.Tamper(e)
	}
	e.Prev = entry.Prev{
		Session: l.head("session ", e.Session, e.Index), Sender: l.head("sender ", e.From, e.Index),
		Receiver: l.head("receiver ", e.To, e.Index), Grant: l.head("grant ", e.Grant, e.Index),
	}
	var err error
	item.Entry, err = e.Encode()
	check(err)
	item.Session = e.Session
	l.Items = append(l.Items, item)
	return e.Index
}

func (l *Log) head(of, whose string, index uint64) *uint64 {
	if whose == "" {
		return nil
	}
	before, known := l.heads[of+whose]
	l.heads[of+whose] = index
	if !known {
		return nil
	}
	return &before
}

// Activate puts a bundle in force.
func (l *Log) Activate(digest string) {
	bundle := []byte("package handoff # " + digest)
	l.bundle = digest
	l.Write(&entry.Entry{
		Kind: entry.KindBundle, Bundle: &entry.Bundle{Digest: digest, By: "operator", Size: len(bundle)},
	}, Item{Digest: digest, Bundle: bundle})
}

// Grant is a live grant of the log.
type Grant struct {
	ID      string
	Agent   string
	Session string
	log     *Log
	link    *aat.Link
	key     ed25519.PrivateKey
	labels  []string
	handoff *Handoff // nil for a root
	open    int      // delegated from it, without a result
}

// Handoff is an admitted or held handoff of the log.
type Handoff struct {
	ID     string
	To     string
	Entry  uint64
	Mode   string
	parent *Grant
	link   *aat.Link
	labels []string
}

// Open opens a session and returns its root grant.
func (l *Log) Open(agent string, tools aat.Tools, labels ...string) *Grant {
	id, key := l.ID(), l.key()
	now := l.Now.Unix()
	root, err := aat.Prepare(nil, aat.Claims{
		ID: id, Issuer: Issuer, IssuedAt: now, ExpiresAt: now + 3600, Holder: jwk(key), MaxDepth: 8,
		Tools: tools, Extra: claim(wire.HandoffClaim{Session: id, To: agent, Labels: labels}),
	}, l.issuer.Public().(ed25519.PublicKey))
	check(err)
	root, err = root.Sign(l.issuer)
	check(err)
	salt, objective := l.bytes(wire.SaltSize), []byte("find out why the build is slow")
	l.Write(&entry.Entry{
		Kind: entry.KindSession, Session: id, From: agent, Grant: id,
		Opened: &entry.Opened{
			Root: root.Compact, Opener: agent, Principal: wire.Principal{Kind: "human", Name: "alice"}, MaxHops: 4,
			ObjectiveHash: wire.TaskHash(salt, objective), Labels: labels, Decision: *l.decision("session", wire.EffectAllow),
		},
	}, Item{IDs: []string{id}, Salt: salt, Body: objective})
	g := &Grant{ID: id, Agent: agent, Session: id, log: l, link: root, key: key, labels: labels}
	l.grants, l.roots = append(l.grants, g), append(l.roots, g)
	return g
}

// Offer hands a task on. With the effect deny there is no handoff to return.
func (g *Grant) Offer(to, mode, effect string, tools aat.Tools) *Handoff {
	l, now := g.log, g.log.Now.Unix()
	h := &Handoff{ID: l.ID(), To: to, Mode: mode, parent: g, labels: g.labels}
	salt, task := l.bytes(wire.SaltSize), l.bytes(64+l.rand.IntN(200))
	hash := wire.TaskHash(salt, task)
	link, err := aat.Prepare(g.link, aat.Claims{
		ID: h.ID, IssuedAt: now, ExpiresAt: g.link.Claims.ExpiresAt, Holder: jwk(l.governor), MaxDepth: 8, Tools: tools,
		Extra: claim(wire.HandoffClaim{
			Session: g.Session, To: to, Mode: mode, TaskHash: hash, ContentType: "text/plain", Deadline: now + 600,
			Labels: g.labels,
		}),
	}, g.key.Public().(ed25519.PublicKey))
	check(err)
	h.link, err = link.Sign(g.key)
	check(err)
	d := &entry.Decided{
		Stage: entry.StageOffer, Offer: h.link.Compact, Effect: effect, TaskHash: hash, Labels: g.labels,
		Decision: l.decision("decision", effect),
	}
	item := Item{IDs: []string{h.ID}}
	if effect == wire.EffectDeny {
		d.Reasons = []wire.Reason{{Code: wire.CodePolicyDenied, Message: "not in this zone", Tool: "search"}}
	} else {
		d.Granted, d.Expires, d.Deadline, d.MaxDepth = tools, g.link.Claims.ExpiresAt, now+600, 8
		item.Salt, item.Body = salt, task
	}
	h.Entry = l.Write(&entry.Entry{
		Kind: entry.KindDecided, Session: g.Session, Handoff: h.ID, From: g.Agent, To: to, Grant: g.ID, Decided: d,
	}, item)
	if mode == wire.ModeDelegate && effect != wire.EffectDeny {
		g.open++
	}
	if effect == wire.EffectAllow {
		l.handoffs, l.waiting = append(l.handoffs, h), append(l.waiting, h)
	}
	return h
}

// Approve lets a held offer go.
func (h *Handoff) Approve() {
	l := h.parent.log
	l.Write(&entry.Entry{
		Kind: entry.KindApproved, Session: h.parent.Session, Handoff: h.ID, From: h.parent.Agent, To: h.To,
		Grant: h.parent.ID,
		Approved: &entry.Approved{Of: h.Entry, By: "bob", Approve: true, Decided: &entry.Decided{
			Stage: entry.StageOffer, Effect: wire.EffectAllow, Granted: h.link.Claims.Tools, Labels: h.labels,
			Expires: h.link.Claims.ExpiresAt, Deadline: l.Now.Unix() + 60, MaxDepth: 8,
			Decision: l.decision("decision", wire.EffectAllow),
		}},
	}, Item{})
	l.handoffs, l.waiting = append(l.handoffs, h), append(l.waiting, h)
}

// Claim makes the credential for an admitted handoff. With over it takes the task over from the process that has it.
func (h *Handoff) Claim(over *Grant) *Grant {
	l, now, id := h.parent.log, h.parent.log.Now.Unix(), h.parent.log.ID()
	g := &Grant{ID: id, Agent: h.To, Session: h.parent.Session, log: l, key: l.key(), labels: h.labels, handoff: h}
	decision := l.decision("decision", wire.EffectAllow)
	var err error
	g.link, err = aat.Prepare(h.link, aat.Claims{
		ID: id, IssuedAt: now, ExpiresAt: h.link.Claims.ExpiresAt, Holder: jwk(g.key), MaxDepth: 8,
		Tools: h.link.Claims.Tools, Extra: claim(wire.HandoffClaim{
			ID: h.ID, Session: g.Session, From: h.parent.Agent, To: h.To, Labels: h.labels,
			Decision: &wire.EntryRef{Log: l.Name, Index: h.Entry}, Bundle: decision.Bundle,
		}),
	}, l.governor.Public().(ed25519.PublicKey))
	check(err)
	c := &entry.Claimed{
		Payload: g.link.Payload, Governor: jwk(l.governor).Thumbprint(), Labels: h.labels, Decision: *decision,
	}
	if over != nil {
		c.Supersedes = over.ID
		l.dropBelow(over)
	}
	if h.Mode == wire.ModeTransfer && over == nil {
		c.Ends = h.parent.ID
		l.drop(h.parent)
	}
	l.Write(&entry.Entry{
		Kind: entry.KindClaimed, Session: g.Session, Handoff: h.ID, From: h.parent.Agent, To: h.To, Grant: id, Claimed: c,
	}, Item{IDs: []string{id}})
	l.grants, l.claimed = append(l.grants, g), append(l.claimed, g)
	l.taken(h)
	return g
}

// Answer gives the result of the task that the grant was claimed for.
func (g *Grant) Answer(status string) { g.AnswerAs(g.handoff.ID, status) }

// AnswerAs is [Grant.Answer] with a statement that is about another handoff.
func (g *Grant) AnswerAs(handoff, status string) {
	l, h := g.log, g.handoff
	salt, body := l.bytes(wire.SaltSize), l.bytes(100)
	said := wire.ResultToken{
		ID: l.ID(), IssuedAt: l.Now.Unix(), Audience: "https://governor.example", Handoff: handoff, Status: status,
		BodyHash: wire.TaskHash(salt, body), ContentType: "text/plain",
	}
	token, err := jws.SignJSON(wire.TypeResult, said, g.key)
	check(err)
	at := h
	for at != nil && at.Mode == wire.ModeTransfer {
		at = at.parent.handoff
	}
	r := &entry.Result{
		Token: token, Status: status, Effect: wire.EffectAllow, Labels: g.labels, BodyHash: said.BodyHash,
		Decision: l.decision("result", wire.EffectAllow),
	}
	if at != nil {
		r.Answers = at.ID
		at.parent.open--
	}
	l.Write(&entry.Entry{
		Kind: entry.KindResult, Session: g.Session, Handoff: h.ID, From: g.Agent, To: h.parent.Agent, Grant: g.ID, Result: r,
	}, Item{IDs: []string{said.ID}, Salt: salt, Body: body})
	l.dropBelow(g)
	for h.Mode == wire.ModeTransfer && h.parent.handoff != nil { // nor does anything beside the transfers that led here live on
		l.dropBelow(h.parent)
		h = h.parent.handoff
	}
}

// Revoke withdraws the grant and everything below it.
func (g *Grant) Revoke() {
	ids := []string{}
	for _, other := range g.log.grants {
		if other.under(g) {
			ids = append(ids, other.ID)
		}
	}
	if !slices.Contains(ids, g.ID) { // a transfer has ended it
		ids = append(ids, g.ID)
	}
	e := &entry.Entry{
		Kind: entry.KindRevoked, Session: g.Session, Grant: g.ID,
		Revoked: &entry.Revoked{By: g.log.Operator, Reason: "suspicious", Grants: ids},
	}
	if g.handoff != nil {
		e.Handoff, e.From, e.To = g.handoff.ID, g.handoff.parent.Agent, g.Agent
	}
	g.log.Write(e, Item{})
	g.log.dropBelow(g)
}

// Withdraw ends what an agent holds and was handed, and withdraws it. Held offers to it are for the caller.
func (l *Log) Withdraw(agent string) {
	for _, g := range slices.Clone(l.roots) {
		if g.Agent == agent {
			g.Close()
		}
	}
	for _, g := range slices.Clone(l.claimed) {
		if g.Agent == agent && slices.Contains(l.claimed, g) {
			g.Revoke()
		}
	}
	for _, h := range slices.Clone(l.waiting) {
		if h.To == agent {
			l.Write(&entry.Entry{
				Kind: entry.KindRevoked, Session: h.parent.Session, Handoff: h.ID, From: h.parent.Agent, To: agent,
				Revoked: &entry.Revoked{By: l.Operator, Reason: "withdrawn", Grants: []string{}},
			}, Item{})
			l.taken(h)
		}
	}
	l.identity(agent, entry.Withdrawn)
	l.withdrawn[agent] = true
}

// Restore lets an agent in again.
func (l *Log) Restore(agent string) {
	l.identity(agent, entry.Restored)
	delete(l.withdrawn, agent)
}

// Rotate replaces a key of the governor or the issuer, as entry.Rotated.Of says.
func (l *Log) Rotate(of string) {
	_, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		panic(err)
	}
	l.Write(&entry.Entry{Kind: entry.KindRotated, Rotated: &entry.Rotated{
		Of: of, JWK: jwk(key), From: 1_800_000_000, Until: 1_800_000_600, By: l.Operator, Reason: "every quarter",
	}}, Item{})
}

func (l *Log) identity(agent, effect string) {
	l.Write(&entry.Entry{
		Kind: entry.KindIdentity, Identity: &entry.Identity{Name: agent, Effect: effect, By: l.Operator, Reason: "its key was published"},
	}, Item{})
}

// Close ends the session of the grant.
func (g *Grant) Close() {
	l := g.log
	l.Write(&entry.Entry{
		Kind: entry.KindClosed, Session: g.Session, Closed: &entry.Closed{By: g.Agent, Reason: "closed"},
	}, Item{})
	keep := l.grants[:0:0]
	for _, other := range l.grants {
		if other.Session != g.Session {
			keep = append(keep, other)
		}
	}
	l.grants = keep
	gone := func(other *Grant) bool { return other.Session == g.Session }
	l.waiting = slices.DeleteFunc(l.waiting, func(h *Handoff) bool { return gone(h.parent) })
	l.claimed, l.roots = slices.DeleteFunc(l.claimed, gone), slices.DeleteFunc(l.roots, gone)
	l.dropHandoffs()
}

// under tells whether g is over, or was handed on from it.
func (g *Grant) under(over *Grant) bool {
	for at := g; at != nil; {
		if at == over {
			return true
		}
		if at.handoff == nil {
			return false
		}
		at = at.handoff.parent
	}
	return false
}

func (l *Log) drop(g *Grant) {
	for i, other := range l.grants {
		if other == g {
			l.grants = append(l.grants[:i:i], l.grants[i+1:]...)
			break
		}
	}
	l.dropHandoffs()
}

func (l *Log) dropBelow(g *Grant) {
	l.claimed = slices.DeleteFunc(l.claimed, func(other *Grant) bool { return other.under(g) })
	l.waiting = slices.DeleteFunc(l.waiting, func(h *Handoff) bool { return h.parent.under(g) })
	keep := l.grants[:0:0]
	for _, other := range l.grants {
		if !other.under(g) {
			keep = append(keep, other)
		}
	}
	l.grants = keep
	l.dropHandoffs()
}

// taken forgets a handoff that waits no more.
func (l *Log) taken(h *Handoff) {
	is := func(other *Handoff) bool { return other == h }
	l.handoffs, l.waiting = slices.DeleteFunc(l.handoffs, is), slices.DeleteFunc(l.waiting, is)
}

// dropHandoffs forgets the handoffs whose grant is not live any more.
func (l *Log) dropHandoffs() {
	live := map[*Grant]bool{}
	for _, g := range l.grants {
		live[g] = true
	}
	keep := l.handoffs[:0:0]
	for _, h := range l.handoffs {
		if live[h.parent] {
			keep = append(keep, h)
		}
	}
	l.handoffs = keep
}

// Tools are what [Log.Random] hands on.
var Tools = aat.Tools{
	"search": {"query": aat.Wildcard(), "limit": aat.Range(aat.AtLeast("1"), aat.AtMost("100"))},
	"read":   {"path": aat.OneOf("/a", "/b")},
}

var agents = []string{"planner", "coder", "tester", "writer"}

// Random writes n entries as they could come: sessions, offers with every outcome, claims, take-overs, results,
// revocations, closings, another bundle.
func (l *Log) Random(n int) {
	for end := len(l.Items) + n; len(l.Items) < end; {
		var g *Grant
		if len(l.grants) > 0 {
			g = l.grants[l.rand.IntN(len(l.grants))]
		}
		switch pick := l.rand.IntN(20); {
		case g == nil || pick == 0:
			if opener := agents[l.rand.IntN(len(agents))]; !l.withdrawn[opener] {
				l.Open(opener, Tools, "internal")
			}
		case pick < 9 && g.link.Claims.Depth < 6:
			l.randomOffer(g)
		case pick < 14 && len(l.handoffs) > 0:
			l.handoffs[l.rand.IntN(len(l.handoffs))].Claim(nil)
		case pick < 15 && g.handoff != nil:
			if h := g.handoff; h.Mode == wire.ModeDelegate && l.alive(h.parent) {
				h.Claim(g)
			}
		case pick < 18 && g.handoff != nil:
			g.Answer([]string{wire.StatusCompleted, wire.StatusFailed}[l.rand.IntN(2)])
		case pick == 18 && l.rand.IntN(3) == 0:
			g.Revoke()
		case pick == 19:
			switch l.rand.IntN(6) {
			case 0:
				l.Activate(fmt.Sprintf("sha256:%d", len(l.Items)))
			case 1:
				g.Close()
			case 2:
				l.Write(&entry.Entry{Kind: entry.KindQuarantined, Quarantined: &entry.Quarantined{
					Agent: "planner", Code: wire.CodeMalformed, Count: 3,
				}}, Item{})
			case 3:
				if agent := agents[l.rand.IntN(len(agents))]; l.withdrawn[agent] {
					l.Restore(agent)
				} else if len(l.withdrawn) < 2 {
					l.Withdraw(agent)
				}
			}
		}
	}
}

func (l *Log) randomOffer(g *Grant) {
	to, tools := agents[l.rand.IntN(len(agents))], g.link.Claims.Tools
	if l.rand.IntN(2) == 0 {
		tools = aat.Tools{"read": tools["read"]}
	}
	mode := wire.ModeDelegate
	if g.open == 0 && l.rand.IntN(4) == 0 {
		mode = wire.ModeTransfer
	}
	switch outcome := l.rand.IntN(6); {
	case outcome == 0 || l.withdrawn[to]:
		g.Offer(to, mode, wire.EffectDeny, tools)
	case outcome == 1:
		g.Offer(to, wire.ModeDelegate, wire.EffectHold, tools).Approve()
	default:
		g.Offer(to, mode, wire.EffectAllow, tools)
	}
}

func (l *Log) alive(g *Grant) bool {
	for _, other := range l.grants {
		if other == g {
			return true
		}
	}
	return false
}

func (l *Log) decision(entrypoint, effect string) *entry.Decision {
	input := fmt.Sprintf(`{"agent":{"id":"planner"},"entry":%d,"stage":%q}`, len(l.Items), entrypoint)
	return &entry.Decision{
		Entrypoint: entrypoint, Input: jsontext.Value(input), Bundle: l.bundle, Engine: "opa 1.22.3",
		Answer: jsontext.Value(fmt.Sprintf(`{"ceiling":null,"effect":%q,"reasons":[],"ttl":0}`, effect)),
	}
}

// ID makes a UUIDv7 of the log's time.
func (l *Log) ID() string {
	var u uuid.UUID
	copy(u[6:], l.bytes(10))
	binary.BigEndian.PutUint64(u[:8], uint64(l.Now.UnixMilli())<<16|uint64(u[6])<<8|uint64(u[7]))
	u[6], u[8] = 0x70|u[6]&0x0f, 0x80|u[8]&0x3f
	return u.String()
}

func (l *Log) key() ed25519.PrivateKey { return ed25519.NewKeyFromSeed(l.bytes(ed25519.SeedSize)) }

func (l *Log) bytes(n int) []byte {
	b := make([]byte, n)
	_, _ = reader{l.rand}.Read(b)
	return b
}

type reader struct{ *rand.Rand }

func (r reader) Read(b []byte) (int, error) {
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return len(b), nil
}

func jwk(key ed25519.PrivateKey) aat.JWK { return aat.NewJWK(key.Public().(ed25519.PublicKey)) }

func claim(c wire.HandoffClaim) map[string]jsontext.Value {
	b, err := json.Marshal(c)
	check(err)
	return map[string]jsontext.Value{profile.ClaimName: b}
}

func check(err error) {
	if err != nil {
		panic(err)
	}
}

// Checkpoint signs all entries.
func (l *Log) Checkpoint() ([]byte, error) { return l.Sign(len(l.Items)) }

// Sign signs the first n entries.
func (l *Log) Sign(n int) ([]byte, error) {
	c := entry.Checkpoint{Origin: l.Name, Size: uint64(n), Root: Root(l.Items[:n])}
	return note.Sign(&note.Note{Text: c.String()}, l.Signer)
}

// Root computes the tree hash as RFC 6962 section 2.1 defines it, without any cleverness.
func Root(items []Item) tlog.Hash {
	switch len(items) {
	case 0:
		h, _ := tlog.TreeHash(0, nil)
		return h
	case 1:
		return tlog.RecordHash(items[0].Entry)
	}
	k := 1
	for k*2 < len(items) {
		k *= 2
	}
	return tlog.NodeHash(Root(items[:k]), Root(items[k:]))
}

// Entries yields the entries.
func (l *Log) Entries(from uint64) iter.Seq2[[]byte, error] {
	return func(yield func([]byte, error) bool) {
		for _, item := range l.Items[from:] {
			if !yield(item.Entry, nil) {
				return
			}
		}
	}
}

// Body returns what is stored beside an entry.
func (l *Log) Body(index uint64) (salt, data []byte, err error) {
	if item := l.Items[index]; item.Salt != nil {
		return item.Salt, item.Body, nil
	}
	return nil, nil, fmt.Errorf("entry %d has no body", index)
}
