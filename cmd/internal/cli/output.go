package cli

import (
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/go-json-experiment/json"
	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/handoff-governor/handoff-governor/handoff/aat"
	"github.com/handoff-governor/handoff-governor/handoff/wire"
)

// Output is where a command writes what it was asked for.
type Output struct {
	JSON  bool // for programs
	w     io.Writer
	color bool
}

// For returns the output of a command. It is coloured on a terminal only, and not where NO_COLOR is set.
func For(cmd *cobra.Command) *Output {
	o := To(cmd.OutOrStdout())
	o.JSON, _ = cmd.Flags().GetBool("json")
	return o
}

// To returns an output for people, coloured as [For] does it.
func To(w io.Writer) *Output {
	o := &Output{w: w}
	if f, ok := o.w.(*os.File); ok {
		o.color = term.IsTerminal(int(f.Fd())) && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb"
	}
	return o
}

// Value writes v as one line of JSON.
func (o *Output) Value(v any) error { return writeJSON(o.w, v) }

// Bytes writes bytes as they are.
func (o *Output) Bytes(b []byte) error {
	_, err := o.w.Write(b)
	return err
}

// Line writes a line of text. Whatever in it could steer a terminal is written as an escape instead: names, purposes
// and reasons come from others.
func (o *Output) Line(format string, args ...any) error {
	_, err := fmt.Fprintln(o.w, Clean(fmt.Sprintf(format, args...)))
	return err
}

// Text writes several lines of text.
func (o *Output) Text(text string) error {
	for line := range strings.Lines(text) {
		if err := o.Line("%s", strings.TrimSuffix(line, "\n")); err != nil {
			return err
		}
	}
	return nil
}

// Ended writes a line whose last word says how something ended.
func (o *Output) Ended(word, format string, args ...any) error {
	_, err := fmt.Fprintln(o.w, Clean(fmt.Sprintf(format, args...))+"  "+o.Tint(Clean(word)))
	return err
}

// Progress shows on a terminal how far long work is, until the returned func is called.
func Progress(far func() string) (stop func()) {
	if !term.IsTerminal(int(os.Stderr.Fd())) {
		return func() {}
	}
	const again = "\r\x1b[K"
	quit, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(200 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				fmt.Fprint(os.Stderr, again+Clean(far()))
			case <-quit:
				fmt.Fprint(os.Stderr, again)
				return
			}
		}
	}()
	return func() {
		close(quit)
		<-done
	}
}

// TempDir makes a directory that stays. Sockets lie in it, the deepest as named, and a socket's path must be short: where the
// system's own place is deep, as on macOS, it is in /tmp.
func TempDir(name, deepest string) (string, error) {
	const random, longest = "4294967295", 103
	base := os.TempDir()
	if len(base)+len("/"+name+random+"/"+deepest) > longest {
		base = "/tmp"
	}
	return os.MkdirTemp(base, name)
}

// Pairs writes names and values, two columns. Pairs without a value are left out.
func (o *Output) Pairs(pairs ...string) error {
	width := 0
	for i := 0; i < len(pairs); i += 2 {
		if pairs[i+1] != "" {
			width = max(width, utf8.RuneCountInString(pairs[i]))
		}
	}
	for i := 0; i < len(pairs); i += 2 {
		if pairs[i+1] == "" {
			continue
		}
		if err := o.Line("%-*s  %s", width, pairs[i], pairs[i+1]); err != nil {
			return err
		}
	}
	return nil
}

// Table writes rows in aligned columns below a head.
func (o *Output) Table(head []string, rows [][]string) error {
	width := make([]int, len(head))
	lines := append([][]string{head}, rows...)
	for _, line := range lines {
		for i, cell := range line {
			width[i] = max(width[i], utf8.RuneCountInString(Clean(cell)))
		}
	}
	for n, line := range lines {
		var b strings.Builder
		for i, cell := range line {
			cell = Clean(cell)
			painted := o.Tint(cell)
			if n == 0 {
				painted = o.style("2", cell)
			}
			b.WriteString(painted)
			if i < len(line)-1 {
				b.WriteString(strings.Repeat(" ", width[i]-utf8.RuneCountInString(cell)+2))
			}
		}
		if _, err := fmt.Fprintln(o.w, strings.TrimRight(b.String(), " ")); err != nil {
			return err
		}
	}
	return nil
}

// tints :: word that says how something ended → its colour.
var tints = map[string]string{
	"allow": "32", "allowed": "32", "admitted": "32", "approved": "32", "claimed": "32", "completed": "32", "open": "32",
	"verified": "32", "same": "32", "passed": "32",
	"hold": "33", "held": "33", "expired": "33", "closed": "2",
	"deny": "31", "denied": "31", "revoked": "31", "failed": "31", "differs": "31", "damaged": "31",
}

// Tint colours a word that says how something ended, where there is colour.
func (o *Output) Tint(word string) string {
	if code, ok := tints[word]; ok {
		return o.style(code, word)
	}
	return word
}

func (o *Output) style(code, text string) string {
	if !o.color {
		return text
	}
	return "\x1b[" + code + "m" + text + "\x1b[0m"
}

// Clean writes everything that is not plain printable text as an escape.
func Clean(s string) string {
	if strings.IndexFunc(s, unprintable) < 0 && utf8.ValidString(s) {
		return s
	}
	var b strings.Builder
	for _, r := range s {
		if unprintable(r) {
			quoted := strconv.QuoteRune(r)
			b.WriteString(quoted[1 : len(quoted)-1])
		} else {
			b.WriteRune(r)
		}
	}
	return b.String()
}

func unprintable(r rune) bool { return !unicode.IsPrint(r) }

// ReasonText is a reason as a person reads it.
func ReasonText(r wire.Reason) string {
	var where []string
	if r.Tool != "" {
		where = append(where, "tool "+r.Tool)
	}
	if r.Argument != "" {
		where = append(where, "argument "+r.Argument)
	}
	if r.Hop > 0 {
		where = append(where, fmt.Sprintf("hop %d", r.Hop))
	}
	text := string(r.Code) + ": " + r.Message
	if len(where) > 0 {
		text += " (" + strings.Join(where, ", ") + ")"
	}
	if r.Nearest != "" {
		text += "; nearest: " + r.Nearest
	}
	return text
}

// Time is a moment as people and programs read it; "" for the zero time.
func Time(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.UTC().Format("2006-01-02 15:04:05Z")
}

// ToolTexts writes each tool with what its arguments must be, one a line, sorted.
func ToolTexts(tools aat.Tools) []string {
	texts := make([]string, 0, len(tools))
	for _, name := range tools.Names() {
		texts = append(texts, name+argumentsText(tools[name]))
	}
	return texts
}

// A set of more than maxShown values is shown by its first few; --json has them all.
const maxShown, someShown = 8, 3

// argumentsText is "" where any arguments will do.
func argumentsText(args aat.Arguments) string {
	if len(args) == 0 {
		return ""
	}
	parts := make([]string, 0, len(args))
	for _, name := range sortedKeys(args) {
		parts = append(parts, constraintText(name, args[name]))
	}
	return "(" + strings.Join(parts, ", ") + ")"
}

func constraintText(name string, c aat.Constraint) string {
	if c.Optional() {
		name += "?"
	}
	var v struct {
		Value    rawJSON   `json:"value"`
		Min      rawJSON   `json:"min"`
		Max      rawJSON   `json:"max"`
		MinOut   rawJSON   `json:"min_inclusive"` // written only where it is false
		MaxOut   rawJSON   `json:"max_inclusive"`
		Values   []rawJSON `json:"values"`
		Excluded []rawJSON `json:"excluded"`
		Required []rawJSON `json:"required"`
		Allowed  []rawJSON `json:"allowed"`
	}
	text := c.String()
	if json.Unmarshal([]byte(text), &v) != nil {
		return name + " " + text
	}
	set := func(values []rawJSON) string {
		texts := make([]string, 0, len(values))
		for _, value := range values {
			texts = append(texts, string(value))
		}
		if len(texts) > maxShown {
			texts = append(texts[:someShown], fmt.Sprintf("… %d more", len(texts)-someShown))
		}
		return "{" + strings.Join(texts, ", ") + "}"
	}
	switch c.Type() {
	case aat.TypeExact:
		return name + " = " + string(v.Value)
	case aat.TypeOneOf:
		return name + " ∈ " + set(v.Values)
	case aat.TypeNotOneOf:
		return name + " ∉ " + set(v.Excluded)
	case aat.TypeContains:
		return name + " ⊇ " + set(v.Required)
	case aat.TypeSubset:
		return name + " ⊆ " + set(v.Allowed)
	case aat.TypeWildcard:
		return name + " = *"
	case aat.TypeRange:
		return rangeText(name, v.Min, v.Max, v.MinOut == nil, v.MaxOut == nil)
	}
	return name + " " + text
}

func rangeText(name string, lo, hi rawJSON, loIn, hiIn bool) string {
	sign := map[bool]string{true: " ≤ ", false: " < "}
	if lo != nil {
		name = string(lo) + sign[loIn] + name
	}
	if hi != nil {
		name += sign[hiIn] + string(hi)
	}
	return name
}
