//! The host side of the channel: a subscriber of the event loop that moves bytes between the rings and kickvm's
//! standard streams, forwards signals and window sizes to the command, and determines how the run ended.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kvm_ioctls::{IoEventAddress, NoDatamatch};
use vmm_sys_util::eventfd::EventFd;

use super::channel::{Message, MessageReader, Pages, Producer, ProtocolError, Stream};
use super::files::FileReceiver;
use super::pages::GuestPages;
use super::port::{self, EXEC_PORT_BASE, EXEC_PORT_COUNT, ExecPort};
use super::stream::OutputStream;
use crate::console::escape_keys::Key;
use crate::console::input::{InputSink, Stdin};
use crate::console::output::OutputFile;
use crate::console::{Drain, KernelLog, RunLog, Source};
use crate::device::exit_port::MAX_STATUS;
use crate::device::serial::Serial;
use crate::device::{ConsolePort, GuestRequest, INPUT_LIMIT};
use crate::event::{EventOps, EventSet, Events, MutEventSubscriber, Signals, Timer};
use crate::memory::GuestRam;
use crate::results::ResultParser;
use crate::sys::winsize::WinSize;
use crate::vmm::{AgentExit, Error, ExitHandler, ExitReason, VmmBuilder, WrappedExitHandler, code};

// The user data of each descriptor's events. A stream uses the number of its ring.
const STDIN: u32 = Stream::Stdin as u32;
const DOORBELL: u32 = 16;
const KILL_TIMER: u32 = 17;
const WINSIZE: u32 = 18;

/// When each step of a run happened; `None` for a step that did not.
#[derive(Clone, Copy, Debug, Default)]
pub struct Timings {
    /// Init connected to the channel.
    pub init: Option<Instant>,
    /// The command started.
    pub started: Option<Instant>,
    /// The first byte of the command's output arrived.
    pub first_byte: Option<Instant>,
    /// The command ended, with this status.
    pub ended: Option<(Instant, u8)>,
}

/// What distinguishes one run from another.
#[derive(Clone, Copy, Debug)]
pub struct HostOptions {
    /// The time from the signal that is forwarded to the command to the end of the run.
    pub kill_after: Duration,
    /// A run whose command was sent a signal ends with that signal, and see `command_exit`.
    pub reserve_codes: bool,
    /// The command has a terminal.
    pub has_terminal: bool,
    /// The first of them is the kernel's log.
    pub has_kernel_log: bool,
    /// See [`KernelLog::hidden_on_console`].
    pub hidden_on_console: bool,
}

/// The subscriber.
#[derive(Debug)]
pub struct ExecHost {
    ram: Arc<GuestRam>,
    exit_handler: WrappedExitHandler,
    port: Arc<ExecPort>,
    wake_interrupt: Arc<Serial>,
    pages: Option<GuestPages>, // once init has published them
    events: MessageReader,
    files: FileReceiver,
    controls: Producer,

    stdin: Option<Stdin>,
    stdin_ring: Producer,
    input: VecDeque<u8>,             // that the ring has no room for yet
    stdin_closed: bool,              // the end of the input is marked in the ring
    outputs: [OutputStream; 2],      // standard output and standard error
    winsize_signal: Option<Signals>, // SIGWINCH, if the command has a terminal

    options: HostOptions,
    kill_timer: Timer,
    forwarded_signal: Option<i32>,
    end: Option<ExitReason>, // as init has reported it
    /// The kernel's version banner.
    pub banner: Option<String>,
    /// When each step of the run happened.
    pub timings: Timings,
}

impl InputSink for VecDeque<u8> {
    fn room(&mut self) -> usize {
        INPUT_LIMIT.saturating_sub(self.len())
    }
    fn push(&mut self, bytes: &[u8]) {
        let room = self.room();
        self.extend(bytes.iter().take(room));
    }
}

fn agent_exit(code: u8, kind: &'static str, by_program: bool, message: String) -> ExitReason {
    ExitReason::Agent(AgentExit { code, kind, by_program, message })
}

/// The end of a run by the command. With `reserve_codes` its status is neither a code of kickvm nor 128 to 255, which
/// shells and container engines use for a process that was killed or did not start.
fn command_exit(status: u8, reserve_codes: bool) -> ExitReason {
    let (mut code, mut message) = (status, format!("the command ended with status {status}"));
    if reserve_codes && matches!(status, code::PANIC..=code::FAILED | code::SIGNAL..) {
        code = MAX_STATUS;
        message += &format!(", which --reserve-codes turns into {code}");
    }
    agent_exit(code, "command", true, message)
}

fn protocol_error(error: &ProtocolError) -> ExitReason {
    agent_exit(code::FAULT, "channel", false, error.to_string())
}

impl ExecHost {
    /// Adds the devices of the channel to the machine, and connects them to kickvm's standard streams. `log` receives
    /// the command's output, too; `results` reads its standard output, and what `file_results` makes the last file that
    /// init sends.
    ///
    /// # Errors
    ///
    /// A standard stream is closed, or the host cannot provide a descriptor.
    pub fn new(
        builder: VmmBuilder,
        options: HostOptions,
        log: &RunLog,
        results: Option<ResultParser>,
        file_results: impl Fn() -> Option<ResultParser>,
    ) -> Result<(VmmBuilder, Self), Error> {
        let has_terminal = options.has_terminal;
        let doorbell = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC);
        let port = Arc::new(ExecPort::new(doorbell.map_err(Error::host("create an event descriptor"))?));
        // With the ioeventfd the guest signals without an exit to this process. Without it the device signals, so an
        // error is harmless.
        let address = IoEventAddress::Pio((EXEC_PORT_BASE + port::DOORBELL).into());
        let _ = builder.vm_fd().register_ioevent(&port.doorbell, &address, NoDatamatch);
        let builder = builder.port_device(EXEC_PORT_BASE, EXEC_PORT_COUNT, port.clone())?;
        let (builder, wake_interrupt) = builder.second_serial()?;

        let stdin = Stdin::new(has_terminal).map_err(Error::host("use standard input"))?;
        let winsize_signal = has_terminal.then(|| Signals::new(&[libc::SIGWINCH])).transpose();
        let stdout = OutputFile::stream(&io::stdout()).map_err(Error::host("use standard output"))?;
        let stderr = OutputFile::stream(&io::stderr()).map_err(Error::host("use standard error"))?;
        let host = Self {
            ram: builder.ram().clone(),
            exit_handler: builder.exit_handler().clone(),
            port,
            wake_interrupt,
            pages: None,
            events: MessageReader::new(Stream::Events),
            files: FileReceiver::new(options.has_kernel_log, file_results),
            controls: Producer::new(Stream::Controls),
            stdin,
            stdin_ring: Producer::new(Stream::Stdin),
            input: VecDeque::new(),
            stdin_closed: false,
            outputs: [
                OutputStream::new(Stream::Stdout, stdout, (log.clone(), Source::Stdout), results),
                OutputStream::new(Stream::Stderr, stderr, (log.clone(), Source::Stderr), None),
            ],
            winsize_signal: winsize_signal.map_err(Error::host("wait for signals"))?,
            options,
            kill_timer: Timer::new().map_err(Error::host("set a timer"))?,
            forwarded_signal: None,
            end: None,
            banner: None,
            timings: Timings::default(),
        };
        Ok((builder, host))
    }

    /// Handles the event with this user data, and then does all that is possible without blocking.
    fn handle(&mut self, data: u32, ops: &mut EventOps) -> Result<(), ProtocolError> {
        match data {
            KILL_TIMER => {
                let _ = self.kill_timer.read(); // the number of expirations does not matter
                if let Some(number) = self.forwarded_signal {
                    self.exit_handler.exit(ExitReason::Signal(number));
                }
            }
            WINSIZE => {
                while self.winsize_signal.as_ref().is_some_and(|signal| matches!(signal.read(), Ok(Some(_)))) {}
                self.send_size()?;
            }
            _ => {}
        }
        if self.pages.is_none() {
            self.pages = GuestPages::read(&self.ram, self.port.frame())?;
            if self.winsize_signal.is_some() {
                self.send_size()?; // it may have changed since the job was written
            }
        }
        self.receive_files()?;
        self.receive_events()?;
        self.pump_output(ops)?;
        self.pump_input(ops, data == STDIN)
    }

    /// Receives the files that init sends.
    fn receive_files(&mut self) -> Result<(), ProtocolError> {
        self.pages.as_ref().map_or(Ok(()), |pages| self.files.receive(pages))
    }

    /// Handles the messages from init.
    fn receive_events(&mut self) -> Result<(), ProtocolError> {
        let Some(pages) = &self.pages else { return Ok(()) };
        for message in self.events.receive(pages)? {
            let now = Instant::now();
            match message.ok_or(ProtocolError)? {
                Message::Hello(banner) => {
                    self.banner = Some(banner);
                    self.timings.init.get_or_insert(now);
                }
                Message::Started => drop(self.timings.started.get_or_insert(now)),
                Message::Ended(status) => {
                    self.timings.ended.get_or_insert((now, status));
                    let stopped = self.forwarded_signal.filter(|_| self.options.reserve_codes).map(ExitReason::Signal);
                    let end = stopped.unwrap_or_else(|| command_exit(status, self.options.reserve_codes));
                    self.exit_handler.exit(self.end.get_or_insert(end).clone());
                }
                Message::Warning(text) => log::warn!("warning: {text}"),
                Message::Failed(error) => {
                    self.exit_handler.exit(self.end.get_or_insert(ExitReason::Failed(error)).clone());
                }
                Message::Signal(_) | Message::Resize(_) | Message::Close(_) => return Err(ProtocolError),
            }
        }
        Ok(())
    }

    /// Moves the command's output to kickvm's streams.
    fn pump_output(&mut self, ops: &mut EventOps) -> Result<(), ProtocolError> {
        let (mut wake, mut closed) = (false, Vec::new());
        let Some(pages) = &self.pages else { return Ok(()) };
        for (stream, descriptor) in self.outputs.iter_mut().zip(1..) {
            let pumped = stream.pump(pages, ops, &self.port.doorbell)?;
            wake |= pumped.made_room;
            if pumped.moved {
                self.timings.first_byte.get_or_insert_with(Instant::now);
            }
            match stream.failure() {
                Some(error) if pumped.failed => self.exit_handler.exit(ExitReason::Failed(error)),
                None if pumped.failed => closed.push(descriptor),
                _ => {}
            }
        }
        if wake {
            self.wake()?;
        }
        closed.into_iter().try_for_each(|descriptor| self.send(Message::Close(descriptor)))
    }

    /// Sends `message` to init.
    fn send(&mut self, message: Message) -> Result<(), ProtocolError> {
        let Some(pages) = &self.pages else { return Ok(()) };
        // If init no longer takes messages out, there may be no room. A part of a message would be worse than none.
        self.controls.push_all(pages, &message.encode())?;
        self.wake()
    }

    /// Sends the size of the user's terminal.
    fn send_size(&mut self) -> Result<(), ProtocolError> {
        WinSize::of(io::stdout()).map_or(Ok(()), |size| self.send(Message::Resize(size)))
    }

    /// Interrupts the guest if init sleeps.
    fn wake(&self) -> Result<(), ProtocolError> {
        if let Some(pages) = &self.pages
            && pages.take_sleeping()?
        {
            self.wake_interrupt.push_input(&[0]); // if there is no room, an interrupt is pending already
        }
        Ok(())
    }

    /// Moves input to the command. `ready` means that epoll reported standard input as readable. Before the channel
    /// exists, only a terminal with kickvm's keys is read: its user must be able to quit.
    fn pump_input(&mut self, ops: &mut EventOps, ready: bool) -> Result<(), ProtocolError> {
        let exit_handler = &self.exit_handler;
        let on_key = |key| match key {
            Key::Quit => exit_handler.exit(ExitReason::UserQuit),
            Key::PowerButton => log::warn!("Ctrl-A p has no effect: `exec` powers off when the command ends"),
        };
        let readable = self.stdin.as_mut().filter(|stdin| self.pages.is_some() || stdin.has_keys());
        if let Some(stdin) = readable
            && !stdin.pump(&mut self.input, ops, STDIN, ready, on_key)
        {
            self.stdin = None;
        }
        let was_full = self.input.room() == 0;
        self.send_input()?;
        if was_full && self.input.room() > 0 {
            let _ = self.port.doorbell.write(1); // read on in the next turn; a full counter is readable already
        }
        Ok(())
    }

    /// Moves input from the queue to the ring, as far as there is room, and then marks its end in the ring.
    fn send_input(&mut self) -> Result<(), ProtocolError> {
        let Some(pages) = &self.pages else { return Ok(()) };
        let mut sent = 0;
        while !self.input.is_empty() {
            let front = self.input.as_slices().0;
            let mut count = self.stdin_ring.push(pages, front)?;
            if count < front.len() {
                self.stdin_ring.set_waiting(pages)?;
                count += self.stdin_ring.push(pages, &front[count..])?; // init may have made room in between
            }
            if count == 0 {
                break;
            }
            self.input.drain(..count);
            sent += count;
        }
        let ended = self.stdin.is_none() && self.input.is_empty() && !self.stdin_closed;
        if ended {
            self.stdin_ring.close(pages)?;
            self.stdin_closed = true;
        }
        if ended || sent > 0 { self.wake() } else { Ok(()) }
    }

    /// Takes the parser of the test results, in a file or else in standard output.
    pub fn take_results(&mut self) -> Option<ResultParser> {
        self.files.take_results().or_else(|| self.outputs[0].results.take())
    }

    /// Forwards the first signal to the command, if it runs, and starts the kill timer. Returns whether the command has
    /// time to end.
    pub fn on_signal(&mut self, number: i32) -> bool {
        let Ok(signal) = u8::try_from(number) else { return false };
        let runs = self.timings.started.is_some() && self.end.is_none();
        if self.forwarded_signal.is_some() || !runs || self.kill_timer.arm(self.options.kill_after).is_err() {
            return false;
        }
        self.forwarded_signal = Some(number);
        self.send(Message::Signal(signal)).is_ok()
    }

    /// Reads what the guest has left in the rings, as long as `drain` allows, and returns the reason that follows from
    /// it.
    pub fn on_exit(&mut self, reason: ExitReason, drain: &mut Drain<'_>) -> ExitReason {
        let rings = self.receive_files().and_then(|()| self.receive_events()).and_then(|()| {
            let Some(pages) = &self.pages else { return Ok(()) };
            // `map` writes the rest of both streams, even if the first ring is invalid.
            self.outputs.each_mut().map(|stream| stream.finish(pages, drain)).into_iter().collect()
        });
        if let Err(error) = rings {
            return match reason {
                ExitReason::Vcpu { .. } | ExitReason::Agent(_) => protocol_error(&error),
                // A guest that was stopped at an arbitrary point may have left an invalid channel.
                _ => reason,
            };
        }
        let hidden_on_console = self.options.hidden_on_console;
        if self.options.has_kernel_log && self.timings.ended.is_some() {
            let records = self.files.kernel_log.take();
            drain.kernel_log = Some(KernelLog { records, hidden_on_console });
        }
        let failure = self.outputs.iter().find_map(OutputStream::failure);
        if let Some(error) = failure.filter(|_| !drain.is_urgent()) {
            return ExitReason::Failed(error);
        }
        if self.outputs.iter().any(OutputStream::is_lost) && !drain.is_urgent() {
            drain.notes.push("the command's last output is lost: its reader takes nothing".into());
        }
        // A panic is the kernel's.
        let Some(request) = reason.guest_request().filter(|request| *request != GuestRequest::Panic) else {
            return reason;
        };
        // The guest may power off before the loop has received its last events.
        self.end.take().unwrap_or_else(|| {
            let message = format!("{request} before reporting the command's exit status");
            agent_exit(code::FAULT, "no-status", false, message)
        })
    }
}

impl MutEventSubscriber for ExecHost {
    fn process(&mut self, events: Events, ops: &mut EventOps) {
        if let Err(error) = self.handle(events.data(), ops) {
            self.exit_handler.exit(protocol_error(&error));
        }
    }

    fn init(&mut self, ops: &mut EventOps) {
        // The first turn of the loop must start to watch standard input, even if the guest never writes the doorbell.
        let _ = self.port.doorbell.write(1); // fails only if the counter is full, and then the event is pending
        let doorbell = Events::with_data(&self.port.doorbell, DOORBELL, EventSet::IN | EventSet::EDGE_TRIGGERED);
        let kill_timer = Events::with_data(&self.kill_timer, KILL_TIMER, EventSet::IN);
        let winsize = self.winsize_signal.as_ref().map(|signal| Events::with_data(signal, WINSIZE, EventSet::IN));
        if let Err(error) = [doorbell, kill_timer].into_iter().chain(winsize).try_for_each(|events| ops.add(events)) {
            self.exit_handler.exit(ExitReason::Failed(format!("cannot wait for the command: {error}")));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reserved_codes_are_never_the_status_of_a_command() {
        for status in 0..=u8::MAX {
            assert_eq!(command_exit(status, false).code(), status);
            let expected = if matches!(status, 120..=125 | 128..) { 119 } else { status };
            let end = command_exit(status, true);
            assert!((end.code(), end.decided_by_guest()) == (expected, true), "{end:?}");
            assert!(end.to_string().starts_with(&format!("the command ended with status {status}")), "{end}");
        }
    }
}
