# What the other scripts share. Sourced, never run.
# shellcheck shell=bash

if [[ -t 2 && -z ${NO_COLOR:-} ]]; then
    bold=$'\e[1m' yellow=$'\e[1;33m' red=$'\e[1;31m' plain=$'\e[0m'
else
    bold='' yellow='' red='' plain=''
fi

say() { echo "$bold==> $*$plain" >&2; }
warn() { echo "$yellow==> WARNING: $*$plain" >&2; }
die() {
    echo "$red==> ERROR: $*$plain" >&2
    exit 1
}

# as_root COMMAND…: runs it as root, through sudo where the caller is not.
as_root() {
    if ((EUID == 0)); then
        "$@"
    elif command -v sudo >/dev/null; then
        sudo "$@"
    else
        die "root is needed for: $* (and there is no sudo)"
    fi
}

installed() {
    [[ $(dpkg-query -W -f='${db:Status-Status}' "$1" 2>/dev/null) == installed ]]
}

# need PACKAGE…: installs the Debian packages that are missing; silent and quick when none is.
need() {
    local package missing=()
    for package in "$@"; do
        installed "$package" || missing+=("$package")
    done
    if ((${#missing[@]} == 0)); then
        return
    fi
    command -v apt-get >/dev/null ||
        die "apt-get is not here; install what your system calls these Debian packages: ${missing[*]}"
    say "installing ${missing[*]}"
    local apt=(env DEBIAN_FRONTEND=noninteractive apt-get -q -o DPkg::Lock::Timeout=300)
    # One unreachable third-party source must not stop us: if it matters, the install says so.
    as_root "${apt[@]}" update </dev/null >&2 || warn "apt-get update failed; trying with the lists at hand"
    as_root "${apt[@]}" install -y --no-install-recommends "${missing[@]}" </dev/null >&2 ||
        die "apt-get could not install: ${missing[*]}"
}

# What `cargo build` needs beside Rust: a C compiler for aws-lc and SQLite; OpenSSL and libclang for
# the embedded token and its bindings.
need_build() {
    need build-essential pkg-config libssl-dev libclang-dev ca-certificates
}

need_rust() {
    if ! command -v cargo >/dev/null && [[ -x ${CARGO_HOME:-$HOME/.cargo}/bin/cargo ]]; then
        PATH=${CARGO_HOME:-$HOME/.cargo}/bin:$PATH
    fi
    command -v cargo >/dev/null || die "Rust is not here. Get it with
      curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh -s -- -y
    (apt-get install curl, if need be), then open a new shell and run this again."
}

# hash_of FILE…: one short hash over the contents.
hash_of() { cat -- "$@" | sha256sum | cut -c1-16; }
