package vmfiles

import (
	"slices"
	"strings"
)

// state forgets what the VM was doing when it was captured.
func (a *adjuster) state() {
	if a.v.value("checkpoint.vmState") != "" {
		a.notes.add("the VM was suspended and will start from the beginning: its memory is not here")
	}
}

// files lets nothing point outside of the folder.
func (a *adjuster) files() {
	a.v.deleteIf(func(l *line) bool {
		key := fold(l.key)
		switch {
		case a.gone[key]:
			return true
		case l.value == "":
			return false
		case slices.Contains(remade(), key):
			return true
		case slices.Contains(kept(), key):
			l.value = plainName(l.value)
			return l.value == "" || isOurs(l.value)
		}
		return a.leads(key, l)
	})
}

// remade lists keys that the hypervisor sets again when it needs them.
func remade() []string {
	return []string{
		"sched.swap.derivedname", "sched.swap.dir", "workingdir", "snapshot.directory", "suspend.directory", "redologdir",
		"migrate.hostlog", "checkpoint.vmstate", "filesearchpath",
	}
}

// kept lists keys of files that belong into the folder, and are made there when they are missing.
func kept() []string {
	return []string{"nvram", "extendedconfigfile", "vmxstats.filename", "log.filename", "vmx.log.filename", "replay.filename"}
}

// isOurs tells whether a file could be one that is ours to make; nothing else may claim its name.
func isOurs(name string) bool {
	name = fold(name)
	return strings.HasSuffix(name, descriptorSuffix) || strings.HasSuffix(name, ".vmx")
}

// leads tells whether the value of a key that is not known by name leads outside of the folder.
func (a *adjuster) leads(key string, l *line) bool {
	if strings.HasPrefix(key, "guestinfo.") || key == "annotation" || key == "displayname" {
		return false
	}
	if !namesFile(key) && !strings.HasPrefix(l.value, "/vmfs/") {
		return false
	}
	if inside := strings.TrimPrefix(l.value, "./"); !isOutside(inside) {
		l.value = inside
		return false
	}
	a.notes.add("%.60s is removed: it was outside of the folder (%.60q)", l.key, l.value)
	return true
}

// namesFile tells by the end of a key in lower case whether its value is a file or a folder.
func namesFile(key string) bool {
	for _, end := range []string{"file", "filename", "path", "dir", "directory", "derivedname", "hostlog", "vmstate", "nvram"} {
		if strings.HasSuffix(key, end) {
			return true
		}
	}
	return false
}

// isOutside tells whether a path is more than a name in the folder: a path, a datastore's "[name] path", or a
// drive of Windows.
func isOutside(s string) bool {
	return strings.ContainsAny(s, `/\`) || strings.HasPrefix(s, "[") || len(s) >= 2 && s[1] == ':' || s == "." || s == ".."
}

// plainName is the last part of a path; "" when none is left.
func plainName(s string) string {
	if i := strings.LastIndexAny(s, `/\`); i >= 0 {
		s = s[i+1:]
	}
	if rest, ok := strings.CutPrefix(s, "["); ok {
		_, s, _ = strings.Cut(rest, "]")
		s = trim(s)
	}
	if len(s) >= 2 && s[1] == ':' {
		s = s[2:]
	}
	if isOutside(s) {
		return ""
	}
	return s
}
