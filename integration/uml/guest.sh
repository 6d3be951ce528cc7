#!/bin/bash
# Process 1 of the machine that has tape drives. Booted by integration/uml.rs with the host's root read-only as
# its root; GUEST_SHARE, a directory of the host, is /mnt here and can be written to. Runs the script GUEST_RUN,
# in that directory and with tapes.sh at hand, then powers off: "guest: exit N".
set -euo pipefail

export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
export HOME=/run/home TMPDIR=/run/tmp LC_ALL=C

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
mount -t tmpfs tmpfs /run
mkdir -p /run/home /run/tmp /dev/shm
mount -t tmpfs tmpfs /dev/shm
# stenc logs here, and sends what it does to syslog.
mount -t tmpfs tmpfs /var/log
stty -opost -echo </dev/console # lines end in a line feed alone
ip link set lo up
mount -t hostfs -o "$GUEST_SHARE" none /mnt

cd /mnt
here=$(dirname "${BASH_SOURCE[0]}")
echo "guest: up"
# In a shell of its own, so that what fails there ends it and not this.
bash -euo pipefail -c 'source "$1" && source "$2"' guest "$here/tapes.sh" "$GUEST_RUN" </dev/null
