package cli

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/go-json-experiment/json"
	"github.com/spf13/cobra"

	"github.com/handoff-governor/handoff-governor/handoff"
	"github.com/handoff-governor/handoff-governor/handoff/aat"
	"github.com/handoff-governor/handoff-governor/handoff/wire"
)

func TestExitCode(t *testing.T) {
	denied := func(codes ...wire.Code) error {
		d := &handoff.Denied{ID: "x", Effect: wire.EffectDeny}
		for _, code := range codes {
			d.Reasons = append(d.Reasons, wire.Reason{Code: code, Message: "m"})
		}
		return fmt.Errorf("offering: %w", d)
	}
	for _, c := range []struct {
		err  error
		want int
	}{
		{nil, ExitDone},
		{errors.New("disk"), ExitFailed},
		{ErrShown, ExitFailed},
		{Usagef("no"), ExitUsage},
		{fmt.Errorf("in a command: %w", Usagef("no")), ExitUsage},
		{denied(wire.CodePolicyDenied), ExitDenied},
		{denied(wire.CodePolicyDenied, wire.CodeRuleZone), ExitDenied},
		{denied("a_rule_of_ones_own"), ExitDenied},
		{denied(wire.CodeCeiling, wire.CodeExpired), ExitFailed},
		{denied(wire.CodeRevoked), ExitFailed},
		{&handoff.Denied{Entry: new(uint64), Reasons: []wire.Reason{{Code: wire.CodeRevoked}}}, ExitDenied},
		{&handoff.Denied{Entry: new(uint64), Reasons: []wire.Reason{{Code: wire.CodeTransferOpen}}}, ExitDenied},
		{denied(wire.CodeNotAdmitted, wire.CodeRuleZone), ExitFailed},
		{wire.Refuse(wire.CodeWidened, ""), ExitDenied},
		{wire.Refuse(wire.CodePolicyTimeout, ""), ExitDenied},
		{wire.Refuse(wire.CodeNotGranted, ""), ExitDenied},
		{fmt.Errorf("asking: %w", wire.Refuse(wire.CodePolicyHeld, "")), ExitDenied},
		{wire.Refuse(wire.CodeUnavailable, ""), ExitFailed},
		{wire.Refuse(wire.CodeBundle, ""), ExitFailed},
	} {
		if got := ExitCode(c.err); got != c.want {
			t.Errorf("ExitCode(%v) = %d, want %d", c.err, got, c.want)
		}
	}
}

// What others wrote cannot steer the terminal.
func TestErrorsAreClean(t *testing.T) {
	cmd := &cobra.Command{Use: "x"}
	var out bytes.Buffer
	cmd.SetErr(&out)
	report(cmd, "x", &handoff.Denied{ID: "id", Reasons: []wire.Reason{{Code: "c", Message: "a\x1b[2Jb\r\u202ec", Nearest: "\u0007"}}})
	if got := out.String(); got != "x: id was denied\n  c: a\\x1b[2Jb\\r\\u202ec; nearest: \\a\n" {
		t.Errorf("wrote %q", got)
	}
}

func TestTable(t *testing.T) {
	var out bytes.Buffer
	o := To(&out)
	if err := o.Table([]string{"ID", "STATE", "WHO"}, [][]string{{"1", "denied", "é\x1b"}, {"22", "", "planner"}}); err != nil {
		t.Fatal(err)
	}
	want := "ID  STATE   WHO\n1   denied  é\\x1b\n22          planner\n"
	if out.String() != want {
		t.Errorf("wrote\n%s\nwant\n%s", out.String(), want)
	}
	out.Reset()
	o.color = true
	if err := o.Ended("denied", "a"); err != nil || out.String() != "a  \x1b[31mdenied\x1b[0m\n" {
		t.Errorf("wrote %q, %v", out.String(), err)
	}
}

func TestToolTexts(t *testing.T) {
	tools := aat.Tools{
		"any":  {},
		"many": {"n": aat.OneOf(1, 2, 3, 4, 5, 6, 7, 8, 9)},
		"fs.read": {
			"path": aat.OneOf("/a", "/b"), "mode": aat.Exact("r").AsOptional(), "size": aat.Range(aat.MoreThan("0"), aat.AtMost("10")),
			"what": aat.Wildcard(), "tags": aat.Subset("x"), "not": aat.NotOneOf(1), "with": aat.Contains(true),
		},
	}
	got := strings.Join(ToolTexts(tools), "\n")
	want := `any
fs.read(mode? = "r", not ∉ {1}, path ∈ {"/a", "/b"}, 0 < size ≤ 10, tags ⊆ {"x"}, what = *, with ⊇ {true})
many(n ∈ {1, 2, 3, … 6 more})`
	if got != want {
		t.Errorf("wrote\n%s\nwant\n%s", got, want)
	}
}

func FuzzReadPayload(f *testing.F) {
	f.Add([]byte(`{"jti":"a","aud":"b","cnf":{"jwk":{}},"authorization_details":[{"type":"attenuating_agent_token","tools":{}}]}`))
	f.Add([]byte(`{"aud":["b",1],"del_depth":1e9}`))
	f.Fuzz(func(t *testing.T, payload []byte) {
		link, err := ReadPayload(payload)
		if err != nil {
			return
		}
		ToolTexts(link.Tools)
		if _, err := json.Marshal(link); err != nil {
			t.Errorf("what was read cannot be written: %v", err)
		}
	})
}
