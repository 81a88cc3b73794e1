//go:build !linux

package torture

import "errors"

const canFillDisk = false

func fillDisk(int, bool) error { return errors.ErrUnsupported }
