package mountctl

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"livemount/internal/errs"
	"livemount/server/api"
)

const (
	maxExtents     = 1 << 20
	maxExtentBytes = 96 << 20
)

// ReadExtents decodes a JSON list of changed extents: [{"offset": N, "length": N}, …], in bytes. It
// reads at most 96 MiB and a million extents. Order and overlaps are checked by livemountd, which knows
// the disk.
func ReadExtents(r io.Reader) ([]api.Range, error) {
	limited := &io.LimitedReader{R: r, N: maxExtentBytes}
	d := json.NewDecoder(limited)
	d.DisallowUnknownFields()
	list := []api.Range{}
	if err := delim(d, '['); err != nil {
		return nil, extentError(0, limited, err)
	}
	for d.More() {
		if len(list) == maxExtents {
			return nil, tooMany(fmt.Sprintf("more than %d extents", maxExtents))
		}
		e, err := decodeExtent(d)
		if err != nil {
			return nil, extentError(len(list), limited, err)
		}
		list = append(list, e)
	}
	if err := delim(d, ']'); err != nil {
		return nil, extentError(len(list), limited, err)
	}
	if d.More() {
		return nil, errs.New(errs.Invalid, "there is something behind the list")
	}
	return list, nil
}

func decodeExtent(d *json.Decoder) (api.Range, error) {
	var e struct {
		Offset *int64 `json:"offset"`
		Length *int64 `json:"length"`
		Kind   string `json:"kind"` // of mountctl diff: whatever it says, the range is read
	}
	if err := d.Decode(&e); err != nil {
		return api.Range{}, err
	}
	if e.Offset == nil || e.Length == nil {
		return api.Range{}, errors.New("an extent needs offset and length, both numbers of bytes")
	}
	return api.Range{Offset: *e.Offset, Length: *e.Length}, nil
}

func delim(d *json.Decoder, want json.Delim) error {
	t, err := d.Token()
	if err == nil && t != want {
		err = fmt.Errorf("found %v where %q is due", t, want.String())
	}
	return err
}

func extentError(n int, l *io.LimitedReader, err error) error {
	if l.N == 0 {
		return tooMany(fmt.Sprintf("more than %d MiB", maxExtentBytes>>20))
	}
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		err = errors.New("the file ends before the list does")
	}
	return errs.WithTry(errs.New(errs.Invalid, "extent %d: %w", n, err), `[{"offset": 0, "length": 65536}]`)
}

func tooMany(what string) error {
	return errs.WithTry(errs.New(errs.Invalid, "%s", what), "join neighbours, or leave --changed out: then all is compared")
}
