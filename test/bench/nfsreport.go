package main

import "fmt"

// nfsRow is one kind of load on one server, with one connection and with eight.
type nfsRow struct {
	Server string  `json:"server"`
	Load   string  `json:"load"`
	Bytes  int     `json:"bytes"` // of a call; 0 is GETATTR
	Depth  int     `json:"depth"` // calls under way on each connection
	One    nfsRate `json:"one_connection"`
	Eight  nfsRate `json:"eight_connections"`
}

// row adds a row for a kind of load on a server.
func (n *nfsBench) row(server string, c *nfsCell) *nfsRow {
	r := &nfsRow{Server: server, Load: c.name, Bytes: c.bytes, Depth: c.depth}
	n.report.NFS = append(n.report.NFS, r)
	return r
}

func (r *nfsRow) rate(connections int) *nfsRate {
	if connections == 1 {
		return &r.One
	}
	return &r.Eight
}

// small says whether calls count, not bytes.
func (r *nfsRow) small() bool { return r.Bytes <= 4<<10 }

// nfsSlowRow is a server whose store takes long for each read of a container.
type nfsSlowRow struct {
	DelayMS float64 `json:"delay_ms"`
	Reads   int     `json:"reads"` // 4 KiB at random, 32 at a time on one connection
	nfsRate
	Other nfsProbes `json:"getattr_other_connection"`
	Same  nfsProbes `json:"getattr_same_connection"`
}

// nfsProbes is how long calls took that were made one after the other.
type nfsProbes struct {
	Count   int     `json:"count"`
	MedianM float64 `json:"median_ms"`
	P99MS   float64 `json:"p99_ms"`
	WorstMS float64 `json:"worst_ms"`
}

func (r *report) printNFS(row func(cells ...any)) {
	if len(r.NFS) == 0 {
		return
	}
	row("\nNFS in order, 8 calls of each connection under way: MB/s, the server's CPU seconds for each GB, and the cores that others used")
	row("", "", "1 CONNECTION", "8", "CPU S/GB, 1", "8", "OTHERS, 1", "8")
	for _, x := range r.NFS {
		if !x.small() {
			row(x.Load, x.Server, f1(x.One.MBPerSecond), f1(x.Eight.MBPerSecond), f2(x.One.CPUPerGB), f2(x.Eight.CPUPerGB), f1(x.One.OthersCores), f1(x.Eight.OthersCores))
		}
	}
	row("\nNFS, small calls: a second, the server's CPU milliseconds for a thousand, and the cores that others used")
	row("", "", "1 CONNECTION", "8", "CPU MS/1000, 1", "8", "OTHERS, 1", "8")
	for _, x := range r.NFS {
		if x.small() {
			row(x.Load, x.Server, fmt.Sprintf("%.0f", x.One.PerSecond), fmt.Sprintf("%.0f", x.Eight.PerSecond),
				f1(x.One.CPUPer1000), f1(x.Eight.CPUPer1000), f1(x.One.OthersCores), f1(x.Eight.OthersCores))
		}
	}
	s := &r.NFSSlow
	if s.PerSecond == 0 {
		return
	}
	row(fmt.Sprintf("\nNFS, %.0f ms for each read of a container: %.0f reads of 4 KiB a second, 32 at a time on one connection, %.1f ms of CPU for 1000, %.1f cores used by others",
		s.DelayMS, s.PerSecond, s.CPUPer1000, s.OthersCores))
	row("GETATTR beside them", "CALLS", "MEDIAN MS", "P99 MS", "WORST MS")
	row("on another connection", s.Other.Count, f2(s.Other.MedianM), f2(s.Other.P99MS), f2(s.Other.WorstMS))
	row("on the same", s.Same.Count, f2(s.Same.MedianM), f2(s.Same.P99MS), f2(s.Same.WorstMS))
}

func f2(v float64) string { return fmt.Sprintf("%.2f", v) }

// find returns the row of a load on a server; an empty one when there is none.
func (r *report) findNFS(server, load string) *nfsRow {
	for _, x := range r.NFS {
		if x.Server == server && x.Load == load {
			return x
		}
	}
	return &nfsRow{}
}

// judgeNFS compares what the issue sets targets for.
func (r *report) judgeNFS() {
	for _, size := range sequentialSizes() {
		r.judgeBoth(fmt.Sprintf(readHot, sizeName(size)), func(name string, ours, its *nfsRate) {
			r.atMost(name+": CPU for a GB", ours.CPUPerGB/its.CPUPerGB, 1)
			r.atLeast(name+": MB/s", ours.MBPerSecond/its.MBPerSecond, 1)
		})
	}
	for _, size := range sequentialSizes() {
		r.judgeBoth(fmt.Sprintf(readEmpty, sizeName(size)), func(name string, ours, its *nfsRate) {
			r.atLeast(name+": MB/s", ours.MBPerSecond/its.MBPerSecond, 0.5)
		})
	}
	r.judgeBoth(fmt.Sprintf(randomHot, 32), func(name string, ours, its *nfsRate) {
		r.atLeast(name, ours.PerSecond/its.PerSecond, 2)
	})
	r.judgeSlow()
}

// judgeBoth judges a load with one and with eight connections beside nfs-ganesha.
func (r *report) judgeBoth(load string, judge func(name string, ours, its *nfsRate)) {
	ours, its := r.findNFS("livemount", load), r.findNFS("nfs-ganesha", load)
	for _, connections := range []int{1, 8} {
		judge(fmt.Sprintf("NFS %s, %d conn., beside ganesha", load, connections), ours.rate(connections), its.rate(connections))
	}
}

func (r *report) judgeSlow() {
	s := &r.NFSSlow
	r.judge("NFS, slow store: reads of 4 KiB a second, depth 32", ">= 5000", fmt.Sprintf("%.0f", s.PerSecond), s.PerSecond >= 5000)
	under := func(name string, ms float64) { r.judge(name, "< 5 ms", f2(ms)+" ms", ms < 5) }
	under("NFS, slow store: GETATTR, other connection, 99 of 100", s.Other.P99MS)
	under("NFS, slow store: GETATTR, other connection, worst", s.Other.WorstMS)
	under("NFS, slow store: GETATTR, same connection, 99 of 100", s.Same.P99MS)
	under("NFS, slow store: GETATTR, same connection, worst", s.Same.WorstMS)
}
