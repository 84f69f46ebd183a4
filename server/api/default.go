package api

import (
	"os"
	"path/filepath"
)

// DefaultData is /var/lib/livemount for root, else below $XDG_DATA_HOME.
func DefaultData() string {
	if os.Geteuid() == 0 {
		return "/var/lib/livemount"
	}
	if dir := os.Getenv("XDG_DATA_HOME"); filepath.IsAbs(dir) {
		return filepath.Join(dir, "livemount")
	}
	return filepath.Join(os.Getenv("HOME"), ".local", "share", "livemount")
}

// DefaultAddress is where mountctl looks for livemountd: LIVEMOUNT_SERVER, else the socket in DefaultData.
func DefaultAddress() string {
	if a := os.Getenv("LIVEMOUNT_SERVER"); a != "" {
		return a
	}
	return "unix:" + filepath.Join(DefaultData(), "livemountd.sock")
}
