//! The vCPU threads: how they start, and how they end.

use std::error::Error;
use std::os::unix::thread::JoinHandleExt;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use super::exit_handler::{ExitHandler, WrappedExitHandler};
use super::kick;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

// ANCHOR: thread
/// Kicks when the thread ends, also by a panic.
struct ThreadGuard(WrappedExitHandler);

impl Drop for ThreadGuard {
    fn drop(&mut self) {
        let _ = if thread::panicking() { self.0.exit("a vCPU thread panicked") } else { self.0.kick() };
    }
}

/// Starts a thread that runs a vCPU. `body` returns why the vCPU has ended.
pub fn start_vcpu(
    exit_handler: WrappedExitHandler,
    body: impl FnOnce() -> Result<String> + Send + 'static,
) -> JoinHandle<()> {
    thread::spawn(move || {
        let guard = ThreadGuard(exit_handler);
        let reason = body().unwrap_or_else(|error| error.to_string());
        let _ = guard.0.exit(&reason);
    })
}
// ANCHOR_END: thread

// ANCHOR: shutdown
/// Gets all threads out of KVM_RUN and joins them.
pub fn shut_down(threads: Vec<JoinHandle<()>>) -> Result<()> {
    for thread in threads {
        while !thread.is_finished() {
            // SAFETY: the thread is not joined yet, so its identifier is valid.
            unsafe { libc::pthread_kill(thread.as_pthread_t(), kick::signal()) };
            thread::sleep(Duration::from_millis(10));
        }
        thread.join().map_err(|_| "a vCPU thread panicked")?;
    }
    Ok(())
}
// ANCHOR_END: shutdown
