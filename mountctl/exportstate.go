package mountctl

import (
	"encoding/json"
	"fmt"

	"livemount/internal/errs"
	"livemount/internal/vfs"
)

// exportState is FILE.part.json: what FILE.part will be, and up to where all of it is on disk.
type exportState struct {
	ETag      string `json:"etag"`
	Format    string `json:"format"`
	SizeBytes int64  `json:"size_bytes"`
	Offset    int64  `json:"offset"`
}

const maxState = 64 << 10

func stateName(part string) string { return part + ".json" }

// readState returns nil when there is none. One that cannot be read says nothing about the file.
func readState(fs vfs.FS, part string) (*exportState, error) {
	b, err := vfs.ReadFile(fs, stateName(part), maxState)
	if errs.Is(err, errs.NotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var s exportState
	if json.Unmarshal(b, &s) != nil {
		return &exportState{}, nil
	}
	return &s, nil
}

// write makes the state durable that says that all before at is on disk.
func (s exportState) write(fs vfs.FS, part string, at int64) error {
	s.Offset = at
	b, err := json.Marshal(s)
	if err != nil {
		return err
	}
	return vfs.WriteFile(fs, stateName(part), append(b, '\n'))
}

// differs says why a file of so many bytes, of which old speaks, is not the beginning of what s wants; empty
// when it is.
func (s *exportState) differs(old *exportState, have int64) string {
	switch {
	case old == nil:
		return "nothing says what it is"
	case old.ETag != s.ETag || old.Format != s.Format || old.SizeBytes != s.SizeBytes:
		return "it is of another point, disk or format"
	case have != s.SizeBytes || old.Offset < 0 || old.Offset > have:
		return fmt.Sprintf("it has %d bytes", have)
	}
	return ""
}

func removeState(fs vfs.FS, part string) error {
	err := fs.Remove(stateName(part))
	if errs.Is(err, errs.NotFound) {
		return nil
	}
	return err
}
