//! System calls of the event floor other than epoll: eventfd, timerfd and signalfd.
//!
//! Every descriptor made here is non-blocking and close-on-exec. It is returned as a [`File`], so that reading and
//! writing it needs no `unsafe` code. All `unsafe` code of the floor is in this file and in `epoll.rs`.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, FromRawFd};
use std::ptr;
use std::time::Duration;

/// Creates an eventfd. Each write to it is one edge for an edge-triggered watcher.
#[cfg(feature = "remote_endpoint")]
pub(super) fn eventfd() -> io::Result<File> {
    // SAFETY: the call takes no pointer and returns a new descriptor.
    unsafe { owned(libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK)) }
}

/// Creates a disarmed timer on the monotonic clock.
pub(super) fn timerfd() -> io::Result<File> {
    // SAFETY: the call takes no pointer and returns a new descriptor.
    unsafe { owned(libc::timerfd_create(libc::CLOCK_MONOTONIC, libc::TFD_CLOEXEC | libc::TFD_NONBLOCK)) }
}

/// Arms `timer` to expire after `first`, then every `period` unless `period` is zero. A `first` of zero disarms it.
pub(super) fn set_timer(timer: &File, first: Duration, period: Duration) -> io::Result<()> {
    let setting = libc::itimerspec { it_value: timespec(first), it_interval: timespec(period) };
    // SAFETY: `setting` is a live local that the kernel only reads. The null pointer discards the old setting.
    check(unsafe { libc::timerfd_settime(timer.as_raw_fd(), 0, &setting, ptr::null_mut()) }).map(drop)
}

/// Blocks `signals` for this thread and creates a descriptor that is readable while one of them is pending.
pub(super) fn signalfd(signals: &[i32]) -> io::Result<File> {
    // SAFETY: `sigset_t` is an array of integers, for which all zeros is a valid value.
    let mut set = unsafe { std::mem::zeroed() };
    // SAFETY: `set` is a live local of the right type.
    check(unsafe { libc::sigemptyset(&mut set) })?;
    for &signal in signals {
        // SAFETY: `set` is a live, initialised local. An invalid signal number is reported as an error.
        check(unsafe { libc::sigaddset(&mut set, signal) })?;
    }
    // SAFETY: `set` is a live, initialised local that the call only reads; -1 requests a new descriptor.
    let file = unsafe { owned(libc::signalfd(-1, &set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK)) }?;
    // SAFETY: `set` as above. The null pointer discards the old mask.
    match unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &set, ptr::null_mut()) } {
        0 => Ok(file),
        errno => Err(io::Error::from_raw_os_error(errno)),
    }
}

/// Reads one whole record. Returns `None` if there is nothing to read now.
pub(super) fn read_record<const SIZE: usize>(mut file: &File) -> io::Result<Option<[u8; SIZE]>> {
    let mut record = [0; SIZE];
    match file.read_exact(&mut record) {
        Ok(()) => Ok(Some(record)),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
        Err(error) => Err(error),
    }
}

/// Converts a duration to the kernel's format. A duration out of range becomes the longest one that fits.
fn timespec(duration: Duration) -> libc::timespec {
    libc::timespec {
        tv_sec: libc::time_t::try_from(duration.as_secs()).unwrap_or(libc::time_t::MAX),
        tv_nsec: duration.subsec_nanos().into(),
    }
}

/// Turns the return value of a system call into a `Result`.
#[inline]
pub(super) fn check(result: i32) -> io::Result<i32> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Takes ownership of the descriptor that a system call returned.
///
/// # Safety
///
/// `result` must be the return value of a system call that creates a descriptor, and must not be used again.
pub(super) unsafe fn owned<T: FromRawFd>(result: i32) -> io::Result<T> {
    // SAFETY: the caller guarantees that the descriptor is new, so that nothing else owns it.
    check(result).map(|fd| unsafe { T::from_raw_fd(fd) })
}

/// Implements the descriptor traits for a type, by one of its fields.
macro_rules! impl_as_fd {
    ($type:ty, $($field:tt)+) => {
        impl std::os::fd::AsFd for $type {
            fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
                std::os::fd::AsFd::as_fd(&self.$($field)+)
            }
        }

        impl std::os::fd::AsRawFd for $type {
            #[inline]
            fn as_raw_fd(&self) -> std::os::fd::RawFd {
                std::os::fd::AsRawFd::as_raw_fd(&self.$($field)+)
            }
        }
    };
}
pub(super) use impl_as_fd;
