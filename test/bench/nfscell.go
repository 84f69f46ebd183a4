package main

import (
	"context"
	"errors"
	"math/rand/v2"
	"net"
	"os"
	"sync"
	"time"

	"livemount/nfsd/oncrpc"
	"livemount/test/nfsclient"
)

// region is a part of the file, in bytes.
type region struct{ from, size int64 }

// nfsCell is one kind of load.
type nfsCell struct {
	name   string
	bytes  int // of a call; 0 is GETATTR
	write  bool
	how    uint32 // of a WRITE, stable_how
	random bool
	once   bool // the region, instead of nfsTime over and over
	depth  int  // calls under way on each connection
	region region
}

const (
	nfsTime  = 400 * time.Millisecond // of a measurement
	nfsWrite = 256 << 20              // bytes that one writes at most
	nfsWait  = time.Minute            // the longest that it may take
)

// call encodes the call of the cell.
func (c *nfsCell) call(handle []byte) *nfsCall {
	switch {
	case c.bytes == 0:
		return getattrCall(handle)
	case c.write:
		data := make([]byte, c.bytes)
		rand.NewChaCha8([32]byte{3}).Read(data) // never fails
		return writeCall(handle, data, c.how)
	}
	return readCall(handle, c.bytes)
}

// part is what one of several connections works on.
func (c *nfsCell) part(i, connections int) region {
	if c.random {
		return c.region
	}
	size := c.region.size / int64(connections)
	return region{c.region.from + int64(i)*size, size}
}

// offsets returns the offsets of the calls on a part, in order and from its beginning again, or at random.
func (c *nfsCell) offsets(r region, seed uint64) func() int64 {
	step := int64(max(c.bytes, 1))
	n, i := r.size/step, int64(-1)
	rng := rand.New(rand.NewPCG(seed, 1))
	return func() int64 {
		if c.random {
			return r.from + rng.Int64N(n)*step
		}
		i++
		return r.from + i%n*step
	}
}

// over says when a connection has sent enough.
func (c *nfsCell) over(ctx context.Context, r region, connections int) func(sent int) bool {
	end := time.Now().Add(nfsTime)
	return func(sent int) bool {
		bytes := int64(sent) * int64(c.bytes)
		switch {
		case ctx.Err() != nil:
			return true
		case c.once:
			return bytes >= r.size
		case c.write && bytes >= nfsWrite/int64(connections):
			return true
		}
		return time.Now().After(end)
	}
}

// nfsRate is what one measurement, or several added up, came to.
type nfsRate struct {
	PerSecond   float64 `json:"per_second"` // the best of the rounds
	MBPerSecond float64 `json:"mb_per_second,omitempty"`
	CPUPerGB    float64 `json:"cpu_seconds_per_gb,omitempty"` // of the server, over all rounds
	CPUPer1000  float64 `json:"cpu_ms_per_1000"`

	OthersCores float64 `json:"cores_of_others"` // that programs which are not measured used at that time

	calls int
	cpu   time.Duration
}

func (r *nfsRate) add(calls, bytes int, u usage) {
	r.calls += calls
	r.cpu += u.server
	if rate := float64(calls) / u.wall.Seconds(); rate > r.PerSecond {
		r.PerSecond, r.OthersCores = rate, max(0, (u.all-u.server-u.own).Seconds()/u.wall.Seconds())
	}
	r.CPUPer1000 = ms(r.cpu) / float64(r.calls) * 1000
	if bytes > 0 {
		r.MBPerSecond = r.PerSecond * float64(bytes) / 1e6
		r.CPUPerGB = r.cpu.Seconds() / float64(r.calls) / float64(bytes) * 1e9
	}
}

// measure puts the load on a server with so many connections and adds what came of it.
func (c *nfsCell) measure(ctx context.Context, s *nfsServer, connections int, into *nfsRate) error {
	pipes, err := s.pipes(connections, c.bytes > 16<<10 && !c.write)
	defer closeAll(pipes)
	if err != nil {
		return err
	}
	call := c.call(s.handle)
	before, err := s.usage()
	if err != nil {
		return err
	}
	calls, err := c.load(ctx, call, pipes)
	if err != nil {
		return err
	}
	after, err := s.usage()
	into.add(calls, c.bytes, after.minus(before))
	if err == nil && c.write && c.how == nfsclient.Unstable {
		err = s.commit(ctx)
	}
	return errors.Join(err, ctx.Err())
}

// usage is a moment, and the CPU time until then.
type usage struct{ wall, server, own, all time.Duration }

func (s *nfsServer) usage() (u usage, err error) {
	if u.server, err = cpu(s.pid); err != nil {
		return u, err
	}
	if u.own, err = cpu(os.Getpid()); err != nil {
		return u, err
	}
	u.all, err = busy()
	u.wall = time.Duration(time.Now().UnixNano())
	return u, err
}

func (u usage) minus(v usage) usage {
	return usage{u.wall - v.wall, u.server - v.server, u.own - v.own, u.all - v.all}
}

// load runs the connections and returns the number of calls.
func (c *nfsCell) load(ctx context.Context, call *nfsCall, pipes []*pipe) (int, error) {
	calls, failed := make([]int, len(pipes)), make([]error, len(pipes))
	var wg sync.WaitGroup
	for i, p := range pipes {
		part := c.part(i, len(pipes))
		next, over := c.offsets(part, uint64(i)), c.over(ctx, part, len(pipes))
		wg.Go(func() { calls[i], failed[i] = p.run(call, c.depth, next, over) })
	}
	wg.Wait()
	sum := 0
	for _, n := range calls {
		sum += n
	}
	return sum, errors.Join(failed...)
}

// nfsServer is a server, and the file on it.
type nfsServer struct {
	name   string
	pid    int
	handle []byte
	dial   func(port int) (net.Conn, error)
	port   int  // of NFS
	once   bool // one round is enough: nothing is judged by it
}

// open finds the file below what is mounted.
func (s *nfsServer) open(ctx context.Context, mountPort int, export string, path ...string) error {
	c, err := s.client(mountPort)
	if err != nil {
		return err
	}
	s.handle, err = c.MountPath(ctx, export)
	c.Close() // nothing of it is needed any more
	if err != nil {
		return err
	}
	if c, err = s.client(s.port); err != nil {
		return err
	}
	defer c.Close()
	for _, name := range path {
		if s.handle, _, err = c.Lookup(ctx, s.handle, name); err != nil {
			return err
		}
	}
	return nil
}

// client is for what is not measured.
func (s *nfsServer) client(port int) (*nfsclient.Client, error) {
	conn, err := s.dial(port)
	if err != nil {
		return nil, err
	}
	return &nfsclient.Client{Client: oncrpc.NewClient(conn), Cred: oncrpc.Sys("bench", 0, 0)}, nil
}

// commit makes what was written durable, so that the next measurement finds the disk idle.
func (s *nfsServer) commit(ctx context.Context) error {
	c, err := s.client(s.port)
	if err != nil {
		return err
	}
	defer c.Close()
	_, err = c.Commit(ctx, s.handle)
	return err
}

// pipes connects.
func (s *nfsServer) pipes(n int, long bool) (list []*pipe, err error) {
	for range n {
		conn, err := s.dial(s.port)
		if err != nil {
			return list, err
		}
		p, err := newPipe(conn, long)
		if err == nil {
			err = p.limit(nfsWait)
		}
		if list = append(list, p); err != nil {
			return list, err
		}
	}
	return list, nil
}

func closeAll(pipes []*pipe) {
	for _, p := range pipes {
		p.conn.Close() // its answers are all there, or it failed
	}
}

// dialLocal connects to this machine.
func dialLocal(port int) (net.Conn, error) {
	return net.DialTCP("tcp", nil, &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: port})
}
