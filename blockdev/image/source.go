package image

import (
	"context"
	"strings"

	"livemount/blockdev"
	"livemount/internal/clock"
	"livemount/internal/errs"
)

// The formats that Open knows, as they are written in a backing file's record and on the command line.
const (
	formatRaw   = "raw"
	formatQcow2 = "qcow2"
)

// Source is an image that can be backed up.
type Source interface {
	blockdev.Reader
	// Check is called after everything was read; an error says that it cannot be trusted to be one image.
	Check(ctx context.Context) error
	// Changed is a note for people when something is odd or points to writes while it was open, else "".
	Changed() string
	// Identity stands for the content, or is "" when nothing does. See Raw.Identity.
	Identity() string
}

// OpenOptions are the options of Open. The zero value goes by the name and follows no backing files.
type OpenOptions struct {
	// Format is "raw", "qcow2", or "": qcow2 when the name ends in .qcow2 or .qcow, else raw.
	Format string
	// BackingDir is the folder that backing files and data files must lie in, see Qcow2Options.
	BackingDir string
	// Clock is for Identity; nil is the machine's.
	Clock clock.Clock
}

// Open opens a disk image by its name or by the word of the caller. What is in the image never decides: a
// guest can write anything to the start of its raw disk, also a qcow2 header that names a file of the host.
func Open(path string, o OpenOptions) (Source, error) {
	format := o.Format
	if format == "" {
		format = formatOf(path)
	}
	switch format {
	case formatRaw:
		r, err := openRaw(path, clockOr(o.Clock))
		if err != nil {
			return nil, err
		}
		r.note = r.headerNote()
		return r, nil
	case formatQcow2:
		q, err := OpenQcow2(path, Qcow2Options{Dir: o.BackingDir, Clock: o.Clock})
		if err != nil {
			return nil, err
		}
		return q, nil
	default:
		return nil, errs.WithTry(errs.New(errs.Invalid, "open image %s: unknown format %q", path, format), "--format raw or --format qcow2")
	}
}

// formatOf is the rule for images whose format nobody named.
func formatOf(name string) string {
	name = strings.ToLower(name)
	if strings.HasSuffix(name, ".qcow2") || strings.HasSuffix(name, ".qcow") {
		return formatQcow2
	}
	return formatRaw
}

func clockOr(c clock.Clock) clock.Clock {
	if c == nil {
		return clock.System{}
	}
	return c
}

// headerNote warns of a qcow2 image that was taken as raw. What cannot be read is said by who reads it.
func (r *Raw) headerNote() string {
	if found, err := r.hasMagic(context.Background()); err != nil || !found {
		return ""
	}
	return r.path + " starts like a qcow2 image and was taken as raw; --format qcow2 reads it as one"
}

func joinNotes(list ...string) string {
	var said []string
	for _, s := range list {
		if s != "" {
			said = append(said, s)
		}
	}
	return strings.Join(said, "; ")
}
