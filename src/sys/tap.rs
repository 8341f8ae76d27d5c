//! ioctls of tap interfaces (linux/if_tun.h).

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixDatagram;

use nix::errno::Errno;

/// Attaches `tun`, an open /dev/net/tun, to the tap interface `name`, which is created if it does not exist. Each frame
/// has a virtio header in front.
///
/// # Errors
///
/// The name is too long, or the error of `TUNSETIFF`.
#[expect(clippy::cast_possible_truncation, reason = "the flags have 15 bits")]
pub fn attach(tun: &File, name: &str) -> io::Result<()> {
    let mut request = interface_request(name)?;
    request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as libc::c_short;
    // SAFETY: the call takes an `ifreq`, which is a live local.
    Ok(Errno::result(unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETIFF, &mut request) }).map(drop)?)
}

/// Sets the length of the virtio header.
///
/// # Errors
///
/// The error of `TUNSETVNETHDRSZ`.
pub fn set_header_len(tap: &File, len: libc::c_int) -> io::Result<()> {
    // SAFETY: the call reads an `int`, which is a live local.
    Ok(Errno::result(unsafe { libc::ioctl(tap.as_raw_fd(), libc::TUNSETVNETHDRSZ, &len) }).map(drop)?)
}

/// Sets which work on received frames is left to the reader of the tap: `TUN_F_*` flags.
///
/// # Errors
///
/// The error of `TUNSETOFFLOAD`.
pub fn set_offloads(tap: &File, flags: libc::c_uint) -> io::Result<()> {
    // SAFETY: the call takes no pointer.
    Ok(Errno::result(unsafe { libc::ioctl(tap.as_raw_fd(), libc::TUNSETOFFLOAD, libc::c_ulong::from(flags)) })
        .map(drop)?)
}

/// Returns the MTU of the network interface `name`.
///
/// # Errors
///
/// There is no such interface, or no socket can be created.
pub fn interface_mtu(name: &str) -> io::Result<i32> {
    let mut request = interface_request(name)?;
    let any_socket = UnixDatagram::unbound()?;
    // SAFETY: the call takes an `ifreq`, which is a live local.
    Errno::result(unsafe { libc::ioctl(any_socket.as_raw_fd(), libc::SIOCGIFMTU, &mut request) })?;
    // SAFETY: the call has just written this member of the union; all of them are plain numbers.
    Ok(unsafe { request.ifr_ifru.ifru_mtu })
}

fn interface_request(name: &str) -> io::Result<libc::ifreq> {
    // SAFETY: all zeros are a valid `ifreq`: an empty name, and numbers or null pointers.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if name.len() >= request.ifr_name.len() {
        return Err(io::Error::from_raw_os_error(libc::ENAMETOOLONG));
    }
    request.ifr_name.iter_mut().zip(name.bytes()).for_each(|(to, from)| *to = from.cast_signed());
    Ok(request)
}
