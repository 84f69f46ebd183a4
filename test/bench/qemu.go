package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"time"
)

// qemu is a running qemu-storage-daemon with its control connection (QMP).
type qemu struct {
	*background
	conn    net.Conn
	in      *bufio.Scanner
	deleted bool // an export has ended
}

func (b *bench) qemu(ctx context.Context) (*qemu, error) {
	socket := b.path("qmp.sock")
	r, err := command(ctx, "qemu-storage-daemon", "--chardev", "socket,id=c,server=on,wait=off,path="+socket, "--monitor", "c").start()
	if err != nil {
		return nil, err
	}
	q := &qemu{background: r}
	for range 200 {
		if q.conn, err = net.Dial("unix", socket); err == nil {
			break
		}
		time.Sleep(20 * time.Millisecond)
	}
	if err == nil {
		q.in = bufio.NewScanner(q.conn)
		if _, err = q.next(); err == nil { // the greeting
			err = q.do("qmp_capabilities", nil)
		}
	}
	if err != nil {
		r.stop()
		return nil, err
	}
	return q, nil
}

// do runs a command and waits for its answer.
func (q *qemu) do(name string, arguments map[string]any) error {
	req := map[string]any{"execute": name}
	if arguments != nil {
		req["arguments"] = arguments
	}
	if err := json.NewEncoder(q.conn).Encode(req); err != nil {
		return err
	}
	for {
		m, err := q.next()
		if err != nil {
			return err
		}
		if e, bad := m["error"]; bad {
			return fmt.Errorf("%s: %v", name, e)
		}
		if _, done := m["return"]; done {
			return nil
		}
	}
}

// next reads a message. An event may come before the answer of the command that caused it.
func (q *qemu) next() (map[string]any, error) {
	if err := q.conn.SetReadDeadline(time.Now().Add(30 * time.Second)); err != nil {
		return nil, err
	}
	if !q.in.Scan() {
		return nil, fmt.Errorf("qemu-storage-daemon does not answer: %v", q.in.Err())
	}
	var m map[string]any
	err := json.Unmarshal(q.in.Bytes(), &m)
	q.deleted = q.deleted || m["event"] == "BLOCK_EXPORT_DELETED"
	return m, err
}

func (q *qemu) export(image, point string) error {
	err := q.do("blockdev-add", map[string]any{
		"driver": "qcow2", "node-name": "n", "file": map[string]any{"driver": "file", "filename": image},
	})
	if err != nil {
		return err
	}
	return q.do("block-export-add", map[string]any{
		"type": "fuse", "id": "e", "node-name": "n", "mountpoint": point, "writable": true,
	})
}

func (q *qemu) withdraw() error {
	q.deleted = false
	if err := q.do("block-export-del", map[string]any{"id": "e"}); err != nil {
		return err
	}
	for !q.deleted {
		if _, err := q.next(); err != nil {
			return err
		}
	}
	return q.do("blockdev-del", map[string]any{"node-name": "n"})
}
