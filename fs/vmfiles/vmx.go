package vmfiles

import (
	"bytes"
	"strings"

	"livemount/internal/errs"
)

const (
	maxVMXBytes = 4 << 20
	maxVMXLines = 100_000
)

// VMX is the configuration of a VM: keys with values, in the order of the file. Keys are looked up without
// regard to the case of ASCII letters and written as they were read. Comments, among them the #! of the first
// line, stay at their places. Values are bytes in whatever encoding the file says (.encoding). The zero value
// is empty.
type VMX struct {
	lines []line
	at    map[string]int // folded key to its place in lines
}

// ParseVMX reads a configuration of at most 4 MiB and 100,000 lines. A line that is neither empty, a comment
// nor a key with a value is Invalid, as it is for VMware. Of a key that is there twice the last value counts,
// at the first place.
func ParseVMX(b []byte) (*VMX, error) {
	b = bytes.TrimPrefix(b, []byte("\ufeff"))
	if n := bytes.Count(b, []byte("\n")); len(b) > maxVMXBytes || n > maxVMXLines {
		return nil, errs.New(errs.Invalid, "vmx: %d bytes in %d lines, more than %d in %d", len(b), n, maxVMXBytes, maxVMXLines)
	}
	v := &VMX{}
	number := 0
	for s := range strings.SplitSeq(strings.TrimSuffix(string(b), "\n"), "\n") {
		number++
		l, err := parseLine(s)
		if err != nil {
			return nil, errs.New(errs.Invalid, "vmx: line %d: %w", number, err)
		}
		if l.key != "" {
			v.Set(l.key, l.value)
		} else {
			v.lines = append(v.lines, l)
		}
	}
	return v, nil
}

// Bytes returns the file.
func (v *VMX) Bytes() []byte {
	var b []byte
	for _, l := range v.lines {
		b = append(l.append(b), '\n')
	}
	return b
}

// Keys returns the keys as written, in order.
func (v *VMX) Keys() []string {
	var list []string
	for _, l := range v.lines {
		if l.key != "" {
			list = append(list, l.key)
		}
	}
	return list
}

// Get returns the value of a key.
func (v *VMX) Get(key string) (string, bool) {
	i, ok := v.at[fold(key)]
	if !ok {
		return "", false
	}
	return v.lines[i].value, true
}

// Set gives a key its value, at its place or at the end. A key that no line can hold (spaces, control
// characters, "=", "#", quotes) is a bug of the caller and panics.
func (v *VMX) Set(key, value string) {
	if !validKey(key) {
		panic("vmfiles: not a key: " + key)
	}
	if i, ok := v.at[fold(key)]; ok {
		v.lines[i].value = value
		return
	}
	if v.at == nil {
		v.at = map[string]int{}
	}
	v.at[fold(key)] = len(v.lines)
	v.lines = append(v.lines, line{key: key, value: value})
}

// Delete removes a key, if it is there.
func (v *VMX) Delete(key string) {
	if _, ok := v.at[fold(key)]; ok {
		v.deleteIf(func(l *line) bool { return fold(l.key) == fold(key) })
	}
}

// deleteIf removes the keys for which drop is true. It may change their values.
func (v *VMX) deleteIf(drop func(*line) bool) {
	kept := v.lines[:0]
	for _, l := range v.lines {
		if l.key == "" || !drop(&l) {
			kept = append(kept, l)
		}
	}
	clear(v.lines[len(kept):])
	v.lines = kept
	clear(v.at)
	for i, l := range kept {
		if l.key != "" {
			v.at[fold(l.key)] = i
		}
	}
}

// value is Get without telling "" from none.
func (v *VMX) value(key string) string {
	s, _ := v.Get(key)
	return s
}

// is tells whether a key has the value, without regard to case.
func (v *VMX) is(key, value string) bool { return fold(v.value(key)) == fold(value) }
