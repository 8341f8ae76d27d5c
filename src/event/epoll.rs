//! The kernel's `epoll(7)`, wrapped one to one: a set of file descriptors, and a call that waits until one of them
//! is ready.
//!
//! Everything else in [`event`](super) stands on the three calls here: [`Epoll::new`], [`Epoll::ctl`] and
//! [`Epoll::wait`] (with [`Epoll::fill`], the same wait for a buffer nobody has to initialise first).

use std::fmt;
use std::io;
use std::mem::size_of;
use std::ops::Deref;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use bitflags::bitflags;
use libc::epoll_event;

/// The most events one wait can return: the kernel takes no buffer of 2 GiB or more (`EP_MAX_EVENTS` in Linux's
/// `fs/eventpoll.c`).
pub const MAX_READY_EVENTS_CAPACITY: usize = i32::MAX as usize / size_of::<EpollEvent>();

/// What [`Epoll::ctl`] does with a file descriptor.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(i32)]
pub enum ControlOperation {
    /// Watch a descriptor that is not watched yet.
    Add = libc::EPOLL_CTL_ADD,
    /// Change the events or the data word of a watched descriptor.
    Modify = libc::EPOLL_CTL_MOD,
    /// Stop watching a descriptor; the event that goes with it is ignored.
    Delete = libc::EPOLL_CTL_DEL,
}

bitflags! {
    /// What to watch a descriptor for, and what happened on it: a set of `EPOLL*` bits.
    ///
    /// Bits without a name here are kept as they are, so that a newer kernel can report what it likes.
    #[derive(Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
    pub struct EventSet: u32 {
        /// There is something to read.
        const IN = libc::EPOLLIN as u32;
        /// There is room to write.
        const OUT = libc::EPOLLOUT as u32;
        /// An error is pending. Always watched, whether asked for or not.
        const ERROR = libc::EPOLLERR as u32;
        /// The peer shut down its writing half of a stream socket.
        const READ_HANG_UP = libc::EPOLLRDHUP as u32;
        /// Report a change once, instead of a state for as long as it lasts.
        const EDGE_TRIGGERED = libc::EPOLLET as u32;
        /// The other end is gone. Always watched, whether asked for or not.
        const HANG_UP = libc::EPOLLHUP as u32;
        /// There is an exceptional condition, such as out-of-band data.
        const PRIORITY = libc::EPOLLPRI as u32;
        /// There is data of a priority band to read. Linux reports it for few files; [`PRIORITY`](Self::PRIORITY) is the one
        /// sockets use.
        const READ_BAND = libc::EPOLLRDBAND as u32;
        /// There is room to write data of a priority band.
        const WRITE_BAND = libc::EPOLLWRBAND as u32;
        /// Keep the system from suspending while the event is being handled.
        const WAKE_UP = libc::EPOLLWAKEUP as u32;
        /// Report one event, then fall silent until the next [`ControlOperation::Modify`].
        const ONE_SHOT = libc::EPOLLONESHOT as u32;
        /// Wake one of the epoll instances that watch the same file instead of all. Only for
        /// [`ControlOperation::Add`], and what was added so cannot be modified. Goes with few other flags (epoll_ctl(2)).
        const EXCLUSIVE = libc::EPOLLEXCLUSIVE as u32;

        // Every other bit is valid too.
        const _ = !0;
    }
}

/// One event: what happened, and the data word its descriptor was registered with.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub struct EpollEvent(epoll_event);

impl EpollEvent {
    /// Makes an event to register with [`Epoll::ctl`]. The kernel hands `data` back untouched; often it is the
    /// descriptor's number.
    ///
    /// ```
    /// use kickvm::event::{EpollEvent, EventSet};
    ///
    /// let event = EpollEvent::new(EventSet::IN | EventSet::EDGE_TRIGGERED, 42);
    /// assert_eq!(event.data(), 42);
    /// assert!(event.event_set().contains(EventSet::IN));
    /// ```
    #[inline]
    pub const fn new(events: EventSet, data: u64) -> Self {
        EpollEvent(epoll_event { events: events.bits(), u64: data })
    }

    /// The events as bare bits.
    #[inline]
    pub const fn events(&self) -> u32 {
        self.0.events
    }

    /// The events as a set; bits without a name stay in it.
    #[inline]
    pub const fn event_set(&self) -> EventSet {
        EventSet::from_bits_retain(self.events())
    }

    /// The data word given at registration.
    #[inline]
    pub const fn data(&self) -> u64 {
        self.0.u64
    }

    /// The low 32 bits of the data word, for those who keep a descriptor there.
    #[inline]
    pub const fn fd(&self) -> RawFd {
        self.data() as RawFd
    }
}

impl Default for EpollEvent {
    fn default() -> Self {
        EpollEvent::new(EventSet::empty(), 0)
    }
}

impl fmt::Debug for EpollEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{{ events: {}, data: {} }}", self.events(), self.data())
    }
}

impl Deref for EpollEvent {
    type Target = epoll_event;

    fn deref(&self) -> &epoll_event {
        &self.0
    }
}

/// An epoll instance. It is closed on drop and on exec; a clone is a second handle to the same instance.
#[derive(Debug)]
pub struct Epoll(OwnedFd);

impl Epoll {
    /// Makes an empty instance.
    ///
    /// # Errors
    ///
    /// The kernel's: too many open files, or no memory.
    pub fn new() -> io::Result<Self> {
        // SAFETY: the call takes no pointer.
        let fd = check(unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) })?;
        // SAFETY: the kernel has just made this descriptor, and nobody else knows its number.
        Ok(Epoll(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// A second handle to the same instance, for another thread to register with.
    ///
    /// # Errors
    ///
    /// The kernel's: too many open files.
    pub fn try_clone(&self) -> io::Result<Self> {
        self.0.try_clone().map(Epoll)
    }

    /// Adds, changes or deletes the registration of `fd`. Takes effect at once, also for a thread that waits.
    ///
    /// # Errors
    ///
    /// The kernel's: `EEXIST` for a second [`Add`](ControlOperation::Add), `ENOENT` for a descriptor that is not
    /// registered, `EBADF` for one that is not open, `EPERM` for a file that is always ready, such as a regular one.
    #[inline]
    pub fn ctl(&self, operation: ControlOperation, fd: RawFd, event: EpollEvent) -> io::Result<()> {
        let mut event = event.0;
        // SAFETY: `event` is a live local, and the kernel only reads it during the call. A wrong `fd` is an error
        // code, not a fault.
        check(unsafe { libc::epoll_ctl(self.as_raw_fd(), operation as i32, fd, &mut event) })?;
        Ok(())
    }

    /// Waits until something is ready, and writes what is to the front of `events`. Returns how many there are.
    ///
    /// `timeout` is in milliseconds: 0 only looks, a negative one waits for ever.
    ///
    /// # Errors
    ///
    /// The kernel's: `EINTR` when a signal handler ran, `EINVAL` when `events` is empty.
    #[inline]
    pub fn wait(&self, timeout: i32, events: &mut [EpollEvent]) -> io::Result<usize> {
        let room = room(events.len());
        // SAFETY: the kernel writes at most `room` events, which `events` has places for; `EpollEvent` has the
        // layout of `epoll_event`.
        check(unsafe { libc::epoll_wait(self.as_raw_fd(), events.as_mut_ptr().cast(), room, timeout) })
            .map(|count| count as usize)
    }

    /// Waits like [`wait`](Epoll::wait), for at most as many events as `events` has capacity; afterwards `events`
    /// holds these and no others. Memory the kernel does not fill is never touched, so a large capacity costs
    /// address space only.
    ///
    /// # Errors
    ///
    /// As for [`wait`](Epoll::wait); `events` is then empty.
    #[inline]
    pub fn fill(&self, timeout: i32, events: &mut Vec<EpollEvent>) -> io::Result<usize> {
        events.clear();
        let room = room(events.capacity());
        // SAFETY: the kernel writes at most `room` events, for which the vector has reserved memory; `EpollEvent`
        // has the layout of `epoll_event`.
        let count = check(unsafe { libc::epoll_wait(self.as_raw_fd(), events.as_mut_ptr().cast(), room, timeout) })?;
        // SAFETY: the kernel has written the first `count` events, and `count` is at most the capacity.
        unsafe { events.set_len(count as usize) };
        Ok(count as usize)
    }
}

impl AsFd for Epoll {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsRawFd for Epoll {
    #[inline]
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

/// The buffer length to tell the kernel, which refuses longer ones.
#[inline]
fn room(len: usize) -> i32 {
    len.min(MAX_READY_EVENTS_CAPACITY) as i32
}

/// Turns a system call's result into ours.
#[inline]
fn check(result: i32) -> io::Result<i32> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_shows_both_halves() {
        assert_eq!(format!("{:?}", EpollEvent::new(EventSet::IN, 42)), "{ events: 1, data: 42 }");
    }

    #[test]
    fn unknown_bits_are_kept() {
        let bits = 1 << 24 | libc::EPOLLIN as u32;
        let event = EpollEvent::new(EventSet::from_bits_retain(bits), u64::MAX);
        assert_eq!(event.event_set().bits(), bits);
        assert!(event.event_set().contains(EventSet::IN));
        assert_eq!((event.data(), event.fd()), (u64::MAX, -1));
    }

    #[test]
    fn the_buffer_length_never_exceeds_the_kernels_limit() {
        assert_eq!(room(1), 1);
        assert_eq!(room(usize::MAX) as usize, MAX_READY_EVENTS_CAPACITY);
    }
}
