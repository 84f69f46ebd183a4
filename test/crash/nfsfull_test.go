package crash

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"testing"

	"livemount/server/api"
	"livemount/test/harness"
	"livemount/test/nfsclient"
)

// TestFullDatastore: when the disk is full, NFS says so, reads go on, and removing files makes room again.
func TestFullDatastore(t *testing.T) {
	rng := rand.New(rand.NewPCG(harness.Seed(t), 0))
	dir := harness.FileSystem(t, 700)
	addr := freeAddress(t)
	d := harness.New(t, filepath.Join(dir, "store"), "--nfs-listen", addr, "--nfs-allow", "127.0.0.1,insecure", "--log-level", "error")
	d.Start()
	v := newVM(t, harness.Dir(t), "vm", rng, 3<<20)
	if ok, err := v.backup(d); !ok {
		t.Fatal(err)
	}
	var m api.Mount
	d.Must(&m, "mount", "vm@latest", "--nfs")
	ctx := t.Context()
	c, err := nfsclient.Dial(ctx, addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	root, err := c.MountPath(ctx, m.NFS.Export)
	if err != nil {
		t.Fatal(err)
	}
	block := make([]byte, 1<<20)
	fill(rng, block)
	files := 0
	write := func() error {
		h, _, err := c.Create(ctx, root, fmt.Sprint("f", files), 1, nfsclient.Nothing())
		if err != nil {
			return err
		}
		files++
		for i := range uint64(16) {
			if _, _, err := c.Write(ctx, h, i<<20, block, nfsclient.FileSync); err != nil {
				return err
			}
		}
		return nil
	}
	for round := range 3 {
		for err = nil; err == nil; {
			err = write()
		}
		if !errors.Is(err, nfsclient.NoSpc) {
			t.Fatalf("round %d: the disk is full: %v", round, err)
		}
		t.Logf("round %d: %d files", round, files)
		h, a, err := c.Lookup(ctx, root, "f0")
		if err != nil || a.Size != 16<<20 {
			t.Fatalf("%+v, %v", a, err)
		}
		if b, _, err := c.Read(ctx, h, 5<<20, 1<<20); err != nil || string(b) != string(block) {
			t.Errorf("reads on a full disk: %d bytes, %v", len(b), err)
		}
		for i := 1; i < files; i++ {
			if err := c.Remove(ctx, root, fmt.Sprint("f", i)); err != nil && !errors.Is(err, nfsclient.NoEnt) {
				t.Fatalf("remove on a full disk: %v", err)
			}
		}
		log := filepath.Join(d.Data, "mounts", m.Mount, "log")
		harness.Poll(t, "the space comes back", func() bool { return harness.Bytes(t, log) < 150<<20 })
		if round == 1 {
			d.Kill()
			d.Start()
			c.Close()
			if c, err = nfsclient.Dial(ctx, addr); err != nil {
				t.Fatal(err)
			}
		}
	}
	if now := d.Status(); !now.Healthy {
		t.Errorf("after all: %+v", now.Damage)
	}
}
