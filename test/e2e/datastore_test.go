package e2e

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"livemount/test/harness"
	"livemount/test/nfsclient"
)

// TestDatastoreUnderAFolder: the tree is used like any file system; a fork and a restart have all of it; a commit takes the
// disks, also one that became longer, and refuses when one is gone.
func TestDatastoreUnderAFolder(t *testing.T) {
	d, dir := started(t)
	b := disk(t, rand.New(rand.NewPCG(harness.Seed(t), 0)), filepath.Join(dir, "disk"), 1024)
	d.Backup("web", "sda="+filepath.Join(dir, "disk"))
	store := filepath.Join(dir, "store-of-web")
	m := d.Mount("web@latest", "--datastore", store)
	flat := filepath.Join(store, "web", "sda-flat.vmdk")
	if m.Disks[0].Path != flat || m.Modified || m.WrittenBytes != 0 {
		t.Errorf("%+v", m)
	}
	same(t, flat, b)
	harness.Run(t, "sh", "-ec", fmt.Sprintf("cd %s; mkdir .lck; echo lock > .lck/x; cp web/web.vmx web/copy; mv web/copy vm.vmx; ln vm.vmx web/link; ln -s vm.vmx sym; truncate -s 10G web/swap; sync .", store))
	d.Kill()
	d.Start()
	var fork struct{ Path string }
	d.Must(&fork, "fork", m.Mount, "--datastore", filepath.Join(dir, "fork"))
	for _, at := range []string{store, fork.Path} {
		harness.Run(t, "cmp", filepath.Join(at, "sym"), filepath.Join(at, "web/link"))
		if info, err := os.Stat(filepath.Join(at, "web/swap")); err != nil || info.Size() != 10<<30 {
			t.Errorf("%s: swap: %v, %v", at, info, err)
		}
		same(t, filepath.Join(at, ".lck/x"), []byte("lock\n"))
	}
	if now := d.MountByID(m.Mount); !now.Modified {
		t.Error("files were made, and nothing is said to be modified")
	}

	longer := append(bytes.Clone(b), bytes.Repeat([]byte("more"), 64<<10)...)
	f, err := os.OpenFile(flat, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt(longer[len(b):], int64(len(b))); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	d.Must(nil, "commit", m.Mount, "--branch", "longer")
	same(t, d.Mount("web:longer@latest", filepath.Join(dir, "longer"), "--read-only").Disks[0].Path, longer)

	if err := os.Remove(flat); err != nil {
		t.Fatal(err)
	}
	r := d.Ctl("commit", m.Mount, "--branch", "gone")
	if r.Code != 2 || !strings.Contains(r.Err, "disk sda was removed from its datastore") {
		t.Errorf("a commit without a disk: %d, %s", r.Code, r.Err)
	}
	same(t, d.Mount("web@latest", filepath.Join(dir, "point"), "--read-only").Disks[0].Path, b)
}

// TestOneMountThroughTwoProtocols: what is written through NFS is read through FUSE at once, and the other way round.
func TestOneMountThroughTwoProtocols(t *testing.T) {
	d, dir := withNFS(t)
	b := disk(t, rand.New(rand.NewPCG(harness.Seed(t), 0)), filepath.Join(dir, "disk"), 1024)
	d.Backup("web", "sda="+filepath.Join(dir, "disk"))
	m := mountNFS(t, d, "web@latest", filepath.Join(dir, "m"))
	ctx := t.Context()
	c, err := nfsclient.Dial(ctx, fmt.Sprintf("127.0.0.1:%d", m.NFS.Port))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	web, err := c.MountPath(ctx, m.NFS.Export+"/web")
	if err != nil {
		t.Fatal(err)
	}
	h, _, err := c.Lookup(ctx, web, "sda-flat.vmdk")
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(m.Disks[0].Path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	rng, p := rand.New(rand.NewPCG(1, 1)), make([]byte, 5000)
	for i := range 300 {
		off := rng.Int64N(int64(len(b) - len(p)))
		now := random(rng, len(p))
		if i%2 == 0 {
			if _, _, err = c.Write(ctx, h, uint64(off), now, nfsclient.Unstable); err == nil {
				_, err = f.ReadAt(p, off)
			}
		} else if _, err = f.WriteAt(now, off); err == nil {
			p, _, err = c.Read(ctx, h, uint64(off), uint32(len(now)))
		}
		if err != nil || !bytes.Equal(p, now) {
			t.Fatalf("write %d at %d: other bytes are read, %v", i, off, err)
		}
		copy(b[off:], now)
	}
	same(t, m.Disks[0].Path, b)
}
