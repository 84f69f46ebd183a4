package main

import (
	"fmt"
	"time"
)

// forgetRow is a step of letting points go, or of reading a store again; 0 is not measured.
type forgetRow struct {
	Name       string  `json:"name"`
	Seconds    float64 `json:"seconds"`
	CPUSeconds float64 `json:"cpu_seconds"`
	PeakBytes  int64   `json:"peak_rss_bytes"`
	Pointers   int64   `json:"pointers,omitempty"` // of the map, looked at
	Purged     int64   `json:"purged_keys,omitempty"`
	Bytes      int64   `json:"container_bytes,omitempty"` // read, or made again of
	Freed      int64   `json:"freed_bytes,omitempty"`
}

// diskRow is what fio reads of the containers past the page cache, by 1 MiB, one and four at a time.
type diskRow struct {
	One  float64 `json:"mb_per_second"`
	Four float64 `json:"mb_per_second_depth_4"`
}

func (r *report) addForget(name string, row forgetRow, c cost) {
	row.Name, row.Seconds, row.CPUSeconds, row.PeakBytes = name, c.Wall.Seconds(), c.CPU.Seconds(), c.RSS
	r.Forget = append(r.Forget, row)
}

// below judges a time.
func (r *report) below(name string, got, want time.Duration) {
	r.judge(name, fmt.Sprintf("< %.0f s", want.Seconds()), fmt.Sprintf("%.3g s", got.Seconds()), got < want)
}

func (r *report) printForget(row func(cells ...any)) {
	if len(r.Forget) == 0 {
		return
	}
	row("\nForgetting, scrubbing and making metadata again")
	row("", "SECONDS", "CPU S", "PEAK RSS", "POINTERS", "PURGED", "MB/S", "FREED")
	some := func(n int64, text string) string {
		if n == 0 {
			return "-"
		}
		return text
	}
	for _, x := range r.Forget {
		row(x.Name, f2(x.Seconds), f2(x.CPUSeconds), mib(x.PeakBytes), some(x.Pointers, fmt.Sprint(x.Pointers)), some(x.Purged, fmt.Sprint(x.Purged)),
			some(x.Bytes, f1(float64(x.Bytes)/1e6/x.Seconds)), some(x.Freed, mib(x.Freed)))
	}
	if r.Disk.One > 0 {
		row("fio, the same containers past the page cache, 1 and 4 MiB at a time", "", "", "", "", "", f1(r.Disk.One)+" / "+f1(r.Disk.Four))
	}
}
