package guard_test

import (
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"maps"
	"slices"
	"sync"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/handoff-governor/handoff-governor/handoff/aat/jws"
	"github.com/handoff-governor/handoff-governor/handoff/guard"
	"github.com/handoff-governor/handoff-governor/handoff/wire"
)

func TestRevoked(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	root := w.root()
	b := root.to("b")
	c := b.to("c")
	for _, h := range []holding{root, b, c} {
		w.permits(h)
	}
	w.feed(w.statement(b.revoked(2, wire.StateEnded)))
	w.permits(root)
	w.refuses(b, wire.CodeParentEnded) // as the leaf
	w.permits(c)                       // what was handed on lives
	w.feed(w.statement(b.revoked(2, wire.StateRevoked)))
	w.permits(root)
	w.refuses(b, wire.CodeRevoked)
	w.refuses(c, wire.CodeRevoked)
	w.feed(w.statement(b.revoked(2, wire.StateEnded))) // it never gets better again
	w.refuses(c, wire.CodeRevoked)
	w.feed(w.statement(root.revoked(0, wire.StateRevoked)))
	w.refuses(root, wire.CodeRevoked)
}

func TestFeedMustBeFresh(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	h := w.root().to("b")
	last := w.statement()
	w.feed(last)
	w.advance(5 * time.Second)
	w.permits(h)
	w.advance(time.Millisecond)
	if e := wantCode(t, second(w.check(h.present(), "b")), wire.CodeGuardFeed); e.RetryAfter == 0 {
		t.Error("no Retry-After")
	}
	w.feed(last) // a repeat is no sign of life
	w.refuses(h, wire.CodeGuardFeed)
	w.beat()
	w.permits(h)
	w.advance(-time.Hour) // a clock that was set back
	w.refuses(h, wire.CodeGuardFeed)
}

// Who sets a guard's clock back wants a revoked grant again, whose revocation the guard has forgotten since it expired.
func TestRevocationNotForgottenAfterClockFallsBack(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	// expires + skew one second before a full minute
	end := w.now().Truncate(time.Minute).Add(2*time.Minute - 6*time.Second)
	h := w.root().until(end)
	w.feed(w.statement(h.revoked(2, wire.StateRevoked)))
	w.refuses(h, wire.CodeRevoked)
	for w.now().Before(end.Add(6 * time.Second)) {
		w.advance(time.Second)
		w.beat()
	}
	for range 2 { // set back twice by what the feed tolerates, with a sign of life between
		w.advance(-4 * time.Second)
		w.beat()
	}
	w.refuses(h, wire.CodeExpired)
}

// Who sets a guard's clock back and cuts it off from the governor wants the feed to stay fresh for as long as the guard's
// time stands still.
func TestFeedGrowsOldWhileTimeStandsStill(t *testing.T) {
	t.Parallel()
	w, c := newSteppedWorld(t)
	h := w.root().to("b")
	proofs := []guard.Presentation{h.present(), h.present(), h.present()}
	c.wall -= 20 * time.Second
	for i, p := range proofs {
		_, err := w.check(p, "b")
		switch {
		case i < 2 && err != nil:
			t.Fatal(err)
		case i == 2:
			wantCode(t, err, wire.CodeGuardFeed)
		}
		c.ahead += 3 * time.Second
	}
}

// Who holds the governor's statements back wants a revoked grant to be good until they arrive, and for FeedTimeout more.
func TestFeedHeldBack(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	h := w.root().to("b")
	w.feed(w.statement())
	made := w.statement()
	w.advance(10 * time.Second)
	w.feed(made) // FeedTimeout + Skew after it was made: of no use any more a moment later
	w.permits(h)
	w.advance(time.Millisecond)
	w.refuses(h, wire.CodeGuardFeed)
	w.advance(time.Second - time.Millisecond) // statements tell the whole second
	made = w.statement()
	w.advance(7 * time.Second)
	w.feed(made)
	w.advance(3 * time.Second)
	w.permits(h)
	w.advance(time.Millisecond)
	w.refuses(h, wire.CodeGuardFeed)

	// A page of a snapshot is a sign of life as well.
	w.epoch, w.seq = "e2", 0
	page := w.sign(wire.RevocationFeed{Governor: governor, Epoch: "e2", Time: w.now().Unix(), Snapshot: true})
	w.advance(9 * time.Second)
	w.feed(page)
	w.permits(h)
	w.advance(2 * time.Second)
	w.refuses(h, wire.CodeGuardFeed)
}

// A statement that the guard has not had closes it, until a snapshot says what it has missed.
func TestGap(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	h, lost, after := w.root().to("b"), w.root().to("c"), w.root().to("d")
	w.permits(h)
	w.statement(lost.revoked(0, wire.StateRevoked)) // lost on the way
	w.feed(w.statement(after.revoked(2, wire.StateRevoked)))
	w.refuses(h, wire.CodeGuardFeed)
	if page, needed := w.guard.NeedSnapshot(governor); !needed || page != "" {
		t.Errorf("NeedSnapshot = %q, %v", page, needed)
	}
	w.beat()
	w.refuses(h, wire.CodeGuardFeed)

	old := wire.RevocationFeed{Governor: governor, Epoch: w.epoch, Sequence: w.seq - 3, Time: w.now().Unix(), Snapshot: true}
	if err := w.guard.Feed(w.sign(old)); err == nil {
		t.Error("a snapshot from before the gap was taken")
	}
	w.refuses(h, wire.CodeGuardFeed)
	w.snapshot("", "", lost.revoked(0, wire.StateRevoked), after.revoked(2, wire.StateRevoked))
	w.permits(h)
	w.refuses(lost, wire.CodeRevoked)
	w.refuses(after, wire.CodeRevoked)
	if _, needed := w.guard.NeedSnapshot(governor); needed {
		t.Error("NeedSnapshot after the snapshot")
	}
	if _, needed := w.guard.NeedSnapshot("https://nobody.example.com"); needed {
		t.Error("NeedSnapshot of a governor that is not trusted")
	}
}

func TestNewEpoch(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	h, revoked := w.root().to("b"), w.root().to("c")
	w.feed(w.statement(revoked.revoked(0, wire.StateRevoked)))
	w.epoch, w.seq = "e2", 0
	w.beat()
	w.refuses(h, wire.CodeGuardFeed)
	w.refuses(revoked, wire.CodeGuardFeed)
	w.snapshot("", "")
	w.permits(h)
	w.refuses(revoked, wire.CodeRevoked) // what was revoked once stays so, whatever the snapshot left out
	w.epoch, w.seq = "e3", 0
	w.snapshot("", "") // at sequence 0, before anything else
	w.permits(h)
	w.beat()
	w.permits(h)
}

func TestSnapshotInPages(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	held := make([]holding, 9)
	for i := range held {
		held[i] = w.root().to("b")
	}
	slices.SortFunc(held, func(a, b holding) int {
		if a.revoked(0, "").Hash < b.revoked(0, "").Hash {
			return -1
		}
		return 1
	})
	link := func(i int) wire.RevokedLink { return held[i].revoked(0, wire.StateRevoked) }
	w.epoch, w.seq = "e2", 40
	w.beat()
	w.snapshot("", link(2).Hash, link(0), link(1), link(2))
	page := func() string { after, _ := w.guard.NeedSnapshot(governor); return after }
	if page() != link(2).Hash {
		t.Errorf("after the first page asks for %q", page())
	}
	w.refuses(held[8], wire.CodeGuardFeed)
	wrong := wire.RevocationFeed{Governor: governor, Epoch: w.epoch, Sequence: w.seq, Time: w.now().Unix(), Snapshot: true,
		After: link(5).Hash}
	if w.guard.Feed(w.sign(wrong)) == nil {
		t.Error("a page that was not asked for was taken")
	}
	w.feed(w.statement(link(1), held[0].revoked(2, wire.StateRevoked))) // meanwhile
	wrong.After, wrong.Sequence = link(2).Hash, w.seq-2
	if w.guard.Feed(w.sign(wrong)) == nil {
		t.Error("a page older than the first was taken")
	}
	// That began anew.
	w.snapshot("", link(2).Hash, link(0), link(1), link(2))
	w.snapshot(link(2).Hash, link(5).Hash, link(3), link(4), link(5))
	if page() != link(5).Hash {
		t.Errorf("after the second page asks for %q", page())
	}
	wrong.After, wrong.Next, wrong.Sequence = link(5).Hash, link(5).Hash, w.seq
	if w.guard.Feed(w.sign(wrong)) == nil || page() != "" {
		t.Error("pages that do not advance were taken")
	}
	w.snapshot("", link(5).Hash, link(0))
	w.snapshot(link(5).Hash, "", link(6), link(7))
	w.permits(held[8])
	for i := range 8 {
		w.refuses(held[i], wire.CodeRevoked)
	}
}

func TestFeedRefusesNonsense(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	h := w.root().to("b")
	good := func() wire.RevocationFeed {
		return wire.RevocationFeed{Governor: governor, Epoch: w.epoch, Sequence: w.seq + 1, Time: w.now().Unix()}
	}
	sign := func(change func(*wire.RevocationFeed)) string {
		s := good()
		change(&s)
		return w.sign(s)
	}
	link := func(change func(*wire.RevokedLink)) string {
		return sign(func(s *wire.RevocationFeed) {
			l := h.revoked(0, wire.StateRevoked)
			change(&l)
			s.Links = []wire.RevokedLink{l}
		})
	}
	stranger, _ := jws.SignJSON(wire.TypeRevocation, good(), seedKey("x"))
	otherType, _ := jws.SignJSON(wire.TypeClaim, good(), w.governor)
	otherMembers, _ := jws.Sign(wire.TypeRevocation, []byte(`{"iss":"`+governor+`","seq":1,"epoch":"e1","more":1}`), w.governor)
	for name, token := range map[string]string{
		"nothing":          "",
		"a stranger":       stranger,
		"another type":     otherType,
		"unknown members":  otherMembers,
		"another governor": sign(func(s *wire.RevocationFeed) { s.Governor = "https://else.example.com" }),
		"no epoch":         sign(func(s *wire.RevocationFeed) { s.Epoch = "" }),
		"no sequence":      sign(func(s *wire.RevocationFeed) { s.Sequence = 0 }),
		"old":              sign(func(s *wire.RevocationFeed) { s.Time -= 11 }),
		"of the future":    sign(func(s *wire.RevocationFeed) { s.Time += 11 }),
		"short hash":       link(func(l *wire.RevokedLink) { l.Hash = "AAAA" }),
		"padded hash":      link(func(l *wire.RevokedLink) { l.Hash += "=" }),
		"unknown state":    link(func(l *wire.RevokedLink) { l.State = "paused" }),
	} {
		if err := w.guard.Feed(token); err == nil {
			t.Errorf("%s: believed", name)
		}
	}
	w.permits(h)
}

func TestRevocationsAreBounded(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(c *guard.Config) { c.MaxRevocations = 10 })
	h := w.root().to("b")
	links := make([]wire.RevokedLink, 11)
	for i := range links {
		hash := sha256.Sum256(fmt.Append(nil, i))
		links[i] = wire.RevokedLink{Hash: base64.RawURLEncoding.EncodeToString(hash[:]), State: wire.StateRevoked,
			Expires: w.now().Unix() + 60}
	}
	w.feed(w.statement(links[:10]...))
	w.feed(w.statement(links[:10]...)) // no new ones
	w.permits(h)
	if err := w.guard.Feed(w.statement(links...)); err == nil {
		t.Error("an eleventh link was taken")
	}
	w.beat()
	w.refuses(h, wire.CodeGuardFeed)
	w.advance(3 * time.Minute) // they expire
	w.snapshot("", "")
	w.permits(h)
	for i := range links {
		links[i].Expires = w.now().Unix() - 60
	}
	w.feed(w.statement(links...)) // nothing to remember
	w.permits(h)
	for i := range links[:10] {
		links[i].Expires = w.now().Unix() + 60
	}
	w.feed(w.statement(links[:10]...)) // those that have expired have made room
	w.permits(h)
}

// A revocation is remembered until the link has expired for every clock that the guard tolerates, and no minute less:
// whose grant was revoked shortly before its end must not get it back for that time.
func TestRevocationLastsAsLongAsItsLink(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	minute := w.now().Truncate(time.Minute).Add(time.Minute)
	var held []holding
	for second := 2; second <= 62; second += 6 {
		h := w.root().until(minute.Add(time.Duration(second) * time.Second))
		w.feed(w.statement(h.revoked(2, wire.StateRevoked)))
		held = append(held, h)
	}
	for w.now().Before(minute.Add(time.Minute)) {
		w.advance(time.Second)
		w.beat()
		for _, h := range held {
			if w.now().Unix() < h.leaf().Claims.ExpiresAt {
				w.refuses(h, wire.CodeRevoked)
			}
		}
	}
}

func TestFeedWhileCalling(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	h := w.root().to("b")
	var all sync.WaitGroup
	for range 4 {
		proofs := make([]guard.Presentation, 50)
		for i := range proofs {
			proofs[i] = h.present()
		}
		all.Go(func() {
			for _, p := range proofs {
				if _, err := w.check(p, "b"); err != nil {
					t.Error(err)
				}
			}
		})
	}
	for range 100 {
		other := w.root()
		w.feed(w.statement(other.revoked(0, wire.StateRevoked)))
	}
	all.Wait()
	w.feed(w.statement(h.revoked(2, wire.StateRevoked)))
	w.refuses(h, wire.CodeRevoked)
}

// Whatever is lost, repeated or late: a guard that permits a call has seen every revocation that the governor had
// published when it published the newest statement the guard has.
func TestNoRevocationIsMissed(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		w := newWorld(t)
		type published struct {
			token   string
			revoked map[int]bool // everything that was revoked with it
		}
		held := make([]holding, 6)
		for i := range held {
			held[i] = w.root()
		}
		bad := map[int]bool{}
		log := []published{}
		delivered := map[int]bool{} // what the guard must know by now
		deliver := func(p published) {
			if w.guard.Feed(p.token) == nil {
				maps.Copy(delivered, p.revoked)
			}
		}
		for range rapid.IntRange(1, 30).Draw(t, "steps") {
			switch rapid.SampledFrom([]string{"revoke", "beat", "lose", "repeat", "restart", "snapshot"}).Draw(t, "step") {
			case "revoke":
				i := rapid.IntRange(0, len(held)-2).Draw(t, "link")
				bad[i] = true
				log = append(log, published{w.statement(held[i].revoked(0, wire.StateRevoked)), maps.Clone(bad)})
				deliver(log[len(log)-1])
			case "lose":
				i := rapid.IntRange(0, len(held)-2).Draw(t, "link")
				bad[i] = true
				log = append(log, published{w.statement(held[i].revoked(0, wire.StateRevoked)), maps.Clone(bad)})
			case "beat":
				log = append(log, published{w.statement(), maps.Clone(bad)})
				deliver(log[len(log)-1])
			case "repeat":
				if len(log) > 0 {
					deliver(rapid.SampledFrom(log).Draw(t, "which"))
				}
			case "restart":
				w.epoch, w.seq = w.epoch+"+", 0
			case "snapshot":
				after, needed := w.guard.NeedSnapshot(governor)
				if !needed {
					continue
				}
				var links []wire.RevokedLink
				for i := range bad {
					if l := held[i].revoked(0, wire.StateRevoked); l.Hash > after {
						links = append(links, l)
					}
				}
				slices.SortFunc(links, func(a, b wire.RevokedLink) int {
					if a.Hash < b.Hash {
						return -1
					}
					return 1
				})
				s := wire.RevocationFeed{Governor: governor, Epoch: w.epoch, Sequence: w.seq, Time: w.now().Unix(), Snapshot: true,
					After: after, Links: links}
				if len(links) > 2 {
					s.Links, s.Next = links[:2], links[1].Hash
				}
				if w.guard.Feed(w.sign(s)) == nil && s.Next == "" {
					maps.Copy(delivered, bad)
				}
			}
			good := held[len(held)-1]
			if _, err := w.check(good.present(), "a"); err != nil {
				wantCode(t, err, wire.CodeGuardFeed)
				continue
			}
			for i := range delivered {
				w.refuses(held[i], wire.CodeRevoked)
			}
		}
	})
}
