# Tape drives of a guest. Sourced before the script of a test, never run.
# shellcheck shell=bash

core=/sys/kernel/config/target/core
loopback=/sys/kernel/config/target/loopback

# The modules of SCSI tapes and of targets in user space, in the order in which they need each other.
modules() {
    local module path
    for module in scsi_common scsi_mod sg st configfs target_core_mod uio target_core_user tcm_loop; do
        path=$(find "/usr/lib/uml/modules/$(uname -r)" -name "$module.ko")
        insmod "$path"
    done
    mount -t configfs none /sys/kernel/config
}

# drive N [TRAIT…]: the software drive in the directory driveN becomes /dev/nstN and /dev/sgN.
drive() {
    local n=$1 device=/sys uio name
    shift
    [[ -d $core ]] || modules
    name=$core/user_$n/tape$n
    mkdir -p "$name"
    echo "dev_config=ekm/tape$n,dev_size=1048576,hw_block_size=512" >"$name/control"
    echo 600 >"$name/attrib/cmd_time_out"
    echo 1 >"$name/enable"
    echo 1 >"$name/attrib/tmr_notification"
    echo 0 >"$name/attrib/pgr_support" || true
    for device in /sys/class/uio/uio*; do
        [[ $(<"$device/name") == *tape$n* ]] && uio=${device##*/}
    done
    "$TCMU" serve "/dev/$uio" "drive$n" "/run/drive$n" "$@" &
    wait_for "the socket of drive $n" test -S "/run/drive$n"
    # A cartridge that is there from the start spares the first unit attention of a change.
    mkdir -p "$loopback/naa.600140500000000$n/tpgt_1/lun/lun_0"
    echo "naa.600140500000001$n" >"$loopback/naa.600140500000000$n/tpgt_1/nexus"
    ln -s "$name" "$loopback/naa.600140500000000$n/tpgt_1/lun/lun_0/port"
    wait_for "/dev/nst$n" test -c "/dev/nst$n" -a -c "/dev/sg$n"
}

# tell N WORDS…: to the drive, as its operator or its library.
tell() {
    local n=$1
    shift
    "$TCMU" tell "/run/drive$n" "$@"
}

# note NAME COMMAND…: what it prints and how it ends, for the test to read.
note() {
    local name=$1 code=0
    shift
    "$@" >"notes/$name.out" 2>"notes/$name.err" </dev/null || code=$?
    echo "$code" >"notes/$name.code"
    echo "note: $name $code"
}

# wait_for WHAT COMMAND…: until it succeeds.
wait_for() {
    local what=$1 tries
    shift
    for ((tries = 0; tries < 1200; tries++)); do
        "$@" && return
        sleep 0.05
    done
    echo "no sign of $what" >&2
    return 1
}
