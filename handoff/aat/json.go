package aat

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/go-json-experiment/json/jsontext"
)

// The readers below work on jsontext, which refuses duplicate member names, invalid UTF-8 and bad syntax by itself.

// decoders keeps what a decoder has grown to tell duplicate names apart: tokens are many, small and alike.
var decoders = sync.Pool{New: func() any { return jsontext.NewDecoder(nothing{}) }}

// nothing is the input of a decoder in the pool, so that it holds on to nobody's bytes.
type nothing struct{}

func (nothing) Read([]byte) (int, error) { return 0, io.EOF }

// decodeWhole runs read over b and refuses what it leaves.
func decodeWhole(b []byte, read func(*jsontext.Decoder) error) error {
	dec := decoders.Get().(*jsontext.Decoder)
	defer func() {
		dec.Reset(nothing{})
		decoders.Put(dec)
	}()
	dec.Reset(bytes.NewBuffer(b))
	if err := read(dec); err != nil {
		return err
	}
	if _, err := dec.ReadToken(); err == nil {
		return errors.New("data after the JSON value")
	} else if err != io.EOF {
		return err
	}
	return nil
}

// readObject reads an object and has member read the value of each of its members.
func readObject(dec *jsontext.Decoder, member func(name string) error) error {
	if dec.PeekKind() != '{' {
		return unexpected(dec, "an object")
	}
	if _, err := dec.ReadToken(); err != nil {
		return err
	}
	for dec.PeekKind() != '}' {
		name, err := dec.ReadToken()
		if err != nil {
			return err
		}
		if err := member(name.String()); err != nil {
			return err
		}
	}
	_, err := dec.ReadToken()
	return err
}

// readArray reads an array and has element read each of its elements.
func readArray(dec *jsontext.Decoder, element func() error) error {
	if dec.PeekKind() != '[' {
		return unexpected(dec, "an array")
	}
	if _, err := dec.ReadToken(); err != nil {
		return err
	}
	for dec.PeekKind() != ']' {
		if err := element(); err != nil {
			return err
		}
	}
	_, err := dec.ReadToken()
	return err
}

// unexpected says what was wanted, unless the next value has a syntax error to tell of instead.
func unexpected(dec *jsontext.Decoder, want string) error {
	if err := dec.SkipValue(); err != nil {
		return err
	}
	return fmt.Errorf("want %s", want)
}

// rawMembers reads the object b and gives each member's value as it is written. Values share memory with b.
func rawMembers(b []byte, member func(name string, value jsontext.Value)) error {
	return decodeWhole(b, func(dec *jsontext.Decoder) error {
		return readObject(dec, func(name string) error {
			v, err := rawValue(dec, b)
			if err == nil {
				member(name, v)
			}
			return err
		})
	})
}

// rawValue reads the next value of b, which dec decodes. What a decoder itself returns is good until its next read only.
func rawValue(dec *jsontext.Decoder, b []byte) (jsontext.Value, error) {
	v, err := dec.ReadValue()
	if err != nil {
		return nil, err
	}
	end := dec.InputOffset()
	return b[end-int64(len(v)) : end : end], nil
}
