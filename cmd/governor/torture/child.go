package torture

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"time"

	"github.com/go-json-experiment/json"
)

// child is a governor in a process of its own.
type child struct {
	Report // what it said when it was ready

	cmd    *exec.Cmd
	orders io.WriteCloser
	said   chan Report
	log    *tail
	gone   chan struct{} // closed when the process has ended
	err    error         // how, once gone
}

const readyWithin = time.Minute

// start runs program with args, and returns when it serves. What it logs goes to log, too.
func start(ctx context.Context, log io.Writer, program string, args ...string) (*child, error) {
	c := &child{cmd: exec.Command(program, args...), said: make(chan Report, 1), log: &tail{}, gone: make(chan struct{})}
	c.cmd.Stderr = io.MultiWriter(log, c.log)
	// Signals of the terminal are the torturer's.
	c.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	var err error
	if c.orders, err = c.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := c.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := c.cmd.Start(); err != nil {
		return nil, err
	}
	go c.listen(out)
	timer := time.NewTimer(readyWithin)
	defer timer.Stop()
	select {
	case c.Report = <-c.said:
		return c, nil
	case <-c.gone:
		return nil, fmt.Errorf("%w: %w\n%s", errNotStarted, c.err, c.log)
	case <-timer.C:
		err = fmt.Errorf("%w within %s\n%s", errNotStarted, readyWithin, c.log)
	case <-ctx.Done():
		err = context.Cause(ctx)
	}
	c.kill()
	return nil, err
}

var errNotStarted = errors.New("the governor did not start")

// listen hands over what the daemon says, until it ends.
func (c *child) listen(out io.Reader) {
	defer close(c.gone)
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		var r Report
		if json.Unmarshal(lines.Bytes(), &r) == nil {
			c.said <- r
		}
	}
	c.err = c.cmd.Wait()
	if c.err == nil {
		c.err = errors.New("it ended by itself")
	}
}

// order has the daemon do something, and returns when it has, or is gone.
func (c *child) order(what order) error {
	_, err := c.ask(what)
	return err
}

func (c *child) ask(what order) (Report, error) {
	line, err := json.Marshal(what)
	if err != nil {
		return Report{}, err
	}
	if _, err := c.orders.Write(append(line, '\n')); err != nil {
		return Report{}, err
	}
	select {
	case r := <-c.said:
		if r.Error != "" {
			return r, errors.New(r.Error)
		}
		return r, nil
	case <-c.gone:
		return Report{}, c.err
	}
}

// signal sends it a signal.
func (c *child) signal(s os.Signal) error { return c.cmd.Process.Signal(s) }

// kill ends it at once, as kill -9 does, and returns when it is gone.
func (c *child) kill() {
	_ = c.cmd.Process.Kill() // it may be gone already
	<-c.gone
}

// stop ends it in order.
func (c *child) stop(within time.Duration) error {
	if err := c.signal(syscall.SIGTERM); err != nil {
		return err
	}
	timer := time.NewTimer(within)
	defer timer.Stop()
	select {
	case <-c.gone:
	case <-timer.C:
		c.kill()
		return fmt.Errorf("it did not stop within %s\n%s", within, c.log)
	}
	if code := c.cmd.ProcessState.ExitCode(); code != 0 {
		return fmt.Errorf("it stopped with %d: %s", code, c.log)
	}
	return nil
}

// tail keeps the last of what is written to it.
type tail struct {
	mu   sync.Mutex
	text []byte
}

const tailed = 16 << 10

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.text = append(t.text, p...)
	if over := len(t.text) - tailed; over > 0 {
		t.text = append(t.text[:0], t.text[over:]...)
	}
	return len(p), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return string(bytes.Clone(t.text))
}
