//! The signal that gets a vCPU thread out of `KVM_RUN`.
//!
//! Its handler sets `kvm_run.immediate_exit` of the thread's vCPU, so that a signal that arrives just before `KVM_RUN`
//! also ends it (Documentation/virt/kvm/api.rst, section 5). The handler finds the field through a word of the thread:
//!
//! ```text
//!  IDLE ── KickGuard::new ──► address of immediate_exit ── signal ──► immediate_exit = 1
//!    │                                   ▲
//!    └─ signal ──► CANCEL_REQUESTED ─────┘  KickGuard::new, sets immediate_exit
//! ```

use std::io;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering, compiler_fence};

use vmm_sys_util::signal::{SIGRTMIN, register_signal_handler, unblock_signal};

use super::run_page::RunPage;

// Values of a thread's word. Any other is the address of `immediate_exit`.
/// The thread runs no vCPU.
const IDLE: usize = 0;
/// The signal arrived while the thread ran no vCPU.
const CANCEL_REQUESTED: usize = 1;

thread_local! {
    // Constant and without a destructor, so a signal handler may access it: it needs no allocation and no lock.
    static IMMEDIATE_EXIT: AtomicUsize = const { AtomicUsize::new(IDLE) };
}

/// Returns the number of the signal that gets a vCPU thread out of `KVM_RUN`.
pub fn kick_signal() -> i32 {
    SIGRTMIN()
}

extern "C" fn on_kick(_: i32, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
    IMMEDIATE_EXIT.with(|word| match word.load(Ordering::Relaxed) {
        IDLE | CANCEL_REQUESTED => word.store(CANCEL_REQUESTED, Ordering::Relaxed),
        // SAFETY: any other value is the address of a mapped `immediate_exit`. `KickGuard` stores it and, on this same
        // thread, removes it before the page is unmapped.
        address => unsafe { AtomicU8::from_ptr(address as *mut u8) }.store(1, Ordering::Relaxed),
    });
}

/// Installs the handler of [`kick_signal`] and unblocks the signal for this thread and those that it starts: the
/// process may have inherited a mask that blocks it. Call this before the first vCPU thread starts.
///
/// # Errors
///
/// The error of sigaction(2) or pthread_sigmask(3).
pub fn install_kick_handler() -> io::Result<()> {
    register_signal_handler(kick_signal(), on_kick)?;
    unblock_signal(kick_signal()).map_err(|error| io::Error::other(error.to_string()))
}

/// While this value lives, the signal to its thread ends the current or the next `KVM_RUN` of one vCPU.
#[derive(Debug)]
pub(super) struct KickGuard<'a> {
    /// The page that the vCPU shares with the kernel; exits are read from it.
    pub page: &'a mut RunPage,
}

impl<'a> KickGuard<'a> {
    /// Connects the signal of the calling thread with the vCPU of `page`. A signal that arrived earlier counts.
    pub fn new(page: &'a mut RunPage) -> Self {
        let address = page.immediate_exit().as_ptr() as usize;
        if IMMEDIATE_EXIT.with(|word| word.swap(address, Ordering::Relaxed)) == CANCEL_REQUESTED {
            page.immediate_exit().store(1, Ordering::Relaxed);
        }
        // Keeps the compiler from moving accesses across this point; the handler runs on this same thread.
        compiler_fence(Ordering::SeqCst);
        Self { page }
    }

    /// Clears a kick. What the sender wrote before the signal is visible from here on.
    pub fn acknowledge(&mut self) {
        self.page.immediate_exit().store(0, Ordering::Relaxed);
        compiler_fence(Ordering::SeqCst);
    }
}

impl Drop for KickGuard<'_> {
    fn drop(&mut self) {
        IMMEDIATE_EXIT.with(|word| word.store(IDLE, Ordering::Relaxed));
        compiler_fence(Ordering::SeqCst);
    }
}
