package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/go-json-experiment/json"
	"github.com/google/uuid"

	"github.com/handoff-governor/handoff-governor/cmd/internal/cli"
	"github.com/handoff-governor/handoff-governor/handoff/aat"
	"github.com/handoff-governor/handoff-governor/handoff/wire"
)

// state is what the commands of one agent keep between them, so that they act as one process:
//
//	key.pem           the process key
//	governor.json     {"issuer", "issuer_keys"} of the governor that the rest is of
//	sessions/ID.json  {"aat_chain": [root]} of a session that was opened
//	tasks/ID.json     {"session": ID} of a task that was claimed and has no result yet
//	results/ID.json   a result that was taken from the inbox and is not written out yet
//
// The directories have mode 0700, the files 0600.
type state struct{ dir string }

var folders = []string{"sessions", "tasks", "results"}

func openState(dir, agent string) (*state, error) {
	if dir == "" {
		base := os.Getenv("XDG_STATE_HOME")
		if base == "" {
			home, err := os.UserHomeDir()
			if err != nil {
				return nil, fmt.Errorf("there is no home directory to keep the key in; name one with --state: %w", err)
			}
			base = filepath.Join(home, ".local", "state")
		}
		dir = filepath.Join(base, "handoff", agent)
	}
	for _, folder := range append([]string{""}, folders...) {
		d := filepath.Join(dir, folder)
		if err := os.MkdirAll(d, 0o700); err != nil {
			return nil, fmt.Errorf("the state directory: %w", err)
		}
		if err := os.Chmod(d, 0o700); err != nil { // MkdirAll leaves the mode of what exists
			return nil, fmt.Errorf("the state directory: %w", err)
		}
	}
	return &state{dir}, nil
}

func (s *state) keyFile() string { return filepath.Join(s.dir, "key.pem") }

// under checks that what is kept is of the governor with these keys. Where nothing is kept, it is from now on.
func (s *state) under(keys wire.Keys) error {
	file := filepath.Join(s.dir, "governor.json")
	raw, err := os.ReadFile(file)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	current := keptGovernor{keys.Issuer, keys.IssuerKeys}
	if err == nil {
		var kept keptGovernor
		if err := json.Unmarshal(raw, &kept); err != nil {
			return fmt.Errorf("%s cannot be read: %w; remove the directory, or name another with --state", file, err)
		}
		if kept.Issuer == current.Issuer && slices.Equal(kept.Keys, current.Keys) {
			return nil
		}
		known := func(key aat.JWK) bool { return slices.Contains(current.Keys, key) } // they change, but not all at once
		if empty, err := s.empty(); err != nil {
			return err
		} else if !empty && !slices.ContainsFunc(kept.Keys, known) {
			return fmt.Errorf("the sessions and tasks in %s are of another governor: remove that directory if that governor is no more, or name another directory with --state", s.dir)
		}
	}
	encoded, err := json.Marshal(current)
	if err != nil {
		return err
	}
	return writeFile(file, encoded)
}

// empty tells whether nothing but the key is kept.
func (s *state) empty() (bool, error) {
	for _, folder := range folders {
		if ids, err := s.list(folder); err != nil || len(ids) > 0 {
			return false, err
		}
	}
	return true, nil
}

type keptGovernor struct {
	Issuer string    `json:"issuer"`
	Keys   []aat.JWK `json:"issuer_keys"`
}

type keptSession struct {
	Chain []string `json:"aat_chain"`
}

type keptTask struct {
	Session string `json:"session"`
}

func (s *state) keepSession(id string, chain []string) error {
	return s.write("sessions", id, keptSession{chain})
}

// session is the chain of a session's root.
func (s *state) session(id string) ([]string, error) {
	var kept keptSession
	err := s.read("sessions", id, &kept)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("the session %s is closed, or was not opened with the state in %s: open one with \"handoff session open\"", id, s.dir)
	}
	return kept.Chain, err
}

func (s *state) dropSession(id string) error { return s.drop("sessions", id) }

func (s *state) keepTask(id, session string) error { return s.write("tasks", id, keptTask{session}) }

// claimed is the session of a task.
func (s *state) claimed(id string) (session string, err error) {
	var kept keptTask
	err = s.read("tasks", id, &kept)
	if errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("the task %s is over, or was not claimed with the state in %s: claim one with \"handoff inbox --claim\"", id, s.dir)
	}
	return kept.Session, err
}

func (s *state) dropTask(id string) error { return s.drop("tasks", id) }

// tasks lists the IDs of tasks that were claimed and have no result yet.
func (s *state) tasks() ([]string, error) { return s.list("tasks") }

func (s *state) list(folder string) ([]string, error) {
	files, err := os.ReadDir(filepath.Join(s.dir, folder))
	if err != nil {
		return nil, err
	}
	var ids []string
	for _, f := range files {
		if id, ok := strings.CutSuffix(f.Name(), ".json"); ok {
			ids = append(ids, id)
		}
	}
	return ids, nil
}

func (s *state) keepResult(r *result) error { return s.write("results", r.ID, r) }

// result is what an earlier command has taken from the inbox and could not write; fs.ErrNotExist where there is nothing.
func (s *state) result(id string) (*result, error) {
	r := &result{}
	return r, s.read("results", id, r)
}

func (s *state) dropResult(id string) error { return s.drop("results", id) }

// file names what is kept of an ID, which may have come from anywhere.
func (s *state) file(folder, id string) (string, error) {
	if u, err := uuid.Parse(id); err != nil || u.String() != id {
		return "", cli.Usagef("%q is not an ID: those are UUIDs in lower case", id)
	}
	return filepath.Join(s.dir, folder, id+".json"), nil
}

func (s *state) read(folder, id string, v any) error {
	file, err := s.file(folder, id)
	if err != nil {
		return err
	}
	raw, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(raw, v); err != nil {
		return fmt.Errorf("%s cannot be read: %w; remove it", file, cli.JSONError(err))
	}
	return nil
}

func (s *state) write(folder, id string, v any) error {
	file, err := s.file(folder, id)
	if err != nil {
		return err
	}
	encoded, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return writeFile(file, encoded)
}

func (s *state) drop(folder, id string) error {
	file, err := s.file(folder, id)
	if err != nil {
		return err
	}
	if err := os.Remove(file); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// writeFile writes a whole file or none, with mode 0600.
func writeFile(file string, content []byte) (err error) {
	f, err := os.CreateTemp(filepath.Dir(file), ".new-*") // mode 0600
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			os.Remove(f.Name())
		}
	}()
	_, err = f.Write(content)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), file)
}

// writable tells whether writeFile may write there, before anything is done whose outcome it is to have. "" is no file.
func writable(file string) error {
	if file == "" {
		return nil
	}
	info, err := os.Stat(file)
	if err == nil && !info.Mode().IsRegular() {
		return fmt.Errorf("--out: %s is not a regular file; name one, or leave --out out for standard output", file)
	}
	probe, err := os.CreateTemp(filepath.Dir(file), ".new-*")
	if err != nil {
		return fmt.Errorf("--out: nothing can be written to %s: %w", file, err)
	}
	return errors.Join(probe.Close(), os.Remove(probe.Name()))
}
