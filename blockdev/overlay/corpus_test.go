package overlay

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"testing"
)

// TestCorpusIsMadeFromARealLog writes the seeds of the fuzz targets, made from a real log, when it is asked to.
func TestCorpusIsMadeFromARealLog(t *testing.T) {
	if os.Getenv("OVERLAY_CORPUS") == "write" {
		writeCorpus(t)
	}
	for _, name := range []string{"FuzzRecord", "FuzzMark", "FuzzReplay", "FuzzCheckpoint"} {
		list, err := os.ReadDir(filepath.Join("testdata/fuzz", name))
		must(t, err)
		if len(list) == 0 {
			t.Fatalf("%s has no corpus", name)
		}
	}
}

func writeCorpus(t *testing.T) {
	m, _, _ := flipLog(t)
	fork, _, _ := flipFork(t)
	write := func(target, name string, args ...any) {
		text := "go test fuzz v1\n"
		for _, a := range args {
			switch v := a.(type) {
			case bool:
				text += fmt.Sprintf("bool(%v)\n", v)
			case []byte:
				text += fmt.Sprintf("[]byte(%q)\n", v)
			}
		}
		dir := filepath.Join("testdata/fuzz", target)
		must(t, os.MkdirAll(dir, 0o755))
		must(t, os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644))
	}
	var bodies [][]byte
	for name, b := range m {
		switch {
		case name == "mark":
			write("FuzzMark", "mark", b)
		case filepath.Ext(name) == ".seg":
			bodies = append(bodies, b[segmentHeaderBytes:])
			if len(b) > segmentHeaderBytes {
				write("FuzzRecord", "record-"+name, b[segmentHeaderBytes:][:min(1200, len(b)-segmentHeaderBytes)])
			}
		default:
			n, _ := parseName(name, checkpointPrefix, "")
			write("FuzzCheckpoint", "stream", true, streamOf(t, b, checkpointID{[16]byte{1, 2, 3}, n}))
			write("FuzzCheckpoint", "file", false, b)
		}
	}
	write("FuzzCheckpoint", "fork", true, streamOf(t, fork["checkpoint-0000000000000001"], checkpointID{[16]byte{9, 0xf}, 1}))
	for i, b := range bodies {
		write("FuzzReplay", fmt.Sprint("mended", i), true, false, b, bodies[(i+1)%len(bodies)])
		write("FuzzReplay", fmt.Sprint("accept", i), true, true, b, bodies[(i+1)%len(bodies)])
		write("FuzzReplay", fmt.Sprint("raw", i), false, false, b, []byte{})
	}
}

// streamOf is the stream of a checkpoint file.
func streamOf(t testing.TB, b []byte, id checkpointID) (stream []byte) {
	d := blockDecoder{form: testForm, id: id, keys: testKeys}
	for off := 0; off < len(b)/2; off += blockBytes {
		part, ok, err := d.decode(bytes.Clone(b[off:]), uint32(off/blockBytes))
		if !ok || err != nil {
			t.Fatalf("block at %d is bad: %v", off, err)
		}
		stream = append(stream, part...)
	}
	return stream
}
