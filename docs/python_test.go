//go:build python

package docs_test

import (
	"slices"
	"strings"
	"sync"
	"testing"
)

// The client in Python does what its page shows, from the making of its environment to the checks of its types: real
// processes against a real governor. It needs Python 3.11, and its packages from the network.
func TestPythonPage(t *testing.T) {
	pages := readPages(t)
	i := slices.IndexFunc(pages, func(p page) bool { return p.path == pythonPage })
	if i < 0 {
		t.Fatalf("there is no %s", pythonPage)
	}
	pages[i].check(t, sync.OnceValue(func() *session {
		bin, err := programs()
		if err != nil {
			t.Fatal(err)
		}
		s := newSession(t, bin)
		// A copy, since the page leaves files where it runs.
		enter := strings.Join([]string{
			`mkdir -p examples/python docs`,
			`(cd "$REPOSITORY/examples/python" && git ls-files -coz --exclude-standard | xargs -0 tar c) | tar x -C examples/python`,
			`cp "$REPOSITORY/docs/wire.md" docs`,
			`cd examples/python`,
		}, " && ")
		if err := s.run(command{at: pythonPage, text: enter}); err != nil {
			t.Fatal(err)
		}
		return s
	}))
}
