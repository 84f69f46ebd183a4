package mountctl

import (
	"context"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"livemount/internal/errs"
	"livemount/server/api"
)

type exportFlags struct {
	disk, to, format string
	force            bool
}

func (a *app) exportCmd() *cobra.Command {
	var f exportFlags
	c := &cobra.Command{
		Use:   "export VM@TIME -o FILE",
		Short: "Write a disk of a point to a file, as raw or qcow2",
		Long: `export writes a disk of a point to FILE on this machine: as a raw image with holes
where the disk has no data, or as a qcow2 image. It is written to FILE.part, with
FILE.part.json beside it that says how far it is, and renamed at the end. When it is
interrupted, by whatever, the same command goes on where it was.

With -o - the image goes to standard output, holes as zeroes. With --force FILE is
replaced, or is a block device that is written in place from its start.`,
		Example: `  mountctl export web@latest -o web.qcow2
  mountctl export db@2026-11-20 --disk sdb -o /images/sdb.raw
  mountctl export web@latest -o - | ssh host 'cat > web.raw'
  mountctl export web:patched@latest -o /dev/vg0/web --force`,
		Args: args(1, 1),
	}
	// -o is the file here: --output has no short form, unlike that of the other commands.
	c.Flags().StringVar(&a.output, "output", "table", "table or json")
	c.Flags().StringVarP(&f.to, "to", "o", "", "FILE to write, a block device, or - for standard output")
	c.Flags().StringVar(&f.disk, "disk", "", "name of the disk (default: the only one)")
	c.Flags().StringVar(&f.format, "format", "", "raw or qcow2 (default: qcow2 when FILE ends with .qcow2, else raw)")
	c.Flags().BoolVar(&f.force, "force", false, "replace FILE, or write to a block device")
	c.RunE = func(c *cobra.Command, list []string) error { return a.export(c.Context(), list[0], &f) }
	return c
}

// exported is what export prints.
type exported struct {
	VM             string  `json:"vm"`
	Point          string  `json:"point"`
	Disk           string  `json:"disk"`
	Format         string  `json:"format"`
	Path           string  `json:"path"`
	SizeBytes      int64   `json:"size_bytes"`
	WrittenBytes   int64   `json:"written_bytes"`
	ElapsedSeconds float64 `json:"elapsed_seconds"`
	Resumed        bool    `json:"resumed"`
}

func (a *app) export(ctx context.Context, ref string, f *exportFlags) error {
	kind, err := a.exportTarget(f)
	if err != nil {
		return err
	}
	x, err := a.newExporter(ctx, ref, f)
	if err != nil {
		return err
	}
	defer x.meter.end()
	switch kind {
	case toPipe:
		err = x.toPipe(ctx, a.out)
	case toDevice:
		err = x.toDevice(ctx, f.to)
	default:
		err = x.toFile(ctx, f.to, f.force)
	}
	if err != nil {
		return err
	}
	x.meter.end()
	r := x.result()
	if kind == toPipe {
		exportedLine(a.err, r)
		return nil
	}
	return a.show(r, func(w io.Writer) { exportedLine(w, r) })
}

func exportedLine(w io.Writer, r *exported) {
	fmt.Fprintf(w, "%s: disk %s of %s, point %s, as %s: %s, %s written, in %s\n", r.Path, r.Disk, r.VM, short(r.Point), r.Format,
		size(r.SizeBytes), size(r.WrittenBytes), seconds(r.ElapsedSeconds))
}

// target is what an export is written to.
type target int

const (
	toFile target = iota
	toDevice
	toPipe
)

// exportTarget looks at what is to be written to, before anything is asked for, and chooses the format.
func (a *app) exportTarget(f *exportFlags) (target, error) {
	if f.format == "" {
		f.format = "raw"
		if strings.EqualFold(filepath.Ext(f.to), ".qcow2") {
			f.format = "qcow2"
		}
	}
	switch f.to {
	case "":
		return 0, errs.WithTry(errs.New(errs.Invalid, "no file to write was named"), "-o FILE, or -o - for standard output")
	case "-":
		return toPipe, a.checkPipe()
	}
	var err error
	if f.to, err = filepath.Abs(f.to); err != nil {
		return 0, err
	}
	info, err := os.Stat(f.to)
	if errs.Is(err, errs.NotFound) {
		_, err := os.Stat(filepath.Dir(f.to))
		return toFile, err
	}
	if err != nil {
		return 0, err
	}
	return targetOf(f, info.Mode())
}

func targetOf(f *exportFlags, mode fs.FileMode) (target, error) {
	switch {
	case mode.IsRegular():
		if !f.force {
			return 0, existing(f.to)
		}
		return toFile, nil
	case mode.IsDir():
		return 0, errs.WithTry(errs.New(errs.Invalid, "%s is a folder", f.to), "-o %s", filepath.Join(f.to, "disk."+f.format))
	case mode&(fs.ModeDevice|fs.ModeCharDevice) == fs.ModeDevice:
		if !f.force {
			return 0, errs.WithTry(errs.New(errs.Exists, "%s is a block device; what is on it would be lost", f.to), "--force")
		}
		return toDevice, nil
	default:
		return 0, errs.WithTry(errs.New(errs.Invalid, "%s is neither a file nor a block device", f.to), "-o - > %s", f.to)
	}
}

func existing(path string) error {
	return errs.WithTry(errs.New(errs.Exists, "%s is there already", path), "--force to replace it, or another name")
}

func (a *app) checkPipe() error {
	if a.output == "json" {
		return errs.WithTry(errs.New(errs.Invalid, "with -o - standard output is the image: --output json has no place there"), "-o FILE")
	}
	if isTerminal(a.out) {
		return errs.WithTry(errs.New(errs.Invalid, "standard output is a terminal; the bytes of a disk do not belong there"), "-o FILE, or -o - | PROGRAM")
	}
	return nil
}

// newExporter resolves the point once, so that latest stays the same, and asks for the first extents.
func (a *app) newExporter(ctx context.Context, ref string, f *exportFlags) (*exporter, error) {
	c, err := a.client()
	if err != nil {
		return nil, err
	}
	var v api.Points
	if err := c.Do(ctx, "GET", "/v1/points", url.Values{"ref": {ref}}, nil, &v); err != nil {
		return nil, err
	}
	if len(v.Points) != 1 {
		return nil, errs.New(errs.NotFound, "%s is no point", ref)
	}
	p := &v.Points[0]
	disk, err := diskOf(p, ref, f.disk)
	if err != nil {
		return nil, err
	}
	x := &exporter{
		c: c, q: api.ExportQuery{Ref: p.VM + "@id:" + p.Point, Disk: disk, Format: f.format}, meter: newMeter(a.err), notes: a.err,
		done: exported{VM: p.VM, Point: p.Point, Disk: disk, Format: f.format, Path: f.to},
	}
	if x.first, err = c.Extents(ctx, &x.q, 0); err != nil {
		return nil, err
	}
	x.etag, x.size = x.first.ETag, x.first.SizeBytes
	return x, nil
}

// diskOf finds the disk of a point; without a name it must be the only one.
func diskOf(p *api.Point, ref, name string) (string, error) {
	var names []string
	for _, d := range p.Disks {
		if d.Name == name || (name == "" && len(p.Disks) == 1) {
			return d.Name, nil
		}
		names = append(names, "--disk "+d.Name)
	}
	err := errs.New(errs.NotFound, "%s has no disk %q", ref, name)
	if name == "" {
		err = errs.New(errs.Invalid, "%s has %d disks", ref, len(p.Disks))
	}
	return "", errs.WithTry(err, "%s", strings.Join(names, ", or "))
}
