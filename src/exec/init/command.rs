//! The command, its streams, and how it is signalled.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::process::{Command, Stdio};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};
use nix::pty::openpty;
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;

use super::SESSION;
use crate::exec::job::{INIT_PATH, Job, LIBRARIES_PATH, LINKER_PATH};
use crate::sys::winsize::WinSize;

/// What a command finds in its environment unless told otherwise.
const DEFAULTS: [(&str, &str); 2] =
    [("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"), ("HOME", "/root")];

/// A command that runs, and init's ends of its streams, none of which blocks.
#[derive(Debug)]
pub struct Running {
    /// Its first process, which leads its session and its process group.
    pub pid: Pid,
    /// Where its input goes; the terminal's other end if it has one.
    pub input: Option<File>,
    /// Where its output comes from; the terminal's other end if it has one.
    pub output: Option<File>,
    /// Where its errors come from, unless they go to its terminal.
    pub errors: Option<File>,
    /// The other end of its terminal.
    pub terminal: Option<File>,
}

/// Starts the command of `job`.
pub fn start(job: &Job) -> io::Result<Running> {
    let mut command = launcher(job.linked);
    command.env_clear().envs(DEFAULTS);
    for variable in &job.env {
        let bytes = variable.as_bytes();
        let at = bytes.iter().position(|byte| *byte == b'=').unwrap_or(bytes.len());
        let value = bytes.get(at + 1..).unwrap_or_default();
        command.env(OsString::from_vec(bytes[..at].to_vec()), OsString::from_vec(value.to_vec()));
    }
    let Some(size) = job.terminal else { return start_with_pipes(command, job) };
    let pty = openpty(None, None)?;
    for end in [&pty.master, &pty.slave] {
        fcntl(end.as_fd(), FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?; // the command has its own
    }
    size.set(&pty.master)?;
    let name = fs::read_link(format!("/proc/self/fd/{}", pty.slave.as_raw_fd()))?;
    let slave = || pty.slave.try_clone().map(Stdio::from);
    let errors = if job.errors_apart { Stdio::piped() } else { slave()? };
    command.arg(name).args(&job.command).stdin(slave()?).stdout(slave()?).stderr(errors);
    let mut child = command.spawn()?;
    let master = non_blocking(pty.master)?;
    Ok(Running {
        pid: Pid::from_raw(child.id() as i32),
        input: Some(master.try_clone()?),
        output: Some(master.try_clone()?),
        errors: child.stderr.take().map(|end| non_blocking(end.into())).transpose()?,
        terminal: Some(master),
    })
}

fn start_with_pipes(mut command: Command, job: &Job) -> io::Result<Running> {
    command.arg("-").args(&job.command).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn()?;
    Ok(Running {
        pid: Pid::from_raw(child.id() as i32),
        input: child.stdin.take().map(|end| non_blocking(end.into())).transpose()?,
        output: child.stdout.take().map(|end| non_blocking(end.into())).transpose()?,
        errors: child.stderr.take().map(|end| non_blocking(end.into())).transpose()?,
        terminal: None,
    })
}

/// This program, as the process that becomes the command.
fn launcher(linked: bool) -> Command {
    let mut command = Command::new(if linked { LINKER_PATH } else { INIT_PATH });
    if linked {
        command.args(["--library-path", LIBRARIES_PATH, INIT_PATH]);
    }
    command.arg(SESSION);
    command
}

fn non_blocking(end: OwnedFd) -> io::Result<File> {
    let flags = OFlag::from_bits_retain(fcntl(end.as_fd(), FcntlArg::F_GETFL)?);
    fcntl(end.as_fd(), FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(File::from(end))
}

impl Running {
    /// Sends a signal to the command and those it started.
    pub fn signal(&self, number: u8) {
        let Ok(signal) = Signal::try_from(i32::from(number)) else { return };
        if killpg(self.pid, signal) == Err(Errno::ESRCH) {
            let _ = kill(self.pid, signal); // it has no group yet; or it has ended, and needs no signal
        }
    }

    /// Tells the command's terminal its size.
    pub fn resize(&self, size: WinSize) {
        if let Some(terminal) = &self.terminal {
            let _ = size.set(terminal); // the old size is better than no terminal
        }
    }
}
