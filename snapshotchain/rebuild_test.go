package snapshotchain

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"livemount/internal/clock"
	"livemount/internal/errs"
	"livemount/internal/vfs"
	"livemount/snapshotchain/chunkstore"
)

// TestRebuiltMetadataIsWhatItWas makes Badger again from the journal and compares it key by key.
func TestRebuiltMetadataIsWhatItWas(t *testing.T) {
	for seed := range uint64(6) {
		rng := rand.New(rand.NewPCG(seed, 9))
		dir := t.TempDir()
		clk := &clock.Fixed{T: time.Unix(1_800_000_000, 0)}
		open := func() *Store {
			s, err := Open(t.Context(), Options{Dir: dir, FS: vfs.OS{}, Clock: clk, ContainerBytes: 1 << 18})
			if err != nil {
				t.Fatal(err)
			}
			return s
		}
		s := open()
		fill := func(d *Draft) {
			k := d.Disks()[0]
			for leaf := uint32(0); leaf < 6; leaf++ {
				if rng.IntN(3) == 0 {
					continue
				}
				raw := make([]byte, 16*chunkstore.PageSize)
				var hs []chunkstore.PageHash
				h := s.Hasher()
				for i := range raw {
					raw[i] = byte(rng.IntN(9))
				}
				for i := 0; i < 16; i++ {
					hs = append(hs, h.Page(raw[i*chunkstore.PageSize:][:chunkstore.PageSize]))
				}
				e, err := s.Encode(chunkstore.Level(rng.IntN(2)), chunkstore.Encoded{ID: h.Chunk(hs), Hashes: hs}, raw, nil)
				if err != nil {
					t.Fatal(err)
				}
				p, _, err := k.Put(t.Context(), e)
				if err != nil {
					t.Fatal(err)
				}
				if err := k.SetLeaf(t.Context(), leaf, []Run{{Page: uint16(rng.IntN(2000)), Len: 16, Ptr: p}}); err != nil {
					t.Fatal(err)
				}
			}
		}
		for i := range 40 {
			clk.T = clk.T.Add(time.Second)
			vms := s.VMs()
			var v VM
			var pts []Point
			if len(vms) > 0 {
				v = vms[rng.IntN(len(vms))]
				pts, _ = s.Points(t.Context(), &v)
			}
			var d *Draft
			var err error
			switch op := rng.IntN(14); {
			case op < 4 || len(vms) == 0:
				name := fmt.Sprintf("vm%d", rng.IntN(3))
				d, err = s.Begin(t.Context(), name, []DiskSpec{{Name: "sda", SizeBytes: 64 << 20, Full: rng.IntN(6) == 0}})
			case op < 6 && v.Of == 0 && len(pts) > 0:
				p := pts[rng.IntN(len(pts))]
				d, err = s.BeginBranch(t.Context(), Branch{VM: v.ID, Name: fmt.Sprintf("%s:b%d", v.Name, i), Parent: p.ID}, []DiskSpec{{Name: "sda", SizeBytes: 64 << 20, Base: p.Disk("sda")}})
			case op == 6 && len(pts) > 0:
				err = s.Expire(t.Context(), v.Name, pts[rng.IntN(len(pts))].ID)
			case op == 7 && v.Of == 0:
				err = s.Rename(t.Context(), v.Name, fmt.Sprintf("n%d", i))
			case op == 8 && rng.IntN(2) == 0:
				err = s.Remove(t.Context(), v.Name)
			case op == 9:
				_, err = s.Pack(t.Context())
			case op == 11:
				_, err = s.Collect(t.Context(), CollectOptions{})
			case op == 13:
				err = s.SetRules(t.Context(), v.ID, fmt.Sprintf("last=%d", i))
			case op == 12 && len(pts) > 0:
				p := &pts[rng.IntN(len(pts))]
				err = errors.Join(s.Hold(t.Context(), p, fmt.Sprint(i)), s.Hold(t.Context(), p, "another"), s.Lock(t.Context(), p, clk.T.Add(time.Minute)))
				if err == nil && rng.IntN(2) == 0 {
					err = s.Release(t.Context(), p, "")
				}
			case op == 10:
				s.Close(t.Context())
				s = open()
			}
			if errs.Is(err, errs.Busy) || errs.Is(err, errs.Exists) || errs.Is(err, errs.Denied) { // held, or locked
				err = nil
			}
			if err != nil {
				t.Fatal(seed, i, err)
			}
			if d == nil {
				continue
			}
			fill(d)
			if rng.IntN(5) == 0 {
				err = d.Abort(t.Context())
			} else {
				_, err = d.Seal(t.Context(), SealInfo{})
			}
			if err != nil {
				t.Fatal(seed, i, err)
			}
		}
		dump := func() map[string]string {
			if _, err := s.Collect(t.Context(), CollectOptions{}); err != nil {
				t.Fatal(seed, err)
			}
			m := map[string]string{}
			for _, prefix := range []string{"r", "v", "g", "k", "o", "p", "s", "d", "l", "b", "h", "t"} {
				s.db.Each([]byte(prefix), func(key, val []byte, err error) error {
					m[string(key)] = string(val)
					return err
				})
			}
			return m
		}
		s.Close(t.Context())
		s = open()
		old := dump()
		s.Close(t.Context())
		os.RemoveAll(filepath.Join(dir, "meta"))
		s = open()
		now := dump()
		for k, v := range old {
			if now[k] != v {
				t.Errorf("seed %d: %q: %.300q, was %.300q", seed, k, now[k], v)
			}
		}
		for k := range now {
			if _, ok := old[k]; !ok {
				t.Errorf("seed %d: %q is new: %.200q", seed, k, now[k])
			}
		}
		s.Close(t.Context())
		if t.Failed() {
			return
		}
	}
}
