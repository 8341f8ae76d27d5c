//! A safe wrapper of the kernel's `epoll(7)`: a set of file descriptors and a call that waits until one is ready.
//!
//! The rest of [`event`](super) is built on four calls: [`Epoll::new`], [`Epoll::ctl`], [`Epoll::wait`], and
//! [`Epoll::fill`], which waits into a buffer that need not be initialised.
//!
//! ```
//! use std::os::fd::AsRawFd;
//! use kickvm::event::{ControlOperation, Epoll, EpollEvent, EventSet};
//!
//! # fn main() -> std::io::Result<()> {
//! let (_reader, writer) = std::io::pipe()?;
//! let epoll = Epoll::new()?;
//! epoll.ctl(ControlOperation::Add, writer.as_raw_fd(), EpollEvent::new(EventSet::OUT, 4))?;
//!
//! let mut ready_events = vec![EpollEvent::default(); 10];
//! let ev_count = epoll.wait(-1, &mut ready_events[..])?;
//! assert_eq!(ev_count, 1);
//! assert_eq!(ready_events[0].data(), 4);
//! # Ok(())
//! # }
//! ```

use std::fmt;
use std::io;
use std::mem::size_of;
use std::ops::Deref;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use bitflags::bitflags;
use libc::epoll_event;

use super::sys::{check, impl_as_fd, owned};

/// The largest number of events that one wait can return. The kernel rejects larger buffers (`EP_MAX_EVENTS` in
/// Linux's `fs/eventpoll.c`).
pub const MAX_READY_EVENTS_CAPACITY: usize = i32::MAX as usize / size_of::<EpollEvent>();

/// The operation that [`Epoll::ctl`] performs on a file descriptor.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(i32)]
pub enum ControlOperation {
    /// Start to watch a descriptor.
    Add = libc::EPOLL_CTL_ADD,
    /// Change the events or the data word of a watched descriptor.
    Modify = libc::EPOLL_CTL_MOD,
    /// Stop watching a descriptor. The event argument is ignored.
    Delete = libc::EPOLL_CTL_DEL,
}

bitflags! {
    /// A set of `EPOLL*` bits: the events to watch for, or the events that happened.
    ///
    /// Bits without a name here are preserved, because a newer kernel may report them.
    #[derive(Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
    pub struct EventSet: u32 {
        /// The descriptor is readable.
        const IN = libc::EPOLLIN as u32;
        /// The descriptor is writable.
        const OUT = libc::EPOLLOUT as u32;
        /// An error is pending. The kernel always watches for this event.
        const ERROR = libc::EPOLLERR as u32;
        /// The peer of a stream socket shut down its writing half.
        const READ_HANG_UP = libc::EPOLLRDHUP as u32;
        /// Edge-triggered: report a change once instead of a state for as long as it lasts.
        const EDGE_TRIGGERED = libc::EPOLLET.cast_unsigned();
        /// The other end is closed. The kernel always watches for this event.
        const HANG_UP = libc::EPOLLHUP as u32;
        /// There is an exceptional condition, such as out-of-band data.
        const PRIORITY = libc::EPOLLPRI as u32;
        /// Data of a priority band is readable. Linux reports this for few files; sockets use
        /// [`PRIORITY`](Self::PRIORITY).
        const READ_BAND = libc::EPOLLRDBAND as u32;
        /// Data of a priority band is writable.
        const WRITE_BAND = libc::EPOLLWRBAND as u32;
        /// Do not let the system suspend while the event is being handled.
        const WAKE_UP = libc::EPOLLWAKEUP as u32;
        /// Report one event, then disarm the registration until the next [`ControlOperation::Modify`].
        const ONE_SHOT = libc::EPOLLONESHOT as u32;
        /// Wake one of the epoll instances that watch the same file instead of all of them. Valid with
        /// [`ControlOperation::Add`] only; such a registration cannot be modified. See epoll_ctl(2) for the flags
        /// that may be combined with it.
        const EXCLUSIVE = libc::EPOLLEXCLUSIVE as u32;

        // Every other bit is valid too.
        const _ = !0;
    }
}

/// One event: what happened, and the data word that the descriptor was registered with.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub struct EpollEvent(epoll_event);

impl EpollEvent {
    /// Creates an event to register with [`Epoll::ctl`]. The kernel returns `data` unchanged; it is often the
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

    /// The events as an integer.
    #[inline]
    pub const fn events(&self) -> u32 {
        self.0.events
    }

    /// The events as a set, including bits without a name.
    #[inline]
    pub const fn event_set(&self) -> EventSet {
        EventSet::from_bits_retain(self.events())
    }

    /// The data word given at registration.
    #[inline]
    pub const fn data(&self) -> u64 {
        self.0.u64
    }

    /// The low 32 bits of the data word, for callers that store a descriptor there.
    #[inline]
    #[expect(clippy::cast_possible_truncation, reason = "the upper half is not part of the descriptor")]
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

/// An epoll instance. It is closed on drop and on exec.
#[derive(Debug)]
pub struct Epoll(OwnedFd);

impl Epoll {
    /// Creates an instance that watches nothing.
    ///
    /// # Errors
    ///
    /// Returns the kernel's error: too many open files, or no memory.
    pub fn new() -> io::Result<Self> {
        // SAFETY: the call takes no pointer and returns a new descriptor.
        unsafe { owned(libc::epoll_create1(libc::EPOLL_CLOEXEC)) }.map(Epoll)
    }

    /// Creates a second handle to the same instance, so that another thread can register with it.
    ///
    /// # Errors
    ///
    /// Returns the kernel's error: too many open files.
    pub fn try_clone(&self) -> io::Result<Self> {
        self.0.try_clone().map(Epoll)
    }

    /// Adds, modifies or deletes the registration of `fd`. This takes effect at once, also for a thread that is
    /// waiting.
    ///
    /// # Errors
    ///
    /// Returns the kernel's error: `EEXIST` for a second [`Add`](ControlOperation::Add), `ENOENT` if `fd` is not
    /// registered, `EBADF` if it is not open, `EPERM` for a file that is always ready, such as a regular file.
    #[inline]
    pub fn ctl(&self, operation: ControlOperation, fd: RawFd, event: EpollEvent) -> io::Result<()> {
        let mut event = event.0;
        // SAFETY: `event` is a live local that the kernel only reads during the call. An invalid `fd` is reported
        // as an error.
        check(unsafe { libc::epoll_ctl(self.as_raw_fd(), operation as i32, fd, &mut event) }).map(drop)
    }

    /// Waits until a descriptor is ready, writes the events to the front of `events` and returns their number.
    ///
    /// `timeout` is in milliseconds: 0 does not block, a negative value waits without a limit.
    ///
    /// # Errors
    ///
    /// Returns the kernel's error: `EINTR` when a signal handler ran, `EINVAL` when `events` is empty.
    #[inline]
    pub fn wait(&self, timeout: i32, events: &mut [EpollEvent]) -> io::Result<usize> {
        // SAFETY: the pointer and the length describe the exclusively borrowed slice.
        unsafe { self.wait_raw(timeout, events.as_mut_ptr(), events.len()) }
    }

    /// Waits like [`wait`](Epoll::wait), for at most as many events as `events` has capacity, and replaces the
    /// content of `events` with them. When a signal handler ran, `events` is empty and the result is `Ok(0)`.
    ///
    /// Memory that the kernel does not fill is never touched, so that a large capacity costs address space only.
    ///
    /// # Errors
    ///
    /// Returns the kernel's error: `EINVAL` when `events` has no capacity. `events` is then empty.
    #[inline]
    pub fn fill(&self, timeout: i32, events: &mut Vec<EpollEvent>) -> io::Result<usize> {
        events.clear();
        // SAFETY: the vector has allocated memory for `capacity` events.
        let count = match unsafe { self.wait_raw(timeout, events.as_mut_ptr(), events.capacity()) } {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
            result => result?,
        };
        // SAFETY: the kernel has initialised the first `count` events, and `count` is at most the capacity.
        unsafe { events.set_len(count) };
        Ok(count)
    }

    /// # Safety
    ///
    /// `events` must be valid for writes of `len` events.
    #[inline]
    unsafe fn wait_raw(&self, timeout: i32, events: *mut EpollEvent, len: usize) -> io::Result<usize> {
        // SAFETY: the kernel writes at most `max_events(len)` events, for which the caller provides memory.
        // `EpollEvent` has the layout of `epoll_event`.
        check(unsafe { libc::epoll_wait(self.as_raw_fd(), events.cast(), max_events(len), timeout) })
            .map(|count| count.cast_unsigned() as usize)
    }
}

impl_as_fd!(Epoll, 0);

/// The buffer length to pass to the kernel, which rejects larger ones.
#[inline]
#[expect(clippy::cast_possible_truncation, clippy::cast_possible_wrap, reason = "the capacity fits into i32")]
fn max_events(len: usize) -> i32 {
    len.min(MAX_READY_EVENTS_CAPACITY) as i32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_shows_events_and_data() {
        assert_eq!(format!("{:?}", EpollEvent::new(EventSet::IN, 42)), "{ events: 1, data: 42 }");
    }

    #[test]
    fn unknown_bits_are_preserved() {
        let bits = 1 << 24 | libc::EPOLLIN as u32;
        let event = EpollEvent::new(EventSet::from_bits_retain(bits), u64::MAX);
        assert_eq!(event.event_set().bits(), bits);
        assert!(event.event_set().contains(EventSet::IN));
        assert_eq!((event.data(), event.fd()), (u64::MAX, -1));
    }

    #[test]
    fn the_buffer_length_never_exceeds_the_kernels_limit() {
        assert_eq!(max_events(1), 1);
        assert_eq!(usize::try_from(max_events(usize::MAX)), Ok(MAX_READY_EVENTS_CAPACITY));
    }
}
