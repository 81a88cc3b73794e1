package entry

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

// Checkpoint is what a log signs: so many entries, and the hash of the tree over them (C2SP tlog-checkpoint).
type Checkpoint struct {
	Origin string // the log's name
	Size   uint64
	Root   tlog.Hash
}

// String is the text of the checkpoint's note: three lines.
func (c Checkpoint) String() string {
	return fmt.Sprintf("%s\n%d\n%s\n", c.Origin, c.Size, base64.StdEncoding.EncodeToString(c.Root[:]))
}

// maxCheckpoint bounds a signed checkpoint: three short lines, some witnesses' signatures.
const maxCheckpoint = 16 << 10

// OpenCheckpoint verifies a signed checkpoint under the log's key, a note verifier key as in wire.Keys.LogKey
// (`name+hash+base64`). Signatures by others, witnesses for example, are allowed and not checked.
func OpenCheckpoint(signed []byte, logKey string) (Checkpoint, error) {
	verifier, err := note.NewVerifier(logKey)
	if err != nil {
		return Checkpoint{}, fmt.Errorf("log key: %w; it looks like name+hash+base64", err)
	}
	if len(signed) > maxCheckpoint {
		return Checkpoint{}, fmt.Errorf("checkpoint has %d bytes; at most %d are allowed", len(signed), maxCheckpoint)
	}
	n, err := note.Open(signed, note.VerifierList(verifier))
	if err != nil {
		return Checkpoint{}, fmt.Errorf("checkpoint: %w", err)
	}
	for _, sig := range n.Sigs { // note decodes leniently; one checkpoint has one spelling
		if _, err := base64.StdEncoding.Strict().DecodeString(sig.Base64); err != nil {
			return Checkpoint{}, fmt.Errorf("checkpoint: the signature's base64: %w", err)
		}
	}
	c, err := parseText(n.Text)
	if err != nil {
		return Checkpoint{}, err
	}
	if c.Origin != verifier.Name() {
		return Checkpoint{}, fmt.Errorf("checkpoint of log %q is signed by %q", c.Origin, verifier.Name())
	}
	return c, nil
}

// ParseCheckpoint reads a signed checkpoint without verifying it: believe nothing that it says.
func ParseCheckpoint(signed []byte) (Checkpoint, error) {
	text, _, found := bytes.Cut(signed, []byte("\n\n"))
	if !found || len(signed) > maxCheckpoint {
		return Checkpoint{}, errors.New("checkpoint is not a signed note")
	}
	return parseText(string(text) + "\n")
}

// parseText reads origin, size and root; lines after them are extensions, which the format allows.
func parseText(text string) (Checkpoint, error) {
	bad := func(what string) (Checkpoint, error) {
		return Checkpoint{}, fmt.Errorf("checkpoint: %s; see C2SP tlog-checkpoint", what)
	}
	lines := strings.Split(text, "\n")
	if len(lines) < 4 || lines[0] == "" {
		return bad("it needs lines for origin, size and root hash")
	}
	size, err := strconv.ParseUint(lines[1], 10, 64)
	if err != nil || strconv.FormatUint(size, 10) != lines[1] || size > maxExact {
		return bad("its size is not a number")
	}
	root, err := base64.StdEncoding.Strict().DecodeString(lines[2])
	if err != nil || len(root) != tlog.HashSize || base64.StdEncoding.EncodeToString(root) != lines[2] {
		return bad("its root hash is not 32 bytes in base64")
	}
	return Checkpoint{Origin: lines[0], Size: size, Root: tlog.Hash(root)}, nil
}

// CheckInclusion tells whether the encoded entry is number index of the log whose checkpoint c is, by the proof that
// the log gave. Take c from [OpenCheckpoint].
func CheckInclusion(c Checkpoint, index uint64, encoded []byte, proof tlog.RecordProof) error {
	if index >= c.Size {
		return fmt.Errorf("entry %d is beyond the checkpoint's %d entries", index, c.Size)
	}
	e, err := Decode(encoded)
	if err != nil {
		return err
	}
	if e.Index != index || e.Log != c.Origin {
		return fmt.Errorf("the entry says that it is %d of log %q, not %d of %q", e.Index, e.Log, index, c.Origin)
	}
	if err := tlog.CheckRecord(proof, int64(c.Size), c.Root, int64(index), LeafHash(encoded)); err != nil {
		return fmt.Errorf("entry %d is not in the log: %w", index, err)
	}
	return nil
}

// CheckConsistency tells whether the log only grew between two checkpoints, by the proof that it gave.
func CheckConsistency(older, newer Checkpoint, proof tlog.TreeProof) error {
	switch {
	case older.Origin != newer.Origin:
		return fmt.Errorf("the checkpoints are of two logs, %q and %q", older.Origin, newer.Origin)
	case older.Size > newer.Size:
		return fmt.Errorf("the log had %d entries, and now has %d", older.Size, newer.Size)
	case older.Size == 0:
		return nil // everything continues nothing
	case older.Size == newer.Size:
		if older.Root != newer.Root {
			return errors.New("two histories: the checkpoints have the same size and different roots")
		}
		return nil
	}
	if err := tlog.CheckTree(proof, int64(newer.Size), newer.Root, int64(older.Size), older.Root); err != nil {
		return fmt.Errorf("the log's first %d entries were changed: %w", older.Size, err)
	}
	return nil
}
