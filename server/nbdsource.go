package server

import (
	"context"
	"errors"
	"path/filepath"
	"strings"

	"livemount/blockdev/nbd"
	"livemount/ingest"
	"livemount/internal/errs"
	"livemount/server/api"
	"livemount/snapshotchain"
)

// nbdDisk is an export of another program, as the source of a backup.
type nbdDisk struct {
	*nbd.Client
	name string
}

// Check implements ingest.Source: what a server answers is all there is to know.
func (nbdDisk) Check(context.Context) error { return nil }

// Changed implements ingest.Source.
func (d nbdDisk) Changed() string {
	if d.ReadOnly() {
		return ""
	}
	return "the NBD export of disk " + d.name + " can be written: the point is of one moment only if nobody did meanwhile"
}

func isNBD(source string) bool {
	scheme, _, ok := strings.Cut(source, "://")
	return ok && (strings.HasPrefix(scheme, "nbd"))
}

// openNBD opens an export, with what its dirty bitmap says when one is named.
func (s *Server) openNBD(d *api.DiskSource, full bool) (*ingest.Disk, error) {
	u, err := nbd.ParseURI(d.Source)
	switch {
	case err != nil:
		return nil, err
	case u.Network == "unix" && !filepath.IsAbs(u.Address):
		return nil, errs.New(errs.Invalid, "socket %q is not an absolute path", u.Address)
	case d.Format != "" && d.Format != "raw", d.BackingDir != "":
		return nil, errs.New(errs.Invalid, "an NBD export is a disk as it is: it has no format")
	}
	o := nbd.ClientOptions{Clock: s.clock}
	if d.Bitmap != "" {
		o.Contexts = []string{bitmapContext(d.Bitmap)}
	}
	ctx := context.Background() // each step has its time
	c, err := nbd.Open(ctx, u, o)
	if err != nil {
		return nil, err
	}
	disk := &ingest.Disk{Name: d.Name, From: d.Source, Source: nbdDisk{c, d.Name}, Full: full}
	if d.Bitmap == "" {
		return disk, nil
	}
	disk.Listed = true
	if disk.Changed, err = dirty(ctx, c, o.Contexts[0]); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return disk, nil
}

// bitmapContext is the meta context of a bitmap of QEMU; a whole name of another context stays as it is.
func bitmapContext(name string) string {
	if strings.Contains(name, ":") {
		return name
	}
	return "qemu:dirty-bitmap:" + name
}

// dirty lists what a bitmap says has changed.
func dirty(ctx context.Context, c *nbd.Client, name string) (list []snapshotchain.ByteRange, err error) {
	off := int64(0)
	for st, err := range c.Status(ctx, name, 0, c.Size()) {
		if err != nil {
			return nil, err
		}
		if st.Flags&1 != 0 {
			list = append(list, snapshotchain.ByteRange{Offset: off, Length: st.Len})
		}
		off += st.Len
	}
	return fewer(list), nil
}
