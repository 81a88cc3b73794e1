package policies

import (
	"context"
	"crypto/sha256"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/storage"
)

// answers remembers what a snapshot answered. That is exact: an answer follows from the entry point, the input's bytes
// and the data that the evaluation read, and from nothing else, because no builtin can look elsewhere. Failures are not
// remembered.
//
// It holds two generations. When the younger is full it becomes the older, and what is asked for again moves back.
type answers struct {
	limit        int // bytes of a generation; 0 remembers nothing
	hits, misses atomic.Uint64

	mu         sync.Mutex
	young, old map[question]remembered // lock mu
	size       int                     // of young, in bytes, roughly; lock mu
	footprints map[string]*footprint   // :: its paths, joined → footprint; lock mu
}

// question is the SHA-256 of an entry point and an input.
type question [sha256.Size]byte

type remembered struct {
	answer []byte
	read   *footprint
}

// footprint is the paths of data that an evaluation read, found or not. Many evaluations share one.
type footprint struct{ paths []storage.Path }

// rememberedSize is what an entry costs beside its answer.
const rememberedSize = 160

func newAnswers(limit int) *answers {
	return &answers{limit: limit, young: map[question]remembered{}, footprints: map[string]*footprint{}}
}

func ask(entry string, input []byte) (q question) {
	h := sha256.New()
	h.Write([]byte(entry))
	h.Write([]byte{0})
	h.Write(input)
	h.Sum(q[:0])
	return q
}

func (a *answers) get(q question) ([]byte, bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	r, ok := a.young[q]
	if !ok {
		if r, ok = a.old[q]; ok {
			a.put(q, r)
		}
	}
	if ok {
		a.hits.Add(1)
	} else {
		a.misses.Add(1)
	}
	return r.answer, ok
}

func (a *answers) add(q question, answer []byte, read *reads) {
	if a.limit == 0 {
		return
	}
	paths, name := read.paths()
	a.mu.Lock()
	defer a.mu.Unlock()
	shared, ok := a.footprints[name]
	if !ok {
		shared = &footprint{paths: paths}
		a.footprints[name] = shared
		a.size += 2 * len(name)
	}
	a.put(q, remembered{answer: answer, read: shared})
}

// put is called with mu held.
func (a *answers) put(q question, r remembered) {
	if a.size > a.limit {
		a.old, a.young, a.size = a.young, map[question]remembered{}, 0
		a.footprints = map[string]*footprint{}
	}
	a.young[q] = r
	a.size += len(r.answer) + rememberedSize
}

// inherit takes over every answer of the snapshot before whose evaluation read nothing that has changed. The two must
// have the same policies.
func (s *Snapshot) inherit(before *Snapshot) {
	if s.answers.limit == 0 || !slices.EqualFunc(s.bundle.files, before.bundle.files, File.equal) {
		return
	}
	from := before.answers
	from.mu.Lock()
	defer from.mu.Unlock()
	s.answers.mu.Lock()
	defer s.answers.mu.Unlock()
	same := map[string]bool{}      // :: path → reads the same in both
	holds := map[*footprint]bool{} // :: footprint → all its paths do
	for _, generation := range []map[question]remembered{from.old, from.young} {
		for q, r := range generation {
			hold, known := holds[r.read]
			if !known {
				hold = !slices.ContainsFunc(r.read.paths, func(p storage.Path) bool {
					name := p.String()
					unchanged, known := same[name]
					if !known {
						unchanged = equal(s.read(p), before.read(p))
						same[name] = unchanged
					}
					return !unchanged
				})
				holds[r.read] = hold
			}
			if hold {
				s.answers.put(q, r)
			}
		}
	}
}

func (f File) equal(g File) bool { return f.Path == g.Path && string(f.Content) == string(g.Content) }

// read returns the data at a path, or nil where there is none. Both stores hold terms.
func (s *Snapshot) read(p storage.Path) ast.Value {
	found, err := s.store.Read(context.Background(), s.txn, p)
	if err != nil {
		return nil
	}
	v, _ := found.(ast.Value)
	return v
}

func equal(a, b ast.Value) bool {
	if a == nil || b == nil {
		return a == nil && b == nil
	}
	return ast.Compare(a, b) == 0
}

// reads notes every part of the data that one evaluation asks for: OPA looks here before each read of its store. It is
// also the cache that OPA takes it for.
type reads struct{ seen []seen }

type seen struct {
	ref   ast.Ref
	value ast.Value // nil until found
}

func (r *reads) Get(ref ast.Ref) ast.Value {
	for i := range r.seen {
		if r.seen[i].ref.Equal(ref) {
			return r.seen[i].value
		}
	}
	r.seen = append(r.seen, seen{ref: slices.Clone(ref)}) // OPA goes on to change the slice
	return nil
}

func (r *reads) Put(ref ast.Ref, v ast.Value) {
	for i := range r.seen {
		if r.seen[i].ref.Equal(ref) {
			r.seen[i].value = v
			return
		}
	}
	r.seen = append(r.seen, seen{ref: slices.Clone(ref), value: v})
}

// paths returns what was read as OPA's store is asked for it, and one name for all of it. A reference that is no path
// finds nothing, whatever the data.
func (r *reads) paths() ([]storage.Path, string) {
	paths := make([]storage.Path, 0, len(r.seen))
	var name strings.Builder
	for _, s := range r.seen {
		if p, err := storage.NewPathForRef(s.ref); err == nil {
			paths = append(paths, p)
			name.WriteString(p.String())
			name.WriteByte('\n')
		}
	}
	return paths, name.String()
}
