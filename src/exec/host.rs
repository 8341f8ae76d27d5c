//! kickvm's end of the channel: a subscriber of the event loop that moves bytes between the rings and its own streams.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use vmm_sys_util::eventfd::EventFd;

use super::channel::{Broken, Consumer, Event, Lane, Order, Producer, must_wake, take};
use super::pages::GuestPages;
use super::port::ExecPort;
use super::stream::Outlet;
use crate::console::input::{KEY_HELP, Key, Stdin};
use crate::device::ConsolePort;
use crate::device::serial::Serial;
use crate::event::{EventOps, EventSet, Events, MutEventSubscriber, Signals, Timer};
use crate::memory::GuestRam;
use crate::sys::winsize::WinSize;
use crate::vmm::{Companion, ExitHandler, ExitReason, complain, kick};

// The user data of each descriptor's events.
const BELL: u32 = 0;
const STDIN: u32 = 1;
const STDOUT: u32 = 2;
const STDERR: u32 = 3;
const GRACE: u32 = 4;
const WINDOW: u32 = 5;

/// Bytes of input after which the loop gets a turn, however fast the guest takes them.
const MAX_INPUT: usize = 1 << 20;

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
        kick(&self.exit_handler, reason);
    }

    /// Does all that can be done now.
    fn serve(&mut self, ops: &mut EventOps) {
        if let Err(broken) = self.try_serve(ops) {
            self.kick(ExitReason::Channel(broken.to_string()));
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
                Some(why) => kick(&self.exit_handler, ExitReason::Failed(why)),
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
                    self.kick(ExitReason::Command(status));
                }
                Event::Warning(text) => complain(format_args!("warning: {text}")),
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
            self.parts.wake.push_input(&[0]); // where there is no room for it, enough are waiting
        }
        Ok(())
    }

    fn tell_size(&mut self) -> Result<(), Broken> {
        match WinSize::of(io::stdout()) {
            Ok(size) => self.order(Order::Size(size)),
            Err(_) => Ok(()),
        }
    }

    /// Feeds the command. `ready` says that standard input is readable. Before there is a channel, only a terminal is read:
    /// its user must be able to leave.
    fn pump_input(&mut self, ops: &mut EventOps, ready: bool) -> Result<(), Broken> {
        let Some(stdin) = self.parts.input.as_mut().filter(|stdin| self.link.is_some() || stdin.has_keys()) else {
            return self.end_input();
        };
        let (mut broken, mut fed, mut enough) = (None, 0, false);
        let on_key = |key| match key {
            Key::Quit => kick(&self.exit_handler, ExitReason::UserQuit),
            Key::Help => KEY_HELP.iter().for_each(complain),
            Key::PowerButton => {}
        };
        let mut feed = |bytes: &[u8]| {
            let Some(link) = &mut self.link else { return 0 };
            if fed >= MAX_INPUT {
                enough = true;
                return 0;
            }
            let mut push = || {
                let mut done = link.input.push(&link.pages, bytes)?;
                if done < bytes.len() {
                    link.input.starve(&link.pages)?;
                    done += link.input.push(&link.pages, &bytes[done..])?; // room may have come in between
                }
                Ok(done)
            };
            let done = push().unwrap_or_else(|error: Broken| {
                broken = Some(error);
                0
            });
            fed += done;
            done
        };
        let more = stdin.pump(&mut feed, ops, STDIN, ready, on_key);
        if !more {
            self.parts.input = None;
        }
        if enough {
            let _ = self.parts.bell.write(1); // a full counter has rung already
        }
        match broken {
            Some(broken) => return Err(broken),
            None if fed > 0 => self.wake()?,
            None => {}
        }
        self.end_input()
    }

    /// Passes the end of standard input on, once.
    fn end_input(&mut self) -> Result<(), Broken> {
        if let (Some(link), None, false) = (&self.link, &self.parts.input, self.stdin_ended) {
            link.input.close(&link.pages)?;
            self.stdin_ended = true;
            self.wake()?;
        }
        Ok(())
    }
}

impl<EH: ExitHandler + Send + fmt::Debug> Companion for Host<EH> {
    fn on_signal(&mut self, number: i32) -> bool {
        let first = self.signal.is_none() && self.timings.started.is_some() && self.status.is_none();
        let Ok(order) = u8::try_from(number).map(Order::Signal) else { return false };
        if !first || self.grace.arm(self.parts.grace).is_err() || self.order(order).is_err() {
            return false;
        }
        self.signal = Some(number);
        true
    }

    fn finish(&mut self, reason: ExitReason, stop: &Signals, deadline: Option<Instant>, hurry: bool) -> ExitReason {
        // A guest that was ended in the middle of something may have broken the channel, too; that is not why.
        let broken = |broken: Broken| match reason {
            ExitReason::Guest(_) | ExitReason::Command(_) => ExitReason::Channel(broken.to_string()),
            _ => reason.clone(),
        };
        if let Err(error) = self.hear() {
            return broken(error);
        }
        if let Some(link) = &self.link {
            let streams = [&mut self.parts.output, &mut self.parts.errors];
            let finished = streams.map(|stream| stream.finish(&link.pages, stop, deadline));
            if let Some(error) = finished.into_iter().find_map(Result::err) {
                return broken(error);
            }
            if let Some(why) = self.parts.output.failure().or_else(|| self.parts.errors.failure()).filter(|_| !hurry) {
                return ExitReason::Failed(why);
            }
        }
        match (reason, self.status) {
            // The guest may be faster than the loop that listens to it.
            (ExitReason::Guest(request), Some(status)) if request.is_ordinary_end() => ExitReason::Command(status),
            (ExitReason::Guest(request), None) if request.is_ordinary_end() => match self.failure.take() {
                Some(why) => ExitReason::Failed(why),
                None => ExitReason::NoStatus(request),
            },
            (reason, _) => reason,
        }
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
            self.kick(ExitReason::Channel(broken.to_string()));
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
