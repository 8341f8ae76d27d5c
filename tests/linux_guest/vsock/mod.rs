//! Sockets between real Linux guests and the host. The guest's part of each test is in this binary too: it is static,
//! is copied into the guest, and runs the test of the same name there, with `KICKVM_IN_GUEST` set. Its output begins
//! with a line feed, because the test harness has just printed an incomplete line.

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

/// The line that the guest prints when its part is done.
const WAITING: &str = "the guest waits";

/// Returns whether this process runs in the guest.
fn in_guest() -> bool {
    env::var_os(IN_GUEST).is_some()
}

/// The host's side: a guest that runs this binary, and the socket to reach it.
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

    /// Like `start`, but the guest runs a shell script at the same time.
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
        // Without an echo, which would mix the host's line into the guest's output.
        let running = devices::job(guest, &format!("stty -echo\n{script}\n{part}")).start();
        Self { _console: Console(running.stdout.clone()), running, dir }
    }

    fn path(&self, suffix: &str) -> PathBuf {
        self.dir.path().join(format!("vsock{suffix}"))
    }

    /// Listens for connections from the guest to `port`.
    fn listen(&self, port: u32) -> UnixListener {
        UnixListener::bind(self.path(&format!("_{port}"))).expect("a socket can be bound")
    }

    /// Connects to kickvm's socket and sends `greeting`. Returns the answer, which is a line or empty, and the stream.
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

    /// Connects to `port` of the guest.
    fn connect(&self, port: u32) -> UnixStream {
        let (answer, stream) = self.greet(&format!("CONNECT {port}\n"));
        let host_port = answer.strip_prefix("OK ").and_then(|rest| rest.strip_suffix('\n'));
        assert!(host_port.is_some_and(|port| port.parse::<u32>().is_ok()), "the answer is {answer:?}");
        stream
    }

    /// Lets the guest end, and asserts that it succeeded.
    fn finish(mut self) -> Ended {
        self.running.wait_for_line(WAITING);
        self.running.write("done\n");
        self.running.child.stdin = None;
        let socket = self.path("");
        let ended = self.running.finish();
        ended.assert(0, &[]);
        ended.assert_line("ended as 0");
        assert!(!socket.exists(), "the socket's file is left");
        ended
    }
}

/// Prints the guest's console if the test fails.
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
    // The default is two seconds.
    let patience = libc::timeval { tv_sec: waiting::PATIENCE.as_secs().cast_signed(), tv_usec: 0 };
    // SAFETY: the call reads a `timeval`, which is a live local.
    let result = unsafe {
        let size = libc::socklen_t::try_from(size_of_val(&patience)).unwrap();
        libc::setsockopt(socket.as_raw_fd(), libc::AF_VSOCK, CONNECT_TIMEOUT, (&raw const patience).cast(), size)
    };
    Errno::result(result)?;
    connect(socket.as_raw_fd(), &VsockAddr::new(2, port))?;
    Ok(socket.into()) // a socket of another family, for which the same calls work
}

/// Waits in the guest until the host is done, because data in transit is lost at power-off.
fn wait_for_host() {
    println!("\n{WAITING}");
    assert_eq!(std::io::stdin().lines().next().expect("there is a line").expect("the console is open"), "done");
}

/// Listens on `port` in the guest.
fn listen_in_guest(port: u32) -> OwnedFd {
    let socket = socket(AddressFamily::Vsock, SockType::Stream, SockFlag::empty(), None).expect("the driver is loaded");
    bind(socket.as_raw_fd(), &VsockAddr::new(u32::MAX, port)).expect("any address can be bound");
    listen(&socket, Backlog::new(64).unwrap()).expect("it can listen");
    socket
}

fn accept_in_guest(listener: &OwnedFd) -> UnixStream {
    let fd = accept(listener.as_raw_fd()).expect("the host connects");
    // SAFETY: the call has just created this descriptor, so nothing else owns it.
    unsafe { UnixStream::from_raw_fd(fd) }
}

/// Sends back everything it receives, until the end of the stream.
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

/// Sends `bytes` to an echoing peer, and asserts that they come back.
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
