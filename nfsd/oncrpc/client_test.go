package oncrpc

import (
	"bytes"
	"context"
	"net"
	"sync"
	"testing"
	"time"

	"livemount/internal/errs"
)

func TestManyCallsAtOnceGetTheirOwnAnswers(t *testing.T) {
	noLeak(t)
	c := dial(t, "tcp", newRig(t, Options{}).tcp(t))
	var calls sync.WaitGroup
	for i := range 64 {
		calls.Go(func() {
			for k := range 100 {
				args := bytes.Repeat([]byte{byte(i), byte(k)}, 2+2*k*i)
				got, err := c.Call(t.Context(), testProgram, testLow, procEcho, Sys("m", 1, 2), args)
				if err != nil || !bytes.Equal(got, args) {
					t.Errorf("%d bytes: %d, %v", len(args), len(got), err)
				}
			}
		})
	}
	calls.Wait()
}

func TestACanceledCallLeavesTheOthers(t *testing.T) {
	noLeak(t)
	r := newRig(t, Options{})
	c := dial(t, "tcp", r.tcp(t))
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() {
		_, err := c.CallXID(ctx, 7, testProgram, testLow, procWait, Cred{}, nil)
		done <- err
	}()
	eventually(t, "underway", func() bool { return r.waiting.Load() == 1 })
	cancel()
	if err := <-done; !errs.Is(err, errs.Canceled) {
		t.Error(err)
	}
	close(r.gate) // its late answer is nobody's
	if _, err := c.Call(t.Context(), testProgram, testLow, procNull, Cred{}, nil); err != nil {
		t.Error(err)
	}
}

func TestOneXIDTwiceGetsTwoAnswers(t *testing.T) {
	c := dial(t, "tcp", newRig(t, Options{}).tcp(t))
	var calls sync.WaitGroup
	for range 10 {
		calls.Go(func() {
			got, err := c.CallXID(t.Context(), 7, testProgram, testLow, procEcho, Cred{}, words(1))
			if err != nil || !bytes.Equal(got, words(1)) {
				t.Errorf("%x, %v", got, err)
			}
		})
	}
	calls.Wait()
	if len(c.waiting) != 0 {
		t.Errorf("%d still wait", len(c.waiting))
	}
}

func TestForgettingOneOfAnXIDKeepsTheRest(t *testing.T) {
	c := &Client{waiting: map[uint32]*waiter{}}
	var w [4]*waiter
	for i := range w {
		w[i] = &waiter{}
		c.expect(1, w[i])
	}
	for _, i := range []int{2, 0, 0, 3, 1} { // one is forgotten already
		c.forget(1, w[i])
	}
	if len(c.waiting) != 0 {
		t.Error("some are left")
	}
}

func TestCallsFailWhenTheServerGoes(t *testing.T) {
	noLeak(t)
	r := newRig(t, Options{})
	c := dial(t, "tcp", r.tcp(t))
	done := make(chan error)
	go func() {
		_, err := c.Call(t.Context(), testProgram, testLow, procWait, Cred{}, nil)
		done <- err
	}()
	eventually(t, "underway", func() bool { return r.waiting.Load() == 1 })
	r.Close()
	if err := <-done; !errs.Is(err, errs.Unreachable) {
		t.Error(err)
	}
	if _, err := c.Call(t.Context(), testProgram, testLow, procNull, Cred{}, nil); !errs.Is(err, errs.Unreachable) {
		t.Error(err)
	}
}

func TestSendingHonoursTheContext(t *testing.T) {
	noLeak(t)
	here, there := net.Pipe() // nobody reads
	defer there.Close()
	c := NewClient(here)
	defer c.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if _, err := c.Call(ctx, testProgram, testLow, procNull, Cred{}, nil); !errs.Is(err, errs.Unreachable) {
		t.Error(err)
	}
}

func TestAnswersAreBounded(t *testing.T) {
	for _, claim := range [][]byte{words(markLast | (answerBytesMax + 1)), words(0), words(1<<31 - 1), record(words(1, 0)), record(nil)} {
		here, there := net.Pipe()
		c := NewClient(here)
		var server sync.WaitGroup
		server.Go(func() { there.Write(claim) })
		c.reader.Wait()
		if _, err := c.Call(t.Context(), 1, 1, 0, Cred{}, nil); !errs.Is(err, errs.Unreachable) && !errs.Is(err, errs.Invalid) {
			t.Errorf("%x: %v", claim, err)
		}
		c.Close()
		server.Wait()
	}
}
