//! The synchronisation types of [`channel`](super::channel). `tests/event_model.rs` substitutes those of the model
//! checker loom.

pub(super) use std::sync::{Mutex, MutexGuard, PoisonError};
