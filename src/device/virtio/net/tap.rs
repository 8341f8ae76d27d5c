//! Tap interfaces of the host. Each Ethernet frame has the header that a virtio driver uses too.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;

use super::HEADER_LEN;
use crate::device::virtio::HostError;
use crate::sys::{os_error, tap};

/// The work on received frames that a guest can do: checksums and TCP segmentation.
const OFFLOADS: u32 = libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6 | libc::TUN_F_TSO_ECN;

const TUN: &str = "/dev/net/tun";
/// The MTU of a Linux driver without VIRTIO_NET_F_MTU.
const DEFAULT_MTU: i32 = 1500;
/// The smallest MTU of IPv4 (`ETH_MIN_MTU` in linux/if_ether.h).
const MIN_MTU: u16 = 68;

/// A tap interface that is attached to this process.
#[derive(Debug)]
pub struct Tap {
    /// The device, from which frames are read and to which they are written.
    pub file: File,
    /// Whether checksums and TCP segmentation of received frames can be left to the guest.
    pub offloads: bool,
    /// The MTU of the interface, unless the guest has the same by default.
    pub mtu: Option<u16>,
}

impl Tap {
    /// Attaches to the tap interface `name`. If it does not exist, it is created for the lifetime of the process, which
    /// requires CAP_NET_ADMIN.
    ///
    /// # Errors
    ///
    /// The name is invalid, the interface cannot be created, it is in use or not a tap, or a system call failed.
    pub fn open(name: &str) -> Result<Self, HostError> {
        let invalid = |c: char| matches!(c, '/' | ':' | '%') || c.is_whitespace() || c.is_control();
        if !(1..=15).contains(&name.len()) || matches!(name, "." | "..") || name.contains(invalid) {
            let why = "an interface name has 1 to 15 characters, none of them a space, '/', ':' or '%'";
            return Err(HostError(why.to_owned()));
        }
        let host = |error| HostError(os_error::describe(&error));
        let file = OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open(TUN);
        let file = file.map_err(|error| open_error(&error))?;
        tap::attach(&file, name).map_err(|error| attach_error(name, &error))?;
        #[expect(clippy::cast_possible_truncation, clippy::cast_possible_wrap, reason = "the header has 12 bytes")]
        tap::set_header_len(&file, HEADER_LEN as i32).map_err(host)?;
        let offloads = tap::set_offloads(&file, OFFLOADS).is_ok();
        tap::set_offloads(&file, 0).map_err(host)?;
        let mtu = tap::interface_mtu(name).ok().filter(|mtu| *mtu != DEFAULT_MTU);
        let mtu = mtu.and_then(|mtu| u16::try_from(mtu).ok()).filter(|mtu| *mtu >= MIN_MTU);
        Ok(Self { file, offloads, mtu })
    }

    /// Makes a tap of a file that transfers whole frames, as a tap does.
    #[cfg(test)]
    pub(super) fn from_file(file: File) -> Self {
        Self { file, offloads: true, mtu: None }
    }
}

fn open_error(error: &io::Error) -> HostError {
    let hint = match error.kind() {
        io::ErrorKind::NotFound => "; load the driver with 'sudo modprobe tun'",
        io::ErrorKind::PermissionDenied => "; give all users access, as usual, with 'sudo chmod 666 /dev/net/tun'",
        _ => "",
    };
    HostError(format!("cannot open {TUN}: {}{hint}", os_error::describe(error)))
}

fn attach_error(name: &str, error: &io::Error) -> HostError {
    let create = |name: &str| format!("sudo ip tuntap add mode tap user $USER name {name}");
    HostError(match error.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) if tap::interface_mtu(name).is_ok() => {
            let delete = format!("sudo ip tuntap del mode tap name {name}");
            format!("it belongs to another user; replace it with '{delete} && {}'", create(name))
        }
        Some(libc::EPERM | libc::EACCES) => format!("no such interface; create it with '{}'", create(name)),
        Some(libc::EBUSY) => "another program uses it; stop that program or use another tap".to_owned(),
        Some(libc::EINVAL) => format!("it is not a tap interface with one queue; create one with '{}'", create("NAME")),
        _ => os_error::describe(error),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_invalid_interface_name_is_rejected_before_any_system_call() {
        for name in ["", ".", "..", "a/b", "a b", "tap%d", "eth0:1", "x\ny", "sixteen-letters!"] {
            let error = Tap::open(name).unwrap_err().to_string();
            assert!(error.starts_with("an interface name has 1 to 15 characters"), "{name:?}: {error}");
        }
    }

    #[test]
    fn the_message_of_an_attach_error_has_the_command_that_fixes_it() {
        let message = |name, errno| attach_error(name, &io::Error::from_raw_os_error(errno)).to_string();
        let command = "sudo ip tuntap add mode tap user $USER name kick7";
        assert_eq!(message("kick7", libc::EPERM), format!("no such interface; create it with '{command}'"));
        assert!(message("lo", libc::EPERM).starts_with("it belongs to another user; "));
        assert_eq!(message("kick7", libc::EBUSY), "another program uses it; stop that program or use another tap");
    }
}
