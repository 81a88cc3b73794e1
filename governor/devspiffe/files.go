package devspiffe

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/handoff-governor/handoff-governor/handoff/identity"
)

// loadNames reads the names in file, one a line; a missing file is no names.
func loadNames(file string) (map[identity.Name]bool, error) {
	names := map[identity.Name]bool{}
	text, err := readFile(file)
	if err != nil {
		return nil, err
	}
	for line := range strings.Lines(string(text)) {
		name, err := identity.ParseName(strings.TrimSuffix(line, "\n"))
		if err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
		names[name] = true
	}
	return names, nil
}

func saveNames(file string, names []identity.Name) error {
	var b strings.Builder
	for _, name := range names {
		b.WriteString(string(name) + "\n")
	}
	return writeFile(file, []byte(b.String()))
}

// readFile returns nil for a missing file, and refuses one that others than its owner may touch.
func readFile(file string) ([]byte, error) {
	info, err := os.Stat(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if info.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("%s: others may read or write it (%s): chmod 600 it, or move it away", file, info.Mode())
	}
	return os.ReadFile(file)
}

// writeFile replaces file as a whole, mode 0600. When it returns nil the new content survives a loss of power.
func writeFile(file string, content []byte) (err error) {
	f, err := os.CreateTemp(filepath.Dir(file), filepath.Base(file)+".*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = os.Remove(f.Name())
		}
	}()
	_, err = f.Write(content)
	err = errors.Join(err, f.Sync(), f.Close())
	if err != nil {
		return err
	}
	if err := os.Rename(f.Name(), file); err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(file))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}
