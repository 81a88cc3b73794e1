package handoff

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"
)

// What the server refused is asked again in a moment, and what it refuses each time not over and over.
func TestRefusedIsAskedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLine()
		l.begin()
		for _, moment := range []time.Duration{1, 2, 4, 8} {
			life, err := l.wait(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			begun := time.Now()
			l.refused(begun)
			l.refused(begun) // the same moment
			<-life.Done()
			if took := time.Since(begun); took != moment*firstMoment || !errors.Is(context.Cause(life), errLost) {
				t.Errorf("after %s: %v", took, context.Cause(life))
			}
		}
		time.Sleep(lastMoment)
		life, _ := l.wait(t.Context())
		begun := time.Now()
		l.refused(begun)
		<-life.Done()
		if took := time.Since(begun); took != firstMoment {
			t.Errorf("long after the last refusal it took %s", took)
		}
		for range 20 {
			life, _ = l.wait(t.Context())
			begun = time.Now()
			l.refused(begun)
			<-life.Done()
		}
		if took := time.Since(begun); took != lastMoment {
			t.Errorf("what is always refused is asked again after %s", took)
		}
		l.lost()
		l.refused(time.Now())
		time.Sleep(2 * lastMoment)
		if l.life.Err() == nil {
			t.Error("there is a life without a connection")
		}
	})
}
