package main

import (
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/handoff-governor/handoff-governor/cmd/governor/daemon"
	"github.com/handoff-governor/handoff-governor/cmd/internal/cli"
)

func serveCommand() *cobra.Command {
	var file string
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Run a governor as governor.yaml says: with SPIRE's identities, and with a NATS cluster or an embedded server",
		Long: `Run a governor as governor.yaml says. Identities come from a SPIFFE Workload API, such as SPIRE's, which must know this
process as spiffe://<trust domain>/governor. NATS is a cluster whose servers have the configuration that "governor init"
wrote, or is embedded.

SIGINT and SIGTERM stop it in order: what was begun is finished first. A second one stops it at once; nothing that was
receipted is lost. SIGHUP puts the bundle of the configuration in force again as it is now; one that does not compile
leaves the old one in force.`,
		Example: `  governor init --trust-domain acme.example --node nats-1=nats-1:4222,nats-1:6222 /etc/handoff
  governor serve --config /etc/handoff/governor.yaml`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return serve(cmd, file) },
	}
	cmd.Flags().StringVar(&file, "config", cli.Default("HANDOFF_CONFIG", "governor.yaml"),
		"the configuration; HANDOFF_CONFIG sets the default")
	return cmd
}

func serve(cmd *cobra.Command, file string) error {
	file, err := filepath.Abs(file)
	if err != nil {
		return err
	}
	c, err := readConfig(file)
	if err != nil {
		return err
	}
	p := process{}
	if p.cfg, p.policy, err = c.daemon(cmd, filepath.Dir(file)); err != nil {
		return err
	}
	if data := cmd.Flag("data"); data.Changed {
		if p.cfg.Dir, err = filepath.Abs(data.Value.String()); err != nil {
			return err
		}
	}
	return p.run(cmd.Context(), func(d *daemon.Daemon, again bool) error {
		if again {
			return nil
		}
		out := cli.For(cmd)
		if out.JSON {
			return out.Value(struct {
				daemon.Endpoint
				Data string `json:"data"`
			}{d.Endpoint, p.cfg.Dir})
		}
		if err := out.Pairs("NATS", d.Endpoint.URL, "data", p.cfg.Dir, "trust domain", d.Endpoint.TrustDomain); err != nil {
			return err
		}
		return out.Line("ready; Ctrl-C stops")
	})
}
