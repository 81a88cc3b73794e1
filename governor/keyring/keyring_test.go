package keyring_test

import (
	"crypto/ed25519"
	"errors"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/handoff-governor/handoff-governor/governor/keyring"
)

func newKey(t testing.TB) ed25519.PrivateKey {
	t.Helper()
	_, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

var (
	start    = time.Date(2026, 11, 27, 7, 0, 0, 0, time.UTC)
	schedule = keyring.Schedule{Announce: 2 * time.Minute, Overlap: 10 * time.Minute, Keep: 24 * time.Hour}
)

// A key is announced, used, taken no more, and dead, and at each moment there is one in use.
func TestRotate(t *testing.T) {
	first, second := newKey(t), newKey(t)
	r, err := keyring.Of(first).Rotate(second, start, schedule)
	if err != nil {
		t.Fatal(err)
	}
	for _, at := range []struct {
		after          time.Duration
		current        ed25519.PrivateKey
		live           int
		first, sixteen bool // whether what names them is taken
	}{
		{0, first, 2, true, true},
		{2*time.Minute - time.Second, first, 2, true, true},
		{2 * time.Minute, second, 2, true, true},
		{12*time.Minute - time.Second, second, 2, true, true},
		{12 * time.Minute, second, 2, false, true},
		{12*time.Minute + 24*time.Hour - time.Second, second, 2, false, true},
		{12*time.Minute + 24*time.Hour, second, 1, false, true},
	} {
		now := start.Add(at.after)
		live := r.Live(now)
		if !r.Current(now).Private.Equal(at.current) || len(live) != at.live || !live[0].Private.Equal(at.current) {
			t.Errorf("after %s: %d live keys, or another in use", at.after, len(live))
		}
		if r[1].Takes(now) != at.first || r[0].Takes(now) != at.sixteen {
			t.Errorf("after %s: taken are %t, %t", at.after, r[0].Takes(now), r[1].Takes(now))
		}
		pruned, less := r.Prune(now)
		if len(pruned) != at.live || less != (at.live == 1) {
			t.Errorf("after %s: %d keys are left", at.after, len(pruned))
		}
	}
}

func TestRotateTwice(t *testing.T) {
	r, err := keyring.Of(newKey(t)).Rotate(newKey(t), start, schedule)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.Rotate(newKey(t), start.Add(time.Minute), schedule); !errors.Is(err, keyring.ErrPending) {
		t.Errorf("rotated while the last key is not in use yet: %v", err)
	}
	again, err := r.Rotate(newKey(t), start.Add(time.Hour), schedule)
	if err != nil {
		t.Fatal(err)
	}
	if len(again) != 3 || again[2].Until != r[1].Until {
		t.Errorf("%d keys, and the first is trusted until %s", len(again), again[len(again)-1].Until)
	}
	stolen, err := r.Rotate(newKey(t), start.Add(time.Minute), keyring.Schedule{})
	if err != nil || len(stolen) != 1 {
		t.Errorf("after a theft there are %d keys: %v", len(stolen), err)
	}
}

func TestMarshal(t *testing.T) {
	r, err := keyring.Of(newKey(t)).Rotate(newKey(t), start, schedule)
	if err != nil {
		t.Fatal(err)
	}
	content, err := r.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	back, err := keyring.Parse(content)
	if err != nil || !reflect.DeepEqual(back, r) {
		t.Errorf("%v\n%v\n%v", err, back, r)
	}
	text := string(content)
	for name, bad := range map[string]string{
		"nothing":                 "",
		"text alone":              "From: 2026-11-27T07:00:00Z\n",
		"text after the keys":     text + "Until: 2026-11-27T07:00:00Z\n",
		"a key twice":             text + text,
		"a bound twice":           "From: 2026-11-27T07:00:00Z\n" + text,
		"a bound of another name": "To: 2026-11-27T07:00:00Z\n" + text,
		"no time":                 strings.Replace(text, "From: 20", "From: x", 1),
		"a block that is broken":  strings.Replace(text, "-----\nM", "-----\n!", 1),
		"another block":           strings.ReplaceAll(text, "PRIVATE KEY", "PUBLIC KEY"),
	} {
		if r, err := keyring.Parse([]byte(bad)); err == nil {
			t.Errorf("%s: read as %d keys", name, len(r))
		}
	}
}

// Whatever is read is written so that it is read as the same.
func FuzzParse(f *testing.F) {
	r, err := keyring.Of(newKey(f)).Rotate(newKey(f), start, schedule)
	if err != nil {
		f.Fatal(err)
	}
	content, err := r.Marshal()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(content)
	f.Fuzz(func(t *testing.T, content []byte) {
		r, err := keyring.Parse(content)
		if err != nil {
			return
		}
		again, err := r.Marshal()
		if err != nil {
			t.Fatal(err)
		}
		back, err := keyring.Parse(again)
		if err != nil || len(back) != len(r) {
			t.Fatalf("%v: %d keys became %d", err, len(r), len(back))
		}
		for i := range r {
			if !back[i].Private.Equal(r[i].Private) || !back[i].From.Equal(r[i].From) || !back[i].Until.Equal(r[i].Until) || !back[i].Taken.Equal(r[i].Taken) {
				t.Fatal("another key, or other times")
			}
		}
	})
}
