package vmfiles_test

import (
	"regexp"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"livemount/fs/vmfiles"
)

func TestSafeName(t *testing.T) {
	for in, want := range map[string]string{
		"web01":                         "web01",
		"scsi0:0":                       "scsi0-0",
		"my disk (1)":                   "my-disk--1-",
		"../../etc/passwd":              "etc-passwd",
		".hidden":                       "hidden",
		"-rf":                           "rf",
		"":                              "unnamed",
		".":                             "unnamed",
		"..":                            "unnamed",
		"日本":                            "unnamed",
		"日本 vm":                         "vm",
		"a\x00b\xff\n":                  "a-b--",
		"name.":                         "name",
		"con":                           "_con",
		"NUL.vmdk":                      "_NUL.vmdk",
		"com7":                          "_com7",
		"com10":                         "com10",
		"console":                       "console",
		"con..":                         "_con",
		strings.Repeat("x", 200):        strings.Repeat("x", 80),
		strings.Repeat("x", 79) + "..y": strings.Repeat("x", 79),
	} {
		if got := vmfiles.SafeName(in); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}

func TestSafeNameIsSafe(t *testing.T) {
	safe := regexp.MustCompile(`^[A-Za-z0-9_]([A-Za-z0-9._-]{0,78}[A-Za-z0-9_-])?$`)
	part := rapid.SampledFrom([]string{".", "-", "con", "aux.", " ", "é", "\xff", "a", "/", "..", "COM1", strings.Repeat("z", 40)})
	rapid.Check(t, func(t *rapid.T) {
		in := strings.Join(rapid.SliceOfN(part, 0, 12).Draw(t, "parts"), "") + rapid.String().Draw(t, "end")
		got := vmfiles.SafeName(in)
		if !safe.MatchString(got) || vmfiles.SafeName(got) != got {
			t.Fatalf("%q: %q, then %q", in, got, vmfiles.SafeName(got))
		}
	})
}
