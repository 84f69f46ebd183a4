package snapshotchain

import (
	"encoding/binary"

	"livemount/snapshotchain/chunkstore"
)

// Keys of the metadata store: one letter and big-endian numbers. FORMAT.md lists them.

func keyRoot() []byte          { return []byte("r") }
func keyVM(id VMID) []byte     { return be64("v", uint64(id)) }
func keyDraft(d uint64) []byte { return be64("o", d) }

func keyLineage(id LineageID) []byte { return be64("g", uint64(id)) }

func keyContainer(id chunkstore.ContainerID) []byte { return be64("k", uint64(id)) }

func keyBad(p chunkstore.Ptr) []byte {
	return binary.BigEndian.AppendUint32(be64("b", uint64(p.Container)), p.Slot)
}

func keyGuard(k pointKey) []byte {
	return binary.BigEndian.AppendUint64(be64("h", uint64(k.vm)), k.ordinal)
}

func keyRules(id VMID) []byte { return be64("t", uint64(id)) }

func keyPoint(vm VMID, ordinal uint64) []byte {
	return binary.BigEndian.AppendUint64(be64("p", uint64(vm)), ordinal)
}

func keySeal(l LineageID, s Seq) []byte {
	return binary.BigEndian.AppendUint32(be64("s", uint64(l)), uint32(s))
}

func keyDir(l LineageID, page uint32, s Seq) []byte { return be3("d", l, page, s) }

func keyLeaf(l LineageID, leaf uint32, s Seq) []byte { return be3("l", l, leaf, s) }

func be64(prefix string, n uint64) []byte {
	return binary.BigEndian.AppendUint64(append(make([]byte, 0, 17), prefix...), n)
}

func be3(prefix string, l LineageID, n uint32, s Seq) []byte {
	b := binary.BigEndian.AppendUint32(be64(prefix, uint64(l)), n)
	return binary.BigEndian.AppendUint32(b, uint32(s))
}
