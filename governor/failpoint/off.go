//go:build !failpoints

package failpoint

import "errors"

// On tells whether this program has failpoints.
const On = false

// At is where the process may stop.
func At(string, ...string) {}

// Arm has the process stop at a failpoint.
func Arm(string) error {
	return errors.New("this program has no failpoints: build it with -tags failpoints")
}
