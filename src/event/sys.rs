//! The descriptors the event core makes besides epoll: eventfd, timerfd, signalfd. All are non-blocking and closed
//! on exec. They come as [`File`]s, so that reading and writing them needs no `unsafe`; this file and `epoll.rs`
//! are the only ones with any.

use std::fs::File;
use std::io::{self, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, FromRawFd};
use std::ptr;
use std::time::Duration;

/// A counter that is readable while it is not zero, and wakes an edge-triggered watcher at each write.
#[cfg(feature = "remote_endpoint")]
pub(super) fn eventfd() -> io::Result<File> {
    // SAFETY: the call takes no pointer.
    owned(unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) })
}

/// A timer of the monotonic clock, disarmed.
pub(super) fn timerfd() -> io::Result<File> {
    // SAFETY: the call takes no pointer.
    owned(unsafe { libc::timerfd_create(libc::CLOCK_MONOTONIC, libc::TFD_CLOEXEC | libc::TFD_NONBLOCK) })
}

/// Arms a timer to expire after `first`, and then every `period` unless that is zero. A `first` of zero disarms it.
pub(super) fn set_timer(timer: &File, first: Duration, period: Duration) -> io::Result<()> {
    let setting = libc::itimerspec { it_value: timespec(first), it_interval: timespec(period) };
    // SAFETY: `setting` is a live local, which the kernel only reads; a null pointer says that the old setting is
    // not wanted.
    check(unsafe { libc::timerfd_settime(timer.as_raw_fd(), 0, &setting, ptr::null_mut()) })
}

/// Blocks `signals` for this thread, and makes a descriptor that is readable while one of them is pending.
pub(super) fn signalfd(signals: &[i32]) -> io::Result<File> {
    let mut set = MaybeUninit::uninit();
    // SAFETY: the call initialises the set it is given memory for.
    check(unsafe { libc::sigemptyset(set.as_mut_ptr()) })?;
    // SAFETY: `sigemptyset` has just initialised it.
    let mut set = unsafe { set.assume_init() };
    for &signal in signals {
        // SAFETY: `set` is an initialised local; a number that is no signal is an error code, not a fault.
        check(unsafe { libc::sigaddset(&mut set, signal) })?;
    }
    // SAFETY: `set` is an initialised local, which both calls only read; -1 asks for a new descriptor.
    let file = owned(unsafe { libc::signalfd(-1, &set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) })?;
    // SAFETY: as above; a null pointer says that the old mask is not wanted.
    match unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &set, ptr::null_mut()) } {
        0 => Ok(file),
        errno => Err(io::Error::from_raw_os_error(errno)),
    }
}

/// Reads one whole record, or `None` if there is none to read now.
pub(super) fn read<const SIZE: usize>(mut file: &File) -> io::Result<Option<[u8; SIZE]>> {
    let mut record = [0; SIZE];
    match file.read_exact(&mut record) {
        Ok(()) => Ok(Some(record)),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
        Err(error) => Err(error),
    }
}

/// A duration as the kernel wants it; one it cannot express becomes the longest it can.
fn timespec(duration: Duration) -> libc::timespec {
    libc::timespec {
        tv_sec: libc::time_t::try_from(duration.as_secs()).unwrap_or(libc::time_t::MAX),
        tv_nsec: duration.subsec_nanos().into(),
    }
}

fn check(result: i32) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Takes a new descriptor over from the call that made it.
fn owned(fd: i32) -> io::Result<File> {
    check(fd)?;
    // SAFETY: the kernel has just made this descriptor, and nobody else knows its number.
    Ok(unsafe { File::from_raw_fd(fd) })
}
