package handoff

import (
	"net"
	"sync"
	"sync/atomic"
)

// sockets dials for NATS, and knows the connection of the moment. The callbacks of nats.Conn are called one after another, and
// late: when "reconnected" is, that connection may be gone and the next one there, and "disconnected", which then follows, is
// not of the connection that there is. A connection that is closed, on the other hand, is closed at once.
type sockets struct {
	dialer net.Dialer
	lost   func() // called when the connection of the moment is gone

	last atomic.Pointer[socket]
}

type socket struct {
	net.Conn
	of     *sockets
	once   sync.Once
	closed atomic.Bool
}

// Dial makes the next connection.
func (s *sockets) Dial(network, address string) (net.Conn, error) {
	conn, err := s.dialer.Dial(network, address)
	if err != nil {
		return nil, err
	}
	next := &socket{Conn: conn, of: s}
	s.last.Store(next)
	s.lost()
	return next, nil
}

func (s *socket) Close() error {
	s.once.Do(func() {
		s.closed.Store(true)
		if s.of.last.Load() == s {
			s.of.lost()
		}
	})
	return s.Conn.Close()
}

// use calls begin when there is a connection that connected says is good, and lost after it if that one is gone meanwhile.
func (s *sockets) use(connected func() bool, begin func()) {
	now := s.last.Load()
	if !connected() { // it is told of when it is
		return
	}
	begin()
	if now.closed.Load() || s.last.Load() != now {
		s.lost()
	}
}
