//! The registrations of one event manager: an epoll instance, and a table with the owner of each descriptor.
//!
//! A descriptor number is not an identity, because the kernel reuses numbers. The identity is the *registration*:
//! each change of a registration gets a new generation, and the data word of the epoll event carries both.
//!
//! ```text
//!    63            32 31             0
//!   ┌────────────────┬────────────────┐      table[fd] = { generation, events, owner, … }
//!   │   generation   │       fd       │
//!   └────────────────┴────────────────┘      an event is current if both generations are equal
//! ```
//!
//! An event is therefore dropped if its registration was removed or modified earlier in the same batch, or if its
//! descriptor number was reused. The check is one load and one comparison; nothing searches the batch.
//!
//! # Stale registrations
//!
//! epoll watches open files, not descriptor numbers. If a number is closed while the file stays open through another
//! descriptor (`dup`, `fork`), the kernel keeps the registration, and it can no longer be deleted: `epoll_ctl` looks
//! it up by number *and* file. Once the file is ready, such a stale registration would end every wait at once.
//! It is detected by an event that is not current although no registration has changed since the wait. The table is
//! then registered with a new epoll instance, and the stale registration is closed with the old one.

use std::cell::Cell;
use std::io;
use std::os::fd::RawFd;

use super::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use super::{Errno, Error, Events, Result};

/// The seat number of a subscriber.
pub(super) type Owner = u32;

/// The seat number of the manager, which owns the eventfd of its remote endpoints.
#[cfg(feature = "remote_endpoint")]
pub(super) const MANAGER: Owner = 0;

/// The owner of an entry without a registration. No subscriber has this seat number.
const NO_OWNER: Owner = u32::MAX;

/// What the kernel watches for after a one-shot registration has reported its event.
const DISARMED: EventSet = EventSet::ONE_SHOT;

/// The registration of one descriptor number. The cells are changed by `EventOps::modify`, which takes `&self`.
struct Entry {
    generation: Cell<u32>,
    /// The descriptor, the user data, and the events that the kernel watches for now (see [`DISARMED`]).
    events: Cell<Events>,
    owner: Owner,
    /// The index of the descriptor in the owner's list.
    index: usize,
}

impl Entry {
    fn new(generation: u32, events: Events, owner: Owner, index: usize) -> Self {
        Entry { generation: Cell::new(generation), events: Cell::new(events), owner, index }
    }
}

/// All registrations of one event manager.
pub(super) struct Registrations {
    epoll: Epoll,
    /// Indexed by descriptor number.
    table: Vec<Entry>,
    /// The registered descriptors of each owner, indexed by owner.
    owned: Vec<Vec<RawFd>>,
    /// The generation of the most recent change. It wraps: an old event would pass for a current one only after
    /// exactly 2³² changes.
    generation: Cell<u32>,
    /// The value of `generation` at the start of the last wait.
    generation_at_wait: u32,
    stale_registration_seen: Cell<bool>,
}

impl Registrations {
    pub fn new() -> Result<Self> {
        Ok(Registrations {
            epoll: Epoll::new().map_err(Error::epoll)?,
            table: Vec::new(),
            owned: Vec::new(),
            generation: Cell::new(0),
            generation_at_wait: 0,
            stale_registration_seen: Cell::new(false),
        })
    }

    /// Waits for events. An interruption by a signal handler counts as no event.
    #[inline(always)]
    pub fn wait(&mut self, milliseconds: i32, ready: &mut Vec<EpollEvent>) -> Result<()> {
        if self.stale_registration_seen.get() {
            self.rebuild_epoll().map_err(Error::epoll)?;
        }
        self.generation_at_wait = self.generation.get();
        self.epoll.fill(milliseconds, ready).map(drop).map_err(Error::epoll)
    }

    /// Returns the owner of an event and what to deliver, or `None` if the event is not current.
    #[inline]
    pub fn resolve(&self, event: &EpollEvent) -> Option<(Owner, Events)> {
        let entry = self.table.get((event.data() & 0xffff_ffff) as usize)?;
        if entry.generation.get() != (event.data() >> 32) as u32 {
            if self.generation.get() == self.generation_at_wait {
                self.stale_registration_seen.set(true);
            }
            return None;
        }
        let registered = entry.events.get();
        if registered.event_set().contains(EventSet::ONE_SHOT) {
            entry.events.set(Events::with_data_raw(event.fd(), registered.data(), DISARMED));
        }
        Some((entry.owner, Events::with_data_raw(event.fd(), registered.data(), event.event_set())))
    }

    /// Registers the whole table with a new epoll instance, which may report an edge a second time.
    #[cold]
    fn rebuild_epoll(&mut self) -> io::Result<()> {
        let new = Epoll::new()?;
        for entry in self.table.iter().filter(|entry| entry.owner != NO_OWNER) {
            let events = entry.events.get();
            let event = tagged(events, entry.generation.get());
            // The old instance accepts a number only if it was closed and reused for a file that is not registered.
            match self.epoll.ctl(ControlOperation::Add, events.fd(), event) {
                Err(error) if error.raw_os_error() == Some(libc::EEXIST) => {
                    new.ctl(ControlOperation::Add, events.fd(), event)?;
                }
                Err(_) => {}
                Ok(()) => self.epoll_delete(events.fd()),
            }
        }
        self.epoll = new;
        self.stale_registration_seen.set(false);
        Ok(())
    }

    pub fn add(&mut self, owner: Owner, events: Events) -> Result<()> {
        let fd = table_index(events.fd())?;
        let generation = self.next_generation();
        let event = tagged(events, generation);
        match self.epoll.ctl(ControlOperation::Add, events.fd(), event) {
            Err(error) if error.raw_os_error() == Some(libc::EEXIST) => {
                if self.table.get(fd).is_some_and(|entry| entry.owner != NO_OWNER) {
                    return Err(Error::FdAlreadyRegistered);
                }
                // It was removed while its number was closed, and the same file has the same number again.
                self.epoll_delete(events.fd());
                self.epoll.ctl(ControlOperation::Add, events.fd(), event)
            }
            result => result,
        }
        .map_err(Error::epoll)?;

        // The kernel accepted the number, so that an existing entry for it is left from a file that was closed.
        self.clear_entry(fd);
        if self.table.len() <= fd {
            let vacant = || Entry::new(0, Events::empty_raw(-1), NO_OWNER, 0);
            self.table.resize_with((fd + 1).next_power_of_two(), vacant);
        }
        if self.owned.len() <= owner as usize {
            self.owned.resize_with(owner as usize + 1, Vec::new);
        }
        let owned = &mut self.owned[owner as usize];
        self.table[fd] = Entry::new(generation, events, owner, owned.len());
        owned.push(events.fd());
        Ok(())
    }

    pub fn modify(&self, owner: Owner, events: Events) -> Result<()> {
        let entry = self.entry_of(owner, events.fd())?;
        let generation = self.next_generation();
        self.epoll.ctl(ControlOperation::Modify, events.fd(), tagged(events, generation)).map_err(Error::epoll)?;
        entry.generation.set(generation);
        entry.events.set(events);
        Ok(())
    }

    pub fn remove(&mut self, owner: Owner, fd: RawFd) -> Result<()> {
        self.entry_of(owner, fd)?;
        self.epoll_delete(fd);
        self.clear_entry(fd.cast_unsigned() as usize);
        Ok(())
    }

    /// Removes all registrations of `owner`.
    pub fn remove_all(&mut self, owner: Owner) {
        while let Some(&fd) = self.owned.get(owner as usize).and_then(|owned| owned.last()) {
            self.epoll_delete(fd);
            self.clear_entry(fd.cast_unsigned() as usize);
        }
    }

    /// The entry of a descriptor that `owner` has registered.
    fn entry_of(&self, owner: Owner, fd: RawFd) -> Result<&Entry> {
        match self.table.get(table_index(fd)?) {
            Some(entry) if entry.owner == owner => Ok(entry),
            Some(entry) if entry.owner != NO_OWNER => Err(Error::NotOwner),
            _ => Err(Error::Epoll(Errno::new(libc::ENOENT))),
        }
    }

    /// Deletes a descriptor from the epoll instance. An error means that the kernel has no such registration: the
    /// number is closed, or belongs to another file now.
    fn epoll_delete(&self, fd: RawFd) {
        let _ = self.epoll.ctl(ControlOperation::Delete, fd, EpollEvent::default());
    }

    /// Removes an entry from its owner's list, and gives it a new generation, so that pending events are not current.
    fn clear_entry(&mut self, fd: usize) {
        let generation = self.next_generation();
        let Some(entry) = self.table.get_mut(fd).filter(|entry| entry.owner != NO_OWNER) else { return };
        entry.generation.set(generation);
        let (owner, index) = (std::mem::replace(&mut entry.owner, NO_OWNER), entry.index);
        let owned = &mut self.owned[owner as usize];
        owned.swap_remove(index);
        if let Some(&moved) = owned.get(index) {
            self.table[moved.cast_unsigned() as usize].index = index;
        }
    }

    fn next_generation(&self) -> u32 {
        self.generation.set(self.generation.get().wrapping_add(1));
        self.generation.get()
    }
}

/// A descriptor number as an index of the table.
fn table_index(fd: RawFd) -> Result<usize> {
    usize::try_from(fd).map_err(|_| Error::Epoll(Errno::new(libc::EBADF)))
}

/// The event to register, with the data word as in the module's documentation. [`Registrations::resolve`] decodes it.
fn tagged(events: Events, generation: u32) -> EpollEvent {
    EpollEvent::new(events.event_set(), u64::from(generation) << 32 | u64::from(events.fd().cast_unsigned()))
}
