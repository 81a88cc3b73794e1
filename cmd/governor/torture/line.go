package torture

import (
	"io"
	"net"
	"sync"
	"time"
)

// line is what agents reach the governor's NATS server by, and can be cut.
type line struct {
	listener net.Listener

	mu    sync.Mutex
	to    string // host:port
	conns map[net.Conn]struct{}
	until time.Time // it is cut
}

func newLine() (*line, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	l := &line{listener: listener, conns: map[net.Conn]struct{}{}}
	go l.accept()
	return l, nil
}

func (l *line) accept() {
	for {
		from, err := l.listener.Accept()
		if err != nil {
			return
		}
		go l.join(from)
	}
}

// join carries what two ends say until either hangs up.
func (l *line) join(from net.Conn) {
	defer from.Close()
	l.mu.Lock()
	address := l.to
	l.mu.Unlock()
	to, err := net.Dial("tcp", address)
	if err != nil {
		return // the governor is down
	}
	defer to.Close()
	if !l.enter(from, to) {
		return
	}
	defer l.leave(from, to)
	done := make(chan struct{}, 2)
	for _, pair := range [][2]net.Conn{{from, to}, {to, from}} {
		go func() {
			_, _ = io.Copy(pair[0], pair[1])
			done <- struct{}{}
		}()
	}
	<-done
	from.Close()
	to.Close()
	<-done
}

// leadTo says where the server is, from now on.
func (l *line) leadTo(address string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.to = address
}

func (l *line) enter(conns ...net.Conn) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if time.Now().Before(l.until) {
		return false
	}
	for _, c := range conns {
		l.conns[c] = struct{}{}
	}
	return true
}

func (l *line) leave(conns ...net.Conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, c := range conns {
		delete(l.conns, c)
	}
}

// cut ends all connections, and lets none be made for a while.
func (l *line) cut(lasts time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.until = time.Now().Add(lasts)
	for c := range l.conns {
		c.Close()
	}
}

func (l *line) close() {
	l.listener.Close()
	l.cut(0)
}
