package ledger

import (
	"os"
	"time"
)

func init() { lockWait = 60 * time.Millisecond }

// OpenWith is Open, with a hand on the file that bbolt uses.
func OpenWith(path string, cfg Config, file func(*os.File)) (*Ledger, error) {
	cfg.testingOnlyOpenFile = func(name string, flag int, mode os.FileMode) (*os.File, error) {
		f, err := os.OpenFile(name, flag, mode)
		if err == nil {
			file(f)
		}
		return f, err
	}
	return Open(path, cfg)
}

// OpenWithSync is Open, with a stand-in for the last sync of each commit.
func OpenWithSync(path string, cfg Config, sync func() error) (*Ledger, error) {
	cfg.testingOnlyCommitted = sync
	return Open(path, cfg)
}

// OpenWithoutSync is Open without what a commit costs for the sake of a loss of power.
func OpenWithoutSync(path string, cfg Config) (*Ledger, error) {
	cfg.testingOnlyNoSync = true
	return Open(path, cfg)
}

const FormatVersion = formatVersion
