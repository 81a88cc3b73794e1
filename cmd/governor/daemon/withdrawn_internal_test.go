package daemon

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/handoff-governor/handoff-governor/handoff/identity"
)

// Nobody is admitted before the governor has read from the ledger who is withdrawn, however early it connects.
func TestNobodyIsAdmittedBeforeTheLedgerIsRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &Daemon{cutOff: newCutOff()}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := d.authenticate(ctx, nil, "no token"); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("before that: %v", err)
		}
		answered := make(chan error, 1)
		go func() {
			_, err := d.authenticate(t.Context(), nil, "no token")
			answered <- err
		}()
		synctest.Wait()
		select {
		case err := <-answered:
			t.Fatalf("was answered before that: %v", err)
		default:
		}
		d.cutOff.complete()
		if err := <-answered; err == nil || errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("after that: %v", err)
		}
	})
}

func TestCutOff(t *testing.T) {
	c := newCutOff()
	a, b := identity.Name("a=sa"), identity.Name("a=sb")
	for _, step := range []struct {
		name      identity.Name
		withdrawn bool
	}{{a, true}, {a, true}, {b, true}, {a, false}, {a, false}, {b, false}} {
		c.set(step.name, step.withdrawn)
		if c.has(step.name) != step.withdrawn {
			t.Errorf("%s: %v", step.name, !step.withdrawn)
		}
	}
}
