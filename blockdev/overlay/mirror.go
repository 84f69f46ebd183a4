package overlay

import "encoding/binary"

// A record of the layer above may concern all that the layer has, so one rotten byte in it could make the whole log
// useless. A short payload is therefore stored twice in its record, each copy with its length and a checksum of its own
// behind it: whichever is good is taken.
const (
	mirrorTrailer = 8
	mirrorMax     = blockBytes/2 - mirrorTrailer // of a payload, so that both copies are one block
)

// mirror returns the two copies of a payload.
func mirror(payload []byte) []byte {
	b := make([]byte, 0, 2*(len(payload)+mirrorTrailer))
	for range 2 {
		from := len(b)
		b = append(b, payload...)
		b = binary.LittleEndian.AppendUint32(b, uint32(len(payload)))
		b = binary.LittleEndian.AppendUint32(b, checksum(0, b[from:]))
	}
	return b
}

// unmirror returns the payload that one of the two copies has, if one is good.
func unmirror(b []byte) ([]byte, bool) {
	half := len(b) / 2
	if len(b)%2 != 0 || half < mirrorTrailer {
		return nil, false
	}
	for _, c := range [2][]byte{b[:half], b[half:]} {
		n := half - mirrorTrailer
		if int(binary.LittleEndian.Uint32(c[n:])) == n && binary.LittleEndian.Uint32(c[n+4:]) == checksum(0, c[:n+4]) {
			return c[:n], true
		}
	}
	return nil, false
}
