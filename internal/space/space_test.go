package space

import (
	"testing"

	"livemount/internal/errs"
	"livemount/internal/vfs"
)

func setup(t *testing.T, total int64) (*vfs.Mem, *Guard) {
	t.Helper()
	m := vfs.NewMem()
	m.SetLimit(total)
	g, err := New(Options{FS: m, Dir: "/"})
	if err != nil {
		t.Fatal(err)
	}
	return m, g
}

func fill(t *testing.T, m *vfs.Mem, leave int64) {
	t.Helper()
	sp, err := m.Space("/")
	if err != nil {
		t.Fatal(err)
	}
	f, err := m.Create("/filler")
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Allocate(0, sp.FreeBytes-leave); err != nil {
		t.Fatal(err)
	}
}

func TestIngestStopsBeforeMountsBeforeMetadata(t *testing.T) {
	m, g := setup(t, 300<<20)
	if g.Admit(1<<20) != nil || g.AdmitMount(1<<20) != nil || g.Commit() != nil {
		t.Fatal("refused with room")
	}
	fill(t, m, 60<<20)
	if !errs.Is(g.Admit(1<<20), errs.NoSpace) || g.AdmitMount(1<<20) != nil || g.Commit() != nil {
		t.Fatal("60 MiB free: only an ingest must stop")
	}
}

func TestCommitGoesOnWithTheBallast(t *testing.T) {
	m, g := setup(t, 300<<20)
	fill(t, m, 12<<20)
	if !errs.Is(g.AdmitMount(1<<20), errs.NoSpace) {
		t.Fatal("a mount wrote into the last megabytes")
	}
	if err := g.Commit(); err != nil {
		t.Fatal(err)
	}
	if err := m.Remove("/filler"); err != nil {
		t.Fatal(err)
	}
	if err := g.Commit(); err != nil {
		t.Fatal(err)
	}
	if _, err := m.Stat("/ballast"); err != nil {
		t.Fatal("ballast was not restored", err)
	}
}

func TestAFullDiskIsRefusedAtStart(t *testing.T) {
	m := vfs.NewMem()
	m.SetLimit(20 << 20)
	if _, err := New(Options{FS: m, Dir: "/"}); !errs.Is(err, errs.NoSpace) {
		t.Fatal(err)
	}
}
