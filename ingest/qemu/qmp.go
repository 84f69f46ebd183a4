package qemu

import (
	"bufio"
	"context"
	"encoding/json"
	"net"
	"strconv"
	"sync"
	"time"

	"livemount/internal/clock"
	"livemount/internal/errs"
)

const (
	maxMessage     = 16 << 20 // bytes of one message
	commandTimeout = 30 * time.Second
)

// monitor is a connection to QMP. One command runs at a time.
type monitor struct {
	raw   net.Conn
	clock clock.Clock

	commands sync.Mutex // one command at a time
	next     int

	mu      sync.Mutex        // guards the fields below
	answer  chan message      // of the command that runs
	id      string            // of it
	jobs    map[string]string // the last status of jobs that are ours
	changed chan struct{}     // closed when a job changes its status
	err     error             // why nothing comes any more
	over    chan struct{}     // closed when nothing comes any more
}

// message is whatever QMP sends.
type message struct {
	Greeting *struct{}       `json:"QMP"`
	Return   json.RawMessage `json:"return"`
	Error    *qmpError       `json:"error"`
	ID       string          `json:"id"`
	Event    string          `json:"event"`
	Data     json.RawMessage `json:"data"`
}

type qmpError struct {
	Class string `json:"class"`
	Desc  string `json:"desc"`
}

// connect opens the socket and leaves the mode in which nothing but capabilities may be asked for.
func connect(ctx context.Context, socket string, clk clock.Clock) (*monitor, error) {
	ctx, cancel := context.WithTimeout(ctx, commandTimeout)
	defer cancel()
	raw, err := (&net.Dialer{}).DialContext(ctx, "unix", socket)
	if err != nil {
		return nil, errs.WithTry(errs.New(errs.Unreachable, "connect to QMP: %w", err), "qemu … -qmp unix:%s,server=on,wait=off", socket)
	}
	m := &monitor{raw: raw, clock: clk, jobs: map[string]string{}, changed: make(chan struct{}), over: make(chan struct{})}
	greeted := make(chan struct{})
	go m.receive(greeted)
	select {
	case <-greeted:
		err = m.run(ctx, "qmp_capabilities", nil, nil)
	case <-m.over:
		err = m.failure()
	case <-ctx.Done():
		err = errs.WithTry(errs.New(errs.Unreachable, "QMP at %s does not greet", socket), "end whoever else is connected: QMP serves one at a time")
	}
	if err != nil {
		m.close()
		return nil, err
	}
	return m, nil
}

func (m *monitor) close() {
	m.raw.Close()
	<-m.over
}

func (m *monitor) failure() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.err
}

// receive reads messages until the connection ends.
func (m *monitor) receive(greeted chan struct{}) {
	defer close(m.over)
	in := bufio.NewScanner(m.raw)
	in.Buffer(make([]byte, 64<<10), maxMessage)
	var err error
	for in.Scan() && err == nil {
		var msg message
		if err = json.Unmarshal(in.Bytes(), &msg); err != nil {
			err = errs.New(errs.Invalid, "QMP says no JSON: %w", err)
			break
		}
		if msg.Greeting != nil && greeted != nil {
			close(greeted)
			greeted = nil
		}
		m.take(msg)
	}
	if err == nil {
		err = in.Err()
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if err == nil {
		err = errs.New(errs.Unreachable, "QEMU ended, or closed its QMP socket")
	}
	m.err = errs.New(errs.KindOf(err), "QMP: %w", err)
	m.raw.Close()
}

func (m *monitor) take(msg message) {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case msg.Event == "JOB_STATUS_CHANGE":
		var job struct{ ID, Status string }
		if json.Unmarshal(msg.Data, &job) != nil || !ours(job.ID) || len(m.jobs) > maxDisks*4 && m.jobs[job.ID] == "" {
			return
		}
		m.jobs[job.ID] = job.Status
		close(m.changed)
		m.changed = make(chan struct{})
	case (msg.Return != nil || msg.Error != nil) && m.answer != nil && (msg.ID == m.id || msg.ID == ""):
		m.answer <- msg // has room for one
		m.answer = nil
	}
}

// run runs a command and decodes what it returns into out, unless that is nil.
func (m *monitor) run(ctx context.Context, name string, args, out any) error {
	m.commands.Lock()
	defer m.commands.Unlock()
	if err := ctx.Err(); err != nil {
		return err
	}
	m.next++
	id := strconv.Itoa(m.next)
	answer := make(chan message, 1)
	m.mu.Lock()
	m.answer, m.id = answer, id
	m.mu.Unlock()
	b, err := json.Marshal(struct {
		Execute   string `json:"execute"`
		Arguments any    `json:"arguments,omitempty"`
		ID        string `json:"id"`
	}{name, args, id})
	if err != nil {
		return err
	}
	// A command that was sent is waited for also when its caller gives up: what ends the session needs the connection.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), commandTimeout)
	defer cancel()
	if err := m.raw.SetWriteDeadline(m.clock.Now().Add(commandTimeout)); err != nil {
		return err
	}
	if _, err := m.raw.Write(append(b, '\n')); err != nil {
		return errs.New(errs.Unreachable, "QMP %s: %w", name, err)
	}
	select {
	case msg := <-answer:
		return msg.result(name, out)
	case <-m.over:
		return m.failure()
	case <-ctx.Done():
		m.raw.Close() // its answer would be taken for another's
		return errs.New(errs.KindOf(ctx.Err()), "QMP %s was not answered: %w", name, ctx.Err())
	}
}

func (msg message) result(name string, out any) error {
	if msg.Error != nil {
		kind := errs.Invalid
		switch msg.Error.Class {
		case "DeviceNotFound":
			kind = errs.NotFound
		case "CommandNotFound":
			return errs.New(errs.Invalid, "this QEMU does not know %s", name)
		}
		return errs.New(kind, "QMP %s: %s", name, msg.Error.Desc)
	}
	if out == nil {
		return nil
	}
	if err := json.Unmarshal(msg.Return, out); err != nil {
		return errs.New(errs.Invalid, "QMP %s returns something else: %w", name, err)
	}
	return nil
}

// waitJob waits until a job of ours has one of the statuses.
func (m *monitor) waitJob(ctx context.Context, id string, statuses ...string) error {
	ctx, cancel := context.WithTimeout(ctx, commandTimeout)
	defer cancel()
	for {
		m.mu.Lock()
		status, changed := m.jobs[id], m.changed
		m.mu.Unlock()
		for _, s := range statuses {
			if s == status {
				return nil
			}
		}
		select {
		case <-changed:
		case <-m.over:
			return m.failure()
		case <-ctx.Done():
			return errs.New(errs.KindOf(ctx.Err()), "job %s of QEMU is still %s: %w", id, status, ctx.Err())
		}
	}
}
