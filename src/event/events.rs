//! What subscribers and the manager talk about: [`Events`], and [`EventOps`] to ask for them.

use std::fmt;
use std::os::fd::{AsRawFd, RawFd};

use super::Result;
use super::epoll::{EpollEvent, EventSet};
use super::interests::{Interests, Owner};

/// A descriptor, a set of events, and 32 bits of the subscriber's own.
///
/// The same type asks ("watch this for that") and tells ("this happened there"). [`EventSet::ERROR`] and
/// [`EventSet::HANG_UP`] are told whether they were asked for or not.
///
/// A subscriber with several descriptors tells them apart by its own data rather than by their numbers. With small
/// consecutive numbers the `match` is a jump table:
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
///             other => eprintln!("Spurious event {other}"),
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
    /// Names a descriptor without asking for anything but errors and hang-ups. Enough for [`EventOps::remove`].
    pub fn empty<T: AsRawFd>(source: &T) -> Self {
        Self::empty_raw(source.as_raw_fd())
    }

    /// Like [`empty`](Events::empty), for a descriptor's number.
    pub fn empty_raw(fd: RawFd) -> Self {
        Self::new_raw(fd, EventSet::empty())
    }

    /// Asks for `events` on `source`.
    pub fn new<T: AsRawFd>(source: &T, events: EventSet) -> Self {
        Self::new_raw(source.as_raw_fd(), events)
    }

    /// Like [`new`](Events::new), for a descriptor's number.
    pub fn new_raw(source: RawFd, events: EventSet) -> Self {
        Self::with_data_raw(source, 0, events)
    }

    /// Asks for `events` on `source`, which shall come back with `data`.
    pub fn with_data<T: AsRawFd>(source: &T, data: u32, events: EventSet) -> Self {
        Self::with_data_raw(source.as_raw_fd(), data, events)
    }

    /// Like [`with_data`](Events::with_data), for a descriptor's number.
    #[inline]
    pub fn with_data_raw(source: RawFd, data: u32, events: EventSet) -> Self {
        Events { fd: source, data, event_set: events }
    }

    /// The number of the descriptor.
    #[inline]
    pub fn fd(&self) -> RawFd {
        self.fd
    }

    /// The subscriber's own 32 bits; 0 if it gave none.
    #[inline]
    pub fn data(&self) -> u32 {
        self.data
    }

    /// What is asked for, or what happened.
    #[inline]
    pub fn event_set(&self) -> EventSet {
        self.event_set
    }

    /// The same as an epoll event, with `data` in the upper and the descriptor in the lower half of the data word.
    pub fn epoll_event(&self) -> EpollEvent {
        EpollEvent::new(self.event_set, u64::from(self.data) << 32 | u64::from(self.fd as u32))
    }
}

/// A subscriber's way to say what it wants to hear of. It speaks for one subscriber, and reaches no one else's
/// descriptors.
pub struct EventOps<'a> {
    interests: &'a mut Interests,
    owner: Owner,
}

impl<'a> EventOps<'a> {
    #[inline]
    pub(super) fn new(interests: &'a mut Interests, owner: Owner) -> Self {
        EventOps { interests, owner }
    }

    /// Registers a descriptor.
    ///
    /// The descriptor must stay open for as long as it shall be watched. If it was closed without
    /// [`remove`](EventOps::remove), its number is free again for whoever gets it next.
    ///
    /// # Errors
    ///
    /// [`FdAlreadyRegistered`](super::Error::FdAlreadyRegistered), or [`Epoll`](super::Error::Epoll) with the
    /// kernel's reason: `EBADF` for a descriptor that is not open, `EPERM` for a file that is always ready.
    pub fn add(&mut self, events: Events) -> Result<()> {
        self.interests.add(self.owner, events)
    }

    /// Changes the events and the data of a descriptor this subscriber has registered. An event of it that waits to
    /// be delivered is dropped; what still holds under the new terms will be reported by the next run.
    ///
    /// # Errors
    ///
    /// [`NotOwner`](super::Error::NotOwner) if another subscriber registered it, [`Epoll`](super::Error::Epoll)
    /// with `ENOENT` if nobody did, and the kernel's other ones.
    pub fn modify(&self, events: Events) -> Result<()> {
        self.interests.modify(self.owner, events)
    }

    /// Forgets a descriptor this subscriber has registered; only its number matters, and it may be closed already.
    /// An event of it that waits to be delivered is dropped.
    ///
    /// # Errors
    ///
    /// [`NotOwner`](super::Error::NotOwner) if another subscriber registered it, [`Epoll`](super::Error::Epoll)
    /// with `ENOENT` if nobody did.
    pub fn remove(&mut self, events: Events) -> Result<()> {
        self.interests.remove(self.owner, events.fd())
    }
}

/// Shows for whom, not the whole table.
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
    fn a_negative_descriptor_leaves_the_data_alone() {
        let events = Events::with_data_raw(-1, 42, EventSet::OUT);
        assert_eq!((events.fd(), events.data(), events.event_set()), (-1, 42, EventSet::OUT));
        assert_eq!(events.epoll_event().data(), 42 << 32 | 0xffff_ffff);
        assert_eq!(events.epoll_event().fd(), -1);
    }
}
