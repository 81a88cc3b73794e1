package policies

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"path"
	"slices"
	"strings"
	"sync"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"go.yaml.in/yaml/v3"

	"github.com/handoff-governor/handoff-governor/handoff/wire"
)

// Limits of a bundle.
const (
	MaxBundle        = wire.MaxBody // compressed bytes: a bundle travels in one message
	MaxBundleContent = 8 << 20      // bytes of all files together
	MaxBundleFiles   = 512
	MaxBundlePath    = 200 // bytes of a file's path
)

const dataFile = "data.json"

//go:embed bundle
var defaultFiles embed.FS

// Bundle is policies and data, named by its content. It never changes.
//
// Only what can change a decision is in it: the .rego files as written, and all data merged into one data.json with
// sorted members and no white space. Tests (_test.rego), hidden files and every other file are left out, so neither
// they nor the layout of the data change the digest.
type Bundle struct {
	files  []File         // sorted by path; all .rego
	data   jsontext.Value // an object, compact, members sorted, numbers as written
	tar    []byte         // what is hashed
	digest string
}

// File is one file of a bundle. Content must not be modified.
type File struct {
	Path    string // slash-separated, relative
	Content []byte
}

// Load reads a bundle from a directory: its .rego files and its data.json, data.yaml or data.yml at any depth, each
// rooted at its directory as in OPA. Two that define the same member are refused, and so are a file that is neither
// UTF-8 nor the format its name says, a repeated member, and anything beyond the limits above.
func Load(fsys fs.FS) (*Bundle, error) {
	var c contents
	err := fs.WalkDir(fsys, ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if strings.HasPrefix(path.Base(name), ".") && name != "." {
			if d.IsDir() {
				return fs.SkipDir
			}
			return nil
		}
		if d.IsDir() || !isBundled(name) {
			return nil
		}
		f, err := fsys.Open(name)
		if err != nil {
			return err
		}
		defer f.Close()
		return c.add(name, f)
	})
	if err != nil {
		return nil, fmt.Errorf("policies: loading bundle: %w", err)
	}
	b, err := c.bundle()
	if err != nil {
		return nil, fmt.Errorf("policies: loading bundle: %w", err)
	}
	return b, nil
}

// Parse reads the bytes that [Bundle.Bytes] wrote, or the tarball of `opa build` without signatures, plans or Wasm. A
// .manifest is left out, since its revision names nothing that can be checked, and so is what is hidden otherwise. A
// file that is neither policy nor data is refused, since whoever put it there expects it to count.
func Parse(data []byte) (*Bundle, error) {
	b, err := parse(data)
	if err != nil {
		return nil, fmt.Errorf("policies: parsing bundle: %w", err)
	}
	return b, nil
}

func parse(data []byte) (*Bundle, error) {
	if len(data) > MaxBundle {
		return nil, fmt.Errorf("it has %d bytes; at most %d are allowed", len(data), MaxBundle)
	}
	unzipped, err := gzip.NewReader(bytes.NewReader(data))
	if err != nil {
		return nil, err
	}
	// Headers and padding count too, so that an archive of empty entries ends somewhere.
	limited := &io.LimitedReader{R: unzipped, N: MaxBundleContent + 4096*MaxBundleFiles}
	archive := tar.NewReader(limited)
	var c contents
	for {
		h, err := archive.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			if limited.N <= 0 {
				return nil, errTooMuch
			}
			return nil, err
		}
		if h.Typeflag == tar.TypeDir {
			continue
		}
		name := strings.TrimPrefix(strings.TrimPrefix(h.Name, "./"), "/")
		switch {
		case h.Typeflag != tar.TypeReg:
			return nil, fmt.Errorf("%.80q is not a regular file", h.Name)
		case !fs.ValidPath(name):
			return nil, fmt.Errorf("%.80q is not a path inside the bundle", h.Name)
		case name == ".signatures.json":
			return nil, errors.New("it is signed, and signatures are not checked here: build it without")
		case slices.ContainsFunc(strings.Split(name, "/"), func(part string) bool { return strings.HasPrefix(part, ".") }):
			continue // OPA's .manifest, and whatever else is hidden, as in Load
		case !isPolicyOrData(name):
			return nil, fmt.Errorf("%.80q is neither policy (.rego) nor data (data.json, data.yaml)", h.Name)
		case !isBundled(name):
			continue // a test
		}
		if err := c.add(name, archive); err != nil {
			return nil, err
		}
	}
	return c.bundle()
}

// Default returns the bundle that is in force where nobody has activated another. docs/policy.md describes it.
func Default() *Bundle { return defaultBundle() }

var defaultBundle = sync.OnceValue(func() *Bundle {
	b, err := Load(DefaultFiles())
	if err != nil {
		panic(err) // embedded, and tested
	}
	return b
})

// DefaultFiles returns the default bundle's source with its tests: what a team copies to begin its own.
func DefaultFiles() fs.FS {
	sub, err := fs.Sub(defaultFiles, "bundle")
	if err != nil {
		panic(err) // embedded
	}
	return sub
}

// Digest names the bundle: "sha256:" and the lower-case hex SHA-256 of the tar archive in [Bundle.Bytes], which is
// what `gunzip -c bundle.tar.gz | sha256sum` prints.
func (b *Bundle) Digest() string { return b.digest }

// Files returns the bundle's files, sorted by path: data.json among them.
func (b *Bundle) Files() []File {
	files := append(slices.Clone(b.files), File{Path: dataFile, Content: b.data})
	slices.SortFunc(files, func(a, b File) int { return strings.Compare(a.Path, b.Path) })
	return files
}

// Bytes returns the bundle as a gzipped tar archive that OPA reads, too. Equal content gives equal bytes, as long as Go's
// gzip does not change; the digest does not depend on that.
func (b *Bundle) Bytes() []byte {
	var out bytes.Buffer
	zip := gzip.NewWriter(&out)
	_, _ = zip.Write(b.tar) // a bytes.Buffer takes everything
	_ = zip.Close()
	return out.Bytes()
}

// WithData returns a bundle whose data has value at a slash-separated path, as in "/home" or "/limits/grant_ttl".
// Objects on the way are made where they are missing; a path through anything but an object is refused.
func (b *Bundle) WithData(at string, value any) (*Bundle, error) {
	encoded, err := json.Marshal(value, json.Deterministic(true))
	if err != nil {
		return nil, fmt.Errorf("policies: data at %s: %w", at, err)
	}
	steps := strings.Split(strings.TrimPrefix(at, "/"), "/")
	if slices.Contains(steps, "") {
		return nil, fmt.Errorf("policies: data at %q: the path must name a member, as /home does", at)
	}
	root, err := decodeObject(b.data)
	if err != nil {
		return nil, fmt.Errorf("policies: data at %s: %w", at, err)
	}
	object, last := root, steps[len(steps)-1]
	for _, step := range steps[:len(steps)-1] {
		if _, ok := object[step]; !ok {
			object[step] = map[string]any{}
		}
		inner, ok := object[step].(map[string]any)
		if !ok {
			return nil, fmt.Errorf("policies: data at %s: %s is not an object", at, step)
		}
		object = inner
	}
	object[last] = jsontext.Value(encoded)
	data, err := json.Marshal(root)
	if err != nil {
		return nil, fmt.Errorf("policies: data at %s: %w", at, err)
	}
	c := contents{files: b.files, data: []File{{Path: dataFile, Content: data}}}
	next, err := c.bundle()
	if err != nil {
		return nil, fmt.Errorf("policies: data at %s: %w", at, err)
	}
	return next, nil
}

var (
	errTooMuch = fmt.Errorf("its files have more than %d bytes together", MaxBundleContent)
	errTooMany = fmt.Errorf("it has more than %d files", MaxBundleFiles)
)

func isPolicyOrData(name string) bool {
	switch path.Base(name) {
	case dataFile, "data.yaml", "data.yml":
		return true
	}
	return path.Ext(name) == ".rego"
}

func isBundled(name string) bool {
	return isPolicyOrData(name) && !strings.HasSuffix(name, "_test.rego")
}

// contents gathers the files of a bundle within the limits.
type contents struct {
	files, data []File
	size        int
}

func (c *contents) add(name string, r io.Reader) error {
	if len(name) > MaxBundlePath {
		return fmt.Errorf("%.80q…: a path has at most %d bytes", name, MaxBundlePath)
	}
	if len(c.files)+len(c.data) == MaxBundleFiles {
		return errTooMany
	}
	content, err := io.ReadAll(io.LimitReader(r, int64(MaxBundleContent-c.size)+1))
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	if c.size += len(content); c.size > MaxBundleContent {
		return errTooMuch
	}
	f := File{Path: name, Content: content}
	if path.Ext(name) == ".rego" {
		c.files = append(c.files, f)
	} else {
		c.data = append(c.data, f)
	}
	return nil
}

func (c *contents) bundle() (*Bundle, error) {
	root := map[string]any{}
	for _, f := range c.data {
		members, err := decodeData(f)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", f.Path, err)
		}
		if dir := path.Dir(f.Path); dir != "." {
			for _, step := range slices.Backward(strings.Split(dir, "/")) {
				members = map[string]any{step: members}
			}
		}
		if err := merge(root, members, ""); err != nil {
			return nil, fmt.Errorf("%s: %w", f.Path, err)
		}
	}
	data, err := json.Marshal(root, json.Deterministic(true))
	if err != nil {
		return nil, err
	}
	// What is accepted here must be readable again, as one archive: at the next start, for example.
	size := len(data)
	for _, f := range c.files {
		size += len(f.Content)
	}
	if size > MaxBundleContent {
		return nil, errTooMuch
	}
	if len(c.files)+1 > MaxBundleFiles { // with data.json
		return nil, errTooMany
	}
	files := slices.SortedFunc(slices.Values(c.files), func(a, b File) int { return strings.Compare(a.Path, b.Path) })
	for i := 1; i < len(files); i++ {
		if files[i].Path == files[i-1].Path {
			return nil, fmt.Errorf("%s is there twice", files[i].Path)
		}
	}
	b := &Bundle{files: files, data: data}
	if b.tar, err = writeTar(b.Files()); err != nil {
		return nil, err
	}
	sum := sha256.Sum256(b.tar)
	b.digest = "sha256:" + hex.EncodeToString(sum[:])
	if n := len(b.Bytes()); n > MaxBundle {
		return nil, fmt.Errorf("it has %d bytes compressed; at most %d are allowed", n, MaxBundle)
	}
	return b, nil
}

func decodeData(f File) (map[string]any, error) {
	content := f.Content
	if path.Ext(f.Path) != ".json" {
		v, err := decodeYAML(content)
		if err != nil {
			return nil, err
		}
		if content, err = json.Marshal(v); err != nil {
			return nil, err
		}
	}
	return decodeObject(content)
}

// decodeYAML reads what JSON can say: one document, without aliases, which can make much of little, and with numbers as
// they are written.
func decodeYAML(content []byte) (any, error) {
	var doc, more yaml.Node
	d := yaml.NewDecoder(bytes.NewReader(content))
	if err := d.Decode(&doc); err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	if err := d.Decode(&more); !errors.Is(err, io.EOF) {
		return nil, errors.New("it has more than one document, or something behind it; put each into a file of its own")
	}
	if len(doc.Content) != 1 {
		return nil, errors.New("the data must be an object")
	}
	return yamlValue(doc.Content[0])
}

func yamlValue(n *yaml.Node) (any, error) {
	refuse := func(why string) (any, error) { return nil, fmt.Errorf("line %d: %s", n.Line, why) }
	switch n.Kind {
	case yaml.MappingNode:
		object := map[string]any{}
		for i := 0; i+1 < len(n.Content); i += 2 {
			key := n.Content[i]
			if key.Kind != yaml.ScalarNode || key.ShortTag() == "!!merge" {
				return refuse("a name in an object must be a plain string; << and aliases are not read")
			}
			if _, twice := object[key.Value]; twice {
				return refuse(fmt.Sprintf("%.80q is there twice", key.Value))
			}
			v, err := yamlValue(n.Content[i+1])
			if err != nil {
				return nil, err
			}
			object[key.Value] = v
		}
		return object, nil
	case yaml.SequenceNode:
		list := make([]any, len(n.Content))
		for i, item := range n.Content {
			var err error
			if list[i], err = yamlValue(item); err != nil {
				return nil, err
			}
		}
		return list, nil
	case yaml.ScalarNode:
		switch n.ShortTag() {
		case "!!null":
			return nil, nil
		case "!!bool":
			var yes bool
			err := n.Decode(&yes)
			return yes, err
		case "!!int", "!!float":
			if number := jsontext.Value(n.Value); number.IsValid() && number.Kind() == '0' {
				return number, nil
			}
			return refuse(fmt.Sprintf("write the number %.80q as JSON does, or in quotes", n.Value))
		}
		return n.Value, nil
	}
	return refuse("aliases are not read; write the value where it is meant")
}

// decodeObject keeps numbers as they were written: doubles would change long ones.
func decodeObject(data []byte) (map[string]any, error) {
	var v any
	if err := json.Unmarshal(data, &v, numbersAsWritten); err != nil {
		return nil, err
	}
	object, ok := v.(map[string]any)
	if !ok {
		return nil, errors.New("the data must be an object")
	}
	return object, nil
}

var numbersAsWritten = json.WithUnmarshalers(json.UnmarshalFromFunc(func(d *jsontext.Decoder, v *any) error {
	if d.PeekKind() == '0' {
		*v = jsontext.Value(nil) // the decoder fills what the interface holds
	}
	return errors.ErrUnsupported
}))

func merge(into, from map[string]any, at string) error {
	for _, name := range slices.Sorted(maps.Keys(from)) {
		old, taken := into[name]
		if !taken {
			into[name] = from[name]
			continue
		}
		a, aok := old.(map[string]any)
		b, bok := from[name].(map[string]any)
		if !aok || !bok {
			return fmt.Errorf("another data file defines %s/%s, too", at, name)
		}
		if err := merge(a, b, at+"/"+name); err != nil {
			return err
		}
	}
	return nil
}

// writeTar writes only what names and content determine: no times, owners or modes of a file system.
func writeTar(files []File) ([]byte, error) {
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for _, f := range files {
		// OPA's own bundles name files from the root.
		h := tar.Header{Typeflag: tar.TypeReg, Name: "/" + f.Path, Mode: 0o600, Size: int64(len(f.Content))}
		if err := w.WriteHeader(&h); err != nil {
			return nil, err
		}
		if _, err := w.Write(f.Content); err != nil {
			return nil, err
		}
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return out.Bytes(), nil
}
