// Package qemu takes the disks of a running QEMU in, through its machine protocol (QMP,
// https://www.qemu.org/docs/master/interop/qmp-spec.html). A Session shows all disks as they were at one moment, while the guest
// goes on: one transaction begins a dirty bitmap on each disk, stops the one of the backup before, and starts jobs that copy what the guest
// is about to overwrite into scratch files; these are read through NBD, with the bitmap that says what changed.
//
// Guarantees:
//   - The disks are exactly those of the moment, or Check says that they cannot be trusted.
//   - A bitmap belongs to one backup: its name is random and is kept with the point. One that is missing, was not closed properly
//     or is of another backup is no list of changes.
//   - A session that ends without its point leaves the bitmap of the point before as if nothing had happened; what a killed one left
//     is removed by the next. A guest that was frozen is thawed whatever happens.
//
// It must not touch anything in the QEMU that it did not make: its names begin with "livemount-".
package qemu
