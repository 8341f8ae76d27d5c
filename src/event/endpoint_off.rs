//! Stands in for `endpoint.rs` when the feature `remote_endpoint` is off: an inbox that never gets anything.

use std::marker::PhantomData;

use super::interests::Interests;
use super::{EventManager, Result};

pub(super) struct Inbox<S>(PhantomData<S>);

impl<S> Inbox<S> {
    pub fn new(_: &mut Interests) -> Result<Self> {
        Ok(Inbox(PhantomData))
    }

    pub fn rang(&mut self) {}

    pub fn next(&mut self) -> Option<fn(&mut EventManager<S>)> {
        None
    }

    pub fn is_pending(&self) -> bool {
        false
    }

    pub fn enter(&self) -> usize {
        0
    }

    pub fn leave(&self, _before: usize) {}
}
