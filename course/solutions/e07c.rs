//! Solution of exercise 07c: the first reason counts.

use std::sync::{Mutex, PoisonError};

/// Why the run ended.
#[derive(Default)]
pub struct Reason(Mutex<Option<String>>);

impl Reason {
    pub fn set(&self, reason: &str) {
        self.with(|stored| {
            stored.get_or_insert_with(|| reason.to_owned());
        });
    }

    pub fn get(&self) -> Option<String> {
        self.with(|reason| reason.clone())
    }

    /// Calls `f` with the reason, under the lock.
    pub fn with<T>(&self, f: impl FnOnce(&mut Option<String>) -> T) -> T {
        f(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
