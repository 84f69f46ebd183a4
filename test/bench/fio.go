package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os/exec"
)

// fioResult is what fio says of one job.
type fioResult struct {
	IOPS float64
	MB   float64 // a second
}

// fio runs one job on a file.
func fio(ctx context.Context, path string, args ...string) (fioResult, error) {
	all := append([]string{"--output-format=json", "--name=x", "--filename=" + path}, args...)
	out, err := exec.CommandContext(ctx, "fio", all...).Output()
	if err != nil {
		return fioResult{}, fmt.Errorf("fio %v: %w: %s", all, err, out)
	}
	var v struct {
		Jobs []struct {
			Read, Write struct {
				IOPS    float64 `json:"iops"`
				BWBytes float64 `json:"bw_bytes"`
			}
		}
	}
	if err := json.Unmarshal(out, &v); err != nil || len(v.Jobs) != 1 {
		return fioResult{}, fmt.Errorf("fio said %q: %v", out, err)
	}
	j := v.Jobs[0]
	return fioResult{j.Read.IOPS + j.Write.IOPS, (j.Read.BWBytes + j.Write.BWBytes) / 1e6}, nil
}

// depthOf are the options for so many requests at a time, past the page cache of the mount.
func depthOf(n int) []string {
	return []string{"--direct=1", "--ioengine=libaio", fmt.Sprintf("--iodepth=%d", n), "--bs=4k", "--runtime=6", "--time_based"}
}

// random reads 4 KiB pieces of a part of the file.
func random(ctx context.Context, path string, depth int, part ...string) (float64, error) {
	r, err := fio(ctx, path, append(append(depthOf(depth), "--rw=randread", "--randrepeat=0"), part...)...)
	return r.IOPS, err
}

// sequential reads a part of the file in order through the page cache of the mount.
func sequential(ctx context.Context, path string, part ...string) (float64, error) {
	r, err := fio(ctx, path, append([]string{"--rw=read", "--bs=1m", "--ioengine=sync"}, part...)...)
	return r.MB, err
}
