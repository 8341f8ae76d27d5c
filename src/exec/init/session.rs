//! The process that becomes the command: it starts a session, gets a controlling terminal, and executes the command.

use std::ffi::OsString;
use std::fs::{self, OpenOptions};
use std::io::{self, IsTerminal};
use std::os::unix::process::CommandExt;
use std::process::Command;

use crate::exec::port::{EXEC_PORT_BASE, EXEC_PORT_COUNT};
use crate::sys::os_error;
use crate::sys::port_io::PortIo;

// The exit statuses of a shell that cannot execute a command.
const NOT_FOUND: u8 = 127;
const NOT_EXECUTABLE: u8 = 126;

/// Executes the command `words`. Returns only if that fails, with the exit status to use.
pub fn become_command(words: Vec<OsString>) -> u8 {
    let [program, arguments @ ..] = &words[..] else { return NOT_FOUND };
    let error = start_session().err().unwrap_or_else(|| Command::new(program).args(arguments).exec());
    let not_found = matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::InvalidInput);
    eprintln!("kickvm: cannot run '{}': {}", program.display(), os_error::describe(&error));
    if not_found { NOT_FOUND } else { NOT_EXECUTABLE }
}

/// Starts a session. If standard input is a terminal, that becomes the controlling terminal.
fn start_session() -> io::Result<()> {
    nix::unistd::setsid()?;
    PortIo::close(EXEC_PORT_BASE, EXEC_PORT_COUNT);
    // The command must not inherit init's protection from the OOM killer. If this fails, it does: that does no harm.
    let _ = fs::write("/proc/self/oom_score_adj", "0");
    if io::stdin().is_terminal() {
        // The first terminal that a session leader opens becomes its controlling terminal.
        OpenOptions::new().read(true).write(true).open("/proc/self/fd/0")?;
    }
    Ok(())
}
