package docs_test

import (
	"bufio"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// patience is how long a command of a page may take, and how long a process in the background to print what is shown.
const patience = 2 * time.Minute

// session is the shell of a page.
type session struct {
	t     *testing.T
	in    io.Writer
	lines chan string // what it prints; closed when it ends
	mark  string      // starts the line that ends a command
	logs  string      // directory of what background processes print
	count int         // of them
}

// newSession starts a shell, with the programs of a directory, that ends with everything it started when the page does.
func newSession(t *testing.T, bin string) *session {
	t.Helper()
	dir, err := os.MkdirTemp(scratch, "")
	if err != nil {
		t.Fatal(err)
	}
	s := &session{t: t, lines: make(chan string, 64), mark: rand.Text(), logs: dir}
	home := filepath.Join(dir, "~")
	if err := os.Mkdir(home, 0o700); err != nil {
		t.Fatal(err)
	}
	tmp := filepath.Join(dir, "t") // short: what is made there has sockets in it
	if err := os.Mkdir(tmp, 0o700); err != nil {
		t.Fatal(err)
	}
	repository, err := filepath.Abs("..")
	if err != nil {
		t.Fatal(err)
	}
	// A group of its own, by which everything in it can be ended.
	shell := exec.Command("bash", "--noprofile", "--norc")
	shell.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	shell.Dir = home
	shell.Env = append(os.Environ(), "PATH="+bin+string(os.PathListSeparator)+os.Getenv("PATH"),
		"TMPDIR="+tmp, "XDG_STATE_HOME="+filepath.Join(dir, "state"), "HANDOFF_DATA=", "HANDOFF_LISTEN=127.0.0.1:0", "HANDOFF_URL=", "SPIFFE_ENDPOINT_SOCKET=",
		"LC_ALL=C.UTF-8", "REPOSITORY="+repository)
	out, printed, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	shell.Stdout, shell.Stderr = printed, printed
	in, err := shell.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	s.in = in
	if err := shell.Start(); err != nil {
		t.Fatal(err)
	}
	printed.Close()
	ctx, cancel := context.WithCancel(context.Background())
	read := make(chan struct{})
	go func() {
		defer close(read)
		defer close(s.lines)
		for lines := bufio.NewReader(out); ; {
			line, err := lines.ReadString('\n')
			if err != nil {
				return
			}
			select {
			case s.lines <- strings.TrimSuffix(line, "\n"):
			case <-ctx.Done():
			}
		}
	}()
	t.Cleanup(func() {
		_ = syscall.Kill(-shell.Process.Pid, syscall.SIGKILL) // nothing may outlive its page
		_ = shell.Wait()
		cancel()
		out.Close()
		<-read
	})
	return s
}

// command is one command of a page, and what it prints there.
type command struct {
	at    string
	text  string
	shown []string
	may   bool // it may fail
}

// block runs a console or sh block.
func (s *session) block(b block) error {
	commands := []command{{at: b.at, text: "(set -e\n" + b.text() + ")"}}
	if b.kind == "console" {
		var err error
		if commands, err = parseCommands(b); err != nil {
			return err
		}
	}
	if b.repository {
		enter := command{at: b.at, text: `cd "$REPOSITORY"`}
		commands = append(append([]command{enter}, commands...), command{at: b.at, text: `cd - >/dev/null`})
	}
	for _, c := range commands {
		if err := s.run(c); err != nil {
			return err
		}
	}
	return nil
}

// parseCommands reads a console block. A command goes on where a line ends in a backslash or the next begins with "> ".
func parseCommands(b block) ([]command, error) {
	var out []command
	more := false
	for _, line := range b.lines {
		next, begins := strings.CutPrefix(line, "$ ")
		on, continues := strings.CutPrefix(line, "> ")
		var last *command
		if len(out) > 0 {
			last = &out[len(out)-1]
		}
		switch {
		case more:
			last.text += "\n" + strings.TrimPrefix(line, "> ")
			more = strings.HasSuffix(line, `\`)
		case begins:
			if last != nil && strings.HasPrefix(next, "echo $?") {
				last.may = true
			}
			out = append(out, command{at: b.at, text: next})
			more = strings.HasSuffix(next, `\`)
		case last == nil:
			return nil, fmt.Errorf("%s: a console block begins with a command: $ …", b.at)
		case continues && len(last.shown) == 0:
			last.text += "\n" + on
			more = strings.HasSuffix(on, `\`)
		default:
			last.shown = append(last.shown, line)
		}
	}
	return out, nil
}

// run runs a command in the shell and compares what it prints.
func (s *session) run(c command) error {
	if background := strings.HasSuffix(c.text, "&") && !strings.HasSuffix(c.text, "&&"); background {
		return s.start(c)
	}
	got, status, err := s.send(c.text)
	s.t.Logf("$ %s\n%s", c.text, strings.Join(got, "\n"))
	switch {
	case err != nil:
		return fmt.Errorf("%s: %s: %w; it printed\n%s", c.at, c.text, err, strings.Join(got, "\n"))
	case status != 0 && !c.may:
		return fmt.Errorf("%s: %s: exit status %d; it printed\n%s%s", c.at, c.text, status, strings.Join(got, "\n"), s.background())
	case len(c.shown) > 0 && !pattern(c.shown, true).MatchString(join(got)):
		return fmt.Errorf("%s: %s: the page shows\n%sbut it prints\n%s", c.at, c.text, join(c.shown), join(got))
	}
	return nil
}

// start starts a command in the background, and waits until it has printed what the page shows.
func (s *session) start(c command) error {
	s.count++
	log := filepath.Join(s.logs, strconv.Itoa(s.count)+".log")
	// Redirected around it, so that $! is the command itself and its own redirections come after ours.
	text := fmt.Sprintf("exec 8>&1 9>&2 >'%s' 2>&1\n%s\nexec >&8 2>&9 8>&- 9>&-", log, c.text)
	if _, _, err := s.send(text); err != nil {
		return fmt.Errorf("%s: %s: %w", c.at, c.text, err)
	}
	if len(c.shown) == 0 {
		return nil
	}
	want := pattern(c.shown, false)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(patience); ; <-tick.C {
		_, ended, err := s.send("kill -0 $!") // before reading: what it printed last counts
		if err != nil {
			return err
		}
		got, err := os.ReadFile(log)
		if err != nil {
			return err
		}
		if want.Match(got) {
			return nil
		}
		if ended != 0 || time.Now().After(end) {
			return fmt.Errorf("%s: %s: the page shows\n%sbut it prints\n%s", c.at, c.text, join(c.shown), got)
		}
	}
}

// send has the shell run text, and returns what is printed until it has.
func (s *session) send(text string) (printed []string, status int, err error) {
	// A command that does not end its last line still gets the mark on a line of its own; the next one still finds $?.
	const end = "%s\n_status=$?; printf '\\n%s %%d\\n' $_status; (exit $_status)\n"
	if _, err := fmt.Fprintf(s.in, end, text, s.mark); err != nil {
		return nil, 0, err
	}
	timeout := time.NewTimer(patience)
	defer timeout.Stop()
	for {
		select {
		case line, ok := <-s.lines:
			if !ok {
				return printed, 0, errors.New("the shell ended")
			}
			if code, ok := strings.CutPrefix(line, s.mark+" "); ok {
				status, err = strconv.Atoi(code)
				if n := len(printed); n > 0 && printed[n-1] == "" {
					printed = printed[:n-1]
				}
				return printed, status, err
			}
			printed = append(printed, line)
		case <-timeout.C:
			return printed, 0, fmt.Errorf("still running after %s", patience)
		}
	}
}

// background is what the processes in the background have printed, for the reader of a failure.
func (s *session) background() string {
	var out strings.Builder
	for i := range s.count {
		log, err := os.ReadFile(filepath.Join(s.logs, strconv.Itoa(i+1)+".log"))
		if err == nil && len(log) > 0 {
			fmt.Fprintf(&out, "\nbackground process %d printed\n%s", i+1, log)
		}
	}
	return out.String()
}

func join(lines []string) string {
	for len(lines) > 0 && lines[len(lines)-1] == "" {
		lines = lines[:len(lines)-1]
	}
	if len(lines) == 0 {
		return ""
	}
	return strings.Join(lines, "\n") + "\n"
}

var dots = regexp.MustCompile(`\\\.\\\.\\\.|…`)

// pattern is what the shown lines stand for: all that is printed, or how it begins.
func pattern(shown []string, all bool) *regexp.Regexp {
	var out strings.Builder
	out.WriteString(`\A`)
	for _, line := range strings.SplitAfter(join(shown), "\n") {
		text := strings.TrimSuffix(line, "\n")
		switch {
		case line == "":
		case text == "..." || text == "…":
			out.WriteString(`(?:.*\n)*?`)
		default:
			out.WriteString(dots.ReplaceAllLiteralString(regexp.QuoteMeta(strings.TrimRight(text, " ")), ".*?") + `[ \t]*\n`)
		}
	}
	if all {
		out.WriteString(`\z`)
	}
	return regexp.MustCompile(out.String())
}
