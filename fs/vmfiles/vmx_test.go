package vmfiles_test

import (
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"livemount/fs/vmfiles"
	"livemount/internal/errs"
)

func TestVMXValues(t *testing.T) {
	for in, want := range map[string]string{
		`a = "x"`:               "x",
		`  a="x"  # said`:       "x",
		"a = \"x\"\r":           "x",
		"\ufeffa = \"x\"":       "x",
		`a = "say |22hi|22"`:    `say "hi"`,
		`a = "one|0Atwo|0atwo"`: "one\ntwo\ntwo",
		`a = "b|7Cc"`:           "b|c",
		`a = "b|c"`:             "b|c",
		`a = "b|"`:              "b|",
		`a = "b|+1"`:            "b|+1",
		`a = "||22"`:            `|"`,
		`a = "b|2"`:             "b|2",
		`a = "a#b"`:             "a#b",
		`a = bare # said`:       "bare",
		`a =`:                   "",
		`a = ""`:                "",
		"a = \"\xe4\xff|e4\"":   "\xe4\xff\xe4",
		"A = \"1\"\na = \"2\"":  "2",
	} {
		v := parse(t, in)
		if got, ok := v.Get("A"); !ok || got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
		if again := parse(t, string(v.Bytes())); string(again.Bytes()) != string(v.Bytes()) || get(again, "a") != want {
			t.Errorf("%q: written as %q", in, v.Bytes())
		}
	}
}

func get(v *vmfiles.VMX, key string) string {
	s, _ := v.Get(key)
	return s
}

func TestVMXHostile(t *testing.T) {
	for name, s := range map[string]string{
		"NoEquals":     "hello",
		"NoKey":        `= "x"`,
		"SpaceInKey":   `a b = "x"`,
		"QuoteInKey":   `a" = "x"`,
		"ControlInKey": "a\x00b = \"x\"",
		"OpenQuotes":   `a = "x`,
		"TwoValues":    `a = "x" "y"`,
		"TooLong":      `a = "` + strings.Repeat("x", 4<<20) + `"`,
		"TooManyLines": strings.Repeat("\n", 100_001),
	} {
		if v, err := vmfiles.ParseVMX([]byte(s)); !errs.Is(err, errs.Invalid) {
			t.Errorf("%s: %v, %v", name, v, err)
		}
	}
}

func TestVMXOrderAndCaseStay(t *testing.T) {
	v := parse(t, "#!/usr/bin/vmware\n\n.Encoding = \"UTF-8\"\nscsi0:0.fileName = \"a\"\n# said\nmemSize = \"1\"\n")
	v.Set("SCSI0:0.FILENAME", "b")
	v.Set("new", "c")
	v.Delete("MEMSIZE")
	v.Delete("none")
	want := "#!/usr/bin/vmware\n\n.Encoding = \"UTF-8\"\nscsi0:0.fileName = \"b\"\n# said\nnew = \"c\"\n"
	if got := string(v.Bytes()); got != want {
		t.Errorf("%q, want %q", got, want)
	}
	v.Set("new", "d")
	if _, ok := v.Get("memSize"); ok || get(v, "NEW") != "d" || !slices.Equal(v.Keys(), []string{".Encoding", "scsi0:0.fileName", "new"}) {
		t.Errorf("keys %q", v.Keys())
	}
}

func TestVMXKeysOfOtherBytesStayApart(t *testing.T) {
	v := parse(t, "\xe4 = \"1\"\n\xe5 = \"2\"\n\u212a = \"3\"\nk = \"4\"\n")
	if len(v.Keys()) != 4 {
		t.Errorf("keys %q", v.Keys())
	}
}

func TestVMXSetOfNoKeyPanics(t *testing.T) {
	for _, key := range []string{"", "a b", "a=b", "a\nb", `a"`, "#a"} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("key %q was taken", key)
				}
			}()
			(&vmfiles.VMX{}).Set(key, "x")
		}()
	}
}

// TestVMXRoundTrip compares with a map and a list.
func TestVMXRoundTrip(t *testing.T) {
	key := rapid.StringMatching(`[A-Za-z0-9:._\x80-\xff-]{1,12}`)
	value := rapid.Map(rapid.SliceOf(rapid.Byte()), func(b []byte) string { return string(b) })
	rapid.Check(t, func(t *rapid.T) {
		v, model, order := &vmfiles.VMX{}, map[string]string{}, []string{}
		for range rapid.IntRange(0, 30).Draw(t, "steps") {
			k := key.Draw(t, "key")
			i := slices.IndexFunc(order, func(s string) bool { return asciiLower(s) == asciiLower(k) })
			if rapid.IntRange(0, 4).Draw(t, "delete") == 0 {
				v.Delete(k)
				delete(model, asciiLower(k))
				if i >= 0 {
					order = slices.Delete(order, i, i+1)
				}
				continue
			}
			s := value.Draw(t, "value")
			v.Set(k, s)
			model[asciiLower(k)] = s
			if i < 0 {
				order = append(order, k)
			}
		}
		again, err := vmfiles.ParseVMX(v.Bytes())
		if err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(again.Keys(), v.Keys()) || !slices.Equal(v.Keys(), order) {
			t.Fatalf("keys %q, read again %q, want %q", v.Keys(), again.Keys(), order)
		}
		for _, k := range order {
			if got := get(again, k); got != model[asciiLower(k)] {
				t.Fatalf("%q: %q, want %q", k, got, model[asciiLower(k)])
			}
		}
	})
}

func asciiLower(s string) string {
	return string(slices.Collect(func(yield func(byte) bool) {
		for i := range len(s) {
			c := s[i]
			if 'A' <= c && c <= 'Z' {
				c += 'a' - 'A'
			}
			if !yield(c) {
				return
			}
		}
	}))
}
