package nfsd

import (
	"crypto/sha256"
	"crypto/subtle"
	"encoding/binary"

	"livemount/fs"
)

// A file handle is 38 bytes: version, a reserved 0, the export (8), the node (8), the generation (4), and a MAC (16): the
// first half of the SHA-256 of the key and all before it. That is a sound MAC because the message has one length only;
// it is one block of SHA-256.
const (
	handleVersion = 1
	handleBody    = 22
	handleBytes   = handleBody + 16
	handleMax     = 64 // NFS3_FHSIZE
)

// handle names a node of an export.
type handle struct {
	export     uint64
	node       fs.NodeID
	generation uint32
}

func (s *Server) mac(body []byte) (out [sha256.Size]byte) {
	var b [sha256.Size + handleBody]byte
	copy(b[:], s.options.Key[:])
	copy(b[sha256.Size:], body)
	return sha256.Sum256(b[:])
}

func (s *Server) encodeHandle(h handle) (b [handleBytes]byte) {
	b[0] = handleVersion
	binary.BigEndian.PutUint64(b[2:], h.export)
	binary.BigEndian.PutUint64(b[10:], uint64(h.node))
	binary.BigEndian.PutUint32(b[18:], h.generation)
	sum := s.mac(b[:handleBody])
	copy(b[handleBody:], sum[:])
	return b
}

// exportIn is the export of a handle.
func exportIn(b []byte) uint64 { return binary.BigEndian.Uint64(b[2:]) }

// decodeHandle reports false for what this server did not make.
func (s *Server) decodeHandle(b []byte) (handle, bool) {
	if len(b) != handleBytes || b[0] != handleVersion || b[1] != 0 {
		return handle{}, false
	}
	sum := s.mac(b[:handleBody])
	if subtle.ConstantTimeCompare(sum[:handleBytes-handleBody], b[handleBody:]) != 1 {
		return handle{}, false
	}
	return handle{
		export: exportIn(b), node: fs.NodeID(binary.BigEndian.Uint64(b[10:])),
		generation: binary.BigEndian.Uint32(b[18:]),
	}, true
}
