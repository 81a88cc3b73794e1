//go:build !failpoints

package failpoint_test

import (
	"testing"

	"github.com/handoff-governor/handoff-governor/governor/failpoint"
)

// A program that was not built for it has no failpoints, and cannot be given any.
func TestOff(t *testing.T) {
	if failpoint.On {
		t.Error("there are failpoints")
	}
	if err := failpoint.Arm("recorded/claimed"); err == nil {
		t.Error("one was armed")
	}
	failpoint.At("recorded", "claimed")
}
