package main

import (
	"context"
	"errors"
	"os"
	"testing"
)

// Nobody can wait for the end of what is typed.
func TestReadInputEnds(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	stdin := os.Stdin
	os.Stdin = r
	defer func() { os.Stdin = stdin }()
	defer w.Close()
	why := errors.New("interrupted")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(why)
	if _, err := readInput(ctx, "-"); !errors.Is(err, why) {
		t.Errorf("readInput = %v, want %v", err, why)
	}
}
