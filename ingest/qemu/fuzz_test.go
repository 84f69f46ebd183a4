package qemu

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net"

	"testing"
	"time"

	"livemount/internal/clock"
)

// said is a monitor that says what it says.
type said struct {
	io.Reader
}

func (*said) Write(p []byte) (int, error)      { return len(p), nil }
func (*said) Close() error                     { return nil }
func (*said) LocalAddr() net.Addr              { return &net.UnixAddr{} }
func (*said) RemoteAddr() net.Addr             { return &net.UnixAddr{} }
func (*said) SetDeadline(time.Time) error      { return nil }
func (*said) SetReadDeadline(time.Time) error  { return nil }
func (*said) SetWriteDeadline(time.Time) error { return nil }

// FuzzMonitor lets a QEMU say anything.
func FuzzMonitor(f *testing.F) {
	f.Add([]byte(`{"QMP": {"version": {}, "capabilities": ["oob"]}}` + "\n" + `{"return": [], "id": "1"}` + "\n"))
	f.Add([]byte(`{"return": [{"device": "a", "qdev": "/machine/peripheral/x/virtio-backend", "inserted": {"node-name": "#b1", "drv": "qcow2", "image": {"virtual-size": 1}, "dirty-bitmaps": [{"name": "livemount-1", "recording": true}]}}], "id": "1"}` + "\n"))
	f.Add([]byte(`{"timestamp": {}, "event": "JOB_STATUS_CHANGE", "data": {"id": "livemount-job0", "status": "null"}}` + "\n" + `{"error": {"class": "GenericError", "desc": "no"}, "id": "1"}`))
	f.Fuzz(func(_ *testing.T, b []byte) {
		m := &monitor{raw: &said{Reader: bytes.NewReader(b)}, clock: clock.System{}, jobs: map[string]string{}, changed: make(chan struct{}), over: make(chan struct{})}
		s := &Session{m: m, o: Options{Clock: clock.System{}}}
		m.answer, m.id = make(chan message, 1), "1"
		answer := m.answer
		m.receive(make(chan struct{}))
		select {
		case msg := <-answer:
			var all []block
			if msg.result("query-block", &all) != nil {
				return
			}
			for i := range all {
				if all[i].Inserted != nil {
					_, _ = s.wanted(&all[i])
				}
			}
		default:
		}
		_, _ = s.drives(context.Background())
		_ = m.waitJob(context.Background(), "livemount-job0", "null")
	})
}

// FuzzAgent lets a guest agent say anything.
func FuzzAgent(f *testing.F) {
	f.Add([]byte("\xff{\"return\": 5}\n{\"return\": 0}\n"))
	f.Add([]byte(`{"error": {"class": "CommandNotFound", "desc": "no"}}` + "\n"))
	f.Fuzz(func(_ *testing.T, b []byte) {
		raw := &said{Reader: bytes.NewReader(b)}
		a := newAgent(&Session{o: Options{Clock: clock.System{}}}, raw)
		_ = a.sync(context.Background(), 5)
		_, _ = a.number(context.Background(), "guest-fsfreeze-freeze")
	})
}

func TestMessagesOfQEMUAreUnderstood(t *testing.T) {
	var msg message
	if err := json.Unmarshal([]byte(`{"return": {}, "id": "7"}`), &msg); err != nil || msg.ID != "7" || msg.Return == nil {
		t.Fatalf("%+v: %v", msg, err)
	}
	if err := json.Unmarshal([]byte(`{"error": {"class": "DeviceNotFound", "desc": "no node"}, "id": "8"}`), &msg); err != nil || msg.Error == nil {
		t.Fatalf("%+v: %v", msg, err)
	}
}
