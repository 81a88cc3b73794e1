// Package cli is what the project's programs have in common where people and scripts type at them: exit codes, errors
// that say what to do, tables, and --json.
package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime/debug"
	"slices"
	"strings"
	"syscall"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/handoff-governor/handoff-governor/handoff"
	"github.com/handoff-governor/handoff-governor/handoff/wire"
)

// Exit codes of every program.
const (
	ExitDone   = 0
	ExitFailed = 1
	ExitUsage  = 2 // the command line is wrong; nothing was done
	ExitDenied = 3 // the governor decided against it, then or later, or holds it
)

// usageError is a command line that makes no sense.
type usageError struct{ text string }

func (e *usageError) Error() string { return e.text }

// Usagef refuses a command line.
func Usagef(format string, args ...any) error { return &usageError{fmt.Sprintf(format, args...)} }

// JSONError says what is wrong with JSON that a person wrote.
func JSONError(err error) error {
	if e, ok := errors.AsType[*jsontext.SyntacticError](err); ok {
		return fmt.Errorf("it is not valid JSON: %w, after byte %d", e.Err, e.ByteOffset)
	}
	if e, ok := errors.AsType[*json.SemanticError](err); ok {
		if e.Err != nil {
			return e.Err
		}
		return fmt.Errorf("%q is not of the form that is expected there", string(e.JSONPointer))
	}
	return err
}

// ErrShown ends a program with [ExitFailed] where the output has already said why.
var ErrShown = errors.New("failed; the output says why")

// Default is an option's default: the environment variable's value, or fallback where it is empty.
func Default(variable, fallback string) string { return cmp.Or(os.Getenv(variable), fallback) }

// Version is that of the module which a program was built from; "(devel)" where nobody has said.
func Version() string {
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		return info.Main.Version
	}
	return "(devel)"
}

// ExitCode is what a program ends with after err.
func ExitCode(err error) int {
	if err == nil {
		return ExitDone
	}
	if _, ok := errors.AsType[*usageError](err); ok {
		return ExitUsage
	}
	if d, ok := errors.AsType[*handoff.Denied](err); ok {
		if d.Entry != nil { // whatever it says: it stands in the ledger as a decision
			return ExitDenied
		}
		for _, r := range d.Reasons {
			if !decided(r.Code) {
				return ExitFailed
			}
		}
		return ExitDenied
	}
	if e, ok := errors.AsType[*wire.Error](err); ok && decided(e.Code) {
		return ExitDenied
	}
	return ExitFailed
}

// decided tells whether a code comes from a decision about a request, rather than from one that was wrong, late or for
// something that is no more. Codes that are not ours are those of somebody's own policy, and decided.
func decided(code wire.Code) bool {
	switch code {
	case wire.CodeMalformed, wire.CodeTooLarge, wire.CodeHeaderRepeated, wire.CodeHeaderMissing, wire.CodeContentType,
		wire.CodeSalt, wire.CodeSubjectMismatch, wire.CodeFederation, wire.CodeTaskHash, wire.CodeQuarantineUnknown,
		wire.CodeID, wire.CodeIDTime, wire.CodeIDConflict, wire.CodeToken, wire.CodeProof, wire.CodeKey, wire.CodeKeyBound,
		wire.CodeGovernorKey, wire.CodeExpired, wire.CodeClock,
		wire.CodeSessionUnknown, wire.CodeSessionClosed, wire.CodeSessionExpired, wire.CodeNotYours, wire.CodeParentUnknown,
		wire.CodeParentNotYours, wire.CodeParentEnded, wire.CodeParentRevoked, wire.CodeTransferOpen,
		wire.CodeHandoffUnknown, wire.CodeNotAdmitted, wire.CodeAlreadyClaimed, wire.CodeSuperseded,
		wire.CodeResultConflict, wire.CodeInboxFull, wire.CodeRevoked, wire.CodeNotWithdrawn, wire.CodeWithdrawnLimit,
		wire.CodeGuardFeed, wire.CodeGuardStart, wire.CodeGuardGovernor, wire.CodeAudience, wire.CodeCaller,
		wire.CodeAlternation, wire.CodeProfile,
		wire.CodeBundle, wire.CodeUnavailable, wire.CodeForbidden:
		return false
	}
	return true
}

// Main runs a program and returns its exit code. The context of its commands ends with SIGINT or SIGTERM, unless they
// take the signals themselves.
func Main(root *cobra.Command) int {
	root.SilenceErrors, root.SilenceUsage = true, true
	root.CompletionOptions.HiddenDefaultCmd = true
	root.PersistentFlags().Bool("json", false, "write JSON, for programs")
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return flagError(err) })
	root.SetHelpCommand(helpCommand())
	root.PersistentPreRunE = refuseEmpty
	var begun bool // whether the command line was understood
	prepare(root, &begun)
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	cmd, err := root.ExecuteContextC(ctx)
	if err != nil && !begun {
		err = Usagef("%v", err)
	}
	report(cmd, root.Name(), err)
	return ExitCode(err)
}

// flagError words what is wrong with an option's value.
func flagError(err error) error {
	if e, ok := errors.AsType[*pflag.NotExistError](err); ok {
		return Usagef("there is no option %s", dashed(e.GetSpecifiedName()))
	}
	if e, ok := errors.AsType[*pflag.ValueRequiredError](err); ok {
		return Usagef("%s needs a value", dashed(e.GetSpecifiedName()))
	}
	bad, ok := errors.AsType[*pflag.InvalidValueError](err)
	if !ok {
		return Usagef("%v", err)
	}
	f, want := bad.GetFlag(), "something else"
	switch t := f.Value.Type(); {
	case t == "bool":
		want = "true or false"
	case t == "duration":
		want = "a time with its unit, as in 90s, 10m or 2h"
	case strings.HasPrefix(t, "int") || strings.HasPrefix(t, "uint"):
		want = "a whole number"
	}
	return Usagef("--%s is %q; it must be %s", f.Name, bad.GetValue(), want)
}

// dashed is an option as it is typed.
func dashed(name string) string {
	if len(name) == 1 {
		return "-" + name
	}
	return "--" + name
}

func helpCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "help [COMMAND]",
		Short: "Say what can be typed",
		RunE: func(cmd *cobra.Command, args []string) error {
			about, rest, err := cmd.Root().Find(args)
			if err != nil || len(rest) > 0 {
				return Usagef("%q has no command %q", cmd.Root().Name(), strings.Join(args, " "))
			}
			about.InitDefaultHelpFlag()
			return about.Help()
		},
	}
}

// prepare has every command note that it began, and makes a group without a verb, or with an unknown one, a usage error.
func prepare(cmd *cobra.Command, begun *bool) {
	if check := cmd.Args; check != nil {
		cmd.Args = func(cmd *cobra.Command, args []string) error {
			if check(cmd, args) != nil {
				return Usagef("this is how it is typed: %s", cmd.UseLine())
			}
			return nil
		}
	}
	if run := cmd.RunE; run != nil {
		cmd.RunE = func(cmd *cobra.Command, args []string) error {
			*begun = true
			return run(cmd, args)
		}
	} else if cmd.HasSubCommands() {
		cmd.RunE = func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return Usagef("%q has no command %q", cmd.CommandPath(), args[0])
			}
			return Usagef("%q needs a command", cmd.CommandPath())
		}
	}
	for _, sub := range cmd.Commands() {
		prepare(sub, begun)
	}
}

// refuseEmpty refuses options that are given, and given nothing: what a script meant to name is not there.
func refuseEmpty(cmd *cobra.Command, _ []string) (err error) {
	cmd.Flags().Visit(func(f *pflag.Flag) {
		empty := f.Value.String() == ""
		if list, ok := f.Value.(pflag.SliceValue); ok {
			values := list.GetSlice()
			empty = len(values) == 0 || slices.Contains(values, "")
		}
		if empty && err == nil {
			err = Usagef("--%s is empty: give it a value, or leave it out", f.Name)
		}
	})
	return err
}

// report writes an error where people look for it.
func report(cmd *cobra.Command, program string, err error) {
	if err == nil || errors.Is(err, ErrShown) {
		return
	}
	if asJSON, _ := cmd.Flags().GetBool("json"); asJSON {
		writeErrorJSON(cmd.ErrOrStderr(), err)
		return
	}
	var text strings.Builder
	if d, ok := errors.AsType[*handoff.Denied](err); ok {
		word := "denied"
		if d.Effect == wire.EffectHold {
			word = "held: a person must approve it"
		}
		fmt.Fprintf(&text, "%s was %s", d.ID, word)
		if d.Entry != nil {
			fmt.Fprintf(&text, " (entry %d)", *d.Entry)
		}
		for _, r := range d.Reasons {
			text.WriteString("\n  " + ReasonText(r))
		}
	} else {
		text.WriteString(strings.TrimPrefix(err.Error(), "handoff: ")) // as our package begins its errors
	}
	if _, usage := errors.AsType[*usageError](err); usage {
		fmt.Fprintf(&text, "\nrun \"%s --help\" for what can be typed", cmd.CommandPath())
	}
	for i, line := range strings.Split(text.String(), "\n") {
		if i == 0 {
			line = program + ": " + line
		}
		fmt.Fprintln(cmd.ErrOrStderr(), Clean(line))
	}
}

func writeErrorJSON(w io.Writer, err error) {
	var out struct {
		Error struct {
			Code    wire.Code     `json:"code,omitempty"`
			Message string        `json:"message"`
			Step    string        `json:"step,omitempty"`
			ID      string        `json:"id,omitempty"`
			Effect  string        `json:"effect,omitempty"`
			Entry   *uint64       `json:"entry,omitempty"`
			Reasons []wire.Reason `json:"reasons,omitempty"`
		} `json:"error"`
	}
	e := &out.Error
	e.Message = err.Error()
	if d, ok := errors.AsType[*handoff.Denied](err); ok {
		e.ID, e.Effect, e.Entry, e.Reasons = d.ID, d.Effect, d.Entry, d.Reasons
		if len(d.Reasons) > 0 {
			e.Code = d.Reasons[0].Code
		}
	} else if w, ok := errors.AsType[*wire.Error](err); ok {
		e.Code, e.Step = w.Code, w.Step
	}
	_ = writeJSON(w, out) // there is nowhere left to complain
}

func writeJSON(w io.Writer, v any) error {
	encoded, err := json.Marshal(v, json.Deterministic(true), jsontext.AllowInvalidUTF8(true))
	if err != nil {
		return err
	}
	_, err = w.Write(append(encoded, '\n'))
	return err
}
