package fusefs

import (
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"

	"livemount/internal/errs"
)

// checkDir returns the real path of a folder that can be mounted on.
func checkDir(dir string, overFiles bool, log *slog.Logger) (string, error) {
	if dir == "" {
		return "", errs.New(errs.Invalid, "mount: no folder was named")
	}
	path, err := RealDir(dir)
	if err != nil {
		err = errs.New(errs.KindOf(err), "mount: %w", err)
		return "", errs.WithTry(err, "make the folder: mkdir -p %s", dir)
	}
	if info, err := FindMount(path); err == nil {
		err = errs.New(errs.Busy, "mount %s: %s (%s) is mounted there", path, info.Source, info.Type)
		return "", errs.WithTry(err, "name another folder, or unmount it: umount %s", path)
	} else if !errs.Is(err, errs.NotFound) {
		return "", err
	}
	return path, checkEmpty(path, overFiles, log)
}

func checkEmpty(path string, overFiles bool, log *slog.Logger) error {
	st, err := os.Stat(path)
	if err != nil {
		return err
	}
	if !st.IsDir() {
		return errs.WithTry(errs.New(errs.Invalid, "mount %s: not a folder", path), "name an empty folder")
	}
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	names, err := f.Readdirnames(1)
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	if len(names) > 0 && overFiles {
		log.Warn("mounted over files", "dir", path, "one", names[0])
		return nil
	}
	if len(names) > 0 {
		err := errs.New(errs.Invalid, "mount %s: the folder is not empty: %s", path, names[0])
		return errs.WithTry(err, "name an empty folder")
	}
	return nil
}

// setReadAhead lets the kernel read 2 MiB ahead: it would stay at 128 KiB (over memory: 1.5 against 2.1 GB/s).
// Only root may; without it the mount is slower and works.
func setReadAhead(device string, log *slog.Logger) {
	name := filepath.Join("/sys/class/bdi", device, "read_ahead_kb")
	err := os.WriteFile(name, []byte(strconv.Itoa(readAheadKiB)), 0)
	if err != nil && !errors.Is(err, unix.EACCES) {
		log.Warn("read-ahead was not raised", "file", name, "error", err)
	}
}
