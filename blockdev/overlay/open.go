package overlay

import (
	"context"
	"fmt"
	"path"
	"slices"
	"strings"

	"livemount/internal/errs"
	"livemount/keyring"
)

// folder is what List found.
type folder struct {
	segments    []uint64 // ascending
	checkpoints []uint64 // descending
	temporary   []string
	mark        bool
}

func (l *Log) list() (f folder, err error) {
	names, err := l.fs.List(l.opts.Dir)
	if err != nil {
		return f, err
	}
	for _, name := range names {
		if n, ok := parseName(name, "", ".seg"); ok {
			f.segments = append(f.segments, n)
		} else if n, ok := parseName(name, checkpointPrefix, ""); ok {
			f.checkpoints = append(f.checkpoints, n)
		} else if strings.HasSuffix(name, checkpointTempEnd) {
			f.temporary = append(f.temporary, name)
		}
		f.mark = f.mark || name == "mark"
	}
	slices.Sort(f.segments)
	slices.Sort(f.checkpoints)
	slices.Reverse(f.checkpoints)
	return f, nil
}

// Open opens an existing log: NotFound when there is none, Newer when a newer version wrote it, Corrupt
// when synced records are lost and their ranges are unknown (see Options.AcceptDamage).
func Open(ctx context.Context, o Options, nodes []Node) (*Log, Report, error) {
	var rep Report
	l, err := newLog(o, nodes)
	if err != nil {
		return nil, rep, err
	}
	if err := l.open(ctx, &rep); err != nil {
		l.closeFiles()
		return nil, rep, fmt.Errorf("open overlay log %s: %w", l.opts.Dir, err)
	}
	l.background()
	return l, rep, nil
}

func (l *Log) open(ctx context.Context, rep *Report) error {
	dir, err := l.list()
	if err != nil {
		return err
	}
	if len(dir.segments)+len(dir.checkpoints) == 0 && !dir.mark {
		return errs.New(errs.NotFound, "the folder holds no log")
	}
	m, known, bad, err := openMark(l.fs, l.opts.Dir, l.opts.Mount)
	if err != nil {
		return err
	}
	l.mark = m
	if bad > 0 { // also without a file: it is made anew when it is clear that this is a log of ours
		rep.note("mark: %d of 2 slots are bad", bad)
	}
	r := &replayer{l: l, ctx: ctx, rep: rep, mark: known, win: newWindow(), synced: known.synced}
	if err := l.openSegments(dir, r); err != nil {
		return err
	}
	head, err := l.chooseCheckpoint(dir, r)
	if err == nil {
		err = r.identify()
	}
	if err == nil && l.mark == nil {
		l.mark, err = createMark(l.fs, l.opts.Dir, mark{mount: l.opts.Mount})
	}
	if err != nil {
		return err
	}
	r.begin(head)
	if err := r.run(); err != nil {
		return err
	}
	r.locked()
	return l.recover(ctx, dir, r, head)
}

// openSegments opens all segment files and reads their headers.
func (l *Log) openSegments(dir folder, r *replayer) error {
	r.rep.Segments = len(dir.segments)
	for _, number := range dir.segments {
		if number == 0 || number > segmentNumberMax {
			return errs.New(errs.Corrupt, "impossible segment number %016x", number)
		}
		f, err := l.fs.OpenRW(segmentName(l.opts.Dir, number))
		if err != nil {
			return err
		}
		s := l.newSegment(number, f)
		l.live.segments[uint32(number)] = s
		if s.ready, err = f.Size(); err != nil {
			return err
		}
		s.used.Store(s.ready)
		r.segments = append(r.segments, s)
		if err := r.readSegmentHeader(s); err != nil {
			return err
		}
	}
	return nil
}

func (r *replayer) readSegmentHeader(s *segment) error {
	r.win.reset(s.file)
	var h segmentHeader
	have := false
	var bad []int64
	for off := int64(0); off < s.form.first(); off += segmentHeaderBytes {
		b, err := r.win.at(off, segmentHeaderBytes)
		if err != nil {
			return err
		}
		one, ok := decodeSegmentHeader(b)
		if !ok {
			r.rep.note("segment %016x: bad header at %d", s.number, off)
			bad = append(bad, off)
			s.rotten = s.rotten || writtenWhole(b)
		} else if !have {
			h, have = one, true
		}
	}
	if !have {
		return nil
	}
	for _, off := range bad { // the same bytes as before, whoever else has the segment
		if err := s.putHeader(h, off); err != nil {
			r.rep.note("segment %016x: the header at %d was not written again: %v", s.number, off, err)
		}
	}
	r.headers = append(r.headers, h)
	if err := h.check(s.number); err != nil {
		return err
	}
	return s.unlock(r.l.opts.Keys, h)
}

// writtenWhole says of a bad header that its first and its last sector were written: then all of it was, and it is no crash that
// made it bad.
func writtenWhole(b []byte) bool {
	const sector = 512
	return len(b) == segmentHeaderBytes && !allZero(b[:sector]) && !allZero(b[segmentHeaderBytes-sector:])
}

func (s *segment) putHeader(h segmentHeader, off int64) error {
	if _, err := s.file.WriteAt(h.encode(), off); err != nil {
		return err
	}
	return s.file.Sync()
}

// locked notes what cannot be read because the key of its segment is lost.
func (r *replayer) locked() {
	for _, s := range r.segments {
		if s.form == plain || s.key != nil || s.live == 0 {
			continue
		}
		r.rep.Rotten = true
		for id, n := range r.l.nodes {
			n.extents.from(0, func(e extent) bool {
				if e.isData() && uint64(e.seg) == s.number {
					r.rep.damage(id, e.off, e.len, "both headers of its segment are bad, and with them the key")
				}
				return len(r.rep.Damage) < damageMax
			})
		}
	}
}

// unlock gives a sealed segment its key.
func (s *segment) unlock(keys *keyring.Keys, h segmentHeader) (err error) {
	if err := s.form.admitKey(s.name, h.keyID); err != nil || s.form == plain {
		return err
	}
	s.key, err = keys.File(h.keyID, h.salt)
	return err
}

// identify refuses segments of a mount that is neither ours nor one that the checkpoint names for it.
// Their headers tell what was synced.
func (r *replayer) identify() error {
	for _, h := range r.headers {
		s := r.segment(h.number)
		if h.mount == s.mount {
			r.epoch = max(r.epoch, h.epoch)
			r.synced = later(r.synced, h.synced)
		} else if r.rep.Checkpoint > 0 {
			return errs.New(errs.Invalid, "segment %016x: belongs to mount %x, not %x", s.number, h.mount, s.mount)
		} else {
			return errs.New(errs.Corrupt, "segment %016x: belongs to mount %x, not %x, and there is no good checkpoint "+
				"of a fork that says so: the fork was not finished, or lost its checkpoint", s.number, h.mount, s.mount)
		}
	}
	return nil
}

// chooseCheckpoint loads the newest checkpoint that can be read. Starting from an older one, or from
// none, is right only when every record since is still there; replay finds out by their numbers.
func (l *Log) chooseCheckpoint(dir folder, r *replayer) (checkpointHead, error) {
	rep := r.rep
	none := checkpointHead{nextSeq: 1}
	var firstErr error
	for _, number := range dir.checkpoints {
		l.cleaner.number = max(l.cleaner.number, number)
		h, err := l.loadCheckpoint(number, rep)
		if err == nil {
			rep.Checkpoint = number
			l.cleaner.checkpointSeq.Store(h.nextSeq)
			l.cleaner.checkpointBytes.Store(2 * h.imageBytes(l.form))
			return h, nil
		}
		if !errs.Is(err, errs.Corrupt) {
			return h, err
		}
		rep.note("%v", err)
		rep.Rotten, firstErr = true, err
		l.resetIndex()
		if l.opts.Restore != nil { // it may have been told of half a snapshot
			if err := l.opts.Restore(nil); err != nil {
				return none, err
			}
		}
	}
	if whole := len(dir.segments) == 0 || dir.segments[0] == 1; whole || l.opts.AcceptDamage {
		return none, nil
	}
	// Segments go only when a checkpoint replaces them.
	if firstErr == nil {
		firstErr = errs.New(errs.Corrupt, "the checkpoint is missing")
	}
	return none, firstErr
}

func (l *Log) resetIndex() {
	for id, n := range l.nodes {
		n.extents, n.sizeKnown = extentMap{form: l.form}, false
		n.size.Store(n.given)
		if !n.attached {
			delete(l.nodes, id)
		}
	}
	for _, s := range l.live.segments {
		s.live = 0
		s.bind(l.opts.Mount)
	}
	l.live.bytes, l.logMeta = 0, false
}

// recover makes what was found the durable state, and starts a new incarnation. The order matters: a
// crash in between must leave a log that is found torn at the same place again, or not at all.
//  1. Segments behind the cut go, the torn one is truncated.
//  2. All that replay took for good is synced: after a crash of the process alone it may not be.
//  3. Then, and not earlier, a new segment may claim in its header that everything before it is synced.
func (l *Log) recover(ctx context.Context, dir folder, r *replayer, head checkpointHead) error {
	for _, name := range dir.temporary {
		if err := l.fs.Remove(path.Join(l.opts.Dir, name)); err != nil {
			return err
		}
	}
	if err := l.cutBehind(r); err != nil {
		return err
	}
	for _, s := range l.live.segments {
		l.logBytes.Add(s.used.Load())
	}
	l.cleaner.checkpointAt.Store(l.logBytes.Load())
	l.end, l.synced, l.last = r.pos, r.pos, r.last
	l.seq.Store(r.want - 1)
	l.commits.set(r.want - 1)
	l.nextSeg = max(r.maxSegment(), r.mark.synced.Segment, head.at.Segment) + 1
	r.rep.Epoch = max(r.epoch, r.mark.epoch, head.epoch) + 1
	if err := l.start(r.rep.Epoch); errs.Is(err, errs.NoSpace) && l.Err() == nil {
		r.rep.note("no room for a new segment: %v", err)
		l.headEnd = l.opts.SegmentBytes // the first record tries again
	} else if err != nil {
		return err
	}
	if r.rep.Rotten {
		// What was lost is written down, so that it is known also when its evidence is gone.
		// Without room the evidence stays where it is: in successors and in the mark.
		err := l.checkpoint(ctx)
		if errs.Is(err, errs.NoSpace) {
			r.rep.note("no room for a checkpoint: %v", err)
			return nil
		}
		return err
	}
	if r.rep.Checkpoint == 0 {
		return nil
	}
	return l.removeCheckpoints(r.rep.Checkpoint)
}

// cutBehind removes what lies behind the end of the replayed records.
func (l *Log) cutBehind(r *replayer) error {
	for _, s := range slices.Backward(r.segments) {
		if s.number <= r.pos.Segment {
			break
		}
		if err := l.fs.Remove(s.name); err != nil {
			return err
		}
		delete(l.live.segments, uint32(s.number))
		s.release()
	}
	for _, s := range r.segments {
		if s.number > r.pos.Segment || s.number < min(r.pos.Segment, r.firstSynced.Segment) {
			continue
		}
		if err := s.settle(r.pos, r.synced); err != nil {
			return err
		}
	}
	return l.fs.SyncDir(l.opts.Dir)
}

// settle truncates the segment at the cut, when it lies here, and syncs it. What was synced is not cut off,
// though it is rotten and the loss was accepted: a fork may share the segment and find more of it good.
func (s *segment) settle(cut, synced Position) error {
	if s.number == cut.Segment && s.ready > cut.Offset && !cut.Less(synced) {
		if err := s.file.Truncate(cut.Offset); err != nil {
			return err
		}
		s.ready = cut.Offset
		s.used.Store(s.ready)
	}
	return s.file.Sync()
}

func (r *replayer) maxSegment() uint64 {
	if n := len(r.segments); n > 0 {
		return r.segments[n-1].number
	}
	return 0
}
