package xdr

import (
	"bytes"
	"testing"

	"livemount/internal/errs"
)

func TestBytesAreTheRFCs(t *testing.T) {
	var e Encoder
	e.Uint32(0x01020304)
	e.Uint64(0x05060708090a0b0c)
	e.Bool(true)
	e.Bool(false)
	e.Opaque([]byte("abcde"))
	e.Fixed([]byte("xyz"))
	e.String("four")
	e.Opaque(nil)
	want := "\x01\x02\x03\x04" + "\x05\x06\x07\x08\x09\x0a\x0b\x0c" + "\x00\x00\x00\x01" + "\x00\x00\x00\x00" +
		"\x00\x00\x00\x05abcde\x00\x00\x00" + "xyz\x00" + "\x00\x00\x00\x04four" + "\x00\x00\x00\x00"
	if string(e.B) != want {
		t.Fatalf("got %x, want %x", e.B, want)
	}
	d := NewDecoder(e.B)
	if a, b, c, f := d.Uint32(), d.Uint64(), d.Bool(), d.Bool(); a != 0x01020304 || b != 0x05060708090a0b0c || !c || f {
		t.Error(a, b, c, f)
	}
	if a, b, c, f := d.Opaque(5), d.Fixed(3), d.String(100), d.Opaque(0); string(a)+string(b)+c+string(f) != "abcdexyzfour" {
		t.Error(a, b, c, f)
	}
	if err := d.Done(); err != nil {
		t.Error(err)
	}
}

func TestMistakesStay(t *testing.T) {
	for _, x := range []struct {
		name string
		b    string
		read func(d *Decoder)
	}{
		{"short word", "\x00\x00\x00", func(d *Decoder) { d.Uint32() }},
		{"short double word", "\x00\x00\x00\x00\x00\x00\x00", func(d *Decoder) { d.Uint64() }},
		{"boolean", "\x00\x00\x00\x02more", func(d *Decoder) { d.Bool() }},
		{"over its limit", "\x00\x00\x00\x05abcdefgh", func(d *Decoder) { d.Opaque(4) }},
		{"over the end", "\x00\x00\x00\x09abcdefgh", func(d *Decoder) { d.Opaque(100) }},
		{"over all", "\xff\xff\xff\xffabcdefgh", func(d *Decoder) { d.Opaque(1 << 40) }},
		{"no padding", "\x00\x00\x00\x05abcdefg", func(d *Decoder) { d.Opaque(100) }},
		{"negative", "abcdefgh", func(d *Decoder) { d.Fixed(-1) }},
		{"fixed", "abcdefgh", func(d *Decoder) { d.Fixed(9) }},
		{"fixed, no padding", "abcdefg", func(d *Decoder) { d.Fixed(5) }},
		{"string", "\x00\x00\x00\x05abc", func(d *Decoder) { _ = d.String(9) }},
		{"trailer", "abcdefgh", func(d *Decoder) { d.Uint32(); _ = d.Done() }},
	} {
		d := NewDecoder([]byte(x.b))
		x.read(&d)
		if d.OK() || !errs.Is(d.Err(), errs.Invalid) {
			t.Errorf("%s: %v", x.name, d.Err())
		}
		why := d.Err().Error()
		if d.Uint32() != 0 || d.Uint64() != 0 || d.Bool() || d.Opaque(9) != nil || d.Fixed(0) != nil || d.String(9) != "" || d.Rest() != nil || d.Len() != 0 {
			t.Errorf("%s: something is read after the mistake", x.name)
		}
		if d.Done().Error() != why {
			t.Errorf("%s: %s became %v", x.name, why, d.Done())
		}
	}
}

func TestPaddingNeedNotBeZero(t *testing.T) {
	d := NewDecoder([]byte("\x00\x00\x00\x01axyz"))
	if got := d.Opaque(1); string(got) != "a" || d.Done() != nil {
		t.Error(got, d.Err())
	}
}

func TestWhatIsReturnedIsNoPlaceToAppend(t *testing.T) {
	b := []byte("\x00\x00\x00\x04abcdefgh")
	d := NewDecoder(b)
	_ = append(d.Opaque(9), "!!!!"...)
	if got := d.Rest(); string(got) != "efgh" {
		t.Errorf("%s", got)
	}
}

func TestReserveLeavesPaddingOfZeroes(t *testing.T) {
	for n := range 9 {
		e := Encoder{B: append(make([]byte, 0, 32), "head"...)}
		copy(e.B[4:32], bytes.Repeat([]byte{0xff}, 28))
		copy(e.Reserve(n), "12345678")
		if want := "head" + "12345678"[:n] + "\x00\x00\x00"[:padding(n)]; string(e.B) != want {
			t.Errorf("%d bytes: %q", n, e.B)
		}
	}
}

func TestLengthsCostNothing(t *testing.T) {
	b := []byte("\x7f\xff\xff\xffabcd")
	n := testing.AllocsPerRun(100, func() {
		d := NewDecoder(b)
		d.Opaque(1 << 31)
		_ = d.String(1 << 31)
		if d.OK() {
			t.Error("no mistake")
		}
	})
	if n != 0 {
		t.Errorf("%f allocations", n)
	}
}

// FuzzDecoder reads what the first bytes say, and compares with a plain reading of the rest.
func FuzzDecoder(f *testing.F) {
	f.Add([]byte{0, 1, 2, 3, 4, 5}, []byte("\x00\x00\x00\x01\x00\x00\x00\x05abcde\x00\x00\x00"))
	f.Add([]byte{3, 3}, []byte("\xff\xff\xff\xff"))
	f.Fuzz(func(t *testing.T, plan, b []byte) {
		d := NewDecoder(b)
		for _, p := range plan {
			before := d.Len()
			n := step(&d, p)
			if d.OK() && (before-d.Len() < n || (before-d.Len())%4 != 0) {
				t.Fatalf("step %d read %d bytes and took %d", p, n, before-d.Len())
			}
			if !d.OK() && (n != 0 || d.Len() != 0) {
				t.Fatalf("step %d read %d bytes after a mistake", p, n)
			}
		}
	})
}

// step reads one item and returns how long it was.
func step(d *Decoder, p byte) int {
	switch p % 6 {
	case 0:
		d.Uint32()
	case 1:
		d.Uint64()
	case 2:
		d.Bool()
	case 3:
		return len(d.Opaque(int(p)))
	case 4:
		return len(d.Fixed(int(p / 6)))
	case 5:
		return len(d.String(int(p)))
	}
	return 0
}

func FuzzRoundTrip(f *testing.F) {
	f.Add(uint32(1), uint64(2), true, []byte("abc"), "name")
	f.Fuzz(func(t *testing.T, a uint32, b uint64, c bool, o []byte, s string) {
		var e Encoder
		e.Uint32(a)
		e.Opaque(o)
		e.Uint64(b)
		e.String(s)
		e.Fixed(o)
		e.Bool(c)
		d := NewDecoder(e.B)
		if d.Uint32() != a || !bytes.Equal(d.Opaque(len(o)), o) || d.Uint64() != b || d.String(len(s)) != s ||
			!bytes.Equal(d.Fixed(len(o)), o) || d.Bool() != c || d.Done() != nil {
			t.Errorf("%x: %v", e.B, d.Err())
		}
	})
}
