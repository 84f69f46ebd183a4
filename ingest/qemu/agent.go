package qemu

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"time"

	"livemount/internal/errs"
)

// agentTimeout is how long the guest may take to answer; freezing flushes its file systems.
const agentTimeout = 20 * time.Second

// freeze freezes the guest's file systems when an agent answers, and returns what thaws them.
func (s *Session) freeze(ctx context.Context) (thaw func() error) {
	thaw = func() error { return nil }
	if s.o.Agent == "" {
		return thaw
	}
	a, err := s.openAgent(ctx)
	if err == nil {
		var n int
		n, err = a.number(ctx, "guest-fsfreeze-freeze")
		s.Frozen = err == nil && n > 0
		thaw = func() error { return a.thaw(context.WithoutCancel(ctx)) } // also when freezing failed in part
	}
	if err != nil {
		s.warn("the guest was not frozen: %v", err)
	}
	return thaw
}

// agent is a connection to the guest agent (https://www.qemu.org/docs/master/interop/qemu-ga-ref.html).
type agent struct {
	s   *Session
	raw net.Conn
	in  *bufio.Scanner
}

func (s *Session) openAgent(ctx context.Context) (*agent, error) {
	ctx, cancel := context.WithTimeout(ctx, agentTimeout)
	defer cancel()
	raw, err := (&net.Dialer{}).DialContext(ctx, "unix", s.o.Agent)
	if err != nil {
		return nil, errs.New(errs.Unreachable, "connect to the guest agent: %w", err)
	}
	a := newAgent(s, raw)
	// What another client asked before may still be answered: 0xFF lets the agent forget, and the number says which answer is ours.
	want := int(rand.Int32())
	if _, err := a.raw.Write([]byte{0xff}); err != nil {
		raw.Close()
		return nil, errs.New(errs.Unreachable, "guest agent: %w", err)
	}
	if err := a.sync(ctx, want); err != nil {
		raw.Close()
		return nil, err
	}
	return a, nil
}

func newAgent(s *Session, raw net.Conn) *agent {
	a := &agent{s: s, raw: raw, in: bufio.NewScanner(raw)}
	a.in.Buffer(make([]byte, 4096), 1<<20)
	return a
}

func (a *agent) sync(ctx context.Context, want int) error {
	if err := a.ask("guest-sync", args{"id": want}); err != nil {
		return err
	}
	for range 100 {
		got, err := a.answer(ctx)
		var n int
		if err == nil && json.Unmarshal(got, &n) == nil && n == want {
			return nil
		}
		if err != nil && errs.Is(err, errs.Unreachable) {
			return err
		}
	}
	return errs.New(errs.Invalid, "the guest agent answers something else")
}

func (a *agent) ask(command string, arguments any) error {
	b, err := json.Marshal(struct {
		Execute   string `json:"execute"`
		Arguments any    `json:"arguments,omitempty"`
	}{command, arguments})
	if err != nil {
		return err
	}
	if err := a.raw.SetDeadline(a.s.o.Clock.Now().Add(agentTimeout)); err != nil {
		return err
	}
	_, err = a.raw.Write(append(b, '\n'))
	return err
}

func (a *agent) answer(ctx context.Context) (json.RawMessage, error) {
	stop := context.AfterFunc(ctx, func() { a.raw.Close() })
	defer stop()
	if !a.in.Scan() {
		return nil, errs.New(errs.Unreachable, "the guest agent does not answer: %w", errors.Join(a.in.Err(), ctx.Err()))
	}
	line := a.in.Bytes()
	for len(line) > 0 && line[0] == 0xff {
		line = line[1:]
	}
	var msg message
	if err := json.Unmarshal(line, &msg); err != nil {
		return nil, errs.New(errs.Invalid, "the guest agent says no JSON: %w", err)
	}
	if msg.Error != nil {
		return nil, errs.New(errs.Invalid, "the guest agent answers: %s", msg.Error.Desc)
	}
	return msg.Return, nil
}

// number runs a command that returns one.
func (a *agent) number(ctx context.Context, command string) (n int, err error) {
	if err := a.ask(command, nil); err != nil {
		return 0, errs.New(errs.Unreachable, "guest agent: %w", err)
	}
	b, err := a.answer(ctx)
	if err == nil && json.Unmarshal(b, &n) != nil {
		err = errs.New(errs.Invalid, "%s returns %.40s", command, b)
	}
	return n, err
}

// thaw is tried until the agent says that nothing is frozen: on a new connection when the old one is of no use any more.
func (a *agent) thaw(ctx context.Context) error {
	defer func() { a.raw.Close() }()
	var err error
	for range 3 {
		if _, err = a.number(ctx, "guest-fsfreeze-thaw"); err == nil {
			return nil
		}
		again, aerr := a.s.openAgent(ctx)
		if aerr != nil {
			continue
		}
		a.raw.Close()
		a.raw, a.in = again.raw, again.in
	}
	return fmt.Errorf("thaw the guest: %w", err)
}
