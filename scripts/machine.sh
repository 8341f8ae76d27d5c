# shellcheck shell=bash
# A new machine: a minimal Debian 12 in a directory, which is removed afterwards. Sourced after lib.sh by a script that
# defines `inside`, and then calls `new_machine "$@"`. It needs root and some GiB below TMPDIR (/var/tmp).
release=bookworm
bundle=/etc/ssl/certs/ca-certificates.crt

# --- In namespaces of its own ---

# This host's archives of the release, as lines of sources.list. The security archive has the source of the guest
# kernel.
archives() {
    # shellcheck disable=SC2016 # apt's variables.
    apt-get indextargets --format 'deb $(SITE) $(RELEASE) main' 'Created-By: Packages' |
        grep -E " $release(-updates|-security)? main$" | sort -u ||
        printf 'deb http://deb.debian.org/%s main\n' "debian $release" "debian-security $release-security"
}

# install_debian DIRECTORY PACKAGE,…
install_debian() {
    local sources mirror file new=$1
    sources=$(archives)
    mirror=$(awk -v release="$release" '$3 == release { print $2; exit }' <<<"$sources")
    mkdir "$new"
    mount --bind "$new" "$new"
    say "installing a minimal Debian $release from $mirror"
    debootstrap --variant=minbase --include="$2" "$release" "$new" "$mirror" >"$new.log" 2>&1 ||
        { tail -n 20 "$new.log" >&2; die 'debootstrap failed'; }
    echo "$sources" >"$new/etc/apt/sources.list"
    apt-config dump | grep -E '^Acquire::(Check-|(ftp|http|https)::(Proxy|CaInfo|Verify-Peer))' \
        >"$new/etc/apt/apt.conf.d/99host" || true
    # As in an image for containers.
    rm -rf "$new"/var/lib/apt/lists/*
    for file in /etc/resolv.conf /etc/hosts "$bundle"; do
        [[ ! -e $file || ! -d $new${file%/*} ]] || cp -L "$file" "$new$file"
    done
}

# Makes the directory the root.
enter() {
    mount -t proc proc "$1/proc"
    mount --rbind /sys "$1/sys"
    mount --rbind /dev "$1/dev"
    # Not by chroot(2), after which no process may make a user namespace (clone(2), EPERM).
    mkdir "$1/old"
    cd "$1" || die "cannot enter '$1'"
    pivot_root . old
    cd /
    hash -r
    umount --lazy /old
    rmdir /old
    environment=(HOME=/root LANG=C.UTF-8 PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin)
}

# --- Outside ---

# shellcheck disable=SC2317 # Called by a trap.
clean_up() {
    local first
    if [[ -n $namespaces ]]; then
        # The first process takes all others in its namespace with it, and their mounts; unshare waits for that.
        first=$(pgrep -P "$namespaces") || first=$namespaces
        kill -KILL "$first" 2>/dev/null || true
        wait "$namespaces" 2>/dev/null || true
    fi
    rm -rf --one-file-system "$dir"
}

# new_machine ARGUMENT…: calls `inside DIRECTORY ARGUMENT…` in namespaces of its own, and ends with its status.
new_machine() {
    if [[ ${1-} == --inside ]]; then
        inside "${@:2}"
        exit
    fi
    ((EUID == 0)) || die "$0 makes mounts; run it as root"
    need debootstrap debootstrap
    need pgrep procps
    need unshare util-linux
    dir=$(mktemp -d "${TMPDIR:-/var/tmp}/kickvm-machine.XXXXXX")
    chmod 755 "$dir"
    namespaces=''
    trap clean_up EXIT
    trap 'exit 129' HUP
    trap 'exit 130' INT
    trap 'exit 143' TERM
    unshare --mount --propagation private --pid --fork --kill-child "$0" --inside "$dir/root" "$@" &
    namespaces=$!
    status=0
    wait "$namespaces" || status=$?
    namespaces=''
    exit "$status"
}
