package mountctl

import (
	"bytes"
	"io"
	"strings"
	"testing"

	"livemount/internal/errs"
)

func TestExtentsAreReadAsTheyAre(t *testing.T) {
	list, err := ReadExtents(strings.NewReader(` [ {"offset": 4096, "length": 1}, {"length":5,"offset":0} ] `))
	if err != nil || len(list) != 2 || list[0].Offset != 4096 || list[1].Length != 5 {
		t.Fatal(list, err)
	}
	if list, err := ReadExtents(strings.NewReader("[]")); err != nil || list == nil || len(list) != 0 {
		t.Fatal(list, err)
	}
}

func TestBadListsAreRefused(t *testing.T) {
	for _, text := range []string{
		"", "{}", "[", "[1]", "[{}]", `[{"offset":1}]`, `[{"offset":1,"length":2,"extra":3}]`, `[{"offset":1.5,"length":2}]`,
		`[{"offset":"1","length":2}]`, `[{"offset":1,"length":2}] x`, `[{"offset":99999999999999999999,"length":2}]`, "[null]",
	} {
		if _, err := ReadExtents(strings.NewReader(text)); !errs.Is(err, errs.Invalid) {
			t.Errorf("%s: %v", text, err)
		}
	}
}

// endless is a list that never ends.
type endless struct{ begun bool }

func (e *endless) Read(p []byte) (int, error) {
	text := bytes.Repeat([]byte(`{"offset":1,"length":2},`), len(p)/24+1)
	if !e.begun {
		e.begun = true
		text[0] = '['
		copy(text[1:], `{"offset":1,"length":2},`)
	}
	return copy(p, text), nil
}

func TestAnEndlessListIsGivenUp(t *testing.T) {
	if _, err := ReadExtents(&endless{}); !errs.Is(err, errs.Invalid) {
		t.Fatal(err)
	}
	if _, err := ReadExtents(io.MultiReader(strings.NewReader("["), spaces{})); !errs.Is(err, errs.Invalid) || !strings.Contains(err.Error(), "96 MiB") {
		t.Fatal(err)
	}
}

type spaces struct{}

func (spaces) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = ' '
	}
	return len(p), nil
}

func FuzzExtents(f *testing.F) {
	f.Add([]byte(`[{"offset":0,"length":4096},{"offset":8192,"length":1}]`))
	f.Add([]byte(`[]`))
	f.Fuzz(func(t *testing.T, b []byte) {
		if _, err := ReadExtents(bytes.NewReader(b)); err != nil && !errs.Is(err, errs.Invalid) {
			t.Fatal(err)
		}
	})
}
