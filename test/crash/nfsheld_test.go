package crash

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"livemount/server/api"
	"livemount/test/harness"
	"livemount/test/nfsclient"
)

// TestClientsOfAMountThatDoesNotComeBackWait: they are told to wait until it is there again, whatever is tried meanwhile,
// and that it is gone only when it was unmounted.
func TestClientsOfAMountThatDoesNotComeBackWait(t *testing.T) {
	harness.NeedRoot(t)
	dir, addr := harness.Dir(t), freeAddress(t)
	d := harness.New(t, filepath.Join(dir, "store"), "--nfs-listen", addr, "--nfs-allow", "127.0.0.1,insecure", "--log-level", "error")
	d.Start()
	harness.WriteFile(t, filepath.Join(dir, "disk"), make([]byte, 1<<20))
	d.Backup("web", "sda="+filepath.Join(dir, "disk"))
	var m api.Mount
	d.Must(&m, "mount", "web@latest", "--nfs")
	root := mounted(t, addr, m.NFS.Export)

	d.Kill()
	log := filepath.Join(d.Data, "mounts", m.Mount, "log")
	rename(t, log, log+".away")
	d.Start()
	wantAnswer(t, addr, root, nfsclient.Jukebox)
	if r := d.Ctl("mount", "--resume", m.Mount, "--nfs"); r.Code != 13 {
		t.Errorf("resumed without a log: %d, %s%s", r.Code, r.Out, r.Err)
	}
	wantAnswer(t, addr, root, nfsclient.Jukebox)
	if r := d.Ctl("unmount", m.Mount, "--yes"); r.Code != 11 {
		t.Errorf("unmounted under a client that waits: %d, %s%s", r.Code, r.Out, r.Err)
	}
	rename(t, log+".away", log)
	d.Must(nil, "mount", "--resume", m.Mount, "--nfs")
	wantAnswer(t, addr, root, 0)

	d.Must(nil, "unmount", m.Mount, "--keep", "--force")
	wantAnswer(t, addr, root, nfsclient.Stale) // on a connection of its own, though nothing is exported
	d.Must(nil, "mount", "--resume", m.Mount, filepath.Join(dir, "m"))
	wantAnswer(t, addr, root, nfsclient.Stale)
	d.Must(nil, "unmount", m.Mount, "--yes")
}

func rename(t *testing.T, from, to string) {
	t.Helper()
	if err := os.Rename(from, to); err != nil {
		t.Fatal(err)
	}
}

func mounted(t *testing.T, addr, export string) []byte {
	t.Helper()
	c, err := nfsclient.Dial(t.Context(), addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	h, err := c.MountPath(t.Context(), export)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

// wantAnswer asks for attributes on a new connection; 0 is that they are there.
func wantAnswer(t *testing.T, addr string, h []byte, want nfsclient.Status) {
	t.Helper()
	c, err := nfsclient.Dial(t.Context(), addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_, err = c.Getattr(t.Context(), h)
	var st nfsclient.Status
	if want == 0 && err != nil || want != 0 && (!errors.As(err, &st) || st != want) {
		t.Errorf("GETATTR: %v, not %v", err, want)
	}
}
