package server

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"

	"livemount/internal/clock"
	"livemount/internal/errs"
	"livemount/internal/space"
	"livemount/internal/vfs"
	"livemount/server/api"
	"livemount/snapshotchain"
)

// Checked is what Check found, as JSON.
type Checked struct {
	Points     uint64        `json:"points"`
	Containers int           `json:"containers"`
	ReadBytes  int64         `json:"read_bytes"`
	Pointers   int64         `json:"pointers"`
	Damage     []string      `json:"damage"`
	Touched    []api.Damaged `json:"touched"` // the first 1000 ranges that cannot be read
	Notes      []string      `json:"notes"`   // what is mended at the next start
}

// Print writes it for people.
func (c *Checked) Print(w io.Writer) {
	fmt.Fprintf(w, "%d points, %d containers, %d MiB read, %d pointers followed\n", c.Points, c.Containers, c.ReadBytes>>20, c.Pointers)
	for _, n := range c.Notes {
		fmt.Fprintf(w, "note: %s\n", n)
	}
	for _, d := range c.Damage {
		fmt.Fprintf(w, "DAMAGE: %s\n", d)
	}
	for _, t := range c.Touched {
		fmt.Fprintf(w, "  %s@id:%s disk %s: %d bytes at %d cannot be read\n", t.VM, t.Point, t.Disk, t.Length, t.Offset)
	}
	if len(c.Damage) == 0 {
		fmt.Fprintln(w, "good")
	}
}

// offline returns the options to open a store without serving it.
func (c *Config) offline(log *slog.Logger) (snapshotchain.Options, error) {
	if err := c.setDefaults(); err != nil {
		return snapshotchain.Options{}, err
	}
	if _, err := os.Stat(filepath.Join(c.Data, "containers")); err != nil {
		return snapshotchain.Options{}, errs.WithTry(errs.New(errs.NotFound, "there is no store in %s", c.Data), "--data DIR")
	}
	secret, err := c.secret()
	if err != nil {
		return snapshotchain.Options{}, err
	}
	guard, err := space.New(space.Options{FS: vfs.OS{}, Dir: c.Data, ReserveBytes: c.ReserveMiB << 20, Log: log})
	if err != nil {
		return snapshotchain.Options{}, err
	}
	return snapshotchain.Options{
		Dir: c.Data, FS: vfs.OS{}, Clock: clock.System{}, Log: log, ChunkCache: c.ChunkCacheMiB << 20,
		Admit: guard.Admit, AdmitFreeing: guard.AdmitFreeing, AdmitCommit: guard.Commit, AdmitFreeingCommit: guard.CommitFreeing, CatchUp: c.ClockCatchUp,
		Secret: secret,
	}, nil
}

// Check looks at a stopped store; see snapshotchain.Check.
func Check(ctx context.Context, c Config, quick bool, step func(string)) (*Checked, error) {
	o, err := c.offline(slog.New(slog.DiscardHandler))
	if err != nil {
		return nil, err
	}
	found, err := snapshotchain.Check(ctx, o, snapshotchain.CheckOptions{Quick: quick, Step: step})
	if err != nil {
		return nil, err
	}
	return &Checked{
		Points: found.Points, Containers: found.Containers, ReadBytes: found.ReadBytes, Pointers: found.Pointers,
		Damage: append([]string{}, found.Damage...), Touched: damaged(found.Touched), Notes: append([]string{}, found.Notes...),
	}, nil
}

// Rebuild makes the metadata of a stopped store again; see snapshotchain.Rebuild. It returns damage of the containers.
func Rebuild(ctx context.Context, c Config, log *slog.Logger) ([]string, error) {
	o, err := c.offline(log)
	if err != nil {
		return nil, err
	}
	all, err := snapshotchain.Rebuild(ctx, o)
	var damage []string
	for _, d := range all {
		if !strings.Contains(d, "was made again from the containers") { // that was asked for
			damage = append(damage, d)
		}
	}
	return damage, err
}
