package vmfiles

import (
	"fmt"
	"strconv"
	"strings"

	"livemount/internal/errs"
)

// line is a line of a configuration: a key with its value, or a text that is kept (a comment, or nothing).
type line struct {
	key, value string
	text       string
}

func (l line) append(b []byte) []byte {
	if l.key == "" {
		return append(b, l.text...)
	}
	return fmt.Appendf(b, `%s = "%s"`, l.key, escape(l.value))
}

func parseLine(s string) (line, error) {
	s = trim(s)
	if s == "" || s[0] == '#' {
		return line{text: s}, nil
	}
	key, value, ok := strings.Cut(s, "=")
	key = trim(key)
	if !ok || !validKey(key) {
		return line{}, errs.New(errs.Invalid, "%.40q is not a key with a value", s)
	}
	value, err := parseValue(trim(value))
	return line{key: key, value: value}, err
}

// parseValue reads a value, in quotes or without, and a comment behind it.
func parseValue(s string) (string, error) {
	if !strings.HasPrefix(s, `"`) {
		s, _, _ = strings.Cut(s, "#")
		return unescape(trim(s)), nil
	}
	value, rest, ok := strings.Cut(s[1:], `"`)
	if rest = trim(rest); !ok || rest != "" && rest[0] != '#' {
		return "", errs.New(errs.Invalid, "%.40q is not one value in quotes", s)
	}
	return unescape(value), nil
}

// validKey tells whether a line can hold the key.
func validKey(s string) bool {
	for i := range len(s) {
		if c := s[i]; c <= ' ' || c == 0x7f || c == '=' || c == '#' || c == '"' {
			return false
		}
	}
	return s != ""
}

// trim removes the ASCII white space around s, so that what is left is cut in no encoding.
func trim(s string) string { return strings.Trim(s, " \t\r\v\f") }

// escape writes what would end a value, or a line, as | and two hexadecimal digits.
func escape(s string) string {
	if !strings.ContainsFunc(s, special) {
		return s
	}
	var b []byte
	for i := range len(s) {
		if special(rune(s[i])) {
			b = fmt.Appendf(b, "|%02X", s[i])
		} else {
			b = append(b, s[i])
		}
	}
	return string(b)
}

func special(r rune) bool { return r < ' ' || r == 0x7f || r == '"' || r == '#' || r == '|' }

// unescape is the reverse of escape. A | without two digits stands for itself.
func unescape(s string) string {
	var b []byte
	for {
		before, after, ok := strings.Cut(s, "|")
		b = append(b, before...)
		if !ok {
			return string(b)
		}
		s = after
		if n, err := strconv.ParseUint(after[:min(2, len(after))], 16, 8); err == nil && len(after) >= 2 {
			b = append(b, byte(n))
			s = after[2:]
		} else {
			b = append(b, '|')
		}
	}
}
