#!/bin/bash
# Process 1 of the machine whose power the power-cut test cuts. Booted by ./uml, with the host's root
# read-only as its root and one ext4 disk; runs the executable that GUEST_RUN names on the kernel command
# line, then powers off. All output goes to the console, unbuffered: "guest: up" before the command and
# "guest: exit N" after it stand on lines of their own.
set -euo pipefail

export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
export HOME=/run/home TMPDIR=/run/tmp

power_off() {
    local code=$?
    echo "guest: exit $code"
    kill -KILL -1 2>/dev/null || true
    cd /
    umount /mnt || true
    echo o >/proc/sysrq-trigger
    sleep 60 # the kernel needs a moment, and panics if process 1 ends before
}

mount -t proc proc /proc
trap power_off EXIT
mount -t sysfs sysfs /sys
# The host's /tmp stays in sight, so that paths of the test mean the same here; what must be writable is in /run.
mount -t tmpfs tmpfs /run
mkdir -p /run/home /run/tmp /dev/shm /dev/pts
mount -t tmpfs tmpfs /dev/shm
mount -t devpts devpts /dev/pts
stty -opost -echo </dev/console # lines end in a line feed alone
ip link set lo up

# Nothing reaches the disk unless a program asks for it: no periodic write-back, no periodic journal commit.
echo 0 >/proc/sys/vm/dirty_writeback_centisecs
echo 90 >/proc/sys/vm/dirty_ratio
echo 80 >/proc/sys/vm/dirty_background_ratio
mount -t ext4 -o commit=3600 /dev/ubda /mnt

cd /mnt
echo "guest: up"
"$GUEST_RUN" </dev/null
