package keyring

import "testing"

const benchRecord = 64 << 10

func BenchmarkSeal64K(b *testing.B) {
	_, k := made(b, keyFile(b, 7))
	f := fileOf(b, k, 1, 1)
	plain, aad := make([]byte, benchRecord), make([]byte, 64)
	dst := make([]byte, 0, benchRecord+Overhead)
	b.SetBytes(benchRecord)
	b.ReportAllocs()
	for n := uint64(0); b.Loop(); n++ {
		dst = f.Seal(dst[:0], plain, aad, n)
	}
}

func BenchmarkOpen64K(b *testing.B) {
	_, k := made(b, keyFile(b, 7))
	f := fileOf(b, k, 1, 1)
	aad := make([]byte, 64)
	sealed, dst := f.Seal(nil, make([]byte, benchRecord), aad, 1), make([]byte, 0, benchRecord)
	b.SetBytes(benchRecord)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := f.Open(dst, sealed, aad, 1); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkSeal4K is a record of a mount's log.
func BenchmarkSeal4K(b *testing.B) {
	_, k := made(b, keyFile(b, 7))
	f := fileOf(b, k, 1, 1)
	plain, dst := make([]byte, 4<<10), make([]byte, 0, 4<<10+Overhead)
	b.SetBytes(4 << 10)
	b.ReportAllocs()
	for n := uint64(0); b.Loop(); n++ {
		dst = f.Seal(dst[:0], plain, nil, n)
	}
}

// BenchmarkFile is what opening a file costs.
func BenchmarkFile(b *testing.B) {
	_, k := made(b, keyFile(b, 7))
	b.ReportAllocs()
	for b.Loop() {
		fileOf(b, k, 1, 1)
	}
}

func BenchmarkArgon2(b *testing.B) {
	for name, a := range map[string]Argon2{
		"least_19MiB":        {2, 19 << 10, 1},
		"rfc9106_64MiB":      {3, 64 << 10, 4},
		"default_256MiB":     DefaultArgon2(),
		"rfc9106_t1_2048MiB": {1, 2 << 20, 4},
	} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				a.derive([]byte("correct horse"), make([]byte, saltBytes))
			}
		})
	}
}

func BenchmarkOpenWithKeyFile(b *testing.B) {
	s, _ := made(b, keyFile(b, 7))
	for b.Loop() {
		opened(b, s, keyFile(b, 7))
	}
}

// BenchmarkRotateLargest has all slots and half of the epochs.
func BenchmarkRotateLargest(b *testing.B) {
	s, k := made(b, keyFile(b, 7))
	for len(s.doc.Slots) < maxSlots {
		s, _ = added(b, s, k, keyFile(b, 8), "")
	}
	for k.newest < maxEpochs/2 {
		s, k = rotated(b, s, k)
	}
	for b.Loop() {
		rotated(b, s, k)
	}
	b.ReportMetric(float64(len(bytesOf(b, s))), "bytes")
}
