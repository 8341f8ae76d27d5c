//! The subscriber traits: [`MutEventSubscriber`], and [`EventSubscriber`] for types that need no `&mut self`.
//!
//! Smart pointers to subscribers, and cells and locks around them, are subscribers too. An
//! [`EventManager`](super::EventManager) can therefore hold one concrete type, `Box<dyn MutEventSubscriber>` for
//! several types, or `Arc<Mutex<dyn MutEventSubscriber + Send>>` for several types that are shared with other threads.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};

use super::{EventOps, Events};

/// A subscriber that handles its events with a shared borrow, and can therefore be in an [`Arc`] or [`Rc`].
pub trait EventSubscriber {
    /// Handles one event. `ops` changes the registrations of this subscriber.
    ///
    /// [`EventSet::ERROR`](super::EventSet::ERROR) and [`EventSet::HANG_UP`](super::EventSet::HANG_UP) are reported
    /// without being registered, and as long as they last. A subscriber that cannot remove their cause should remove
    /// the descriptor.
    fn process(&self, events: Events, ops: &mut EventOps);

    /// Registers the first descriptors. It is called once, when the subscriber is added to a manager.
    fn init(&self, ops: &mut EventOps);
}

/// A subscriber that handles its events with an exclusive borrow.
pub trait MutEventSubscriber {
    /// Handles one event. `ops` changes the registrations of this subscriber.
    ///
    /// [`EventSet::ERROR`](super::EventSet::ERROR) and [`EventSet::HANG_UP`](super::EventSet::HANG_UP) are reported
    /// without being registered, and as long as they last. A subscriber that cannot remove their cause should remove
    /// the descriptor.
    fn process(&mut self, events: Events, ops: &mut EventOps);

    /// Registers the first descriptors. It is called once, when the subscriber is added to a manager.
    fn init(&mut self, ops: &mut EventOps);
}

/// Implements a subscriber trait for a wrapper: both calls are forwarded to the subscriber that the expression returns.
macro_rules! forward {
    ($($(#[$doc:meta])* $trait:ident for $wrapper:ident<T: $bound:ident>: ($($this:tt)+) => $inner:expr;)+) => {$(
        $(#[$doc])*
        impl<T: $bound + ?Sized> $trait for $wrapper<T> {
            fn process($($this)+, events: Events, ops: &mut EventOps) {
                $inner.process(events, ops);
            }

            fn init($($this)+, ops: &mut EventOps) {
                $inner.init(ops);
            }
        }
    )+};
}

forward! {
    EventSubscriber for Box<T: EventSubscriber>: (&self) => **self;
    EventSubscriber for Rc<T: EventSubscriber>: (&self) => **self;
    EventSubscriber for Arc<T: EventSubscriber>: (&self) => **self;
    /// Panics like `borrow_mut` if the cell is borrowed when its event is dispatched.
    EventSubscriber for RefCell<T: MutEventSubscriber>: (&self) => self.borrow_mut();
    /// Waits for the lock. A poisoned lock is taken too: a panic of some thread is no reason to stop the handling of
    /// events, least of all those that shut things down.
    EventSubscriber for Mutex<T: MutEventSubscriber>: (&self) => self.lock().unwrap_or_else(PoisonError::into_inner);

    MutEventSubscriber for Box<T: MutEventSubscriber>: (&mut self) => **self;
    MutEventSubscriber for Rc<T: EventSubscriber>: (&mut self) => **self;
    MutEventSubscriber for Arc<T: EventSubscriber>: (&mut self) => **self;
    MutEventSubscriber for RefCell<T: MutEventSubscriber>: (&mut self) => self.get_mut();
    MutEventSubscriber for Mutex<T: MutEventSubscriber>:
        (&mut self) => self.get_mut().unwrap_or_else(PoisonError::into_inner);
}
