//! What a command finds in the guest, whatever the root is.

use super::run::Exec;
use nix::sys::resource::{Resource, getrlimit};

on_both_kernels!(
    the_root_can_be_replaced,
    the_root_is_a_mounted_file_system,
    names_resolve,
    the_limit_of_open_files_is_that_of_the_host,
    file_systems_of_the_kernel_are_mounted
);
on_kernel!(
    ours_only,
    BzImage,
    other_users_can_open_the_standard_streams,
    users_can_ping,
    existing_names_are_kept,
    another_user,
    an_unknown_user
);

fn the_root_can_be_replaced(exec: Exec) {
    let script = "busybox mkdir /new && busybox mount -t tmpfs new /new && busybox mkdir /new/old /new/bin &&
        busybox cp /bin/busybox /new/bin && cd /new && busybox pivot_root . old && busybox ls /";
    exec.sh(script).assert(0, "bin\nold\n", "");
}

fn the_root_is_a_mounted_file_system(exec: Exec) {
    let exec = exec.options(&["--copy", "/bin/df"]);
    exec.sh("/bin/df --output=target /").assert(0, "Mounted on\n/\n", "");
}

fn names_resolve(exec: Exec) {
    let script = "for name in localhost kickvm; do busybox ping -c 1 -w 20 $name >/dev/null && echo $name; done";
    exec.sh(script).assert(0, "localhost\nkickvm\n", "");
}

fn existing_names_are_kept(exec: Exec) {
    let hosts = exec.scratch.file("hosts", b"10.0.0.9 kickvm # localhost\n");
    let exec = exec.options(&["--copy", &format!("{}:/etc/hosts", hosts.display())]);
    let expected = "10.0.0.9 kickvm # localhost\n127.0.0.1 localhost\n::1 localhost\n";
    exec.sh("busybox cat /etc/hosts").assert(0, expected, "");
}

fn the_limit_of_open_files_is_that_of_the_host(exec: Exec) {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    exec.sh("ulimit -Sn; ulimit -Hn").assert(0, &format!("{soft}\n{hard}\n"), "");
}

fn other_users_can_open_the_standard_streams(exec: Exec) {
    let script = "/usr/bin/setpriv --reuid 1000 --regid 1000 --clear-groups sh -c 'echo out >/dev/stdout; echo err >/dev/stderr; busybox cat /dev/stdin'";
    let ended = exec.options(&["--copy", "/usr/bin/setpriv"]).busybox().start(&["sh", "-c", script]).end_with(b"in\n");
    ended.assert(0, "out\nin\n", "err\n");
}

/// `SOCK_DGRAM` with `IPPROTO_ICMP` (icmp(7)) needs no privilege if the user's group is in the range.
fn users_can_ping(exec: Exec) {
    exec.sh("busybox cat /proc/sys/net/ipv4/ping_group_range").assert(0, "0\t2147483647\n", "");
}

/// The stock kernel has all of them, ours those of its configuration.
fn file_systems_of_the_kernel_are_mounted(exec: Exec) {
    let script =
        "while read -r _ name; do case $name in cgroup2|debugfs|tracefs|bpf|securityfs|configfs|hugetlbfs|mqueue)
        busybox grep -q \" $name rw\" /proc/mounts || echo $name;; esac; done <<end
$(busybox sed 's/^[^\t]*\t/x /' /proc/filesystems)
end";
    exec.sh(script).assert(0, "", "");
}

fn another_user(exec: Exec) {
    let passwd = exec.scratch.file("passwd", b"builder:x:1000:100::/home:/bin/ash\n");
    let group = exec.scratch.file("group", b"users:x:100:\nkvm:x:107:builder\n");
    let copy = |host: &std::path::Path, guest: &str| format!("{}:{guest}", host.display());
    let (passwd, group) = (copy(&passwd, "/etc/passwd"), copy(&group, "/etc/group"));
    let exec = exec.options(&["--copy", &passwd, "--copy", &group, "--user", "builder", "--env", "SHELL=/x"]);
    let script = "busybox id; echo $HOME $USER $LOGNAME $SHELL; echo >/dev/stdout; (echo >/dev/kmsg) 2>/dev/null || echo no root";
    let expected = "uid=1000(builder) gid=100(users) groups=100(users),107(kvm)\n/home builder builder /x\n\nno root\n";
    exec.sh(script).assert(0, expected, "");
}

fn an_unknown_user(exec: Exec) {
    let line = "kickvm: no user 'nobody' in /etc/passwd of the guest; a number needs no entry\n";
    exec.options(&["--user", "nobody"]).sh("true").assert(125, "", line);
}
