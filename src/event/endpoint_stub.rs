//! Replaces `endpoint.rs` without the feature `remote_endpoint`: a request queue that is always empty.

use std::marker::PhantomData;

use super::registrations::Registrations;
use super::{EventManager, Result};

pub(super) struct RequestQueue<S>(PhantomData<S>);

impl<S> RequestQueue<S> {
    pub fn new(_: &mut Registrations) -> Result<Self> {
        Ok(RequestQueue(PhantomData))
    }

    pub fn mark_woken(&mut self) {}

    pub fn pop(&mut self) -> Option<fn(&mut EventManager<S>)> {
        None
    }

    pub fn has_pending(&self) -> bool {
        false
    }

    pub fn enter_dispatch(&self) -> usize {
        0
    }

    pub fn leave_dispatch(&self, _previous: usize) {}
}
