//! The subscribers that end the run from outside the guest: signals and the timeout.

use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use vmm_sys_util::signal::block_signal;

use super::Subscriber;
use super::builder::SignalHook;
use super::exit_handler::{ExitHandler, WrappedExitHandler};
use super::outcome::ExitReason;
use crate::console::terminal;
use crate::device::virtio::console::Port;
use crate::event::{Callback, Signals, Timer};
use crate::sys::winsize::WinSize;

/// The signals that request the end.
const SIGNALS: [i32; 4] = [libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGQUIT];

/// Blocks the signals that request the end, and those of `others`, from now on and for threads started later, and makes
/// them readable. Signals that are ignored since this process started (nohup, background jobs of a shell) stay ignored.
///
/// # Errors
///
/// The host has no more descriptors.
pub fn stop_signals(others: &[i32]) -> io::Result<Signals> {
    let ignored = ignored_signals();
    let _ = block_signal(libc::SIGXFSZ); // a console file that must not grow is a write error, not the end
    let signals: Vec<i32> =
        SIGNALS.iter().chain(others).copied().filter(|signal| ignored >> (signal - 1) & 1 == 0).collect();
    Signals::new(&signals)
}

/// The set of ignored signals, bit n-1 for signal n (proc_pid_status(5), `SigIgn`).
fn ignored_signals() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let set = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    set.and_then(|set| u64::from_str_radix(set.trim(), 16).ok()).unwrap_or(0)
}

/// A subscriber that ends the run when a signal requests it, unless `hook` returns that it has handled the signal.
pub fn on_signal(signals: Arc<Signals>, mut hook: Option<SignalHook>, exit_handler: WrappedExitHandler) -> Subscriber {
    Arc::new(Mutex::new(Callback::new(signals, move |signal, _| match signal {
        Ok(libc::SIGCONT) => terminal::resume(),
        Ok(number) if hook.as_mut().is_some_and(|hook| hook(number)) => {}
        Ok(number) => exit_handler.exit(ExitReason::Signal(number)),
        Err(error) => exit_handler.exit(ExitReason::Failed(format!("cannot wait for signals: {error}"))),
    })))
}

/// A subscriber that ends the run after `after`, beginning now.
///
/// # Errors
///
/// The host has no more descriptors.
pub fn on_timeout(after: Duration, exit_handler: WrappedExitHandler) -> io::Result<Subscriber> {
    let timer = Timer::new()?;
    timer.arm(after)?;
    Ok(Arc::new(Mutex::new(Callback::new(timer, move |expirations, _| match expirations {
        Ok(_) => exit_handler.exit(ExitReason::Timeout(after)),
        Err(error) => exit_handler.exit(ExitReason::Failed(format!("cannot wait for the timeout: {error}"))),
    }))))
}

/// A subscriber that gives `port` the size of the terminal on standard input whenever that changes.
///
/// # Errors
///
/// The host has no more descriptors.
pub fn on_resize(port: Arc<Port>) -> io::Result<Subscriber> {
    let signals = Signals::new(&[libc::SIGWINCH])?;
    Ok(Arc::new(Mutex::new(Callback::new(signals, move |_, _| {
        if let Ok(size) = WinSize::of(io::stdin()) {
            port.resize(size);
        }
    }))))
}
