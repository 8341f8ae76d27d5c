//! kickvm's end of the channel: a subscriber of the event loop that moves bytes between the rings and its own streams.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use vmm_sys_util::eventfd::EventFd;

use super::channel::{Broken, Consumer, Event, Lane, Order, Producer, must_wake, take};
use super::pages::GuestPages;
use super::port::ExecPort;
use super::stream::Outlet;
use crate::console::Drain;
use crate::console::input::{InputSink, Key, Stdin, log_key_help};
use crate::device::ConsolePort;
use crate::device::serial::Serial;
use crate::event::{EventOps, EventSet, Events, MutEventSubscriber, Signals, Timer};
use crate::memory::GuestRam;
use crate::sys::winsize::WinSize;
use crate::vmm::{AgentExit, ExitHandler, ExitReason, code};

// The user data of each descriptor's events.
const BELL: u32 = 0;
const STDIN: u32 = 1;
const STDOUT: u32 = 2;
const STDERR: u32 = 3;
const GRACE: u32 = 4;
const WINDOW: u32 = 5;

/// Bytes of input that wait for the command.
const MAX_TYPED: usize = 1 << 20;

/// When things happened.
#[derive(Clone, Copy, Debug, Default)]
pub struct Timings {
    /// Init was there.
    pub init: Option<Instant>,
    /// The command ran.
    pub started: Option<Instant>,
    /// Its first byte of output came.
    pub first_byte: Option<Instant>,
    /// It had ended.
    pub ended: Option<Instant>,
}

/// What [`Host`] is made of.
#[derive(Debug)]
pub struct Parts {
    /// The guest's RAM.
    pub ram: Arc<GuestRam>,
    /// Where the guest says where the channel is.
    pub port: Arc<ExecPort>,
    /// Rung by the guest.
    pub bell: EventFd,
    /// The wake line.
    pub wake: Arc<Serial>,
    /// Standard input.
    pub input: Option<Stdin>,
    /// Standard output.
    pub output: Outlet,
    /// Standard error.
    pub errors: Outlet,
    /// How long the command may take to heed a signal.
    pub grace: Duration,
    /// Says when the terminal's size changes, if the command has a terminal.
    pub window: Option<Signals>,
}

/// The subscriber.
#[derive(Debug)]
pub struct Host<EH> {
    parts: Parts,
    link: Option<Link>,
    typed: VecDeque<u8>,
    stdin_ended: bool,
    grace: Timer,
    signal: Option<i32>,
    failure: Option<String>,
    exit_handler: EH,
    /// The kernel's banner.
    pub banner: Option<String>,
    /// When things happened.
    pub timings: Timings,
    /// The command's exit status.
    pub status: Option<u8>,
}

/// A channel that is set up.
#[derive(Debug)]
struct Link {
    pages: GuestPages,
    events: Consumer,
    heard: Vec<u8>,
    input: Producer,
    orders: Producer,
}

impl<EH: ExitHandler> Host<EH> {
    /// A host whose guest has not called yet.
    pub fn new(parts: Parts, exit_handler: EH) -> io::Result<Self> {
        Ok(Self {
            parts,
            link: None,
            typed: VecDeque::new(),
            stdin_ended: false,
            grace: Timer::new()?,
            signal: None,
            failure: None,
            exit_handler,
            banner: None,
            timings: Timings::default(),
            status: None,
        })
    }

    fn kick(&self, reason: ExitReason) {
        self.exit_handler.exit(reason);
    }

    /// Does all that can be done now.
    fn serve(&mut self, ops: &mut EventOps) {
        if let Err(broken) = self.try_serve(ops) {
            self.kick(channel_error(&broken));
        }
    }

    fn try_serve(&mut self, ops: &mut EventOps) -> Result<(), Broken> {
        if self.link.is_none() && !self.connect()? {
            return self.pump_input(ops, false);
        }
        self.hear()?;
        let Some(link) = &mut self.link else { return Ok(()) };
        let mut wake = false;
        for (stream, data, number) in [(&mut self.parts.output, STDOUT, 1), (&mut self.parts.errors, STDERR, 2)] {
            let done = stream.pump(&link.pages, ops, data, &self.parts.bell)?;
            wake |= done.relieved;
            if done.moved {
                self.timings.first_byte.get_or_insert_with(Instant::now);
            }
            match stream.failure() {
                _ if !done.lost => {}
                Some(why) => self.exit_handler.exit(ExitReason::Failed(why)),
                None => {
                    link.orders.push(&link.pages, &Order::Shut(number).encode())?;
                    wake = true;
                }
            }
        }
        if wake {
            self.wake()?;
        }
        self.pump_input(ops, false)
    }

    /// Looks for the channel. It is there as soon as the guest has rung.
    fn connect(&mut self) -> Result<bool, Broken> {
        let header = self.parts.port.frame();
        let Some(pages) = GuestPages::read(&self.parts.ram, header)? else { return Ok(false) };
        self.link = Some(Link {
            pages,
            events: Consumer::new(Lane::Events),
            heard: Vec::new(),
            input: Producer::new(Lane::Input),
            orders: Producer::new(Lane::Orders),
        });
        if self.parts.window.is_some() {
            self.tell_size()?;
        }
        Ok(true)
    }

    /// Listens to what init has to tell.
    fn hear(&mut self) -> Result<(), Broken> {
        let Some(link) = &mut self.link else { return Ok(()) };
        link.events.pop(&link.pages, &mut link.heard, usize::MAX)?;
        while let Some((kind, payload)) = self.link.as_mut().and_then(|link| take(&mut link.heard)) {
            let now = Instant::now();
            match Event::decode(kind, &payload).ok_or(Broken)? {
                Event::Hello(banner) => {
                    self.banner = Some(banner);
                    self.timings.init.get_or_insert(now);
                }
                Event::Started => drop(self.timings.started.get_or_insert(now)),
                Event::Ended(status) => {
                    self.timings.ended.get_or_insert(now);
                    self.status.get_or_insert(status);
                    self.kick(command(status));
                }
                Event::Warning(text) => log::warn!("warning: {text}"),
                Event::Failed(why) => {
                    self.kick(ExitReason::Failed(why.clone()));
                    self.failure.get_or_insert(why);
                }
            }
        }
        Ok(())
    }

    /// Tells init something.
    fn order(&mut self, order: Order) -> Result<(), Broken> {
        if let Some(link) = &mut self.link {
            let bytes = order.encode();
            // An init that takes no orders any more gets none; half an order would be worse.
            if link.orders.room(&link.pages)? >= bytes.len() {
                link.orders.push(&link.pages, &bytes)?;
            }
            self.wake()?;
        }
        Ok(())
    }

    /// Wakes init if it sleeps.
    fn wake(&self) -> Result<(), Broken> {
        if let Some(link) = &self.link
            && must_wake(&link.pages)?
        {
            self.parts.wake.push_input(&[0]); // dropped if the queue is full: then enough are waiting
        }
        Ok(())
    }

    fn tell_size(&mut self) -> Result<(), Broken> {
        match WinSize::of(io::stdout()) {
            Ok(size) => self.order(Order::Size(size)),
            Err(_) => Ok(()),
        }
    }

    /// Moves input to the command. `ready` means that epoll has reported standard input readable. Before there is a channel, only
    /// a terminal is read: its user must be able to leave.
    fn pump_input(&mut self, ops: &mut EventOps, ready: bool) -> Result<(), Broken> {
        self.send_typed()?;
        let room = if self.link.is_some() { MAX_TYPED.saturating_sub(self.typed.len()) } else { 0 };
        let mut sink = TypedInput { queue: &mut self.typed, room };
        let exit_handler = &self.exit_handler;
        let on_key = |key| match key {
            Key::Quit => exit_handler.exit(ExitReason::UserQuit),
            Key::Help => log_key_help(),
            Key::PowerButton => {}
        };
        if let Some(stdin) = &mut self.parts.input
            && (self.link.is_some() || stdin.has_keys())
            && !stdin.pump(&mut sink, ops, STDIN, ready, on_key)
        {
            self.parts.input = None;
        }
        self.send_typed()?;
        self.end_input()
    }

    /// Moves typed bytes to the ring, as far as there is room.
    fn send_typed(&mut self) -> Result<(), Broken> {
        let Some(link) = &mut self.link else { return Ok(()) };
        let mut sent = 0;
        while !self.typed.is_empty() {
            let front = self.typed.as_slices().0;
            let mut done = link.input.push(&link.pages, front)?;
            if done == 0 {
                link.input.starve(&link.pages)?;
                done = link.input.push(&link.pages, front)?; // room may have come in between
            }
            if done == 0 {
                break;
            }
            self.typed.drain(..done);
            sent += done;
        }
        if sent > 0 { self.wake() } else { Ok(()) }
    }

    /// Passes the end of standard input on, once.
    fn end_input(&mut self) -> Result<(), Broken> {
        if let (Some(link), None, true, false) =
            (&self.link, &self.parts.input, self.typed.is_empty(), self.stdin_ended)
        {
            link.input.close(&link.pages)?;
            self.stdin_ended = true;
            self.wake()?;
        }
        Ok(())
    }
}

impl<EH: ExitHandler> Host<EH> {
    /// Sends the signal `number` to the command. Returns whether the command has time to end now.
    pub fn on_signal(&mut self, number: i32) -> bool {
        let first = self.signal.is_none() && self.timings.started.is_some() && self.status.is_none();
        let Ok(order) = u8::try_from(number).map(Order::Signal) else { return false };
        if !first || self.grace.arm(self.parts.grace).is_err() || self.order(order).is_err() {
            return false;
        }
        self.signal = Some(number);
        true
    }

    /// The guest has stopped because of `reason`: writes the rest of the command's output, as long as `drain` allows. Returns
    /// the reason that counts.
    pub fn on_exit(&mut self, reason: ExitReason, drain: &mut Drain<'_>) -> ExitReason {
        // A guest that was ended in the middle of something may have broken the channel, too; that is not why.
        let broken = |broken: Broken| match reason {
            ExitReason::Vcpu { .. } | ExitReason::Agent(_) => channel_error(&broken),
            _ => reason.clone(),
        };
        if let Err(error) = self.hear() {
            return broken(error);
        }
        if let Some(link) = &self.link {
            let streams = [&mut self.parts.output, &mut self.parts.errors];
            let finished = streams.map(|stream| stream.finish(&link.pages, drain));
            if let Some(error) = finished.into_iter().find_map(Result::err) {
                return broken(error);
            }
            let failure = self.parts.output.failure().or_else(|| self.parts.errors.failure());
            if let Some(why) = failure.filter(|_| !drain.is_urgent()) {
                return ExitReason::Failed(why);
            }
        }
        match (reason.guest_request().filter(|request| request.is_ordinary_end()), self.status) {
            // The guest may be faster than the loop that reads its messages.
            (Some(_), Some(status)) => command(status),
            (Some(request), None) => match self.failure.take() {
                Some(why) => ExitReason::Failed(why),
                None => agent(
                    code::FAULT,
                    "no-status",
                    false,
                    format!("{request} before reporting the command's exit status"),
                ),
            },
            (None, _) => reason,
        }
    }
}

fn agent(code: u8, kind: &'static str, by_program: bool, message: String) -> ExitReason {
    ExitReason::Agent(AgentExit { code, kind, by_program, message })
}

fn command(status: u8) -> ExitReason {
    agent(status, "command", true, format!("the command ended with status {status}"))
}

fn channel_error(error: &Broken) -> ExitReason {
    agent(code::FAULT, "channel", false, error.to_string())
}

/// The queue of typed bytes as a sink.
struct TypedInput<'a> {
    queue: &'a mut VecDeque<u8>,
    room: usize,
}

impl InputSink for TypedInput<'_> {
    fn room(&mut self) -> usize {
        self.room
    }
    fn push(&mut self, bytes: &[u8]) {
        let left = MAX_TYPED.saturating_sub(self.queue.len());
        self.queue.extend(bytes.iter().take(left));
        self.room = self.room.saturating_sub(bytes.len());
    }
}

impl<EH: ExitHandler> MutEventSubscriber for Host<EH> {
    fn process(&mut self, events: Events, ops: &mut EventOps) {
        let done = match events.data() {
            STDIN => self.pump_input(ops, true),
            GRACE => {
                let _ = self.grace.read(); // only says how often
                if let Some(number) = self.signal {
                    self.kick(ExitReason::Signal(number));
                }
                Ok(())
            }
            WINDOW => {
                while self.parts.window.as_ref().is_some_and(|window| matches!(window.read(), Ok(Some(_)))) {}
                self.tell_size()
            }
            data => {
                match data {
                    STDOUT => self.parts.output.unblock(ops, data),
                    STDERR => self.parts.errors.unblock(ops, data),
                    _ => {}
                }
                Ok(())
            }
        };
        if let Err(broken) = done {
            self.kick(channel_error(&broken));
        }
        self.serve(ops);
    }

    fn init(&mut self, ops: &mut EventOps) {
        let bell = Events::with_data(&self.parts.bell, BELL, EventSet::IN | EventSet::EDGE_TRIGGERED);
        let grace = Events::with_data(&self.grace, GRACE, EventSet::IN);
        let mut done = ops.add(bell).and_then(|()| ops.add(grace));
        if let Some(window) = &self.parts.window {
            done = done.and_then(|()| ops.add(Events::with_data(window, WINDOW, EventSet::IN)));
        }
        if let Err(error) = done {
            self.kick(ExitReason::Failed(format!("cannot wait for the command: {error}")));
        }
        self.serve(ops);
    }
}
