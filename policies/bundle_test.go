package policies

import (
	"testing"
)

func TestDefaultBundle(t *testing.T) {
	report, err := Test(t.Context(), DefaultFiles())
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range report.Tests {
		if !r.Passed {
			t.Errorf("%s failed: %v\n%s", r.Name, r.Err, r.Output)
		}
	}
	if len(report.Uncovered) > 0 {
		t.Errorf("no test reaches %v", report.Uncovered)
	}
	t.Logf("%d tests", len(report.Tests))
}
