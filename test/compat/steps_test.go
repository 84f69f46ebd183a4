package compat_test

import (
	"strings"
	"time"

	"livemount/nfsd/xdr"
	"livemount/test/nfsclient"
)

// step is one call, or a few, made to both sides.
type step struct {
	name string
	do   func(s *side) answer
}

func (s *side) on(h string) func(*xdr.Encoder) { return func(e *xdr.Encoder) { e.Opaque(s.h[h]) } }

func (s *side) named(dir, name string) func(*xdr.Encoder) { return nfsclient.Dirop(s.h[dir], name) }

// all joins arguments.
func all(parts ...func(*xdr.Encoder)) func(*xdr.Encoder) {
	return func(e *xdr.Encoder) {
		for _, p := range parts {
			p(e)
		}
	}
}

func word(v uint32) func(*xdr.Encoder) { return func(e *xdr.Encoder) { e.Uint32(v) } }

func long(v uint64) func(*xdr.Encoder) { return func(e *xdr.Encoder) { e.Uint64(v) } }

func text(v string) func(*xdr.Encoder) { return func(e *xdr.Encoder) { e.String(v) } }

func set(v nfsclient.Set) func(*xdr.Encoder) { return v.Append }

func nothing() func(*xdr.Encoder) { return set(nfsclient.Nothing()) }

// Steps of the common shapes. One that gets a handle keeps it under a name.

func lookup(dir, name string) func(*side) answer {
	return func(s *side) answer {
		a, h := s.callFor(nfsclient.Lookup, s.named(dir, name))
		if h != nil {
			s.h[name] = h
		}
		return a
	}
}

func getattr(h string) func(*side) answer {
	return func(s *side) answer { return s.call(nfsclient.Getattr, s.on(h)) }
}

func create(dir, name string, how uint32, attrs func(*xdr.Encoder)) func(*side) answer {
	return func(s *side) answer {
		a, h := s.callFor(nfsclient.Create, all(s.named(dir, name), word(how), attrs))
		if h != nil {
			s.h[name] = h
		}
		return a
	}
}

func mkdir(dir, name string) func(*side) answer {
	return func(s *side) answer {
		a, h := s.callFor(nfsclient.Mkdir, all(s.named(dir, name), set(nfsclient.Set{Mode: 0o750, UID: -1, GID: -1, Size: -1})))
		if h != nil {
			s.h[name] = h
		}
		return a
	}
}

func symlink(dir, name, target string) func(*side) answer {
	return func(s *side) answer {
		a, h := s.callFor(nfsclient.Symlink, all(s.named(dir, name), nothing(), text(target)))
		if h != nil {
			s.h[name] = h
		}
		return a
	}
}

func write(h string, off uint64, data string, how uint32) func(*side) answer {
	return func(s *side) answer {
		return s.call(nfsclient.Write, all(s.on(h), long(off), word(uint32(len(data))), word(how), text(data)))
	}
}

func read(h string, off uint64, n uint32) func(*side) answer {
	return func(s *side) answer { return s.call(nfsclient.Read, all(s.on(h), long(off), word(n))) }
}

func setattr(h string, attrs nfsclient.Set) func(*side) answer {
	return func(s *side) answer { return s.call(nfsclient.Setattr, all(s.on(h), set(attrs), word(0))) }
}

func remove(proc uint32, dir, name string) func(*side) answer {
	return func(s *side) answer { return s.call(proc, s.named(dir, name)) }
}

func rename(dir, name, to, newName string) func(*side) answer {
	return func(s *side) answer { return s.call(nfsclient.Rename, all(s.named(dir, name), s.named(to, newName))) }
}

func link(h, dir, name string) func(*side) answer {
	return func(s *side) answer { return s.call(nfsclient.Link, all(s.on(h), s.named(dir, name))) }
}

func ask(proc uint32, h string, args ...func(*xdr.Encoder)) func(*side) answer {
	return func(s *side) answer { return s.call(proc, all(append([]func(*xdr.Encoder){s.on(h)}, args...)...)) }
}

// steps is the sequence. Each builds upon those before.
func steps() []step {
	return append(append(lookSteps(), fileSteps()...), nameSteps()...)
}

func lookSteps() []step {
	const all = 0x3f
	return []step{
		{"getattr root", getattr("root")},
		{"lookup folder", lookup("root", "web")},
		{"lookup file", lookup("web", "web.vmx")},
		{"lookup disk", lookup("web", "sda-flat.vmdk")},
		{"lookup nothing", lookup("web", "nothing")},
		{"lookup in a file", lookup("web.vmx", "x")},
		{"lookup dot", lookup("web", ".")},
		{"lookup dots", lookup("web", "..")},
		{"lookup no name", lookup("web", "")},
		{"lookup long name", lookup("web", strings.Repeat("n", 256))},
		{"lookup slash", lookup("root", "web/web.vmx")},
		{"getattr file", getattr("web.vmx")},
		{"getattr disk", getattr("sda-flat.vmdk")},
		{"access folder", ask(nfsclient.Access, "web", word(all))},
		{"access disk", ask(nfsclient.Access, "sda-flat.vmdk", word(all))},
		{"read disk", read("sda-flat.vmdk", 0, 20)},
		{"readdir", ask(nfsclient.Readdir, "web", long(0), long(0), word(4096))},
		{"readdirplus", ask(nfsclient.Readdirplus, "web", long(0), long(0), word(4096), word(8192))},
		{"readdir of a file", ask(nfsclient.Readdir, "web.vmx", long(0), long(0), word(4096))},
		{"readdir too small", ask(nfsclient.Readdir, "web", long(0), long(0), word(8))},
		{"fsstat", ask(nfsclient.Fsstat, "root")},
		{"fsinfo", ask(nfsclient.Fsinfo, "root")},
		{"pathconf", ask(nfsclient.Pathconf, "root")},
		{"bad handle", func(s *side) answer { s.h["bad"] = []byte{1, 2, 3}; return getattr("bad")(s) }},
		{"bad handle, fsstat", ask(nfsclient.Fsstat, "bad")},
		{"no such procedure", func(s *side) answer { return s.call(22, func(*xdr.Encoder) {}) }},
		{"null", func(s *side) answer {
			_, err := s.c.Call(s.t.Context(), nfsclient.NFS, 3, nfsclient.Null, s.c.Cred, nil)
			must(s.t, err)
			return answer{}
		}},
		{"version 2", func(s *side) answer {
			_, err := s.c.Call(s.t.Context(), nfsclient.NFS, 2, nfsclient.Null, s.c.Cred, nil)
			return answer{"refused": map[bool]string{true: "no", false: "yes"}[err == nil]}
		}},
	}
}

func fileSteps() []step {
	some := nfsclient.Set{Mode: 0o640, UID: 5, GID: 6, Size: 100}
	keep := nfsclient.Set{Mode: -1, UID: -1, GID: -1, Size: -1}
	sized := func(n int64) nfsclient.Set { s := keep; s.Size = n; return s }
	timed := keep
	timed.Mtime = time.Unix(77_000_000, 5)
	guarded := func(s *side) answer {
		return s.call(nfsclient.Setattr, all(s.on("a"), set(nfsclient.Set{Mode: 0o600, UID: -1, GID: -1, Size: -1}), word(1), word(1), word(2)))
	}
	return []step{
		{"create guarded", create("web", "a", 1, set(some))},
		{"getattr created", getattr("a")},
		{"create guarded again", create("web", "a", 1, set(some))},
		{"write unstable", write("a", 90, "0123456789abcdef", nfsclient.Unstable)},
		{"write data sync", write("a", 0, "begin", nfsclient.DataSync)},
		{"write file sync", write("a", 3, "xyz", nfsclient.FileSync)},
		{"write nothing", write("a", 3, "", nfsclient.FileSync)},
		{"commit", ask(nfsclient.Commit, "a", long(0), word(0))},
		{"read", read("a", 0, 10)},
		{"read across the end", read("a", 100, 10)},
		{"read at the end", read("a", 106, 10)},
		{"read behind the end", read("a", 1<<40, 10)},
		{"read nothing", read("a", 5, 0)},
		{"write in a hole", write("a", 5000, "end", nfsclient.FileSync)},
		{"read the hole", read("a", 4990, 20)},
		{"create unchecked over it", create("web", "a", 0, nothing())},
		{"size after that", getattr("a")},
		{"create unchecked, cut", create("web", "a", 0, set(sized(0)))},
		{"size after the cut", getattr("a")},
		{"create exclusive", create("web", "exclusive", 2, long(12345))},
		{"create exclusive again", create("web", "exclusive", 2, long(12345))},
		{"create exclusive, another", create("web", "exclusive", 2, long(54321))},
		{"create over a folder", create("root", "web", 0, nothing())},
		{"create in a file", create("a", "x", 0, nothing())},
		{"create no name", create("web", "", 0, nothing())},
		{"create dots", create("web", "..", 0, nothing())},
		{"create long name", create("web", strings.Repeat("n", 256), 0, nothing())},
		{"create longest name", create("web", strings.Repeat("m", 255), 0, nothing())},
		{"create with a slash", create("root", "web/slash", 0, nothing())},
		{"write a folder", write("web", 0, "x", nfsclient.FileSync)},
		{"read a folder", read("web", 0, 10)},
		{"write too far", write("a", 1<<46, "x", nfsclient.FileSync)},
		{"write beyond numbers", write("a", 1<<63, "x", nfsclient.FileSync)},
		{"setattr mode and owner", setattr("a", nfsclient.Set{Mode: 0o4711, UID: 7, GID: 8, Size: -1})},
		{"getattr after that", getattr("a")},
		{"setattr size", setattr("a", sized(60))},
		{"setattr time", setattr("a", timed)},
		{"getattr after these", getattr("a")},
		{"setattr time of a folder", setattr("web", timed)},
		{"setattr guarded", guarded},
		{"setattr size of a folder", setattr("web", sized(1))},
		{"setattr too large", setattr("a", sized(1<<46+1))},
	}
}

func nameSteps() []step {
	unlink, rmdir := uint32(nfsclient.Remove), uint32(nfsclient.Rmdir)
	return []step{
		{"mkdir", mkdir("web", "d")},
		{"mkdir again", mkdir("web", "d")},
		{"mkdir over a file", mkdir("web", "a")},
		{"mkdir dot", mkdir("web", ".")},
		{"mkdir in a file", mkdir("a", "x")},
		{"mkdir long name", mkdir("web", strings.Repeat("n", 256))},
		{"getattr folder", getattr("web")},
		{"create in the new folder", create("d", "inner", 1, nothing())},
		{"symlink", symlink("web", "l", "d/inner")},
		{"symlink again", symlink("web", "l", "other")},
		{"symlink to nothing", symlink("web", "dangling", "no/where")},
		{"lookup symlink", lookup("web", "l")},
		{"lookup dangling", lookup("web", "dangling")},
		{"readlink", ask(nfsclient.Readlink, "l")},
		{"readlink dangling", ask(nfsclient.Readlink, "dangling")},
		{"readlink of a file", ask(nfsclient.Readlink, "a")},
		{"readlink of a folder", ask(nfsclient.Readlink, "d")},
		{"read a symlink", read("l", 0, 10)},
		{"write a symlink", write("l", 0, "x", nfsclient.FileSync)},
		{"rmdir full", remove(rmdir, "web", "d")},
		{"create victim", create("web", "victim", 1, set(nfsclient.Set{Mode: 0o600, UID: -1, GID: -1, Size: -1}))},
		{"rmdir of a file", remove(rmdir, "web", "victim")},
		{"remove victim", remove(unlink, "web", "victim")},
		{"remove of a folder", remove(unlink, "web", "d")},
		{"remove nothing", remove(unlink, "web", "nothing")},
		{"rmdir nothing", remove(rmdir, "web", "nothing")},
		{"remove in a file", remove(unlink, "a", "x")},
		{"rename", rename("web", "a", "d", "b")},
		{"lookup old name", lookup("web", "a")},
		{"lookup new name", lookup("d", "b")},
		{"the handle of before", getattr("a")},
		{"rename over a file", rename("d", "b", "d", "inner")},
		{"rename nothing", rename("web", "nothing", "web", "x")},
		{"mkdir e", mkdir("web", "e")},
		{"rename over a full folder", rename("web", "e", "web", "d")},
		{"rename a folder over a file", rename("web", "e", "web", "web.vmx")},
		{"rename a file over a folder", rename("web", "web.vmx", "web", "e")},
		{"rename into itself", rename("web", "d", "d", "f")},
		{"rename to a long name", rename("web", "e", "web", strings.Repeat("n", 256))},
		{"rename folder", rename("web", "d", "web", "g")},
		{"lookup below it", lookup("web", "g")},
		{"link", link("web.vmx", "web", "hard")},
		{"link over a file", link("web.vmx", "web", "web.vmx")},
		{"link of a folder", link("web", "web", "x")},
		{"mknod", func(s *side) answer { return s.call(nfsclient.Mknod, all(s.named("web", "pipe"), word(7), nothing())) }},
		{"remove other name", remove(unlink, "web", "hard")},
		{"remove slash", remove(unlink, "web", "slash")},
		{"remove exclusive", remove(unlink, "web", "exclusive")},
		{"remove symlink", remove(unlink, "web", "l")},
		{"lookup removed symlink", lookup("web", "l")},
		{"remove file", remove(unlink, "g", "inner")},
		{"rmdir", remove(rmdir, "web", "g")},
		{"getattr of what is gone", getattr("g")},
		{"readdir at last", ask(nfsclient.Readdir, "web", long(0), long(0), word(8192))},
		{"readdirplus at last", ask(nfsclient.Readdirplus, "web", long(0), long(0), word(8192), word(32768))},
	}
}
