// Command bench measures Livemount beside what Debian has for the same work, in one run on one machine:
// mounts beside a qcow2 overlay over qemu-storage-daemon's FUSE export and restic mount; ingest beside borg
// and restic; the NFS server beside nfs-ganesha; forgetting beside both; and the memory of the daemon. Wall time on
// a shared machine varies, so CPU time is printed beside it. Results go to standard output as tables and to a JSON
// file. `make bench` runs it.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
)

// bench is what all measurements share.
type bench struct {
	root   string // of the project
	work   string // temporary; removed at the end
	disk   string // the real Debian disk
	rounds int
	mounts int
	// profiles is a folder for the CPU profiles of what is measured in processes of its own; "" takes none.
	profiles string
	report   report
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if len(os.Args) == 4 && os.Args[1] == childStore {
		exit(storeWork(ctx, os.Args[2], os.Args[3]))
	}
	if isChild(os.Args) {
		exit(serveChild(ctx, os.Args[1], os.Args[2]))
	}
	b := &bench{}
	only := flag.String("only", "ingest,increment,share,memory,mount,read,depth,nfs,forget", "what to measure, with commas")
	out := flag.String("json", "build/bench.json", "file for the results")
	flag.StringVar(&b.disk, "disk", "build/bench-disk.raw", "a raw disk with a real system; made when it is missing")
	flag.IntVar(&b.rounds, "rounds", 2, "ingests of the whole disk with each program, in turn; the fastest counts")
	flag.IntVar(&b.mounts, "mounts", 30, "mounts of each kind")
	flag.StringVar(&b.profiles, "profiles", "", "folder for CPU profiles of the part forget")
	flag.Parse()
	err := b.run(ctx, strings.Split(*only, ","))
	if err == nil {
		err = b.report.save(*out)
	}
	exit(err)
}

// exit ends the program.
func exit(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

func (b *bench) run(ctx context.Context, only []string) (err error) {
	if os.Geteuid() != 0 {
		return fmt.Errorf("dropping the page cache and mounting for others need root. Try: sudo make bench")
	}
	if b.root, err = os.Getwd(); err != nil {
		return err
	}
	if b.disk, err = filepath.Abs(b.disk); err != nil {
		return err
	}
	if slices.Contains(only, "ingest") || slices.Contains(only, "increment") || slices.Contains(only, "read") || slices.Contains(only, "forget") {
		if err := command(ctx, filepath.Join(b.root, "test/bench/mkdisk.sh"), b.disk).toStderr(); err != nil {
			return err
		}
	}
	if b.work, err = os.MkdirTemp(filepath.Join(b.root, "build"), "bench."); err != nil {
		return err
	}
	defer b.clean()
	b.report.describe(ctx)
	parts := map[string]func(context.Context) error{
		"ingest": b.ingest, "increment": b.increment, "share": b.share, "memory": b.memory, "mount": b.mount,
		"read": b.read, "depth": b.depth, "nfs": b.nfs, "forget": b.forget,
	}
	for _, name := range only {
		f, ok := parts[name]
		if !ok {
			return fmt.Errorf("nothing to measure is named %q: ingest, increment, share, memory, mount, read, depth, nfs or forget", name)
		}
		if err := f(ctx); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	b.report.print(os.Stdout)
	return nil
}

// clean removes the work folder, and what is still mounted in it.
func (b *bench) clean() {
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		return
	}
	for _, line := range strings.Split(string(mounts), "\n") {
		if f := strings.Fields(line); len(f) > 4 && strings.HasPrefix(f[4], b.work+"/") {
			syscall.Unmount(f[4], syscall.MNT_DETACH) // what stays mounted is said by RemoveAll
		}
	}
	if err := os.RemoveAll(b.work); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
	}
}

func (b *bench) path(name string) string { return filepath.Join(b.work, name) }

// progress tells a person what goes on.
func progress(format string, args ...any) { fmt.Fprintf(os.Stderr, "bench: "+format+"\n", args...) }
