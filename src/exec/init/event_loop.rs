//! The first process's loop: it moves bytes between the command and the rings, and buries the dead.

use std::fs::File;
use std::io;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::command::Running;
use super::link::Link;
use crate::event::{EventSet, Poll, Registry, Signals, Token};
use crate::exec::channel::{Consumer, Lane, Order, Producer, take};
use crate::sys::wait::{Ended, try_wait_any};

const DEATHS: Token = Token(0);
const WAKE: Token = Token(1);
const OUTPUT: Token = Token(2);
const ERRORS: Token = Token(3);
const INPUT: Token = Token(4);

/// Reads of one stream after which the others get a turn.
const READS: usize = 64;

/// Serves the command until it has ended and all it said is in the rings. Returns its exit status.
pub fn serve(link: &mut Link, running: Running) -> io::Result<u8> {
    let deaths = Signals::new(&[libc::SIGCHLD])?;
    let mut poll = Poll::new()?;
    poll.registry().register(&deaths, DEATHS, EventSet::IN)?;
    poll.registry().register(&link.wake, WAKE, EventSet::IN)?;
    let mut server = Server::new(running, &poll)?;
    let mut events = Vec::with_capacity(8);
    server.bury(); // it may have died before anybody listened
    loop {
        link.set_sleeping(true)?;
        server.obey(link)?;
        server.output.watch(link, OUTPUT)?;
        server.errors.watch(link, ERRORS)?;
        server.input.feed(link)?;
        if let Some(status) = server.status
            && server.output.source.is_none()
            && server.errors.source.is_none()
        {
            return Ok(status);
        }
        poll.poll(&mut events, None)?;
        link.set_sleeping(false)?;
        for event in &events {
            match event.token() {
                DEATHS => {
                    while deaths.read()?.is_some() {}
                    server.bury();
                }
                WAKE => link.wake_up(),
                OUTPUT => server.output.pump(link)?,
                ERRORS => server.errors.pump(link)?,
                _ => {} // there is room for input; see `feed`
            }
        }
    }
}

struct Server {
    running: Running,
    output: Outlet,
    errors: Outlet,
    input: Inlet,
    orders: Vec<u8>,
    status: Option<u8>,
}

impl Server {
    fn new(mut running: Running, poll: &Poll) -> io::Result<Self> {
        let registry = || poll.registry().try_clone();
        let outlet = |source, lane| {
            Ok::<_, io::Error>(Outlet { source, ring: Producer::new(lane), watched: false, registry: registry()? })
        };
        let (sink, ring) = (running.input.take(), Consumer::new(Lane::Input));
        Ok(Self {
            output: outlet(running.output.take(), Lane::Output)?,
            errors: outlet(running.errors.take(), Lane::Errors)?,
            input: Inlet { sink, ring, watched: false, registry: registry()? },
            orders: Vec::new(),
            status: None,
            running,
        })
    }

    /// Does what kickvm asked for.
    fn obey(&mut self, link: &mut Link) -> io::Result<()> {
        link.orders.pop(&link.memory, &mut self.orders, usize::MAX)?;
        while let Some((kind, payload)) = take(&mut self.orders) {
            match Order::decode(kind, &payload) {
                Some(Order::Signal(number)) if self.status.is_none() => self.running.signal(number),
                Some(Order::Size(size)) => self.running.resize(size),
                // The command is told as it would be anywhere else: by SIGPIPE.
                Some(Order::Shut(1)) => self.output.shut(),
                Some(Order::Shut(2)) => self.errors.shut(),
                _ => {}
            }
        }
        Ok(())
    }

    /// Takes note of every process that has ended. When the command has, so must all it left behind.
    fn bury(&mut self) {
        while let Some(Ended { pid, status }) = try_wait_any() {
            if pid == self.running.pid.as_raw() {
                self.status = Some(status);
                let _ = kill(Pid::from_raw(-1), Signal::SIGKILL); // there may be none
                self.running.terminal = None;
                self.input.shut();
            }
        }
    }
}

/// From the command to a ring.
struct Outlet {
    source: Option<File>,
    ring: Producer,
    watched: bool,
    registry: Registry,
}

impl Outlet {
    /// Waits for output if there is room for it, or else for room.
    fn watch(&mut self, link: &Link, token: Token) -> io::Result<()> {
        let Some(source) = &self.source else { return Ok(()) };
        let mut room = self.ring.room(&link.memory)?;
        if room == 0 {
            self.ring.starve(&link.memory)?;
            room = self.ring.room(&link.memory)?; // it may have been made before the other side could know
        }
        match (room > 0, self.watched) {
            (true, false) => self.registry.register(source, token, EventSet::IN)?,
            (false, true) => self.registry.deregister(source)?,
            _ => {}
        }
        self.watched = room > 0;
        Ok(())
    }

    /// Moves what there is into the ring.
    fn pump(&mut self, link: &Link) -> io::Result<()> {
        let mut moved = false;
        for _ in 0..READS {
            let Some(source) = &mut self.source else { break };
            if self.ring.room(&link.memory)? == 0 {
                break;
            }
            match self.ring.push_from(&link.memory, source) {
                Ok(len) if len > 0 => moved = true,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // The end; a terminal that nobody has open any more ends with an error.
                _ => self.shut(),
            }
        }
        if moved {
            link.ring();
        }
        Ok(())
    }

    /// Lets go of the source. A terminal has copies, so that closing it does not end the watch.
    fn shut(&mut self) {
        if let Some(source) = self.source.take()
            && std::mem::take(&mut self.watched)
        {
            let _ = self.registry.deregister(&source); // it was registered
        }
    }
}

/// From a ring to the command.
struct Inlet {
    sink: Option<File>,
    ring: Consumer,
    watched: bool,
    registry: Registry,
}

impl Inlet {
    /// Gives the command what it takes, and waits for it to take the rest.
    fn feed(&mut self, link: &Link) -> io::Result<()> {
        let mut blocked = false;
        while let Some(sink) = &mut self.sink
            && !blocked
            && self.ring.available(&link.memory)? > 0
        {
            match self.ring.pop_to(&link.memory, sink) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => blocked = true,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => self.shut(), // nobody will ever read it
            }
        }
        if self.ring.relieve(&link.memory)? {
            link.ring();
        }
        if self.ring.is_at_end(&link.memory)? {
            self.shut();
        }
        let Some(sink) = &self.sink else { return Ok(()) };
        match (blocked, self.watched) {
            (true, false) => self.registry.register(sink, INPUT, EventSet::OUT)?,
            (false, true) => self.registry.deregister(sink)?,
            _ => {}
        }
        self.watched = blocked;
        Ok(())
    }

    /// Lets go of the sink; see [`Outlet::shut`].
    fn shut(&mut self) {
        if let Some(sink) = self.sink.take()
            && std::mem::take(&mut self.watched)
        {
            let _ = self.registry.deregister(&sink); // it was registered
        }
    }
}
