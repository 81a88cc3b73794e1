// Command governor is the governor itself, with everything embedded (governor up), and the operator's tool: it reads,
// verifies and replays the record, revokes, approves and changes policy.
package main

import (
	"os"

	"github.com/spf13/cobra"

	"github.com/handoff-governor/handoff-governor/cmd/governor/demo"
	"github.com/handoff-governor/handoff-governor/cmd/internal/cli"
)

func main() { os.Exit(run()) }

func run() int { return cli.Main(command()) }

func command() *cobra.Command {
	root := &cobra.Command{
		Use:     "governor",
		Version: cli.Version(),
		Short:   "Stand between agents, and judge, narrow and record every handoff",
		Long: `Governor stands on the wire between AI agents. Every task that one hands to another is judged by the policy in
force, gets a credential that is never wider than the one before, and is written down in a record that proves itself.

Commands that read ask the running governor, or read the data directory of one that does not run.

Exit codes: 0 done, 1 failed, 2 the command line is wrong, 3 the governor decided against it.`,
		Example: `  governor up --agent planner --agent writer
  governor chain list
  governor chain show 019a4b1c-…
  governor chain verify
  governor replay --policy ./stricter`,
	}
	root.PersistentFlags().String("data", cli.Default("HANDOFF_DATA", "./handoff-data"), "data directory of the governor; HANDOFF_DATA sets the default")
	root.AddCommand(upCommand(), initCommand(), serveCommand(), sessionCommand(), chainCommand(), replayCommand(), revokeCommand(), backupCommand(), restoreCommand(), identityCommand(), keysCommand(), issuerCommand(), heldCommand(), approveCommand(),
		policyCommand(), quarantineCommand(), entryCommand(), healthCommand(), tortureCommand(), tortureDaemonCommand(), demo.Command(showEntries))
	return root
}
