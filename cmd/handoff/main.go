// Command handoff lets an agent take part from a shell: open sessions, offer tasks, claim them, call tools under a grant
// and return results. It also reads and verifies credentials, for anyone.
package main

import (
	"os"

	"github.com/spf13/cobra"

	"github.com/handoff-governor/handoff-governor/cmd/internal/cli"
)

func main() { os.Exit(run()) }

func run() int { return cli.Main(command()) }

func command() *cobra.Command {
	root := &cobra.Command{
		Use:   "handoff",
		Short: "Hand tasks from agent to agent, from a shell",
		Long: `Handoff lets an agent take part from a shell.

Who you are: --agent NAME takes that agent's socket and the governor's address from the governor's data directory
(--data). Without it, SPIFFE_ENDPOINT_SOCKET says who you are and HANDOFF_URL where the governor is.

Grants are bound to the key of a process. Commands of one agent act as one process: they keep its key and its grants in
a state directory (--state) that only you can read. A claimed task is yours for 30 seconds, and for 30 more after each
command that names it ("handoff task ID" is one). Once that time has run out another process of the same agent may take
the task over; while none does, it stays yours.

Exit codes: 0 done, 1 failed, 2 the command line is wrong, 3 the governor decided against it: then, or later, as with a
handoff that you await and that is revoked, expires or ends with its session; or it holds it for a person's approval.`,
		Example: `  export HANDOFF_AGENT=planner
  S=$(handoff session open --objective "quarterly report" --tool fs.read --max-hops 2)
  handoff offer --session $S --to writer --tool 'fs.read:{"path":{"constraint_type":"exact","value":"/q3.csv"}}' \
      --task task.md --wait result

  export HANDOFF_AGENT=writer
  ID=$(handoff inbox --claim --out task.md)
  handoff result $ID --file report.md`,
	}
	f := root.PersistentFlags()
	f.String("agent", os.Getenv("HANDOFF_AGENT"), "agent to act as, by its socket in the data directory; HANDOFF_AGENT sets the default")
	f.String("data", cli.Default("HANDOFF_DATA", "./handoff-data"), "data directory of the governor; HANDOFF_DATA sets the default")
	f.String("state", "", "where the key and the grants are kept (default $XDG_STATE_HOME/handoff/<agent's full name>)")
	root.AddCommand(sessionCommand(), offerCommand(), awaitCommand(), inboxCommand(), taskCommand(), resultCommand(),
		callCommand(), keysCommand(), aatCommand())
	return root
}
