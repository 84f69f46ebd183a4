package fusefs_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"livemount/fs/fusefs"
)

func TestStressOnAStore(t *testing.T) {
	tool(t, "stress-ng", "stress-ng")
	for _, direct := range []bool{false, true} {
		m := store(t, config{DirectIO: direct})
		before, _ := m.count()
		for _, s := range [][2]string{
			{"--hdd", "300"}, {"--rename", "500"}, {"--fallocate", "4"}, {"--seek", "100"}, {"--iomix", "50"},
			{"--dir", "100"}, {"--link", "2"}, {"--symlink", "2"},
		} {
			run(t, "stress-ng", "--temp-path", m.dir, "--quiet", "--verify", s[0], "2", s[0]+"-ops", s[1], "--timeout", "2s",
				"--hdd-bytes", "8M", "--fallocate-bytes", "8M", "--seek-size", "4M", "--iomix-bytes", "4M", "--dir-dirs", "64")
		}
		if names := list(t, m.dir); len(names) != 1 {
			t.Errorf("left: %v", names)
		}
		wantNodes(t, m, before)
	}
}

func TestFioVerifiesAFileThatGrows(t *testing.T) {
	tool(t, "fio", "fio")
	for _, direct := range []bool{false, true} {
		m := store(t, config{DirectIO: direct})
		for i, args := range [][]string{
			{"--rw=randwrite", "--bsrange=512-256k", "--ioengine=psync"},
			{"--rw=randwrite", "--bs=4k", "--ioengine=libaio", "--direct=1", "--iodepth=16"},
			{"--rw=write", "--bs=64k", "--ioengine=libaio", "--direct=1", "--iodepth=8", "--fsync=20"},
			{"--rw=randwrite", "--bs=16k", "--ioengine=mmap"},
		} {
			run(t, "fio", append(args, "--name=verify", fmt.Sprintf("--filename=%s/f%d", m.dir, i), "--size=16m", "--verify=crc32c",
				"--do_verify=1", "--verify_fatal=1", "--randseed=7", "--fallocate=none")...)
		}
	}
}

// TestTreesAreCopied does what a build does: copies, archives, unpacks, compares and removes source.
func TestTreesAreCopied(t *testing.T) {
	for _, direct := range []bool{false, true} {
		m := store(t, config{DirectIO: direct})
		before, _ := m.count()
		run(t, "sh", "-ec", `
			mkdir "$0/a" "$0/b"
			cp -a ../../blockdev ../../snapshotchain ../../fs "$0/a"
			ln "$0/a/fs/tree.go" "$0/a/hard"; ln -s fs/tree.go "$0/a/soft"
			tar -C "$0/a" --format=posix -cf "$0/a.tar" .
			tar -C "$0/b" -xpf "$0/a.tar"
			diff -r --no-dereference "$0/a" "$0/b"
			diff -r ../../snapshotchain "$0/b/snapshotchain"
			test "$(cd "$0/a"; find . -printf '%P %m %s %n %T@ %U %l\n' | sort)" = "$(cd "$0/b"; find . -printf '%P %m %s %n %T@ %U %l\n' | sort)"
			mv "$0/b/fs" "$0/b/moved"; cp -r "$0/b/moved" "$0/b/fs"; diff -r "$0/b/fs" "$0/a/fs"
			find "$0/b" -name '*.go' -exec sed -i s/package/packet/ {} +
			grep -rL packet "$0/b" --include='*.go' | wc -l
			rm -r "$0/a" "$0/b" "$0/a.tar"`, m.dir)
		wantNodes(t, m, before)
	}
}

// TestWhatWasSyncedOutlivesAKill kills the server under writers, each of which says after each fsync of its file and
// folder how far it is.
func TestWhatWasSyncedOutlivesAKill(t *testing.T) {
	for round := range 3 {
		c := config{Store: t.TempDir(), DirectIO: round == 1}
		m := store(t, c)
		const writers = 4
		said := make(chan [2]int, 1<<16)
		done := make(chan struct{}, writers)
		for w := range writers {
			go func() {
				defer func() { done <- struct{}{} }()
				for n := 0; syncedStep(m.dir, w, n); n++ {
					said <- [2]int{w, n}
				}
			}()
		}
		for len(said) < 100+37*round {
			time.Sleep(time.Millisecond)
		}
		m.cmd.Process.Kill()
		m.cmd.Wait()
		for range writers {
			<-done
		}
		close(said)
		if _, err := fusefs.CleanDead(t.Context(), m.dir); err != nil {
			t.Fatal(err)
		}
		m = store(t, c)
		last := map[int]int{}
		for s := range said {
			last[s[0]] = s[1]
		}
		for w, n := range last {
			checkSynced(t, m.dir, w, n)
		}
		exec.Command("umount", m.dir).Run()
	}
}

// syncedStep makes a file, moves it, writes, and syncs it and its folder. It is false when the mount is dead.
func syncedStep(dir string, writer, n int) bool {
	folder := filepath.Join(dir, fmt.Sprint("w", writer))
	if err := os.MkdirAll(folder, 0o755); err != nil {
		return false
	}
	temporary := filepath.Join(folder, "temporary")
	f, err := os.Create(temporary)
	if err != nil {
		return false
	}
	defer f.Close()
	if _, err = f.Write(numbered(writer, n)); err == nil {
		err = f.Sync()
	}
	if err == nil {
		err = os.Rename(temporary, filepath.Join(folder, fmt.Sprint(n)))
	}
	if err == nil && n%3 == 2 {
		err = os.Remove(filepath.Join(folder, fmt.Sprint(n-1)))
	}
	return err == nil && syncFolder(folder) == nil
}

func syncFolder(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

func numbered(writer, n int) []byte {
	return bytes.Repeat(binary.BigEndian.AppendUint32([]byte{byte(writer)}, uint32(n)), 1000+n)
}

func checkSynced(t *testing.T, dir string, writer, last int) {
	t.Helper()
	folder := filepath.Join(dir, fmt.Sprint("w", writer))
	for n := range last + 1 {
		got, err := os.ReadFile(filepath.Join(folder, fmt.Sprint(n)))
		switch gone := n%3 == 1 && last > n; {
		case gone && !os.IsNotExist(err):
			t.Errorf("writer %d: file %d of %d was removed, and is there: %v", writer, n, last, err)
		case n%3 == 1: // removed, or about to be
		case err != nil || !bytes.Equal(got, numbered(writer, n)):
			t.Errorf("writer %d: file %d of %d: %d bytes, %v", writer, n, last, len(got), err)
		}
	}
}
