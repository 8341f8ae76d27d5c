//! The [`EventManager`]: one loop, and the subscribers it calls.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use super::endpoint::Inbox;
use super::epoll::{EpollEvent, MAX_READY_EVENTS_CAPACITY};
use super::interests::Interests;
use super::subscribers::Subscribers;
use super::{Error, EventOps, MutEventSubscriber, Result, SubscriberId};

/// What can be done with the subscribers of a manager.
pub trait SubscriberOps {
    /// The type of the subscribers.
    type Subscriber: MutEventSubscriber;

    /// Takes a subscriber in, calls its `init`, and returns the identifier to speak of it by.
    ///
    /// # Panics
    ///
    /// If `init` does; the subscriber is then dropped, and nothing of it stays registered.
    fn add_subscriber(&mut self, subscriber: Self::Subscriber) -> SubscriberId;

    /// Gives a subscriber back, and forgets all it has registered.
    ///
    /// # Errors
    ///
    /// [`InvalidId`](Error::InvalidId) if there is no such subscriber.
    fn remove_subscriber(&mut self, subscriber_id: SubscriberId) -> Result<Self::Subscriber>;

    /// Lends a subscriber out.
    ///
    /// # Errors
    ///
    /// [`InvalidId`](Error::InvalidId) if there is no such subscriber.
    fn subscriber_mut(&mut self, subscriber_id: SubscriberId) -> Result<&mut Self::Subscriber>;

    /// Registers, modifies or removes descriptors in a subscriber's name.
    ///
    /// # Errors
    ///
    /// [`InvalidId`](Error::InvalidId) if there is no such subscriber.
    fn event_ops(&mut self, subscriber_id: SubscriberId) -> Result<EventOps<'_>>;
}

/// An event loop's inside: call [`run`](EventManager::run) in a loop of your own.
///
/// `S` is one type for all subscribers. A concrete type is dispatched statically; `Box<dyn MutEventSubscriber>`
/// makes room for several.
///
/// Each `run` is one *turn*: one `epoll_wait`, then one call of `process` for each event it returned. Dispatching
/// allocates nothing and looks nothing up but one slot of a table. An event whose registration was removed or
/// modified earlier in the same turn is dropped.
///
/// If `process` panics, the panic passes through `run`, and nothing is lost: should somebody catch it, the next
/// `run` starts with the events that were left.
pub struct EventManager<S> {
    /// First, because it is dropped first: a subscriber that still calls the manager then gets an error.
    pub(super) inbox: Inbox<S>,
    subscribers: Subscribers<S>,
    interests: Interests,
    /// What the last wait returned.
    ready: Vec<EpollEvent>,
    /// The first event in `ready` that is not dispatched yet.
    next: usize,
}

impl<S: MutEventSubscriber> EventManager<S> {
    const DEFAULT_READY_EVENTS_CAPACITY: usize = 256;

    /// Makes a manager that takes up to 256 events a turn.
    ///
    /// # Errors
    ///
    /// The kernel's, when it makes no more descriptors.
    pub fn new() -> Result<Self> {
        Self::new_with_capacity(Self::DEFAULT_READY_EVENTS_CAPACITY)
    }

    /// Makes a manager that takes up to `ready_events_capacity` events a turn. If more are ready, the others come
    /// with the next turns: nobody starves. An event takes 12 bytes, which are not touched before it comes.
    ///
    /// # Errors
    ///
    /// [`InvalidCapacity`](Error::InvalidCapacity) unless the capacity is 1 to [`MAX_READY_EVENTS_CAPACITY`], and
    /// the kernel's, when it makes no more descriptors.
    pub fn new_with_capacity(ready_events_capacity: usize) -> Result<Self> {
        if !(1..=MAX_READY_EVENTS_CAPACITY).contains(&ready_events_capacity) {
            return Err(Error::InvalidCapacity);
        }
        let mut ready = Vec::new();
        ready.try_reserve_exact(ready_events_capacity).map_err(|_| Error::InvalidCapacity)?;
        let mut interests = Interests::new()?;
        let inbox = Inbox::new(&mut interests)?;
        Ok(EventManager { inbox, subscribers: Subscribers::new(), interests, ready, next: 0 })
    }

    /// Waits for events, as long as it takes, and dispatches them. Returns how many were delivered to subscribers;
    /// 0 if a signal handler ran.
    ///
    /// # Errors
    ///
    /// The kernel's, from `epoll_wait`. None is expected; do not retry for ever.
    pub fn run(&mut self) -> Result<usize> {
        self.run_with_timeout(-1)
    }

    /// Like [`run`](EventManager::run), but waits at most so many milliseconds: 0 only looks, a negative number
    /// waits for ever. Returns 0 also when the time ran out.
    ///
    /// # Errors
    ///
    /// The kernel's, from `epoll_wait`.
    pub fn run_with_timeout(&mut self, milliseconds: i32) -> Result<usize> {
        let turn = Turn::begin(self);
        let manager = &mut *turn.manager;
        // Unless a panic has left something over.
        if manager.next == manager.ready.len() && !manager.inbox.is_pending() {
            manager.ready.clear();
            manager.next = 0;
            manager.interests.wait(milliseconds, &mut manager.ready)?;
        }
        let delivered = manager.dispatch();
        if manager.inbox.is_pending() {
            manager.serve();
        }
        Ok(delivered)
    }

    /// Runs the requests of other threads.
    #[cold]
    fn serve(&mut self) {
        while let Some(request) = self.inbox.next() {
            request(self);
        }
    }

    /// Delivers what is ready, and returns how many events that were.
    fn dispatch(&mut self) -> usize {
        let mut delivered = 0;
        while let Some(event) = self.ready.get(self.next) {
            self.next += 1;
            let Some((owner, events)) = self.interests.resolve(event) else { continue };
            match self.subscribers.at(owner) {
                Some(subscriber) => {
                    subscriber.process(events, &mut EventOps::new(&mut self.interests, owner));
                    delivered += 1;
                }
                None => self.inbox.rang(),
            }
        }
        delivered
    }
}

/// A thread's stay inside the manager, from which it must not wait for the manager.
struct Turn<'a, S> {
    manager: &'a mut EventManager<S>,
    before: usize,
}

impl<'a, S> Turn<'a, S> {
    fn begin(manager: &'a mut EventManager<S>) -> Self {
        let before = manager.inbox.enter();
        Turn { manager, before }
    }
}

impl<S> Drop for Turn<'_, S> {
    fn drop(&mut self) {
        self.manager.inbox.leave(self.before);
    }
}

impl<S: MutEventSubscriber> SubscriberOps for EventManager<S> {
    type Subscriber = S;

    fn add_subscriber(&mut self, mut subscriber: S) -> SubscriberId {
        let turn = Turn::begin(self);
        let EventManager { subscribers, interests, .. } = turn.manager;
        let owner = subscribers.vacancy();
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| subscriber.init(&mut EventOps::new(interests, owner)))) {
            interests.release(owner);
            resume_unwind(panic);
        }
        subscribers.insert(owner, subscriber)
    }

    fn remove_subscriber(&mut self, subscriber_id: SubscriberId) -> Result<S> {
        let subscriber = self.subscribers.remove(subscriber_id)?;
        self.interests.release(subscriber_id.owner());
        Ok(subscriber)
    }

    fn subscriber_mut(&mut self, subscriber_id: SubscriberId) -> Result<&mut S> {
        self.subscribers.get(subscriber_id)
    }

    fn event_ops(&mut self, subscriber_id: SubscriberId) -> Result<EventOps<'_>> {
        self.subscribers.get(subscriber_id)?;
        Ok(EventOps::new(&mut self.interests, subscriber_id.owner()))
    }
}

/// Shows the loop, not the subscribers, which need not be `Debug`.
impl<S> fmt::Debug for EventManager<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EventManager")
            .field("subscribers", &self.subscribers.len())
            .field("capacity", &self.ready.capacity())
            .finish_non_exhaustive()
    }
}
