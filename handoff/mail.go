package handoff

import (
	"container/list"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/google/uuid"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/handoff-governor/handoff-governor/handoff/wire"
)

// inboxMessage is a message from the governor.
type inboxMessage struct {
	jetstream.Msg
	id, kind, from, session, contentType, status, trace string

	entry   uint64
	verdict *wire.Verdict // of kind verdict
}

func parseInbox(msg jetstream.Msg) (*inboxMessage, error) {
	h := msg.Headers()
	in := &inboxMessage{
		Msg: msg, id: h.Get(wire.HeaderID), kind: h.Get(wire.HeaderKind), from: h.Get(wire.HeaderFrom),
		session: h.Get(wire.HeaderSession), contentType: h.Get(wire.HeaderContentType), status: h.Get(wire.HeaderStatus),
		trace: h.Get(wire.HeaderTraceparent),
	}
	if entry := h.Get(wire.HeaderEntry); entry != "" {
		n, err := strconv.ParseUint(entry, 10, 64)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", wire.HeaderEntry, err)
		}
		in.entry = n
	}
	switch in.kind {
	case wire.KindTask, wire.KindResult:
		if in.id == "" || in.session == "" {
			return nil, fmt.Errorf("a %s without an ID or a session", in.kind)
		}
	case wire.KindVerdict:
		in.verdict = &wire.Verdict{}
		if err := json.Unmarshal(msg.Data(), in.verdict); err != nil {
			return nil, fmt.Errorf("a verdict: %w", err)
		}
		in.id = in.verdict.ID
	default:
		return nil, fmt.Errorf("unknown kind %.20q", in.kind)
	}
	return in, nil
}

// What may be kept of answers that nobody has asked for yet. They stay in the inbox until somebody does.
const (
	maxHeld      = 1024
	maxHeldBytes = 32 << 20
	unreadFor    = 48 * time.Hour // longer than any session; older answers are dropped
	firstNak     = 100 * time.Millisecond
	lastNak      = 5 * time.Second
)

// mail brings receipts, verdicts and results to the exchanges that wait for them.
//
// An answer leaves the inbox when an exchange has taken it. One that none waits for is kept here for a while, unsettled,
// if its handoff was made here; otherwise it goes back, for the process that made it.
type mail struct {
	mu       sync.Mutex
	receipts map[string][]*exchange   // :: ID of what was sent → who waits for its receipt
	answers  map[string][]*exchange   // :: handoff ID → who waits for its verdict or result
	held     map[string]*list.Element // :: handoff ID and kind → element of order
	order    list.List                // of *inboxMessage, oldest first
	bytes    int
	made     *recent // handoffs made here
	taken    *recent // answers that were taken: ID, kind, entry
	closed   bool
}

func newMail() *mail {
	return &mail{
		receipts: map[string][]*exchange{}, answers: map[string][]*exchange{}, held: map[string]*list.Element{},
		made: newRecent(16_384), taken: newRecent(16_384),
	}
}

// exchange is what is known of one thing that was sent.
type exchange struct {
	handoff string // ID that verdicts and results carry
	sent    string // ID that the receipt carries
	results bool   // whether a result is wanted; a verdict always is

	mu      sync.Mutex
	changed chan struct{} // closed at the next change
	receipt *wire.Receipt
	verdict *wire.Verdict
	result  *Result
}

func newExchange(handoff, sent string, results bool) *exchange {
	return &exchange{handoff: handoff, sent: sent, results: results, changed: make(chan struct{})}
}

// change sets something under the lock and wakes who waits.
func (e *exchange) change(set func()) {
	e.mu.Lock()
	defer e.mu.Unlock()
	set()
	close(e.changed)
	e.changed = make(chan struct{})
}

// look reads something under the lock, and returns a channel that is closed when it may have changed.
func (e *exchange) look(read func()) <-chan struct{} {
	e.mu.Lock()
	defer e.mu.Unlock()
	read()
	return e.changed
}

// take says whether the answer was for this exchange.
func (e *exchange) take(in *inboxMessage) bool {
	switch {
	case in.kind == wire.KindVerdict:
		e.change(func() {
			if e.verdict == nil || in.verdict.Entry == nil || e.verdict.Entry == nil || *in.verdict.Entry >= *e.verdict.Entry {
				e.verdict = in.verdict
			}
		})
		return true
	case in.kind == wire.KindResult && e.results:
		e.change(func() {
			if e.result == nil {
				e.result = &Result{
					ID: in.id, From: in.from, Status: in.status, Body: in.Data(), ContentType: in.contentType,
					Traceparent: in.trace, Entry: in.entry,
				}
			}
		})
		return true
	}
	return false
}

// open has e told what comes for it, and what came before. The returned func ends that.
func (m *mail) open(e *exchange) (done func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.made.add(e.handoff)
	m.answers[e.handoff] = append(m.answers[e.handoff], e)
	if e.sent != "" {
		m.receipts[e.sent] = append(m.receipts[e.sent], e)
	}
	for _, kind := range []string{wire.KindVerdict, wire.KindResult} {
		if el := m.held[e.handoff+kind]; el != nil {
			in := el.Value.(*inboxMessage)
			if e.take(in) {
				m.drop(el)
				m.taken.add(in.key())
				in.Ack() // lost, it comes again and is known
			}
		}
	}
	return func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		remove(m.answers, e.handoff, e)
		remove(m.receipts, e.sent, e)
	}
}

func remove(waiting map[string][]*exchange, id string, e *exchange) {
	list := waiting[id]
	if i := slices.Index(list, e); i >= 0 {
		list = slices.Delete(slices.Clone(list), i, i+1)
	}
	if len(list) == 0 {
		delete(waiting, id)
	} else {
		waiting[id] = list
	}
}

// receipt handles a message on wire.SubjectReceipt.
func (m *mail) receipt(msg *nats.Msg) {
	var receipts wire.Receipts
	if json.Unmarshal(msg.Data, &receipts) != nil {
		return // what was sent is sent again, and receipted again
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, r := range receipts.Entries {
		for _, e := range m.receipts[r.ID] {
			e.change(func() { e.receipt = &r })
		}
	}
}

// deliver gives an answer to the exchanges that wait for it. Otherwise the message is kept, or goes back: then delay
// says for how long.
func (m *mail) deliver(in *inboxMessage, now time.Time) (ack bool, delay time.Duration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return false, firstNak
	}
	for _, e := range m.answers[in.id] {
		ack = e.take(in) || ack
	}
	switch {
	case ack:
		m.taken.add(in.key())
		return true, 0
	case m.taken.has(in.key()):
		return true, 0
	case now.Sub(madeAt(in.id)) > unreadFor:
		return true, 0
	case m.made.has(in.id):
		return m.hold(in)
	}
	return false, backoff(in.Msg)
}

// hold keeps the newest message of a kind for a handoff, within limits.
func (m *mail) hold(in *inboxMessage) (ack bool, delay time.Duration) {
	if el := m.held[in.id+in.kind]; el != nil {
		if el.Value.(*inboxMessage).entry > in.entry {
			return true, 0
		}
		m.drop(el)
	}
	if m.order.Len() >= maxHeld || m.bytes+len(in.Data()) > maxHeldBytes {
		return false, lastNak
	}
	m.held[in.id+in.kind] = m.order.PushBack(in)
	m.bytes += len(in.Data())
	return false, 0
}

func (m *mail) drop(el *list.Element) {
	in := m.order.Remove(el).(*inboxMessage)
	delete(m.held, in.id+in.kind)
	m.bytes -= len(in.Data())
}

// close gives back what is held.
func (m *mail) close() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.closed = true
	for el := m.order.Front(); el != nil; el = m.order.Front() {
		el.Value.(*inboxMessage).Nak()
		m.drop(el)
	}
}

func (in *inboxMessage) key() string { return in.id + in.kind + strconv.FormatUint(in.entry, 10) }

// backoff grows with each delivery, and is never quite the same for two processes.
func backoff(msg jetstream.Msg) time.Duration {
	n := uint64(1)
	if meta, err := msg.Metadata(); err == nil {
		n = meta.NumDelivered
	}
	d := min(lastNak, firstNak<<min(n, 10))
	return d/2 + rand.N(d/2)
}

// madeAt is the time in a UUIDv7; the zero time where id is none.
func madeAt(id string) time.Time {
	u, err := uuid.Parse(id)
	if err != nil || u.Version() != 7 {
		return time.Time{}
	}
	var ms int64
	for _, b := range u[:6] {
		ms = ms<<8 | int64(b)
	}
	return time.UnixMilli(ms)
}

// newID returns a UUIDv7 whose time is now.
func newID() (string, error) {
	u, err := uuid.NewV7()
	return u.String(), err
}

// recent is a set that forgets its oldest member when it is full.
type recent struct {
	ring []string
	next int
	set  map[string]struct{}
}

func newRecent(size int) *recent {
	return &recent{ring: make([]string, size), set: map[string]struct{}{}}
}

func (r *recent) has(s string) bool {
	_, ok := r.set[s]
	return ok
}

func (r *recent) add(s string) {
	if r.has(s) {
		return
	}
	delete(r.set, r.ring[r.next])
	r.ring[r.next] = s
	r.set[s] = struct{}{}
	r.next = (r.next + 1) % len(r.ring)
}
