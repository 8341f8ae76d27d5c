//! Exercise 07c: the first reason counts.
//!
//! A guest powers off; its other vCPU is stopped for this and ends with an error; at the same time the timeout expires.
//! There are three reasons, and the first is why the run ended. A thread may also panic while it holds the lock.

use std::sync::{Mutex, PoisonError};

/// Why the run ended.
#[derive(Default)]
pub struct Reason(Mutex<Option<String>>);

impl Reason {
    pub fn set(&self, reason: &str) {
        // TODO
        self.with(|stored| *stored = Some(reason.to_owned()));
    }

    pub fn get(&self) -> Option<String> {
        self.with(|reason| reason.clone())
    }

    /// Calls `f` with the reason, under the lock.
    pub fn with<T>(&self, f: impl FnOnce(&mut Option<String>) -> T) -> T {
        // TODO: `unwrap` panics if another thread panicked under the lock.
        let _ = PoisonError::<()>::into_inner;
        f(&mut self.0.lock().unwrap())
    }
}
