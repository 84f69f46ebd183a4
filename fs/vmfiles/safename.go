package vmfiles

import (
	"slices"
	"strings"
)

const (
	maxNameBytes = 80
	unnamed      = "unnamed"
)

// SafeName turns s into a name of a file or folder that ESXi, Linux, Windows and URLs take without escaping:
// ASCII letters, digits, "-", "_" and "."; every other character becomes "-". It is 1 to 80 bytes long, begins
// with neither "." nor "-" and does not end with "."; what Windows reserves for devices (con, nul, com1, also
// with a suffix) gets a "_" in front. A safe name stays as it is.
//
// Different names can become the same one: whoever makes files of several must look for that.
func SafeName(s string) string {
	s = cutName(strings.TrimLeft(strings.Map(safeRune, s), ".-"))
	if s == "" {
		return unnamed
	}
	if reserved(s) {
		return cutName("_" + s)
	}
	return s
}

func safeRune(r rune) rune {
	switch {
	case 'a' <= r && r <= 'z', 'A' <= r && r <= 'Z', '0' <= r && r <= '9', r == '-', r == '_', r == '.':
		return r
	}
	return '-'
}

// cutName bounds a name of ASCII. Windows drops dots at the end.
func cutName(s string) string { return strings.TrimRight(s[:min(len(s), maxNameBytes)], ".") }

// reserved tells whether Windows takes the name for a device.
func reserved(s string) bool {
	s, _, _ = strings.Cut(fold(s), ".")
	if len(s) == 4 && (strings.HasPrefix(s, "com") || strings.HasPrefix(s, "lpt")) {
		return '0' <= s[3] && s[3] <= '9'
	}
	return slices.Contains([]string{"con", "prn", "aux", "nul"}, s)
}

// fold is the lower-case form of ASCII letters. Other bytes stay, valid UTF-8 or not.
func fold(s string) string {
	for i := range len(s) {
		if 'A' <= s[i] && s[i] <= 'Z' {
			return foldBytes([]byte(s))
		}
	}
	return s
}

func foldBytes(b []byte) string {
	for i, c := range b {
		if 'A' <= c && c <= 'Z' {
			b[i] = c + 'a' - 'A'
		}
	}
	return string(b)
}
