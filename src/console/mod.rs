//! The console's end on the host: moves bytes between the guest's consoles and standard input and output.
//!
//! Output leaves at once when a line is complete or when nothing left for 5 ms; the rest of a burst waits until one of
//! the two is true. So a prompt and an echo are prompt, and a burst is few writes.

pub mod input;
mod monitor;
pub mod output;
pub(crate) mod panic;
mod rules;
pub mod terminal;

pub use monitor::{ConsoleLog, ConsoleMonitor};
pub use rules::{KernelFault, Rules};

use std::io;
use std::ops::ControlFlow;
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use vmm_sys_util::eventfd::EventFd;

use crate::device::virtio::console::Port;
use crate::device::{ConsolePort, FLUSH_DELAY, Pending};
use crate::event::{EventOps, EventSet, Events, MutEventSubscriber, Signals, Timer};
use crate::sys::os_error;
use crate::sys::winsize::WinSize;
use crate::vmm::{ExitHandler, ExitReason, complain, kick};
use input::{KEY_HELP, Key, Stdin};
use output::Stdout;

// The user data of each descriptor's events.
const WAKE: u32 = 0;
const TIMER: u32 = 1;
const STDIN: u32 = 2;
const STDOUT: u32 = 3;
const WINDOW: u32 = 4;

/// The subscriber that serves the console.
#[derive(Debug)]
pub struct ConsoleIo<EH> {
    ports: Vec<Arc<dyn ConsolePort>>,
    resized: Option<(Arc<Port>, Signals)>,
    wake: EventFd,
    timer: Timer,
    timing: Timing,
    last_flush: Instant,
    output: Option<Stdout>,
    output_blocked: bool,
    lost: Option<io::Error>,
    input: Option<Stdin>,
    power_button: EventFd,
    exit_handler: EH,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Timing {
    Off,
    Once,
    Ticking,
}

/// The descriptors that the console shares with the machine.
#[derive(Debug)]
pub struct ConsoleEvents {
    /// Rung by the consoles.
    pub wake: EventFd,
    /// Raises the power button's interrupt.
    pub power_button: EventFd,
}

impl<EH: ExitHandler> ConsoleIo<EH> {
    /// Connects `ports`, of which there is at least one, to `output`, and `input` to the last.
    pub fn new(
        ports: Vec<Arc<dyn ConsolePort>>,
        events: ConsoleEvents,
        output: Option<Stdout>,
        input: Option<Stdin>,
        exit_handler: EH,
    ) -> io::Result<Self> {
        if output.is_none() {
            ports.iter().for_each(|port| port.close());
        }
        Ok(Self {
            ports,
            resized: None,
            wake: events.wake,
            timer: Timer::new()?,
            timing: Timing::Off,
            last_flush: Instant::now() - FLUSH_DELAY,
            output,
            output_blocked: false,
            lost: None,
            input,
            power_button: events.power_button,
            exit_handler,
        })
    }

    /// From now on tells `port` of each new size of the terminal.
    pub fn follow_size(&mut self, port: Arc<Port>) -> io::Result<()> {
        self.resized = Some((port, Signals::new(&[libc::SIGWINCH])?));
        Ok(())
    }

    fn resize(&self) {
        let Some((port, signals)) = &self.resized else { return };
        let _ = signals.read(); // only says that it is time to look
        if let Some(size) = terminal_size() {
            port.resize(size);
        }
    }

    /// What there is to do for all ports together. Only the last takes input.
    fn poll(&self) -> Pending {
        self.ports.iter().map(|port| port.poll()).fold(Pending::default(), |all, one| Pending {
            needs_timer: all.needs_timer || one.needs_timer,
            wants_input: one.wants_input,
            flush_now: all.flush_now || one.flush_now,
            has_output: all.has_output || one.has_output,
        })
    }

    /// From now on output is dropped, and nobody waits for room.
    pub fn close(&self) {
        self.ports.iter().for_each(|port| port.close());
    }

    /// Whether the guest kernel said that it panicked.
    pub fn panicked(&self) -> bool {
        self.ports.iter().any(|port| port.panicked())
    }

    fn fail(&self, what: &str, error: &dyn std::fmt::Display) {
        kick(&self.exit_handler, ExitReason::Failed(format!("{what}: {error}")));
    }

    /// Looks at the consoles and does what they need.
    fn serve(&mut self, ops: &mut EventOps) {
        let work = self.poll();
        if work.has_output && !self.output_blocked {
            let waited = self.last_flush.elapsed();
            if work.flush_now || waited >= FLUSH_DELAY {
                self.flush(ops);
            } else if self.timing == Timing::Off {
                self.set_timer(Timing::Once, FLUSH_DELAY - waited);
            }
        }
        if work.needs_timer && self.timing != Timing::Ticking {
            self.set_timer(Timing::Ticking, FLUSH_DELAY);
        }
        if work.wants_input {
            self.pump(ops, false);
        }
    }

    fn set_timer(&mut self, timing: Timing, after: std::time::Duration) {
        let done = match timing {
            Timing::Off => self.timer.disarm(),
            Timing::Once => self.timer.arm(after),
            Timing::Ticking => self.timer.arm_periodic(after),
        };
        self.timing = timing;
        if let Err(error) = done {
            self.fail("cannot set the console's timer", &error);
        }
    }

    fn on_timer(&mut self, ops: &mut EventOps) {
        let _ = self.timer.read(); // only says how often
        if self.timing == Timing::Ticking {
            for port in &self.ports {
                if let ControlFlow::Break(request) = port.on_timer() {
                    kick(&self.exit_handler, ExitReason::Guest(request));
                }
            }
            if !self.poll().needs_timer {
                self.set_timer(Timing::Off, FLUSH_DELAY);
            }
        } else {
            self.timing = Timing::Off;
        }
        if !self.output_blocked {
            self.flush(ops);
        }
    }

    /// Writes the output there is, or waits for room.
    fn flush(&mut self, ops: &mut EventOps) {
        let Some(output) = &mut self.output else { return };
        if output.pending.is_empty() {
            self.ports.iter().for_each(|port| port.drain(&mut output.pending)); // once: a guest that prints without end must not keep the loop here
        }
        let result = output.write_some();
        self.last_flush = Instant::now();
        match result {
            Ok(done) if done != self.output_blocked => {}
            Ok(true) => {
                self.output_blocked = false;
                let _ = ops.remove(Events::with_data(output, STDOUT, EventSet::OUT)); // it was added below
            }
            Ok(false) => {
                self.output_blocked = true;
                if let Err(error) = ops.add(Events::with_data(output, STDOUT, EventSet::OUT)) {
                    self.fail("cannot wait for the console's reader", &error);
                }
            }
            Err(error) => {
                self.output = None;
                self.close();
                self.fail("cannot write the guest's output", &os_error::describe(&error));
                self.lost = Some(error); // the guest's end may have been the first kick
            }
        }
    }

    /// Feeds the guest. `ready` says that standard input is readable.
    fn pump(&mut self, ops: &mut EventOps, ready: bool) {
        let (Some(stdin), Some(port)) = (&mut self.input, self.ports.last()) else { return };
        let on_key = |key| match key {
            Key::Quit => kick(&self.exit_handler, ExitReason::UserQuit),
            Key::Help => KEY_HELP.iter().for_each(complain),
            Key::PowerButton => drop(self.power_button.write(1)), // a full counter has been pressed already
        };
        if !stdin.pump(&mut |bytes| port.push_input(bytes), ops, STDIN, ready, on_key) {
            self.input = None;
        }
    }

    /// Makes the output's file ready; see [`Stdout::begin`].
    pub fn begin<'a>(&self, inputs: impl Iterator<Item = &'a Path>) -> io::Result<()> {
        self.output.as_ref().map_or(Ok(()), |output| output.begin(inputs))
    }

    /// Writes what the guest said last, until `deadline` at most. `stop` is readable when a signal asks to stop; then a
    /// reader who takes nothing is waited for no longer than a second. Fails too if output was lost before.
    pub fn finish(&mut self, stop: BorrowedFd<'_>, deadline: Option<Instant>) -> io::Result<()> {
        if let Some(error) = self.lost.take() {
            return Err(error);
        }
        let Some(output) = &mut self.output else { return Ok(()) };
        loop {
            output.write_all(stop, deadline)?;
            self.ports.iter().for_each(|port| port.drain(&mut output.pending));
            if output.pending.is_empty() {
                return Ok(());
            }
        }
    }
}

/// The size of the terminal on standard input, if it is one.
pub fn terminal_size() -> Option<WinSize> {
    WinSize::of(io::stdin()).ok()
}

impl<EH: ExitHandler> MutEventSubscriber for ConsoleIo<EH> {
    fn process(&mut self, events: Events, ops: &mut EventOps) {
        match events.data() {
            TIMER => self.on_timer(ops),
            STDIN => self.pump(ops, true),
            STDOUT => self.flush(ops),
            WINDOW => self.resize(),
            _ => {}
        }
        self.serve(ops);
    }

    fn init(&mut self, ops: &mut EventOps) {
        let wake = Events::with_data(&self.wake, WAKE, EventSet::IN | EventSet::EDGE_TRIGGERED);
        let timer = Events::with_data(&self.timer, TIMER, EventSet::IN);
        let window = self.resized.as_ref().map(|(_, signals)| Events::with_data(signals, WINDOW, EventSet::IN));
        let all = [wake, timer].into_iter().chain(window);
        if let Err(error) = all.into_iter().try_for_each(|events| ops.add(events)) {
            self.fail("cannot wait for the console", &error);
        }
        self.serve(ops);
    }
}
