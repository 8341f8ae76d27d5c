//! Tap interfaces of the host: Ethernet frames to and from its network, each behind the header that virtio has too.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;

use crate::sys::os_error;
use crate::sys::tap;

/// Bytes of the header in front of each frame: `virtio_net_hdr_v1` (virtio 1.3, 5.1.6).
pub const HEADER: usize = 12;

/// What may come out of a tap with its work left to the guest: checksums, and segmentation of TCP.
pub const ALL_OFFLOADS: u32 = libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6 | libc::TUN_F_TSO_ECN;

const TUN: &str = "/dev/net/tun";
/// A Linux without an MTU to tell has this one.
const DEFAULT_MTU: i32 = 1500;
/// The least that Ethernet allows (linux/if_ether.h).
const MIN_MTU: u16 = 68;

/// One end of a tap interface.
#[derive(Debug)]
pub struct Tap {
    file: File,
    /// Which of [`ALL_OFFLOADS`] the host can do.
    pub offloads: u32,
    /// The interface's MTU, if it is not the usual one.
    pub mtu: Option<u16>,
}

/// Why a tap interface cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum TapError {
    /// No interface can have this name.
    #[error("an interface's name has 1 to 15 characters, and no space, '/', ':' or '%' among them")]
    Name,
    /// `/dev/net/tun` cannot be opened.
    #[error("cannot open /dev/net/tun: {}{}", os_error::describe(.0), tun_hint(.0))]
    Tun(io::Error),
    /// There is none, and it may not be created.
    #[error("there is none; make it with '{}'", add(.0))]
    Missing(String),
    /// It belongs to somebody else.
    #[error("it is not yours; make it so with '{}'", again(.0))]
    NotYours(String),
    /// It is given twice.
    #[error("it is an interface of this guest already")]
    Twice,
    /// Another program has it.
    #[error("another program uses it")]
    Busy,
    /// It is something else.
    #[error("it is no tap interface, or one with several queues; make another with '{}'", add("NAME"))]
    NoTap,
    /// The kernel refused.
    #[error("{}", os_error::describe(.0))]
    Host(io::Error),
}

fn add(name: &str) -> String {
    format!("sudo ip tuntap add mode tap user $USER name {name}")
}

fn again(name: &str) -> String {
    format!("sudo ip tuntap del mode tap name {name} && {}", add(name))
}

fn tun_hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::NotFound => "; load it with 'sudo modprobe tun'",
        io::ErrorKind::PermissionDenied => "; open it to everybody, as is usual, with 'sudo chmod 666 /dev/net/tun'",
        _ => "",
    }
}

impl Tap {
    /// Takes the tap interface `name`, or makes one that goes away with the program, which needs the right to.
    pub fn open(name: &str) -> Result<Self, TapError> {
        let odd = |c: char| matches!(c, '/' | ':' | '%') || c.is_whitespace() || c.is_control();
        if !(1..=15).contains(&name.len()) || matches!(name, "." | "..") || name.contains(odd) {
            return Err(TapError::Name);
        }
        let file = OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open(TUN);
        let file = file.map_err(TapError::Tun)?;
        tap::attach_tap(&file, name).map_err(|error| explain(name, error))?;
        tap::set_tap_header_size(&file, HEADER as i32).map_err(TapError::Host)?;
        let offloads = if tap::set_tap_offloads(&file, ALL_OFFLOADS).is_ok() { ALL_OFFLOADS } else { 0 };
        tap::set_tap_offloads(&file, 0).map_err(TapError::Host)?;
        let mtu = tap::interface_mtu(name).ok().filter(|mtu| *mtu != DEFAULT_MTU);
        let mtu = mtu.and_then(|mtu| u16::try_from(mtu).ok()).filter(|mtu| *mtu >= MIN_MTU);
        Ok(Self { file, offloads, mtu })
    }

    /// Sets what may come with its work left to the guest.
    pub fn set_offloads(&self, flags: u32) -> io::Result<()> {
        tap::set_tap_offloads(&self.file, flags)
    }

    /// Something else with the manners of a tap: a frame is read or written at once or not at all.
    #[cfg(test)]
    pub(super) fn stand_in(file: File) -> Self {
        Self { file, offloads: ALL_OFFLOADS, mtu: None }
    }
}

fn explain(name: &str, error: io::Error) -> TapError {
    match error.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) if tap::interface_mtu(name).is_ok() => TapError::NotYours(name.to_owned()),
        Some(libc::EPERM | libc::EACCES) => TapError::Missing(name.to_owned()),
        Some(libc::EBUSY) => TapError::Busy,
        Some(libc::EINVAL) => TapError::NoTap,
        _ => TapError::Host(error),
    }
}

impl AsFd for Tap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl AsRawFd for Tap {
    fn as_raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_no_interface_can_have_is_refused_before_the_kernel_is_asked() {
        for name in ["", ".", "..", "a/b", "a b", "tap%d", "eth0:1", "x\ny", "sixteen-letters!"] {
            assert!(matches!(Tap::open(name), Err(TapError::Name)), "{name:?}");
        }
    }

    #[test]
    fn what_is_missing_is_said_with_the_line_that_mends_it() {
        let say = |name, errno| explain(name, io::Error::from_raw_os_error(errno)).to_string();
        let line = "sudo ip tuntap add mode tap user $USER name kick7";
        assert_eq!(say("kick7", libc::EPERM), format!("there is none; make it with '{line}'"));
        assert!(say("lo", libc::EPERM).starts_with("it is not yours; "));
        assert_eq!(say("kick7", libc::EBUSY), "another program uses it");
    }
}
