package snapshotchain

import (
	"os"
	"path/filepath"
	"testing"

	"livemount/internal/kv"
)

// TestABadRootRecordIsMadeAgain puts records into Badger that it stores well and that say nothing sound.
func TestABadRootRecordIsMadeAgain(t *testing.T) {
	for name, spoil := range map[string]func(kv.Tx) error{
		"no JSON":      func(tx kv.Tx) error { return tx.Put(keyRoot(), []byte("{")) },
		"gone":         func(tx kv.Tx) error { return tx.Delete(keyRoot()) },
		"another's":    func(tx kv.Tx) error { return tx.Put(keyRoot(), []byte(`{"applied":1}`)) },
		"a VM is gone": func(tx kv.Tx) error { return tx.Put(keyVM(7), []byte(`{}`)) },
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			s := openAt(t, dir)
			emptyPoint(t, s, "web")
			emptyPoint(t, s, "web")
			if err := s.Close(t.Context()); err != nil {
				t.Fatal(err)
			}
			db, err := kv.Open(kv.Options{Dir: filepath.Join(dir, "meta"), Sync: true})
			if err != nil {
				t.Fatal(err)
			}
			if err := db.Update(spoil); err != nil {
				t.Fatal(err)
			}
			if err := db.Close(); err != nil {
				t.Fatal(err)
			}
			s = openAt(t, dir)
			defer s.Close(t.Context())
			vm, err := s.VM("web")
			if err != nil || vm.Points != 2 {
				t.Fatalf("%d points: %v", vm.Points, err)
			}
			if _, err := os.Stat(filepath.Join(dir, "meta.bad-1")); err != nil {
				t.Errorf("the bad folder was not kept: %v", err)
			}
			if err := s.Expire(t.Context(), "web", vm.Latest); err != nil {
				t.Error(err)
			}
		})
	}
}
