package server

import "livemount/internal/errs"

// Stub until the portmapper is there.
func (n *nfsService) portmap(string, int, int) error { return errs.New(errs.Other, "no portmapper") }

func (n *nfsService) unregister() error { return nil }
