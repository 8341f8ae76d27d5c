//! The locks that [`mailbox`](super::mailbox) is made of. A model checker puts its own in their place: see
//! `tests/event_model.rs`.

pub(super) use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
