package kv

import (
	"fmt"
	"log/slog"
	"strings"
)

// logger passes Badger's messages on; what it calls information is detail here.
type logger struct{ l *slog.Logger }

func newLogger(l *slog.Logger) logger {
	if l == nil {
		l = slog.New(slog.DiscardHandler)
	}
	return logger{l}
}

func text(format string, args []any) string {
	return strings.TrimSpace(fmt.Sprintf(format, args...))
}

func (l logger) Errorf(f string, a ...any)   { l.l.Error("badger reported", "text", text(f, a)) }
func (l logger) Warningf(f string, a ...any) { l.l.Warn("badger reported", "text", text(f, a)) }
func (l logger) Infof(f string, a ...any)    { l.l.Debug("badger reported", "text", text(f, a)) }
func (l logger) Debugf(f string, a ...any)   { l.l.Debug("badger reported", "text", text(f, a)) }
