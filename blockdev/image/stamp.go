package image

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// SettleTime is how long a file must have been left alone before it is opened, so that it has an Identity
// and a later write is seen in its times: the kernel stamps files with a clock that ticks each 4 to 10 ms,
// some file systems with one of 1 or 2 s. Whoever has just taken a snapshot waits so long.
const SettleTime = 2 * time.Second

// stamp is what changes with the content of a file.
type stamp struct {
	dev, ino           uint64
	size, mtime, ctime int64 // bytes, nanoseconds
	ok                 bool  // the rest tells the content
}

// stampOf looks at the open file. now is the time before st was taken: what is written after that and gives
// the file the same times again must have come in the same tick, so times that are older than SettleTime
// cannot come again. Devices have no times of their content. A network or FUSE file system answers from a
// cache, or by the clock of another machine.
func (r *Raw) stampOf(st os.FileInfo, now time.Time) stamp {
	sys, ok := st.Sys().(*syscall.Stat_t)
	if !ok || !st.Mode().IsRegular() || r.remote() {
		return stamp{}
	}
	s := stampNow(sys)
	s.ok = now.UnixNano()-max(s.mtime, s.ctime) >= int64(SettleTime)
	return s
}

func stampNow(st *syscall.Stat_t) stamp {
	return stamp{dev: st.Dev, ino: st.Ino, size: st.Size, mtime: st.Mtim.Nano(), ctime: st.Ctim.Nano(), ok: true}
}

// remote says whether another machine or a program answers for the file system; also when that is not known.
func (r *Raw) remote() bool {
	var fs unix.Statfs_t
	if err := r.control(func(fd int) error { return unix.Fstatfs(fd, &fs) }); err != nil {
		return true
	}
	switch uint32(fs.Type) {
	case unix.NFS_SUPER_MAGIC, unix.SMB_SUPER_MAGIC, unix.SMB2_SUPER_MAGIC, unix.CIFS_SUPER_MAGIC,
		unix.FUSE_SUPER_MAGIC, unix.CEPH_SUPER_MAGIC, unix.V9FS_MAGIC, unix.AFS_SUPER_MAGIC:
		return true
	}
	return false
}

// unchanged says whether the file is now as it was at the open.
func (r *Raw) unchanged() bool {
	st, err := r.file.Stat()
	if err != nil || !r.stamp.ok {
		return false
	}
	sys, ok := st.Sys().(*syscall.Stat_t)
	return ok && stampNow(sys) == r.stamp
}

// Identity is a short text that stands for the content: while it is the same, the bytes are the same. It is
// "" when that cannot be told: for a device, on a network file system, for a file that was written less than
// two seconds before it was opened, or after that. The same file opened as another format has another one.
// It ends with the boot of the machine: after a power cut bytes that were synced can be on disk without the
// times that go with them.
func (r *Raw) Identity() string { return identity([]*layer{{format: formatRaw, file: r, data: r}}) }

// settle writes back what is dirty in a regular file. A page that is written through a memory map moves the times of
// its file only when it becomes dirty: afterwards none is, so that the next write is seen.
func settle(f *os.File) {
	if st, err := f.Stat(); err == nil && st.Mode().IsRegular() {
		_ = f.Sync() // a failure is for whoever wrote; bytes that cannot be read are an error of their own
	}
}

// identity hashes the stamps of the files of a chain, from the image down.
func identity(layers []*layer) string {
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id") // random(4)
	if err != nil {
		return ""
	}
	h := sha256.New()
	h.Write(boot)
	for _, l := range layers {
		for _, f := range []*Raw{l.file, l.data} {
			if !f.unchanged() {
				return ""
			}
			s := f.stamp
			fmt.Fprintf(h, "%s %d %d %d %d %d\n", l.format, s.dev, s.ino, s.size, s.mtime, s.ctime)
		}
	}
	return layers[0].format + "-1-" + hex.EncodeToString(h.Sum(nil))
}
