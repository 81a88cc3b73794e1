package torture

import "golang.org/x/sys/unix"

const canFillDisk = true

// enough for what is there already to be written over: nothing that counts is so small.
const diskFullAt = 32 << 10

// fillDisk has the writes of a process fail, as they do on a full disk, or no longer.
func fillDisk(pid int, full bool) error {
	limit := unix.Rlimit{Cur: unix.RLIM_INFINITY, Max: unix.RLIM_INFINITY}
	if full {
		limit.Cur = diskFullAt
	}
	return unix.Prlimit(pid, unix.RLIMIT_FSIZE, &limit, nil)
}
