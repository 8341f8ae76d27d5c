//! Sockets between real Linux guests and the host. The guest's part of each test is in this binary too, which is static and goes
//! into the guest: there it runs the test of the same name, which sees by the environment where it is. What it says begins with a new
//! line, as the harness is in the middle of one.

mod busy;
mod ends;
mod idle;
mod many;

use crate::common::{TempDir, harness_name};
use crate::support::guest::{Ended, Guest, Running};
use crate::support::transcript::Transcript;
use crate::support::{assets, cpio, devices, waiting};
use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, VsockAddr, accept, bind, connect, listen, socket};
use std::env;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::thread;

const IN_GUEST: &str = "KICKVM_IN_GUEST";

/// What the guest says when it has nothing more to do.
const WAITING: &str = "the guest waits";

/// Whether this is the guest.
fn in_guest() -> bool {
    env::var_os(IN_GUEST).is_some()
}

/// A guest that runs this binary, and the way to it.
struct Host {
    running: Running,
    _console: Console,
    dir: TempDir,
}

impl Host {
    /// Starts `guest` with a socket device to run the guest's part of `test`.
    fn start(guest: Guest, test: &str) -> Self {
        Self::start_beside(guest, test, "")
    }

    /// The same while a shell script does other things.
    fn start_beside(guest: Guest, test: &str, script: &str) -> Self {
        let (test, dir) = (harness_name(test), TempDir::new());
        let binary = env::current_exe().expect("this runs");
        let stripped = dir.path().join("test");
        let strip = std::process::Command::new("strip").arg("-o").arg(&stripped).arg(&binary).status();
        assert!(strip.is_ok_and(|status| status.success()), "binutils are installed with the linker");
        let program = cpio::archive(&[("vsock-test", &assets::read(&stripped))]);
        let option = format!("cid=3,socket={}", dir.path().join("vsock").display());
        let guest = guest.options(&["--vsock", &option]).archive(&program);
        let part = format!("{IN_GUEST}=1 /vsock-test --exact {test} --nocapture 2>&1; echo ended as $?; wait");
        // Without an echo, so that the goodbye is not in the middle of something.
        let running = devices::job(guest, &format!("stty -echo\n{script}\n{part}")).start();
        Self { _console: Console(running.stdout.clone()), running, dir }
    }

    fn path(&self, suffix: &str) -> PathBuf {
        self.dir.path().join(format!("vsock{suffix}"))
    }

    /// Listens for the guest.
    fn listen(&self, port: u32) -> UnixListener {
        UnixListener::bind(self.path(&format!("_{port}"))).expect("a socket can be bound")
    }

    /// Says something to kickvm in place of a greeting. Returns the answer, a line or nothing, and the stream.
    fn greet(&self, greeting: &str) -> (String, UnixStream) {
        let mut stream = UnixStream::connect(self.path("")).expect("kickvm listens");
        stream.write_all(greeting.as_bytes()).expect("kickvm reads");
        let mut answer = String::new();
        let mut byte = [0];
        while !answer.ends_with('\n') && stream.read(&mut byte).unwrap_or(0) == 1 {
            answer.push(byte[0].into());
        }
        (answer, stream)
    }

    /// Connects to the guest.
    fn connect(&self, port: u32) -> UnixStream {
        let (answer, stream) = self.greet(&format!("CONNECT {port}\n"));
        let host_port = answer.strip_prefix("OK ").and_then(|rest| rest.strip_suffix('\n'));
        assert!(host_port.is_some_and(|port| port.parse::<u32>().is_ok()), "the answer is {answer:?}");
        stream
    }

    /// Waits for the end, which must be a good one.
    fn finish(mut self) -> Ended {
        self.running.wait_for_line(WAITING);
        self.running.say("goodbye\n");
        self.running.child.stdin = None;
        let socket = self.path("");
        let ended = self.running.finish();
        ended.assert(0, &[]);
        ended.assert_line("ended as 0");
        assert!(!socket.exists(), "the socket's file is left");
        ended
    }
}

/// What a guest has said is told if the test fails.
struct Console(Transcript);

impl Drop for Console {
    fn drop(&mut self) {
        if thread::panicking() {
            println!("--- the guest's console:\n{}", self.0.text());
        }
    }
}

fn accept_from_guest(listener: &UnixListener) -> UnixStream {
    waiting::wait_for_guest(listener);
    listener.accept().expect("the guest connects").0
}

/// `SO_VM_SOCKETS_CONNECT_TIMEOUT` (linux/vm_sockets.h).
const CONNECT_TIMEOUT: libc::c_int = 6;

/// Connects from the guest to a port of the host.
fn connect_to_host(port: u32) -> nix::Result<UnixStream> {
    let socket = socket(AddressFamily::Vsock, SockType::Stream, SockFlag::empty(), None)?;
    let patience = libc::timeval { tv_sec: waiting::PATIENCE.as_secs() as i64, tv_usec: 0 }; // it is two seconds otherwise
    // SAFETY: the call reads a `timeval`, which is a live local.
    let result = unsafe {
        let size = size_of_val(&patience) as libc::socklen_t;
        libc::setsockopt(socket.as_raw_fd(), libc::AF_VSOCK, CONNECT_TIMEOUT, (&raw const patience).cast(), size)
    };
    Errno::result(result)?;
    connect(socket.as_raw_fd(), &VsockAddr::new(2, port))?;
    Ok(socket.into()) // which shuts down, reads and writes as any stream does
}

/// Waits in the guest for the host to be done: what is on its way when a machine is switched off is lost.
fn wait_for_goodbye() {
    println!("\n{WAITING}");
    assert_eq!(std::io::stdin().lines().next().expect("there is a line").expect("the console is open"), "goodbye");
}

/// Listens in the guest.
fn listen_in_guest(port: u32) -> OwnedFd {
    let socket = socket(AddressFamily::Vsock, SockType::Stream, SockFlag::empty(), None).expect("the driver is loaded");
    bind(socket.as_raw_fd(), &VsockAddr::new(u32::MAX, port)).expect("any address can be bound");
    listen(&socket, Backlog::new(64).unwrap()).expect("it can listen");
    socket
}

fn accept_in_guest(listener: &OwnedFd) -> UnixStream {
    let fd = accept(listener.as_raw_fd()).expect("somebody connects");
    // SAFETY: the call has just made this descriptor, and nobody else knows its number.
    unsafe { UnixStream::from_raw_fd(fd) }
}

/// Sends back what comes, to its end.
fn echo(mut stream: UnixStream) {
    let mut block = vec![0; 32 << 10];
    loop {
        match stream.read(&mut block).expect("the stream can be read") {
            0 => break,
            len => stream.write_all(&block[..len]).expect("the stream can be written"),
        }
    }
    stream.shutdown(Shutdown::Write).expect("the stream is open");
}

/// Sends `bytes` to somebody who echoes them, and asserts that they come back.
fn expect_echo(stream: UnixStream, bytes: &[u8]) {
    let (mut sender, mut receiver) = (stream.try_clone().expect("a descriptor is left"), stream);
    thread::scope(|scope| {
        scope.spawn(move || {
            sender.write_all(bytes).expect("the stream can be written");
            sender.shutdown(Shutdown::Write).expect("the stream is open");
        });
        let mut back = Vec::new();
        receiver.read_to_end(&mut back).expect("the stream can be read");
        let same = || back.iter().zip(bytes).take_while(|(back, sent)| back == sent).count();
        assert!(back == bytes, "{} bytes came back, and {} are as they were sent", back.len(), same());
    });
}
