//! The channels between an event loop and other threads: requests go to the loop, each reply goes back.
//!
//! ```text
//!   caller                       Channel                          loop
//!     │   send: push, then wake ────▶│◀──── the waker wakes it: receive_all
//!     │                                                             │
//!     │◀────────────────── ReplyReceiver ◀──────── send a reply, or drop the sender
//! ```
//!
//! This file does not depend on epoll: the loop is woken through the trait [`Waker`].

use std::collections::VecDeque;
use std::io;

use super::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

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

/// Creates a channel for one reply.
pub(super) fn reply_channel<T>() -> (ReplySender<T>, ReplyReceiver<T>) {
    let shared = Arc::new(Reply { outcome: Mutex::new(None), sent: Condvar::new() });
    (ReplySender { shared: Arc::clone(&shared), value: None }, ReplyReceiver(shared))
}

#[derive(Debug)]
struct Reply<T> {
    /// `None` until the sender is dropped. The inner `None` means that it was dropped without a reply.
    outcome: Mutex<Option<Option<T>>>,
    sent: Condvar,
}

/// The end that waits for the reply.
#[derive(Debug)]
pub(super) struct ReplyReceiver<T>(Arc<Reply<T>>);

impl<T> ReplyReceiver<T> {
    /// Waits for the reply. Returns `None` if the sender was dropped without one.
    pub fn receive(self) -> Option<T> {
        let mut outcome = lock(&self.0.outcome);
        loop {
            if let Some(reply) = outcome.take() {
                return reply;
            }
            outcome = self.0.sent.wait(outcome).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// The end that replies. Dropping it ends the wait of the receiver in any case.
#[derive(Debug)]
pub(super) struct ReplySender<T> {
    shared: Arc<Reply<T>>,
    value: Option<T>,
}

impl<T> ReplySender<T> {
    pub fn send(mut self, value: T) {
        self.value = Some(value);
    }
}

impl<T> Drop for ReplySender<T> {
    fn drop(&mut self) {
        // The lock is released before the notification, so that the receiver does not wake to wait for the lock.
        *lock(&self.shared.outcome) = Some(self.value.take());
        self.shared.sent.notify_one();
    }
}

/// Locks a mutex, also a poisoned one: no lock here is held while foreign code runs, so the data is consistent.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
