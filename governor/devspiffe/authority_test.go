package devspiffe_test

import (
	"bytes"
	"crypto/x509"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/jwtbundle"
	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"pgregory.net/rapid"

	"github.com/handoff-governor/handoff-governor/governor/devspiffe"
	"github.com/handoff-governor/handoff-governor/handoff/identity"
)

var (
	_ jwtbundle.Source  = (*devspiffe.Authority)(nil)
	_ x509svid.Source   = (*devspiffe.Source)(nil)
	_ x509bundle.Source = (*devspiffe.Source)(nil)
	_ jwtbundle.Source  = (*devspiffe.Source)(nil)
)

func TestNewRefusesNonsense(t *testing.T) {
	dir := t.TempDir()
	for name, config := range map[string]devspiffe.Config{
		"no directory":         {TrustDomain: home},
		"no trust domain":      {Dir: dir},
		"a negative TTL":       {Dir: dir, TrustDomain: home, TTL: -time.Hour},
		"a moment's TTL":       {Dir: dir, TrustDomain: home, TTL: time.Millisecond},
		"roots as short":       {Dir: dir, TrustDomain: home, TTL: time.Hour, AuthorityTTL: 2 * time.Hour},
		"roots of negative":    {Dir: dir, TrustDomain: home, AuthorityTTL: -time.Hour},
		"a file as directory":  {Dir: "/dev/null", TrustDomain: home},
		"a file on the way":    {Dir: "/dev/null/x", TrustDomain: home},
		"no trust domain at..": {Dir: dir, TrustDomain: spiffeid.TrustDomain{}},
	} {
		if _, err := devspiffe.New(config); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
		t.Errorf("refusing left %v, %v", left, err)
	}
}

func TestDamagedFilesAreRefusedAndKept(t *testing.T) {
	t.Parallel()
	config := defaults(t, devspiffe.Config{})
	a := start(t, config)
	if err := a.Withdraw(planner); err != nil {
		t.Fatal(err)
	}
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	keys := filepath.Join(config.Dir, "authorities.pem")
	good, err := os.ReadFile(keys)
	if err != nil {
		t.Fatal(err)
	}
	other, err := os.ReadFile(filepath.Join(startedDir(t), "authorities.pem"))
	if err != nil {
		t.Fatal(err)
	}
	blocks := bytes.SplitAfter(good, []byte("-----\n")) // begin, end, begin, end, begin, end
	if len(blocks) < 6 {
		t.Fatalf("%d parts", len(blocks))
	}
	otherBlocks := bytes.SplitAfter(other, []byte("-----\n"))
	join := func(parts ...[]byte) []byte { return bytes.Join(parts, nil) }
	damage := map[string][]byte{
		"empty":               {},
		"blank":               []byte("\n\n"),
		"noise":               []byte("noise"),
		"cut short":           good[:len(good)/2],
		"without the JWT key": join(blocks[:4]...),
		"certificate only":    join(blocks[:2]...),
		"keys only":           join(blocks[2:]...),
		"noise behind":        join(good, []byte("noise")),
		"another's key":       join(blocks[0], blocks[1], otherBlocks[2], otherBlocks[3], blocks[4], blocks[5]),
		"a flipped byte":      bytes.Replace(good, []byte("MI"), []byte("MJ"), 1),
	}
	for name, content := range damage {
		if err := os.WriteFile(keys, content, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := devspiffe.New(config); err == nil || !strings.Contains(err.Error(), keys) {
			t.Errorf("%s: %v", name, err)
		}
		if left, err := os.ReadFile(keys); err != nil || !bytes.Equal(left, content) {
			t.Errorf("%s: the file was changed", name)
		}
	}
	if err := os.WriteFile(keys, good, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(keys, 0o640); err != nil {
		t.Fatal(err)
	}
	if _, err := devspiffe.New(config); err == nil || !strings.Contains(err.Error(), "chmod 600") {
		t.Errorf("readable by others: %v", err)
	}
	if err := os.Chmod(keys, 0o600); err != nil {
		t.Fatal(err)
	}

	names := filepath.Join(config.Dir, "withdrawn")
	for _, content := range []string{"planner\n", "\n", "acme=dexample=sagent=splanner \n", "\x00"} {
		if err := os.WriteFile(names, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := devspiffe.New(config); !errors.Is(err, identity.ErrName) || !strings.Contains(err.Error(), names) {
			t.Errorf("withdrawn holds %q: %v", content, err)
		}
	}
	if err := os.WriteFile(names, []byte("acme=dexample=sagent=scoder"), 0o600); err != nil {
		t.Fatal(err)
	}
	again := start(t, config)
	if !again.Withdrawn(coder) || again.Withdrawn(planner) {
		t.Error("the file was not read")
	}
	if info, err := os.ReadDir(config.Dir); err != nil || len(info) != 3 {
		t.Errorf("the directory holds %v, %v", info, err)
	}
}

func startedDir(t *testing.T) string {
	config := defaults(t, devspiffe.Config{})
	start(t, config)
	return config.Dir
}

// Whatever the clock does, the SVID of the moment is good at that moment; and as long as nobody looks away for longer
// than a new root settles, it is good for those, too, who have not heard the latest.
func TestRootsUnderAnyClock(t *testing.T) {
	t.Parallel()
	const ttl, authorityTTL = time.Hour, 100 * time.Hour
	const settle = time.Hour // the lesser of an hour and a tenth of authorityTTL
	base := t.TempDir()
	rapid.Check(t, func(rt *rapid.T) {
		dir, err := os.MkdirTemp(base, "")
		if err != nil {
			rt.Fatal(err)
		}
		clock := newClock()
		config := defaults(t, devspiffe.Config{Dir: dir, TTL: ttl, AuthorityTTL: authorityTTL, Now: clock.Now})
		a, err := devspiffe.New(config)
		if err != nil {
			rt.Fatal(err)
		}
		defer func() { a.Close() }()
		var known *x509bundle.Bundle
		var last *x509svid.SVID
		jumped := false
		for range rapid.IntRange(1, 30).Draw(rt, "steps") {
			source, err := a.Source(planner)
			if err != nil {
				rt.Fatal(err)
			}
			svid, err := source.GetX509SVID()
			if err != nil {
				rt.Fatal(err)
			}
			now := clock.Now()
			peer, err := identity.VerifyX509(svid.Certificates, a, now)
			if err != nil {
				rt.Fatalf("at %s: %v", now, err)
			}
			if left := peer.Expires.Sub(now); left < ttl/2 || left > ttl+time.Second+2*time.Minute {
				rt.Fatalf("at %s the SVID lives for another %s", now, left)
			}
			bundle, err := a.GetX509BundleForTrustDomain(home)
			if err != nil {
				rt.Fatal(err)
			}
			if known != nil && !jumped {
				if _, err := identity.VerifyX509(svid.Certificates, known, now); err != nil {
					rt.Fatalf("at %s, by the bundle of a moment ago: %v", now, err)
				}
				if now.Before(last.Certificates[0].NotAfter) {
					if _, err := identity.VerifyX509(last.Certificates, bundle, now); err != nil {
						rt.Fatalf("at %s, the SVID of a moment ago: %v", now, err)
					}
				}
			}
			if n := len(bundle.X509Authorities()); !slices.ContainsFunc(bundle.X509Authorities(),
				func(c *x509.Certificate) bool { return now.Before(c.NotAfter) }) || n > 30 {
				rt.Fatalf("at %s there are %d roots", now, n)
			}
			known, last = bundle.Clone(), svid

			step := rapid.SampledFrom([]time.Duration{
				0, time.Millisecond, time.Minute, 29 * time.Minute, 31 * time.Minute, settle - time.Second,
				-time.Second, -59 * time.Second, -2 * time.Minute, -time.Hour, -1000 * time.Hour,
				3 * time.Hour, 49 * time.Hour, 51 * time.Hour, 99 * time.Hour, 101 * time.Hour, 1000 * time.Hour,
			}).Draw(rt, "step")
			jumped = step > settle || step < 0
			clock.Move(step)
			if rapid.IntRange(0, 3).Draw(rt, "restart") == 0 {
				if err := a.Close(); err != nil {
					rt.Fatal(err)
				}
				if a, err = devspiffe.New(config); err != nil {
					rt.Fatal(err)
				}
			}
		}
	})
}

// In the ordinary run of things every root is known for a while before it signs, and to the end of what it signed.
func TestRootsOverlap(t *testing.T) {
	t.Parallel()
	const authorityTTL, step = 100 * time.Hour, 30 * time.Minute
	clock := newClock()
	a := start(t, devspiffe.Config{AuthorityTTL: authorityTTL, Now: clock.Now})
	source, err := a.Source(planner)
	if err != nil {
		t.Fatal(err)
	}
	known, last := bundleOf(t, a), svidOf(t, source)
	roots := map[string]bool{}
	for range 4 * authorityTTL / step {
		clock.Move(step)
		svid, bundle := svidOf(t, source), bundleOf(t, a)
		for _, check := range []struct {
			svid   *x509svid.SVID
			bundle *x509bundle.Bundle
		}{{svid, known}, {last, bundle}} {
			if _, err := identity.VerifyX509(check.svid.Certificates, check.bundle, clock.Now()); err != nil {
				t.Fatal(err)
			}
		}
		if n := len(bundle.X509Authorities()); n > 3 {
			t.Fatalf("%d roots at once", n)
		}
		for _, root := range bundle.X509Authorities() {
			roots[root.SerialNumber.String()] = true
		}
		known, last = bundle, svid
	}
	if n := len(roots); n < 8 || n > 9 {
		t.Errorf("there were %d roots in four lives, want one each half", n)
	}
}

// A clock that is set back, a little at a time and each time before a restart, never leads to an SVID that is not valid
// yet, or whose root is not.
func TestClockSetBack(t *testing.T) {
	t.Parallel()
	clock := newClock()
	config := defaults(t, devspiffe.Config{Now: clock.Now})
	for range 6 {
		a, err := devspiffe.New(config)
		if err != nil {
			t.Fatal(err)
		}
		source, err := a.Source(planner)
		if err != nil {
			t.Fatal(err)
		}
		for range 3 {
			if _, err := identity.VerifyX509(svidOf(t, source).Certificates, a, clock.Now()); err != nil {
				t.Fatal(err)
			}
			clock.Move(-59 * time.Second)
		}
		if err := a.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// Nobody sees roots that are not on disk: while the next cannot be written the present ones go on, to their end.
func TestRootsAreWrittenFirst(t *testing.T) {
	t.Parallel()
	clock := newClock()
	config := defaults(t, devspiffe.Config{
		Dir: filepath.Join(t.TempDir(), "d"), AuthorityTTL: 100 * time.Hour, Now: clock.Now,
	})
	a := start(t, config)
	source, err := a.Source(planner)
	if err != nil {
		t.Fatal(err)
	}
	clock.Move(51 * time.Hour)
	two := bundleOf(t, a)
	if err := os.RemoveAll(config.Dir); err != nil {
		t.Fatal(err)
	}
	clock.Move(30 * time.Minute) // until the first ends at 100 h and the second at 151 h, half an hour short of each hour
	for hour := 52; hour <= 151; hour++ {
		svid := svidOf(t, source)
		peer, err := identity.VerifyX509(svid.Certificates, two, clock.Now())
		if err != nil {
			t.Fatalf("before hour %d: %v", hour, err)
		}
		if !peer.Expires.Equal(svid.Certificates[0].NotAfter) {
			t.Errorf("before hour %d: the SVID would outlive its root", hour)
		}
		for _, root := range bundleOf(t, a).X509Authorities() {
			if !two.HasX509Authority(root) {
				t.Fatalf("before hour %d: there is a root that no restart would find", hour)
			}
		}
		clock.Move(time.Hour)
	}
	if err := a.Withdraw(coder); err == nil || a.Withdrawn(coder) {
		t.Errorf("withdrawn, but not written: %v", err)
	}
	if svid, err := source.GetX509SVID(); err == nil {
		t.Errorf("roots that have ended issued %v", svid)
	}
	if err := os.Mkdir(config.Dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := identity.VerifyX509(svidOf(t, source).Certificates, a, clock.Now()); err != nil {
		t.Errorf("with the disk back: %v", err)
	}
}

func TestConcurrentUse(t *testing.T) {
	t.Parallel()
	a := start(t, devspiffe.Config{TTL: time.Second})
	ids := []spiffeid.ID{planner, coder, governor}
	var work sync.WaitGroup
	for i := range 12 {
		work.Go(func() {
			id := ids[i%len(ids)]
			for range 5 {
				switch i % 4 {
				case 0:
					if err := errors.Join(a.Withdraw(id), a.Restore(id)); err != nil {
						t.Error(err)
					}
				default:
					if _, err := a.Socket(id); err != nil && !errors.Is(err, devspiffe.ErrWithdrawn) {
						t.Error(err)
					}
					source, err := a.Source(id)
					if err == nil {
						_, err = source.GetX509SVID()
					}
					if err != nil && !errors.Is(err, devspiffe.ErrWithdrawn) {
						t.Error(err)
					}
				}
			}
		})
	}
	work.Wait()
	for _, id := range ids {
		if svid := svidOf(t, x509Source(t, socket(t, a, id))); svid.ID != id {
			t.Errorf("%s's socket gives %s", id, svid.ID)
		}
	}
}
