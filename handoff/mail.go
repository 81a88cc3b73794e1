package handoff

import (
	"cmp"
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

	"github.com/handoff-governor/handoff-governor/handoff/wire"
)

// inboxMessage is a message from the governor.
type inboxMessage struct {
	delivery
	id, kind, from, session, contentType, status, trace string

	about   string // what it answers: the handoff, or the result that a verdict names
	entry   uint64
	verdict *wire.Verdict // of kind verdict
}

func parseInbox(msg delivery) (*inboxMessage, error) {
	h := msg.Headers()
	in := &inboxMessage{
		delivery: msg, id: h.Get(wire.HeaderID), kind: h.Get(wire.HeaderKind), from: h.Get(wire.HeaderFrom),
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
	in.about = in.id
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
		in.id, in.about = in.verdict.ID, cmp.Or(in.verdict.Result, in.verdict.ID)
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
	mu      sync.Mutex
	waiting map[string][]*exchange   // :: ID of a handoff or a result → who waits for what is about it
	held    map[string]*list.Element // :: that ID and kind → element of order
	order   list.List                // of *inboxMessage, oldest first
	bytes   int
	made    *recent // IDs of handoffs and results made here
	taken   *recent // answers that were taken: ID, kind, entry
	closed  bool
}

func newMail() *mail {
	return &mail{
		waiting: map[string][]*exchange{}, held: map[string]*list.Element{}, made: newRecent(16_384), taken: newRecent(16_384),
	}
}

// exchange is what is known of one thing that was sent.
type exchange struct {
	id string // of the handoff, or of the result: what receipts, verdicts and results about it name

	mu      sync.Mutex
	changed chan struct{} // closed at the next change
	receipt *wire.Receipt
	verdict *wire.Verdict
	result  *Result
}

func newExchange(id string) *exchange { return &exchange{id: id, changed: make(chan struct{})} }

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

func (e *exchange) take(in *inboxMessage) {
	e.change(func() {
		switch {
		case in.kind == wire.KindVerdict:
			// What the ledger holds counts for more than the refusal of a message that could not be trusted.
			if old := e.verdict; old == nil || old.Entry == nil || in.verdict.Entry != nil && *in.verdict.Entry >= *old.Entry {
				e.verdict = in.verdict
			}
		case e.result == nil:
			e.result = &Result{
				ID: in.id, From: in.from, Status: in.status, Body: in.Data(), ContentType: in.contentType,
				Traceparent: in.trace, Entry: in.entry,
			}
		}
	})
}

// open has e told what comes for it, and what came before. The returned func ends that.
func (m *mail) open(e *exchange) (done func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.made.add(e.id)
	m.waiting[e.id] = append(m.waiting[e.id], e)
	for _, kind := range []string{wire.KindVerdict, wire.KindResult} {
		if el := m.held[e.id+kind]; el != nil {
			in := el.Value.(*inboxMessage)
			e.take(in)
			m.drop(el)
			m.taken.add(in.key())
			_ = in.Ack() // lost, it comes again and is known
		}
	}
	return func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		list := m.waiting[e.id]
		i := slices.Index(list, e)
		if list = slices.Delete(list, i, i+1); len(list) > 0 {
			m.waiting[e.id] = list
		} else {
			delete(m.waiting, e.id)
		}
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
		for _, e := range m.waiting[r.ID] {
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
	waiting := m.waiting[in.about]
	for _, e := range waiting {
		e.take(in)
	}
	switch {
	case len(waiting) > 0:
		m.taken.add(in.key())
		return true, 0
	case m.taken.has(in.key()):
		return true, 0
	case now.Sub(madeAt(in.about)) > unreadFor:
		return true, 0
	case m.made.has(in.about):
		return m.hold(in)
	}
	return false, backoff(in)
}

// hold keeps the newest message of a kind for a handoff, within limits.
func (m *mail) hold(in *inboxMessage) (ack bool, delay time.Duration) {
	if el := m.held[in.about+in.kind]; el != nil {
		if el.Value.(*inboxMessage).entry > in.entry {
			return true, 0
		}
		m.drop(el)
	}
	if m.order.Len() >= maxHeld || m.bytes+len(in.Data()) > maxHeldBytes {
		return false, lastNak
	}
	m.held[in.about+in.kind] = m.order.PushBack(in)
	m.bytes += len(in.Data())
	return false, 0
}

func (m *mail) drop(el *list.Element) {
	in := m.order.Remove(el).(*inboxMessage)
	delete(m.held, in.about+in.kind)
	m.bytes -= len(in.Data())
}

// close gives back what is held.
func (m *mail) close() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.closed = true
	for el := m.order.Front(); el != nil; el = m.order.Front() {
		_ = el.Value.(*inboxMessage).Nak() // lost, it comes again later
		m.drop(el)
	}
}

func (in *inboxMessage) key() string { return in.about + in.kind + strconv.FormatUint(in.entry, 10) }

// backoff grows with each delivery, and is never quite the same for two processes.
func backoff(msg delivery) time.Duration {
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
