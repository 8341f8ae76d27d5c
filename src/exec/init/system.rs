//! What a command expects to find in a running Linux: file systems, names, a loopback device.

use std::fs;
use std::os::fd::AsRawFd;
use std::os::unix::fs::symlink;
use std::path::Path;

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, send, socket};
use nix::sys::statfs::{TMPFS_MAGIC, statfs};

/// The guest's name for itself.
const HOST_NAME: &str = "kickvm";

/// Mounts what init itself cannot do without.
pub fn mount_essential() -> Result<(), String> {
    for (kind, path) in [("proc", "/proc"), ("devtmpfs", "/dev")] {
        mount_at(kind, path, None).map_err(|error| format!("cannot mount {kind}: {error}"))?;
    }
    Ok(())
}

/// Does the rest. Returns what did not work; a command may do without.
pub fn set_up() -> Vec<String> {
    let mut warnings = Vec::new();
    let mut warn = |what: &str, done: nix::Result<()>| match done {
        // What a kernel was built without is nobody's mistake.
        Ok(()) | Err(Errno::ENODEV | Errno::EAFNOSUPPORT | Errno::ENOSYS) => {}
        Err(error) => warnings.push(format!("cannot {what} in the guest: {error}")),
    };
    warn("mount sysfs", mount_at("sysfs", "/sys", None));
    warn("mount devpts", mount_at("devpts", "/dev/pts", Some("gid=5,mode=620,ptmxmode=666")));
    warn("mount /dev/shm", mount_at("tmpfs", "/dev/shm", Some("mode=1777")));
    for (path, options) in [("/tmp", "mode=1777"), ("/run", "mode=755")] {
        // Files that came with the root stay to be seen.
        if is_empty(path) {
            warn("mount a tmpfs", mount_at("tmpfs", path, Some(options)));
        }
    }
    for (target, link) in [("/proc/self/fd", "fd"), ("fd/0", "stdin"), ("fd/1", "stdout"), ("fd/2", "stderr")] {
        let _ = symlink(target, Path::new("/dev").join(link)); // it may be there
    }
    if statfs("/").is_ok_and(|fs| fs.filesystem_type() == TMPFS_MAGIC) {
        // By default it may take half of the memory, and an inode for each page of that; here nearly everything is in it.
        let options = Some("size=90%,nr_inodes=0"); // as many as there may be
        let _ = mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REMOUNT, options); // so be it
    }
    warn("set the host name", nix::unistd::sethostname(HOST_NAME));
    warn("start the loopback device", start_loopback());
    warnings
}

/// The kernel's banner.
pub fn kernel() -> String {
    fs::read_to_string("/proc/version").unwrap_or_default().trim_end().to_owned()
}

fn is_empty(path: &str) -> bool {
    fs::read_dir(path).map_or(true, |mut entries| entries.next().is_none())
}

/// Mounts a file system of this kind, unless it is mounted already.
fn mount_at(kind: &str, path: &str, options: Option<&str>) -> nix::Result<()> {
    let _ = fs::create_dir_all(path); // it may be there
    match mount(Some(kind), path, Some(kind), MsFlags::empty(), options) {
        Err(Errno::EBUSY) => Ok(()),
        done => done,
    }
}

/// Sets the flag "up" of device 1, which is the loopback device; with it come its addresses.
fn start_loopback() -> nix::Result<()> {
    let kernel = SockProtocol::NetlinkRoute;
    let socket = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, kernel)?;
    const UP: u32 = libc::IFF_UP as u32;
    let mut message = Vec::new();
    // nlmsghdr (linux/netlink.h): length, type, flags, sequence number, port.
    message.extend(32u32.to_ne_bytes());
    message.extend(libc::RTM_NEWLINK.to_ne_bytes());
    message.extend((libc::NLM_F_REQUEST as u16).to_ne_bytes());
    message.extend([0; 8]);
    // ifinfomsg (linux/rtnetlink.h): family and padding, device type, index, flags, which flags change.
    message.extend([0; 4]);
    message.extend(1u32.to_ne_bytes());
    message.extend(UP.to_ne_bytes());
    message.extend(UP.to_ne_bytes());
    send(socket.as_raw_fd(), &message, MsgFlags::empty()).map(drop)
}
