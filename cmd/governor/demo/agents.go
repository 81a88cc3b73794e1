package demo

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/google/licensecheck"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
	"golang.org/x/mod/modfile"

	"github.com/handoff-governor/handoff-governor/handoff"
	"github.com/handoff-governor/handoff-governor/handoff/aat"
	"github.com/handoff-governor/handoff-governor/handoff/identity"
	"github.com/handoff-governor/handoff-governor/handoff/wire"
)

// child is one process of the demo.
type child struct {
	url, module, report, tools, trustDomain string

	events *events
	log    *slog.Logger
	role   string
	client *handoff.Client
	key    ed25519.PrivateKey // of the process
	source *workloadapi.X509Source
	http   *http.Client
}

// run is a process of the demo, from its identity to its end.
func (c *child) run(ctx context.Context, role string) error {
	c.role = role
	c.log = slog.New(slog.NewTextHandler(os.Stderr, nil)).With("process", role)
	if role == files {
		return c.serveTools(ctx)
	}
	var err error
	if c.source, err = workloadapi.NewX509Source(ctx); err != nil {
		return err
	}
	defer c.source.Close()
	guardID, err := spiffeid.FromString("spiffe://" + c.trustDomain + "/guard/" + files)
	if err != nil {
		return err
	}
	c.http = &http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{
		TLSClientConfig: identity.ClientTLS(c.source, c.source, identity.OnlyPeer(guardID)),
	}}
	if _, c.key, err = ed25519.GenerateKey(rand.Reader); err != nil {
		return err
	}
	c.client, err = handoff.Connect(ctx, handoff.Config{URL: c.url, Source: c.source, Key: c.key, Logger: c.log})
	if err != nil {
		return err
	}
	defer c.client.Close()
	switch role {
	case coordinator:
		if err := c.coordinate(ctx); err != nil {
			return err
		}
		<-ctx.Done() // the others may still be shown up
		return nil
	case inventory:
		return c.work(ctx, c.takeInventory)
	case licenses:
		return c.work(ctx, c.classify)
	case reporter:
		return c.work(ctx, c.writeReport)
	}
	return fmt.Errorf("there is no agent %q in this demo", role)
}

func (c *child) say(format string, args ...any) {
	if err := c.events.send(event{Who: c.role, Kind: eventWork, Text: fmt.Sprintf(format, args...)}); err != nil {
		c.log.Error("the stage does not listen", "err", err)
	}
}

// work receives tasks until ctx ends, and does them one by one.
func (c *child) work(ctx context.Context, do func(context.Context, *handoff.Task) ([]byte, error)) error {
	for task, err := range c.client.Tasks(ctx) {
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return err
		}
		result, err := do(ctx, task)
		if err != nil {
			err = task.Fail(ctx, err.Error())
		} else {
			err = task.Complete(ctx, result, handoff.ContentType("application/json"))
		}
		if err != nil {
			return err
		}
		if c.role == inventory {
			if err := c.useAfterTheEnd(ctx, task); err != nil {
				return err
			}
		}
	}
	return nil
}

// dependency is a line of the report.
type dependency struct {
	Module   string   `json:"module"`
	Version  string   `json:"version"`
	Indirect bool     `json:"indirect,omitempty"`
	Licenses []string `json:"licenses,omitempty"`
	Note     string   `json:"note,omitempty"` // why no licence is known
}

func (d dependency) name() string { return d.Module + "@" + d.Version }

// coordinate is the coordinator's work: one session, three kinds of tasks, each with as much authority as it needs.
func (c *child) coordinate(ctx context.Context) error {
	session, err := c.client.OpenSession(ctx, handoff.SessionRequest{
		Objective: "review the dependencies of " + c.module,
		Tools: aat.Tools{
			toolRead:    {"path": aat.OneOf("go.mod", "go.sum")},
			toolLicense: {"module": aat.Wildcard()},
			toolWrite:   {"path": aat.Exact(c.report), "content": aat.Wildcard()},
		},
		TTL: 10 * time.Minute, MaxHops: 2,
	})
	if err != nil {
		return err
	}
	if err := c.events.send(event{Who: c.role, Kind: eventSession, Text: session.Session()}); err != nil {
		return err
	}

	c.say("→ %s: may read exactly go.mod and go.sum", inventory)
	var found []dependency
	err = c.delegate(ctx, session, inventory, "list the modules", nil, &found,
		aat.Tools{toolRead: {"path": aat.OneOf("go.mod", "go.sum")}})
	if err != nil {
		return err
	}

	var classified []dependency
	for part := range slices.Chunk(found, modulesATask) {
		names := make([]any, 0, len(part))
		for _, d := range part {
			names = append(names, d.name())
		}
		c.say("→ %s: may read the licence files of these %d modules, and nothing else", licenses, len(part))
		var done []dependency
		err = c.delegate(ctx, session, licenses, "classify the licences", part, &done,
			aat.Tools{toolLicense: {"module": aat.OneOf(names...)}})
		if err != nil {
			return err
		}
		classified = append(classified, done...)
	}

	c.say("→ %s: may write exactly %s", reporter, c.report)
	var written int
	err = c.delegate(ctx, session, reporter, "write the report", review{Module: c.module, Dependencies: classified}, &written,
		aat.Tools{toolWrite: {"path": aat.Exact(c.report), "content": aat.Wildcard()}})
	if err != nil {
		return err
	}
	if err := session.Close(ctx, "the review is complete"); err != nil {
		return err
	}
	return c.events.send(event{Who: c.role, Kind: eventDone, Count: written,
		Text: fmt.Sprintf("closes the session: %d modules reviewed", written)})
}

// modulesATask keeps a credential that lists its modules well below the 64 KiB that a link may have.
const modulesATask = 150

// delegate hands a task on, with tools, and reads its result.
func (c *child) delegate(
	ctx context.Context, session *handoff.Session, to, purpose string, task, result any, tools aat.Tools,
) error {
	body, err := json.Marshal(task)
	if err != nil {
		return err
	}
	sent, err := session.Offer(ctx, to, body, handoff.Tools(tools), handoff.Audience(c.tools), handoff.Purpose(purpose),
		handoff.ContentType("application/json"), handoff.Lifetime(5*time.Minute))
	if err != nil {
		return err
	}
	got, err := sent.Result(ctx)
	if err != nil {
		return err
	}
	if got.Status != "completed" {
		return fmt.Errorf("%s failed: %s", to, got.Body)
	}
	return json.Unmarshal(got.Body, result)
}

// call calls a tool and reads the answer. A guard that asks for patience, since it has just started, gets it.
func (c *child) call(ctx context.Context, grant *handoff.Grant, tool string, args any) ([]byte, int, error) {
	response, err := grant.CallHTTP(ctx, c.http, c.tools, tool, args)
	for tries := 0; err != nil; tries++ {
		refusal, ok := errors.AsType[*wire.Error](err)
		if !ok || refusal.RetryAfter == 0 || tries == 5 {
			return nil, 0, err
		}
		select {
		case <-ctx.Done():
			return nil, 0, context.Cause(ctx)
		case <-time.After(time.Duration(refusal.RetryAfter) * time.Second):
		}
		response, err = grant.CallHTTP(ctx, c.http, c.tools, tool, args)
	}
	defer response.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(response.Body, 8<<20))
	return answer, response.StatusCode, err
}

// takeInventory is the work of inventory: what go.mod requires, as go.sum has it. In between it oversteps, twice.
func (c *child) takeInventory(ctx context.Context, task *handoff.Task) ([]byte, error) {
	mod, status, err := c.call(ctx, task.Grant, toolRead, map[string]string{"path": "go.mod"})
	if err != nil || status != http.StatusOK {
		return nil, fmt.Errorf("reading go.mod: %d %s %w", status, mod, orNil(err))
	}
	sum, status, err := c.call(ctx, task.Grant, toolRead, map[string]string{"path": "go.sum"})
	if err != nil || status != http.StatusOK && status != http.StatusNotFound {
		return nil, fmt.Errorf("reading go.sum: %d %s %w", status, sum, orNil(err))
	}
	found, err := parseModules(mod, sum)
	if err != nil {
		return nil, err
	}
	c.say("reads go.mod and go.sum: %d modules", len(found))
	if err := c.askForMore(ctx, task); err != nil {
		return nil, err
	}
	if err := c.goAround(ctx); err != nil {
		return nil, err
	}
	return json.Marshal(found)
}

// parseModules lists the modules that go.mod requires, replaced ones as what replaces them, and notes those that go.sum
// does not vouch for.
func parseModules(mod, sum []byte) ([]dependency, error) {
	file, err := modfile.Parse("go.mod", mod, nil)
	if err != nil {
		return nil, err
	}
	sums := map[string]bool{}
	for line := range strings.Lines(string(sum)) {
		if fields := strings.Fields(line); len(fields) == 3 {
			sums[fields[0]+"@"+strings.TrimSuffix(fields[1], "/go.mod")] = true
		}
	}
	found := []dependency{}
	for _, r := range file.Require {
		d := dependency{Module: r.Mod.Path, Version: r.Mod.Version, Indirect: r.Indirect}
		for _, replace := range file.Replace {
			if replace.Old.Path == d.Module && (replace.Old.Version == "" || replace.Old.Version == d.Version) {
				d.Module, d.Version = replace.New.Path, replace.New.Version
			}
		}
		switch {
		case d.Version == "":
			d.Note = "replaced by a directory"
		case !sums[d.name()]:
			d.Note = "not in go.sum"
		}
		found = append(found, d)
	}
	return found, nil
}

// classify is the work of licenses.
func (c *child) classify(ctx context.Context, task *handoff.Task) ([]byte, error) {
	var modules []dependency
	if err := json.Unmarshal(task.Body, &modules); err != nil {
		return nil, err
	}
	known := 0
	for i := range modules {
		d := &modules[i]
		if d.Version == "" {
			continue
		}
		answer, status, err := c.call(ctx, task.Grant, toolLicense, map[string]string{"module": d.name()})
		switch {
		case err != nil:
			return nil, err
		case status == http.StatusNotFound:
			d.Note = "not downloaded"
			continue
		case status != http.StatusOK:
			return nil, fmt.Errorf("reading the licences of %s: %s", d.name(), answer)
		}
		var texts map[string]string
		if err := json.Unmarshal(answer, &texts); err != nil {
			return nil, err
		}
		d.Licenses = recognize(texts)
		switch {
		case len(texts) == 0:
			d.Note = "no licence file"
		case len(d.Licenses) == 0:
			d.Note = "licence not recognized"
		default:
			d.Note = ""
			known++
		}
	}
	c.say("reads and classifies %d licences", known)
	return json.Marshal(modules)
}

// recognize names the licences in texts by their SPDX identifiers. A text of which less than most is a known licence
// counts as not recognized.
func recognize(texts map[string]string) []string {
	var found []string
	for _, text := range texts {
		cover := licensecheck.Scan([]byte(text))
		if cover.Percent < mostly {
			continue
		}
		for _, match := range cover.Match {
			found = append(found, match.ID)
		}
	}
	slices.Sort(found)
	return slices.Compact(found)
}

// mostly is how much of a licence file, in per cent, must be text of known licences.
const mostly = 75

// writeReport is the work of reporter.
func (c *child) writeReport(ctx context.Context, task *handoff.Task) ([]byte, error) {
	var r review
	if err := json.Unmarshal(task.Body, &r); err != nil {
		return nil, err
	}
	answer, status, err := c.call(ctx, task.Grant, toolWrite, map[string]string{"path": c.report, "content": r.markdown()})
	if err != nil || status != http.StatusOK {
		return nil, fmt.Errorf("writing the report: %d %s %w", status, answer, orNil(err))
	}
	c.say("writes the report")
	return json.Marshal(len(r.Dependencies))
}

// orNil makes %w print something where a status, not an error, is the trouble.
func orNil(err error) error {
	if err == nil {
		return errors.New("unexpected status")
	}
	return err
}
