package main

import (
	"testing"

	"github.com/handoff-governor/handoff-governor/cmd/internal/scripts"
)

func TestMain(m *testing.M) {
	scripts.Main(m, map[string]func(){"governor": scripts.Command(run)})
}

func TestScripts(t *testing.T) { scripts.Run(t, "handoff") }
