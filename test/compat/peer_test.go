package compat_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"runtime"
	"sync"
	"testing"
	"time"

	"livemount/blockdev"
	"livemount/fs"
	"livemount/test/nfsclient"
)

// What go-nfs cannot do, each as a test that both servers take.

// contestant is one of the servers. A flawed one must fail what the other passes.
type contestant struct {
	serve  func(testing.TB, fs.Mutable) *side
	flawed bool
}

func both(nfsd, gonfs bool) []contestant { return []contestant{{ours, nfsd}, {theirs, gonfs}} }

// TestHandlesOutliveTheServer serves a store anew, with another server of the same kind.
func TestHandlesOutliveTheServer(t *testing.T) {
	for _, c := range both(false, true) {
		tree := store(t, nil)
		s := c.serve(t, tree)
		h := s.find("web", "web.vmx")
		_, err := c.serve(t, tree).c.Getattr(t.Context(), h)
		if errors.Is(err, nfsclient.Stale) != c.flawed {
			t.Errorf("%s: %v", s.name, err)
		}
	}
}

// slow is a disk whose reads wait.
type slow struct {
	blockdev.Reader
	began chan struct{}
	once  sync.Once
	until chan struct{}
}

func (s *slow) ReadAt(ctx context.Context, p []byte, off int64) error {
	s.once.Do(func() { close(s.began) })
	<-s.until
	return s.Reader.ReadAt(ctx, p, off)
}

// TestASlowReadStopsNobody reads a disk that does not answer, and asks for attributes on the same connection.
func TestASlowReadStopsNobody(t *testing.T) {
	for _, c := range both(false, true) {
		disk := &slow{Reader: blockdev.NewMem(1 << 20), began: make(chan struct{}), until: make(chan struct{})}
		s := c.serve(t, store(t, disk))
		h := s.find("web", "sda-flat.vmdk")
		var reader sync.WaitGroup
		reader.Go(func() {
			if _, _, err := s.c.Read(context.Background(), h, 0, 4096); err != nil {
				t.Errorf("%s: read: %v", s.name, err)
			}
		})
		<-disk.began
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		if c.flawed { // waits in vain
			ctx, cancel = context.WithTimeout(t.Context(), 200*time.Millisecond)
		}
		_, err := s.c.Getattr(ctx, s.h["root"])
		cancel()
		if (err != nil) != c.flawed {
			t.Errorf("%s: getattr during a read: %v", s.name, err)
		}
		close(disk.until)
		reader.Wait()
	}
}

// TestAPacketTakesWhatItIsWorth sends 48 bytes that claim to hold a handle of 64 MiB.
func TestAPacketTakesWhatItIsWorth(t *testing.T) {
	const claimed = 64 << 20
	for _, c := range both(false, true) {
		s := c.serve(t, store(t, nil))
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		claim(t, s.addr, claimed)
		runtime.ReadMemStats(&after)
		took := after.TotalAlloc - before.TotalAlloc
		t.Logf("%s: %d bytes were allocated", s.name, took)
		if (took >= claimed) != c.flawed {
			t.Errorf("%s: %d bytes were allocated", s.name, took)
		}
	}
}

// claim sends a GETATTR whose handle says that it is long, and waits for the answer or the end.
func claim(t *testing.T, addr string, length uint32) {
	t.Helper()
	conn, err := net.Dial("tcp", addr)
	must(t, err)
	defer conn.Close()
	var b []byte
	for _, v := range []uint32{1<<31 | 44, 7, 0, 2, nfsclient.NFS, 3, nfsclient.Getattr, 0, 0, 0, 0, length} {
		b = binary.BigEndian.AppendUint32(b, v)
	}
	_, err = conn.Write(b)
	must(t, err)
	must(t, conn.SetReadDeadline(time.Now().Add(5*time.Second)))
	conn.Read(make([]byte, 4))
}

// TestManyWritersAreServed writes through several connections at a time, and reads it again.
func TestManyWritersAreServed(t *testing.T) {
	for _, c := range both(false, false) {
		s := c.serve(t, store(t, nil))
		web := s.find("web")
		var all sync.WaitGroup
		for i := range 4 {
			all.Go(func() {
				if err := writeMany(s, web, byte('a'+i)); err != nil {
					t.Errorf("%s: %v", s.name, err)
				}
			})
		}
		all.Wait()
	}
}

func writeMany(s *side, dir []byte, name byte) error {
	ctx := context.Background()
	c, err := nfsclient.Dial(ctx, s.addr)
	if err != nil {
		return err
	}
	defer c.Close()
	h, _, err := c.Create(ctx, dir, string(name), 1, nfsclient.Nothing())
	if err != nil {
		return err
	}
	data := bytes.Repeat([]byte{name}, 10_000)
	for off := range uint64(20) {
		if _, _, err := c.Write(ctx, h, off*10_000, data, nfsclient.Unstable); err != nil {
			return err
		}
	}
	if _, err := c.Commit(ctx, h); err != nil {
		return err
	}
	got, _, err := c.Read(ctx, h, 190_000, 20_000)
	if err == nil && !bytes.Equal(got, data) {
		err = io.ErrUnexpectedEOF
	}
	return err
}

// BenchmarkPeer compares both over loopback and memory:
// go test ./test/compat -run - -bench Peer
func BenchmarkPeer(b *testing.B) {
	for _, c := range both(false, true) {
		s := c.serve(b, store(b, blockdev.NewMem(64<<20)))
		disk, web := s.find("web", "sda-flat.vmdk"), s.h["web"]
		ctx := context.Background()
		for _, size := range []int{4 << 10, 1 << 20} {
			name := s.name + map[int]string{4 << 10: "/4K", 1 << 20: "/1M"}[size]
			at := func(n *uint64) uint64 { *n = (*n + uint64(size)) % (64 << 20); return *n }
			b.Run(name+"/read", func(b *testing.B) {
				b.SetBytes(int64(size))
				for off := uint64(0); b.Loop(); {
					_, _, err := s.c.Read(ctx, disk, at(&off), uint32(size))
					must(b, err)
				}
			})
			b.Run(name+"/write", func(b *testing.B) {
				b.SetBytes(int64(size))
				data := make([]byte, size)
				for off := uint64(0); b.Loop(); {
					_, _, err := s.c.Write(ctx, disk, at(&off), data, nfsclient.Unstable)
					must(b, err)
				}
			})
		}
		b.Run(s.name+"/lookup", func(b *testing.B) {
			for b.Loop() {
				_, _, err := s.c.Lookup(ctx, web, "web.vmx")
				must(b, err)
			}
		})
	}
}
