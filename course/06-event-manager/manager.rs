//! A small event manager: subscribers register descriptors, and are called for their events.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsRawFd, RawFd};

use libc::{EPOLL_CTL_ADD, EPOLL_CTL_DEL, epoll_event};

use super::epoll::Epoll;

// ANCHOR: traits
/// An event as `process` receives it. `data` is what the subscriber passed to `add`.
pub struct Event {
    pub fd: RawFd,
    pub data: u32,
}

pub trait Subscriber {
    /// Registers the first descriptors.
    fn init(&mut self, ops: &mut Ops) -> io::Result<()>;
    /// Handles one event.
    fn process(&mut self, event: Event, ops: &mut Ops) -> io::Result<()>;
}
// ANCHOR_END: traits

// ANCHOR: identity
/// What an event is matched with the table by.
#[derive(Clone, Copy, PartialEq)]
pub enum Identity {
    /// The descriptor number alone: wrong.
    Number,
    /// The number, and the generation of its registration.
    Registration,
}

struct Entry {
    owner: usize,
    data: u32,
    generation: u32,
}

struct Registrations {
    epoll: Epoll,
    table: HashMap<RawFd, Entry>,
    /// The generation of the last registration.
    generation: u32,
    identity: Identity,
}

impl Registrations {
    /// Returns the registration that an event belongs to.
    fn resolve(&self, word: u64) -> Option<(RawFd, &Entry)> {
        let fd = RawFd::try_from(word & 0xffff_ffff).ok()?;
        let entry = self.table.get(&fd)?;
        let current = u64::from(entry.generation) == word >> 32;
        (current || self.identity == Identity::Number).then_some((fd, entry))
    }
}
// ANCHOR_END: identity

// ANCHOR: ops
/// Changes the registrations of one subscriber.
pub struct Ops<'a> {
    registrations: &'a mut Registrations,
    owner: usize,
}

impl Ops<'_> {
    pub fn add(&mut self, source: &impl AsRawFd, data: u32, events: u32) -> io::Result<()> {
        let (registrations, fd) = (&mut *self.registrations, source.as_raw_fd());
        registrations.generation += 1;
        let word = u64::from(registrations.generation) << 32 | u64::from(fd.cast_unsigned());
        registrations.epoll.ctl(EPOLL_CTL_ADD, fd, events, word)?;
        let entry = Entry { owner: self.owner, data, generation: registrations.generation };
        registrations.table.insert(fd, entry);
        Ok(())
    }

    /// Only the owner may remove a descriptor.
    pub fn remove(&mut self, fd: RawFd) -> io::Result<()> {
        match self.registrations.table.get(&fd) {
            Some(entry) if entry.owner == self.owner => {}
            _ => return Err(io::Error::from(io::ErrorKind::PermissionDenied)),
        }
        self.registrations.table.remove(&fd);
        self.registrations.epoll.ctl(EPOLL_CTL_DEL, fd, 0, 0)
    }
}
// ANCHOR_END: ops

// ANCHOR: manager
pub struct Manager<S> {
    registrations: Registrations,
    subscribers: Vec<S>,
}

impl<S: Subscriber> Manager<S> {
    pub fn new(identity: Identity) -> io::Result<Self> {
        let registrations = Registrations { epoll: Epoll::new()?, table: HashMap::new(), generation: 0, identity };
        Ok(Self { registrations, subscribers: Vec::new() })
    }

    pub fn add(&mut self, mut subscriber: S) -> io::Result<()> {
        let owner = self.subscribers.len();
        subscriber.init(&mut Ops { registrations: &mut self.registrations, owner })?;
        self.subscribers.push(subscriber);
        Ok(())
    }

    /// One turn: waits, and calls the subscriber of each event. Returns the numbers of events and of calls.
    pub fn run(&mut self, milliseconds: i32) -> io::Result<(usize, usize)> {
        let mut events = [epoll_event { events: 0, u64: 0 }; 16];
        let count = self.registrations.epoll.wait(milliseconds, &mut events)?;
        let mut calls = 0;
        for event in &events[..count] {
            let Some((fd, &Entry { owner, data, .. })) = self.registrations.resolve(event.u64) else { continue };
            let mut ops = Ops { registrations: &mut self.registrations, owner };
            self.subscribers[owner].process(Event { fd, data }, &mut ops)?;
            calls += 1;
        }
        Ok((count, calls))
    }
}
// ANCHOR_END: manager
