package portmap

import (
	"testing"

	"livemount/nfsd/xdr"
)

func FuzzList(f *testing.F) {
	var e xdr.Encoder
	server{{1, 2, TCP, 3}, {4, 5, UDP, 6}}.dump(&e)
	f.Add(e.B)
	f.Add([]byte{0, 0, 0, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		list, err := decodeList(b)
		if err == nil && len(list) > len(b)/20 {
			t.Errorf("%d mappings out of %d bytes", len(list), len(b))
		}
	})
}
