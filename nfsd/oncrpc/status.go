package oncrpc

// Status is how a call ended, and so which reply it gets. The values below 1<<8 are the accept_stat of
// RFC 5531 section 9, which is what a Client reports, too.
type Status uint32

// What a program may return. After anything but Success, what it appended to Out is thrown away.
const (
	Success      Status = 0 // Out holds the results
	ProgUnavail  Status = 1 // the program is not here
	ProgMismatch Status = 2 // the program is here, not in this version; the server adds which are
	ProcUnavail  Status = 3 // the program has no such procedure
	GarbageArgs  Status = 4 // the arguments cannot be decoded
	SystemErr    Status = 5 // no memory and the like

	Drop Status = 1 << 8 // no reply; a TCP connection stays

	rpcMismatch Status = 1 << 9 // not version 2 of ONC RPC
	denied      Status = 1 << 16
)

// AuthStat says why credentials are not taken, RFC 5531 section 9.
type AuthStat uint32

// The reasons that make sense for AUTH_NONE and AUTH_SYS.
const (
	AuthBadCred      AuthStat = 1 // the credentials cannot be decoded
	AuthRejectedCred AuthStat = 2 // a new session must begin: here, a flavor that is not taken
	AuthBadVerf      AuthStat = 3
	AuthTooWeak      AuthStat = 5 // not permitted with this flavor, or from this client
)

// Denied is the status of a call whose credentials are not taken. The reply is MSG_DENIED, AUTH_ERROR.
func Denied(why AuthStat) Status { return denied | Status(why) }

// Auth returns the reason of Denied, or 0.
func (s Status) Auth() AuthStat {
	if s&denied == 0 {
		return 0
	}
	return AuthStat(s &^ denied)
}

// String is for logs and errors.
func (s Status) String() string {
	names := [...]string{"success", "program unavailable", "version unavailable", "procedure unavailable", "arguments not understood",
		"system error"}
	switch {
	case int(s) < len(names):
		return names[s]
	case s == Drop:
		return "dropped"
	case s == rpcMismatch:
		return "RPC version unavailable"
	case s&denied != 0:
		return s.Auth().String()
	default:
		return "unknown status"
	}
}

// String is for logs and errors.
func (a AuthStat) String() string {
	switch a {
	case AuthBadCred:
		return "credentials not understood"
	case AuthRejectedCred:
		return "credentials rejected"
	case AuthBadVerf:
		return "verifier not understood"
	case AuthTooWeak:
		return "credentials too weak"
	default:
		return "credentials refused"
	}
}
