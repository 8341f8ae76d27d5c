//! The subscribers of a manager. Each has a seat; seat 0 stands for the manager itself and stays empty.

use std::sync::atomic::{AtomicU64, Ordering};

use super::registrations::Owner;
use super::{Error, Result};

/// The serial number of the next subscriber of any manager.
static NEXT_SERIAL: AtomicU64 = AtomicU64::new(0);

/// Identifies one subscriber of one manager. It is never reused, not even by another manager.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct SubscriberId {
    /// The seat number of the subscriber.
    pub(super) owner: Owner,
    serial: u64,
}

/// A serial number and the subscriber that has it, or `None` if the seat is free.
type Seat<S> = Option<(u64, S)>;

/// Seats for subscribers. Seats are reused, serial numbers are not.
#[derive(Debug)]
pub(super) struct Subscribers<S> {
    seats: Vec<Seat<S>>,
    /// The free seats, except the manager's.
    free: Vec<Owner>,
}

impl<S> Subscribers<S> {
    pub fn new() -> Self {
        Subscribers { seats: vec![None], free: Vec::new() }
    }

    pub fn len(&self) -> usize {
        self.seats.len() - 1 - self.free.len()
    }

    /// The subscriber in a seat; `None` for the manager's seat.
    #[inline]
    pub fn in_seat(&mut self, owner: Owner) -> Option<&mut S> {
        self.seats.get_mut(owner as usize)?.as_mut().map(|(_, subscriber)| subscriber)
    }

    pub fn get(&mut self, id: SubscriberId) -> Result<&mut S> {
        match self.seats.get_mut(id.owner as usize) {
            Some(Some((serial, subscriber))) if *serial == id.serial => Ok(subscriber),
            _ => Err(Error::InvalidId),
        }
    }

    pub fn insert(&mut self, subscriber: S) -> SubscriberId {
        let serial = NEXT_SERIAL.fetch_add(1, Ordering::Relaxed);
        #[expect(clippy::cast_possible_truncation, reason = "a manager has fewer than 2^32 subscribers")]
        let owner = self.free.pop().unwrap_or_else(|| {
            self.seats.push(None);
            self.seats.len() as Owner - 1
        });
        self.seats[owner as usize] = Some((serial, subscriber));
        SubscriberId { owner, serial }
    }

    pub fn remove(&mut self, id: SubscriberId) -> Result<S> {
        self.get(id)?;
        self.free.push(id.owner);
        self.seats[id.owner as usize].take().map(|(_, subscriber)| subscriber).ok_or(Error::InvalidId)
    }
}
