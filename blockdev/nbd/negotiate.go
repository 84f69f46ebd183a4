package nbd

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"io"
	"os"
	"path/filepath"
	"time"

	"livemount/internal/errs"
)

const (
	maxAnswers = 10_000 // to one option
	maxExports = 10_000 // of a list
)

// hello begins the handshake.
func (l *link) hello() error {
	var b [18]byte
	if _, err := io.ReadFull(l.in, b[:]); err != nil {
		return gone(err)
	}
	be := binary.BigEndian
	if be.Uint64(b[:]) != magicServer || be.Uint64(b[8:]) != magicOption {
		return lies("this is no NBD server of the newstyle: %q", b[:16])
	}
	f := be.Uint16(b[16:])
	if f&flagFixedNewstyle == 0 {
		return errs.New(errs.Invalid, "the NBD server is too old: it cannot answer options")
	}
	flags := uint32(flagFixedNewstyle) | uint32(f&flagNoZeroes)
	return l.write(be.AppendUint32(nil, flags))
}

func (l *link) write(b []byte) error {
	_, err := l.w.Write(b)
	return gone(err)
}

// reply is an answer to an option.
type reply struct {
	kind answer
	data []byte
}

func (l *link) ask(o option, data []byte) error { return l.write(appendOption(nil, o, data)) }

// answerTo reads the next answer.
func (l *link) answerTo(o option) (reply, error) {
	var h [20]byte
	if _, err := io.ReadFull(l.in, h[:]); err != nil {
		return reply{}, gone(err)
	}
	be := binary.BigEndian
	r, n := reply{kind: answer(be.Uint32(h[12:]))}, be.Uint32(h[16:])
	if be.Uint64(h[:]) != magicAnswer || option(be.Uint32(h[8:])) != o || n > maxOptionBytes {
		return r, lies("answer %#x to option %d with %d bytes, where %d was asked", be.Uint64(h[:]), be.Uint32(h[8:]), n, o)
	}
	r.data = make([]byte, n)
	_, err := io.ReadFull(l.in, r.data)
	return r, gone(err)
}

// answers calls f with the answers to an option until it is acknowledged.
func (l *link) answers(o option, f func(r reply) error) error {
	for range maxAnswers {
		r, err := l.answerTo(o)
		switch {
		case err != nil:
			return err
		case r.kind == ansAck:
			return nil
		case r.kind&ansError != 0:
			return r.refusal(o)
		}
		if err := f(r); err != nil {
			return err
		}
	}
	return lies("more than %d answers to option %d", maxAnswers, o)
}

// refusal is the error of an answer that is one.
func (r reply) refusal(o option) error {
	kind, what := errs.Invalid, "it does not know this"
	switch r.kind {
	case ansPolicy:
		kind, what = errs.Denied, "it is not allowed"
	case ansTLSReqd:
		kind, what = errs.Denied, "it wants TLS"
	case ansUnknown:
		kind, what = errs.NotFound, "it has no such export"
	case ansShutdown:
		kind, what = errs.Unreachable, "it is shutting down"
	case ansPlatform:
		kind, what = errs.Unreachable, "it cannot serve that"
	}
	if len(r.data) > 0 {
		what += ": " + string(r.data[:min(len(r.data), maxName)])
	}
	err := errs.New(kind, "the NBD server refuses option %d: %s", o, what)
	if r.kind == ansTLSReqd {
		return errs.WithTry(err, "nbds:// instead of nbd://")
	}
	return err
}

// nothing is for options whose only good answer is an acknowledgement.
func nothing(r reply) error { return lies("unexpected answer of type %d", r.kind) }

func (l *link) beginTLS(ctx context.Context, u URI) error {
	if err := l.ask(optStartTLS, nil); err != nil {
		return err
	}
	if err := l.answers(optStartTLS, nothing); err != nil {
		return err
	}
	if l.in.Buffered() > 0 {
		return lies("bytes before TLS")
	}
	config, err := l.o.tlsFor(u)
	if err != nil {
		return err
	}
	t := tls.Client(l.raw, config)
	if err := t.HandshakeContext(ctx); err != nil {
		return errs.New(errs.Denied, "TLS with NBD server: %w", err)
	}
	l.w, l.in = t, bufio.NewReaderSize(t, readerBytes)
	return nil
}

// tlsFor reads the certificates that a URI names, with the names that libnbd and qemu give them.
func (o *ClientOptions) tlsFor(u URI) (*tls.Config, error) {
	if u.PSKFile != "" {
		return nil, errs.WithTry(errs.New(errs.Invalid, "TLS with a pre-shared key is not supported"), "tls-certificates=FOLDER")
	}
	if o.TLS != nil {
		c := o.TLS.Clone()
		if c.ServerName == "" {
			c.ServerName = u.Hostname
		}
		return c, nil
	}
	c := &tls.Config{ServerName: u.Hostname, MinVersion: tls.VersionTLS12}
	if u.Certificates == "" {
		return c, nil
	}
	ca, err := os.ReadFile(filepath.Join(u.Certificates, "ca-cert.pem"))
	if err != nil {
		return nil, err
	}
	if c.RootCAs = x509.NewCertPool(); !c.RootCAs.AppendCertsFromPEM(ca) {
		return nil, errs.New(errs.Invalid, "no certificate in %s", filepath.Join(u.Certificates, "ca-cert.pem"))
	}
	pair, err := tls.LoadX509KeyPair(filepath.Join(u.Certificates, "client-cert.pem"), filepath.Join(u.Certificates, "client-key.pem"))
	if err == nil {
		c.Certificates = []tls.Certificate{pair}
	} else if !errs.Is(err, errs.NotFound) {
		return nil, errs.New(errs.Invalid, "certificate of the client: %w", err)
	}
	return c, nil
}

// negotiate opens the export.
func (l *link) negotiate(u URI) error {
	if err := l.structuredReplies(); err != nil {
		return err
	}
	if !l.simple {
		if err := l.chooseContexts(u.Export); err != nil {
			return err
		}
	}
	for _, name := range l.o.Contexts {
		if _, ok := l.contexts[name]; !ok {
			return errs.New(errs.NotFound, "the NBD server has no meta context %s for export %q", name, u.Export)
		}
	}
	if err := l.open(u.Export); err != nil {
		return err
	}
	if l.o.Writable && l.flags&sendReadOnly != 0 {
		return errs.New(errs.Denied, "export %q is read-only", u.Export)
	}
	return gone(l.raw.SetDeadline(time.Time{}))
}

func (l *link) structuredReplies() error {
	if err := l.ask(optStructuredReply, nil); err != nil {
		return err
	}
	r, err := l.answerTo(optStructuredReply)
	if err == nil && r.kind == ansUnsup {
		l.simple = true
		return nil
	}
	if err == nil && r.kind != ansAck {
		err = r.refusal(optStructuredReply)
	}
	return err
}

func (l *link) chooseContexts(export string) error {
	names := append([]string{contextAllocation}, l.o.Contexts...)
	b := binary.BigEndian.AppendUint32(appendText(nil, export), uint32(len(names)))
	for _, name := range names {
		b = appendText(b, name)
	}
	if err := l.ask(optSetMetaContext, b); err != nil {
		return err
	}
	l.contexts, l.ids = map[string]uint32{}, map[uint32]bool{}
	err := l.answers(optSetMetaContext, func(r reply) error {
		if r.kind != ansMetaContext || len(r.data) < 4 || len(l.ids) > len(names) {
			return lies("answer of type %d to a choice of contexts", r.kind)
		}
		id := binary.BigEndian.Uint32(r.data)
		if l.ids[id] {
			return lies("two contexts with the id %d", id)
		}
		l.contexts[string(r.data[4:])], l.ids[id] = id, true
		return nil
	})
	if errs.Is(err, errs.Invalid) && len(l.o.Contexts) == 0 { // it has none
		l.contexts, l.ids = nil, nil
		return nil
	}
	return err
}

// open goes on to the transmission.
func (l *link) open(export string) error {
	b := binary.BigEndian.AppendUint16(appendText(nil, export), 1)
	if err := l.ask(optGo, binary.BigEndian.AppendUint16(b, infoBlockSize)); err != nil {
		return err
	}
	have := false
	err := l.answers(optGo, func(r reply) error {
		if r.kind != ansInfo {
			return nothing(r)
		}
		is, err := l.take(r.data)
		have = have || is
		return err
	})
	if err == nil && !have {
		err = lies("the size of the export was not told")
	}
	return err
}

// take reads an information about the export, and says whether it was that which must be there.
func (l *link) take(data []byte) (export bool, err error) {
	t := texts{b: data}
	switch t.u16() {
	case infoExport:
		size := t.u64()
		l.size, l.flags = int64(size), t.u16()
		if !t.end() || l.size < 0 || l.flags&sendHasFlags == 0 {
			return false, lies("export of %d bytes with flags %#x", size, l.flags)
		}
		return true, nil
	case infoBlockSize:
		low, _, high := t.u32(), t.u32(), t.u32()
		if !t.end() || low == 0 || low > 64<<10 || low&(low-1) != 0 || high < low {
			return false, lies("block sizes %d to %d", low, high)
		}
		l.min, l.max = low, min(high, maxRequest)&^(low-1)
	}
	return false, nil
}

// list asks for all exports.
func (l *link) list() (all []Info, err error) {
	if err := l.ask(optList, nil); err != nil {
		return nil, err
	}
	err = l.answers(optList, func(r reply) error {
		t := texts{b: r.data}
		e := Info{Name: t.text()}
		if r.kind != ansServer || t.bad || len(all) == maxExports {
			return lies("answer of type %d in a list of %d exports", r.kind, len(all))
		}
		e.Description = string(t.b)
		all = append(all, e)
		return nil
	})
	return all, err
}
