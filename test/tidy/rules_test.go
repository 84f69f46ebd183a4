package tidy

import (
	"bytes"
	"go/ast"
	"regexp"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"
)

const maxLines = 800

func TestFilesAreShort(t *testing.T) {
	for _, name := range files(t) {
		if name == "go.sum" || strings.Contains(name, "testdata/") {
			continue
		}
		if n := bytes.Count(read(t, name), []byte("\n")); n > maxLines {
			t.Errorf("%s has %d lines, more than %d: split it by responsibility", name, n, maxLines)
		}
	}
}

// doorOf says where each call of the standard library that touches time or disk belongs.
func doorOf() map[string]string {
	d := map[string]string{}
	for _, f := range []string{"Now", "Since", "Until", "Sleep", "After", "AfterFunc", "NewTimer", "NewTicker", "Tick"} {
		d["time."+f] = "internal/clock"
	}
	for _, f := range []string{"Create", "CreateTemp", "OpenFile", "WriteFile", "MkdirTemp"} {
		d["os."+f] = "internal/vfs"
	}
	return d
}

// callsAllowed lists the files that may call past the doors.
func callsAllowed() map[string]string {
	return map[string]string{
		"snapshotchain/format.go os.OpenFile":     "the lock file is a matter of the kernel (flock), not of stored bytes",
		"mountctl/exportdevice.go os.OpenFile":    "a block device, taken for this program alone (O_EXCL)",
		"blockdev/overlay/clean.go time.NewTimer": "waits for room on a disk that was full",
		"fs/fusefs/check.go os.WriteFile":         "a setting of the kernel in /sys",
		"fs/fusefs/server.go time.After":          "waits for the kernel to let go of a mount",
		"snapshotchain/format.go time.After":      "waits for the kernel to give back the lock of a killed process",
		"server/http.go time.NewTimer":            "ends a request of a real client that waits for a job",
	}
}

func TestTimeAndDiskPassTheirDoors(t *testing.T) {
	doors, allowed, used := doorOf(), callsAllowed(), map[string]bool{}
	for _, s := range sources(t) {
		if s.test {
			continue
		}
		ast.Inspect(s.file, func(n ast.Node) bool {
			call, args := called(n)
			door, guarded := doors[call]
			if !guarded || s.dir == door || (call == "os.OpenFile" && readsOnly(args)) {
				return true
			}
			key := s.name + " " + call
			used[key] = true
			if allowed[key] == "" {
				t.Errorf("%s: %s outside %s", s.at(n), call, door)
			}
			return true
		})
	}
	for key := range allowed {
		if !used[key] {
			t.Errorf("%s is allowed and not used any more: remove it from the list", key)
		}
	}
}

// called returns package.Function of a mention of a function, so that one that is passed on is found as
// well; os.OpenFile is looked at where it is called, with its arguments.
func called(n ast.Node) (string, []ast.Expr) {
	const open = "os.OpenFile"
	switch n := n.(type) {
	case *ast.CallExpr:
		if selected(n.Fun) == open {
			return open, n.Args
		}
	case *ast.SelectorExpr:
		if name := selected(n); name != open {
			return name, nil
		}
	}
	return "", nil
}

func selected(e ast.Expr) string {
	sel, ok := e.(*ast.SelectorExpr)
	if !ok {
		return ""
	}
	if pkg, ok := sel.X.(*ast.Ident); ok {
		return pkg.Name + "." + sel.Sel.Name
	}
	return ""
}

// readsOnly tells whether the flags of os.OpenFile are spelt out and none of them writes.
func readsOnly(args []ast.Expr) bool {
	reads, writes := false, false
	if len(args) != 3 {
		return false
	}
	ast.Inspect(args[1], func(n ast.Node) bool {
		if id, ok := n.(*ast.Ident); ok {
			reads = reads || id.Name == "O_RDONLY"
			writes = writes || slices.Contains([]string{"O_WRONLY", "O_RDWR", "O_CREATE", "O_APPEND", "O_TRUNC"}, id.Name)
		}
		return true
	})
	return reads && !writes
}

func TestNothingRunsAtInit(t *testing.T) {
	for _, s := range sources(t) {
		for _, d := range s.file.Decls {
			if f, ok := d.(*ast.FuncDecl); ok && f.Recv == nil && f.Name.Name == "init" {
				t.Errorf("%s: func init", s.at(d))
			}
		}
	}
}

// varsAllowed lists the package-level variables; nothing may write to them.
func varsAllowed() map[string]string {
	return map[string]string{
		"blockdev/zero.go zeroes":          "64 KiB of zeroes to compare with; an array cannot be a constant",
		"internal/vfs/vfs.go ErrNoSyncDir": "a sentinel for errors.Is",
	}
}

func TestNoPackageState(t *testing.T) {
	allowed, used := varsAllowed(), map[string]bool{}
	for _, s := range sources(t) {
		if s.test {
			continue
		}
		for _, d := range s.file.Decls {
			for _, id := range variables(d) {
				key := s.name + " " + id.Name
				used[key] = true
				if allowed[key] == "" {
					t.Errorf("%s: package-level variable %s", s.at(id), id.Name)
				}
			}
		}
	}
	for key := range allowed {
		if !used[key] {
			t.Errorf("%s is allowed and is not there any more: remove it from the list", key)
		}
	}
}

// variables returns the names that a declaration of variables makes, but for _.
func variables(d ast.Decl) []*ast.Ident {
	g, ok := d.(*ast.GenDecl)
	if !ok || g.Tok.String() != "var" {
		return nil
	}
	var list []*ast.Ident
	for _, spec := range g.Specs {
		for _, id := range spec.(*ast.ValueSpec).Names {
			if id.Name != "_" {
				list = append(list, id)
			}
		}
	}
	return list
}

func TestPackagesSayWhatTheyAreFor(t *testing.T) {
	documented := map[string]bool{}
	for _, s := range sources(t) {
		documented[s.dir] = documented[s.dir] || s.file.Doc != nil
	}
	for dir, ok := range documented {
		if !ok {
			t.Errorf("%s has no package comment", dir)
		}
	}
}

// words must not be in any file: what belongs to one machine, or to the making of a change. They are put
// together here so that this file does not hold them.
func words() []*regexp.Regexp {
	return []*regexp.Regexp{
		regexp.MustCompile(`\.\./` + `shared\b`),
		regexp.MustCompile(`(^|[^\w.-])/` + `work/(main|shared)\b`),
		regexp.MustCompile(`/` + `root/go/`),
		regexp.MustCompile(`/` + `home/[a-z]`),
		regexp.MustCompile(`/` + `Users/[a-z]`),
	}
}

func TestNoWordsOfOneMachine(t *testing.T) {
	for _, name := range files(t) {
		b := read(t, name)
		if !utf8.Valid(b) {
			continue
		}
		for _, w := range words() {
			if at := w.FindIndex(b); at != nil {
				t.Errorf("%s:%d: %s", name, 1+bytes.Count(b[:at[0]], []byte("\n")), b[at[0]:at[1]])
			}
		}
	}
}
