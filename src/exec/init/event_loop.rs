//! Init's event loop: it moves bytes between the command and the rings, and reaps processes.

use std::fs::File;
use std::io;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::channel::GuestChannel;
use super::command::Running;
use crate::event::{EventSet, Poll, Registry, Signals, Token};
use crate::exec::channel::{Consumer, Message, Pages, Producer, Stream};
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
    let mut state = EventLoop::new(running, poll.registry())?;
    let mut events = Vec::with_capacity(8);
    state.reap(); // the command may have ended before SIGCHLD was watched
    loop {
        channel.memory.set_sleeping(true)?;
        state.handle_controls(channel)?;
        state.stdout.watch(channel)?;
        state.stderr.watch(channel)?;
        state.stdin.pump(channel)?;
        if let (Some(status), None, None) = (state.status, &state.stdout.source.file, &state.stderr.source.file) {
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
                _ => {} // the command takes input again: `InputPump::pump` follows
            }
        }
    }
}

struct EventLoop {
    running: Running,
    stdout: OutputPump,
    stderr: OutputPump,
    stdin: InputPump,
    status: Option<u8>,
}

impl EventLoop {
    fn new(mut running: Running, registry: &Registry) -> io::Result<Self> {
        let pipe = |file: Option<File>, token, interest| {
            Ok::<_, io::Error>(Pipe { file, token, interest, registered: false, registry: registry.try_clone()? })
        };
        let stdout = pipe(running.stdout.take(), STDOUT, EventSet::IN)?;
        let stderr = pipe(running.stderr.take(), STDERR, EventSet::IN)?;
        let stdin = pipe(running.stdin.take(), STDIN, EventSet::OUT)?;
        Ok(Self {
            running,
            stdout: OutputPump { source: stdout, ring: Producer::new(Stream::Stdout) },
            stderr: OutputPump { source: stderr, ring: Producer::new(Stream::Stderr) },
            stdin: InputPump { sink: stdin, ring: Consumer::new(Stream::Stdin) },
            status: None,
        })
    }

    /// Handles the messages from kickvm. Invalid ones are ignored.
    fn handle_controls(&mut self, channel: &mut GuestChannel) -> io::Result<()> {
        for message in channel.controls.receive(&channel.memory)? {
            match message {
                Some(Message::Signal(number)) if self.status.is_none() => self.running.signal(number),
                Some(Message::Resize(size)) => self.running.resize(size),
                // The command's next write raises SIGPIPE, as it would if it ran on the host.
                Some(Message::Close(1)) => self.stdout.source.close(),
                Some(Message::Close(2)) => self.stderr.source.close(),
                _ => {}
            }
        }
        Ok(())
    }

    /// Reaps all processes that have ended. After the command has ended, kills every process that it left behind.
    fn reap(&mut self) {
        while let Some(ExitedChild { pid, status }) = try_wait_any() {
            if pid == self.running.pid.as_raw() {
                self.status = Some(status);
                let _ = kill(Pid::from_raw(-1), Signal::SIGKILL); // fails if there is no other process
                self.running.terminal = None;
                self.stdin.sink.close();
            }
        }
    }
}

/// Init's end of a pipe or terminal of the command; it is registered while the loop waits for it.
struct Pipe {
    file: Option<File>,
    token: Token,
    interest: EventSet,
    registered: bool,
    registry: Registry,
}

impl Pipe {
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

/// Moves bytes from the command to a ring.
struct OutputPump {
    source: Pipe,
    ring: Producer,
}

impl OutputPump {
    /// Waits for output if the ring has room, else for room.
    fn watch(&mut self, channel: &GuestChannel) -> io::Result<()> {
        let mut room = self.ring.room(&channel.memory)?;
        if room == 0 && self.source.file.is_some() {
            self.ring.set_waiting(&channel.memory)?;
            room = self.ring.room(&channel.memory)?;
        }
        self.source.wait_if(room > 0)
    }

    /// Moves output into the ring until either has no more.
    fn pump(&mut self, channel: &GuestChannel) -> io::Result<()> {
        let mut moved = false;
        let mut reads = 0..MAX_READS;
        while let Some(source) = &mut self.source.file
            && reads.next().is_some()
            && self.ring.room(&channel.memory)? > 0
        {
            match self.ring.push_from(&channel.memory, source) {
                Ok(len) if len > 0 => moved = true,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // End of file; for a terminal, EIO after its last process has closed it.
                _ => self.source.close(),
            }
        }
        if moved {
            channel.ring_doorbell();
        }
        Ok(())
    }
}

/// Moves bytes from a ring to the command.
struct InputPump {
    sink: Pipe,
    ring: Consumer,
}

impl InputPump {
    /// Moves input to the command until that would block; the loop waits for the command only if there is more.
    fn pump(&mut self, channel: &GuestChannel) -> io::Result<()> {
        let mut blocked = false;
        while let Some(sink) = &mut self.sink.file
            && !blocked
            && self.ring.available(&channel.memory)? > 0
        {
            match self.ring.pop_to(&channel.memory, sink) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => blocked = true,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => self.sink.close(), // the command has closed its standard input
            }
        }
        if self.ring.take_waiting(&channel.memory)? {
            channel.ring_doorbell();
        }
        if self.ring.is_at_end(&channel.memory)? {
            self.sink.close();
        }
        self.sink.wait_if(blocked)
    }
}
