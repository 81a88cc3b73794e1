package main

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"os"
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

func keysCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "keys",
		Short: "Ask the governor for its public keys, the issuer's and the log's",
		Long: `Ask the governor for its public keys, the issuer's and the log's, as JSON. Whoever has them can verify chains
("handoff aat verify --keys") and checkpoints without the governor.`,
		Example: "  handoff keys > keys.json",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return as(cmd, soon, func(ctx context.Context, a *agent) error {
				keys, err := a.Keys(ctx)
				if err != nil {
					return err
				}
				return cli.For(cmd).Value(keys)
			})
		},
	}
}

func aatCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "aat", Short: "Read and verify Attenuating Agent Tokens, without a governor"}
	cmd.AddCommand(
		&cobra.Command{
			Use:   "inspect TOKEN|FILE|-",
			Short: "Show what a token or a chain says, link by link; nothing is verified",
			Long: `Show what a token or a chain says, link by link: who holds it, with which tools, and how each link narrows the one before
it. A file has a token, a JSON array of tokens, or a JSON object with "aat_chain". Nothing is verified.`,
			Example: "  handoff aat inspect chain.json\n  handoff inbox --claim --out t --json | handoff aat inspect -",
			Args:    cobra.ExactArgs(1),
			RunE: func(cmd *cobra.Command, args []string) error {
				chain, err := readChain(cmd.Context(), args[0])
				if err != nil {
					return err
				}
				return inspect(cli.For(cmd), chain)
			},
		},
		verifyCommand(),
	)
	return cmd
}

// readChain reads tokens from the command line or from a file.
func readChain(ctx context.Context, arg string) ([]string, error) {
	raw := []byte(arg)
	if strings.Count(arg, ".") != 2 || strings.ContainsAny(arg, "/ ") || fileExists(arg) {
		var err error
		if raw, err = readInput(ctx, arg); err != nil {
			return nil, err
		}
	}
	raw = bytes.TrimSpace(raw)
	var chain []string
	switch {
	case bytes.HasPrefix(raw, []byte("[")):
		if err := json.Unmarshal(raw, &chain); err != nil {
			return nil, fmt.Errorf("the chain is not a JSON array of tokens: %w", cli.JSONError(err))
		}
	case bytes.HasPrefix(raw, []byte("{")):
		var holder struct {
			Chain []string `json:"aat_chain"`
		}
		if err := json.Unmarshal(raw, &holder); err != nil {
			return nil, fmt.Errorf("the chain cannot be read: %w", cli.JSONError(err))
		}
		chain = holder.Chain
	default:
		chain = []string{string(raw)}
	}
	if len(chain) == 0 {
		return nil, errors.New("there is no token in it")
	}
	return chain, nil
}

func fileExists(name string) bool {
	_, err := os.Stat(name)
	return err == nil
}

func inspect(out *cli.Output, chain []string) error {
	links := make([]*cli.Link, 0, len(chain))
	for i, token := range chain {
		link, err := cli.ReadToken(token)
		if err != nil {
			return fmt.Errorf("link %d: %w", i, err)
		}
		links = append(links, link)
	}
	if out.JSON {
		return out.Value(links)
	}
	for i, l := range links {
		var parent *cli.Link
		if i > 0 {
			parent = links[i-1]
		}
		if err := showLink(out, l, parent); err != nil {
			return err
		}
	}
	return nil
}

func showLink(out *cli.Output, l, parent *cli.Link) error {
	kind := "root"
	switch {
	case l.Depth > 0 && l.Handoff.ID != "":
		kind = "claim"
	case l.Depth > 0 && l.Handoff.Mode != "":
		kind = "offer"
	case l.Depth > 0:
		kind = "link"
	}
	task := l.Handoff.ID
	if kind == "offer" {
		task = l.ID
	}
	from := ""
	if l.Handoff.From != "" {
		from = agentText(l.Handoff.From) + " → "
	}
	err := errors.Join(out.Line("%d  %s  %s", l.Depth, kind, l.ID), out.Pairs(
		"   issued by", l.Issuer, "   issued", cli.Time(time.Unix(l.IssuedAt, 0)), "   expires", cli.Time(time.Unix(l.ExpiresAt, 0)),
		"   for", from+agentText(l.Handoff.To), "   session", l.Handoff.Session, "   handoff", task, "   mode", l.Handoff.Mode,
		"   purpose", l.Handoff.Purpose, "   labels", strings.Join(l.Handoff.Labels, ", "), "   audience", strings.Join(l.Audience, ", "),
		"   held by key", l.Holder.Thumbprint(), "   depth", fmt.Sprintf("%d of at most %d", l.Depth, l.MaxDepth)))
	if len(l.Tools) == 0 {
		err = errors.Join(err, out.Line("   no tools"))
	}
	for _, name := range l.Tools.Names() {
		mark := " "
		if parent != nil {
			switch before, held := parent.Tools[name]; {
			case !held:
				mark = "+" // a verifier refuses it
			case !before.Equal(l.Tools[name]):
				mark = "<"
			}
		}
		err = errors.Join(err, out.Line(" %s %s", mark, cli.ToolTexts(aat.Tools{name: l.Tools[name]})[0]))
	}
	if parent != nil {
		for _, name := range parent.Tools.Names() {
			if _, kept := l.Tools[name]; !kept {
				err = errors.Join(err, out.Line(" - %s", name))
			}
		}
	}
	return err
}

// agentText is a name as its SPIFFE ID: whose home would a short name be?
func agentText(name string) string {
	if name == "" {
		return ""
	}
	return identity.Name(name).Short(spiffeid.TrustDomain{})
}

func verifyCommand() *cobra.Command {
	var keyFile, when, vectors string
	cmd := &cobra.Command{
		Use:   "verify TOKEN|FILE|- | --vectors FILE|-",
		Short: "Verify a chain: signatures, narrowing, times, and that no hop went round the governor",
		Long: `Verify a chain by the steps of the draft, and where --keys names the governor's keys, that no hop went round the governor.
Without --keys the issuer's key is taken from governor.json in --data, and hops are not checked.

Nothing is said about revocation, which only a guard knows, nor about who may present the chain, for which a proof of
possession is needed.

With --vectors, run the test vectors in a file, and say of each by its ID whether it passed: whether the call was permitted,
or denied at the step of the draft that the vector names. Ends with 1 where one failed, and with 2 where the file is not of a
format that is known. The format is that of tests/vectors/aat-jws-vectors.json in https://github.com/tenuo-ai/tenuo, the
draft's repository, or of handoff/aat/testdata/vectors.json in this one. A vector brings its own keys and its own time.`,
		Example: `  handoff aat verify chain.json --keys keys.json
  handoff aat verify chain.json --at 2026-11-23T12:00:00Z
  handoff aat verify --vectors aat-jws-vectors.json`,
		Args: func(cmd *cobra.Command, args []string) error {
			if cmd.Flags().Changed("vectors") {
				return cobra.NoArgs(cmd, args)
			}
			return cobra.ExactArgs(1)(cmd, args)
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if vectors != "" {
				if keyFile != "" || when != "" {
					return cli.Usagef("--vectors takes neither --keys nor --at: each vector brings its own")
				}
				return verifyVectors(cmd.Context(), cli.For(cmd), vectors)
			}
			now := time.Now()
			if when != "" {
				var err error
				if now, err = time.Parse(time.RFC3339, when); err != nil {
					return cli.Usagef("--at is %q; write it like 2026-11-23T12:00:00Z", when)
				}
			}
			dir, err := cmd.Flags().GetString("data")
			if err != nil {
				return err
			}
			keys, err := trustedKeys(cmd.Context(), keyFile, dir)
			if err != nil {
				return err
			}
			chain, err := readChain(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			return verify(cli.For(cmd), chain, keys, now)
		},
	}
	cmd.Flags().StringVar(&keyFile, "keys", "", "file with what \"handoff keys\" writes")
	cmd.Flags().StringVar(&vectors, "vectors", "", "file with test vectors to run instead")
	cmd.Flags().StringVar(&when, "at", "", "verify as of this moment (default: now)")
	return cmd
}

// trustedKeys are whom to believe.
func trustedKeys(ctx context.Context, file, dir string) (wire.Keys, error) {
	var keys wire.Keys
	if file == "" {
		e, err := readEndpoint(dir)
		if err != nil {
			return keys, fmt.Errorf("%w, or the keys to believe with --keys", err)
		}
		return wire.Keys{Issuer: e.Issuer, IssuerKeys: e.IssuerKeys}, nil
	}
	raw, err := readInput(ctx, file)
	if err == nil {
		err = json.Unmarshal(raw, &keys)
	}
	if err != nil {
		return keys, fmt.Errorf("the keys in %s: %w; \"handoff keys\" writes them", file, cli.JSONError(err))
	}
	return keys, nil
}

func verify(out *cli.Output, chain []string, keys wire.Keys, now time.Time) error {
	v := aat.Verifier{Now: func() time.Time { return now }}
	p := profile.Profile{Governors: map[string][]ed25519.PublicKey{}}
	for _, jwk := range keys.IssuerKeys {
		key, err := jwk.Key()
		if err != nil {
			return fmt.Errorf("the issuer's key: %w", err)
		}
		v.Anchors = append(v.Anchors, aat.Anchor{Issuer: keys.Issuer, Key: key})
		p.Issuers = append(p.Issuers, key)
	}
	for _, jwk := range keys.GovernorKeys {
		key, err := jwk.Key()
		if err != nil {
			return fmt.Errorf("a governor's key: %w", err)
		}
		p.Governors[keys.Issuer] = append(p.Governors[keys.Issuer], key)
	}
	links, err := v.Chain(chain)
	hops := err == nil && len(keys.GovernorKeys) > 0
	if hops {
		_, err = p.Chain(links)
	}
	if err != nil {
		return fmt.Errorf("the chain does not verify: %w", err)
	}
	if out.JSON {
		return out.Value(map[string]any{"verified": true, "links": len(links), "governor_checked": hops})
	}
	text := fmt.Sprintf("%d links", len(links))
	if !hops {
		text += ", without a look at the governor's part (--keys)"
	}
	return out.Ended("verified", "%s", text)
}
