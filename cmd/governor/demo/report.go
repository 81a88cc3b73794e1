package demo

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// review is what reporter writes down.
type review struct {
	Module       string       `json:"module"`
	Dependencies []dependency `json:"dependencies"`
}

// markdown is the report: a summary by licence, then every module. What is not known is listed as such.
func (r review) markdown() string {
	var b strings.Builder
	fmt.Fprintf(&b, "# Dependencies of %s\n\n%d modules are required by go.mod.\n\n", r.Module, len(r.Dependencies))
	counts := map[string]int{}
	for _, d := range r.Dependencies {
		counts[d.license()]++
	}
	b.WriteString("| licence | modules |\n|---|---|\n")
	for _, license := range sortedByCount(counts) {
		fmt.Fprintf(&b, "| %s | %d |\n", license, counts[license])
	}
	b.WriteString("\n| module | version | licence | |\n|---|---|---|---|\n")
	for _, d := range r.Dependencies {
		how := "direct"
		if d.Indirect {
			how = "indirect"
		}
		fmt.Fprintf(&b, "| %s | %s | %s | %s |\n", d.Module, d.Version, d.license(), how)
	}
	return b.String()
}

// license is what is known of a module's licence, or why nothing is.
func (d dependency) license() string {
	if len(d.Licenses) > 0 {
		return strings.Join(d.Licenses, ", ")
	}
	return "unknown: " + cmp.Or(d.Note, "no licence recognized")
}

// sortedByCount sorts the most frequent first.
func sortedByCount(counts map[string]int) []string {
	names := make([]string, 0, len(counts))
	for name := range counts {
		names = append(names, name)
	}
	slices.SortFunc(names, func(a, b string) int { return cmp.Or(counts[b]-counts[a], strings.Compare(a, b)) })
	return names
}
