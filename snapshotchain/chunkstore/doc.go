// Package chunkstore keeps compressed, deduplicated chunks, map segments and the journal in containers:
// append-only files of at most 64 MiB. The containers are the truth of a store; everything else
// (Badger, the dedup index, caches) is an index of them and can be made again.
//
// Guarantees: a pointer (container, slot) that was handed out by a committed Writer names the same bytes
// until the record is given up; every byte that is returned has passed its CRC32C; what an aborted
// Writer or a crash left behind is cut away without touching what was committed.
//
// The package does not know disks, points or block maps. Formats: FORMAT.md.
package chunkstore
