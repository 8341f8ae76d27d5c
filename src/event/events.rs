//! [`Events`]: what to watch and what happened. [`EventOps`]: how a subscriber changes what it watches.

use std::fmt;
use std::os::fd::{AsRawFd, RawFd};

use super::Result;
use super::epoll::{EpollEvent, EventSet};
use super::registrations::{Owner, Registrations};

/// A descriptor, a set of events, and 32 bits of user data.
///
/// The type has two uses: a subscriber registers it (the events to watch for), and `process` receives it (the events
/// that happened). [`EventSet::ERROR`] and [`EventSet::HANG_UP`] are reported without being registered.
///
/// A subscriber with several descriptors identifies them by user data rather than by their numbers. With small
/// consecutive values the compiler can turn the `match` into a jump table:
///
/// ```
/// use kickvm::event::{EventManager, EventOps, EventSet, Events, MutEventSubscriber, SubscriberOps};
/// use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};
///
/// const PROCESS_GREEN: u32 = 0;
/// const PROCESS_RED: u32 = 1;
/// const PROCESS_BLUE: u32 = 2;
///
/// struct Painter {
///     pots: [EventFd; 3],
///     strokes: Vec<&'static str>,
/// }
///
/// impl Painter {
///     fn new() -> std::io::Result<Self> {
///         let pot = || EventFd::new(EFD_NONBLOCK);
///         Ok(Painter { pots: [pot()?, pot()?, pot()?], strokes: vec![] })
///     }
///
///     fn process_green(&mut self, _events: Events) {
///         self.strokes.push("green");
///     }
///
///     fn process_red(&mut self, _events: Events) {
///         self.strokes.push("red");
///     }
///
///     fn process_blue(&mut self, _events: Events) {
///         self.strokes.push("blue");
///     }
/// }
///
/// impl MutEventSubscriber for Painter {
///     fn init(&mut self, ops: &mut EventOps) {
///         for (data, pot) in [PROCESS_GREEN, PROCESS_RED, PROCESS_BLUE].into_iter().zip(&self.pots) {
///             ops.add(Events::with_data(pot, data, EventSet::IN)).expect("a new eventfd can be registered");
///         }
///     }
///
///     fn process(&mut self, events: Events, _ops: &mut EventOps) {
///         match events.data() {
///             PROCESS_GREEN => self.process_green(events),
///             PROCESS_RED => self.process_red(events),
///             PROCESS_BLUE => self.process_blue(events),
///             other => eprintln!("spurious event {other}"),
///         }
///     }
/// }
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let painter = Painter::new()?;
/// painter.pots[PROCESS_BLUE as usize].write(1)?;
/// let mut manager = EventManager::new()?;
/// let id = manager.add_subscriber(painter);
/// manager.run()?;
/// assert_eq!(manager.subscriber_mut(id)?.strokes, ["blue"]);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Events {
    fd: RawFd,
    data: u32,
    event_set: EventSet,
}

impl Events {
    /// Watches `source` for errors and hang-ups only. This is sufficient for [`EventOps::remove`].
    pub fn empty<T: AsRawFd>(source: &T) -> Self {
        Self::empty_raw(source.as_raw_fd())
    }

    /// Like [`empty`](Events::empty), for a descriptor number.
    pub fn empty_raw(fd: RawFd) -> Self {
        Self::new_raw(fd, EventSet::empty())
    }

    /// Watches `source` for `events`.
    pub fn new<T: AsRawFd>(source: &T, events: EventSet) -> Self {
        Self::new_raw(source.as_raw_fd(), events)
    }

    /// Like [`new`](Events::new), for a descriptor number.
    pub fn new_raw(source: RawFd, events: EventSet) -> Self {
        Self::with_data_raw(source, 0, events)
    }

    /// Watches `source` for `events`, which are reported with `data`.
    pub fn with_data<T: AsRawFd>(source: &T, data: u32, events: EventSet) -> Self {
        Self::with_data_raw(source.as_raw_fd(), data, events)
    }

    /// Like [`with_data`](Events::with_data), for a descriptor number.
    #[inline]
    pub fn with_data_raw(source: RawFd, data: u32, events: EventSet) -> Self {
        Events { fd: source, data, event_set: events }
    }

    /// The descriptor number.
    #[inline]
    pub fn fd(&self) -> RawFd {
        self.fd
    }

    /// The user data, 0 by default.
    #[inline]
    pub fn data(&self) -> u32 {
        self.data
    }

    /// The events to watch for, or the events that happened.
    #[inline]
    pub fn event_set(&self) -> EventSet {
        self.event_set
    }

    /// Converts to an epoll event with `data` in the upper half of the data word and the descriptor in the lower half.
    pub fn epoll_event(&self) -> EpollEvent {
        EpollEvent::new(self.event_set, u64::from(self.data) << 32 | u64::from(self.fd.cast_unsigned()))
    }
}

/// Adds, modifies and removes the registrations of one subscriber. It has no access to the descriptors of others.
pub struct EventOps<'a> {
    registrations: &'a mut Registrations,
    owner: Owner,
}

impl<'a> EventOps<'a> {
    #[inline]
    pub(super) fn new(registrations: &'a mut Registrations, owner: Owner) -> Self {
        EventOps { registrations, owner }
    }

    /// Registers a descriptor.
    ///
    /// The descriptor must stay open for as long as it is to be watched. If it is closed without
    /// [`remove`](EventOps::remove), its number can be registered again by any subscriber.
    ///
    /// # Errors
    ///
    /// Returns [`FdAlreadyRegistered`](super::Error::FdAlreadyRegistered), or [`Epoll`](super::Error::Epoll) with the
    /// kernel's error: `EBADF` for a descriptor that is not open, `EPERM` for a file that is always ready.
    pub fn add(&mut self, events: Events) -> Result<()> {
        self.registrations.add(self.owner, events)
    }

    /// Changes the events and the user data of a descriptor that this subscriber has registered. A pending event of
    /// the descriptor is dropped. The next `run` reports what is ready under the new registration.
    ///
    /// # Errors
    ///
    /// Returns [`NotOwner`](super::Error::NotOwner) if another subscriber registered the descriptor,
    /// [`Epoll`](super::Error::Epoll) with `ENOENT` if it is not registered, or with the kernel's error.
    pub fn modify(&self, events: Events) -> Result<()> {
        self.registrations.modify(self.owner, events)
    }

    /// Removes a descriptor that this subscriber has registered. Only the descriptor number of `events` is used; the
    /// descriptor may already be closed. A pending event of the descriptor is dropped.
    ///
    /// # Errors
    ///
    /// Returns [`NotOwner`](super::Error::NotOwner) if another subscriber registered the descriptor, and
    /// [`Epoll`](super::Error::Epoll) with `ENOENT` if it is not registered.
    pub fn remove(&mut self, events: Events) -> Result<()> {
        self.registrations.remove(self.owner, events.fd())
    }
}

/// Shows the owner, without the table of registrations.
impl fmt::Debug for EventOps<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EventOps").field("owner", &self.owner).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn constructors_agree() {
        let source = std::io::stdin();
        assert_eq!(Events::empty(&source), Events::empty_raw(0));
        assert_eq!(Events::new(&source, EventSet::IN), Events::new_raw(0, EventSet::IN));
        assert_eq!(Events::with_data(&source, 9, EventSet::IN), Events::with_data_raw(0, 9, EventSet::IN));
        assert_ne!(Events::with_data(&source, 9, EventSet::IN), Events::new(&source, EventSet::IN));
    }

    #[test]
    fn a_negative_descriptor_does_not_change_the_data() {
        let events = Events::with_data_raw(-1, 42, EventSet::OUT);
        assert_eq!((events.fd(), events.data(), events.event_set()), (-1, 42, EventSet::OUT));
        assert_eq!(events.epoll_event().data(), 42 << 32 | 0xffff_ffff);
        assert_eq!(events.epoll_event().fd(), -1);
    }
}
