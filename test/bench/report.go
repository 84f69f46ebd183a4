package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"text/tabwriter"
	"time"
)

// report is the JSON file, and what is printed.
type report struct {
	Machine   map[string]string `json:"machine"`
	DiskBytes int64             `json:"disk_bytes,omitempty"` // data of the real disk
	Ingest    []ingestRow       `json:"ingest,omitempty"`
	Packed    packedRow         `json:"packed"`
	Share     []shareRow        `json:"share,omitempty"`
	Reads     []readRow         `json:"reads,omitempty"`
	Depth     []readRow         `json:"depth,omitempty"`
	IdleBytes int64             `json:"idle_rss_bytes,omitempty"` // of the daemon with ten mounts
	Increment []incrementRow    `json:"increment,omitempty"`
	Memory    []memoryRow       `json:"memory,omitempty"`
	Mounts    []mountRow        `json:"mounts,omitempty"`
	NFS       []*nfsRow         `json:"nfs,omitempty"`
	NFSSlow   nfsSlowRow        `json:"nfs_slow_store"`
	Forget    []forgetRow       `json:"forget,omitempty"`
	Disk      diskRow           `json:"disk_read"`
	Targets   []target          `json:"targets"`
}

type ingestRow struct {
	Name        string  `json:"name"`
	Seconds     float64 `json:"seconds"`
	MBPerSecond float64 `json:"mb_per_second"`
	CPUSeconds  float64 `json:"cpu_seconds"`
	StoredBytes int64   `json:"stored_bytes"`
	PeakBytes   int64   `json:"peak_rss_bytes"`
}

type incrementRow struct {
	Name         string  `json:"name"`
	ChangedBytes int64   `json:"changed_bytes"`
	ReadBytes    int64   `json:"read_bytes"`
	StoredBytes  int64   `json:"stored_bytes"`
	Seconds      float64 `json:"seconds"`
	CPUSeconds   float64 `json:"cpu_seconds"`
}

type memoryRow struct {
	Name       string  `json:"name"`
	ReadBytes  int64   `json:"read_bytes"`
	Seconds    float64 `json:"seconds"`
	CPUSeconds float64 `json:"cpu_seconds"`
	PeakBytes  int64   `json:"peak_rss_bytes"`
}

type mountRow struct {
	Name      string  `json:"name"`
	Size      string  `json:"size"`
	Count     int     `json:"count"`
	MedianMS  float64 `json:"median_ms"`
	P90MS     float64 `json:"p90_ms"`
	CPUMSEach float64 `json:"cpu_ms_each"` // of a mount with its unmount
}

type target struct {
	Name string `json:"name"`
	Want string `json:"want"`
	Got  string `json:"got"`
	Met  bool   `json:"met"`
}

func (r *report) describe(ctx context.Context) {
	say := func(name string, args ...string) string {
		out, err := exec.CommandContext(ctx, name, args...).Output()
		if err != nil {
			return "unknown: " + err.Error()
		}
		line, _, _ := strings.Cut(string(out), "\n")
		return line
	}
	r.Machine = map[string]string{
		"cpus": fmt.Sprint(runtime.NumCPU()), "kernel": say("uname", "-r"), "go": runtime.Version(), "borg": say("borg", "--version"),
		"restic": say("restic", "version"), "qemu": say("qemu-storage-daemon", "--version"), "began": time.Now().UTC().Format(time.RFC3339),
	}
}

func (r *report) addIngest(name string, data int64, g ingested) {
	r.Ingest = append(r.Ingest, ingestRow{name, g.Wall.Seconds(), megabytes(data, g.Wall), g.CPU.Seconds(), g.stored, g.RSS})
}

func (r *report) addIncrement(name string, changed, read, stored int64, c cost) {
	r.Increment = append(r.Increment, incrementRow{name, changed, read, stored, c.Wall.Seconds(), c.CPU.Seconds()})
}

func (r *report) addMemory(name string, read int64, c cost) {
	r.Memory = append(r.Memory, memoryRow{name, read, c.Wall.Seconds(), c.CPU.Seconds(), c.RSS})
}

func (r *report) addMounts(name, size string, times []time.Duration, used time.Duration) {
	r.Mounts = append(r.Mounts, mountRow{
		name, size, len(times), ms(quantile(times, 0.5)), ms(quantile(times, 0.9)), ms(used) / float64(len(times)),
	})
}

func (r *report) judge(name, want, got string, met bool) {
	r.Targets = append(r.Targets, target{name, want, got, met})
}

func (r *report) judgeIngest() {
	ours, fast, borg := r.Ingest[0], r.Ingest[1], r.Ingest[2]
	r.atLeast("ingest beside borg", ours.MBPerSecond/borg.MBPerSecond, 1.7)
	r.atMost("stored bytes beside borg", ratio(ours.StoredBytes, borg.StoredBytes), 1.05)
	r.atLeast("ingest beside borg, fast", fast.MBPerSecond/borg.MBPerSecond, 3)
	r.atMost("stored bytes beside borg, fast", ratio(fast.StoredBytes, borg.StoredBytes), 1.3)
	r.atMost("stored bytes beside borg, fast, packed", ratio(r.Packed.StoredBytes, borg.StoredBytes), 1.05)
	r.judgePeak("peak memory, real disk", ours.PeakBytes)
}

func ratio(a, b int64) float64 { return float64(a) / float64(b) }

func (r *report) atLeast(name string, got, want float64) {
	r.judge(name, fmt.Sprintf(">= %.2f", want), fmt.Sprintf("%.2f", got), got >= want)
}

func (r *report) atMost(name string, got, want float64) {
	r.judge(name, fmt.Sprintf("<= %.3g", want), fmt.Sprintf("%.3f", got), got <= want)
}

func (r *report) judgeIncrement() {
	row := r.Increment[0]
	r.judge("a list of extents: bytes read", fmt.Sprint(row.ChangedBytes), fmt.Sprint(row.ReadBytes), row.ReadBytes == row.ChangedBytes)
}

func (r *report) judgeMemory() { r.judgePeak("peak memory, 1 TiB sparse", r.Memory[0].PeakBytes) }

func (r *report) judgePeak(name string, bytes int64) {
	r.judge(name, "< 512 MiB", fmt.Sprintf("%d MiB", bytes>>20), bytes < 512<<20)
}

func (r *report) judgeMounts() {
	small, big := r.Mounts[0], r.Mounts[1]
	r.judge("mount of 1 GiB, median", "< 10 ms", fmt.Sprintf("%.1f ms", small.MedianMS), small.MedianMS < 10)
	r.judge("mount of 1 TiB, median", "< 10 ms", fmt.Sprintf("%.1f ms", big.MedianMS), big.MedianMS < 10)
	ratio := big.MedianMS / small.MedianMS
	r.judge("mount of 1 TiB beside 1 GiB", "0.80 to 1.20", fmt.Sprintf("%.2f", ratio), ratio >= 0.8 && ratio <= 1.2)
}

type packedRow struct {
	Seconds     float64 `json:"seconds"`
	StoredBytes int64   `json:"stored_bytes"`
}

type shareRow struct {
	Name      string `json:"name"`
	DataBytes int64  `json:"data_bytes"`
	NewBytes  int64  `json:"new_bytes"` // of that, not found in what was stored before
}

// readRow is what one program reads and writes; 0 is not measured.
type readRow struct {
	Name         string  `json:"name"`
	Cold1        float64 `json:"random_4k_cold_depth_1"` // a second; 1 and 16 requests at a time
	Cold16       float64 `json:"random_4k_cold_depth_16"`
	Warm1        float64 `json:"random_4k_warm_depth_1"`
	Warm16       float64 `json:"random_4k_warm_depth_16"`
	SequentialMB float64 `json:"sequential_mb_per_second"`
	WriteSync    float64 `json:"random_4k_write_fdatasync"`
	Write16      float64 `json:"random_4k_write_depth_16"`
	MountMS      float64 `json:"mount_ms"`
	CPUPerGB     float64 `json:"sequential_cpu_seconds_per_gb"`
	CPUPer1000   float64 `json:"cold_cpu_ms_per_1000"`
}

func (r *report) printReads(row func(cells ...any), title string, list []readRow) {
	if len(list) == 0 {
		return
	}
	row("\n" + title)
	row("", "MOUNT MS", "COLD 1", "COLD 16", "WARM 1", "WARM 16", "SEQ MB/S", "CPU S/GB", "WRITE SYNC", "WRITE 16")
	n := func(v float64) string {
		if v == 0 {
			return "-"
		}
		return fmt.Sprintf("%.0f", v)
	}
	for _, x := range list {
		row(x.Name, f1(x.MountMS), n(x.Cold1), n(x.Cold16), n(x.Warm1), n(x.Warm16), n(x.SequentialMB), fmt.Sprintf("%.2f", x.CPUPerGB), n(x.WriteSync), n(x.Write16))
	}
}

func (r *report) save(path string) error {
	b, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(path, append(b, '\n'), 0o644)
}

func (r *report) print(w io.Writer) {
	t := tabwriter.NewWriter(w, 0, 4, 2, ' ', 0)
	defer t.Flush()
	row := func(cells ...any) { fmt.Fprintln(t, strings.TrimSuffix(fmt.Sprintln(join(cells)...), "\n")) }
	if len(r.Ingest) > 0 {
		fmt.Fprintf(t, "\nFirst backup of a real disk with %s of data, page cache dropped\n", gib(r.DiskBytes))
		row("", "SECONDS", "MB/S", "CPU S", "STORED", "PEAK RSS")
		for _, x := range r.Ingest {
			row(x.Name, f1(x.Seconds), f1(x.MBPerSecond), f1(x.CPUSeconds), gib(x.StoredBytes), mib(x.PeakBytes))
		}
	}
	if len(r.Increment) > 0 {
		fmt.Fprintf(t, "\nIncrement: %d extents of 64 KiB changed, page cache dropped; then %d rows of a database\n", extents, databaseWrites)
		row("", "CHANGED", "READ", "STORED", "SECONDS", "CPU S")
		for _, x := range r.Increment {
			row(x.Name, mib(x.ChangedBytes), mib(x.ReadBytes), mib(x.StoredBytes), fmt.Sprintf("%.2f", x.Seconds), fmt.Sprintf("%.2f", x.CPUSeconds))
		}
	}
	for _, x := range r.Share {
		fmt.Fprintf(t, "\n%s: %s of data, %s not stored before\n", x.Name, gib(x.DataBytes), gib(x.NewBytes))
	}
	if r.Packed.StoredBytes > 0 {
		fmt.Fprintf(t, "\nStored fast, then packed in %.1f s: %s\n", r.Packed.Seconds, gib(r.Packed.StoredBytes))
	}
	r.printReads(row, "Random 4 KiB a second (1 or 16 at a time, chunk cache empty or warm), sequential reads, random 4 KiB writes", r.Reads)
	r.printReads(row, "The same at the ends of a chain", r.Depth)
	if len(r.Memory) > 0 {
		fmt.Fprintf(t, "\nA large sparse disk\n")
		row("", "READ", "SECONDS", "CPU S", "PEAK RSS")
		for _, x := range r.Memory {
			row(x.Name, gib(x.ReadBytes), f1(x.Seconds), f1(x.CPUSeconds), mib(x.PeakBytes))
		}
	}
	if len(r.Mounts) > 0 {
		fmt.Fprintf(t, "\nFrom asking for a mount to its first 4 KiB\n")
		row("", "DISK", "MOUNTS", "MEDIAN MS", "P90 MS", "CPU MS EACH")
		for _, x := range r.Mounts {
			row(x.Name, x.Size, x.Count, f1(x.MedianMS), f1(x.P90MS), f1(x.CPUMSEach))
		}
	}
	r.printNFS(row)
	r.printForget(row)
	fmt.Fprintln(t, "\nTargets")
	for _, x := range r.Targets {
		row(x.Name, "want "+x.Want, "got "+x.Got, map[bool]string{true: "met", false: "MISSED"}[x.Met])
	}
}

// join puts a tab between cells.
func join(cells []any) []any {
	var b strings.Builder
	for i, c := range cells {
		if i > 0 {
			b.WriteByte('\t')
		}
		fmt.Fprint(&b, c)
	}
	return []any{b.String()}
}

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
func f1(v float64) string        { return fmt.Sprintf("%.1f", v) }
func gib(n int64) string         { return fmt.Sprintf("%.2f GiB", float64(n)/(1<<30)) }
func mib(n int64) string         { return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20)) }
