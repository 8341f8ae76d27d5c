//! The subscribers a manager holds, each at a place of its own. Place 0 is the manager's, which is no subscriber.

use super::interests::Owner;
use super::{Error, Result};

/// Names one subscriber of one manager. It is never given to another, even after the subscriber is removed.
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

/// Places for subscribers. A place is used again, but never a serial number.
#[derive(Debug)]
pub(super) struct Subscribers<S> {
    places: Vec<Place<S>>,
    vacant: Vec<Owner>,
    serial: u64,
}

#[derive(Debug)]
struct Place<S> {
    serial: u64,
    subscriber: Option<S>,
}

impl<S> Subscribers<S> {
    pub fn new() -> Self {
        Subscribers { places: vec![Place { serial: 0, subscriber: None }], vacant: Vec::new(), serial: 0 }
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
        self.serial += 1;
        let place = Place { serial: self.serial, subscriber: Some(subscriber) };
        match self.vacant.pop() {
            Some(_) => self.places[owner as usize] = place,
            None => self.places.push(place),
        }
        SubscriberId { owner, serial: self.serial }
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
