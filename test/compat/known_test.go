package compat_test

// known lists the accepted differences. The numbers are those of nfsstat3 (RFC 1813 section 2.6).
func known() []difference {
	return append(append(shapes(), refusals()...), deeds()...)
}

// shapes are differences of what is in an answer.
func shapes() []difference {
	return []difference{
		{"*", "*mode of folder", "0755", "020000000755", "2.5", "a mode has 12 bits; go-nfs sends those of Go's os.FileMode"},
		{"*", "*mode of folder", "0750", "020000000750", "2.5", "the same"},
		{"*", "*mode of link", "0777", "01000000777", "2.5", "the same"},
		{"access *", "access", "0x*", "0x3f", "3.3.4", "LOOKUP is for folders, EXECUTE for the rest, and go-nfs grants whatever it is asked for"},
		{"fsstat", "form", "", "*bytes after the end", "3.3.18", "invarsec has 32 bits; go-nfs sends 64"},
		{"pathconf", "links", "65536", "1", "3.3.20", "linkmax: a datastore has links"},
		{"pathconf", "chown restricted", "1", "0", "3.3.20", "others than root may not give files away"},
		{"no such procedure", "status", "remote: procedure unavailable", "broken", "RFC 5531, 9", "go-nfs sends PROG_MISMATCH, without the versions"},
		{"version 2", "refused", "yes", "no", "RFC 5531, 9", "go-nfs does not look at the version"},
		{"write unstable", "committed", "0", "2", "3.3.7", "go-nfs calls every write FILE_SYNC: allowed, and a sync for each"},
		{"create *", "*mode of file", "0644", "0666", "3.3.8", "the mode of a file for which none was sent is the server's choice"},
		{"readdirplus at last", "*mode of file", "0644", "0666", "3.3.8", "the same"},
	}
}

// refusals are differences of why something is refused.
func refusals() []difference {
	return []difference{
		{"lookup long name", "status", "63", "2", "3.2, 4", "NAMETOOLONG, where no_trunc is true"},
		{"bad handle*", "status", "10001", "70", "2.6", "BADHANDLE is what fails the server's own checks"},
		{"write beyond numbers", "status", "27", "5", "2.6", "FBIG"},
		{"setattr size of a folder", "status", "21", "remote: arguments not understood", "2.6", "ISDIR; go-nfs sends GARBAGE_ARGS"},
		{"setattr too large", "status", "27", "remote: arguments not understood", "2.6", "FBIG; the same"},
		{"mkdir over a file", "status", "17", "13", "3.3.9", "EXIST"},
		{"rmdir full", "status", "66", "5", "3.3.13", "NOTEMPTY"},
		{"remove of a folder", "status", "21", "5", "2.6", "ISDIR"},
		{"rename into itself", "status", "22", "5", "3.3.14", "INVAL"},
		{"mknod", "status", "10004", "13", "3.3.11", "NOTSUPP for types that the server has not"},
		{"read a folder", "status", "21", "13", "2.6", "ISDIR: a folder in an operation of files (3.3.6: it must be a file)"},
		{"write a folder", "status", "21", "22", "2.6", "ISDIR: a folder in an operation of files (3.3.7); INVAL says less"},
		{"lookup no name", "status", "13", "OK", "3.2, 1", "it says ACCES"},
		{"create no name", "status", "13", "17", "3.2, 1", "it says ACCES"},
		{"rename over a full folder", "status", "17", "5", "3.3.14", "it says EXIST"},
		{"rename a folder over a file", "status", "17", "5", "3.3.14", "it says EXIST"},
		{"rename a file over a folder", "status", "17", "5", "3.3.14", "it says EXIST"},
	}
}

// deeds are differences of what is done.
func deeds() []difference {
	return []difference{
		{"create unchecked over it", "*size", "5003", "0", "3.3.8", "go-nfs cuts the file, though no size was sent"},
		{"size after that", "*size", "5003", "0", "3.3.8", "so the content is lost"},
		{"create exclusive*", "status", "*", "10004", "3.3.8", "go-nfs has no exclusive create"},
		{"remove exclusive", "status", "OK", "2", "3.3.8", "so it is not there"},
		{"setattr *", "*mode of file", "04711", "0711", "3.3.2", "go-nfs drops setuid, setgid and sticky without a word"},
		{"lookup new name", "*mode of file", "04711", "0711", "3.3.2", "the same"},
		{"getattr after *", "*mode of file", "04711", "0711", "3.3.2", "the same"},
		{"read a symlink", "status", "22", "OK", "3.3.6", "INVAL for what is no file; go-nfs follows the link"},
		{"write a symlink", "status", "22", "OK", "3.3.7", "the same"},
		{"rmdir of a file", "status", "20", "OK", "3.3.13", "NOTDIR; go-nfs removes the file"},
		{"remove victim", "status", "OK", "2", "3.3.13", "so it is gone"},
		{"the handle of before", "status", "OK", "70", "2.3.3", "a handle is of a file, whatever it is called; in go-nfs it is of a path"},
		{"link*", "status", "*", "22", "3.3.15", "go-nfs decodes other arguments than those of LINK"},
		{"remove other name", "status", "OK", "2", "3.3.15", "so there is no such name"},
		{"create with a slash", "status", "22", "OK", "3.2", "a name is one element; go-nfs takes a path"},
		{"remove slash", "status", "2", "OK", "3.2", "so it is there"},
		{"lookup slash", "status", "22", "OK", "3.2", "the same"},
	}
}
