//! Two subscribers that end the run from outside the guest: signals, and the timeout.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use vmm_sys_util::signal::block_signal;

use super::complain;
use super::exit_handler::ExitHandler;
use super::hooks::Companion;
use super::outcome::ExitReason;
use crate::console::terminal;
use crate::event::{EventOps, EventSet, Events, MutEventSubscriber, Signals, Timer};

/// The signals that ask kickvm to stop, and the one by which a shell lets it go on.
const SIGNALS: [i32; 5] = [libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGQUIT, libc::SIGCONT];

/// Blocks the signals that ask to stop, from now on and for threads started later, and makes them readable. Those that
/// whoever started this program has set to be ignored (nohup, a shell's background jobs) stay ignored.
pub fn stop_signals() -> io::Result<Signals> {
    let ignored = ignored_signals();
    let _ = block_signal(libc::SIGXFSZ); // a console file that must not grow is an error of writing, not the end
    let heeded: Vec<i32> = SIGNALS.into_iter().filter(|signal| ignored >> (signal - 1) & 1 == 0).collect();
    Signals::new(&heeded)
}

/// The set of ignored signals, bit n-1 for signal n (proc_pid_status(5), `SigIgn`).
fn ignored_signals() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let set = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    set.and_then(|set| u64::from_str_radix(set.trim(), 16).ok()).unwrap_or(0)
}

/// Kicks when a signal asks to stop.
#[derive(Debug)]
pub struct SignalSubscriber<EH> {
    /// Where signals are read.
    pub signals: Arc<Signals>,
    /// What is kicked.
    pub exit_handler: EH,
    /// Who is asked first.
    pub companion: Option<Arc<Mutex<dyn Companion>>>,
}

impl<EH: ExitHandler> MutEventSubscriber for SignalSubscriber<EH> {
    fn process(&mut self, _events: Events, _ops: &mut EventOps) {
        match self.signals.read() {
            Ok(Some(libc::SIGCONT)) => terminal::resume(),
            Ok(Some(number)) => {
                let ask = |it: &Arc<Mutex<dyn Companion>>| {
                    it.lock().unwrap_or_else(PoisonError::into_inner).on_signal(number)
                };
                if !self.companion.as_ref().is_some_and(ask) {
                    kick(&self.exit_handler, ExitReason::Signal(number));
                }
            }
            _ => {}
        }
    }

    fn init(&mut self, ops: &mut EventOps) {
        watch(&self.exit_handler, ops, &*self.signals, "signals");
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
    pub fn new(after: Duration, exit_handler: EH) -> io::Result<Self> {
        let timer = Timer::new()?;
        timer.arm(after)?;
        Ok(Self { timer, after, exit_handler })
    }
}

impl<EH: ExitHandler> MutEventSubscriber for TimeoutSubscriber<EH> {
    fn process(&mut self, _events: Events, _ops: &mut EventOps) {
        if let Ok(Some(_)) = self.timer.read() {
            kick(&self.exit_handler, ExitReason::Timeout(self.after));
        }
    }

    fn init(&mut self, ops: &mut EventOps) {
        watch(&self.exit_handler, ops, &self.timer, "the timeout");
    }
}

/// Kicks because of `reason`, and says so on standard error if even that fails.
pub(crate) fn kick<EH: ExitHandler>(exit_handler: &EH, reason: ExitReason) {
    if let Err(error) = exit_handler.kick_because(reason) {
        complain(format_args!("cannot kick the event loop: {error}"));
    }
}

fn watch<EH: ExitHandler, T: AsRawFd>(exit_handler: &EH, ops: &mut EventOps, source: &T, what: &str) {
    if let Err(error) = ops.add(Events::new(source, EventSet::IN)) {
        kick(exit_handler, ExitReason::Failed(format!("cannot wait for {what}: {error}")));
    }
}
