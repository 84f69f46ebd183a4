#!/bin/bash
# mkdisk.sh OUT.raw [all|web|db]: a real Debian disk. all: 8 GiB with about 7 GB of files, a server with databases,
# compilers, an office suite and TeX. web: a web server with Python, db: a database with a compiler, 4 GiB each.
# Made once and kept, because it takes minutes and fetches almost two gigabytes.
set -euo pipefail
export PATH="$PATH:/usr/sbin:/sbin" LC_ALL=C
out=$1 kind=${2:-all}
[ ! -e "$out" ] || exit 0
[ "$(id -u)" = 0 ] || { echo "mkdisk.sh: mmdebstrap needs root. Try: sudo make bench" >&2; exit 1; }
mkdir -p "$(dirname "$out")"
root=$(mktemp -d "$(dirname "$out")/rootfs.XXXXXX")
trap 'rm -rf --one-file-system "$root" "$out.part"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
size=4G
case $kind in
web) sets=(systemd-sysv,linux-image-amd64,udev,openssh-server,rsyslog nginx,python3-django,python3-numpy,python3-requests) ;;
db) sets=(systemd-sysv,linux-image-amd64,udev,openssh-server,cron postgresql,build-essential,redis-server) ;;
all)
	size=8G
	sets=(
	systemd-sysv,linux-image-amd64,udev,iproute2,openssh-server,cron,rsyslog
	nginx,postgresql,mariadb-server,redis-server
	build-essential,clang,llvm-14-dev,golang,rustc,ghc,openjdk-17-jdk-headless
	python3-scipy,python3-pandas,r-base-core
	libreoffice-writer,libreoffice-calc,firefox-esr,gimp
	texlive-latex-extra,texlive-fonts-extra
	)
	;;
*)
	echo "mkdisk.sh: no disk is named $kind" >&2
	exit 2
	;;
esac
mmdebstrap -q --variant=minbase --include="$(IFS=,; echo "${sets[*]}")" bookworm "$root"
du -sh --apparent-size "$root"
truncate -s $size "$out.part"
mke2fs -q -F -t ext4 -d "$root" "$out.part"
mv "$out.part" "$out"
