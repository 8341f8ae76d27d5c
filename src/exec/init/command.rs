//! Starting the command, and sending it signals.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::{Command, Stdio};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};
use nix::pty::{OpenptyResult, openpty};
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::{Signal, kill, killpg};
use nix::sys::stat::{Mode, umask};
use nix::unistd::Pid;

use super::SESSION;
use super::user::{User, text_of};
use crate::exec::job::{INIT_PATH, Job, LIBRARIES_PATH, LINKER_PATH};
use crate::sys::winsize::WinSize;

/// The environment of a command whose job does not override it.
const DEFAULT_ENV: [(&str, &str); 2] =
    [("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"), ("HOME", "/root")];

/// A running command and init's ends of its streams, which are non-blocking. With a terminal, standard input and output
/// are its master.
#[derive(Debug)]
pub struct Running {
    /// The command's first process, which leads its session and its process group.
    pub pid: Pid,
    /// Standard input.
    pub stdin: Option<File>,
    /// Standard output.
    pub stdout: Option<File>,
    /// Standard error; `None` if it is the terminal.
    pub stderr: Option<File>,
}

/// Starts the command of `job`, as `user`, or else as the caller or root.
///
/// # Errors
///
/// There are not enough resources for the process, its pipes or its terminal. A program that does not exist is not an
/// error here: the new process fails to execute it, and exits with 126 or 127.
pub fn start(job: &Job, user: Option<&User>) -> io::Result<Running> {
    let mut command = session_command();
    command.env_clear().envs(DEFAULT_ENV);
    let mut ids = user.map_or(String::new(), User::ids);
    if let Some(caller) = &job.caller {
        command.envs(caller.env.iter().map(split));
        umask(Mode::from_bits_truncate(caller.umask));
        let is_root = caller.ids.first() == Some(&0); // as init
        if user.is_none() && !is_root {
            ids = text_of(&caller.ids);
        }
    }
    command.arg(ids).envs(user.iter().flat_map(|user| user.env())).envs(job.env.iter().map(split));
    set_open_files(job.open_files);
    let pty = job.terminal.map(open_terminal).transpose()?;
    let stream = || pty.as_ref().map_or(Ok(Stdio::piped()), |pty| pty.slave.try_clone().map(Stdio::from));
    let stderr = if job.separate_stderr { Stdio::piped() } else { stream()? };
    let mut child = command.args(&job.command).stdin(stream()?).stdout(stream()?).stderr(stderr).spawn()?;
    let end = |pipe: Option<OwnedFd>| {
        let master = || pty.as_ref().map(|pty| pty.master.try_clone()).transpose();
        pipe.map_or_else(master, |pipe| Ok(Some(pipe)))?.map(non_blocking).transpose()
    };
    Ok(Running {
        pid: Pid::from_raw(child.id().cast_signed()),
        stdin: end(child.stdin.take().map(OwnedFd::from))?,
        stdout: end(child.stdout.take().map(OwnedFd::from))?,
        stderr: child.stderr.take().map(|pipe| non_blocking(pipe.into())).transpose()?,
    })
}

/// Splits NAME=VALUE.
fn split(variable: &OsString) -> (&OsStr, &OsStr) {
    let mut parts = variable.as_bytes().splitn(2, |byte| *byte == b'=').map(OsStr::from_bytes);
    (parts.next().unwrap_or_default(), parts.next().unwrap_or_default())
}

/// Sets the limit of open files, also for this process. It cannot be higher than that of the kernel.
fn set_open_files((soft, hard): (u64, u64)) {
    const NR_OPEN: &str = "/proc/sys/fs/nr_open";
    let read_max = || fs::read_to_string(NR_OPEN).ok().and_then(|text| text.trim_end().parse().ok()).unwrap_or(hard);
    if hard > read_max() {
        let _ = fs::write(NR_OPEN, hard.min(i32::MAX as u64 & !63).to_string()); // the largest that Linux accepts
    }
    let hard = hard.min(read_max());
    let _ = setrlimit(Resource::RLIMIT_NOFILE, soft.min(hard), hard); // on failure, the kernel's default applies
}

/// This program, as the process that becomes the command.
fn session_command() -> Command {
    let mut command = Command::new(INIT_PATH);
    if Path::new(LINKER_PATH).exists() {
        command = Command::new(LINKER_PATH);
        command.args(["--library-path", LIBRARIES_PATH, INIT_PATH]);
    }
    command.arg(SESSION);
    command
}

/// Opens a new terminal of this size.
fn open_terminal(size: WinSize) -> io::Result<OpenptyResult> {
    let pty = openpty(None, None)?;
    for end in [&pty.master, &pty.slave] {
        fcntl(end.as_fd(), FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?; // the command gets duplicates
    }
    size.set(&pty.master)?;
    Ok(pty)
}

fn non_blocking(end: OwnedFd) -> io::Result<File> {
    let flags = OFlag::from_bits_retain(fcntl(end.as_fd(), FcntlArg::F_GETFL)?);
    fcntl(end.as_fd(), FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(File::from(end))
}

/// Sends a signal to the command `pid` and its child processes.
pub fn signal(pid: Pid, number: u8) {
    let Ok(signal) = Signal::try_from(i32::from(number)) else { return };
    if killpg(pid, signal) == Err(Errno::ESRCH) {
        let _ = kill(pid, signal); // it has no process group yet, or has ended and needs no signal
    }
}
