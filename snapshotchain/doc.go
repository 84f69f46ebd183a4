// Package snapshotchain keeps what every disk held at every point in time.
//
// A disk is a lineage; each point of it has a sequence number. A point's block map is a tree of three
// levels that shares everything it did not change with the point before: the root (in the seal of the
// disk) names versions of directory pages, a directory page names versions of 256 leaves, a leaf maps
// 8 MiB in pages of 4 KiB to chunks. All of them are found by their exact key, so a key that Badger lost
// is noticed, never taken for a hole or an older version, and read from the map segment instead.
//
// Guarantees: a point appears whole or not at all; a sealed point never changes; what is acknowledged is
// on disk. The containers (chunkstore) are the truth: a point is sealed in the journal first, and Badger
// is compared with the journal when the store is opened, and made again from it when it is bad.
//
// The package does not read sources and does not serve disks; it returns a blockdev.Reader.
// Formats: FORMAT.md. Locks: docs/LOCKING.md.
package snapshotchain
