#!/bin/bash
# mkguest.sh DIR: the kernel, the initial file system and the disk of programs of a small guest that has Linux's NFS client.
# The guest has the host's loopback as 10.0.2.2, runs /test.sh, says TEST-STATUS=N and powers itself off. Made once and kept.
set -euo pipefail
export PATH="$PATH:/usr/sbin:/sbin" LC_ALL=C
out=$1
[ ! -e "$out/tools.ext4" ] || exit 0
mkdir -p "$out"
work=$(mktemp -d "$out/guest.XXXXXX")
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

package=$(apt-cache depends linux-image-cloud-amd64 | sed -n 's/.*Depends: \(linux-image-[0-9].*\)/\1/p' | head -1)
if [ -z "$package" ]; then # the lists of packages are missing
	apt-get -q update >/dev/null
	package=$(apt-cache depends linux-image-cloud-amd64 | sed -n 's/.*Depends: \(linux-image-[0-9].*\)/\1/p' | head -1)
fi
(cd "$work" && { apt-get -q download "$package" || { apt-get -q update && apt-get -q download "$package"; }; } >/dev/null)
dpkg -x "$work"/linux-image-*.deb "$work/kernel"
version=$(ls "$work/kernel/lib/modules")

tree=$work/tree
mkdir -p "$tree"/{bin,sbin,proc,sys,dev,mnt,etc,lib,lib64,usr/sbin,usr/bin,tmp,run,var/lib/nfs,root,tools}
cp /bin/busybox "$tree/bin/busybox"

for applet in $("$tree/bin/busybox" --list); do
	[ -e "$tree/bin/$applet" ] || ln -s busybox "$tree/bin/$applet"
done
modules=$tree/lib/modules/$version
mkdir -p "$modules"
depmod -b "$work/kernel" "$version"
for m in virtio_pci virtio_net virtio_blk nfs nfsv3 ext4 af_packet; do
	modprobe -d "$work/kernel" -S "$version" --show-depends "$m" 2>/dev/null | awk '/^insmod/{print $2}' || true
done | sort -u | while read -r file; do
	name=${file#*lib/modules/"$version"/}
	mkdir -p "$modules/$(dirname "$name")"
	cp "$work/kernel/lib/modules/$version/$name" "$modules/$name"
done
cp "$work/kernel/lib/modules/$version"/modules.{builtin,order,builtin.modinfo} "$modules/"
depmod -b "$tree" "$version"
libraries() { ldd "$1" | grep -o '/[^ ]*' || true; }
install_program() { # PROGRAM ROOT
	mkdir -p "$2$(dirname "$1")"
	cp -L "$1" "$2$1"
	libraries "$1" | while read -r l; do
		mkdir -p "$2$(dirname "$l")"
		cp -Ln "$l" "$2$l"
	done
}
rm -f "$tree/bin/mount.nfs"
install_program /sbin/mount.nfs "$tree"
ln -s mount.nfs "$tree/sbin/umount.nfs"
cp /etc/netconfig "$tree/etc/"
printf 'tcp 6 TCP\nudp 17 UDP\n' >"$tree/etc/protocols"
echo 'root:x:0:0::/root:/bin/sh' >"$tree/etc/passwd"
echo 'root:x:0:' >"$tree/etc/group"
echo '127.0.0.1 localhost' >"$tree/etc/hosts"
ln -s /proc/self/mounts "$tree/etc/mtab"
touch "$tree/etc/fstab"
cat >"$tree/init" <<'INIT'
#!/bin/sh
export PATH=/bin:/sbin:/usr/bin:/usr/sbin
mount -t proc p /proc; mount -t sysfs s /sys; mount -t devtmpfs d /dev
mkdir -p /dev/shm; mount -t tmpfs t /tmp; mount -t tmpfs t /dev/shm
for m in virtio_pci virtio_net virtio_blk af_packet ext4 nfs nfsv3; do modprobe $m 2>/dev/null; done
ip link set lo up; ip link set eth0 up; ip addr add 10.0.2.15/24 dev eth0; ip route add default via 10.0.2.2
mount -t ext4 -o ro /dev/vda /tools
sh -e /test.sh; echo "TEST-STATUS=$?"
sync; poweroff -f
INIT
chmod 755 "$tree/init"
(cd "$tree" && find . | cpio -o -H newc --quiet | gzip -1) >"$out/initrd.gz"
cp "$work/kernel/boot/vmlinuz-$version" "$out/vmlinuz"

# Programs that are too large for memory. Each is called through /tools/run.
install_program /usr/bin/fio "$work/tools"
cat >"$work/tools/run" <<'RUN'
#!/bin/sh
program=$1; shift
exec env LD_LIBRARY_PATH=/tools/lib/x86_64-linux-gnu:/tools/usr/lib/x86_64-linux-gnu:/tools/usr/lib/x86_64-linux-gnu/ceph /tools/lib64/ld-linux-x86-64.so.2 "/tools/usr/bin/$program" "$@"
RUN
chmod 755 "$work/tools/run"
size=$(($(du -sm "$work/tools" | cut -f1) * 5 / 4 + 16))
mke2fs -q -F -t ext4 -O ^has_journal -d "$work/tools" "$work/tools.ext4" "${size}M"
mv "$work/tools.ext4" "$out/tools.ext4"
