//! The process that becomes the command: it starts a session, gets a controlling terminal, and executes the command.

use std::ffi::{OsStr, OsString};
use std::fs::{self, OpenOptions};
use std::io::{self, IsTerminal};
use std::os::fd::AsFd;

use nix::sys::stat::{Mode, fchmod};

use super::program::{self, SHELL};
use super::user::become_ids;
use crate::exec::port::{EXEC_PORT_BASE, EXEC_PORT_COUNT};
use crate::sys::execute::execute;
use crate::sys::os_error;
use crate::sys::port_io::PortIo;

// The exit statuses of a shell that cannot execute a command.
const NOT_FOUND: u8 = 127;
const NOT_EXECUTABLE: u8 = 126;

/// Executes a command: `words` are the IDs of its user, its name and its arguments. Returns only if that fails, with
/// the exit status to use.
pub fn become_command(words: &[OsString]) -> u8 {
    let [ids, words @ ..] = words else { return NOT_FOUND };
    let [name, ..] = words else { return NOT_FOUND };
    if let Err(error) = start_session().and_then(|()| Ok(become_ids(&ids.to_string_lossy())?)) {
        eprintln!("kickvm: cannot run '{}': {}", name.display(), os_error::describe(&error));
        return NOT_EXECUTABLE;
    }
    let path = program::find(name);
    let mut words: Vec<_> = words.iter().map(OsString::as_os_str).collect();
    let error = execute(path.as_os_str(), &words);
    let mut reason = program::explain(&path, &error);
    if program::is_plain_script(&path, &error) {
        words.splice(..1, [OsStr::new(SHELL), path.as_os_str()]);
        let error = execute(SHELL.as_ref(), &words);
        reason = format!("it has no '#!' line, and {SHELL} cannot be run: {}", os_error::describe(&error));
    }
    eprintln!("kickvm: cannot run '{}': {reason}", name.display());
    if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::InvalidInput) {
        NOT_FOUND
    } else {
        NOT_EXECUTABLE
    }
}

/// Starts a session. If standard input is a terminal, that becomes the controlling terminal.
fn start_session() -> io::Result<()> {
    nix::unistd::setsid()?;
    PortIo::close(EXEC_PORT_BASE, EXEC_PORT_COUNT);
    // The command must not inherit init's protection from the OOM killer. If this fails, it does: that does no harm.
    let _ = fs::write("/proc/self/oom_score_adj", "0");
    // A command of another user may open /dev/stdout, which needs the permission to write to the pipe or terminal.
    for descriptor in [io::stdin().as_fd(), io::stdout().as_fd(), io::stderr().as_fd()] {
        fchmod(descriptor, Mode::from_bits_truncate(0o666))?;
    }
    if io::stdin().is_terminal() {
        // The first terminal that a session leader opens becomes its controlling terminal.
        OpenOptions::new().read(true).write(true).open("/proc/self/fd/0")?;
    }
    Ok(())
}
