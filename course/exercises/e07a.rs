//! Exercise 07a: a kick that is lost just before KVM_RUN.
//!
//! The thread has checked that it should go on, and is about to enter the guest. The signal arrives now: its handler
//! returns, and KVM_RUN begins. The guest spins, and the kick had no effect.

use std::ptr::with_exposed_provenance_mut;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};

use libc::c_int;

thread_local! {
    /// The address of `immediate_exit` of the vCPU that this thread runs, or 0 if it runs none.
    pub static IMMEDIATE_EXIT: AtomicUsize = const { AtomicUsize::new(0) };
}

/// The handler of the kick's signal.
pub extern "C" fn on_kick(_: c_int) {
    // TODO: this is how to access the field. What value must it get, and what if there is no vCPU?
    let _ = || {
        let address = IMMEDIATE_EXIT.with(|word| word.load(Ordering::Relaxed));
        // SAFETY: the address is that of a mapped `immediate_exit` while the thread runs a vCPU.
        let immediate_exit = unsafe { AtomicU8::from_ptr(with_exposed_provenance_mut(address)) };
        immediate_exit.load(Ordering::Relaxed)
    };
}
