# shellcheck shell=bash
# What the scripts share. Sourced, never run.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cache=${KICKVM_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/kickvm}

# A command that fails unforeseen ends the script; not without a word.
set -E
failed() { say "${0##*/}, line ${BASH_LINENO[0]}, failed: ${1%%$'\n'*}"; }
trap 'failed "$BASH_COMMAND"' ERR

say() { printf 'kickvm: %s\n' "$*" >&2; }
die() { say "$*"; exit "${status:-1}"; }

# True if this host's KVM is backed by the processor. Asks `kickvm doctor` when given a kickvm that exists.
linux_boots_here() {
    if [[ -x ${1-} ]]; then
        "$1" doctor </dev/null >/dev/null 2>&1
    else
        [[ -r /dev/kvm && -w /dev/kvm ]] && [[ -d /sys/module/kvm_intel || -d /sys/module/kvm_amd ]]
    fi
}

as_root() {
    if ((EUID == 0)); then
        "$@"
    elif command -v sudo >/dev/null; then
        sudo -n "$@" || { [[ -t 0 ]] && sudo "$@"; }
    else
        return 1
    fi
}

# Runs apt-get update, at most once a script.
apt_update() {
    [[ -z ${apt_updated-} ]] || return 0
    apt_updated=1
    say 'updating the package lists (apt-get update)'
    as_root apt-get -qq update >&2
}

# need COMMAND PACKAGE…: installs the Debian packages if the command is missing.
need() {
    local command=$1
    shift
    ! command -v "$command" >/dev/null || return 0
    command -v apt-get >/dev/null || die "'$command' is missing; install it (on Debian: apt-get install $*)"
    say "installing $*"
    local install=(env DEBIAN_FRONTEND=noninteractive apt-get -qq -y --no-install-recommends install "$@")
    as_root "${install[@]}" >&2 || { apt_update && as_root "${install[@]}" >&2; } ||
        die "cannot install '$command'; as root: apt-get update && apt-get install $*"
}

# Quotes a word for any POSIX shell.
quote() { printf "'%s'" "${1//\'/\'\\\'\'}"; }

# Takes the lock of that name in the cache until the shell ends or closes $lock.
take_lock() {
    mkdir -p "$cache" || die "cannot create the cache directory '$cache'; set KICKVM_CACHE to another"
    exec {lock}>"$cache/$1.lock"
    flock "$lock"
}
