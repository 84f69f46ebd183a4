package nfsd_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"net"
	"os"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"

	"livemount/nfsd/oncrpc"
	"livemount/nfsd/xdr"
	"livemount/test/harness"
	"livemount/test/nfsclient"
)

// named are the statuses that RFC 1813 names for each procedure, section 3.3, and, for MOUNT, appendix I.
func named(proc uint32) []nfsclient.Status {
	const perm, serverFault, mlink, dquot, remote = 1, 10006, 31, 69, 71
	common := []nfsclient.Status{nfsclient.IO, nfsclient.Stale, nfsclient.BadHandle, serverFault, nfsclient.Jukebox}
	change := []nfsclient.Status{nfsclient.Acces, nfsclient.NoSpc, nfsclient.ROFS, nfsclient.NotDir, nfsclient.NameTooLong, nfsclient.Exist, nfsclient.Inval,
		nfsclient.NotSupp, dquot}
	switch proc {
	case nfsclient.Getattr, nfsclient.Fsstat, nfsclient.Fsinfo, nfsclient.Pathconf, nfsclient.Commit, nfsclient.Access:
		return append(common, nfsclient.Acces, nfsclient.Inval) // ACCES of who may not mount, and of COMMIT to what is not theirs
	case nfsclient.Setattr:
		return append(common, perm, nfsclient.Acces, nfsclient.Inval, nfsclient.NoSpc, nfsclient.ROFS, dquot, nfsclient.NotSync, nfsclient.FBig, nfsclient.IsDir)
	case nfsclient.Lookup:
		return append(common, nfsclient.NoEnt, nfsclient.Acces, nfsclient.NotDir, nfsclient.NameTooLong, nfsclient.Inval)
	case nfsclient.Readlink:
		return append(common, nfsclient.Inval, nfsclient.Acces, nfsclient.NotSupp)
	case nfsclient.Read:
		return append(common, 6, nfsclient.Acces, nfsclient.Inval, nfsclient.IsDir)
	case nfsclient.Write:
		return append(common, nfsclient.Acces, nfsclient.FBig, dquot, nfsclient.NoSpc, nfsclient.ROFS, nfsclient.Inval, nfsclient.IsDir)
	case nfsclient.Create, nfsclient.Mkdir, nfsclient.Symlink, nfsclient.Mknod:
		return append(append(common, change...), nfsclient.FBig)
	case nfsclient.Remove:
		return append(common, nfsclient.NoEnt, nfsclient.Acces, nfsclient.NotDir, nfsclient.NameTooLong, nfsclient.ROFS, nfsclient.Inval, nfsclient.IsDir, nfsclient.NoSpc)
	case nfsclient.Rmdir:
		return append(common, nfsclient.NoEnt, nfsclient.Acces, nfsclient.Inval, nfsclient.Exist, nfsclient.NotDir, nfsclient.NameTooLong, nfsclient.ROFS,
			nfsclient.NotEmpty, nfsclient.NotSupp, nfsclient.NoSpc)
	case nfsclient.Rename:
		return append(append(common, change...), nfsclient.NoEnt, nfsclient.XDev, nfsclient.IsDir, mlink, nfsclient.NotEmpty)
	case nfsclient.Link:
		return append(append(common, change...), nfsclient.XDev, mlink, nfsclient.NoEnt, nfsclient.IsDir)
	case nfsclient.Readdir, nfsclient.Readdirplus:
		return append(common, nfsclient.Acces, nfsclient.NotDir, 10003, nfsclient.TooSmall, nfsclient.NotSupp)
	}
	return []nfsclient.Status{1, 2, 5, 13, 20, 22, 63, 10004, 10006}
}

// FuzzCall sends any arguments to any procedure, with handles that are good where the fuzzer says so.
func FuzzCall(f *testing.F) {
	w := start(f, options{})
	c, err := nfsclient.Dial(context.Background(), w.addr)
	must(f, err)
	f.Cleanup(func() { c.Close() })
	root, err := c.MountPath(context.Background(), "/web-1234")
	must(f, err)
	web, err := c.MountPath(context.Background(), "/web-1234/web")
	must(f, err)
	disk, _, err := c.Lookup(context.Background(), web, "sda-flat.vmdk")
	must(f, err)
	handles := [][]byte{root, web, disk, bytes.Repeat([]byte{7}, 38)}
	tail := nfsclient.Encode(func(e *xdr.Encoder) {
		e.String("name")
		e.Uint32(1)
		nfsclient.Nothing().Append(e)
		e.String("target")
	})
	for proc := range byte(23) {
		for handle := range byte(5) {
			f.Add(proc, handle, tail)
			f.Add(proc, handle, nfsclient.Encode(func(e *xdr.Encoder) {
				e.Uint64(5)
				e.Uint32(1000)
				e.Uint32(1000)
				e.Opaque(make([]byte, 1000))
			}))
		}
	}
	f.Fuzz(func(t *testing.T, proc, handle byte, rest []byte) {
		args := rest
		if int(handle) < len(handles) {
			args = append(nfsclient.Encode(func(e *xdr.Encoder) { e.Opaque(handles[handle]) }), rest...)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second) // far more than any call takes
		defer cancel()
		b, err := c.Call(ctx, nfsclient.NFS, 3, uint32(proc), c.Cred, args)
		if oncrpc.Failed(err, oncrpc.GarbageArgs) || oncrpc.Failed(err, oncrpc.ProcUnavail) {
			return
		}
		if err != nil {
			t.Fatalf("procedure %d: %v", proc, err)
		}
		if proc == nfsclient.Null {
			return
		}
		_, err = nfsclient.Results(b)
		var st nfsclient.Status
		if errors.As(err, &st) && !slices.Contains(named(uint32(proc)), st) {
			t.Fatalf("procedure %d answers %v", proc, st)
		}
		if len(b)%4 != 0 {
			t.Fatalf("procedure %d answers %d bytes", proc, len(b))
		}
	})
}

// FuzzMount sends any arguments to MOUNT.
func FuzzMount(f *testing.F) {
	w := start(f, options{})
	c, err := nfsclient.Dial(context.Background(), w.addr)
	must(f, err)
	f.Cleanup(func() { c.Close() })
	for _, path := range []string{"/web-1234", "/", "", "/web-1234/web/../..", "//web-1234//web/", "/web-1234\x00", "/web-1234/web/web.vmx"} {
		for proc := range byte(7) {
			f.Add(proc, nfsclient.Encode(func(e *xdr.Encoder) { e.String(path) }))
		}
	}
	f.Fuzz(func(t *testing.T, proc byte, args []byte) {
		b, err := c.Call(t.Context(), nfsclient.Mount, 3, uint32(proc), c.Cred, args)
		if oncrpc.Failed(err, oncrpc.GarbageArgs) || oncrpc.Failed(err, oncrpc.ProcUnavail) {
			return
		}
		if err != nil {
			t.Fatalf("procedure %d: %v", proc, err)
		}
		if proc != 1 {
			return
		}
		_, err = nfsclient.Results(b)
		var st nfsclient.Status
		if errors.As(err, &st) && !slices.Contains(named(100), st) {
			t.Fatalf("MNT answers %v", st)
		}
	})
}

// descriptors is how many this process has open.
func descriptors(t *testing.T) int {
	t.Helper()
	list, err := os.ReadDir("/proc/self/fd")
	must(t, err)
	return len(list)
}

// TestHostileClientsLeaveNothing: connections that are opened and dropped, that send random bytes, or stop in the middle
// of a record, or stop reading, leave no goroutine, descriptor or memory, and others are served meanwhile.
func TestHostileClientsLeaveNothing(t *testing.T) {
	w := start(t, options{})
	c := w.dial()
	root, web := w.root(c)
	h, _, err := c.Lookup(t.Context(), web, "sda-flat.vmdk")
	must(t, err)
	goroutines, files := runtime.NumGoroutine(), descriptors(t)
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	rng := rand.New(rand.NewPCG(harness.Seed(t), 0))
	var wg sync.WaitGroup
	for range 8 {
		seed := rng.Uint64()
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(seed, 0))
			for range harness.Soak(300, 1250) {
				annoy(t, rng, w.addr, h)
			}
		})
	}
	for range 200 {
		_, err := c.Getattr(t.Context(), root)
		must(t, err)
	}
	wg.Wait()
	harness.Poll(t, "goroutines and descriptors end", func() bool {
		return runtime.NumGoroutine() <= goroutines+2 && descriptors(t) <= files+2
	})
	for range 3 { // pools keep their buffers over one
		runtime.GC()
	}
	runtime.ReadMemStats(&after)
	if grown := int64(after.HeapAlloc) - int64(before.HeapAlloc); grown > 32<<20 {
		t.Errorf("%d bytes more are in use", grown)
	}
	_, err = c.Getattr(t.Context(), root)
	must(t, err)
}

// annoy is one connection that means no good.
func annoy(t *testing.T, rng *rand.Rand, addr string, disk []byte) {
	raw, err := net.DialTimeout("tcp", addr, 10*time.Second)
	if err != nil {
		t.Error(err)
		return
	}
	defer raw.Close()
	_ = raw.SetDeadline(time.Now().Add(5 * time.Second))
	switch rng.IntN(5) {
	case 0: // nothing
	case 1:
		b := make([]byte, rng.IntN(4000))
		for i := range b {
			b[i] = byte(rng.Uint32())
		}
		_, _ = raw.Write(b)
	case 2: // a record that claims a megabyte
		_, _ = raw.Write(binary.BigEndian.AppendUint32(nil, 1<<31|1<<20))
	case 3: // a large one
		_, _ = raw.Write(binary.BigEndian.AppendUint32(nil, 1<<31-1))
	case 4: // many reads, and never an answer taken
		call := readCall(disk)
		for range 20 {
			if _, err := raw.Write(call); err != nil {
				return
			}
		}
	}
}

// readCall is a READ of a megabyte, on the wire.
func readCall(h []byte) []byte {
	b := nfsclient.Encode(func(e *xdr.Encoder) {
		for _, v := range []uint32{1, 0, 2, nfsclient.NFS, 3, nfsclient.Read, 0, 0, 0, 0} {
			e.Uint32(v)
		}
		e.Opaque(h)
		e.Uint64(0)
		e.Uint32(1 << 20)
	})
	return append(binary.BigEndian.AppendUint32(nil, 1<<31|uint32(len(b))), b...)
}
