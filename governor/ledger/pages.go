package ledger

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"maps"
	"slices"
)

// This file reads the pages of a bbolt file without bbolt, which follows a damaged one wherever it points: out of the file, or
// round in a circle until the stack is full, which no program survives. What is read here is measured first.
//
// A page has a header of 16 bytes: its number (u64), its type (u16), how many elements it has (u16), and how many further pages it
// runs over (u32). A table of 16-byte elements follows. A branch's has for each child where its first key lies (u32), how long that
// is (u32), and the child's page (u64); a leaf's has flags (u32), where the key lies (u32) and the lengths of the key and of the
// value after it (u32 each). Numbers are in the byte order of the machine.
const (
	pageHeader  = 16
	pageElement = 16

	typeBranch   = 1
	typeLeaf     = 2
	typeHeader   = 4
	typeFreelist = 16

	bucketFlag   = 1  // of a leaf's element: its value is a bucket
	bucketHeader = 16 // root (u64), sequence (u64); a leaf follows where the root is 0

	headerMagic = 0xED0CDAED
	headerSize  = 64 // of what follows the page's own header; its checksum is the last 8 bytes
	maxHeight   = 32 // of a tree: bbolt puts at least two children into a branch
)

var order = binary.NativeEndian

// header is what the file's page 0 and page 1 say in turn: where everything is since a transaction.
type header struct {
	root, freelist, pages, tx uint64
}

// readHeader reads one of the two.
func readHeader(file io.ReaderAt, page uint64, pageSize int) (h header, err error) {
	b := make([]byte, pageHeader+headerSize)
	if _, err := file.ReadAt(b, int64(page)*int64(pageSize)); err != nil {
		return h, err
	}
	sum := fnv.New64a()
	sum.Write(b[pageHeader : pageHeader+headerSize-8])
	meta := b[pageHeader:]
	switch {
	case order.Uint16(b[8:]) != typeHeader || order.Uint32(meta) != headerMagic:
		return h, damagedPage(page, "is not a header")
	case order.Uint64(meta[headerSize-8:]) != sum.Sum64():
		return h, damagedPage(page, "is a header, and does not have its checksum")
	}
	return header{
		root: order.Uint64(meta[16:]), freelist: order.Uint64(meta[32:]), pages: order.Uint64(meta[40:]), tx: order.Uint64(meta[48:]),
	}, nil
}

// createdBy is the newer of the two transactions that a new file has headers of. Where that is the newest whole one, nothing has been
// recorded: the file was being made when the power failed.
const createdBy = 1

// newestHeader reads both, and returns the newest that is whole, with an error where one is not: bbolt goes on with the other,
// which is that of the transaction before, and what was committed last is gone without a word. A crash leaves none damaged, since
// a header is within one sector of a disk.
func newestHeader(file io.ReaderAt, pageSize int) (header, error) {
	a, err := readHeader(file, 0, pageSize)
	b, other := readHeader(file, 1, pageSize)
	if b.tx > a.tx {
		a = b
	}
	return a, errors.Join(err, other)
}

func damagedPage(page uint64, format string, args ...any) error {
	return fmt.Errorf("%w: page %d %s", ErrDamaged, page, fmt.Sprintf(format, args...))
}

// pages are those of one file, as of one header.
type pages struct {
	file     io.ReaderAt
	size     int64 // of the file, in bytes
	pageSize int
	header
	damaged error // where the other header is
	// leaves has every page read. Without it branches are: where they lead is then certain, which is what keeps bbolt from going
	// round in circles; that takes a hundredth of the time.
	leaves bool

	seen    []bool // :: page → it has its place
	buffers [maxHeight][]byte
	// each gets what the leaves hold, with the bucket it is in. It must not keep the slices.
	each func(bucket, key, value []byte) error
}

// check reads every bucket.
func (p *pages) check() error {
	if p.pages > uint64(p.size)/uint64(p.pageSize) {
		return fmt.Errorf("%w: it has %d bytes, and should have %d pages of %d", ErrDamaged, p.size, p.pages, p.pageSize)
	}
	p.seen = make([]bool, p.pages)
	root := *p // shares what is seen
	root.leaves = true
	buckets := map[string][]byte{}
	root.each = func(_, key, value []byte) error {
		buckets[string(key)] = bytes.Clone(value)
		return nil
	}
	if err := root.tree(nil, p.root); err != nil {
		return err
	}
	for _, name := range slices.Sorted(maps.Keys(buckets)) {
		value := buckets[name]
		if len(value) < bucketHeader {
			return fmt.Errorf("%w: bucket %q has no header", ErrDamaged, name)
		}
		var err error
		if at := order.Uint64(value); at != 0 {
			err = p.tree([]byte(name), at)
		} else {
			err = p.leaf([]byte(name), p.root, value[bucketHeader:], limits{})
		}
		if err != nil {
			return err
		}
	}
	if !p.leaves {
		return nil
	}
	return p.free()
}

// limits of the keys below a branch: at least min, and less than max, or any where they are nil.
type limits struct{ min, max []byte }

// child is a page to be read next.
type child struct {
	page uint64
	limits
}

// tree reads a tree from its root.
func (p *pages) tree(bucket []byte, root uint64) error {
	if _, err := p.walk(bucket, child{page: root}, 0); err != nil {
		return fmt.Errorf("bucket %q: %w", bucket, err)
	}
	return nil
}

// walk reads what is below a page, and tells how high that is: 0 for a leaf. All leaves of a tree are equally deep.
func (p *pages) walk(bucket []byte, c child, depth int) (height int, err error) {
	if depth == maxHeight {
		return 0, damagedPage(c.page, "is too far below the root")
	}
	page, err := p.read(c.page, depth)
	if err != nil {
		return 0, err
	}
	switch order.Uint16(page[8:]) {
	case typeLeaf:
		if p.leaves {
			err = p.leaf(bucket, c.page, page, c.limits)
		}
		return 0, err
	case typeBranch:
	default:
		return 0, damagedPage(c.page, "is neither a branch nor a leaf")
	}
	children, err := p.branch(c, page)
	if err != nil {
		return 0, err
	}
	for i, c := range children {
		if i > 0 && height == 0 && !p.leaves {
			if err := p.place(c.page); err != nil { // a leaf, as its neighbour is
				return 0, err
			}
			continue
		}
		h, err := p.walk(bucket, c, depth+1)
		if err == nil && i > 0 && h != height {
			err = damagedPage(c.page, "is not as far from the leaves as its neighbour")
		}
		if err != nil {
			return 0, err
		}
		height = h
	}
	return height + 1, nil
}

// place gives a page the one place that it may have in the file.
func (p *pages) place(number uint64) error {
	switch {
	case number < 2 || number >= p.pages:
		return damagedPage(number, "is asked for, and there are %d", p.pages)
	case p.seen[number]:
		return damagedPage(number, "has two places in the file")
	}
	p.seen[number] = true
	return nil
}

// read reads a page with what it runs over. The next read for the same depth overwrites it.
func (p *pages) read(number uint64, depth int) (page []byte, err error) {
	if err := p.place(number); err != nil {
		return nil, err
	}
	if p.buffers[depth] == nil {
		p.buffers[depth] = make([]byte, p.pageSize)
	}
	page = p.buffers[depth]
	if _, err := p.file.ReadAt(page, int64(number)*int64(p.pageSize)); err != nil {
		return nil, damagedPage(number, "cannot be read: %v", err)
	}
	if own := order.Uint64(page); own != number {
		return nil, damagedPage(number, "says that it is page %d", own)
	}
	more := uint64(order.Uint32(page[12:]))
	if more == 0 {
		return page, nil
	}
	if more >= p.pages-number {
		return nil, damagedPage(number, "runs over %d pages, and there are %d", more, p.pages)
	}
	for i := range more {
		if err := p.place(number + 1 + i); err != nil {
			return nil, err
		}
	}
	page = make([]byte, (more+1)*uint64(p.pageSize))
	if _, err := p.file.ReadAt(page, int64(number)*int64(p.pageSize)); err != nil {
		return nil, damagedPage(number, "cannot be read: %v", err)
	}
	return page, nil
}

// slice is a part of a page that an element points to, from where the element is.
func slice(page []byte, element int, at, size uint32) ([]byte, bool) {
	from := uint64(element) + uint64(at)
	if from+uint64(size) > uint64(len(page)) {
		return nil, false
	}
	return page[from : from+uint64(size)], true
}

// branch returns the children of a branch.
func (p *pages) branch(c child, page []byte) ([]child, error) {
	n := int(order.Uint16(page[10:]))
	if n == 0 || pageHeader+n*pageElement > len(page) {
		return nil, damagedPage(c.page, "is a branch with %d children", n)
	}
	children := make([]child, n)
	for i := range children {
		element := pageHeader + i*pageElement
		key, ok := slice(page, element, order.Uint32(page[element:]), order.Uint32(page[element+4:]))
		if !ok {
			return nil, damagedPage(c.page, "has key %d outside of it", i)
		}
		if i > 0 {
			children[i-1].max = key
		}
		if i == 0 && c.min != nil && bytes.Compare(key, c.min) < 0 || i > 0 && bytes.Compare(children[i-1].min, key) >= 0 ||
			c.max != nil && bytes.Compare(key, c.max) >= 0 {
			return nil, damagedPage(c.page, "has key %d out of order", i)
		}
		children[i] = child{order.Uint64(page[element+8:]), limits{min: key, max: c.max}}
	}
	return children, nil
}

// leaf hands over what a leaf holds, which may lie within another page.
func (p *pages) leaf(bucket []byte, number uint64, page []byte, within limits) error {
	if len(page) < pageHeader || order.Uint16(page[8:]) != typeLeaf {
		return damagedPage(number, "of bucket %q holds no leaf", bucket)
	}
	n := int(order.Uint16(page[10:]))
	if pageHeader+n*pageElement > len(page) {
		return damagedPage(number, "is a leaf with %d elements", n)
	}
	wantFlags := uint32(0)
	if bucket == nil {
		wantFlags = bucketFlag
	}
	var before []byte
	for i := range n {
		element := pageHeader + i*pageElement
		at, keySize, valueSize := order.Uint32(page[element+4:]), order.Uint32(page[element+8:]), order.Uint32(page[element+12:])
		key, ok := slice(page, element, at, keySize)
		value, all := slice(page, element, at+keySize, valueSize)
		switch {
		case !ok || !all || at+keySize < at:
			return damagedPage(number, "has element %d outside of it", i)
		case order.Uint32(page[element:]) != wantFlags:
			return damagedPage(number, "has element %d of another kind than its bucket's", i)
		case i > 0 && bytes.Compare(before, key) >= 0, within.min != nil && bytes.Compare(key, within.min) < 0,
			within.max != nil && bytes.Compare(key, within.max) >= 0:
			return damagedPage(number, "has key %d out of order", i)
		}
		before = key
		if p.each != nil {
			if err := p.each(bucket, key, value); err != nil {
				return damagedPage(number, "holds what it should not: %v", err)
			}
		}
	}
	return nil
}

// free checks that every page is in a tree, or listed as free, and none both.
func (p *pages) free() error {
	list, err := p.read(p.freelist, 0)
	if err != nil {
		return err
	}
	n, at := uint64(order.Uint16(list[10:])), pageHeader
	if n == 0xFFFF {
		n, at = order.Uint64(list[pageHeader:]), pageHeader+8
	}
	if order.Uint16(list[8:]) != typeFreelist || n > uint64(len(list)-at)/8 {
		return damagedPage(p.freelist, "is not a list of free pages")
	}
	for before := uint64(1); n > 0; n-- {
		page := order.Uint64(list[at:])
		at += 8
		switch {
		case page <= before || page >= p.pages:
			return damagedPage(p.freelist, "lists %d as free, out of order", page)
		case p.seen[page]:
			return damagedPage(p.freelist, "lists page %d as free, and it is in use", page)
		}
		p.seen[page], before = true, page
	}
	for page := uint64(2); page < p.pages; page++ {
		if !p.seen[page] {
			return damagedPage(page, "is neither in use nor free")
		}
	}
	return nil
}
