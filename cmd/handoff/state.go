package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/go-json-experiment/json"
	"github.com/google/uuid"

	"github.com/handoff-governor/handoff-governor/cmd/internal/cli"
)

// state is what the commands of one agent keep between them, so that they act as one process:
//
//	key.pem           the process key
//	sessions/ID.json  {"aat_chain": [root]} of a session that was opened
//	tasks/ID.json     {"session": ID} of a task that was claimed and has no result yet
//	results/ID.json   a result that was taken from the inbox and is not written out yet
//
// The directories have mode 0700, the files 0600.
type state struct{ dir string }

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
	for _, d := range []string{dir, filepath.Join(dir, "sessions"), filepath.Join(dir, "tasks"), filepath.Join(dir, "results")} {
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
	if err := s.read("sessions", id, &kept); err != nil {
		return nil, fmt.Errorf("no command with this state has opened the session %s: %w", id, err)
	}
	return kept.Chain, nil
}

func (s *state) dropSession(id string) error { return s.drop("sessions", id) }

func (s *state) keepTask(id, session string) error { return s.write("tasks", id, keptTask{session}) }

// claimed is the session of a task.
func (s *state) claimed(id string) (session string, err error) {
	var kept keptTask
	if err := s.read("tasks", id, &kept); err != nil {
		return "", fmt.Errorf("no command with this state has claimed the task %s, or it is done: %w", id, err)
	}
	return kept.Session, nil
}

func (s *state) dropTask(id string) error { return s.drop("tasks", id) }

// tasks lists the IDs of tasks that were claimed and have no result yet.
func (s *state) tasks() ([]string, error) {
	files, err := os.ReadDir(filepath.Join(s.dir, "tasks"))
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
	return json.Unmarshal(raw, v)
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
