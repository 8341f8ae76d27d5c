//! The two hand-offs between a loop and other threads: a message goes one way, its answer the other.
//!
//! ```text
//!   caller                      Mailbox                        loop
//!     │   send: put in, ring ─────▶│◀───── the doorbell wakes it: collect
//!     │                                                          │
//!     │◀──────────────────── Answer ◀──────────────── give, or drop
//! ```
//!
//! Nothing here knows of epoll: what rings is a [`Doorbell`].

use std::collections::VecDeque;
use std::io;

use super::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// Wakes the loop, now or as soon as it waits. Several rings may count as one.
pub(super) trait Doorbell {
    fn ring(&self) -> io::Result<()>;
}

/// Why a message was not sent.
#[derive(Debug)]
pub(super) enum SendError {
    /// The mailbox is closed.
    Closed,
    /// The message is in the mailbox, but the doorbell does not ring.
    Doorbell(io::Error),
}

/// Messages for a loop. The order of two senders is not defined, that of one is kept.
#[derive(Debug)]
pub(super) struct Mailbox<M, D> {
    /// `None` once the mailbox is closed.
    messages: Mutex<Option<VecDeque<M>>>,
    pub doorbell: D,
}

impl<M, D: Doorbell> Mailbox<M, D> {
    pub fn new(doorbell: D) -> Self {
        Mailbox { messages: Mutex::new(Some(VecDeque::new())), doorbell }
    }

    /// Puts a message in, then rings. Not the other way round: the loop could look, find nothing, and wait for a
    /// ring that has been.
    pub fn send(&self, message: M) -> Result<(), SendError> {
        match lock(&self.messages).as_mut() {
            Some(messages) => messages.push_back(message),
            None => return Err(SendError::Closed),
        }
        self.doorbell.ring().map_err(SendError::Doorbell)
    }

    /// Moves all messages to the end of `batch`.
    pub fn collect(&self, batch: &mut VecDeque<M>) {
        if let Some(messages) = lock(&self.messages).as_mut() {
            batch.append(messages);
        }
    }

    /// Takes no more messages, and returns those that nobody has collected. (What dropping them does must not
    /// happen under the lock.)
    pub fn close(&self) -> Option<VecDeque<M>> {
        lock(&self.messages).take()
    }
}

/// Makes the two ends of a hand-off of one value.
pub(super) fn answer<T>() -> (Answer<T>, Answerer<T>) {
    let slot = Arc::new(Slot { state: Mutex::new(State::Pending), settled: Condvar::new() });
    (Answer(Arc::clone(&slot)), Answerer(Some(slot)))
}

#[derive(Debug)]
struct Slot<T> {
    state: Mutex<State<T>>,
    settled: Condvar,
}

#[derive(Debug)]
enum State<T> {
    Pending,
    Given(T),
    /// The one who should have answered never will.
    Abandoned,
}

impl<T> Slot<T> {
    /// Ends the wait. The lock is released first, so that the waiter does not wake only to wait for the lock.
    fn settle(&self, state: State<T>) {
        *lock(&self.state) = state;
        self.settled.notify_one();
    }
}

/// The end that waits.
#[derive(Debug)]
pub(super) struct Answer<T>(Arc<Slot<T>>);

impl<T> Answer<T> {
    /// Waits for the value; `None` if there will never be one.
    pub fn wait(self) -> Option<T> {
        let mut state = lock(&self.0.state);
        loop {
            match std::mem::replace(&mut *state, State::Pending) {
                State::Given(value) => return Some(value),
                State::Abandoned => return None,
                State::Pending => state = self.0.settled.wait(state).unwrap_or_else(PoisonError::into_inner),
            }
        }
    }
}

/// The end that answers: with a value, or by being dropped.
#[derive(Debug)]
pub(super) struct Answerer<T>(Option<Arc<Slot<T>>>);

impl<T> Answerer<T> {
    pub fn give(mut self, value: T) {
        if let Some(slot) = self.0.take() {
            slot.settle(State::Given(value));
        }
    }
}

impl<T> Drop for Answerer<T> {
    fn drop(&mut self) {
        if let Some(slot) = self.0.take() {
            slot.settle(State::Abandoned);
        }
    }
}

/// No lock here is held while foreign code runs, so a poisoned one guards nothing broken.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
