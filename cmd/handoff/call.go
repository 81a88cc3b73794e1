package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/spf13/cobra"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/handoff-governor/handoff-governor/cmd/internal/cli"
	"github.com/handoff-governor/handoff-governor/handoff"
	"github.com/handoff-governor/handoff-governor/handoff/identity"
	"github.com/handoff-governor/handoff-governor/handoff/wire"
)

// toolCall is what "handoff call" was asked for.
type toolCall struct {
	session, under, args, url, audience, server string
	timeout                                     time.Duration
}

func callCommand() *cobra.Command {
	var c toolCall
	cmd := &cobra.Command{
		Use:   "call TOOL --url URL",
		Short: "Call a tool behind a guard, and write its answer",
		Long: `Call a tool behind a guard over HTTP, and write its answer to standard output. The credential is made for this one call,
and shown to this guard alone.

With --server, the connection is mutual TLS between your identity and the one named. Without it, an https URL is checked
against the system's certificates, and an http URL not at all.`,
		Example: `  handoff call fs.read --args '{"path":"/x"}' --url https://tools.example:8443/call --handoff $ID --server spiffe://handoff.local/guard/fs`,
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := c.check(); err != nil {
				return err
			}
			late := limit{c.timeout, fmt.Sprintf("no answer came within %s; wait longer with --timeout", c.timeout)}
			return as(cmd, late, func(ctx context.Context, a *agent) error { return c.run(ctx, cmd, a, args[0]) })
		},
	}
	f := cmd.Flags()
	f.StringVar(&c.session, "session", "", "session that you opened, to act under its grant")
	f.StringVar(&c.under, "handoff", "", "task that you claimed, to act under its grant")
	f.StringVar(&c.args, "args", "{}", "arguments, a JSON object")
	f.StringVar(&c.url, "url", "", "where the guard listens (required)")
	f.StringVar(&c.audience, "audience", "", "the guard's audience (default: the origin of the URL)")
	f.StringVar(&c.server, "server", "", "SPIFFE ID that the server must have")
	f.DurationVar(&c.timeout, "timeout", time.Minute, "how long to wait; 0 for no limit")
	return cmd
}

// check refuses what makes no sense, and finds the audience where none is named.
func (c *toolCall) check() error {
	at, err := url.Parse(c.url)
	switch {
	case err != nil || at.Host == "" || at.Scheme != "https" && at.Scheme != "http":
		return cli.Usagef("--url is %q; write it like https://tools.example/call", c.url)
	case c.server != "" && at.Scheme != "https":
		return cli.Usagef("--server needs an https URL: over http nobody proves who serves %s", c.url)
	case jsontext.Value(c.args).Kind() != '{' || !jsontext.Value(c.args).IsValid():
		return cli.Usagef(`--args is %q; it must be a JSON object, as in {"path":"/x"}`, c.args)
	case c.timeout < 0:
		return cli.Usagef("--timeout is %s; it cannot be negative", c.timeout)
	case (c.session == "") == (c.under == ""):
		return errNoGrant
	case c.audience == "":
		c.audience = at.Scheme + "://" + at.Host
	}
	return firstError(checkID("--session", c.session), checkID("--handoff", c.under))
}

func (c *toolCall) run(ctx context.Context, cmd *cobra.Command, a *agent, tool string) error {
	client := &http.Client{}
	if c.server != "" {
		id, err := spiffeid.FromString(c.server)
		if err != nil {
			return cli.Usagef("--server: %v", err)
		}
		client.Transport = &http.Transport{TLSClientConfig: identity.ClientTLS(a.source, a.source, identity.OnlyPeer(id))}
	}
	defer client.CloseIdleConnections()
	grant, err := a.grant(ctx, c.session, c.under)
	if err != nil {
		return err
	}
	answer, status, err := c.post(ctx, client, grant, tool)
	for again(ctx, err) {
		answer, status, err = c.post(ctx, client, grant, tool)
	}
	if err != nil {
		return err
	}
	if err := cli.For(cmd).Bytes(answer); err != nil {
		return err
	}
	if status >= http.StatusBadRequest {
		return fmt.Errorf("the tool answered %d %s; what it wrote is the output", status, http.StatusText(status))
	}
	return nil
}

// again waits where a guard has refused only for the moment, as one does that has just started. Nothing was done then.
func again(ctx context.Context, err error) bool {
	refusal, ok := errors.AsType[*wire.Error](err)
	if !ok || refusal.RetryAfter <= 0 {
		return false
	}
	select {
	case <-time.After(time.Duration(refusal.RetryAfter) * time.Second):
		return true
	case <-ctx.Done():
		return false
	}
}

// maxAnswer is the most that is read of a tool's answer, in bytes.
const maxAnswer = 64 << 20

// post makes the call. A guard's refusal is a *wire.Error.
func (c *toolCall) post(ctx context.Context, client *http.Client, grant *handoff.Grant, tool string) ([]byte, int, error) {
	call, err := grant.Call(ctx, c.audience, tool, []byte(c.args))
	if err != nil {
		return nil, 0, err
	}
	body, err := json.Marshal(call)
	if err != nil {
		return nil, 0, err
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, c.url, bytes.NewReader(body))
	if err != nil {
		return nil, 0, err
	}
	request.Header.Set("Content-Type", "application/json")
	response, err := client.Do(request)
	if err != nil {
		return nil, 0, fmt.Errorf("calling %s: %w", tool, err)
	}
	defer response.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(response.Body, maxAnswer+1))
	if err == nil && len(answer) > maxAnswer {
		err = errors.New("it is longer than 64 MiB")
	}
	if err != nil {
		return nil, 0, fmt.Errorf("reading the answer of %s: %w", tool, err)
	}
	var refusal struct {
		Error *wire.Error `json:"error"`
	}
	if response.StatusCode >= http.StatusBadRequest && json.Unmarshal(answer, &refusal) == nil && refusal.Error != nil &&
		refusal.Error.Code != "" {
		return nil, 0, refusal.Error
	}
	return answer, response.StatusCode, nil
}
