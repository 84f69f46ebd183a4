package crash

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"livemount/nfsd/oncrpc"
	"livemount/nfsd/xdr"
	"livemount/server/api"
	"livemount/test/harness"
	"livemount/test/nfsclient"
)

// hardClient is an NFS client as a kernel's hard mount is: a call whose answer was lost is sent again, with its number, for
// as long as it takes.
type hardClient struct {
	ctx  context.Context
	addr string
	cred oncrpc.Cred
	conn *nfsclient.Client
	xid  uint32
}

// call returns the results of a call, however often it has to be sent.
func (h *hardClient) call(proc uint32, args func(*xdr.Encoder)) ([]byte, error) {
	h.xid++
	return h.again(h.xid, proc, args)
}

func (h *hardClient) again(xid, proc uint32, args func(*xdr.Encoder)) ([]byte, error) {
	b := nfsclient.Encode(args)
	for {
		if h.conn == nil {
			if err := h.dial(); err != nil {
				return nil, err
			}
		}
		ctx, cancel := context.WithTimeout(h.ctx, 20*time.Second)
		out, err := h.conn.CallXID(ctx, xid, nfsclient.NFS, 3, proc, h.cred, b)
		cancel()
		if err == nil && len(out) >= 4 && !bytes.Equal(out[:4], []byte{0, 0, 0x27, 0x18}) { // JUKEBOX: ask again
			return out, nil
		}
		if h.ctx.Err() != nil {
			return nil, h.ctx.Err()
		}
		h.conn.Close()
		h.conn = nil
	}
}

// dial waits until the daemon is there.
func (h *hardClient) dial() error {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		c, err := nfsclient.Dial(h.ctx, h.addr)
		if err == nil {
			h.conn = c
			return nil
		}
		select {
		case <-tick.C:
		case <-h.ctx.Done():
			return err
		}
	}
}

// results is call for what must succeed.
func (h *hardClient) results(proc uint32, args func(*xdr.Encoder)) (xdr.Decoder, error) {
	b, err := h.call(proc, args)
	if err != nil {
		return xdr.Decoder{}, err
	}
	d, err := nfsclient.Results(b)
	if err != nil {
		err = fmt.Errorf("procedure %d: %w", proc, err)
	}
	return d, err
}

// known is a file that a worker made, with what was acknowledged of it.
type known struct {
	handle  []byte
	content []byte
	names   []string
}

// sent is a change that was answered.
type sent struct {
	xid, proc uint32
	args      func(*xdr.Encoder)
	answer    []byte
}

// worker changes files in a folder of its own. Each change is acknowledged before the next, so it knows exactly what is
// there.
type worker struct {
	hardClient
	rng    *rand.Rand
	dir    []byte
	files  []*known
	serial int
	done   int // changes
	last   sent
}

func (w *worker) run(stop <-chan struct{}) error {
	for {
		select {
		case <-stop:
			return nil
		default:
		}
		if err := w.act(); err != nil {
			return err
		}
		w.done++
	}
}

func (w *worker) name() string {
	w.serial++
	return fmt.Sprintf("n%d", w.serial)
}

// change makes a change of names or attributes, and now and then sends it once more: the answer must be the first.
func (w *worker) change(proc uint32, args func(*xdr.Encoder)) (xdr.Decoder, error) {
	first, err := w.call(proc, args)
	if err != nil {
		return xdr.Decoder{}, err
	}
	w.last = sent{w.xid, proc, args, first}
	if w.rng.IntN(4) == 0 {
		if err := w.sendLast(); err != nil {
			return xdr.Decoder{}, err
		}
	}
	d, err := nfsclient.Results(first)
	if err != nil {
		err = fmt.Errorf("procedure %d: %w", proc, err)
	}
	return d, err
}

// sendLast sends the last change once more: the answer must be the first.
func (w *worker) sendLast() error {
	if w.last.args == nil {
		return nil
	}
	again, err := w.again(w.last.xid, w.last.proc, w.last.args)
	if err != nil || !bytes.Equal(w.last.answer, again) {
		return fmt.Errorf("procedure %d sent again: %x, not %x, %w", w.last.proc, again, w.last.answer, err)
	}
	return nil
}

func (w *worker) act() error {
	k := w.rng.IntN(12)
	if len(w.files) < 3 || k == 0 && len(w.files) < 40 {
		return w.create()
	}
	f := w.files[w.rng.IntN(len(w.files))]
	switch k {
	case 1:
		return w.remove(f)
	case 2:
		return w.rename(f)
	case 3:
		return w.link(f)
	case 4:
		return w.truncate(f)
	case 5, 6, 7:
		return w.write(f, nfsclient.FileSync)
	default:
		return w.writeUnstable(f)
	}
}

func (w *worker) create() error {
	name := w.name()
	f := &known{names: []string{name}}
	d, err := w.change(nfsclient.Create, func(e *xdr.Encoder) {
		nfsclient.Dirop(w.dir, name)(e)
		e.Uint32(1) // guarded: a second time would be refused
		nfsclient.Nothing().Append(e)
	})
	if err != nil {
		return err
	}
	d.Bool()
	f.handle = bytes.Clone(d.Opaque(64))
	w.files = append(w.files, f)
	return d.Err()
}

func (w *worker) remove(f *known) error {
	name := f.names[0]
	if _, err := w.change(nfsclient.Remove, nfsclient.Dirop(w.dir, name)); err != nil {
		return err
	}
	if f.names = f.names[1:]; len(f.names) == 0 {
		w.files = slices.DeleteFunc(w.files, func(o *known) bool { return o == f })
	}
	return nil
}

// rename moves a name, sometimes over another file.
func (w *worker) rename(f *known) error {
	from, to := f.names[0], w.name()
	over := w.files[w.rng.IntN(len(w.files))]
	replaces := over != f && w.rng.IntN(2) == 0
	if replaces {
		to = over.names[0]
	}
	if _, err := w.change(nfsclient.Rename, func(e *xdr.Encoder) {
		nfsclient.Dirop(w.dir, from)(e)
		nfsclient.Dirop(w.dir, to)(e)
	}); err != nil {
		return err
	}
	f.names[0] = to
	if replaces {
		if over.names = over.names[1:]; len(over.names) == 0 {
			w.files = slices.DeleteFunc(w.files, func(o *known) bool { return o == over })
		}
	}
	return nil
}

func (w *worker) link(f *known) error {
	name := w.name()
	_, err := w.change(nfsclient.Link, func(e *xdr.Encoder) {
		e.Opaque(f.handle)
		nfsclient.Dirop(w.dir, name)(e)
	})
	f.names = append(f.names, name)
	return err
}

func (w *worker) truncate(f *known) error {
	size := w.rng.IntN(len(f.content) + 5000)
	_, err := w.change(nfsclient.Setattr, func(e *xdr.Encoder) {
		e.Opaque(f.handle)
		nfsclient.Set{Mode: -1, UID: -1, GID: -1, Size: int64(size)}.Append(e)
		e.Bool(false)
	})
	f.resize(size)
	return err
}

func (f *known) resize(size int) {
	if size < len(f.content) {
		f.content = f.content[:size:size]
	}
	f.content = append(f.content, make([]byte, size-len(f.content))...)
}

func (f *known) put(b []byte, off int) {
	f.resize(max(len(f.content), off+len(b)))
	copy(f.content[off:], b)
}

func (w *worker) bytes(most int) []byte {
	b := make([]byte, 1+w.rng.IntN(most))
	for i := range b {
		b[i] = byte(w.rng.Uint32())
	}
	return b
}

func (w *worker) send(f *known, off int, b []byte, how uint32) (verf string, err error) {
	d, err := w.results(nfsclient.Write, func(e *xdr.Encoder) {
		e.Opaque(f.handle)
		e.Uint64(uint64(off))
		e.Uint32(uint32(len(b)))
		e.Uint32(how)
		e.Opaque(b)
	})
	if err != nil {
		return "", err
	}
	nfsclient.ReadWcc(&d)
	if n, got := d.Uint32(), d.Uint32(); int(n) != len(b) || got < how {
		return "", fmt.Errorf("WRITE of %d bytes, %d: %d bytes, %d", len(b), how, n, got)
	}
	return string(d.Fixed(8)), d.Err()
}

func (w *worker) write(f *known, how uint32) error {
	b, off := w.bytes(20_000), w.rng.IntN(60_000)
	_, err := w.send(f, off, b, how)
	f.put(b, off)
	return err
}

// writeUnstable writes several times and commits. When the verifier tells of a restart, all is written again: the client
// has kept it.
func (w *worker) writeUnstable(f *known) error {
	type part struct {
		off int
		b   []byte
	}
	var parts []part
	for range 1 + w.rng.IntN(5) {
		parts = append(parts, part{w.rng.IntN(60_000), w.bytes(20_000)})
	}
	for {
		seen := map[string]bool{}
		for _, p := range parts {
			v, err := w.send(f, p.off, p.b, nfsclient.Unstable)
			if err != nil {
				return err
			}
			seen[v] = true
		}
		d, err := w.results(nfsclient.Commit, func(e *xdr.Encoder) {
			e.Opaque(f.handle)
			e.Uint64(0)
			e.Uint32(0)
		})
		if err != nil {
			return err
		}
		nfsclient.ReadWcc(&d)
		if seen[string(d.Fixed(8))] && len(seen) == 1 {
			break
		}
	}
	for _, p := range parts {
		f.put(p.b, p.off)
	}
	return nil
}

// check compares all that is there with what was acknowledged.
func (w *worker) check() error {
	want := map[string]*known{}
	for _, f := range w.files {
		for _, name := range f.names {
			want[name] = f
		}
	}
	list, err := w.conn.List(w.ctx, w.dir, 32<<10)
	if err != nil {
		return err
	}
	if len(list) != len(want)+2 {
		return fmt.Errorf("%d names, %d were acknowledged", len(list)-2, len(want))
	}
	for name, f := range want {
		h, a, err := w.conn.Lookup(w.ctx, w.dir, name)
		if err != nil || !bytes.Equal(h, f.handle) || a.Size != uint64(len(f.content)) || int(a.Links) != len(f.names) {
			return fmt.Errorf("%s: %+v, %w; %d bytes and %d names were acknowledged", name, a, err, len(f.content), len(f.names))
		}
		b, _, err := w.conn.Read(w.ctx, h, 0, 1<<20)
		if err != nil || !bytes.Equal(b, f.content) {
			return fmt.Errorf("%s: other bytes than were acknowledged, %w", name, err)
		}
	}
	return nil
}

// TestKillUnderNFS kills the daemon while clients change a datastore through NFS. They notice nothing but a pause: every
// call gets its one answer, and all that was acknowledged is there.
func TestKillUnderNFS(t *testing.T) {
	harness.NeedRoot(t)
	rng := rand.New(rand.NewPCG(harness.Seed(t), 0))
	for left := harness.Soak(12, 400); left > 0; left -= 2 * roundsPerStore {
		killUnderNFS(t, rng, min(left, 2*roundsPerStore))
	}
}

func killUnderNFS(t *testing.T, rng *rand.Rand, rounds int) {
	t.Helper()
	dir := harness.Dir(t)
	addr := freeAddress(t)
	d := harness.New(t, filepath.Join(dir, "store"), "--nfs-listen", addr, "--nfs-allow", "127.0.0.1,insecure", "--log-level", "warn")
	d.Start()
	v := newVM(t, dir, "vm", rng, 3<<20)
	if ok, err := v.backup(d); !ok {
		t.Fatal(err)
	}
	var m api.Mount
	d.Must(&m, "mount", "vm@latest", "--nfs")
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Minute)
	defer cancel()
	workers := make([]*worker, 4)
	for i := range workers {
		workers[i] = newWorker(t, ctx, addr, m.NFS.Export, rng.Uint64(), i)
	}
	for n := range rounds {
		stop := make(chan struct{})
		var wg sync.WaitGroup
		var failed errorList
		for _, w := range workers {
			wg.Go(func() { failed.add(w.run(stop)) })
		}
		pause(ctx, time.Duration(rng.IntN(400_000))*time.Microsecond)
		d.Kill()
		pause(ctx, time.Duration(rng.IntN(50_000))*time.Microsecond)
		d.Start()
		pause(ctx, time.Duration(rng.IntN(100_000))*time.Microsecond)
		close(stop)
		wg.Wait()
		failed.report(t)
		if n%3 == 2 { // all that was answered is answered the same after one more
			d.Kill()
			d.Start()
		}
		for i, w := range workers {
			if err := errors.Join(w.sendLast(), w.check()); err != nil {
				t.Errorf("round %d, worker %d: %v", n, i, err)
			}
		}
		if t.Failed() {
			t.FailNow()
		}
	}
	total := 0
	for _, w := range workers {
		total += w.done
	}
	t.Logf("%d changes over %d kills", total, rounds)
	if now := d.Status(); !now.Healthy {
		t.Errorf("after all: %+v", now.Damage)
	}
}

func newWorker(t *testing.T, ctx context.Context, addr, export string, seed uint64, i int) *worker {
	t.Helper()
	w := &worker{rng: rand.New(rand.NewPCG(seed, 0))}
	w.hardClient = hardClient{ctx: ctx, addr: addr, cred: oncrpc.Sys(fmt.Sprint("worker", i), 0, 0), xid: uint32(seed)}
	if err := w.dial(); err != nil {
		t.Fatal(err)
	}
	root, err := w.conn.MountPath(ctx, export)
	if err == nil {
		w.dir, _, err = w.conn.Mkdir(ctx, root, fmt.Sprint("worker-", i))
	}
	if err != nil {
		t.Fatal(err)
	}
	return w
}

func pause(ctx context.Context, d time.Duration) {
	ctx, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	<-ctx.Done()
}

// freeAddress is a port of the loopback that nobody has.
func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}
