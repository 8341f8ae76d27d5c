//! The [`EventManager`]: one event loop and the subscribers that it calls.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use super::endpoint::RequestQueue;
use super::epoll::{EpollEvent, MAX_READY_EVENTS_CAPACITY};
use super::registrations::Registrations;
use super::subscribers::Subscribers;
use super::{Error, EventOps, MutEventSubscriber, Result, SubscriberId};

/// Operations on the subscribers of a manager.
pub trait SubscriberOps {
    /// The type of the subscribers.
    type Subscriber: MutEventSubscriber;

    /// Takes ownership of a subscriber, calls its `init` and returns its identifier.
    ///
    /// # Panics
    ///
    /// Panics if `init` panics. The subscriber is then dropped, and none of its descriptors stays registered.
    fn add_subscriber(&mut self, subscriber: Self::Subscriber) -> SubscriberId;

    /// Returns ownership of a subscriber and removes all its registrations.
    ///
    /// # Errors
    ///
    /// Returns [`InvalidId`](Error::InvalidId) if there is no such subscriber.
    fn remove_subscriber(&mut self, subscriber_id: SubscriberId) -> Result<Self::Subscriber>;

    /// Borrows a subscriber.
    ///
    /// # Errors
    ///
    /// Returns [`InvalidId`](Error::InvalidId) if there is no such subscriber.
    fn subscriber_mut(&mut self, subscriber_id: SubscriberId) -> Result<&mut Self::Subscriber>;

    /// Returns an object that adds, modifies and removes registrations of a subscriber.
    ///
    /// # Errors
    ///
    /// Returns [`InvalidId`](Error::InvalidId) if there is no such subscriber.
    fn event_ops(&mut self, subscriber_id: SubscriberId) -> Result<EventOps<'_>>;
}

/// Waits for events and dispatches them to subscribers. The caller provides the loop around [`run`](Self::run).
///
/// `S` is the type of all subscribers. A concrete type is dispatched statically; use `Box<dyn MutEventSubscriber>`
/// for subscribers of several types.
///
/// One `run` makes one `epoll_wait` call, and one call of `process` for each event that it returned. Dispatching
/// allocates nothing, and looks up one table entry for each event. An event is dropped if its registration was
/// removed or modified earlier in the same `run`.
///
/// If `process` panics, the panic propagates through `run` and no event is lost: if the panic is caught, the next
/// `run` starts with the remaining events.
pub struct EventManager<S> {
    /// The first field, so that it is dropped first: a subscriber that calls the manager while it is dropped gets an
    /// error.
    pub(super) requests: RequestQueue<S>,
    subscribers: Subscribers<S>,
    registrations: Registrations,
    /// The events that the last wait returned.
    ready: Vec<EpollEvent>,
    /// The index in `ready` of the next event to dispatch.
    next: usize,
}

impl<S: MutEventSubscriber> EventManager<S> {
    const DEFAULT_READY_EVENTS_CAPACITY: usize = 256;

    /// Creates a manager that dispatches up to 256 events in one `run`.
    ///
    /// # Errors
    ///
    /// Returns the kernel's error: too many open files, or no memory.
    pub fn new() -> Result<Self> {
        Self::new_with_capacity(Self::DEFAULT_READY_EVENTS_CAPACITY)
    }

    /// Creates a manager that dispatches up to `ready_events_capacity` events in one `run`. If more descriptors are
    /// ready, later runs report the others, so that no descriptor starves. The list takes 12 bytes of memory for each
    /// event, which are not touched before the event occurs.
    ///
    /// # Errors
    ///
    /// Returns [`InvalidCapacity`](Error::InvalidCapacity) unless the capacity is 1 to
    /// [`MAX_READY_EVENTS_CAPACITY`], and the kernel's error if there are too many open files.
    pub fn new_with_capacity(ready_events_capacity: usize) -> Result<Self> {
        if !(1..=MAX_READY_EVENTS_CAPACITY).contains(&ready_events_capacity) {
            return Err(Error::InvalidCapacity);
        }
        let mut ready = Vec::new();
        ready.try_reserve_exact(ready_events_capacity).map_err(|_| Error::InvalidCapacity)?;
        let mut registrations = Registrations::new()?;
        let requests = RequestQueue::new(&mut registrations)?;
        Ok(EventManager { requests, subscribers: Subscribers::new(), registrations, ready, next: 0 })
    }

    /// Waits for events without a time limit and dispatches them. Returns the number of events delivered to
    /// subscribers, which is 0 if a signal handler ran.
    ///
    /// # Errors
    ///
    /// Returns the kernel's error from `epoll_wait`. It is not expected in practice; do not retry it without a limit.
    pub fn run(&mut self) -> Result<usize> {
        self.run_with_timeout(-1)
    }

    /// Waits for events for at most `milliseconds` and dispatches them, like [`run`](EventManager::run). 0 does not
    /// block, a negative number waits without a limit. Returns 0 after the timeout.
    ///
    /// # Errors
    ///
    /// Returns the kernel's error from `epoll_wait`.
    pub fn run_with_timeout(&mut self, milliseconds: i32) -> Result<usize> {
        let guard = DispatchGuard::new(self);
        let manager = &mut *guard.manager;
        // After a panic, there are events or requests to finish before the next wait.
        if manager.next == manager.ready.len() && !manager.requests.has_pending() {
            manager.ready.clear();
            manager.next = 0;
            manager.registrations.wait(milliseconds, &mut manager.ready)?;
        }
        let delivered = manager.dispatch();
        while let Some(request) = manager.requests.pop() {
            request(manager);
        }
        Ok(delivered)
    }

    /// Delivers the ready events and returns their number.
    fn dispatch(&mut self) -> usize {
        let mut delivered = 0;
        while let Some(event) = self.ready.get(self.next) {
            self.next += 1;
            let Some((owner, events)) = self.registrations.resolve(event) else { continue };
            match self.subscribers.in_seat(owner) {
                Some(subscriber) => {
                    subscriber.process(events, &mut EventOps::new(&mut self.registrations, owner));
                    delivered += 1;
                }
                None => self.requests.mark_woken(),
            }
        }
        delivered
    }
}

/// Marks the current thread as the one that runs the manager, which must not make a blocking call to it.
struct DispatchGuard<'a, S> {
    manager: &'a mut EventManager<S>,
    previous: usize,
}

impl<'a, S> DispatchGuard<'a, S> {
    fn new(manager: &'a mut EventManager<S>) -> Self {
        let previous = manager.requests.enter_dispatch();
        DispatchGuard { manager, previous }
    }
}

impl<S> Drop for DispatchGuard<'_, S> {
    fn drop(&mut self) {
        self.manager.requests.leave_dispatch(self.previous);
    }
}

impl<S: MutEventSubscriber> SubscriberOps for EventManager<S> {
    type Subscriber = S;

    fn add_subscriber(&mut self, subscriber: S) -> SubscriberId {
        let guard = DispatchGuard::new(self);
        let EventManager { subscribers, registrations, .. } = &mut *guard.manager;
        let id = subscribers.insert(subscriber);
        let init = || subscribers.get(id).map(|new| new.init(&mut EventOps::new(registrations, id.owner)));
        if let Err(panic) = catch_unwind(AssertUnwindSafe(init)) {
            drop(guard.manager.remove_subscriber(id));
            resume_unwind(panic);
        }
        id
    }

    fn remove_subscriber(&mut self, subscriber_id: SubscriberId) -> Result<S> {
        let subscriber = self.subscribers.remove(subscriber_id)?;
        self.registrations.remove_all(subscriber_id.owner);
        Ok(subscriber)
    }

    fn subscriber_mut(&mut self, subscriber_id: SubscriberId) -> Result<&mut S> {
        self.subscribers.get(subscriber_id)
    }

    fn event_ops(&mut self, subscriber_id: SubscriberId) -> Result<EventOps<'_>> {
        self.subscribers.get(subscriber_id)?;
        Ok(EventOps::new(&mut self.registrations, subscriber_id.owner))
    }
}

/// Shows the number of subscribers instead of the subscribers, which need not implement `Debug`.
impl<S> fmt::Debug for EventManager<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EventManager").field("subscribers", &self.subscribers.len()).finish_non_exhaustive()
    }
}
