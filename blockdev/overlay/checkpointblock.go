package overlay

import (
	"encoding/binary"

	"livemount/keyring"
)

// A checkpoint is stored in blocks of blockBytes. In a sealed one each block tells which key it was sealed with, so that
// any good copy of it can be read; its number is the nonce, because each checkpoint has a key of its own.
const (
	blockMagic        = 0x424f4d4c // "LMOB" on disk
	sealedMagic       = 0x434f4d4c // "LMOC" on disk
	blockHeaderBytes  = 16
	sealedHeaderBytes = 48
	blockSumBytes     = 4
)

// blockPayload is how much of the stream a block holds.
func (f form) blockPayload() int {
	if f == plain {
		return blockBytes - blockHeaderBytes - blockSumBytes
	}
	return blockBytes - sealedHeaderBytes - int(f) - blockSumBytes
}

// checkpointID is what the blocks of a checkpoint are bound to.
type checkpointID struct {
	mount  [16]byte
	number uint64
}

func (c checkpointID) seed() uint32 { return segmentSeed(c.mount, c.number) }

func (c checkpointID) bound() []byte { return binary.LittleEndian.AppendUint64(c.mount[:], c.number) }

// encodeBlock makes a block of the stream; key is nil in a plain checkpoint.
func encodeBlock(index uint32, payload []byte, id checkpointID, key *keyring.File) []byte {
	le, b := binary.LittleEndian, make([]byte, blockBytes)
	le.PutUint32(b[0:], blockMagic)
	le.PutUint32(b[4:], index)
	le.PutUint32(b[8:], uint32(len(payload)))
	if key == nil {
		copy(b[blockHeaderBytes:], payload)
	} else {
		salt := key.Salt()
		le.PutUint32(b[0:], sealedMagic)
		le.PutUint32(b[12:], key.KeyID())
		copy(b[16:], salt[:])
		key.Seal(b[sealedHeaderBytes:sealedHeaderBytes], payload, id.bound(), uint64(index))
	}
	le.PutUint32(b[blockBytes-4:], checksum(id.seed(), b[:blockBytes-4]))
	return b
}

// blockDecoder reads blocks of one checkpoint.
type blockDecoder struct {
	form form
	id   checkpointID
	keys *keyring.Keys
	key  *keyring.File // of the block before
}

// decode returns the payload of a valid block of this place. The error is that of a key that is not there.
func (d *blockDecoder) decode(b []byte, index uint32) (payload []byte, ok bool, err error) {
	le, magic, other := binary.LittleEndian, uint32(blockMagic), uint32(sealedMagic)
	if d.form == sealed {
		magic, other = other, magic
	}
	if len(b) < blockBytes || le.Uint32(b[4:]) != index || le.Uint32(b[blockBytes-4:]) != checksum(d.id.seed(), b[:blockBytes-4]) {
		return nil, false, nil
	}
	n := le.Uint32(b[8:])
	switch {
	case le.Uint32(b) == other:
		return nil, false, d.form.admitKey("checkpoint", le.Uint32(b[12:]))
	case le.Uint32(b) != magic || n > uint32(d.form.blockPayload()):
		return nil, false, nil
	}
	if d.form == plain {
		return b[blockHeaderBytes : blockHeaderBytes+n], true, nil
	}
	if err := d.unlock(le.Uint32(b[12:]), [32]byte(b[16:sealedHeaderBytes])); err != nil {
		return nil, false, err
	}
	body := b[sealedHeaderBytes : sealedHeaderBytes+n+uint32(d.form)]
	payload, err = d.key.Open(body[:0], body, d.id.bound(), uint64(index))
	return payload, err == nil, nil
}

func (d *blockDecoder) unlock(keyID uint32, salt [32]byte) (err error) {
	if d.key == nil || d.key.KeyID() != keyID || d.key.Salt() != salt {
		d.key, err = d.keys.File(keyID, salt)
	}
	return err
}
