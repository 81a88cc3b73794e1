package docs_test

import (
	"strings"
	"testing"
)

// The checks of pages find what is wrong with one.
func TestChecks(t *testing.T) {
	for name, c := range map[string]struct {
		page string // with ''' for the fence
		want string // in the error; "" is a page that is true
	}{
		"shown":                    {page: "'''console\n$ echo hello\nhello\n'''"},
		"shown in part":            {page: "'''console\n$ seq 20; echo id 0af3 end\n1\n...\n20\nid … end\n'''"},
		"dots for no lines":        {page: "'''console\n$ echo hello\n...\nhello\n...\n'''"},
		"not shown":                {page: "'''console\n$ echo hello\n'''"},
		"without a last newline":   {page: "'''console\n$ printf hello\nhello\n'''"},
		"empty line within":        {page: "'''console\n$ printf 'a\\n\\nb\\n'\na\n\nb\n'''"},
		"several lines":            {page: "'''console\n$ echo a \\\n    b\na b\n$ cat <<E\n> x\n> E\nx\n'''"},
		"remembered":               {page: "'''sh\nmkdir d\n'''\ntext\n'''console\n$ cd d\n$ A=1\n'''\n'''console\n$ basename $PWD$A\nd1\n'''"},
		"may fail":                 {page: "'''console\n$ (exit 3)\n$ echo $?\n3\n'''"},
		"background":               {page: "'''console\n$ (echo up; exec sleep 60) &\nup\n$ kill $!\n'''"},
		"background to a file":     {page: "'''console\n$ (echo up; exec sleep 60) > f &\n$ until grep -s up f; do :; done\nup\n'''"},
		"not run":                  {page: "<!-- not run: it would take a day -->\n\n'''sh\nexit 1\n'''"},
		"in the repository":        {page: "<!-- in the repository -->\n'''sh\ntest -f go.mod\n'''\n'''sh\ntest ! -f go.mod\n'''"},
		"go statements":            {page: "<!-- given: ctx context.Context -->\n'''go\nd, ok := ctx.Deadline()\nfmt.Println(d)\n'''"},
		"go declarations":          {page: "'''go\nvar effect = wire.EffectAllow\n'''"},
		"go file":                  {page: "'''go\npackage a\nimport j \"encoding/json\"\nvar _ = j.Valid\n'''"},
		"json":                     {page: "'''json\n{\"a\": 1}\n'''"},
		"other output":             {page: "'''console\n$ echo hello\ngood-bye\n'''", want: "it prints\nhello"},
		"more output":              {page: "'''console\n$ seq 3\n1\n2\n'''", want: "it prints\n1\n2\n3"},
		"failure":                  {page: "'''console\n$ (exit 3)\n'''", want: "exit status 3"},
		"failure in a script":      {page: "'''sh\nfalse\ntrue\n'''", want: "exit status 1"},
		"the shell ends":           {page: "'''console\n$ exit 0\n'''", want: "the shell ended"},
		"background dies":          {page: "'''console\n$ echo down &\nup\n'''", want: "it prints\ndown"},
		"no command":               {page: "'''console\nhello\n'''", want: "begins with a command"},
		"go that does not parse":   {page: "'''go\nfor {\n'''", want: "expected"},
		"go of another name":       {page: "'''go\nvar effect = wire.EffectPerhaps\n'''", want: "EffectPerhaps"},
		"go of another type":       {page: "'''go\nvar code int = wire.CodeToken\n'''", want: "cannot use"},
		"json with a member twice": {page: "'''json\n{\"a\": 1, \"a\": 2}\n'''", want: "not JSON"},
		"json in part":             {page: "'''json\n{\"a\": …}\n'''", want: "not JSON"},
		"unknown kind":             {page: "'''\nhello\n'''", want: "of kind"},
		"not closed":               {page: "'''text\nhello", want: "not closed"},
		"not run, no reason":       {page: "<!-- not run -->\n'''sh\n'''", want: "must say what"},
		"a comment for nothing":    {page: "<!-- not run: why -->\ntext", want: "belongs to no block"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			err := checkPage(t, strings.ReplaceAll(c.page, "'''", "```"))
			switch {
			case err == nil && c.want != "":
				t.Errorf("nothing is found; want %q", c.want)
			case err != nil && c.want == "":
				t.Error(err)
			case err != nil && !strings.Contains(err.Error(), c.want):
				t.Errorf("found %v\nwant %q", err, c.want)
			}
		})
	}
}

func checkPage(t *testing.T, text string) error {
	p, err := parsePage("page.md", text)
	if err != nil {
		return err
	}
	shell := newSession(t, "")
	for _, b := range p.blocks {
		if err := b.check(t, func() *session { return shell }); err != nil {
			return err
		}
	}
	return nil
}
