package handoff

import (
	"context"
	"errors"
	"sync"
	"time"
)

// errLost is why something ended that was asked on a connection.
var errLost = errors.New("the connection was lost")

// line is the connection to the governor as it comes and goes. What was asked on one connection is not answered on the
// next, so it is asked again at once.
type line struct {
	mu   sync.Mutex
	up   chan struct{} // closed while there is a connection
	life context.Context
	cut  context.CancelCauseFunc

	refusedAt time.Time     // when the server refused something
	moment    time.Duration // until it is asked again
}

func newLine() *line {
	l := &line{up: make(chan struct{})}
	l.life, l.cut = context.WithCancelCause(context.Background())
	l.cut(errLost)
	return l
}

// begin is called when there is a connection, lost when there is none any more.
func (l *line) begin() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.life.Err() != nil {
		l.life, l.cut = context.WithCancelCause(context.Background())
		close(l.up)
	}
}

func (l *line) lost() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.life.Err() == nil {
		l.cut(errLost)
		l.up = make(chan struct{})
	}
}

// refused has everything asked again in a moment, on the connection that there is. Where that is refused, too, the next
// moment is twice as long.
func (l *line) refused(now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	since := now.Sub(l.refusedAt)
	switch {
	case since < l.moment: // it will be
		return
	case since > 2*l.moment+time.Second/4:
		l.moment = firstMoment
	default:
		l.moment = min(2*l.moment, lastMoment)
	}
	l.refusedAt = now
	time.AfterFunc(l.moment, l.again)
}

const (
	firstMoment = 25 * time.Millisecond
	lastMoment  = 5 * time.Second
)

func (l *line) again() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.life.Err() == nil {
		l.cut(errLost)
		l.life, l.cut = context.WithCancelCause(context.Background())
	}
}

// wait returns when there is a connection, with a context that ends with it.
func (l *line) wait(ctx context.Context) (life context.Context, err error) {
	for {
		l.mu.Lock()
		up, life := l.up, l.life
		l.mu.Unlock()
		if life.Err() == nil {
			return life, nil
		}
		select {
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-up:
		}
	}
}

// during returns a context that ends with ctx, and with what life is of.
func during(ctx, life context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	stop := context.AfterFunc(life, func() { cancel(context.Cause(life)) })
	return ctx, func() {
		stop()
		cancel(nil)
	}
}
