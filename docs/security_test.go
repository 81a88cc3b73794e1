package docs_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

var (
	aTest    = regexp.MustCompile("`(Test[A-Za-z0-9]+)`")
	anAttack = regexp.MustCompile(`attack "([^"]+)"`)
	aCommand = regexp.MustCompile("`(governor|handoff) ([a-z ]+)`")
)

// What SECURITY.md shows a promise by is there: tests, attacks of the suite, commands.
func TestSecurityPage(t *testing.T) {
	text, err := os.ReadFile("../SECURITY.md")
	if err != nil {
		t.Fatal(err)
	}
	tests, attacks := testsOf(t)
	seen := 0
	for i, line := range strings.Split(string(text), "\n") {
		for _, m := range aTest.FindAllStringSubmatch(line, -1) {
			seen++
			if !strings.Contains(tests, "func "+m[1]+"(t *testing.T)") {
				t.Errorf("SECURITY.md:%d: there is no test %s", i+1, m[1])
			}
		}
		for _, m := range anAttack.FindAllStringSubmatch(line, -1) {
			seen++
			if !strings.Contains(attacks, `"`+m[1]+`"`) {
				t.Errorf("SECURITY.md:%d: there is no attack %q", i+1, m[1])
			}
		}
		for _, m := range aCommand.FindAllStringSubmatch(line, -1) {
			seen++
			bin, err := programs()
			if err != nil {
				t.Fatal(err)
			}
			args := append([]string{"help"}, strings.Fields(m[2])...)
			if out, err := exec.Command(filepath.Join(bin, m[1]), args...).CombinedOutput(); err != nil {
				t.Errorf("SECURITY.md:%d: %s %s: %v\n%s", i+1, m[1], m[2], err, out)
			}
		}
	}
	if seen < 100 {
		t.Errorf("only %d things are named: the expressions of this test are wrong", seen)
	}
	for _, list := range []struct {
		prefix string
		n      int
	}{{"ASI%02d", 10}, {"NHI%d", 10}} {
		for i := 1; i <= list.n; i++ {
			if name := fmt.Sprintf(list.prefix, i); !strings.Contains(string(text), "| "+name+" ") {
				t.Errorf("SECURITY.md says nothing of %s", name)
			}
		}
	}
}

// Whatever page names a test, it is there.
func TestNamedTestsExist(t *testing.T) {
	tests, _ := testsOf(t)
	for _, p := range readPages(t) {
		for _, m := range aTest.FindAllStringSubmatch(p.text, -1) {
			if !strings.Contains(tests, "func "+m[1]+"(t *testing.T)") {
				t.Errorf("%s: there is no test %s", p.path, m[1])
			}
		}
	}
}

// testsOf is the text of all tests, and that of the attack suite.
func testsOf(t *testing.T) (tests, attacks string) {
	t.Helper()
	files, err := exec.Command("git", "ls-files", "..").Output()
	if err != nil {
		t.Fatal(err)
	}
	var all, suite strings.Builder
	for _, file := range strings.Fields(string(files)) {
		if !strings.HasSuffix(file, "_test.go") {
			continue
		}
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		all.Write(text)
		if strings.HasPrefix(filepath.Base(file), "attacks_") {
			suite.Write(text)
		}
	}
	return all.String(), suite.String()
}
