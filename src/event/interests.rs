//! Who is interested in what: the epoll instance, and a table that knows whom each descriptor belongs to.
//!
//! A descriptor's number is no identity, since the kernel hands numbers out again. A *registration* is one: every
//! `add` and `modify` gives the number a new generation, and the word that epoll carries is both:
//!
//! ```text
//!    63            32 31             0
//!   ┌────────────────┬────────────────┐      table[fd] = { generation, owner, data, … }
//!   │   generation   │       fd       │
//!   └────────────────┴────────────────┘      an event counts if both generations are the same
//! ```
//!
//! So an event that waits in a batch while its registration is removed or modified, or while its number goes to
//! someone else, is recognised by one load and one comparison, and nobody ever searches the batch.
//!
//! The slots of one owner form a doubly linked list through the table, which makes removing a descriptor O(1) and
//! removing a subscriber O(its descriptors), without allocation.
//!
//! # Ghosts
//!
//! epoll watches files, not numbers. If a number is closed while the file stays open under another (`dup`, `fork`),
//! the registration lives on, and nobody can delete it any more: `epoll_ctl` finds it by number *and* file. Such a
//! ghost would end every wait at once, for ever. It gives itself away by an event that is stale although nothing
//! has changed since the wait; the table then moves to a new epoll instance, and the ghost stays behind.

use std::cell::Cell;
use std::io;
use std::os::fd::RawFd;

use super::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use super::{Errno, Error, Events, Result};

/// A subscriber's place among the subscribers.
pub(super) type Owner = u32;

/// The manager's own place, which the endpoint's descriptor belongs to.
#[cfg(feature = "remote_endpoint")]
pub(super) const MANAGER: Owner = 0;

/// The owner of a slot that has none. Never a subscriber's place.
const VACANT: Owner = u32::MAX;

/// The end of a list of slots. Never a descriptor's number, which has 31 bits.
const END: u32 = u32::MAX;

/// A one-shot registration that has shot.
const SPENT: EventSet = EventSet::ONE_SHOT;

/// What the table knows about one descriptor's number. Cells, because `EventOps::modify` takes `&self`.
struct Slot {
    generation: Cell<u32>,
    data: Cell<u32>,
    /// What the kernel watches for at present: a one-shot registration that has shot is [`SPENT`].
    event_set: Cell<EventSet>,
    owner: Owner,
    /// The neighbours in the owner's list.
    previous: u32,
    next: u32,
}

impl Slot {
    fn vacant() -> Self {
        Slot {
            generation: Cell::new(0),
            data: Cell::new(0),
            event_set: Cell::new(EventSet::empty()),
            owner: VACANT,
            previous: END,
            next: END,
        }
    }

    /// Notes a registration the kernel has just made.
    fn set(&self, generation: u32, events: Events) {
        self.generation.set(generation);
        self.data.set(events.data());
        self.event_set.set(events.event_set());
    }

    /// The generation after this one. It wraps; two registrations of one number are mistaken for each other only if
    /// exactly 2³² others lie between them.
    fn next_generation(&self) -> u32 {
        self.generation.get().wrapping_add(1)
    }
}

/// All registrations of one event manager.
pub(super) struct Interests {
    epoll: Epoll,
    /// Indexed by descriptor.
    table: Vec<Slot>,
    /// The first slot of each owner, indexed by owner.
    first: Vec<u32>,
    /// Whether a registration has changed since the last wait.
    changed: Cell<bool>,
    /// Whether a ghost was seen.
    haunted: Cell<bool>,
}

impl Interests {
    pub fn new() -> Result<Self> {
        Ok(Interests {
            epoll: Epoll::new().map_err(Error::epoll)?,
            table: Vec::new(),
            first: Vec::new(),
            changed: Cell::new(false),
            haunted: Cell::new(false),
        })
    }

    /// Waits for events; a signal is as good as no event.
    #[inline(always)]
    pub fn wait(&mut self, milliseconds: i32, ready: &mut Vec<EpollEvent>) -> Result<()> {
        if self.haunted.get() {
            self.move_house().map_err(Error::epoll)?;
        }
        self.changed.set(false);
        self.epoll.fill(milliseconds, ready).map(drop).or_else(not_interrupted)
    }

    /// Whose event it is and what to tell the owner; `None` if its registration is gone.
    #[inline]
    pub fn resolve(&self, event: &EpollEvent) -> Option<(Owner, Events)> {
        let slot = self.table.get(event.data() as u32 as usize)?;
        if slot.generation.get() != (event.data() >> 32) as u32 {
            if !self.changed.get() {
                self.haunted.set(true);
            }
            return None;
        }
        if slot.event_set.get().contains(EventSet::ONE_SHOT) {
            slot.event_set.set(SPENT);
        }
        Some((slot.owner, Events::with_data_raw(event.fd(), slot.data.get(), event.event_set())))
    }

    /// Registers everything with a new epoll instance. An edge-triggered descriptor may so be reported once more.
    #[cold]
    fn move_house(&mut self) -> io::Result<()> {
        let new = Epoll::new()?;
        for (fd, slot) in self.table.iter().enumerate().filter(|(_, slot)| slot.owner != VACANT) {
            let fd = fd as RawFd;
            let event = EpollEvent::new(slot.event_set.get(), word(slot.generation.get(), fd));
            // A number that the old instance lets us add is closed, or was given to a file that nobody registered.
            match self.epoll.ctl(ControlOperation::Add, fd, event) {
                Err(error) if error.raw_os_error() == Some(libc::EEXIST) => {
                    new.ctl(ControlOperation::Add, fd, event)?;
                }
                Err(_) => {}
                Ok(()) => self.forget(fd),
            }
        }
        self.epoll = new;
        self.haunted.set(false);
        Ok(())
    }

    pub fn add(&mut self, owner: Owner, events: Events) -> Result<()> {
        let fd = index(events.fd())?;
        let (generation, vacant) = match self.table.get(fd) {
            Some(slot) => (slot.next_generation(), slot.owner == VACANT),
            None => (1, true),
        };
        let event = EpollEvent::new(events.event_set(), word(generation, events.fd()));
        match self.epoll.ctl(ControlOperation::Add, events.fd(), event) {
            Err(error) if error.raw_os_error() == Some(libc::EEXIST) => {
                if !vacant {
                    return Err(Error::FdAlreadyRegistered);
                }
                // Removed while its number was closed, and now the same file is back under the same number.
                self.forget(events.fd());
                self.epoll.ctl(ControlOperation::Add, events.fd(), event)
            }
            result => result,
        }
        .map_err(Error::epoll)?;

        // The kernel knew nothing of this file, so an old registration is one of a file that was closed.
        self.unlink(fd);
        self.link(fd, owner);
        self.table[fd].set(generation, events);
        Ok(())
    }

    pub fn modify(&self, owner: Owner, events: Events) -> Result<()> {
        let slot = self.owned(owner, events.fd())?;
        let generation = slot.next_generation();
        let event = EpollEvent::new(events.event_set(), word(generation, events.fd()));
        self.epoll.ctl(ControlOperation::Modify, events.fd(), event).map_err(Error::epoll)?;
        slot.set(generation, events);
        self.changed.set(true);
        Ok(())
    }

    pub fn remove(&mut self, owner: Owner, fd: RawFd) -> Result<()> {
        self.owned(owner, fd)?;
        self.forget(fd);
        self.unlink(index(fd)?);
        Ok(())
    }

    /// Removes everything `owner` has registered.
    pub fn release(&mut self, owner: Owner) {
        while let Some(&fd) = self.first.get(owner as usize).filter(|&&fd| fd != END) {
            self.forget(fd as RawFd);
            self.unlink(fd as usize);
        }
    }

    /// The slot of a descriptor that `owner` has registered.
    fn owned(&self, owner: Owner, fd: RawFd) -> Result<&Slot> {
        match self.table.get(index(fd)?) {
            Some(slot) if slot.owner == owner => Ok(slot),
            Some(slot) if slot.owner != VACANT => Err(Error::NotOwner),
            _ => Err(Error::Epoll(Errno::new(libc::ENOENT))),
        }
    }

    /// Makes the kernel forget a descriptor. Every error there is says that the kernel knows of no such
    /// registration: the number is closed, or belongs to another file by now.
    fn forget(&self, fd: RawFd) {
        let _ = self.epoll.ctl(ControlOperation::Delete, fd, EpollEvent::default());
    }

    /// Puts a vacant slot at the head of `owner`'s list, after making room for both.
    fn link(&mut self, fd: usize, owner: Owner) {
        if self.table.len() <= fd {
            self.table.resize_with((fd + 1).next_power_of_two(), Slot::vacant);
        }
        if self.first.len() <= owner as usize {
            self.first.resize(owner as usize + 1, END);
        }
        let next = std::mem::replace(&mut self.first[owner as usize], fd as u32);
        if let Some(neighbour) = self.table.get_mut(next as usize) {
            neighbour.previous = fd as u32;
        }
        let slot = &mut self.table[fd];
        (slot.owner, slot.previous, slot.next) = (owner, END, next);
    }

    /// Takes a slot out of its owner's list, and makes the events it may have in a batch stale.
    fn unlink(&mut self, fd: usize) {
        let Some(slot) = self.table.get_mut(fd).filter(|slot| slot.owner != VACANT) else { return };
        let (owner, previous, next) = (slot.owner, slot.previous, slot.next);
        slot.owner = VACANT;
        slot.generation.set(slot.next_generation());
        self.changed.set(true);
        match self.table.get_mut(previous as usize) {
            Some(neighbour) => neighbour.next = next,
            None => self.first[owner as usize] = next,
        }
        if let Some(neighbour) = self.table.get_mut(next as usize) {
            neighbour.previous = previous;
        }
    }
}

/// Passes on every error but the one that says that a signal handler ran.
#[cold]
fn not_interrupted(error: io::Error) -> Result<()> {
    if error.kind() == io::ErrorKind::Interrupted { Ok(()) } else { Err(Error::epoll(error)) }
}

/// A descriptor as an index; none is negative.
fn index(fd: RawFd) -> Result<usize> {
    usize::try_from(fd).map_err(|_| Error::Epoll(Errno::new(libc::EBADF)))
}

/// The word epoll carries.
fn word(generation: u32, fd: RawFd) -> u64 {
    u64::from(generation) << 32 | u64::from(fd as u32)
}
