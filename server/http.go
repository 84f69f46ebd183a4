package server

import (
	"encoding/json"
	"errors"
	"io"
	"maps"
	"net"
	"net/http"
	"strconv"
	"time"

	"livemount/internal/errs"
	"livemount/server/api"
	"livemount/snapshotchain"
)

// maxBody bounds a request: a list of a million changed extents is well below it.
const maxBody = 64 << 20

// answer is a handler that returns what is sent, with its status: bytes as they are, an http.Handler that
// writes the answer itself, or anything else as JSON.
type answer func(r *http.Request) (int, any, error)

func (s *Server) handler() http.Handler {
	mux := http.NewServeMux()
	for pattern, h := range map[string]answer{
		"GET /v1/status":               s.getStatus,
		"GET /v1/vms":                  s.getVMs,
		"GET /v1/points":               s.getPoints,
		"GET /v1/config":               s.getConfig,
		"POST /v1/backups":             s.postBackup,
		"GET /v1/jobs":                 s.getJobs,
		"GET /v1/jobs/{id}":            s.getJob,
		"DELETE /v1/jobs/{id}":         s.cancelJob,
		"GET /v1/mounts":               s.getMounts,
		"POST /v1/mounts":              s.postMount,
		"POST /v1/browse":              s.postBrowse,
		"GET /v1/mounts/{id}":          s.getMount,
		"POST /v1/mounts/{id}/unmount": s.postUnmount,
		"POST /v1/mounts/{id}/resume":  s.postResume,
		"POST /v1/mounts/{id}/commit":  s.postCommit,
		"POST /v1/mounts/{id}/fork":    s.postFork,
		"POST /v1/mounts/{id}/exports": s.postExports,
		"POST /v1/points/expire":       s.postExpire,
		"POST /v1/points/hold":         s.postHold,
		"POST /v1/points/release":      s.postRelease,
		"POST /v1/points/lock":         s.postLock,
		"POST /v1/gc":                  s.postCollect,
		"GET /v1/keys":                 s.getKeys,
		"POST /v1/keys":                s.postKeyAdd,
		"POST /v1/keys/{slot}/remove":  s.postKeyRemove,
		"POST /v1/keys/rotate":         s.postKeyRotate,
		"GET /v1/retention":            s.getRules,
		"POST /v1/retention/rules":     s.postRules,
		"GET /v1/retention/explain":    s.getExplain,
		"POST /v1/retention/apply":     s.postApply,
		"POST /v1/verify":              s.postVerify,
		"POST /v1/scrub":               s.postScrub,
		"POST /v1/vms/{name}/rename":   s.postRename,
		"POST /v1/vms/{name}/remove":   s.postRemove,
		"GET /v1/export":               s.getExport,
		"GET /v1/extents":              s.getExtents,
		"GET /v1/diff":                 s.getDiff,
	} {
		mux.Handle(pattern, s.wrap(h))
	}
	mux.Handle("/", s.wrap(func(r *http.Request) (int, any, error) {
		return 0, nil, errs.New(errs.NotFound, "no such call: %s %s", r.Method, r.URL.Path)
	}))
	return mux
}

// wrap checks who asks, runs the handler and writes its answer.
func (s *Server) wrap(h answer) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		r.Body = http.MaxBytesReader(w, r.Body, maxBody)
		status, out, err := http.StatusOK, any(nil), checkOrigin(r)
		if err == nil {
			status, out, err = s.guarded(h, r)
		}
		if err != nil {
			status, out = s.failed(w.Header(), r, err)
		}
		switch out := out.(type) {
		case http.Handler:
			out.ServeHTTP(w, r)
		case []byte:
			w.Header().Set("Content-Type", "application/octet-stream")
			w.Write(out) // the client is gone when this fails
		default:
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(status)
			json.NewEncoder(w).Encode(out) // the client is gone when this fails
		}
	})
}

// refused is an error with a status of its own, where its kind does not say enough.
type refused struct {
	err    error
	status int
	header http.Header
}

func (f *refused) Error() string { return f.err.Error() }
func (f *refused) Unwrap() error { return f.err }

// failed returns the answer to a request that failed, and logs what is not the client's doing.
func (s *Server) failed(h http.Header, r *http.Request, err error) (int, any) {
	if errs.KindOf(err) == errs.Other {
		s.log.Error("request failed", "method", r.Method, "path", r.URL.Path, "err", err)
	}
	status := statusOf(errs.KindOf(err))
	var f *refused
	if errors.As(err, &f) {
		status = f.status
		maps.Copy(h, f.header)
	}
	return status, api.ErrorBody{Error: api.FromErr(err)}
}

func (s *Server) guarded(h answer, r *http.Request) (status int, out any, err error) {
	defer func() {
		if p := recover(); p != nil {
			s.log.Error("request panicked", "path", r.URL.Path, "panic", p)
			err = errs.New(errs.Other, "internal error: %v", p)
		}
	}()
	return h(r)
}

// checkOrigin refuses what a web page in a browser could send: a foreign host name that was made to
// point here, or a form.
func checkOrigin(r *http.Request) error {
	host, _, err := net.SplitHostPort(r.Host)
	if err != nil {
		host = r.Host
	}
	if ip := net.ParseIP(host); host != "localhost" && (ip == nil || !ip.IsLoopback()) {
		return errs.New(errs.Denied, "requests must name this machine, not %q", r.Host)
	}
	if r.Method != http.MethodGet && r.Method != http.MethodHead && r.Header.Get("Content-Type") != "application/json" {
		return errs.New(errs.Invalid, "Content-Type must be application/json")
	}
	return nil
}

// statusOf is the HTTP status of each kind of error.
func statusOf(k errs.Kind) int {
	switch k {
	case errs.NotFound:
		return http.StatusNotFound
	case errs.Exists, errs.Busy:
		return http.StatusConflict
	case errs.Invalid:
		return http.StatusBadRequest
	case errs.Denied:
		return http.StatusForbidden
	case errs.NoSpace:
		return http.StatusInsufficientStorage
	case errs.Unreachable:
		return http.StatusBadGateway
	case errs.Canceled:
		return 499
	case errs.Newer, errs.CheckFailed:
		return http.StatusUnprocessableEntity
	case errs.Other, errs.Corrupt:
		return http.StatusInternalServerError
	}
	return http.StatusInternalServerError
}

// body decodes the request. An unknown field is an error: it is a typing mistake.
func body(r *http.Request, into any) error {
	d := json.NewDecoder(r.Body)
	d.DisallowUnknownFields()
	err := d.Decode(into)
	if err == nil && d.More() {
		err = errors.New("there is something behind the JSON object")
	}
	if err == nil {
		return nil
	}
	if errors.Is(err, io.EOF) {
		return errs.New(errs.Invalid, "request without a body")
	}
	var tooLarge *http.MaxBytesError
	if errors.As(err, &tooLarge) {
		return errs.WithTry(errs.New(errs.Invalid, "request of more than %d MiB", maxBody>>20), "a shorter list of changed extents, or none: then all is compared")
	}
	return errs.New(errs.Invalid, "request: %w", err)
}

func (s *Server) getStatus(*http.Request) (int, any, error) {
	st := s.store.Stats()
	damage, broken := s.store.Health()
	v := api.Status{
		Version: api.Version, Store: s.store.ID().String(), Data: s.config.Data, VMs: st.VMs, Points: st.Points,
		LogicalBytes: st.LogicalBytes, UniqueBytes: st.UniqueBytes, SharedBytes: max(0, st.LogicalBytes-st.UniqueBytes),
		StoredBytes: st.StoredBytes, MetadataBytes: st.MetadataBytes, Damage: append([]string{}, damage...),
		FastBytes: s.store.Unpacked(), UptimeSeconds: s.clock.Now().Sub(s.started).Seconds(),
	}
	at, ahead := s.store.Time()
	v.StoreTime, v.ClockAheadSeconds, v.LastCollection = at.Round(time.Second), ahead.Round(time.Second).Seconds(), s.keeper.latest()
	v.BadRecords, v.Scrub = s.store.BadRecords(), s.scrubState()
	v.Damage = append(v.Damage, s.knownDamage()...)
	for _, m := range s.allMounts() {
		v.Mounts++
		v.OverlayBytes += m.OverlayBytes
		if m.State == "failed" {
			v.Damage = append(v.Damage, "mount "+m.Mount+": "+m.Reason)
		}
	}
	if st.StoredBytes > 0 {
		v.Ratio = float64(st.LogicalBytes) / float64(st.StoredBytes)
	}
	if broken != nil {
		v.ReadOnly = broken.Error()
	}
	v.Healthy = broken == nil && len(v.Damage) == 0
	sp, err := s.guard.Space()
	v.FreeBytes = sp.FreeBytes
	return http.StatusOK, v, err
}

func (s *Server) getVMs(*http.Request) (int, any, error) {
	out := api.VMs{VMs: []api.VM{}}
	for _, vm := range s.store.VMs() {
		v := api.VM{
			VM: vm.Name, ID: vm.ID.String(), Points: int(vm.Points), Latest: vm.Latest.String(), LatestTime: vm.Time,
			Created: vm.Created, Disks: []string{},
		}
		if of, err := s.store.VMByID(vm.Of); err == nil {
			v.BranchOf = of.Name
		}
		for _, d := range vm.Disks {
			v.Disks = append(v.Disks, d.Name)
		}
		out.VMs = append(out.VMs, v)
	}
	return http.StatusOK, out, nil
}

// getPoints lists the points of ?vm=NAME, or finds the one that ?ref=VM@TIME names.
func (s *Server) getPoints(r *http.Request) (int, any, error) {
	mounts := s.mountsByPoint()
	out := api.Points{Points: []api.Point{}}
	if r.URL.Query().Get("unique") != "" {
		if err := s.store.Measure(r.Context()); err != nil {
			return 0, nil, err
		}
	}
	if ref := r.URL.Query().Get("ref"); ref != "" {
		vm, p, err := s.store.Resolve(r.Context(), ref, s.clock.Now(), time.Local)
		if err != nil {
			return 0, nil, err
		}
		out.Points = append(out.Points, s.pointView(vm.Name, &p, mounts))
		return http.StatusOK, out, nil
	}
	vm, err := s.store.VM(r.URL.Query().Get("vm"))
	if err != nil {
		return 0, nil, err
	}
	vm, points, err := s.store.PointsOf(r.Context(), vm.ID)
	if err != nil {
		return 0, nil, err
	}
	for i := range points {
		out.Points = append(out.Points, s.pointView(vm.Name, &points[i], mounts))
	}
	return http.StatusOK, out, nil
}

func (s *Server) mountsByPoint() map[string][]string {
	out := map[string][]string{}
	for _, m := range s.allMounts() {
		out[m.Point] = append(out[m.Point], m.Mount)
	}
	return out
}

func (s *Server) pointView(vm string, p *snapshotchain.Point, mounts map[string][]string) api.Point {
	v := api.Point{
		VM: vm, Point: p.ID.String(), Time: p.Time, Consistency: p.Consistency, Disks: diskViews(p), Notes: p.Notes,
		Mounts: mounts[p.ID.String()],
	}
	if p.Parent != 0 {
		parent := p.Parent.String()
		v.Parent = &parent
	}
	if p.Config != nil {
		v.Config = &api.PointConfig{Name: p.Config.Name, SizeBytes: p.Config.SizeBytes}
	}
	if n, ok := s.store.UniqueBytes(p); ok {
		v.UniqueBytes = &n
	}
	g := s.store.GuardOf(p)
	for _, h := range g.Holds {
		v.Holds = append(v.Holds, api.Hold(h))
	}
	if at, _ := s.store.Time(); at.Before(g.Until) {
		v.LockedUntil = &g.Until
	}
	return v
}

// getConfig returns the configuration captured with ?ref=VM@TIME as it was given.
func (s *Server) getConfig(r *http.Request) (int, any, error) {
	_, p, err := s.store.Resolve(r.Context(), r.URL.Query().Get("ref"), s.clock.Now(), time.Local)
	if err != nil {
		return 0, nil, err
	}
	b, err := s.store.Config(r.Context(), &p)
	return http.StatusOK, b, err
}

func (s *Server) postBackup(r *http.Request) (int, any, error) {
	j, err := s.readBackup(r)
	if err != nil {
		return 0, nil, err
	}
	return http.StatusAccepted, s.jobs.snapshot(j), nil
}

// readBackup decodes one request at a time: a list of changed extents takes hundreds of megabytes meanwhile.
func (s *Server) readBackup(r *http.Request) (*job, error) {
	select {
	case s.decoding <- struct{}{}:
		defer func() { <-s.decoding }()
	case <-r.Context().Done():
		return nil, r.Context().Err()
	}
	var req api.BackupRequest
	if err := body(r, &req); err != nil {
		return nil, err
	}
	return s.startBackup(&req)
}

func (s *Server) getJobs(*http.Request) (int, any, error) {
	return http.StatusOK, api.Jobs{Jobs: s.jobs.all()}, nil
}

// maxWait bounds how long getJob may hold a request.
const maxWait = 60 * time.Second

// getJob returns a job; ?wait=SECONDS holds the answer until it has finished, at most so long.
func (s *Server) getJob(r *http.Request) (int, any, error) {
	j, err := s.jobs.find(r.PathValue("id"))
	if err != nil {
		return 0, nil, err
	}
	if seconds, err := strconv.ParseFloat(r.URL.Query().Get("wait"), 64); err == nil && seconds > 0 {
		t := time.NewTimer(min(maxWait, time.Duration(seconds*float64(time.Second))))
		defer t.Stop()
		select {
		case <-j.done:
		case <-t.C:
		case <-r.Context().Done():
		}
	}
	return http.StatusOK, s.jobs.snapshot(j), nil
}

func (s *Server) cancelJob(r *http.Request) (int, any, error) {
	j, err := s.jobs.find(r.PathValue("id"))
	if err != nil {
		return 0, nil, err
	}
	if !j.finished() {
		j.cancel()
	}
	return http.StatusOK, s.jobs.snapshot(j), nil
}

func (s *Server) getMounts(*http.Request) (int, any, error) {
	return http.StatusOK, api.Mounts{Mounts: s.allMounts()}, nil
}

func (s *Server) getMount(r *http.Request) (int, any, error) {
	m, err := s.findMount(r.PathValue("id"))
	if err != nil {
		return 0, nil, err
	}
	return http.StatusOK, m.view(), nil
}

func (s *Server) postMount(r *http.Request) (int, any, error) {
	began := s.clock.Now()
	var req api.MountRequest
	if err := body(r, &req); err != nil {
		return 0, nil, err
	}
	m, err := s.createMount(r.Context(), &req)
	if err != nil {
		return 0, nil, err
	}
	v := m.view()
	v.ElapsedSeconds = s.clock.Now().Sub(began).Seconds()
	return http.StatusCreated, v, nil
}

func (s *Server) postUnmount(r *http.Request) (int, any, error) {
	var req api.UnmountRequest
	if err := body(r, &req); err != nil {
		return 0, nil, err
	}
	m, err := s.findMount(r.PathValue("id"))
	if err != nil {
		return 0, nil, err
	}
	v := m.view()
	if req.DryRun {
		return http.StatusOK, v, nil
	}
	if err := s.unmount(r.Context(), m, &req); err != nil {
		return 0, nil, err
	}
	v.State = stateDiscarded
	if req.Keep {
		v.State = stateKept
	}
	return http.StatusOK, v, nil
}

func (s *Server) postResume(r *http.Request) (int, any, error) {
	began := s.clock.Now()
	var req api.ResumeRequest
	if err := body(r, &req); err != nil {
		return 0, nil, err
	}
	m, err := s.findMount(r.PathValue("id"))
	if err != nil {
		return 0, nil, err
	}
	if err := s.resume(r.Context(), m, &req.Place); err != nil {
		return 0, nil, err
	}
	v := m.view()
	v.ElapsedSeconds = s.clock.Now().Sub(began).Seconds()
	return http.StatusOK, v, nil
}
