package server

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"

	"livemount/fs/fusefs"
	"livemount/internal/errs"
)

// prepareDir returns the folder to mount on, without symbolic links: one that is changed later leads a mount that
// comes back nowhere else. It makes the folder when only it is missing, and says whether it did.
func (s *Server) prepareDir(dir string) (path string, made bool, err error) {
	if !filepath.IsAbs(dir) {
		return "", false, errs.New(errs.Invalid, "mount folder %q is not an absolute path", dir)
	}
	if err := s.checkPlace(filepath.Clean(dir)); err != nil {
		return "", false, err
	}
	if _, err := fusefs.CleanDead(context.Background(), dir); err != nil {
		return "", false, err
	}
	if made, err = makeDir(dir); err != nil {
		return "", false, err
	}
	if path, err = fusefs.RealDir(dir); err == nil {
		err = s.checkPlace(path)
	}
	if err != nil && made {
		err = errors.Join(err, os.Remove(dir))
	}
	return path, made, err
}

// preparePlace is prepareDir, where no folder is needed when the mount is exported.
func (s *Server) preparePlace(dir string, exported bool) (path string, made bool, err error) {
	if dir == "" && exported {
		return "", false, nil
	}
	if dir == "" {
		return "", false, errs.WithTry(errs.New(errs.Invalid, "no folder to mount on"), "a folder, --nfs, or --nbd")
	}
	return s.prepareDir(dir)
}

// checkPlace refuses what lies in the store or on a mount of ours.
func (s *Server) checkPlace(dir string) error {
	if rel, err := filepath.Rel(s.config.Data, dir); err == nil && rel != ".." && !strings.HasPrefix(rel, "../") {
		return errs.WithTry(errs.New(errs.Invalid, "mount folder %s lies inside the store", dir), "a folder elsewhere")
	}
	if m := s.mountAbove(dir); m != nil {
		return errs.WithTry(errs.New(errs.Busy, "%s is in use by mount %s", dir, m.rec.ID), "another folder, or mountctl unmount %s", m.rec.ID)
	}
	return nil
}

// makeDir makes the folder when only it is missing, and says whether it did.
func makeDir(dir string) (bool, error) {
	err := os.Mkdir(dir, 0o755)
	if errs.Is(err, errs.Exists) {
		return false, nil // fusefs says whether it can be used
	}
	if errs.Is(err, errs.NotFound) {
		return false, errs.WithTry(errs.New(errs.NotFound, "mount folder %s: the folder above it does not exist", dir), "mkdir -p %s", filepath.Dir(dir))
	}
	return err == nil, err
}

// remakeDir makes the folder of a mount that comes back, when somebody removed it meanwhile. Whatever else is wrong
// with it the mount will tell.
func (s *Server) remakeDir(dir string) {
	if os.Mkdir(dir, 0o755) == nil {
		s.log.Warn("mount folder was missing and is made again", "path", dir)
	}
}
