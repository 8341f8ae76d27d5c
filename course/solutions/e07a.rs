//! Solution of exercise 07a: a kick that is lost just before KVM_RUN.

use std::ptr::with_exposed_provenance_mut;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};

use libc::c_int;

thread_local! {
    /// The address of `immediate_exit` of the vCPU that this thread runs, or 0 if it runs none.
    pub static IMMEDIATE_EXIT: AtomicUsize = const { AtomicUsize::new(0) };
}

/// The handler of the kick's signal.
pub extern "C" fn on_kick(_: c_int) {
    match IMMEDIATE_EXIT.with(|word| word.load(Ordering::Relaxed)) {
        0 => {}
        // SAFETY: the address is that of a mapped `immediate_exit` while the thread runs a vCPU.
        address => unsafe { AtomicU8::from_ptr(with_exposed_provenance_mut(address)) }.store(1, Ordering::Relaxed),
    }
}
