package main

import (
	"mime"
	"regexp"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/spf13/cobra"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/handoff-governor/handoff-governor/cmd/internal/cli"
	"github.com/handoff-governor/handoff-governor/handoff/aat"
	"github.com/handoff-governor/handoff-governor/handoff/aat/profile"
	"github.com/handoff-governor/handoff-governor/handoff/identity"
	"github.com/handoff-governor/handoff-governor/handoff/wire"
)

// What is wrong with a command line is said before anybody is asked.

// firstError returns the first error there is.
func firstError(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// checkTimes refuses durations that were typed and are below a second, the smallest that the wire knows.
func checkTimes(cmd *cobra.Command, names ...string) error {
	for _, name := range names {
		if d, err := cmd.Flags().GetDuration(name); err != nil {
			return err
		} else if cmd.Flags().Changed(name) && d < time.Second {
			return cli.Usagef("--%s is %s; it must be 1s or longer", name, d)
		}
	}
	return nil
}

func checkTimeout(cmd *cobra.Command) error {
	if d, err := cmd.Flags().GetDuration("timeout"); err != nil {
		return err
	} else if cmd.Flags().Changed("timeout") && d <= 0 {
		return cli.Usagef("--timeout is %s; it must be more than 0", d)
	}
	return nil
}

func checkHops(cmd *cobra.Command) error {
	n, err := cmd.Flags().GetInt("max-hops")
	if err == nil && cmd.Flags().Changed("max-hops") && (n < 0 || n > wire.MaxHops) {
		return cli.Usagef("--max-hops is %d; it must be 0 to %d", n, wire.MaxHops)
	}
	return err
}

// checkID accepts none, too.
func checkID(what, id string) error {
	if id != "" && !profile.IsID(id) {
		return cli.Usagef("%s is %q; an ID is a UUIDv7 in lower case, as the commands print it", what, id)
	}
	return nil
}

func checkLabels(labels []string) error {
	if len(labels) > wire.MaxLabels {
		return cli.Usagef("--label stands there %d times; at most %d labels are allowed", len(labels), wire.MaxLabels)
	}
	for _, l := range labels {
		if l == "" || len(l) > wire.MaxLabel {
			return cli.Usagef("--label is %q; a label has 1 to %d bytes", l, wire.MaxLabel)
		}
	}
	return nil
}

func checkReceiver(name string) error {
	home := spiffeid.RequireTrustDomainFromString("home") // any will do, for what can be seen without it
	if _, err := identity.Expand(name, home); err != nil {
		return cli.Usagef("--to is %q; name an agent as planner or spiffe://…/agent/planner", name)
	}
	return nil
}

// checkContentType accepts none, too.
func checkContentType(t string) error {
	if t == "" {
		return nil
	}
	if _, _, err := mime.ParseMediaType(t); err != nil || strings.ContainsFunc(t, func(r rune) bool { return r < ' ' || r > '~' }) {
		return cli.Usagef("--content-type is %q; write it like text/markdown or text/plain; charset=utf-8", t)
	}
	return nil
}

// traceparentForm is version 00 of W3C Trace Context.
var traceparentForm = regexp.MustCompile(`^00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}$`)

// checkTraceparent looks at what was typed. What stands in the environment is passed on only where it is of this form.
func checkTraceparent(cmd *cobra.Command) error {
	t, err := cmd.Flags().GetString("traceparent")
	if err == nil && cmd.Flags().Changed("traceparent") && !traceparentForm.MatchString(t) {
		return cli.Usagef("--traceparent is %q; write it like 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", t)
	}
	return err
}

// readTool reads NAME or NAME:{constraints}.
func readTool(text string) (name string, args aat.Arguments, err error) {
	name, constraints := text, "{}"
	if i := strings.Index(text, ":{"); i >= 0 {
		name, constraints = text[:i], text[i+1:]
	} else if strings.Contains(text, ":") {
		return "", nil, cli.Usagef(`--tool %s: what follows the colon must be a JSON object; NAME:{} is a tool with any arguments`, text)
	}
	if err := json.Unmarshal([]byte(constraints), &args); err != nil {
		return "", nil, cli.Usagef(`--tool %s: %v; write it like fs.read:{"path":{"constraint_type":"exact","value":"/x"}}`, text, cli.JSONError(err))
	}
	return name, args, nil
}
