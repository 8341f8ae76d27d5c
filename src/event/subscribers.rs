//! The subscribers a manager holds, each at a place of its own. Place 0 is the manager's, which is no subscriber.

use std::sync::atomic::{AtomicU64, Ordering};

use super::interests::Owner;
use super::{Error, Result};

/// The serial number of the next subscriber, of whatever manager.
static SERIAL: AtomicU64 = AtomicU64::new(0);

/// Names one subscriber of one manager, and no other: not of another manager, and not after it was removed.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct SubscriberId {
    owner: Owner,
    serial: u64,
}

impl SubscriberId {
    /// The place it holds (or held).
    pub(super) fn owner(self) -> Owner {
        self.owner
    }
}

/// Places for subscribers. A place is used again, a serial number is not.
#[derive(Debug)]
pub(super) struct Subscribers<S> {
    places: Vec<Place<S>>,
    vacant: Vec<Owner>,
}

#[derive(Debug)]
struct Place<S> {
    serial: u64,
    subscriber: Option<S>,
}

impl<S> Subscribers<S> {
    pub fn new() -> Self {
        Subscribers { places: vec![Place { serial: u64::MAX, subscriber: None }], vacant: Vec::new() }
    }

    pub fn len(&self) -> usize {
        self.places.len() - 1 - self.vacant.len()
    }

    /// The subscriber at a place; `None` for the manager's.
    #[inline]
    pub fn at(&mut self, owner: Owner) -> Option<&mut S> {
        self.places.get_mut(owner as usize)?.subscriber.as_mut()
    }

    pub fn get(&mut self, id: SubscriberId) -> Result<&mut S> {
        self.place(id)?.subscriber.as_mut().ok_or(Error::InvalidId)
    }

    /// The place the next subscriber will get.
    pub fn vacancy(&self) -> Owner {
        self.vacant.last().copied().unwrap_or(self.places.len() as Owner)
    }

    /// Puts a subscriber at a place that [`vacancy`](Self::vacancy) has just named.
    pub fn insert(&mut self, owner: Owner, subscriber: S) -> SubscriberId {
        let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
        let place = Place { serial, subscriber: Some(subscriber) };
        match self.vacant.pop() {
            Some(_) => self.places[owner as usize] = place,
            None => self.places.push(place),
        }
        SubscriberId { owner, serial }
    }

    pub fn remove(&mut self, id: SubscriberId) -> Result<S> {
        let subscriber = self.place(id)?.subscriber.take().ok_or(Error::InvalidId)?;
        self.vacant.push(id.owner);
        Ok(subscriber)
    }

    fn place(&mut self, id: SubscriberId) -> Result<&mut Place<S>> {
        self.places.get_mut(id.owner as usize).filter(|place| place.serial == id.serial).ok_or(Error::InvalidId)
    }
}
