package image

import (
	"context"
	"errors"

	"livemount/internal/errs"
)

// maxLevels bounds the images of a chain: the image itself and all behind it.
const maxLevels = 64

// openChain opens the image and what is behind it. It is a loop: a chain cannot grow the stack.
func (q *Qcow2) openChain(ctx context.Context, path string, o Qcow2Options) error {
	in := &confined{dir: o.Dir, clock: clockOr(o.Clock)}
	defer in.close()
	file, err := openRaw(path, in.clock)
	if err != nil {
		return err
	}
	name, format := path, formatQcow2 // name is what relative names of the image behind are relative to
	for {
		l, err := q.addLayer(ctx, file, format, name, in)
		if err != nil {
			return err
		}
		if l.format == formatRaw || l.head.backing == "" {
			return nil
		}
		if len(q.layers) == maxLevels {
			return unsupported(errs.Invalid, path, "more than %d images behind each other", maxLevels)
		}
		if format, err = backingFormat(l); err != nil {
			return err
		}
		if file, name, err = in.open(name, l.head.backing, "backing file"); err != nil {
			return err
		}
	}
}

// checkMagic refuses what is no qcow2 image, and says what to do about it.
func (q *Qcow2) checkMagic(ctx context.Context, f *Raw) error {
	found, err := f.hasMagic(ctx)
	if err != nil || found {
		return err
	}
	err = errs.New(errs.Invalid, "open image %s: it does not start like a qcow2 image", f.path)
	if len(q.layers) == 1 {
		return errs.WithTry(err, "--format raw, if it is a raw disk")
	}
	over := q.layers[len(q.layers)-2].file.path
	return errs.WithTry(err, "if it is a raw disk: qemu-img rebase -u -F raw -b NAME %s", over)
}

// addLayer takes the file over: Close closes it, also after an error.
func (q *Qcow2) addLayer(ctx context.Context, file *Raw, format, name string, in *confined) (*layer, error) {
	l := &layer{index: len(q.layers), format: format, file: file, data: file, size: file.size, meta: q.meta}
	if q.opened(file) {
		err := unsupported(errs.Invalid, file.path, "it is behind itself: the chain of backing files is a loop")
		return nil, errors.Join(errs.WithTry(err, "qemu-img info %s", file.path), file.Close())
	}
	q.layers = append(q.layers, l)
	if format == formatRaw {
		return l, nil
	}
	if err := q.checkMagic(ctx, file); err != nil {
		return nil, err
	}
	var err error
	if l.head, err = readHeader(ctx, file); err != nil {
		return nil, err
	}
	l.size = l.head.size
	if l.head.has(featureDataFile) {
		err = q.openData(l, name, in)
	}
	return l, err
}

func (q *Qcow2) openData(l *layer, name string, in *confined) error {
	if l.head.dataFile == "" {
		return unsupported(errs.Invalid, l.file.path, "its clusters are in an external data file that it does not name")
	}
	data, _, err := in.open(name, l.head.dataFile, "external data file")
	if err != nil {
		return err
	}
	if q.opened(data) {
		err := unsupported(errs.Invalid, l.file.path, "its external data file %s is an image of the chain", data.path)
		return errors.Join(err, data.Close())
	}
	l.data = data
	return nil
}

// opened says whether the file is part of the chain already, by whatever name.
func (q *Qcow2) opened(f *Raw) bool {
	found := false
	q.files(func(r *Raw) { found = found || sameFile(r, f) })
	return found
}

// backingFormat is the recorded format of the image behind l, or goes by its name. Its content never counts.
func backingFormat(l *layer) (string, error) {
	switch f := l.head.backingFormat; f {
	case "":
		return formatOf(l.head.backing), nil
	case formatRaw, formatQcow2:
		return f, nil
	default:
		return "", unsupported(errs.Invalid, l.file.path, "its backing file %q has the format %q; only raw and qcow2 are read",
			l.head.backing, f)
	}
}
