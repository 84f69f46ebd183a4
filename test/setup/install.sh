#!/bin/bash
# install.sh TARGET...: installs the Debian packages that `make demo`, `make test` or `make bench` needs.
# As root it installs what is missing; as another user it names it and fails.
set -euo pipefail
export PATH="$PATH:/usr/sbin:/sbin" LC_ALL=C

packages() {
	case $1 in
	# mount and fdisk: losetup, mount, sfdisk. fuse3: fusermount3. libnfs-utils: a client of the NFS datastore.
	demo) echo mount util-linux fdisk e2fsprogs fuse3 jq libnfs-utils ;;
	# gcc: the race detector. libnfs, qemu-block-extra, rpcbind, and nfs-common, busybox, cpio and kmod for a small guest with
	# Linux's client, use NFS; iproute2 makes network namespaces for them. restic and tzdata: which points restic would keep, in which zone.
	# qemu-storage-daemon (in qemu-system-common) logs the writes of a disk. nbdkit, and nbdinfo and nbdcopy of libnbd-bin, are peers of NBD. The rest are the programs that use a mount.
	test) echo mount util-linux fdisk e2fsprogs fuse3 jq gcc libc6-dev xfsprogs \
		fio sqlite3 stress-ng qemu-utils qemu-system-common psmisc mmdebstrap extlinux qemu-system-x86 \
		libnfs-utils qemu-block-extra rpcbind nfs-common busybox-static cpio kmod iproute2 restic tzdata nbdkit libnbd-bin openssl ;;
	# borgbackup, restic and qemu-storage-daemon (in qemu-system-common) run beside Livemount.
	# python3-pyfuse3: borg mount. nfs-ganesha runs beside the NFS server, and does not start without rpcbind.
	bench) echo mount util-linux fdisk e2fsprogs fuse3 jq mmdebstrap borgbackup python3-pyfuse3 restic fio \
		qemu-utils qemu-system-common nfs-ganesha nfs-ganesha-vfs rpcbind iproute2 ;;
	*)
		echo "install.sh: no target is named $1: demo, test or bench" >&2
		exit 2
		;;
	esac
}

missing=()
for target in "$@"; do
	list=$(packages "$target")
	for p in $list; do
		if ! dpkg-query -W -f='${db:Status-Status}\n' "$p" 2>/dev/null | grep -qx installed; then
			missing+=("$p")
		fi
	done
done
[ ${#missing[@]} -gt 0 ] || exit 0
mapfile -t missing < <(printf '%s\n' "${missing[@]}" | sort -u)

if ! command -v apt-get >/dev/null; then
	echo "install.sh: this machine has no apt-get; install what these packages of Debian hold: ${missing[*]}" >&2
	exit 1
fi
if [ "$(id -u)" != 0 ]; then
	echo "These packages are missing: ${missing[*]}" >&2
	echo "Try: sudo apt-get install --no-install-recommends ${missing[*]}" >&2
	exit 1
fi

# While policy-rc.d says 101, no package starts a service. One that is there already is left alone.
policy=/usr/sbin/policy-rc.d
made=
cleanup() { [ -z "$made" ] || rm -f "$policy"; }
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
if [ ! -e "$policy" ]; then
	made=1
	printf '#!/bin/sh\nexit 101\n' >"$policy"
	chmod 755 "$policy"
fi

echo "Installing ${missing[*]}"
log=$(mktemp)
apt() { DEBIAN_FRONTEND=noninteractive apt-get -q -o DPkg::Lock::Timeout=300 "$@" >"$log" 2>&1; }
if ! apt install -y --no-install-recommends "${missing[@]}"; then # the lists of packages may be old
	if ! apt update || ! apt install -y --no-install-recommends "${missing[@]}"; then
		cat "$log" >&2
		rm -f "$log"
		exit 1
	fi
fi
rm -f "$log"
