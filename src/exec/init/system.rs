//! Setting up what a command expects of a running Linux system: file systems, device links, a host name, the loopback
//! device.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::symlink;
use std::path::Path;

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, send, socket};
use nix::sys::statfs::{TMPFS_MAGIC, statfs};
use nix::unistd::{chdir, chroot, sethostname};

use crate::exec::job::DIRECTORY;

/// The guest's host name.
const HOST_NAME: &str = "kickvm";

/// File systems that not every kernel has, and where systemd mounts them.
const OPTIONAL: [(&str, &str); 8] = [
    ("cgroup2", "/sys/fs/cgroup"),
    ("debugfs", "/sys/kernel/debug"),
    ("tracefs", "/sys/kernel/tracing"),
    ("bpf", "/sys/fs/bpf"),
    ("securityfs", "/sys/kernel/security"),
    ("configfs", "/sys/kernel/config"),
    ("hugetlbfs", "/dev/hugepages"),
    ("mqueue", "/dev/mqueue"),
];

/// Makes the root a mount that can be replaced and has a parent, as pivot_root(2) requires: a bind mount of the initial
/// one. The kernel's own threads share this change with the first process (CLONE_FS in rest_init, init/main.c).
///
/// # Errors
///
/// The error of the system call. The root is still the initial one then.
fn leave_initial_root() -> nix::Result<()> {
    let none = None::<&str>;
    mount(Some("/"), DIRECTORY, none, MsFlags::MS_BIND, none)?;
    chdir(DIRECTORY)?;
    mount(Some("."), "/", none, MsFlags::MS_MOVE, none)?;
    chroot(".")
}

/// Mounts the file systems that init itself needs.
///
/// # Errors
///
/// The kernel refuses a mount. The error is a message for the user.
pub fn mount_essential() -> Result<(), String> {
    leave_initial_root().map_err(super::cannot("bind the root directory"))?;
    for (kind, path) in [("proc", "/proc"), ("devtmpfs", "/dev")] {
        mount_at(kind, path, None).map_err(super::cannot(format_args!("mount {kind}")))?;
    }
    Ok(())
}

/// Sets up the rest. Returns a warning for each part that failed. `is_host`: the root is that of the host, whose
/// services do not run here.
pub fn set_up(is_host: bool) -> Vec<String> {
    let mut warnings = Vec::new();
    let mut warn = |action: &str, result: nix::Result<()>| match result {
        // The kernel was built without it.
        Ok(()) | Err(Errno::ENODEV | Errno::EAFNOSUPPORT | Errno::ENOSYS) => {}
        Err(error) => warnings.push(format!("cannot {action} in the guest: {error}")),
    };
    warn("mount sysfs", mount_at("sysfs", "/sys", None));
    warn("mount devpts", mount_at("devpts", "/dev/pts", Some("gid=5,mode=620,ptmxmode=666")));
    warn("mount /dev/shm", mount_at("tmpfs", "/dev/shm", Some("mode=1777")));
    for (path, options) in [("/tmp", "mode=1777"), ("/run", "mode=755")] {
        // A mount would hide the files of the root file system.
        if is_host && path == "/run" || !fs::read_dir(path).is_ok_and(|mut entries| entries.next().is_some()) {
            warn("mount a tmpfs", mount_at("tmpfs", path, Some(options)));
        }
    }
    for (kind, path) in OPTIONAL {
        match mount_at(kind, path, None) {
            Err(Errno::ENOENT) => {} // the kernel has no directory for it in sysfs
            result => warn(&format!("mount {kind}"), result),
        }
    }
    for (target, link) in [("/proc/self/fd", "fd"), ("fd/0", "stdin"), ("fd/1", "stdout"), ("fd/2", "stderr")] {
        let _ = symlink(target, Path::new("/dev").join(link)); // fails if it exists
    }
    if statfs("/").is_ok_and(|fs| fs.filesystem_type() == TMPFS_MAGIC) {
        // By default a tmpfs takes half of the memory at most, and one inode per page of that (tmpfs(5)). This one
        // holds the whole root file system. 0 means no limit; if the remount fails, the defaults remain.
        let options = Some("size=90%,nr_inodes=0");
        let _ = mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REMOUNT, options);
    }
    warn("set the host name", sethostname(HOST_NAME));
    warn("start the loopback device", start_loopback());
    warn("add names to /etc/hosts", add_names().map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(0))));
    // All groups may send ICMP echo requests (Documentation/networking/ip-sysctl.rst). Fails without networking.
    let _ = fs::write("/proc/sys/net/ipv4/ping_group_range", "0 2147483647");
    warnings
}

/// Adds the names of the guest itself to /etc/hosts, unless they are there.
fn add_names() -> io::Result<()> {
    let hosts = fs::read_to_string("/etc/hosts").unwrap_or_default();
    let has = |name: &str| {
        hosts.lines().any(|line| {
            line.split('#').next().unwrap_or_default().split_whitespace().skip(1).any(|known| known == name)
        })
    };
    let own = [("localhost", "127.0.0.1 localhost\n::1 localhost\n"), (HOST_NAME, "127.0.1.1 kickvm\n")];
    let missing: String = own.iter().filter(|(name, _)| !has(name)).map(|(_, line)| *line).collect();
    if missing.is_empty() {
        return Ok(());
    }
    fs::create_dir_all("/etc")?;
    OpenOptions::new().create(true).append(true).open("/etc/hosts")?.write_all(missing.as_bytes())
}

/// Mounts a file system of type `kind`, unless one is mounted there.
/// Mounts a file system of this kind at `path`, unless that has been done.
pub fn mount_at(kind: &str, path: &str, options: Option<&str>) -> nix::Result<()> {
    let _ = fs::create_dir_all(path); // if this fails, so does the mount
    match mount(Some(kind), path, Some(kind), MsFlags::empty(), options) {
        Err(Errno::EBUSY) => Ok(()),
        result => result,
    }
}

/// Sets IFF_UP for interface 1, the loopback device. The kernel then assigns its addresses.
fn start_loopback() -> nix::Result<()> {
    let socket = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkRoute)?;
    const TYPE: u32 = libc::RTM_NEWLINK as u32;
    const FLAGS: u32 = libc::NLM_F_REQUEST as u32;
    const UP: u32 = libc::IFF_UP as u32;
    // nlmsghdr (linux/netlink.h): length in bytes, type and flags (16 bits each), sequence number, port.
    // ifinfomsg (linux/rtnetlink.h): family and device type (any), index, flags, mask of the flags to change.
    let message = [32, TYPE | FLAGS << 16, 0, 0, 0, 1, UP, UP].map(u32::to_le_bytes);
    send(socket.as_raw_fd(), message.as_flattened(), MsgFlags::empty()).map(drop)
}
