// Package nbd is the Network Block Device protocol: a client that reads, and writes, the disk of another program, and a server
// that shows ours. It speaks the fixed newstyle handshake with NBD_OPT_GO, structured replies and meta contexts, over TCP,
// unix sockets and TLS (https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md and uri.md).
//
// Guarantees:
//   - FLUSH and FUA are answered when the bytes are on disk (blockdev.WriterAt.Sync).
//   - Bad bytes are never sent: an error of the disk is an error of the request, at its offset.
//   - A peer that does not keep to the protocol, or stops, costs its connection: an error, no panic, no memory without a
//     bound, and no wait without an end.
//
// It must not know what it serves: exports come from an interface, and every disk is a blockdev.Reader or Device.
package nbd
