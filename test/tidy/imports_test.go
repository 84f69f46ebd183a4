package tidy

import (
	"slices"
	"strings"
	"testing"
)

// table says which packages of the module each package may import. Tests may import more: they look at
// both sides of an interface.
func table() map[string][]string {
	return map[string][]string{
		"internal/errs":  {},
		"internal/clock": {},
		"internal/cache": {},
		"internal/vfs":   {"internal/errs"},
		"internal/space": {"internal/errs", "internal/vfs"},
		"internal/kv":    {"internal/errs"},
		"internal/gate":  {"internal/clock"},

		// Keys know nothing of what they encrypt.
		"keyring": {"internal/errs"},

		// The waist and what is made of it. Nothing here knows the chain.
		"blockdev":           {"internal/errs"},
		"blockdev/blocktest": {"blockdev", "internal/errs"},
		"blockdev/image":     {"blockdev", "internal/cache", "internal/clock", "internal/errs"},
		"blockdev/overlay":   {"blockdev", "internal/clock", "internal/errs", "internal/vfs", "keyring"},
		"blockdev/nbd":       {"blockdev", "internal/clock", "internal/errs"},
		"ingest/qemu":        {"blockdev", "blockdev/nbd", "internal/clock", "internal/errs", "internal/vfs"},

		"snapshotchain/chunkstore": {"internal/cache", "internal/clock", "internal/errs", "internal/kv", "internal/vfs", "keyring"},
		"snapshotchain": {
			"blockdev", "internal/cache", "internal/clock", "internal/errs", "internal/gate", "internal/kv", "internal/vfs", "keyring",
			"snapshotchain/chunkstore",
		},
		"retention": {"internal/errs"},
		"ingest":    {"blockdev", "internal/errs", "internal/gate", "snapshotchain", "snapshotchain/chunkstore"},

		// A served tree knows block devices, never the chain: server plugs the two together.
		"fs":           {"blockdev", "internal/cache", "internal/clock", "internal/errs", "internal/vfs"},
		"fs/fstest":    {"blockdev", "fs", "internal/errs"},
		"fs/datastore": {"blockdev", "fs", "internal/clock", "internal/errs", "internal/vfs"},
		"fs/datastore/dstest": {
			"blockdev", "blockdev/overlay", "fs/datastore", "internal/clock", "internal/errs", "internal/vfs",
		},
		"fs/fusefs": {"blockdev", "fs", "internal/errs"},

		"fs/vmfiles": {"internal/errs"},
		"fs/billyfs": {"blockdev", "fs", "internal/errs"},

		"nfsd/xdr":     {"internal/errs"},
		"nfsd/oncrpc":  {"internal/clock", "internal/errs", "nfsd/xdr"},
		"nfsd/portmap": {"internal/errs", "nfsd/oncrpc", "nfsd/xdr"},
		"nfsd":         {"fs", "internal/clock", "internal/errs", "nfsd/oncrpc", "nfsd/xdr"},

		"server/api": {"internal/errs"},
		"server": {
			"blockdev", "blockdev/image", "blockdev/nbd", "blockdev/overlay", "fs", "fs/datastore", "fs/fusefs", "fs/vmfiles", "ingest", "ingest/qemu",
			"internal/clock", "internal/errs", "internal/gate", "internal/space", "internal/vfs", "keyring", "nfsd", "nfsd/oncrpc", "nfsd/portmap", "retention", "server/api",
			"snapshotchain",
		},
		"server/daemon":  {"internal/errs", "server", "server/api"},
		"mountctl":       {"internal/clock", "internal/errs", "internal/vfs", "server/api"},
		"cmd/livemountd": {"server/daemon"},
		"cmd/mountctl":   {"mountctl"},
	}
}

// doors lists the modules that only some packages may import, so that they can be exchanged.
func doors() map[string][]string {
	return map[string][]string{
		"github.com/dgraph-io/badger":    {"internal/kv"},
		"github.com/dgraph-io/ristretto": {"internal/kv"},
		"github.com/hanwen/go-fuse":      {"fs/fusefs"},
		"github.com/go-git/go-billy":     {"fs/billyfs"},
		"github.com/willscott/go-nfs":    {},                                             // the peer of tests and benchmarks
		"github.com/klauspost/compress":  {"blockdev/image", "snapshotchain/chunkstore"}, // image: compressed clusters
		"github.com/spf13/cobra":         {"mountctl", "server/daemon"},
		"github.com/vmware/govmomi":      {"vsphere"},
		"github.com/tidwall/btree":       {"blockdev/overlay"},
		"github.com/zeebo/blake3":        {"snapshotchain", "snapshotchain/chunkstore"},
		"golang.org/x/crypto":            {"keyring"}, // Argon2id; the rest is in the standard library
		"gopkg.in/yaml.v3":               {"server"},
		"net/http":                       {"server", "server/api"},
		"os/exec":                        {"fs/fusefs"}, // fusermount3
		"testing":                        {"blockdev/blocktest"},
		"pgregory.net/rapid":             {"blockdev/blocktest"},
	}
}

func TestImportsFollowTheTable(t *testing.T) {
	allowed, closed := table(), doors()
	for _, s := range sources(t) {
		if s.test {
			continue
		}
		own, known := allowed[s.dir]
		if !known {
			t.Errorf("%s: package %s is not in the import table: add it to test/tidy", s.name, s.dir)
			continue
		}
		for _, path := range s.imports() {
			if inside, ok := strings.CutPrefix(path, module+"/"); ok && !slices.Contains(own, inside) {
				t.Errorf("%s: %s may not import %s", s.name, s.dir, inside)
			}
			for door, keepers := range closed {
				if within(path, door) && !slices.Contains(keepers, s.dir) {
					t.Errorf("%s: only %s may import %s", s.name, strings.Join(keepers, " and "), door)
				}
			}
		}
	}
}

// TestTableNamesNoLoop also finds an entry that names a package misspelt: nothing would be forbidden by it.
func TestTableNamesNoLoop(t *testing.T) {
	all := table()
	done := map[string]bool{}
	var visit func(name string, path []string)
	visit = func(name string, path []string) {
		if slices.Contains(path, name) {
			t.Fatalf("import loop: %s", strings.Join(append(path, name), " -> "))
		}
		if done[name] {
			return
		}
		list, ok := all[name]
		if !ok {
			t.Errorf("the table allows importing %s and has no entry for it", name)
		}
		for _, next := range list {
			visit(next, append(slices.Clone(path), name))
		}
		done[name] = true
	}
	for name := range all {
		visit(name, nil)
	}
}

func within(path, door string) bool { return path == door || strings.HasPrefix(path, door+"/") }
