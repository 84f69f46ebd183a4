package nbd

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"io"
	"net"
	"strings"

	"livemount/internal/errs"
)

const (
	maxOptions  = 1000 // of one handshake
	maxContexts = 64   // that a client may choose
)

// handshake answers options until the client goes on, when an export is open, or goes.
func (c *conn) handshake(ctx context.Context) error {
	b := binary.BigEndian.AppendUint64(nil, magicServer)
	b = binary.BigEndian.AppendUint64(b, magicOption)
	b = binary.BigEndian.AppendUint16(b, flagFixedNewstyle|flagNoZeroes)
	if err := c.send(b, nil); err != nil {
		return err
	}
	var flags [4]byte
	if _, err := io.ReadFull(c.in, flags[:]); err != nil {
		return gone(err)
	}
	f := binary.BigEndian.Uint32(flags[:])
	if f&flagFixedNewstyle == 0 || f&^uint32(flagFixedNewstyle|flagNoZeroes) != 0 {
		return lies("client flags %#x", f)
	}
	c.noZeroes = f&flagNoZeroes != 0
	for range maxOptions {
		o, data, err := c.readOption()
		if err != nil {
			return err
		}
		if done, err := c.option(ctx, o, data); done || err != nil {
			return err
		}
	}
	return lies("more than %d options", maxOptions)
}

func gone(err error) error {
	if err == nil {
		return nil
	}
	return errs.New(errs.Unreachable, "the NBD peer is gone: %w", err)
}

func (c *conn) readOption() (option, []byte, error) {
	var h [16]byte
	if _, err := io.ReadFull(c.in, h[:]); err != nil {
		return 0, nil, gone(err)
	}
	o, n := option(binary.BigEndian.Uint32(h[8:])), binary.BigEndian.Uint32(h[12:])
	if magic := binary.BigEndian.Uint64(h[:]); magic != magicOption || n > maxOptionBytes {
		return 0, nil, lies("option %d with magic %#x and %d bytes", o, magic, n)
	}
	data := make([]byte, n)
	if _, err := io.ReadFull(c.in, data); err != nil {
		return 0, nil, gone(err)
	}
	return o, data, nil
}

// option answers one. done says that the handshake is over.
func (c *conn) option(ctx context.Context, o option, data []byte) (done bool, err error) {
	if _, local := c.raw.(*net.UnixConn); c.s.o.TLSRequired && !local && !c.secure && o != optStartTLS && o != optAbort {
		if o == optExportName {
			return true, errs.New(errs.Denied, "the client did not begin TLS")
		}
		return false, c.refuse(o, ansTLSReqd, "TLS is required here")
	}
	switch o {
	case optExportName:
		return true, c.exportName(ctx, string(data))
	case optAbort:
		return true, c.answer(o, ansAck, nil)
	case optList:
		return false, c.list(ctx, data)
	case optStartTLS:
		return false, c.startTLS(ctx, data)
	case optInfo, optGo:
		return c.info(ctx, o, data)
	case optStructuredReply:
		if len(data) > 0 {
			return false, c.refuse(o, ansInvalid, "this option has no data")
		}
		c.structured = true
		return false, c.answer(o, ansAck, nil)
	case optListMetaContext, optSetMetaContext:
		return false, c.metaContexts(ctx, o, data)
	default:
		return false, c.refuse(o, ansUnsup, "")
	}
}

func (c *conn) answer(o option, a answer, data []byte) error {
	return c.send(appendAnswer(nil, o, a, data), nil)
}

func (c *conn) refuse(o option, a answer, why string) error { return c.answer(o, a, []byte(why)) }

// refuseErr refuses with what an error says.
func (c *conn) refuseErr(o option, err error) error {
	a := ansPlatform
	switch errs.KindOf(err) {
	case errs.NotFound:
		a = ansUnknown
	case errs.Denied, errs.Busy:
		a = ansPolicy
	case errs.Invalid:
		a = ansInvalid
	case errs.Canceled:
		a = ansShutdown
	default:
		c.s.o.Log.Warn("NBD export cannot be opened", "err", err)
	}
	text := err.Error()
	return c.refuse(o, a, text[:min(len(text), maxName)])
}

// open opens an export, unless it is the one that is open.
func (c *conn) open(ctx context.Context, name string) (*Export, error) {
	if e := c.export.Load(); e != nil && e.Name == name {
		return e, nil
	}
	c.forget()
	if len(name) > maxName {
		return nil, errs.New(errs.Invalid, "the name of the export has %d bytes, more than %d", len(name), maxName)
	}
	e, err := c.s.exports.Open(ctx, name)
	if err != nil {
		return nil, err
	}
	e.Name = name
	c.export.Store(e)
	return e, nil
}

// forget closes the export that was looked at.
func (c *conn) forget() {
	if e := c.export.Swap(nil); e != nil && e.Release != nil {
		e.Release()
	}
	c.contexts, c.contextsOf = nil, ""
}

func (c *conn) list(ctx context.Context, data []byte) error {
	if len(data) > 0 {
		return c.refuse(optList, ansInvalid, "this option has no data")
	}
	all, err := c.s.exports.List(ctx)
	if err != nil {
		return c.refuseErr(optList, err)
	}
	for _, e := range all {
		if err := c.answer(optList, ansServer, append(appendText(nil, e.Name), e.Description...)); err != nil {
			return err
		}
	}
	return c.answer(optList, ansAck, nil)
}

// startTLS goes on inside of TLS. What was agreed before does not count (CVE-2021-3716).
func (c *conn) startTLS(ctx context.Context, data []byte) error {
	switch {
	case len(data) > 0:
		return c.refuse(optStartTLS, ansInvalid, "this option has no data")
	case c.s.o.TLS == nil:
		return c.refuse(optStartTLS, ansPolicy, "TLS is not configured")
	case c.secure:
		return c.refuse(optStartTLS, ansInvalid, "TLS is in use already")
	}
	if err := c.answer(optStartTLS, ansAck, nil); err != nil {
		return err
	}
	if c.in.Buffered() > 0 {
		return lies("bytes behind the beginning of TLS")
	}
	t := tls.Server(c.raw, c.s.o.TLS)
	if err := t.HandshakeContext(ctx); err != nil {
		return errs.New(errs.Denied, "TLS of NBD client: %w", err)
	}
	c.forget()
	c.secure, c.structured = true, false
	c.use(t)
	return nil
}

// exportName is how old clients go on: without an answer that could be an error.
func (c *conn) exportName(ctx context.Context, name string) error {
	e, err := c.open(ctx, name)
	if err != nil {
		return err
	}
	b := binary.BigEndian.AppendUint64(nil, uint64(e.Disk.Size()))
	b = binary.BigEndian.AppendUint16(b, e.flags())
	if !c.noZeroes {
		b = append(b, make([]byte, 124)...)
	}
	return c.send(b, nil)
}

func (e *Export) flags() uint16 {
	f := uint16(sendHasFlags | sendMultiConn | sendDF | sendCache)
	if e.device() == nil {
		return f | sendReadOnly
	}
	return f | sendFlush | sendFUA | sendTrim | sendWriteZeroes | sendFastZero
}

// info answers what an export is, and goes on with it.
func (c *conn) info(ctx context.Context, o option, data []byte) (done bool, err error) {
	t := texts{b: data}
	name := t.text()
	wants := map[uint16]bool{}
	for range t.u16() {
		if t.bad {
			break
		}
		wants[t.u16()] = true
	}
	if !t.end() {
		return false, c.refuse(o, ansInvalid, "malformed")
	}
	e, err := c.open(ctx, name)
	if err != nil {
		return false, c.refuseErr(o, err)
	}
	be := binary.BigEndian
	b := be.AppendUint16(nil, infoExport)
	b = be.AppendUint16(be.AppendUint64(b, uint64(e.Disk.Size())), e.flags())
	parts := [][]byte{b, blockSizes()}
	if wants[infoName] {
		parts = append(parts, append(be.AppendUint16(nil, infoName), e.Name...))
	}
	if wants[infoDescription] && e.Description != "" {
		parts = append(parts, append(be.AppendUint16(nil, infoDescription), e.Description...))
	}
	for _, p := range parts {
		if err := c.answer(o, ansInfo, p); err != nil {
			return false, err
		}
	}
	return o == optGo, c.answer(o, ansAck, nil)
}

// blockSizes are the constraints: any byte may be asked for, whole pages are best.
func blockSizes() []byte {
	b := binary.BigEndian.AppendUint16(nil, infoBlockSize)
	for _, n := range []uint32{1, 4096, maxRequest} {
		b = binary.BigEndian.AppendUint32(b, n)
	}
	return b
}

// metaContexts lists meta contexts, or chooses them for the transmission.
func (c *conn) metaContexts(ctx context.Context, o option, data []byte) error {
	t := texts{b: data}
	name := t.text()
	var queries []string
	for range t.u32() {
		if t.bad || len(queries) == maxContexts {
			break
		}
		queries = append(queries, t.text())
	}
	switch {
	case !t.end():
		return c.refuse(o, ansInvalid, "malformed, or too many")
	case !c.structured:
		return c.refuse(o, ansInvalid, "structured replies come first")
	}
	e, err := c.open(ctx, name)
	if err != nil {
		return c.refuseErr(o, err)
	}
	if o == optListMetaContext {
		return c.listContexts(e, queries)
	}
	return c.setContexts(ctx, e, queries)
}

func (c *conn) listContexts(e *Export, queries []string) error {
	for _, name := range append([]string{contextAllocation}, e.Contexts...) {
		if len(queries) > 0 && !matches(queries, name) {
			continue
		}
		if err := c.answer(optListMetaContext, ansMetaContext, append([]byte{0, 0, 0, 0}, name...)); err != nil {
			return err
		}
	}
	return c.answer(optListMetaContext, ansAck, nil)
}

// matches says whether a query names the context, or the beginning of its name up to a colon.
func matches(queries []string, name string) bool {
	for _, q := range queries {
		if q == name || strings.HasSuffix(q, ":") && strings.HasPrefix(name, q) {
			return true
		}
	}
	return false
}

func (c *conn) setContexts(ctx context.Context, e *Export, queries []string) error {
	c.contexts, c.contextsOf = nil, e.Name
	for _, q := range queries {
		m := metaContext{id: uint32(len(c.contexts) + 1), name: q}
		switch {
		case q == contextAllocation:
			m.of = allocationOf(e.Disk)
		case e.Context == nil:
			continue
		default:
			of, err := e.Context(ctx, q)
			if errs.Is(err, errs.NotFound) {
				continue
			}
			if err != nil {
				return c.refuseErr(optSetMetaContext, err)
			}
			m.of = of
		}
		c.contexts = append(c.contexts, m)
		b := append(binary.BigEndian.AppendUint32(nil, m.id), m.name...)
		if err := c.answer(optSetMetaContext, ansMetaContext, b); err != nil {
			return err
		}
	}
	return c.answer(optSetMetaContext, ansAck, nil)
}
