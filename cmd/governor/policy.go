package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"time"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/spf13/cobra"

	"github.com/handoff-governor/handoff-governor/cmd/internal/cli"
	"github.com/handoff-governor/handoff-governor/handoff/entry"
	"github.com/handoff-governor/handoff-governor/policies"
)

func policyCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "policy", Short: "Write, test, activate and show policy bundles"}
	cmd.AddCommand(
		&cobra.Command{
			Use:     "init DIR",
			Short:   "Write the default bundle with its tests into a new directory, to begin your own",
			Example: "  governor policy init ./policy",
			Args:    cobra.ExactArgs(1),
			RunE:    func(cmd *cobra.Command, args []string) error { return initPolicy(cmd, args[0]) },
		},
		&cobra.Command{
			Use:     "test DIR",
			Short:   "Compile a bundle, and run its own tests",
			Example: "  governor policy test ./policy",
			Args:    cobra.ExactArgs(1),
			RunE:    func(cmd *cobra.Command, args []string) error { return testPolicy(cmd, args[0]) },
		},
		&cobra.Command{
			Use:   "activate DIR",
			Short: "Put a bundle in force, and have every live grant judged again under it",
			Long: `Put a bundle in force, and have every live grant judged again under it; those that it would not grant are revoked. A
bundle that does not compile changes nothing. See what it would change with "governor replay --policy DIR" first.`,
			Example: "  governor policy activate ./policy",
			Args:    cobra.ExactArgs(1),
			RunE:    func(cmd *cobra.Command, args []string) error { return activatePolicy(cmd, args[0]) },
		},
		&cobra.Command{
			Use:     "show",
			Short:   "Show the bundle in force: its digest, its files and its data",
			Example: "  governor policy show",
			Args:    cobra.NoArgs,
			RunE:    func(cmd *cobra.Command, _ []string) error { return showPolicy(cmd) },
		},
		&cobra.Command{
			Use:     "capabilities",
			Short:   "Write what a bundle may call, as JSON for opa check and opa test --capabilities",
			Example: "  governor policy capabilities > capabilities.json\n  opa check --capabilities capabilities.json ./policy",
			Args:    cobra.NoArgs,
			RunE: func(cmd *cobra.Command, _ []string) error {
				capabilities, err := policies.Capabilities()
				if err != nil {
					return err
				}
				return cli.For(cmd).Text(string(capabilities) + "\n")
			},
		},
		&cobra.Command{
			Use:     "schema",
			Short:   "Write the JSON Schema of what policies are told",
			Example: "  governor policy schema > input.schema.json",
			Args:    cobra.NoArgs,
			RunE:    func(cmd *cobra.Command, _ []string) error { return cli.For(cmd).Text(string(policies.InputSchema)) },
		},
	)
	return cmd
}

func initPolicy(cmd *cobra.Command, dir string) error {
	if err := os.Mkdir(dir, 0o755); errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("%s exists already: name a new directory", dir)
	} else if err != nil {
		return err
	}
	if err := os.CopyFS(dir, policies.DefaultFiles()); err != nil {
		return err
	}
	out := cli.For(cmd)
	if out.JSON {
		return out.Value(map[string]string{"directory": dir})
	}
	return out.Text("the default bundle is in " + dir + "\nedit its data.json, see what that changes, and put it in force:\n  governor replay --policy " + dir + "\n  governor policy activate " + dir +
		"\nits tests assume the data it came with: change them with it (governor policy test " + dir + ")\n")
}

func testPolicy(cmd *cobra.Command, dir string) error {
	bundle, err := readBundle(dir)
	if err != nil {
		return err
	}
	if _, err := policies.Compile(bundle, policies.Config{}); err != nil {
		return err
	}
	report, err := policies.Test(cmd.Context(), os.DirFS(dir))
	if err != nil {
		return err
	}
	out := cli.For(cmd)
	failed := 0
	type result struct {
		Name   string `json:"name"`
		At     string `json:"at"`
		Passed bool   `json:"passed"`
		Error  string `json:"error,omitempty"`
		Output string `json:"output,omitempty"`
	}
	results := []result{}
	for _, t := range report.Tests {
		r := result{Name: t.Name, At: t.At, Passed: t.Passed, Output: t.Output}
		if t.Err != nil {
			r.Error = t.Err.Error()
		}
		if !t.Passed {
			failed++
		}
		results = append(results, r)
	}
	if out.JSON {
		err = out.Value(struct {
			Passed    bool     `json:"passed"`
			Tests     []result `json:"tests"`
			Uncovered []string `json:"uncovered,omitempty"`
		}{report.Passed(), results, report.Uncovered})
	} else {
		for _, r := range results {
			if !r.Passed {
				err = errors.Join(err, out.Ended("failed", "%s  %s", r.At, r.Name), out.Text(r.Error), out.Text(r.Output))
			}
		}
		for _, at := range report.Uncovered {
			err = errors.Join(err, out.Line("no test reaches %s", at))
		}
		word := "passed"
		if !report.Passed() {
			word = "failed"
		}
		err = errors.Join(err, out.Ended(word, "%d tests, %d failed", len(results), failed))
	}
	if err != nil {
		return err
	}
	if len(results) == 0 {
		return fmt.Errorf("%s compiles and has no tests: write rules named test_… in files named …_test.rego", dir)
	}
	if !report.Passed() {
		return cli.ErrShown
	}
	return nil
}

func activatePolicy(cmd *cobra.Command, dir string) error {
	return operating(cmd, func(ctx context.Context, p *place, o *operator) error {
		bundle, err := loadBundle(dir, p.TrustDomain)
		if err != nil {
			return err
		}
		index, err := o.Activate(ctx, bundle.Bytes())
		if err != nil {
			return err
		}
		out := cli.For(cmd)
		if out.JSON {
			return out.Value(struct {
				Digest string `json:"digest"`
				Entry  uint64 `json:"entry"`
			}{bundle.Digest(), index})
		}
		return out.Line("%s is in force, entry %d", bundle.Digest(), index)
	})
}

// inForce finds the newest activation.
func inForce(r record) (*entry.Entry, error) {
	mark := []byte(`"kind":"` + string(entry.KindBundle) + `"`)
	var newest []byte
	for encoded, err := range r.Entries(0) {
		if err != nil {
			return nil, err
		}
		if bytes.Contains(encoded, mark) {
			newest = encoded
		}
	}
	if newest == nil {
		return nil, errors.New("the ledger names no bundle yet")
	}
	e, err := entry.Decode(newest)
	if err == nil && e.Bundle == nil {
		err = fmt.Errorf("entry %d is no activation: run \"governor chain verify\"", e.Index)
	}
	return e, err
}

func showPolicy(cmd *cobra.Command) error {
	return reading(cmd, func(p *place, r record) error {
		e, err := inForce(r)
		if err != nil {
			return err
		}
		raw, err := r.Bundle(e.Bundle.Digest)
		if err != nil {
			return err
		}
		bundle, err := policies.Parse(raw)
		if err != nil {
			return err
		}
		out := cli.For(cmd)
		if out.JSON {
			files := map[string]string{}
			for _, f := range bundle.Files() {
				files[f.Path] = string(f.Content)
			}
			return out.Value(struct {
				Digest string            `json:"digest"`
				By     string            `json:"by"`
				Time   time.Time         `json:"time"`
				Entry  uint64            `json:"entry"`
				Files  map[string]string `json:"files"`
			}{bundle.Digest(), e.Bundle.By, time.UnixMilli(e.Time), e.Index, files})
		}
		err = out.Pairs("bundle", bundle.Digest(), "in force since",
			fmt.Sprintf("%s, by %s, entry %d", cli.Time(time.UnixMilli(e.Time)), p.short(e.Bundle.By), e.Index))
		var rows [][]string
		for _, f := range bundle.Files() {
			rows = append(rows, []string{f.Path, strconv.Itoa(len(f.Content))})
		}
		err = errors.Join(err, out.Line(""), out.Table([]string{"FILE", "BYTES"}, rows))
		for _, f := range bundle.Files() {
			if f.Path == "data.json" {
				data := jsontext.Value(f.Content)
				err = errors.Join(err, data.Indent(jsontext.WithIndent("  ")), out.Text("\ndata.json\n"+string(data)+"\n"))
			}
		}
		return err
	})
}
