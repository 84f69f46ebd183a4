// Command changed prints which blocks of two images of a disk differ, as the JSON list that mountctl
// backup --changed reads. It stands in for the changed block tracking of a hypervisor.
package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
)

const blockSize = 64 << 10

type extent struct {
	Offset int64 `json:"offset"`
	Length int64 `json:"length"`
}

func main() {
	if len(os.Args) != 3 {
		fmt.Fprintln(os.Stderr, "usage: changed OLD NEW > extents.json")
		os.Exit(2)
	}
	list, err := compare(os.Args[1], os.Args[2])
	if err == nil {
		err = json.NewEncoder(os.Stdout).Encode(list)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "changed:", err)
		os.Exit(1)
	}
}

// compare returns the extents of the new image, in blocks of 64 KiB, that the old one has not.
func compare(before, after string) ([]extent, error) {
	a, err := os.Open(before)
	if err != nil {
		return nil, err
	}
	defer a.Close()
	b, err := os.Open(after)
	if err != nil {
		return nil, err
	}
	defer b.Close()
	return differences(bufio.NewReaderSize(a, 1<<20), bufio.NewReaderSize(b, 1<<20))
}

func differences(a, b io.Reader) ([]extent, error) {
	list := []extent{}
	p, q := make([]byte, blockSize), make([]byte, blockSize)
	for off := int64(0); ; off += blockSize {
		n, err := readBlock(a, p)
		if err != nil {
			return nil, err
		}
		m, err := readBlock(b, q)
		if err != nil || m == 0 {
			return list, err
		}
		if bytes.Equal(p[:n], q[:m]) {
			continue
		}
		if k := len(list); k > 0 && list[k-1].Offset+list[k-1].Length == off {
			list[k-1].Length += int64(m)
			continue
		}
		list = append(list, extent{off, int64(m)})
	}
}

// readBlock fills p, or less of it at the end.
func readBlock(r io.Reader, p []byte) (int, error) {
	n, err := io.ReadFull(r, p)
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		err = nil
	}
	return n, err
}
