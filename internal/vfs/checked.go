package vfs

import (
	"bytes"
	"fmt"
	"hash/crc32"

	"livemount/internal/errs"
)

// trailerLen is the length of "\ncrc32c 01234567\n".
const trailerLen = 17

// WriteChecked is WriteFile with a last line that holds the CRC32C of all bytes before it.
func WriteChecked(fsys FS, name string, data []byte) error {
	return WriteFile(fsys, name, append(bytes.Clone(data), checkLine(data)...))
}

func checkLine(data []byte) string {
	return fmt.Sprintf("\ncrc32c %08x\n", crc32.Checksum(data, crc32.MakeTable(crc32.Castagnoli)))
}

// ReadChecked returns what WriteChecked wrote, or Corrupt. What the bytes mean, also which version wrote
// them, is only known once they have passed.
func ReadChecked(fsys FS, name string, limit int64) ([]byte, error) {
	b, err := ReadFile(fsys, name, limit)
	if err != nil {
		return nil, err
	}
	return Checked(name, b)
}

// Checked returns the content of b without its last line, which must be right.
func Checked(name string, b []byte) ([]byte, error) {
	n := len(b) - trailerLen
	if n < 0 || string(b[n:]) != checkLine(b[:n]) {
		return nil, errs.New(errs.Corrupt, "%s: checksum mismatch", name)
	}
	return b[:n], nil
}
