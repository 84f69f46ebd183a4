package datastore

import (
	"bytes"
	iofs "io/fs"
	"testing"

	"livemount/fs"
	"livemount/internal/errs"
)

// FuzzRecord: any bytes are a record that is carried out, or an error; what was carried out has a snapshot that gives the
// same state.
func FuzzRecord(f *testing.F) {
	f.Add(encode([]effect{
		{kind: effectNode, node: 70000, attr: attributes{mode: iofs.ModeDir | 0o755}},
		{kind: effectEnter, node: fs.RootID, child: 70000, cookie: 1, name: "web"},
		{kind: effectNode, node: 70001, name: "target", attr: attributes{mode: iofs.ModeSymlink | 0o777, uid: 1, gid: 2, verifier: 3, modified: -4}},
		{kind: effectEnter, node: 70000, child: 70001, cookie: 2, name: "link"},
		{kind: effectTimes, node: 70001, attr: attributes{changed: 5}},
		{kind: effectReply, key: fs.CallKey{1}, reply: []byte("answer")},
		{kind: effectLaid}, {kind: effectCounter, node: 80000, cookie: 9},
		{kind: effectLeave, node: 70000, name: "link"},
	}))
	f.Add([]byte{1})
	f.Add([]byte{2, 1})
	f.Add([]byte{1, 1, 1, 2, 0, 0, 0, 0, 0, 0, 0, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		s := New(Options{})
		if err := s.Replay(b); err != nil {
			if !errs.Is(err, errs.Corrupt) && !errs.Is(err, errs.Newer) {
				t.Fatal(err)
			}
			return
		}
		snapshot, err := s.Snapshot()
		if err != nil {
			t.Fatal(err)
		}
		again := New(Options{})
		if err := again.Restore(snapshot); err != nil {
			t.Fatalf("the snapshot of what was carried out: %v", err)
		}
		second, err := again.Snapshot()
		if err != nil || len(second) != len(snapshot) || again.Len() != s.Len() {
			t.Fatalf("%d bytes and %d nodes, then %d and %d, %v", len(snapshot), s.Len(), len(second), again.Len(), err)
		}
	})
}

func TestFoldersInEachOtherAreCorruption(t *testing.T) {
	folder := attributes{mode: iofs.ModeDir}
	s := New(Options{})
	if err := s.Replay(encode([]effect{
		{kind: effectNode, node: 70000, attr: folder}, {kind: effectNode, node: 70001, attr: folder},
		{kind: effectEnter, node: 70000, child: 70001, cookie: 1, name: "a"},
		{kind: effectEnter, node: 70001, child: 70000, cookie: 2, name: "b"},
	})); err != nil {
		t.Fatal(err)
	}
	if err := s.Start(t.Context(), nil, nil); !errs.Is(err, errs.Corrupt) {
		t.Errorf("got %v, want Corrupt", err)
	}
}

func TestGoldenRecord(t *testing.T) {
	list := []effect{
		{kind: effectNode, node: 65537, attr: attributes{mode: 0o640, uid: 1, gid: 200, accessed: 3, modified: 4, changed: 5, verifier: 6}},
		{kind: effectEnter, node: 1, child: 65537, cookie: 2, name: "f"},
		{kind: effectReply, key: fs.CallKey{0xa0, 15: 0xaf}, reply: []byte("ok")},
	}
	want := []byte{
		1,                                                        // version
		1, 0x81, 0x80, 4, 1, 0xa0, 3, 1, 0xc8, 1, 6, 6, 8, 10, 0, // node 65537: file, 0640, uid 1, gid 200, verifier 6, times, no target
		2, 1, 0x81, 0x80, 4, 2, 1, 'f', // enter: folder 1, node 65537, cookie 2
		5, 0xa0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xaf, 2, 'o', 'k', // reply
	}
	if got := encode(list); !bytes.Equal(got, want) {
		t.Errorf("% x", got)
	}
	back, err := decode(want)
	if err != nil || len(back) != 3 || back[0].attr != list[0].attr || back[1].name != "f" || string(back[2].reply) != "ok" {
		t.Errorf("%+v, %v", back, err)
	}
}
