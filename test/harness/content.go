package harness

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// PageSize is the unit of the block map.
const PageSize = 4096

type safeBuffer struct {
	mu sync.Mutex // guards b
	b  bytes.Buffer
}

func (s *safeBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *safeBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// Sum is the SHA-256 of bytes, in hex.
func Sum(b []byte) string {
	h := sha256.Sum256(b)
	return hex.EncodeToString(h[:])
}

// SumFile is the SHA-256 of a file, read from its start to its end.
func SumFile(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// DataPages returns which pages SEEK_DATA and SEEK_HOLE call data, as ranges of bytes.
func DataPages(path string) ([][2]int64, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var list [][2]int64
	for at := int64(0); ; {
		from, err := unix.Seek(int(f.Fd()), at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			return list, nil
		}
		if err != nil {
			return nil, fmt.Errorf("SEEK_DATA from %d: %w", at, err)
		}
		to, err := unix.Seek(int(f.Fd()), from, unix.SEEK_HOLE)
		if err != nil {
			return nil, fmt.Errorf("SEEK_HOLE from %d: %w", from, err)
		}
		if from < at || to <= from {
			return nil, fmt.Errorf("extents go back: data from %d to %d, asked from %d", from, to, at)
		}
		list, at = append(list, [2]int64{from, to}), to
	}
}

// NonZero returns the pages of b that are not all zeroes, as ranges of bytes.
func NonZero(b []byte) [][2]int64 {
	var list [][2]int64
	zero := make([]byte, PageSize)
	for at := 0; at < len(b); at += PageSize {
		end := min(at+PageSize, len(b))
		if bytes.Equal(b[at:end], zero[:end-at]) {
			continue
		}
		if n := len(list); n > 0 && list[n-1][1] == int64(at) {
			list[n-1][1] = int64(end)
		} else {
			list = append(list, [2]int64{int64(at), int64(end)})
		}
	}
	return list
}

// Bytes adds up the sizes of all files below dir, which may be removed meanwhile; dir must be there.
func Bytes(t testing.TB, dir string) int64 {
	t.Helper()
	var n int64
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			var info fs.FileInfo
			if info, err = d.Info(); err == nil {
				n += info.Size()
			}
		}
		if path != dir && errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// WriteFile makes a file, with holes where b has zeroes.
func WriteFile(t testing.TB, path string, b []byte) {
	t.Helper()
	WriteSparse(t, path, int64(len(b)))
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range NonZero(b) {
		if _, err := f.WriteAt(b[r[0]:r[1]], r[0]); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
}
