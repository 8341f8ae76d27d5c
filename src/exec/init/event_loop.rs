//! Init's event loop: it moves bytes between the command and the rings, and reaps processes.

use std::fs::File;
use std::io;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::channel::GuestChannel;
use super::command::{self, Running};
use crate::event::{EventSet, Poll, Registry, Signals, Token};
use crate::exec::channel::{Consumer, Message, Pages, Producer, Stream};
use crate::sys::os_error::is_transient;
use crate::sys::wait::{ExitedChild, try_wait_any};

const SIGCHLD: Token = Token(0);
const WAKE: Token = Token(1);
const STDOUT: Token = Token(2);
const STDERR: Token = Token(3);
const STDIN: Token = Token(4);

/// Reads of one stream after which the other streams get a turn.
const MAX_READS: usize = 64;

/// Runs until the command has ended and all of its output is in the rings. Returns its exit status.
///
/// # Errors
///
/// The kernel cannot provide the signalfd or epoll, or an index in the channel is invalid.
pub fn run(channel: &mut GuestChannel, running: Running) -> io::Result<u8> {
    let sigchld = Signals::new(&[libc::SIGCHLD])?;
    let mut poll = Poll::new()?;
    poll.registry().register(&sigchld, SIGCHLD, EventSet::IN)?;
    poll.registry().register(&channel.wake_tty, WAKE, EventSet::IN)?;
    let Running { pid, stdin, stdout, stderr } = running;
    let mut state = EventLoop {
        pid,
        stdout: Pump::new(stdout, STDOUT, EventSet::IN, Producer::new(Stream::Stdout), poll.registry())?,
        stderr: Pump::new(stderr, STDERR, EventSet::IN, Producer::new(Stream::Stderr), poll.registry())?,
        stdin: Pump::new(stdin, STDIN, EventSet::OUT, Consumer::new(Stream::Stdin), poll.registry())?,
        status: None,
    };
    let mut events = Vec::with_capacity(8);
    state.reap(); // the command may have ended before SIGCHLD was watched
    loop {
        channel.memory.set_sleeping(true)?;
        state.handle_controls(channel)?;
        state.stdout.watch(channel)?;
        state.stderr.watch(channel)?;
        state.stdin.pump(channel)?;
        if let (Some(status), None, None) = (state.status, &state.stdout.file, &state.stderr.file) {
            return Ok(status);
        }
        poll.poll(&mut events, None)?;
        channel.memory.set_sleeping(false)?;
        for event in &events {
            match event.token() {
                SIGCHLD => {
                    while sigchld.read()?.is_some() {}
                    state.reap();
                }
                WAKE => channel.acknowledge_wake(),
                STDOUT => state.stdout.pump(channel)?,
                STDERR => state.stderr.pump(channel)?,
                _ => {} // the command takes input again: `stdin.pump` follows
            }
        }
    }
}

struct EventLoop {
    pid: Pid,
    stdout: Pump<Producer>,
    stderr: Pump<Producer>,
    stdin: Pump<Consumer>,
    status: Option<u8>,
}

impl EventLoop {
    /// Handles the messages from kickvm. Invalid ones are ignored.
    fn handle_controls(&mut self, channel: &mut GuestChannel) -> io::Result<()> {
        for message in channel.controls.receive(&channel.memory)? {
            match message {
                Some(Message::Signal(number)) if self.status.is_none() => command::signal(self.pid, number),
                // Fails for a pipe, which has no size.
                Some(Message::Resize(size)) => drop(self.stdout.file.as_ref().map(|terminal| size.set(terminal))),
                // The command's next write raises SIGPIPE, as it would if it ran on the host.
                Some(Message::Close(1)) => self.stdout.close(),
                Some(Message::Close(2)) => self.stderr.close(),
                _ => {}
            }
        }
        Ok(())
    }

    /// Reaps all processes that have ended. After the command has ended, kills every process that it left behind.
    fn reap(&mut self) {
        while let Some(ExitedChild { pid, status }) = try_wait_any() {
            if pid == self.pid.as_raw() {
                self.status = Some(status);
                let _ = kill(Pid::from_raw(-1), Signal::SIGKILL); // fails if there is no other process
                self.stdin.close();
            }
        }
    }
}

/// Moves bytes between init's end of a pipe or terminal of the command and a ring. The file is registered while the
/// loop waits for it.
struct Pump<Ring> {
    file: Option<File>,
    token: Token,
    interest: EventSet,
    registered: bool,
    registry: Registry,
    ring: Ring,
}

impl<Ring> Pump<Ring> {
    fn new(file: Option<File>, token: Token, interest: EventSet, ring: Ring, registry: &Registry) -> io::Result<Self> {
        Ok(Self { file, token, interest, registered: false, registry: registry.try_clone()?, ring })
    }

    fn wait_if(&mut self, wait: bool) -> io::Result<()> {
        match &self.file {
            Some(file) if wait && !self.registered => self.registry.register(file, self.token, self.interest)?,
            Some(file) if !wait && self.registered => self.registry.deregister(file)?,
            _ => return Ok(()),
        }
        self.registered = wait;
        Ok(())
    }

    /// Closes the file. A terminal has more than one descriptor, so that closing this one would not deregister it.
    fn close(&mut self) {
        let _ = self.wait_if(false); // deregisters a file that is registered, which does not fail
        self.file = None;
    }
}

impl Pump<Producer> {
    /// Waits for output if the ring has room, else for room.
    fn watch(&mut self, channel: &GuestChannel) -> io::Result<()> {
        let mut room = self.ring.room(&channel.memory)?;
        if room == 0 && self.file.is_some() {
            self.ring.set_waiting(&channel.memory)?;
            room = self.ring.room(&channel.memory)?;
        }
        self.wait_if(room > 0)
    }

    /// Moves output into the ring until either has no more.
    fn pump(&mut self, channel: &GuestChannel) -> io::Result<()> {
        let mut moved = false;
        let mut reads = 0..MAX_READS;
        while let Some(source) = &mut self.file
            && reads.next().is_some()
            && self.ring.room(&channel.memory)? > 0
        {
            match self.ring.push_from(&channel.memory, source) {
                Ok(len) if len > 0 => moved = true,
                Err(error) if is_transient(&error) => break,
                // End of file; for a terminal, EIO after its last process has closed it.
                _ => self.close(),
            }
        }
        if moved {
            channel.ring_doorbell();
        }
        Ok(())
    }
}

impl Pump<Consumer> {
    /// Moves input to the command until that would block; the loop waits for the command only if there is more.
    fn pump(&mut self, channel: &GuestChannel) -> io::Result<()> {
        let mut blocked = false;
        while let Some(sink) = &mut self.file
            && !blocked
            && self.ring.available(&channel.memory)? > 0
        {
            match self.ring.pop_to(&channel.memory, sink) {
                Ok(_) => {}
                Err(error) if is_transient(&error) => blocked = true,
                Err(_) => self.close(), // the command has closed its standard input
            }
        }
        if self.ring.take_waiting(&channel.memory)? {
            channel.ring_doorbell();
        }
        if self.ring.is_at_end(&channel.memory)? {
            self.close();
        }
        self.wait_if(blocked)
    }
}
