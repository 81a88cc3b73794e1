package docs_test

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/handoff-governor/handoff-governor/governor"
	"github.com/handoff-governor/handoff-governor/handoff/aat"
	"github.com/handoff-governor/handoff-governor/handoff/identity"
	"github.com/handoff-governor/handoff-governor/handoff/wire"
	"github.com/handoff-governor/handoff-governor/streams"
)

// The numbers in the last part of docs/wire.md are those of the code; two of them have no public name.
func TestLimits(t *testing.T) {
	text, err := os.ReadFile(wirePage)
	if err != nil {
		t.Fatal(err)
	}
	_, section, found := strings.Cut(string(text), "\n## Limits, and what becomes of the rest\n")
	if !found {
		t.Fatal("the part is not there")
	}
	section, _, _ = strings.Cut(section, "\n## ")
	var got []string
	for line := range strings.Lines(section) {
		if line = strings.TrimSpace(line); strings.HasPrefix(line, "|") {
			got = append(got, line)
		}
	}
	s := streams.Limits{}.WithDefaults()
	row := func(what string, values ...any) string {
		return fmt.Sprintf("| "+what+" |", values...)
	}
	want := []string{
		"| | |", "|---|---|",
		row("body of a task or result | %v", size(wire.MaxBody)),
		row("a NATS message with its headers | %v", size(wire.MaxPayload)),
		row("all headers of an offer or result | %v", size(64<<10)), // of nats-server
		row("a token; all tokens of a chain | %v; %v", size(wire.MaxToken), size(wire.MaxChain)),
		row("links in a chain, hops | %v with the root; %v", 2*wire.MaxHops+1, wire.MaxHops),
		row("tools in a link; nesting of constraints | %v; %v", wire.MaxTools, aat.MaxConstraintDepth),
		row("constraints in a link, those within `all` and `any` among them | %v", wire.MaxConstraints),
		row("labels, with those that the governor counts by itself; one label | %v; %v bytes", wire.MaxLabels, wire.MaxLabel),
		row("objective, purpose, reason | %v", size(wire.MaxPurpose)),
		row("name of an agent; of a person | %v bytes; %v bytes", identity.MaxName, wire.MaxPerson),
		row("a claim; a request about a session | %v", size(wire.MaxRequest)),
		row("IDs in a claim | %v", wire.MaxClaimIDs),
		row("open sessions of one agent | %v (`session_limit`)", governor.DefaultMaxSessions),
		row("messages in an inbox; their bytes; handoffs open for one receiver; of those, from one sender | %v; %v; %v; half (`inbox_full`)",
			count(s.InboxMessages), size(s.InboxShare), count(governor.DefaultMaxOpen)),
		row("messages of one agent in the queue | %v, and a quarter of its %v", count(int64(s.IngressShare)), size(s.IngressBytes)),
		row("requests of one identity that wait | %v, and %v (`unavailable`)", s.Requests, size(8<<20)),
		row("connections of one identity; subscriptions of one connection | %v; %v", s.Connections, s.Subscriptions),
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("the table (-code +page):\n%s", diff)
	}
	for _, sentence := range []string{
		fmt.Sprintf("from an inbox is gone after %d days.", int(s.InboxAge.Hours())/24),
		fmt.Sprintf("until %v are full.", size(s.QuarantineBytes)),
	} {
		if !strings.Contains(strings.Join(strings.Fields(section), " "), sentence) {
			t.Errorf("the page does not say %q", sentence)
		}
	}
}

func size(bytes int64) string {
	for _, unit := range []string{"bytes", "KiB", "MiB"} {
		if bytes < 1<<10 {
			return fmt.Sprint(bytes, " ", unit)
		}
		bytes >>= 10
	}
	return fmt.Sprint(bytes, " GiB")
}

// count writes a number as the pages do: from five digits on with a comma.
func count(n int64) string {
	if n < 10_000 {
		return fmt.Sprint(n)
	}
	return fmt.Sprintf("%d,%03d", n/1000, n%1000)
}
