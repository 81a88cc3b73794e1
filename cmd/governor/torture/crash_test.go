package torture

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/workloadapi"

	"github.com/handoff-governor/handoff-governor/handoff"
	"github.com/handoff-governor/handoff-governor/handoff/aat"
	"github.com/handoff-governor/handoff-governor/handoff/wire"
	"github.com/handoff-governor/handoff-governor/policies"
	"github.com/handoff-governor/handoff-governor/streams/clustertest"
)

// program is the governor with failpoints.
var program = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "governor")
	if err != nil {
		return "", err
	}
	built := filepath.Join(dir, "governor")
	out, err := exec.Command("go", "build", "-tags", "failpoints", "-o", built, "..").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%w: %s", err, out)
	}
	return built, nil
})

func TestMain(m *testing.M) {
	code := m.Run()
	if built, err := program(); err == nil {
		os.RemoveAll(filepath.Dir(built))
	}
	os.Exit(code)
}

const crashPolicy = `package handoff

session := {"effect": "allow"}

default decision := {"effect": "allow"}

decision := {"effect": "hold", "reasons": [{"code": "ask", "message": "ask"}]} if {
	"ask" in input.labels
	count(input.approvals) < 1
}

decision := {"effect": "deny", "reasons": [{"code": "no", "message": "no"}]} if "no" in input.labels

default result := {"effect": "allow"}

result := {"effect": "hold", "reasons": [{"code": "ask", "message": "ask"}]} if {
	"ask_result" in input.labels
	count(input.approvals) < 1
}
`

// victim is a governor that is killed and started again, and the clients that outlive it.
type victim struct {
	*testing.T
	program, dir, policy, listen string
	ahead                        atomic.Int64 // its clock, and that of its clients
	governor                     *child
	planner, writer, reviewer    *handoff.Client
	operator                     *handoff.Operator
	sources                      map[string]*workloadapi.X509Source
}

var victims = []string{"/agent/planner", "/agent/writer", "/agent/reviewer", "/operator/local"}

func newVictim(t *testing.T) *victim {
	t.Helper()
	built, err := program()
	if err != nil {
		t.Fatal(err)
	}
	v := &victim{
		T: t, program: built, dir: filepath.Join(shortDir(t), "data"), policy: t.TempDir(), listen: clustertest.Ports(t, 1)[0],
		sources: map[string]*workloadapi.X509Source{},
	}
	if err := os.WriteFile(filepath.Join(v.policy, "policy.rego"), []byte(crashPolicy), 0o600); err != nil {
		t.Fatal(err)
	}
	v.start()
	t.Cleanup(func() { v.governor.kill() })
	for _, path := range victims {
		source, err := workloadapi.NewX509Source(v.within(), workloadapi.WithClientOptions(workloadapi.WithAddr(v.governor.Sockets[path])))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { source.Close() })
		v.sources[path] = source
	}
	v.planner, v.writer, v.reviewer = v.client("/agent/planner"), v.client("/agent/writer"), v.client("/agent/reviewer")
	if v.operator, err = handoff.ConnectOperator(v.within(), v.config("/operator/local")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { v.operator.Close() })
	return v
}

// shortDir is a directory whose path is short enough for sockets in it.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "hg")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func (v *victim) config(path string) handoff.Config {
	return handoff.Config{URL: v.governor.URL, Source: v.sources[path], Now: v.now}
}

func (v *victim) client(path string) *handoff.Client {
	v.Helper()
	c, err := handoff.Connect(v.within(), v.config(path))
	if err != nil {
		v.Fatal(err)
	}
	v.Cleanup(func() { c.Close() })
	return c
}

func (v *victim) now() time.Time { return time.Now().Add(time.Duration(v.ahead.Load())) }

// within is long enough for anything but a hang, with a start of the governor in between.
func (v *victim) within() context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	v.Cleanup(cancel)
	return ctx
}

func (v *victim) start() {
	v.Helper()
	c, err := start(v.within(), io.Discard, v.program, v.args()...)
	if err != nil {
		v.Fatal(err)
	}
	v.governor = c
}

func (v *victim) args() []string {
	args := []string{
		"torture-daemon", "--data", v.dir, "--listen", v.listen, "--policy", v.policy, "--clock", time.Duration(v.ahead.Load()).String(),
	}
	for _, path := range victims {
		args = append(args, "--identity", path)
	}
	return args
}

// jump has the clock jump, everybody's.
func (v *victim) jump(by time.Duration) {
	v.Helper()
	v.ahead.Add(int64(by))
	if err := v.governor.order(order{Clock: by.String()}); err != nil {
		v.Fatal(err)
	}
}

// dies has the governor end at a failpoint while something is done, and start again. What is done must be done all the same.
func (v *victim) dies(point string, do func() error) {
	v.Helper()
	if err := v.dying(point, do); err != nil {
		v.Fatalf("with a crash at %s: %v", point, err)
	}
}

func (v *victim) dying(point string, do func() error) error {
	v.Helper()
	if err := v.governor.order(order{Arm: point}); err != nil {
		v.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- do() }()
	select {
	case <-v.governor.gone:
	case err := <-done:
		select {
		case <-v.governor.gone:
			done <- err
		case <-time.After(10 * time.Second):
			v.Fatalf("%s was not reached: %v", point, err)
		}
	case <-time.After(30 * time.Second):
		v.Fatalf("%s was not reached", point)
	}
	v.start()
	return <-done
}

func (v *victim) session() *handoff.Session {
	v.Helper()
	s, err := v.planner.OpenSession(v.within(), handoff.SessionRequest{Objective: "test", Tools: aat.Tools{"search": {}}, MaxHops: 4})
	if err != nil {
		v.Fatal(err)
	}
	return s
}

func (v *victim) offer(from interface {
	Offer(context.Context, string, []byte, ...handoff.OfferOption) (*handoff.Handoff, error)
}, to *handoff.Client, options ...handoff.OfferOption) *handoff.Handoff {
	v.Helper()
	h, err := from.Offer(v.within(), to.Name(), []byte("work"), append(options, handoff.Tools(aat.Tools{"search": {}}))...)
	if err != nil {
		v.Fatal(err)
	}
	return h
}

func (v *victim) receive(c *handoff.Client) *handoff.Task {
	v.Helper()
	task, err := c.Receive(v.within())
	if err != nil {
		v.Fatal(err)
	}
	return task
}

func (v *victim) finish(h *handoff.Handoff, task *handoff.Task) {
	v.Helper()
	if err := task.Complete(v.within(), []byte("done")); err != nil {
		v.Fatal(err)
	}
	v.result(h)
}

func (v *victim) result(h *handoff.Handoff) {
	v.Helper()
	r, err := h.Result(v.within())
	if err != nil {
		v.Fatal(err)
	}
	if string(r.Body) != "done" {
		v.Errorf("the result is %q", r.Body)
	}
}

// steps are those of every batch.
var steps = []string{"ordered", "recorded", "revoked", "delivered", "receipted", "settled"}

// A governor that dies at any step of anything goes on as if it had not: what was asked is decided once, and comes to its end.
func TestCrash(t *testing.T) {
	for kind, each := range map[string]func(v *victim, point string){
		"session_opened": func(v *victim, point string) {
			v.dies(point, func() error {
				_, err := v.planner.OpenSession(v.within(), handoff.SessionRequest{Objective: "test", Tools: aat.Tools{"search": {}}})
				return err
			})
		},
		"offer_allow": func(v *victim, point string) {
			s := v.session()
			var h *handoff.Handoff
			v.dies(point, func() (err error) {
				h, err = s.Offer(v.within(), v.writer.Name(), []byte("work"))
				return err
			})
			v.finish(h, v.receive(v.writer))
		},
		"offer_deny": func(v *victim, point string) {
			s := v.session()
			v.dies(point, func() error {
				_, err := s.Offer(v.within(), v.writer.Name(), []byte("work"), handoff.Labels("no"), handoff.AwaitVerdict())
				if !errors.Is(err, &wire.Error{Code: "no"}) {
					return fmt.Errorf("the offer was not denied: %w", err)
				}
				return nil
			})
		},
		"offer_hold": func(v *victim, point string) {
			s := v.session()
			var h *handoff.Handoff
			v.dies(point, func() (err error) {
				h, err = s.Offer(v.within(), v.writer.Name(), []byte("work"), handoff.Labels("ask"))
				return err
			})
			if err := v.approve(v.held(h)); err != nil {
				v.Fatal(err)
			}
			v.finish(h, v.receive(v.writer))
		},
		"approved": func(v *victim, point string) {
			h := v.offer(v.session(), v.writer, handoff.Labels("ask"))
			held := v.held(h)
			v.dies(point, func() error { return v.approve(held) })
			v.finish(h, v.receive(v.writer))
		},
		"claimed": func(v *victim, point string) {
			h := v.offer(v.session(), v.writer)
			var task *handoff.Task
			v.dies(point, func() (err error) {
				task, err = v.writer.Receive(v.within())
				return err
			})
			v.finish(h, task)
		},
		"taken_over": func(v *victim, point string) {
			h := v.offer(v.session(), v.writer)
			first := v.client("/agent/writer")
			lost := v.receive(first)
			first.Close()
			v.jump(wire.Lease*time.Second + time.Second)
			var task *handoff.Task
			claim := func() (err error) {
				task, err = v.writer.Claim(v.within(), lost.Session(), lost.ID)
				return err
			}
			err := v.dying(point, claim)
			if errors.Is(err, &wire.Error{Code: wire.CodeAlreadyClaimed}) { // a start gives every process its whole lease
				v.jump(wire.Lease*time.Second + time.Second)
				err = claim()
			}
			if err != nil {
				v.Fatal(err)
			}
			v.finish(h, task)
		},
		"transferred": func(v *victim, point string) {
			h := v.offer(v.session(), v.writer)
			v.offer(v.receive(v.writer), v.reviewer, handoff.Transfer())
			var task *handoff.Task
			v.dies(point, func() (err error) {
				task, err = v.reviewer.Receive(v.within())
				return err
			})
			v.finish(h, task)
		},
		"result_allow": func(v *victim, point string) {
			h := v.offer(v.session(), v.writer)
			task := v.receive(v.writer)
			v.dies(point, func() error { return task.Complete(v.within(), []byte("done")) })
			v.result(h)
		},
		"result_hold": func(v *victim, point string) {
			h := v.offer(v.session(), v.writer)
			task := v.receive(v.writer)
			var held *handoff.Denied
			v.dies(point, func() error {
				err := task.Complete(v.within(), []byte("done"), handoff.Labels("ask_result"))
				if !errors.As(err, &held) || held.Effect != wire.EffectHold || held.Entry == nil {
					return fmt.Errorf("the result was not held: %w", err)
				}
				return nil
			})
			if err := v.approve(*held.Entry); err != nil {
				v.Fatal(err)
			}
			v.result(h)
		},
		"revoked": func(v *victim, point string) {
			h := v.offer(v.session(), v.writer)
			task := v.receive(v.writer)
			v.dies(point, func() error {
				_, err := v.operator.Revoke(v.within(), task.ID, "test")
				return err
			})
			v.denied(h)
		},
		"session_closed": func(v *victim, point string) {
			s := v.session()
			h := v.offer(s, v.writer)
			v.dies(point, func() error { return s.Close(v.within(), "done with it") })
			v.denied(h)
		},
		"bundle_activated": func(v *victim, point string) {
			h := v.offer(v.session(), v.writer, handoff.Labels("later"))
			task := v.receive(v.writer)
			text := crashPolicy + "\n# " + point + "\n"
			if err := os.WriteFile(filepath.Join(v.policy, "policy.rego"), []byte(text), 0o600); err != nil {
				v.Fatal(err)
			}
			bundle, err := policies.Load(os.DirFS(v.policy))
			if err != nil {
				v.Fatal(err)
			}
			v.dies(point, func() error {
				_, err := v.operator.Activate(v.within(), bundle.Bytes())
				return err
			})
			v.finish(h, task)
		},
		"identity": func(v *victim, point string) {
			v.dies(point, func() error {
				_, _, err := v.operator.Withdraw(v.within(), "handoff=dlocal=sagent=sgone", "test")
				return err
			})
			if _, err := v.operator.Restore(v.within(), "handoff=dlocal=sagent=sgone", "test"); err != nil {
				v.Error(err)
			}
		},
		"key_rotated": func(v *victim, point string) {
			h := v.offer(v.session(), v.writer)
			v.dies(point, func() error {
				_, err := v.operator.RotateKey(v.within(), "governor", true, "test")
				return err
			})
			v.denied(h)
		},
	} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			v := newVictim(t)
			v.dies("flushed", func() error { return nil })
			for _, step := range steps {
				each(v, step+"/"+kind)
			}
			v.ends()
		})
	}
}

// A start that dies before it serves is made up for by the next.
func TestCrashAtStart(t *testing.T) {
	t.Parallel()
	v := newVictim(t)
	h := v.offer(v.session(), v.writer)
	v.governor.kill()
	for range 3 {
		if _, err := start(v.within(), io.Discard, v.program, append(v.args(), "--arm", "republished")...); !errors.Is(err, errNotStarted) {
			t.Fatalf("a governor that was to die at its start: %v", err)
		}
	}
	v.start()
	v.finish(h, v.receive(v.writer))
	v.ends()
}

// held waits until the sender is told which decision holds a handoff.
func (v *victim) held(h *handoff.Handoff) uint64 {
	v.Helper()
	for ctx := v.within(); ; {
		if verdict := h.Verdict(); verdict != nil && verdict.Effect == wire.EffectHold && verdict.Entry != nil {
			return *verdict.Entry
		}
		select {
		case <-time.After(5 * time.Millisecond):
		case <-ctx.Done():
			v.Fatal("there is no verdict that holds it")
		}
	}
}

func (v *victim) approve(held uint64) error {
	_, _, err := v.operator.Approve(v.within(), held, true)
	return err
}

// denied waits until the sender is told that nothing comes of a handoff.
func (v *victim) denied(h *handoff.Handoff) {
	v.Helper()
	var denied *handoff.Denied
	if _, err := h.Result(v.within()); !errors.As(err, &denied) {
		v.Errorf("the handoff ends with %v", err)
	}
}

// ends stops the governor, and looks at what it has written.
func (v *victim) ends() {
	v.Helper()
	if err := v.governor.stop(30 * time.Second); err != nil {
		v.Fatal(err)
	}
	found, err := audits(context.Background(), v.dir)
	if err != nil {
		v.Fatal(err)
	}
	if found.duplicated != 0 || found.doubleGranted != 0 {
		v.Errorf("%d decided or accepted twice, %d granted twice", found.duplicated, found.doubleGranted)
	}
}
