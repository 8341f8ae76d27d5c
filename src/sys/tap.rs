//! ioctls of tap interfaces (linux/if_tun.h).

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixDatagram;

/// Makes `tun`, an open /dev/net/tun, one end of the tap interface `name`, which is created if there is none. Frames have
/// a virtio header in front.
pub fn attach_tap(tun: &File, name: &str) -> io::Result<()> {
    let mut request = interface_request(name)?;
    request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as libc::c_short;
    // SAFETY: the call takes an `ifreq`, which is a live local.
    check(unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETIFF, &mut request) })
}

/// Says how long the virtio header of each frame is.
pub fn set_tap_header_size(tap: &File, size: libc::c_int) -> io::Result<()> {
    // SAFETY: the call reads an `int`, which is a live local.
    check(unsafe { libc::ioctl(tap.as_raw_fd(), libc::TUNSETVNETHDRSZ, &size) })
}

/// Says what may come out of the tap unfinished: `TUN_F_` flags.
pub fn set_tap_offloads(tap: &File, flags: libc::c_uint) -> io::Result<()> {
    // SAFETY: the call takes no pointer.
    check(unsafe { libc::ioctl(tap.as_raw_fd(), libc::TUNSETOFFLOAD, libc::c_ulong::from(flags)) })
}

/// The MTU of the network interface `name`; an error if there is none.
pub fn interface_mtu(name: &str) -> io::Result<i32> {
    let mut request = interface_request(name)?;
    let any_socket = UnixDatagram::unbound()?;
    // SAFETY: the call takes an `ifreq`, which is a live local.
    check(unsafe { libc::ioctl(any_socket.as_raw_fd(), libc::SIOCGIFMTU, &mut request) })?;
    // SAFETY: the call has just written this member of the union; all of them are plain numbers.
    Ok(unsafe { request.ifr_ifru.ifru_mtu })
}

fn interface_request(name: &str) -> io::Result<libc::ifreq> {
    // SAFETY: all zeros are a valid `ifreq`: an empty name, and numbers or null pointers.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if name.len() >= request.ifr_name.len() {
        return Err(io::Error::from_raw_os_error(libc::ENAMETOOLONG));
    }
    request.ifr_name.iter_mut().zip(name.bytes()).for_each(|(to, from)| *to = from as libc::c_char);
    Ok(request)
}

fn check(result: i32) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
