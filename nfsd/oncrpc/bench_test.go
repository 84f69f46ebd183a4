package oncrpc

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"sync"
	"testing"
)

// benchPipelined sends groups of depth calls and reads their answers; the client costs next to nothing.
func benchPipelined(b *testing.B, depth, answer int, call []byte) {
	r := newRig(b, Options{})
	c, err := net.Dial("tcp", r.tcp(b))
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close()
	group, answers := bytes.Repeat(record(call), depth), make([]byte, depth*(headerBytes+answer))
	b.SetBytes(int64(len(call) + headerBytes + answer))
	b.ReportAllocs()
	for n := 0; n < b.N; n += depth {
		if _, err := c.Write(group); err != nil {
			b.Fatal(err)
		}
		if _, err := io.ReadFull(c, answers); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "calls/s")
}

func BenchmarkNull(b *testing.B) {
	for _, depth := range []int{1, 32} {
		b.Run(fmt.Sprintf("depth %d", depth), func(b *testing.B) { benchPipelined(b, depth, 0, message(1, procNull)) })
	}
}

// BenchmarkEcho has a goroutine for each call.
func BenchmarkEcho(b *testing.B) {
	benchPipelined(b, 32, 100, message(1, procEcho, make([]byte, 100)...))
}

func BenchmarkRead64KiB(b *testing.B) {
	benchPipelined(b, 16, 4+64<<10, message(1, procRead, words(64<<10)...))
}

func BenchmarkRead1MiB(b *testing.B) {
	benchPipelined(b, 8, 4+1<<20, message(1, procRead, words(1<<20)...))
}

// BenchmarkWrite1MiB has requests that are read and refused: the procedure is not there.
func BenchmarkWrite1MiB(b *testing.B) {
	benchPipelined(b, 8, 0, message(1, 99, make([]byte, 1<<20)...))
}

func BenchmarkClient(b *testing.B) {
	c := dial(b, "tcp", newRig(b, Options{}).tcp(b))
	b.ReportAllocs()
	var callers sync.WaitGroup
	for i := range 32 {
		callers.Go(func() {
			for n := i; n < b.N; n += 32 {
				if _, err := c.Call(b.Context(), testProgram, testLow, procNull, Cred{}, nil); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	callers.Wait()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "calls/s")
}
