package server

import (
	"net/http"

	"livemount/internal/errs"
	"livemount/server/api"
)

// allVMs stands for the VM of a mount that shows all.
const allVMs = "*"

// postBrowse mounts all points, read-only.
func (s *Server) postBrowse(r *http.Request) (int, any, error) {
	began := s.clock.Now()
	var req api.BrowseRequest
	if err := body(r, &req); err != nil {
		return 0, nil, err
	}
	m, err := s.mountAt(r.Context(), &mountRecord{Kind: kindBrowse, VM: allVMs, ReadOnly: true}, req.Path)
	if err != nil {
		return 0, nil, err
	}
	v := m.view()
	v.ElapsedSeconds = s.clock.Now().Sub(began).Seconds()
	return http.StatusCreated, v, nil
}

// mustBeOfPoint refuses what a mount of all points cannot do. (A record's kind never changes.)
func (m *mount) mustBeOfPoint(what string) error {
	if m.rec.Kind != kindBrowse {
		return nil
	}
	return errs.WithTry(errs.New(errs.Invalid, "%s %s: it is a browse mount: it shows all points and holds nothing of its own", what, m.rec.ID),
		"mountctl mount VM@TIME DIR for a writable mount of one point")
}
