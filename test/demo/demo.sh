#!/bin/bash
# demo.sh: what Livemount does, shown on a small VM disk with files of this machine. Run it with `make demo`.
# It needs root for the loop mounts that a guest would make itself, and leaves nothing behind.
set -euo pipefail
export PATH="$PATH:/usr/sbin:/sbin" LC_ALL=C.UTF-8
cd "$(dirname "$0")/../.."

bin=$PWD/bin changed=$PWD/build/changed
work='' daemon='' guests=() loops=()

### Talking

if [ -t 1 ]; then bold=$'\e[1m' dim=$'\e[2m' off=$'\e[0m'; else bold='' dim='' off=''; fi
say() { printf '\n%s%s%s\n' "$bold" "$*" "$off"; }
note() { printf '  %s\n' "$*"; }
fail() {
	printf 'demo: %s\n' "$*" >&2
	exit 1
}
# mountctl shows the command as a person would type it, runs it and indents what it says.
mountctl() {
	printf '  %s$ mountctl %s%s\n' "$dim" "${*//"$work"\//}" "$off"
	ctl "$@" | sed -e "s|$work/||g" -e 's/^/    /'
}
human() { numfmt --to=iec-i --suffix=B --format=%.1f "$1"; }
now() { date +%s.%N; }
since() { awk -v a="$1" -v b="$(now)" 'BEGIN { printf "%.1f s", b - a }'; }

### Cleaning up, whatever happens

stop_guest() { # DIR: ends the mount of a file system in a disk, and its loop device
	local dir=$1 i
	umount "$dir" 2>/dev/null || umount -l "$dir" 2>/dev/null || true
	for i in "${!guests[@]}"; do
		[ "${guests[$i]}" = "$dir" ] || continue
		losetup -d "${loops[$i]}" 2>/dev/null || true
		unset "guests[$i]" "loops[$i]"
	done
}
cleanup() {
	local status=$? g left
	trap '' INT TERM HUP
	trap - ERR
	set +e
	for g in "${guests[@]}"; do stop_guest "$g"; done
	if [ -n "$daemon" ]; then
		kill "$daemon" 2>/dev/null
		for _ in $(seq 100); do kill -0 "$daemon" 2>/dev/null || break; sleep 0.1; done
		kill -9 "$daemon" 2>/dev/null
		wait "$daemon" 2>/dev/null
	fi
	if [ -n "$work" ]; then
		awk -v w="$work/" 'index($5, w) == 1 { print $5 }' /proc/self/mountinfo | sort -r |
			while read -r left; do umount -l "$left"; done
		rm -rf --one-file-system "$work"
	fi
	exit "$status"
}
trap cleanup EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM
trap 'echo "demo: line $LINENO failed: $BASH_COMMAND" >&2; [ ! -s "$work/livemountd.log" ] || tail -n 5 "$work/livemountd.log" >&2' ERR

### Steps

start_daemon() {
	# Of its own session, so that Ctrl-C reaches it only after what uses it is gone.
	setsid "$bin/livemountd" --data "$work/store" --nfs-listen "127.0.0.1:$nfs_port" 2>>"$work/livemountd.log" &
	daemon=$!
	for _ in $(seq 100); do
		ctl status >/dev/null 2>&1 && return
		kill -0 "$daemon" 2>/dev/null || break
		sleep 0.1
	done
	cat "$work/livemountd.log" >&2
	fail "livemountd did not start"
}
ctl() { "$bin/mountctl" "$@"; }

# guest mounts the partition of a disk, as the VM that has the disk would. The kernel need not know the
# partition table: sfdisk does.
guest() { # DISK DIR [OPTIONS]
	local start length loop
	read -r start length < <(sfdisk --json "$1" |
		jq -r '.partitiontable | (.sectorsize // 512) as $s | .partitions[0] | "\(.start * $s) \(.size * $s)"')
	loop=$(losetup --find --show --offset "$start" --sizelimit "$length" "$1")
	loops+=("$loop") guests+=("$2")
	mkdir -p "$2"
	mount -t ext4 -o "${3:-rw}" "$loop" "$2"
}

make_disk() { # FILE: 1 GiB with a GPT and an ext4 that holds some 400 MB of files of this machine
	local tree=$work/tree
	mkdir -p "$tree"/{srv,usr}
	pick 120000000 /usr/bin /usr/sbin
	pick 100000000 /usr/share
	pick 150000000 /usr/lib
	printf 'hello from the first backup\n' >"$tree/srv/index.html"
	truncate -s 1G "$1"
	printf 'label: gpt\nstart=2048, type=linux\n' | sfdisk -q "$1"
	local end
	end=$(sfdisk --json "$1" | jq '.partitiontable.partitions[0].size / 2')
	mke2fs -q -F -t ext4 -E offset=1048576 -d "$tree" "$1" "${end%.*}k"
	rm -rf "$tree"
}
pick() { # BYTES FOLDER...: copies files, up to so many bytes
	local limit=$1
	shift
	find "$@" -xdev -type f -printf '%s\t%p\n' 2>/dev/null | sort -k2 |
		awk -F'\t' -v limit="$limit" '(sum += $1) > limit { exit } { print $2 }' |
		tar -C / -cPf - -T - 2>/dev/null | tar -C "$work/tree" --transform='s|^/||' -xPf - 2>/dev/null || true
}
sha() { sha256sum <"$1" | cut -d' ' -f1; }
# point_sha is the checksum of a point: all of its disk, through a fresh read-only mount.
point_sha() { # VM@TIME
	ctl mount "$1" "$work/look" --read-only >/dev/null
	sha "$work/look/sda.raw"
	ctl unmount "$work/look" --yes >/dev/null
}
backup() { # NAME ARGUMENTS...: a backup, whose numbers go into the table at the end
	local name=$1
	shift
	mountctl backup web --disk "sda=$work/web.raw" "$@"
	ctl jobs --output json | jq '.jobs[0].result' >"$work/result.json"
	row "$name" "$(jq '.elapsed_seconds * 100 | round / 100' "$work/result.json") s" \
		"$(human "$(jq '.disks[0].read_bytes' "$work/result.json")")" \
		"$(human "$(jq '.disks[0].stored_bytes' "$work/result.json")")"
}
show_point() { # VM@TIME DIR: mounts a point
	local out
	printf '  %s$ mountctl mount %s %s%s\n' "$dim" "$1" "${2#"$work"/}" "$off"
	out=$(ctl mount "$1" "$2")
	printf '%s\n' "$out" | sed -e "s|$work/||g" -e 's/^/    /'
	row "mount of $1" "$(sed -n '1s/.*, in //p' <<<"$out")" - -
}
rows=()
row() { rows+=("$(printf '%-32s %10s %12s %12s' "$@")"); }

### The demonstration

[ "$(id -u)" = 0 ] || { echo "demo: a file system inside a disk is mounted with a loop device, which only root may
Try: sudo make demo" >&2; exit 1; }
[ -x "$bin/livemountd" ] && [ -x "$bin/mountctl" ] && [ -x "$changed" ] || fail "the programs are not built: make demo"
began=$(now)
work=$(mktemp -d "${TMPDIR:-/var/tmp}/livemount-demo.XXXXXX")
export LIVEMOUNT_SERVER=unix:$work/store/livemountd.sock
nfs_port=$((20000 + RANDOM % 10000))
mkdir "$work/store"
start_daemon

say "1. A disk of a VM: 1 GiB, a partition table, ext4, files of this machine"
t=$(now)
make_disk "$work/web.raw"
guest "$work/web.raw" "$work/vm" ro
note "$(find "$work/vm" -type f | wc -l) files, $(human "$(($(df --output=used -B1 "$work/vm" | tail -1)))") used; made in $(since "$t")"
stop_guest "$work/vm"

say "2. The first backup reads the disk, leaves out zeroes and stores each chunk once, compressed"
backup "first backup"
original=$(sha "$work/web.raw")

say "3. The VM works: a file is changed, 20 MB are added, a folder is deleted. The second backup"
note "compares the disk with the point before and keeps only the pages that differ."
guest "$work/web.raw" "$work/vm"
printf 'hello from the second backup\n' >"$work/vm/srv/index.html"
head -c 20000000 /dev/urandom >"$work/vm/srv/new.bin"
gone=$(cd "$work/vm" && find usr/share -mindepth 1 -maxdepth 1 -type d | sort | sed -n 1p)
rm -r "${work:?}/vm/$gone"
note "deleted /$gone"
stop_guest "$work/vm"
backup "second backup, compared"

say "4. A hypervisor knows which blocks changed. With such a list nothing else is even read."
cp --sparse=always "$work/web.raw" "$work/before.raw"
guest "$work/web.raw" "$work/vm"
printf 'hello from the third backup\n' >"$work/vm/srv/index.html"
head -c 5000000 /dev/urandom >"$work/vm/srv/new2.bin"
stop_guest "$work/vm"
"$changed" "$work/before.raw" "$work/web.raw" >"$work/changed.json"
rm "$work/before.raw"
note "$(jq length "$work/changed.json") extents, $(human "$(jq 'map(.length) | add' "$work/changed.json")")"
backup "third backup, with a list" --changed "$work/changed.json"
mountctl points web

say "5. Any point mounts at once, as a disk that can be written. Here the first and the second."
before1=$(point_sha web@-2) before2=$(point_sha web@-1)
show_point web@-2 "$work/first"
show_point web@-1 "$work/second"
guest "$work/first/sda.raw" "$work/vm1"
guest "$work/second/sda.raw" "$work/vm2"
note "first:  /srv/index.html says: $(cat "$work/vm1/srv/index.html")"
note "second: /srv/index.html says: $(cat "$work/vm2/srv/index.html")"
[ -d "$work/vm1/$gone" ] && [ ! -e "$work/vm2/$gone" ] && [ ! -e "$work/vm1/srv/new.bin" ] || fail "the points do not hold their own files"
note "/$gone is there in the first, and gone in the second"
printf 'written in the first mount\n' >"$work/vm1/srv/mine.txt"
printf 'written in the second mount\n' >"$work/vm2/srv/mine.txt"
rm "$work/vm2/srv/new.bin"
sync -f "$work/vm1/srv/mine.txt" "$work/vm2/srv/mine.txt"
[ "$(cat "$work/vm1/srv/mine.txt")" != "$(cat "$work/vm2/srv/mine.txt")" ] || fail "the mounts are not apart"
note "both were written, each for itself"

say "6. The first mount forks, and its state is kept on a branch, while it is in use"
t=$(now)
mountctl fork "$work/first" "$work/fork" >/dev/null
note "fork after $(since "$t")"
guest "$work/fork/sda.raw" "$work/vm3"
note "fork:   /srv/mine.txt says: $(cat "$work/vm3/srv/mine.txt")"
printf 'written in the fork\n' >"$work/vm3/srv/mine.txt"
stop_guest "$work/vm3"
[ "$(cat "$work/vm1/srv/mine.txt")" = 'written in the first mount' ] || fail "the fork changed its origin"
mountctl commit "$work/first" --branch kept
mountctl diff web@-2 web:kept@latest
mountctl unmount "$work/fork" --yes >/dev/null
mountctl browse "$work/all" >/dev/null
note "all points, as files:"
(cd "$work/all" && ls -d ./*/*/*.raw)
mountctl unmount "$work/all" >/dev/null

say "7. A point as an NFS datastore, as a hypervisor mounts it. Here libnfs's programs are the client."
mountctl mount web@-1 --nfs
store=$(ctl mounts --output json | jq -r '.mounts[] | select(.nfs).nfs_url')
disk=$(ctl mounts --output json | jq -r '.mounts[] | select(.nfs).disks[0].nfs_url')
nfs-ls -R "$store" | sed 's/^/    /'
[ "$(nfs-cat "$disk" | sha256sum | cut -d' ' -f1)" = "$before2" ] || fail "the disk is another through NFS"
note "the disk has the same SHA-256 through NFS"
cp "$work/web.raw" "$work/swap" && truncate -s 3M "$work/swap"
nfs-cp "$work/swap" "${store/\?//web/web.vswp?}" >/dev/null
note "a file was made beside it: web.vswp"

say "8. The daemon is killed while all of this is in use (kill -9), as in a crash"
kill -9 "$daemon"
wait "$daemon" 2>/dev/null || true
stop_guest "$work/vm1"
stop_guest "$work/vm2"
t=$(now)
start_daemon
note "livemountd is back after $(since "$t"); so are the mounts:"
mountctl mounts
guest "$work/first/sda.raw" "$work/vm1"
guest "$work/second/sda.raw" "$work/vm2"
note "first:  /srv/mine.txt says: $(cat "$work/vm1/srv/mine.txt")"
note "second: /srv/mine.txt says: $(cat "$work/vm2/srv/mine.txt")"
[ ! -e "$work/vm2/srv/new.bin" ] || fail "a deleted file came back"
stop_guest "$work/vm1"
stop_guest "$work/vm2"

nfs-cat "${store/\?//web/web.vswp?}" | cmp - "$work/swap" || fail "what was written through NFS is lost"
note "the datastore: web.vswp is there, by the same URL"
mountctl unmount "$(ctl mounts --output json | jq -r '.mounts[] | select(.nfs).mount')" --yes --force

say "9. The points themselves never change (SHA-256 of the whole disk, before and after)"
after1=$(point_sha web@-2) after2=$(point_sha web@-1)
note "first:  ${before1:0:16} ${after1:0:16}, the disk when it was backed up: ${original:0:16}"
note "second: ${before2:0:16} ${after2:0:16}"
[ "$original" = "$before1" ] && [ "$before1" = "$after1" ] && [ "$before2" = "$after2" ] || fail "a point changed"
mountctl unmount "$work/first" --yes
mountctl unmount "$work/second" --yes

say "What it took"
printf '  %-32s %10s %12s %12s\n' '' time read stored
printf '  %s\n' "${rows[@]}"
mountctl status
say "All of it in $(since "$began"); everything is cleaned up."
