//! The user's side of the guest's console: terminal, input, output, escape keys, and the monitor that reads along.
//!
//! [`ConsoleIo`] is a subscriber of the event loop. It moves bytes between the guest's consoles and standard input and output,
//! and reports what ends a run as a [`ConsoleEvent`].
//!
//! This floor imports `event`, `sys` and `device`.
//!
//! ```
//! use kickvm::console::{ConsoleMonitor, Rules, Verdict};
//! use std::time::Duration;
//!
//! let rules = Rules { expect: vec!["^PASS".into()], ..Rules::default() };
//! let mut monitor = ConsoleMonitor::new(&rules)?;
//! monitor.push(b"[    0.1] Linux version 6.1\r\nPASS: 7 tests\r\n");
//! assert!(monitor.examine(Duration::from_secs(1)));
//! assert_eq!(monitor.verdict(), Some(&Verdict::ExpectationsMet));
//! # Ok::<(), String>(())
//! ```

mod drain;
pub mod input;
mod monitor;
pub mod output;
mod panic;
mod rules;
pub mod terminal;

pub use drain::Drain;
pub use monitor::{ConsoleLog, ConsoleMonitor};
pub use rules::{KernelFault, Rules, Verdict};

use std::fmt;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use vmm_sys_util::eventfd::EventFd;

use crate::device::virtio::console::Port;
use crate::device::{ConsolePort, FLUSH_DELAY, Pending};
use crate::event::{EventOps, EventSet, Events, MutEventSubscriber, Signals, Timer};
use crate::sys::os_error;
use crate::sys::winsize::WinSize;
use input::{InputSink, Key, Stdin};
use output::OutputFile;

// The user data of each descriptor's events.
const WAKE: u32 = 0;
const FLUSH_TIMER: u32 = 1;
const STDIN: u32 = 2;
const STDOUT: u32 = 3;
const WINDOW: u32 = 4;
const SILENCE_TIMER: u32 = 5;
const VERDICT_TIMER: u32 = 6;

/// How long a kernel may go on printing after a rule was violated: the report should show the whole oops.
const VERDICT_DELAY: Duration = Duration::from_millis(500);
/// How long the monitor examines output in one turn of the event loop. The rest is examined in the next turn.
const EXAMINE_TIME: Duration = Duration::from_millis(10);

/// What the console reports to the VMM.
#[derive(Debug)]
pub enum ConsoleEvent {
    /// The user typed Ctrl-A x.
    Quit,
    /// The user typed Ctrl-A p.
    PowerButton,
    /// The kernel printed the last line of a panic and has been silent since.
    Panicked,
    /// The user's rules decide the run.
    Verdict(Verdict),
    /// The console cannot go on.
    Failed(String),
}

/// The parts of a console.
pub struct ConsoleParts {
    /// The guest's consoles, at least one. The last takes the input.
    pub ports: Vec<Arc<dyn ConsolePort>>,
    /// Signalled by the ports.
    pub wake: EventFd,
    /// The destination of the output.
    pub output: OutputFile,
    /// The source of the input.
    pub input: Option<Stdin>,
    /// The virtio console whose terminal size follows the user's.
    pub sized: Option<Arc<Port>>,
    /// Reads the output.
    pub monitor: ConsoleMonitor,
    /// Takes the events. It is called on the event loop's thread and must not block.
    pub on_event: Box<dyn FnMut(ConsoleEvent) + Send>,
}

impl fmt::Debug for ConsoleParts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConsoleParts").field("ports", &self.ports).field("output", &self.output).finish_non_exhaustive()
    }
}

/// The subscriber that serves the console.
///
/// Output is written when a line is complete, or when nothing was written for 5 ms; the rest of a burst waits until one
/// of the two is true. So prompts and echoes appear at once, and a burst is few writes.
#[derive(Debug)]
pub struct ConsoleIo {
    parts: ConsoleParts,
    size_changes: Option<Signals>,
    flush_timer: Timer,
    flush_timer_armed: bool,
    silence_timer: Timer,
    verdict_timer: Timer,
    last_flush: Instant,
    output_blocked: bool,
    output_error: Option<io::Error>,
}

/// The console that takes the input, as a sink.
struct PortSink<'a>(&'a dyn ConsolePort);

impl InputSink for PortSink<'_> {
    fn room(&mut self) -> usize {
        self.0.input_room()
    }
    fn push(&mut self, bytes: &[u8]) {
        self.0.push_input(bytes);
    }
}

impl ConsoleIo {
    /// A console of `parts`.
    ///
    /// # Errors
    ///
    /// The host has no more descriptors.
    pub fn new(parts: ConsoleParts) -> io::Result<Self> {
        let size_changes = parts.sized.as_ref().map(|_| Signals::new(&[libc::SIGWINCH])).transpose()?;
        Ok(Self {
            parts,
            size_changes,
            flush_timer: Timer::new()?,
            flush_timer_armed: false,
            silence_timer: Timer::new()?,
            verdict_timer: Timer::new()?,
            last_flush: Instant::now() - FLUSH_DELAY,
            output_blocked: false,
            output_error: None,
        })
    }

    /// Truncates the output's file; see [`OutputFile::truncate`].
    ///
    /// # Errors
    ///
    /// Those of [`OutputFile::truncate`].
    pub fn truncate_output<'a>(&self, inputs: impl Iterator<Item = &'a Path>) -> io::Result<()> {
        self.parts.output.truncate(inputs)
    }

    /// Discards output from now on, so that no vCPU waits for room.
    pub fn close(&self) {
        self.parts.ports.iter().for_each(|port| port.close());
    }

    /// The monitor, which has examined all output once [`finish`](Self::finish) has returned.
    pub fn monitor(&self) -> &ConsoleMonitor {
        &self.parts.monitor
    }

    /// Writes the rest of the guest's output, as long as `drain` allows. All vCPUs must have stopped.
    ///
    /// # Errors
    ///
    /// Output cannot be written, or could not be written before.
    pub fn finish(&mut self, drain: &mut Drain<'_>) -> io::Result<()> {
        let mut result = self.output_error.take().map_or(Ok(()), Err);
        let mut examine_time = drain.examine_time();
        loop {
            self.drain_ports();
            self.parts.monitor.examine(examine_time);
            examine_time = if drain.is_urgent() { Duration::ZERO } else { examine_time };
            if self.parts.output.is_empty() {
                self.parts.monitor.finish();
                return result;
            }
            if let Err(error) = self.parts.output.write_all(drain) {
                result = result.and(Err(error));
                self.parts.output = OutputFile::discard();
            }
        }
    }

    /// The work of all ports together. Only the last takes input.
    fn poll(&self) -> Pending {
        self.parts.ports.iter().map(|port| port.poll()).fold(Pending::default(), |all, one| Pending {
            needs_timer: all.needs_timer || one.needs_timer,
            wants_input: one.wants_input,
            flush_now: all.flush_now || one.flush_now,
            has_output: all.has_output || one.has_output,
        })
    }

    /// Ends the run if `result` is an error.
    fn check(&mut self, action: &str, result: Result<(), impl fmt::Display>) {
        if let Err(error) = result {
            (self.parts.on_event)(ConsoleEvent::Failed(format!("{action}: {error}")));
        }
    }

    /// Does the ports' work.
    fn serve(&mut self, ops: &mut EventOps) {
        let pending = self.poll();
        if pending.has_output && !self.output_blocked {
            let since = self.last_flush.elapsed();
            if pending.flush_now || since >= FLUSH_DELAY {
                self.flush(ops);
            } else {
                self.arm_flush_timer(FLUSH_DELAY - since);
            }
        }
        if pending.needs_timer {
            self.arm_flush_timer(FLUSH_DELAY);
        }
        if pending.wants_input {
            self.pump_input(ops, false);
        }
    }

    fn arm_flush_timer(&mut self, after: Duration) {
        if !std::mem::replace(&mut self.flush_timer_armed, true) {
            let result = self.flush_timer.arm(after);
            self.check("cannot set the console's timer", result);
        }
    }

    fn on_flush_timer(&mut self, ops: &mut EventOps) {
        let _ = self.flush_timer.read(); // the number of expirations does not matter
        self.flush_timer_armed = false; // `serve` arms it again if a port needs it
        self.parts.ports.iter().for_each(|port| port.on_timer());
        if !self.output_blocked {
            self.flush(ops);
        }
    }

    /// Moves the ports' output to the destination and the monitor. Returns whether there was any.
    fn drain_ports(&mut self) -> bool {
        let ConsoleParts { ports, output, monitor, .. } = &mut self.parts;
        let start = output.pending.len();
        ports.iter().for_each(|port| port.drain(&mut output.pending));
        monitor.push(&output.pending[start..]);
        output.pending.len() > start
    }

    /// Writes output, or waits for room. Takes from the ports once: a guest that prints without end must not keep the loop here.
    fn flush(&mut self, ops: &mut EventOps) {
        // While the monitor has not examined what it has, the ports fill up and the guest waits.
        let drained = self.parts.output.is_empty() && self.parts.monitor.is_idle() && self.drain_ports();
        let result = self.parts.output.write_some();
        self.last_flush = Instant::now();
        match result {
            Ok(done) if done != self.output_blocked => {}
            Ok(true) => {
                self.output_blocked = false;
                let _ = ops.remove(Events::with_data(&self.parts.output, STDOUT, EventSet::OUT)); // it was added below
            }
            Ok(false) => {
                self.output_blocked = true;
                let result = ops.add(Events::with_data(&self.parts.output, STDOUT, EventSet::OUT));
                self.check("cannot wait for the console's reader", result);
            }
            Err(error) => {
                self.close();
                if std::mem::take(&mut self.output_blocked) {
                    let _ = ops.remove(Events::with_data(&self.parts.output, STDOUT, EventSet::OUT)); // it was added
                }
                self.parts.output = OutputFile::discard();
                self.check("cannot write the guest's output", Err(os_error::describe(&error)));
                self.output_error = Some(error); // the guest's end may have been the first kick
            }
        }
        self.examine(drained);
    }

    /// Lets the monitor examine output. `drained` means that there is new output.
    fn examine(&mut self, drained: bool) {
        let had_verdict = self.parts.monitor.verdict().is_some();
        if !self.parts.monitor.examine(EXAMINE_TIME) {
            let _ = self.parts.wake.write(1); // go on in the next turn; a full counter is readable already
        }
        if !had_verdict {
            self.on_verdict();
        }
        if drained && let Some(silence) = self.parts.monitor.silence() {
            let result = self.silence_timer.arm(silence);
            self.check("cannot set the console's timer", result);
        }
    }

    fn on_verdict(&mut self) {
        match self.parts.monitor.verdict().cloned() {
            Some(Verdict::RuleViolated(_)) => {
                let result = self.verdict_timer.arm(VERDICT_DELAY);
                self.check("cannot set the console's timer", result);
            }
            Some(met) => (self.parts.on_event)(ConsoleEvent::Verdict(met)),
            None => {}
        }
    }

    fn on_silence_timer(&mut self) {
        let _ = self.silence_timer.read(); // the number of expirations does not matter
        let had_verdict = self.parts.monitor.verdict().is_some();
        if self.parts.monitor.on_silence() {
            (self.parts.on_event)(ConsoleEvent::Panicked);
        }
        if !had_verdict {
            self.on_verdict();
        }
    }

    /// Gives input to the guest. `ready` means that epoll has reported standard input readable.
    fn pump_input(&mut self, ops: &mut EventOps, ready: bool) {
        let ConsoleParts { input, ports, on_event, .. } = &mut self.parts;
        let (Some(stdin), Some(port)) = (input.as_mut(), ports.last()) else { return };
        let on_key = |key| match key {
            Key::Quit => on_event(ConsoleEvent::Quit),
            Key::Help => input::log_key_help(),
            Key::PowerButton => on_event(ConsoleEvent::PowerButton),
        };
        if !stdin.pump(&mut PortSink(&**port), ops, STDIN, ready, on_key) {
            *input = None;
        }
    }

    fn on_resize(&self) {
        if let (Some(port), Some(signals)) = (&self.parts.sized, &self.size_changes) {
            let _ = signals.read(); // it is SIGWINCH
            if let Some(size) = terminal_size() {
                port.resize(size);
            }
        }
    }
}

/// The size of the terminal on standard input, if it is one.
pub fn terminal_size() -> Option<WinSize> {
    WinSize::of(io::stdin()).ok()
}

impl MutEventSubscriber for ConsoleIo {
    fn process(&mut self, events: Events, ops: &mut EventOps) {
        match events.data() {
            WAKE if !self.parts.monitor.is_idle() => self.flush(ops),
            FLUSH_TIMER => self.on_flush_timer(ops),
            SILENCE_TIMER => self.on_silence_timer(),
            VERDICT_TIMER => {
                let _ = self.verdict_timer.read(); // the number of expirations does not matter
                if let Some(verdict) = self.parts.monitor.verdict().cloned() {
                    (self.parts.on_event)(ConsoleEvent::Verdict(verdict));
                }
            }
            STDIN => self.pump_input(ops, true),
            STDOUT => self.flush(ops),
            WINDOW => self.on_resize(),
            _ => {}
        }
        self.serve(ops);
    }

    fn init(&mut self, ops: &mut EventOps) {
        let wake = Events::with_data(&self.parts.wake, WAKE, EventSet::IN | EventSet::EDGE_TRIGGERED);
        let timers = [
            (&self.flush_timer, FLUSH_TIMER),
            (&self.silence_timer, SILENCE_TIMER),
            (&self.verdict_timer, VERDICT_TIMER),
        ];
        let timers = timers.map(|(timer, data)| Events::with_data(timer, data, EventSet::IN));
        let window = self.size_changes.as_ref().map(|signals| Events::with_data(signals, WINDOW, EventSet::IN));
        let result = [wake].into_iter().chain(timers).chain(window).try_for_each(|events| ops.add(events));
        self.check("cannot wait for the console", result);
        self.serve(ops);
    }
}
