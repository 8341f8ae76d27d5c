//! The signal that gets a vCPU thread out of `KVM_RUN`.

use std::io;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering, compiler_fence};

use vmm_sys_util::signal::{SIGRTMIN, register_signal_handler, unblock_signal};

use super::run_page::RunPage;

// What a thread's word says: nothing to kick, a kick that came before there was anything, or where to put it.
const NONE: usize = 0;
const CANCEL_REQUESTED: usize = 1;

thread_local! {
    // Constant and without a destructor, so reading it from a signal handler is a plain memory access.
    static IMMEDIATE_EXIT: AtomicUsize = const { AtomicUsize::new(NONE) };
}

/// The signal that kicks a vCPU thread.
pub fn kick_signal() -> i32 {
    SIGRTMIN()
}

extern "C" fn on_kick(_: i32, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
    IMMEDIATE_EXIT.with(|word| match word.load(Ordering::Relaxed) {
        NONE | CANCEL_REQUESTED => word.store(CANCEL_REQUESTED, Ordering::Relaxed),
        // SAFETY: any other value is the address of this thread's `immediate_exit`, put there by `KickGuard`, which
        // takes it away again, on this same thread, before the page is unmapped.
        address => unsafe { AtomicU8::from_ptr(address as *mut u8) }.store(1, Ordering::Relaxed),
    });
}

/// Installs the handler of [`kick_signal`], and lets the signal through to this thread and those it starts, whatever mask
/// this process was started with. To be called before the first vCPU thread starts.
pub fn install_kick_handler() -> io::Result<()> {
    register_signal_handler(kick_signal(), on_kick)?;
    unblock_signal(kick_signal()).map_err(|error| io::Error::other(error.to_string()))
}

/// While this lives, a kick of this thread ends the current or the next `KVM_RUN` of one vCPU.
#[derive(Debug)]
pub(super) struct KickGuard<'a> {
    /// The vCPU's shared page, to read exits from.
    pub page: &'a mut RunPage,
}

impl<'a> KickGuard<'a> {
    /// Lets kicks of the calling thread reach the vCPU that `page` belongs to, one that came before included.
    pub fn new(page: &'a mut RunPage) -> Self {
        let address = page.immediate_exit().as_ptr() as usize;
        if IMMEDIATE_EXIT.with(|word| word.swap(address, Ordering::Relaxed)) == CANCEL_REQUESTED {
            page.immediate_exit().store(1, Ordering::Relaxed);
        }
        compiler_fence(Ordering::SeqCst);
        Self { page }
    }

    /// Takes note of a kick. What the kicker wrote before it is visible from here on.
    pub fn acknowledge(&mut self) {
        self.page.immediate_exit().store(0, Ordering::Relaxed);
        compiler_fence(Ordering::SeqCst);
    }
}

impl Drop for KickGuard<'_> {
    fn drop(&mut self) {
        IMMEDIATE_EXIT.with(|word| word.store(NONE, Ordering::Relaxed));
        compiler_fence(Ordering::SeqCst);
    }
}
