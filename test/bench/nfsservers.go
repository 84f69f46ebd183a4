package main

import (
	"context"
	"fmt"
	"net"
	"net/url"
	"os"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"livemount/server/api"
)

// exported is a livemountd that exports its mount through NFS.
type exported struct {
	*daemon
	nfsServer
}

// nfsDaemon starts a daemon that exports mounts at a free port, to clients with any port.
func (b *bench) nfsDaemon(ctx context.Context, data string) (*daemon, error) {
	return b.daemon(ctx, data, "--nfs-listen", "127.0.0.1:0", "--nfs-allow", "127.0.0.1,insecure")
}

// exportDaemon starts a daemon, whose caches are empty, on a store that has one mount with an export.
func (b *bench) exportDaemon(ctx context.Context, data string) (*exported, error) {
	d, err := b.nfsDaemon(ctx, data)
	if err != nil {
		return nil, err
	}
	e := &exported{d, nfsServer{name: "livemount", pid: d.pid(), dial: dialLocal}}
	if err := e.find(ctx); err != nil {
		d.stop()
		return nil, err
	}
	return e, nil
}

// find finds the disk's flat file on the export of the only mount.
func (e *exported) find(ctx context.Context) error {
	var list api.Mounts
	if err := e.Do(ctx, "GET", "/v1/mounts", nil, nil, &list); err != nil {
		return err
	}
	if len(list.Mounts) != 1 || list.Mounts[0].NFS == nil {
		return fmt.Errorf("livemountd has no mount with an export: %+v", list.Mounts)
	}
	m := &list.Mounts[0]
	u, err := url.Parse(m.Disks[0].NFSURL)
	if err != nil {
		return err
	}
	path, ok := strings.CutPrefix(u.Path, m.NFS.Export+"/")
	if !ok {
		return fmt.Errorf("disk %s is not on export %s", u, m.NFS.Export)
	}
	e.port = m.NFS.Port
	return e.open(ctx, m.NFS.MountPort, m.NFS.Export, strings.Split(path, "/")...)
}

// ganesha is nfs-ganesha 4 with version 3 of NFS. It does not start without registering at a portmapper, so it has one
// of its own: rpcbind in a network namespace, whose socket is in a folder that only these two see as /run.
type ganesha struct {
	nfsServer
	portmapper, server *background
}

const (
	ganeshaPort      = 2049 // of its own namespace
	ganeshaMountPort = 20048
)

// ganeshaConfig turns off what NFS version 3 does not need. Without a Bind_addr it listens everywhere, which is the
// loopback of its namespace.
func ganeshaConfig(dir string) string {
	return fmt.Sprintf(`NFS_CORE_PARAM {
	NFS_Port = %d; MNT_Port = %d; Protocols = 3;
	Enable_NLM = false; Enable_RQUOTA = false; Enable_UDP = false;
}
NFSv4 { Graceless = true; }
EXPORT {
	Export_Id = 1; Path = %q; Pseudo = "/bench"; Protocols = 3; Transports = TCP;
	Access_Type = RW; Squash = none; SecType = sys; FSAL { Name = VFS; }
}
`, ganeshaPort, ganeshaMountPort, dir)
}

// ganesha serves the file of that name in a folder.
func (b *bench) ganesha(ctx context.Context, dir, file string) (*ganesha, error) {
	config := b.path("ganesha.conf")
	if err := os.WriteFile(config, []byte(ganeshaConfig(dir)), 0o600); err != nil {
		return nil, err
	}
	p, err := command(ctx, "unshare", "--net", "--mount", "sh", "-c", "ip link set lo up && mount -t tmpfs none /run && exec rpcbind -f").start()
	if err != nil {
		return nil, err
	}
	g := &ganesha{nfsServer: nfsServer{name: "nfs-ganesha", dial: dialIn(p.pid()), port: ganeshaPort}, portmapper: p}
	if err := g.start(ctx, config, b.path("ganesha")); err != nil {
		g.stop()
		return nil, err
	}
	if err := g.open(ctx, ganeshaMountPort, dir, file); err != nil {
		g.stop()
		return nil, err
	}
	return g, nil
}

// start starts the server as soon as the portmapper answers, and returns when it serves.
func (g *ganesha) start(ctx context.Context, config, base string) (err error) {
	if err := g.await(ctx, 111); err != nil {
		return fmt.Errorf("rpcbind: %w", err)
	}
	g.server, err = command(ctx, "nsenter", "--target", fmt.Sprint(g.portmapper.pid()), "--net", "--mount", "ganesha.nfsd", "-F",
		"-f", config, "-L", base+".log", "-p", base+".pid").start()
	if err != nil {
		return err
	}
	g.pid = g.server.pid()
	if err := g.await(ctx, ganeshaMountPort); err != nil {
		said, _ := os.ReadFile(base + ".log") // to tell more
		return fmt.Errorf("nfs-ganesha: %w\n%s", err, said)
	}
	return nil
}

func (g *ganesha) await(ctx context.Context, port int) error {
	for range 500 {
		c, err := g.dial(port)
		if err == nil {
			return c.Close()
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		time.Sleep(20 * time.Millisecond)
	}
	return fmt.Errorf("nobody listens on port %d", port)
}

func (g *ganesha) stop() {
	if g.server != nil {
		g.server.stop()
	}
	g.portmapper.stop()
}

// dialIn connects in the network namespace of a process. A thread enters it and is thrown away; the socket stays there.
func dialIn(pid int) func(port int) (net.Conn, error) {
	return func(port int) (net.Conn, error) {
		type dialed struct {
			conn net.Conn
			err  error
		}
		done := make(chan dialed)
		go func() {
			runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
			conn, err := net.Conn(nil), enterNet(pid)
			if err == nil {
				conn, err = dialLocal(port)
			}
			done <- dialed{conn, err}
		}()
		d := <-done
		return d.conn, d.err
	}
}

func enterNet(pid int) error {
	path := fmt.Sprintf("/proc/%d/ns/net", pid)
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	own, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		return err
	}
	if its, err := os.Readlink(path); err != nil || its == own { // it has not left it yet
		return fmt.Errorf("process %d has no network namespace of its own: %v", pid, err)
	}
	return unix.Setns(int(f.Fd()), unix.CLONE_NEWNET)
}
