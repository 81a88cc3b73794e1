package torture

import (
	"bufio"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"github.com/go-json-experiment/json"

	"github.com/handoff-governor/handoff-governor/governor/failpoint"
)

// This file is the side of the governor that is tortured: a daemon like any other, but for the orders that it takes on its
// standard input. Each is a line of JSON, and so is what it says on its standard output.

// order is what the torturer has the daemon do.
type order struct {
	Clock string `json:"clock,omitempty"` // by how much its clock jumps, as in -90s
	Arm   string `json:"arm,omitempty"`   // the failpoint at which it ends
	// Measure has it tell what it uses, garbage apart.
	Measure bool `json:"measure,omitempty"`
}

// Report is what the daemon says: once when it serves, then after each order.
type Report struct {
	URL     string            `json:"url,omitempty"`
	Sockets map[string]string `json:"sockets,omitempty"` // :: path of a SPIFFE ID → address of its Workload API
	Error   string            `json:"error,omitempty"`

	Heap       uint64 `json:"heap,omitempty"` // bytes
	Goroutines int    `json:"goroutines,omitempty"`
}

// Clock jumps.
type Clock struct{ ahead atomic.Int64 }

// Now is the time by this clock.
func (c *Clock) Now() time.Time { return time.Now().Add(time.Duration(c.ahead.Load())) }

// Orders are taken from a torturer.
type Orders struct {
	Clock Clock
	in    io.Reader
	mu    sync.Mutex
	out   io.Writer
}

// NewOrders takes orders from in, and answers on out. The clock is ahead from the start.
func NewOrders(in io.Reader, out io.Writer, ahead time.Duration) *Orders {
	o := &Orders{in: in, out: out}
	o.Clock.ahead.Store(int64(ahead))
	return o
}

// Say tells the torturer something.
func (o *Orders) Say(r Report) error {
	line, err := json.Marshal(r)
	if err != nil {
		return err
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	_, err = o.out.Write(append(line, '\n'))
	return err
}

// Obey returns when there are no more orders: the torturer is gone.
func (o *Orders) Obey() error {
	lines := bufio.NewScanner(o.in)
	for lines.Scan() {
		said, err := o.obey(lines.Bytes())
		if err != nil {
			said.Error = err.Error()
		}
		if err := o.Say(said); err != nil {
			return err
		}
	}
	return lines.Err()
}

func (o *Orders) obey(line []byte) (said Report, err error) {
	var what order
	if err := json.Unmarshal(line, &what, json.RejectUnknownMembers(true)); err != nil {
		return said, fmt.Errorf("an order cannot be read: %w", err)
	}
	if what.Clock != "" {
		by, err := time.ParseDuration(what.Clock)
		if err != nil {
			return said, err
		}
		o.Clock.ahead.Add(int64(by))
	}
	if what.Measure {
		m := used()
		said.Heap, said.Goroutines = m.heap, m.goroutines
	}
	if what.Arm != "" {
		return said, failpoint.Arm(what.Arm)
	}
	return said, nil
}
