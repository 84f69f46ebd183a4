// Package tidy holds the rules of the source that a compiler does not: who may import whom, how long a
// file may be, where time and disk are touched, and which words do not belong here. A rule that must give
// way is changed in this folder, with its reason.
package tidy

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const module = "livemount"

// source is a parsed Go file. Name and folder are relative to the root of the module, with slashes.
type source struct {
	name, dir string
	test      bool // a _test.go file, or below test/
	file      *ast.File
	fset      *token.FileSet
}

// files returns the names of all files that belong to the project.
func files(t *testing.T) []string {
	t.Helper()
	var list []string
	root := os.DirFS("../..")
	err := fs.WalkDir(root, ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && (name == ".git" || name == "bin" || name == "build") {
			return fs.SkipDir
		}
		if name == ".git" {
			return nil // a file, in a second work tree
		}
		if d.Type().IsRegular() {
			list = append(list, name)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return list
}

func read(t *testing.T, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("../..", name))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func sources(t *testing.T) []source {
	t.Helper()
	var list []source
	for _, name := range files(t) {
		if !strings.HasSuffix(name, ".go") {
			continue
		}
		fset := token.NewFileSet()
		f, err := parser.ParseFile(fset, name, read(t, name), parser.ParseComments)
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, source{
			name: name, dir: filepath.ToSlash(filepath.Dir(name)), file: f, fset: fset,
			test: strings.HasSuffix(name, "_test.go") || strings.HasPrefix(name, "test/"),
		})
	}
	if len(list) == 0 {
		t.Fatal("no Go files were found")
	}
	return list
}

func (s *source) at(n ast.Node) token.Position { return s.fset.Position(n.Pos()) }

// imports returns the paths that the file imports.
func (s *source) imports() []string {
	var list []string
	for _, i := range s.file.Imports {
		list = append(list, strings.Trim(i.Path.Value, `"`))
	}
	return list
}
