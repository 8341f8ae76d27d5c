//! What a subscriber is: [`MutEventSubscriber`], or [`EventSubscriber`] if it needs no `&mut self`.
//!
//! Smart pointers and cells around a subscriber are subscribers too, so that an
//! [`EventManager`](super::EventManager) can hold one concrete type, `Box<dyn MutEventSubscriber>` for many types,
//! or `Arc<Mutex<dyn MutEventSubscriber + Send>>` for many types that others share.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};

use super::{EventOps, Events};

/// A subscriber that handles its events with a shared borrow, and so can sit behind an [`Arc`] or [`Rc`].
pub trait EventSubscriber {
    /// Handles one event. `ops` changes what the subscriber is interested in.
    ///
    /// [`EventSet::ERROR`](super::EventSet::ERROR) and [`EventSet::HANG_UP`](super::EventSet::HANG_UP) come
    /// unasked and last: a subscriber that cannot mend their cause should remove the descriptor.
    fn process(&self, events: Events, ops: &mut EventOps);

    /// Registers the first descriptors; called once, when the subscriber is added to a manager.
    fn init(&self, ops: &mut EventOps);
}

/// A subscriber that handles its events with an exclusive borrow.
pub trait MutEventSubscriber {
    /// Handles one event. `ops` changes what the subscriber is interested in.
    ///
    /// [`EventSet::ERROR`](super::EventSet::ERROR) and [`EventSet::HANG_UP`](super::EventSet::HANG_UP) come
    /// unasked and last: a subscriber that cannot mend their cause should remove the descriptor.
    fn process(&mut self, events: Events, ops: &mut EventOps);

    /// Registers the first descriptors; called once, when the subscriber is added to a manager.
    fn init(&mut self, ops: &mut EventOps);
}

/// A shared pointer passes its calls on; being shared, it needs no exclusive borrow.
macro_rules! shared {
    ($($pointer:ident),*) => {$(
        impl<T: EventSubscriber + ?Sized> EventSubscriber for $pointer<T> {
            fn process(&self, events: Events, ops: &mut EventOps) {
                (**self).process(events, ops);
            }

            fn init(&self, ops: &mut EventOps) {
                (**self).init(ops);
            }
        }

        impl<T: EventSubscriber + ?Sized> MutEventSubscriber for $pointer<T> {
            fn process(&mut self, events: Events, ops: &mut EventOps) {
                (**self).process(events, ops);
            }

            fn init(&mut self, ops: &mut EventOps) {
                (**self).init(ops);
            }
        }
    )*};
}

shared!(Arc, Rc);

impl<T: EventSubscriber + ?Sized> EventSubscriber for Box<T> {
    fn process(&self, events: Events, ops: &mut EventOps) {
        (**self).process(events, ops);
    }

    fn init(&self, ops: &mut EventOps) {
        (**self).init(ops);
    }
}

impl<T: MutEventSubscriber + ?Sized> MutEventSubscriber for Box<T> {
    fn process(&mut self, events: Events, ops: &mut EventOps) {
        (**self).process(events, ops);
    }

    fn init(&mut self, ops: &mut EventOps) {
        (**self).init(ops);
    }
}

/// Panics, as `borrow_mut` does, if the cell is borrowed while its event comes.
impl<T: MutEventSubscriber + ?Sized> EventSubscriber for RefCell<T> {
    fn process(&self, events: Events, ops: &mut EventOps) {
        self.borrow_mut().process(events, ops);
    }

    fn init(&self, ops: &mut EventOps) {
        self.borrow_mut().init(ops);
    }
}

impl<T: MutEventSubscriber + ?Sized> MutEventSubscriber for RefCell<T> {
    fn process(&mut self, events: Events, ops: &mut EventOps) {
        self.get_mut().process(events, ops);
    }

    fn init(&mut self, ops: &mut EventOps) {
        self.get_mut().init(ops);
    }
}

/// Waits for the lock. A poisoned lock is taken all the same: that some thread panicked is no reason to stop
/// handling events, least of all those that shut things down.
impl<T: MutEventSubscriber + ?Sized> EventSubscriber for Mutex<T> {
    fn process(&self, events: Events, ops: &mut EventOps) {
        self.lock().unwrap_or_else(PoisonError::into_inner).process(events, ops);
    }

    fn init(&self, ops: &mut EventOps) {
        self.lock().unwrap_or_else(PoisonError::into_inner).init(ops);
    }
}

impl<T: MutEventSubscriber + ?Sized> MutEventSubscriber for Mutex<T> {
    fn process(&mut self, events: Events, ops: &mut EventOps) {
        self.get_mut().unwrap_or_else(PoisonError::into_inner).process(events, ops);
    }

    fn init(&mut self, ops: &mut EventOps) {
        self.get_mut().unwrap_or_else(PoisonError::into_inner).init(ops);
    }
}
