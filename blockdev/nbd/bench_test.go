package nbd

import (
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"
)

// BenchmarkRead reads all of an export of qemu-nbd, with nbdcopy beside it: parts of 4 MiB, two at a time.
func BenchmarkRead(b *testing.B) {
	const size = 256 << 20
	dir := b.TempDir()
	file, socket := filepath.Join(dir, "disk"), filepath.Join(dir, "s")
	data, rng := make([]byte, size), rand.New(rand.NewPCG(1, 1))
	for i := range data {
		data[i] = byte(rng.Uint32())
	}
	must(b, os.WriteFile(file, data, 0o600))
	peer(b, socket, "qemu-nbd", "-f", "raw", "-r", "-t", "-e", "8", "-k", socket, file)
	u := URI{Network: "unix", Address: socket}
	b.Run("client", func(b *testing.B) {
		c := open(b, u, ClientOptions{})
		b.SetBytes(size)
		for b.Loop() {
			const part = 4 << 20
			var wg sync.WaitGroup
			for w := range int64(2) {
				wg.Go(func() {
					p := make([]byte, part)
					for off := w * part; off < size; off += 2 * part {
						if err := c.ReadAt(bg(), p, off); err != nil {
							b.Error(err)
						}
					}
				})
			}
			wg.Wait()
		}
	})
	b.Run("nbdcopy", func(b *testing.B) {
		b.SetBytes(size)
		for b.Loop() {
			run(b, "nbdcopy", u.String(), "null:")
		}
	})
}
