//! The subscribers that end the run from outside the guest: signals and the timeout.

use std::fmt;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::Duration;

use vmm_sys_util::signal::block_signal;

use super::builder::SignalHook;
use super::exit_handler::ExitHandler;
use super::outcome::ExitReason;
use crate::console::terminal;
use crate::event::{EventOps, EventSet, Events, MutEventSubscriber, Signals, Timer};

/// The signals that request the end, and the one by which a shell continues a stopped process.
const SIGNALS: [i32; 5] = [libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGQUIT, libc::SIGCONT];

/// Blocks the signals that request the end, from now on and for threads started later, and makes them readable. Signals that
/// are ignored since this process started (nohup, background jobs of a shell) stay ignored.
///
/// # Errors
///
/// The host has no more descriptors.
pub fn stop_signals() -> io::Result<Signals> {
    let ignored = ignored_signals();
    let _ = block_signal(libc::SIGXFSZ); // a console file that must not grow is a write error, not the end
    let signals: Vec<i32> = SIGNALS.into_iter().filter(|signal| ignored >> (signal - 1) & 1 == 0).collect();
    Signals::new(&signals)
}

/// The set of ignored signals, bit n-1 for signal n (proc_pid_status(5), `SigIgn`).
fn ignored_signals() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let set = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    set.and_then(|set| u64::from_str_radix(set.trim(), 16).ok()).unwrap_or(0)
}

/// Kicks when a signal requests the end.
pub struct SignalSubscriber<EH> {
    /// Where signals are read.
    pub signals: Arc<Signals>,
    /// What is kicked.
    pub exit_handler: EH,
    /// Called first.
    pub hook: Option<SignalHook>,
}

impl<EH: fmt::Debug> fmt::Debug for SignalSubscriber<EH> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SignalSubscriber").field("signals", &self.signals).finish_non_exhaustive()
    }
}

impl<EH: ExitHandler> MutEventSubscriber for SignalSubscriber<EH> {
    fn process(&mut self, _events: Events, _ops: &mut EventOps) {
        match self.signals.read() {
            Ok(Some(libc::SIGCONT)) => terminal::resume(),
            Ok(Some(number)) if !self.hook.as_mut().is_some_and(|hook| hook(number)) => {
                self.exit_handler.exit(ExitReason::Signal(number));
            }
            _ => {}
        }
    }

    fn init(&mut self, ops: &mut EventOps) {
        wait_for(&*self.signals, "signals", &self.exit_handler, ops);
    }
}

/// Kicks when the time is up.
#[derive(Debug)]
pub struct TimeoutSubscriber<EH> {
    timer: Timer,
    after: Duration,
    exit_handler: EH,
}

impl<EH> TimeoutSubscriber<EH> {
    /// A timeout that begins now.
    ///
    /// # Errors
    ///
    /// The host has no more descriptors.
    pub fn new(after: Duration, exit_handler: EH) -> io::Result<Self> {
        let timer = Timer::new()?;
        timer.arm(after)?;
        Ok(Self { timer, after, exit_handler })
    }
}

impl<EH: ExitHandler> MutEventSubscriber for TimeoutSubscriber<EH> {
    fn process(&mut self, _events: Events, _ops: &mut EventOps) {
        if let Ok(Some(_)) = self.timer.read() {
            self.exit_handler.exit(ExitReason::Timeout(self.after));
        }
    }

    fn init(&mut self, ops: &mut EventOps) {
        wait_for(&self.timer, "the timeout", &self.exit_handler, ops);
    }
}

fn wait_for<EH: ExitHandler>(source: &impl AsRawFd, what: &str, exit_handler: &EH, ops: &mut EventOps) {
    if let Err(error) = ops.add(Events::new(source, EventSet::IN)) {
        exit_handler.exit(ExitReason::Failed(format!("cannot wait for {what}: {error}")));
    }
}
