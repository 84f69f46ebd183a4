package snapshotchain

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"os"
	"reflect"
	"testing"
	"time"

	"pgregory.net/rapid"

	"livemount/internal/errs"
	"livemount/snapshotchain/chunkstore"
)

// golden compares with testdata; LIVEMOUNT_GOLDEN=write writes it, for a new format version only.
func golden(t *testing.T, name, got string) {
	t.Helper()
	path := "testdata/" + name
	if os.Getenv("LIVEMOUNT_GOLDEN") == "write" {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Fatalf("the format of %s changed:\n%s", name, got)
	}
}

func exampleLeaf() *leaf {
	return &leaf{depth: 2, prev: 300, runs: []Run{
		{Page: 0, Len: 16, Ptr: chunkstore.Ptr{Container: 9, Slot: 4}},
		{Page: 16, Len: 3},
		{Page: 100, Len: 2, First: 5, Ptr: chunkstore.Ptr{Container: 7, Slot: 1000}},
		{Page: 2047, Len: 1, First: 63, Ptr: chunkstore.Ptr{Container: 7, Slot: 1001}},
	}}
}

func TestGoldenLeaf(t *testing.T) { golden(t, "leaf.golden", hex.Dump(exampleLeaf().encode())) }

func TestGoldenDirectory(t *testing.T) {
	var d dirPage
	for i := range d {
		d[i] = Seq(i / 100 * 1000)
	}
	golden(t, "directory.golden", hex.Dump(encodeSeqs(d[:])))
}

func TestGoldenMapPart(t *testing.T) {
	var w partWriter
	w.add(5, 6, PartLeaves, 7, exampleLeaf().encode())
	w.add(5, 6, PartLeaves, 300, []byte{1})
	golden(t, "mappart.golden", hex.Dump(w.buf))
}

func TestGoldenKeys(t *testing.T) {
	var b []byte
	for _, k := range [][]byte{
		keyRoot(), keyVM(1), keyLineage(2), keyContainer(3), keyDraft(4), keyPoint(5, 6), keySeal(7, 8), keyDir(9, 10, 11),
		keyLeaf(12, 13, 14), keyBad(chunkstore.Ptr{Container: 15, Slot: 16}),
	} {
		b = append(append(b, hex.EncodeToString(k)...), '\n')
	}
	golden(t, "keys.golden", string(b))
}

func exampleChanges() []change {
	at := time.Date(2026, 11, 21, 22, 0, 0, 123456789, time.UTC)
	return []change{
		{Open: &openChange{Draft: 1, VM: 2, Name: "web", Time: at, NextID: 3, Disks: []openDisk{{Name: "sda", Lineage: 4, Seq: 5, Base: &base{6, 7, 8192}}}}},
		{Seal: &sealChange{
			Draft: 1, VM: 2, Name: "web",
			Point: Point{
				ID: 8, VM: 2, Ordinal: 9, Time: at, Parent: 10, Consistency: "crash", Notes: []string{"note"},
				Disks: []PointDisk{{
					Name: "sda", Lineage: 4, Seq: 5, SizeBytes: 1 << 40, DataBytes: 4096, ReadBytes: 8192, ChangedBytes: 4096, StoredBytes: 200,
					Mode: "list", Source: "/images/web.raw", Root: chunkstore.Sum{1, 2, 3, 4}, Skipped: []ByteRange{{Offset: 1, Length: 2}},
				}},
				Config: &Config{Name: "web.xml", SizeBytes: 5, Ptr: chunkstore.Ptr{Container: 11, Slot: 12}},
			},
			Seals: []seal{{
				Lineage: 4, Seq: 5, Prev: 4, Base: &base{6, 7, 8192}, Size: 1 << 40, Data: 1, Sum: chunkstore.Sum{1, 2, 3, 4}, Dirs: []byte{1, 2},
				Parts: []Part{{Kind: PartLeaves, First: 1, Last: 2, Ptr: chunkstore.Ptr{Container: 11, Slot: 13}}},
			}},
			Containers: []chunkstore.State{{ID: 11, Gen: 0, Class: chunkstore.ClassMap, Bytes: 1000, Slots: 14, Raw: 2000, Sealed: true}},
			Raw:        4096, Stored: 200,
		}},
		{Abort: &abortChange{Draft: 1}},
		{Open: &openChange{Draft: 14, VM: 15, Of: 2, Name: "web:fix", Time: at, NextID: 16}},
		{Drop: &dropChange{
			VM: 2, Points: []droppedPoint{{Ordinal: 9, Data: 4096, Digest: digest{1, 2, 3}}}, Whole: true, Latest: 17, Time: at,
		}},
		{Pack: &packChange{State: chunkstore.State{ID: 11, Gen: 1, Class: chunkstore.ClassData, Bytes: 900, Slots: 14, Raw: 2000, Sealed: true, Fast: true}, Freed: 100}},
		{Name: &nameChange{Names: map[VMID]string{2: "www", 15: "www:fix"}}},
	}
}

func TestGoldenJournal(t *testing.T) {
	var b []byte
	for _, c := range exampleChanges() {
		b = append(append(b, mustJSON(&c)...), '\n')
	}
	golden(t, "journal.golden", string(b))
}

func TestAnUnknownJournalRecordIsRefused(t *testing.T) {
	if _, err := decodeChange([]byte(`{"teleport":{}}`)); !errs.Is(err, errs.Newer) {
		t.Fatal(err)
	}
}

// The sums over records only work when a record that was read encodes to the bytes it was read from.
func TestRecordsEncodeToWhatTheyWereReadFrom(t *testing.T) {
	c := newCatalog()
	for i, ch := range exampleChanges()[:2] {
		if i == 0 {
			ch.Open.Disks[0].Seq = 5
		}
		p, err := c.apply(uint64(i+1), &ch)
		if err != nil {
			t.Fatal(err)
		}
		for j, key := range p.keys {
			into := map[byte]any{'v': &VM{}, 'g': &lineage{}, 'k': &chunkstore.State{}, 'o': &openChange{}, 'p': &Point{}, 's': &seal{}, 'r': &root{}}[key[0]]
			if p.vals[j] == nil {
				continue
			}
			if err := json.Unmarshal(p.vals[j], into); err != nil {
				t.Fatal(err)
			}
			if again := mustJSON(into); !bytes.Equal(again, p.vals[j]) {
				t.Fatalf("record %q:\n%s\n%s", key[:1], p.vals[j], again)
			}
		}
	}
}

func drawRuns(t *rapid.T) []Run {
	var runs []Run
	for p := rapid.IntRange(0, 100).Draw(t, "start"); p < LeafPages && len(runs) < 40; {
		r := Run{Page: uint16(p), Len: uint16(rapid.IntRange(1, min(64, LeafPages-p)).Draw(t, "len"))}
		if rapid.Bool().Draw(t, "data") {
			r.Ptr = chunkstore.Ptr{
				Container: chunkstore.ContainerID(rapid.Uint64Range(1, 1<<40).Draw(t, "container")), Slot: rapid.Uint32().Draw(t, "slot"),
			}
			r.First = uint16(rapid.IntRange(0, 64-int(r.Len)).Draw(t, "first"))
		}
		runs = append(runs, r)
		p = r.end() + rapid.IntRange(0, 200).Draw(t, "gap")
	}
	return runs
}

func TestLeavesSurviveEncoding(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		l := &leaf{full: rapid.Bool().Draw(t, "full"), prev: 7, runs: drawRuns(t)}
		if !l.full {
			l.depth = 3
		}
		got, err := decodeLeaf(l.encode())
		if err != nil || !reflect.DeepEqual(append([]Run{}, got.runs...), append([]Run{}, l.runs...)) || got.depth != l.depth || got.prev != l.prev {
			t.Fatalf("%+v, %v", got, err)
		}
	})
}

// Flattening is the same as writing the versions into an array of pages, oldest first.
func TestFlattenAgreesWithAnArrayOfPages(t *testing.T) {
	type where struct {
		ptr  chunkstore.Ptr
		page uint16
	}
	rapid.Check(t, func(t *rapid.T) {
		var versions []*leaf
		var model [LeafPages]where
		for range rapid.IntRange(1, 6).Draw(t, "versions") {
			v := &leaf{runs: drawRuns(t)}
			versions = append([]*leaf{v}, versions...)
			for _, r := range v.runs {
				for i := range r.Len {
					model[r.Page+i] = where{r.Ptr, r.First + i}
				}
			}
		}
		var got [LeafPages]where
		last := 0
		for _, r := range flatten(versions) {
			if int(r.Page) < last || r.IsZero() {
				t.Fatalf("run %+v behind page %d", r, last)
			}
			last = r.end()
			for i := range r.Len {
				got[r.Page+i] = where{r.Ptr, r.First + i}
			}
		}
		for p := range model {
			if model[p].ptr.Container == 0 {
				model[p] = where{}
			}
			if got[p] != model[p] {
				t.Fatalf("page %d: %+v, want %+v", p, got[p], model[p])
			}
		}
	})
}

func FuzzLeaf(f *testing.F) {
	f.Add(exampleLeaf().encode())
	f.Add((&leaf{full: true}).encode())
	f.Fuzz(func(t *testing.T, b []byte) {
		l, err := decodeLeaf(b)
		if err != nil {
			if !errs.Is(err, errs.Corrupt) {
				t.Fatal(err)
			}
			return
		}
		page := 0
		for _, r := range l.runs {
			if int(r.Page) < page || r.Len == 0 || r.end() > LeafPages || (!r.IsZero() && int(r.First)+int(r.Len) > chunkstore.MaxChunkPages) {
				t.Fatalf("run %+v behind page %d", r, page)
			}
			page = r.end()
		}
		flatten([]*leaf{l})
	})
}

func FuzzDirectory(f *testing.F) {
	f.Add(encodeSeqs(make([]Seq, dirLeaves)))
	f.Fuzz(func(t *testing.T, b []byte) {
		var d dirPage
		if err := decodeSeqs(b, d[:]); err != nil && !errs.Is(err, errs.Corrupt) {
			t.Fatal(err)
		}
	})
}

func FuzzMapPart(f *testing.F) {
	var w partWriter
	w.add(5, 6, PartLeaves, 7, exampleLeaf().encode())
	f.Add(w.buf)
	f.Fuzz(func(t *testing.T, b []byte) {
		err := eachEntry(b, 5, 6, PartLeaves, func(uint32, []byte) error { return nil })
		if err != nil && !errs.Is(err, errs.Corrupt) {
			t.Fatal(err)
		}
	})
}

func FuzzJournal(f *testing.F) {
	for _, c := range exampleChanges() {
		f.Add(mustJSON(&c))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := decodeChange(b)
		if err != nil {
			return
		}
		cat := newCatalog()
		cat.apply(1, c)
	})
}

func TestChooseFindsThePointThatIsMeant(t *testing.T) {
	day := time.Date(2026, 11, 20, 0, 0, 0, 0, time.UTC)
	var points []Point
	for i, h := range []int{1, 5, 30, 30 + 24} {
		points = append(points, Point{ID: PointID(0xabc0<<48 + uint64(i)), Time: day.Add(time.Duration(h) * time.Hour)})
	}
	now := day.Add(60 * time.Hour)
	for spec, want := range map[string]int{
		"latest": 3, "-0": 3, "-1": 2, "-3": 0, "2026-11-20": 1, "2026-11-21": 2, "2026-11-20T05": 1, "2026-11-20T04:59": 0,
		"2026-11-20T05:00:00Z": 1, "2026-11-20 05:00": 1, "7h-ago": 2, "6h-ago": 3, "2d-ago": 1, "1w-ago": -1, "-4": -1, "2020-01-01": -1,
		"id:abc0000000000002": 2, "id:abc": -2, "id:ffff": -1, "id:": -2, "yesterday": -2, "h-ago": -2, "-x": -2, "5-ago": -2,
	} {
		p, err := choose(points, spec, now, time.UTC)
		switch {
		case want >= 0 && (err != nil || p.ID != points[want].ID):
			t.Errorf("%s: %v, want point %d", spec, err, want)
		case want == -1 && !errs.Is(err, errs.NotFound):
			t.Errorf("%s: %v, want not found", spec, err)
		case want == -2 && !errs.Is(err, errs.Invalid):
			t.Errorf("%s: %v, want invalid", spec, err)
		}
	}
}
