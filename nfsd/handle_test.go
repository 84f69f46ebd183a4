package nfsd

import (
	"encoding/hex"
	"testing"

	"livemount/fs"
	"livemount/internal/errs"
)

func TestGoldenHandle(t *testing.T) {
	var o Options
	for i := range o.Key {
		o.Key[i] = byte(i)
	}
	s, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	h := handle{export: 0x1122334455667788, node: 2}
	b := s.encodeHandle(h)
	const golden = "01001122334455667788000000000000000200000000" + "11c73db3ceac64eda3e29ac1f1f55f6f"
	if got := hex.EncodeToString(b[:]); got != golden {
		t.Errorf("%s, not %s", got, golden)
	}
	if back, ok := s.decodeHandle(b[:]); !ok || back != h {
		t.Errorf("%+v, %v", back, ok)
	}
}

func TestEveryErrorHasAStatus(t *testing.T) {
	for _, k := range errs.All() {
		if statusOfKind(k) == statusServerFault {
			t.Errorf("kind %v has no status", k)
		}
		if k != errs.NotFound && statusOfKind(k) == statusStale || ofNode(errs.New(k, "x")) == statusStale && k != errs.NotFound {
			t.Errorf("kind %v is stale", k)
		}
	}
	for _, r := range fs.Refusals() {
		if statusOfRefusal(r) == statusServerFault {
			t.Errorf("refusal %v has no status", r)
		}
	}
}
