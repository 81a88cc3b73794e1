package streams

import (
	"errors"
	"testing"

	"pgregory.net/rapid"
)

// Whatever is put, read and asked for in whatever order, an inbox never has more than its share, and what fits for
// certain is never refused.
func TestShares(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		const limit = 64 << 10
		s := shares{limit: limit, known: map[string]bool{"a": true}, inboxes: map[string]*share{}}
		var inbox, onTheWay []int64
		total := func() (bytes int64) {
			for _, size := range append(inbox[:len(inbox):len(inbox)], onTheWay...) {
				bytes += size << 10
			}
			return bytes
		}
		settle := func() {
			inbox = append(inbox, onTheWay[0])
			onTheWay = onTheWay[1:]
			s.settled("a")
		}
		t.Repeat(map[string]func(*rapid.T){
			"put": func(t *rapid.T) {
				size := rapid.Int64Range(1, 40).Draw(t, "KiB")
				meanwhile := rapid.IntRange(0, len(onTheWay)).Draw(t, "settled meanwhile")
				before, all := total(), len(inbox)+len(onTheWay)
				_, err := s.take("a", size, func(string) (uint64, error) {
					n := uint64(len(inbox))
					for range meanwhile {
						settle()
					}
					return n, nil
				})
				if err == nil {
					onTheWay = append(onTheWay, size)
				}
				if total() > limit {
					t.Fatalf("%d bytes of %d", total(), limit)
				}
				if all == 0 && err != nil {
					t.Fatalf("an empty inbox is full, of %d", before)
				}
			},
			"store": func(t *rapid.T) {
				if len(onTheWay) > 0 {
					settle()
				}
			},
			"read": func(t *rapid.T) {
				if len(inbox) > 0 {
					i := rapid.IntRange(0, len(inbox)-1).Draw(t, "which")
					inbox = append(inbox[:i], inbox[i+1:]...)
				}
			},
		})
	})
}

func TestShareThatCannotBeAskedFor(t *testing.T) {
	s := shares{limit: 1 << 10, inboxes: map[string]*share{}}
	gone := errors.New("gone")
	if _, err := s.take("a", 2, func(string) (uint64, error) { return 0, gone }); !errors.Is(err, gone) {
		t.Errorf("got %v", err)
	}
}
