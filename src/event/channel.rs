//! The channel from other threads to an event loop.
//!
//! ```text
//!   sender                       Channel                          loop
//!     │   send: push, then wake ────▶│◀──── the waker wakes it: receive_all
//! ```
//!
//! This file does not depend on epoll: the loop is woken through the trait [`Waker`].

use std::collections::VecDeque;
use std::io;

use super::sync::{Mutex, MutexGuard, PoisonError};

/// Wakes the loop, now or as soon as it waits. Several wakes may count as one.
pub(super) trait Waker {
    fn wake(&self) -> io::Result<()>;
}

/// Why a message was not sent.
#[derive(Debug)]
pub(super) enum SendError {
    /// The channel is closed.
    Closed,
    /// The message is in the channel, but the loop could not be woken.
    Wake(io::Error),
}

/// Messages for a loop. Messages of one sender keep their order.
#[derive(Debug)]
pub(super) struct Channel<M, W> {
    /// `None` after the channel is closed.
    messages: Mutex<Option<VecDeque<M>>>,
    pub waker: W,
}

impl<M, W: Waker> Channel<M, W> {
    pub fn new(waker: W) -> Self {
        Channel { messages: Mutex::new(Some(VecDeque::new())), waker }
    }

    /// Pushes a message, then wakes the loop. In the opposite order the loop could wake, find no message, and wait
    /// again before the message arrives.
    pub fn send(&self, message: M) -> Result<(), SendError> {
        lock(&self.messages).as_mut().ok_or(SendError::Closed)?.push_back(message);
        self.waker.wake().map_err(SendError::Wake)
    }

    /// Moves all messages to the end of `batch`.
    pub fn receive_all(&self, batch: &mut VecDeque<M>) {
        if let Some(messages) = lock(&self.messages).as_mut() {
            batch.append(messages);
        }
    }

    /// Closes the channel and returns the messages that were not received, so that the caller drops them without
    /// holding the lock.
    pub fn close(&self) -> Option<VecDeque<M>> {
        lock(&self.messages).take()
    }
}

/// Locks a mutex, also a poisoned one: no lock here is held while foreign code runs, so the data is consistent.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
