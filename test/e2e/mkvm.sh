#!/bin/bash
# mkvm.sh OUT.raw: a small Debian that boots from any kind of disk: MBR, extlinux, ext4. Each time it has booted it prints LIVEMOUNT-BOOTED,
# appends a line to /root/boots, syncs, and powers itself off. About 600 MB of data. Made once and kept, because it
# takes minutes. As root; extlinux is installed on a loop mount.
set -euo pipefail
export PATH="$PATH:/usr/sbin:/sbin" LC_ALL=C
out=$1
[ ! -e "$out" ] || exit 0
mkdir -p "$(dirname "$out")"
work=$(mktemp -d "$(dirname "$out")/vm.XXXXXX")
root=$work/root mnt=$work/mnt disk=$work/disk.raw loop=
cleanup() {
	mountpoint -q "$mnt" && umount "$mnt"
	[ -z "$loop" ] || losetup -d "$loop"
	rm -rf --one-file-system "$work"
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

mmdebstrap -q --variant=minbase --include=systemd-sysv,linux-image-cloud-amd64,udev,iproute2 bookworm "$root"
echo 'LABEL=livemount / ext4 defaults,errors=remount-ro 0 1' >"$root/etc/fstab"
echo livemount-test >"$root/etc/hostname"
cat >"$root/etc/systemd/system/booted.service" <<'UNIT'
[Unit]
After=multi-user.target
[Service]
Type=oneshot
StandardOutput=journal+console
ExecStart=/bin/sh -c 'echo LIVEMOUNT-BOOTED; date >> /root/boots; sync; systemctl poweroff'
[Install]
WantedBy=multi-user.target
UNIT
ln -s ../booted.service "$root/etc/systemd/system/multi-user.target.wants/booted.service"
kernel=$(ls "$root/lib/modules")
mkdir -p "$root/boot/extlinux" "$mnt"
cat >"$root/boot/extlinux/extlinux.conf" <<CONF
DEFAULT debian
PROMPT 0
TIMEOUT 1
SERIAL 0 115200
LABEL debian
 LINUX /boot/vmlinuz-$kernel
 INITRD /boot/initrd.img-$kernel
 APPEND root=LABEL=livemount ro console=ttyS0 quiet mitigations=off
CONF
truncate -s 2G "$disk"
printf 'label: dos\nstart=2048, type=83, bootable\n' | sfdisk -q "$disk"
dd if=/usr/lib/EXTLINUX/mbr.bin of="$disk" conv=notrunc bs=440 count=1 status=none
mke2fs -q -F -t ext4 -L livemount -O ^metadata_csum_seed,^orphan_file -E offset=1048576 -d "$root" "$disk" $((2 * 1024 * 1024 - 1024))k
loop=$(losetup -f --show -o 1048576 "$disk")
mount "$loop" "$mnt"
extlinux --install "$mnt/boot/extlinux" >/dev/null 2>&1
umount "$mnt"
losetup -d "$loop"
loop=
mv "$disk" "$out"
