//! The user's side of the guest's console: terminal, input, output, escape keys, and the monitor of the output.
//!
//! [`ConsoleIo`] is a subscriber of the event loop. It moves bytes between the guest's consoles and the configured
//! input and output, and reports to the VMM by a [`ConsoleEvent`].
//!
//! This floor imports `event`, `sys`, `device` and `results`.
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

mod allow_list;
mod drain;
pub mod escape_keys;
mod escape_sequences;
mod fault_report;
mod fault_title;
pub mod input;
mod kernel_fault;
mod kernel_log;
mod monitor;
pub mod output;
mod printk;
mod rules;
mod run_log;
pub mod terminal;

pub use allow_list::Allowed;
pub use drain::Drain;
pub use fault_report::Fault;
pub use kernel_fault::FaultClasses;
pub use kernel_log::KernelLog;
pub use monitor::{ConsoleLog, ConsoleMonitor};
pub use rules::{Rules, Verdict};
pub use run_log::{RunLog, Source};

use std::fmt;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use vmm_sys_util::eventfd::EventFd;

use crate::device::{ConsolePort, FLUSH_DELAY, Pending};
use crate::event::{EventOps, EventSet, Events, MutEventSubscriber, Timer};
use crate::results::ResultParser;
use crate::sys::os_error;
use escape_keys::Key;
use input::{InputSink, Stdin};
use output::OutputFile;

// The user data of each descriptor's events.
const WAKE: u32 = 0;
const FLUSH_TIMER: u32 = 1;
const STDIN: u32 = 2;
const STDOUT: u32 = 3;
const MONITOR_TIMER: u32 = 4;

/// How long a kernel may continue to print after a rule was violated: the report should show the whole oops.
const VERDICT_DELAY: Duration = Duration::from_millis(500);
/// How long the monitor examines output in one turn of the event loop. The rest is examined in the next turn.
const EXAMINE_TIME: Duration = Duration::from_millis(10);

/// What the console reports to the VMM.
#[derive(Debug)]
pub enum ConsoleEvent {
    /// The user typed an escape key.
    Key(Key),
    /// The kernel printed the last line of a panic and has been silent since.
    Panicked,
    /// The user's rules decide the run.
    Verdict(Verdict),
    /// The console cannot continue.
    Failed(String),
}

/// The subscriber that serves the console.
///
/// Output is written when a line is complete, or when nothing was written for 5 ms; the rest of a burst waits until one
/// of the two is true. So prompts and echoes appear at once, and a burst needs few writes.
pub struct ConsoleIo {
    ports: Vec<Arc<dyn ConsolePort>>, // the last takes the input
    wake: EventFd,
    output: OutputFile,
    input: Option<Stdin>,
    monitor: ConsoleMonitor,
    log: RunLog,
    on_event: Box<dyn FnMut(ConsoleEvent) + Send>,
    flush_timer: Timer,
    flush_timer_armed: bool,
    monitor_timer: Timer, // for a silence, or for the rest of the output after a rule was violated
    last_flush: Instant,
}

impl fmt::Debug for ConsoleIo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConsoleIo").field("ports", &self.ports).field("output", &self.output).finish_non_exhaustive()
    }
}

/// The console that takes the input, as a sink.
impl InputSink for &dyn ConsolePort {
    fn room(&mut self) -> usize {
        self.input_room()
    }
    fn push(&mut self, bytes: &[u8]) {
        self.push_input(bytes);
    }
}

impl ConsoleIo {
    /// A console that connects the guest's `ports`, of which the last takes the input, to `input` and `output`. The
    /// ports signal `wake`. `log` receives the output, too. `on_event` is called on the event loop's thread and must
    /// not block.
    ///
    /// # Errors
    ///
    /// The host has no more descriptors.
    pub fn new(
        ports: Vec<Arc<dyn ConsolePort>>,
        wake: EventFd,
        output: OutputFile,
        input: Option<Stdin>,
        monitor: ConsoleMonitor,
        log: RunLog,
        on_event: Box<dyn FnMut(ConsoleEvent) + Send>,
    ) -> io::Result<Self> {
        Ok(Self {
            ports,
            wake,
            output,
            input,
            monitor,
            log,
            on_event,
            flush_timer: Timer::new()?,
            flush_timer_armed: false,
            monitor_timer: Timer::new()?,
            last_flush: Instant::now() - FLUSH_DELAY,
        })
    }

    /// Truncates the output's file; see [`OutputFile::truncate`].
    ///
    /// # Errors
    ///
    /// Those of [`OutputFile::truncate`].
    pub fn truncate_output<'a>(&mut self, inputs: impl Iterator<Item = &'a Path>) -> io::Result<()> {
        self.output.truncate(inputs)
    }

    /// Discards output from now on, so that no vCPU waits for room.
    pub fn close(&self) {
        self.ports.iter().for_each(|port| port.close());
    }

    /// Examines the kernel's log; see [`ConsoleMonitor::add_kernel_log`].
    pub fn add_kernel_log(&mut self, log: &KernelLog) -> Option<String> {
        self.monitor.add_kernel_log(log)
    }

    /// The monitor, which has examined all output once [`finish`](Self::finish) has returned.
    pub fn monitor(&self) -> &ConsoleMonitor {
        &self.monitor
    }

    /// Takes the parser of test results; see [`ConsoleMonitor::take_results`].
    pub fn take_results(&mut self) -> Option<ResultParser> {
        self.monitor.take_results()
    }

    /// Writes the rest of the guest's output, as long as `drain` allows. All vCPUs must have stopped. Returns why
    /// output was lost, now or before.
    pub fn finish(&mut self, drain: &mut Drain<'_>) -> Option<&io::Error> {
        let mut examine_time = drain.examine_time();
        loop {
            self.drain_ports();
            self.monitor.examine(examine_time);
            examine_time = if drain.is_urgent() { Duration::ZERO } else { examine_time };
            if self.output.is_empty() {
                self.monitor.finish();
                self.output.close(drain);
                return self.output.error();
            }
            self.output.write_all(drain);
        }
    }

    /// The pending flags of all ports together.
    fn poll(&self) -> Pending {
        self.ports.iter().map(|port| port.poll()).fold(Pending::default(), |all, one| Pending {
            needs_timer: all.needs_timer || one.needs_timer,
            flush_now: all.flush_now || one.flush_now,
            has_output: all.has_output || one.has_output,
        })
    }

    /// Ends the run if `result` is an error.
    fn check(&mut self, action: &str, result: Result<(), impl fmt::Display>) {
        if let Err(error) = result {
            (self.on_event)(ConsoleEvent::Failed(format!("{action}: {error}")));
        }
    }

    /// Handles the ports' pending flags.
    fn serve(&mut self, ops: &mut EventOps) {
        let pending = self.poll();
        if pending.has_output && self.output.is_empty() {
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
        self.pump_input(ops, false);
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
        self.ports.iter().for_each(|port| port.on_timer());
        if self.output.is_empty() {
            self.flush(ops);
        }
    }

    /// Moves the ports' output to the destination and the monitor. Returns whether there was any.
    fn drain_ports(&mut self) -> bool {
        let Self { ports, output, monitor, log, .. } = self;
        let start = output.pending.len();
        ports.iter().for_each(|port| port.drain(&mut output.pending));
        monitor.push(&output.pending[start..]);
        log.push(Source::Console, &output.pending[start..]);
        output.pending.len() > start
    }

    /// Writes output, or waits for room. Takes from the ports once: a guest that prints without end must not keep the
    /// loop here.
    fn flush(&mut self, ops: &mut EventOps) {
        // While the monitor has not examined what it has, the ports fill up and the guest waits.
        let drained = self.output.is_empty() && self.monitor.is_idle() && self.drain_ports();
        self.output.write_or_wait(ops, STDOUT);
        self.last_flush = Instant::now();
        if let Some(why) = self.output.error().map(os_error::describe) {
            self.close();
            self.check("cannot write the guest's output", Err(why));
        }
        self.examine(drained);
    }

    /// Lets the monitor examine output. `drained` means that there is new output.
    fn examine(&mut self, drained: bool) {
        let had_verdict = self.monitor.verdict().is_some();
        if !self.monitor.examine(EXAMINE_TIME) {
            let _ = self.wake.write(1); // continue in the next turn; a full counter is readable already
        }
        let delay = match self.monitor.verdict() {
            Some(_) if had_verdict => None,
            Some(Verdict::RuleViolated(_)) => Some(VERDICT_DELAY),
            Some(Verdict::ExpectationsMet) => Some(Duration::ZERO),
            None => self.monitor.silence().filter(|_| drained),
        };
        if let Some(delay) = delay {
            let result = self.monitor_timer.arm(delay);
            self.check("cannot set the console's timer", result);
        }
    }

    fn on_monitor_timer(&mut self) {
        // The timer may have been armed again since its event was reported.
        if !matches!(self.monitor_timer.read(), Ok(Some(_))) {
            return;
        }
        let prompt = self.monitor.may_be_at_prompt();
        if self.monitor.verdict().is_none() && self.monitor.on_silence() {
            (self.on_event)(ConsoleEvent::Panicked);
        }
        if prompt && let Some(silence) = self.monitor.silence() {
            let result = self.monitor_timer.arm(silence);
            self.check("cannot set the console's timer", result);
        }
        if let Some(verdict) = self.monitor.verdict().cloned() {
            (self.on_event)(ConsoleEvent::Verdict(verdict));
        }
    }

    /// Gives input to the guest. `ready` means that epoll has reported standard input readable.
    fn pump_input(&mut self, ops: &mut EventOps, ready: bool) {
        let Self { input, ports, on_event, .. } = self;
        let (Some(stdin), Some(port)) = (input.as_mut(), ports.last()) else { return };
        if !stdin.pump(&mut &**port, ops, STDIN, ready, |key| on_event(ConsoleEvent::Key(key))) {
            *input = None;
        }
    }
}

impl MutEventSubscriber for ConsoleIo {
    fn process(&mut self, events: Events, ops: &mut EventOps) {
        match events.data() {
            WAKE if !self.monitor.is_idle() => self.flush(ops),
            FLUSH_TIMER => self.on_flush_timer(ops),
            MONITOR_TIMER => self.on_monitor_timer(),
            STDIN => self.pump_input(ops, true),
            STDOUT => self.flush(ops),
            _ => {}
        }
        self.serve(ops);
    }

    fn init(&mut self, ops: &mut EventOps) {
        let wake = Events::with_data(&self.wake, WAKE, EventSet::IN | EventSet::EDGE_TRIGGERED);
        let timers = [(&self.flush_timer, FLUSH_TIMER), (&self.monitor_timer, MONITOR_TIMER)];
        let timers = timers.map(|(timer, data)| Events::with_data(timer, data, EventSet::IN));
        let result = [wake].into_iter().chain(timers).try_for_each(|events| ops.add(events));
        self.check("cannot wait for the console", result);
        self.serve(ops);
    }
}
