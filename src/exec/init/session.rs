//! The last step of a command's start, in a process of its own: a session, a terminal, and then the command in its place.

use std::ffi::{OsStr, OsString};
use std::fs::OpenOptions;
use std::io::{self, IsTerminal};
use std::os::unix::process::CommandExt;
use std::process::Command;

use super::ports::Ports;

/// As in a shell.
const NOT_FOUND: u8 = 127;
const NOT_EXECUTABLE: u8 = 126;

/// Becomes the command. The first of `arguments` is its terminal or `-`, the others are its words. Returns only if that
/// fails, with the exit status that says so.
pub fn become_command(arguments: Vec<OsString>) -> u8 {
    let [terminal, program, words @ ..] = &arguments[..] else { return NOT_FOUND };
    let error = match enter(terminal) {
        Ok(mut command) => command(program).args(words).exec(),
        Err(error) => error,
    };
    eprintln!("kickvm: cannot run '{}': {}", program.display(), crate::sys::os_error::describe(&error));
    match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::InvalidInput => NOT_FOUND,
        _ => NOT_EXECUTABLE,
    }
}

/// Begins a session, with a terminal if there is one, and returns how to make a command of it.
fn enter(terminal: &OsStr) -> io::Result<impl FnMut(&OsString) -> Command> {
    nix::unistd::setsid()?;
    Ports::close();
    let _ = std::fs::write("/proc/self/oom_score_adj", "0"); // not the protection that init has
    // The first terminal that a session's leader opens is the session's.
    let terminal = match terminal == "-" {
        true => None,
        false => Some(OpenOptions::new().read(true).write(true).open(terminal)?),
    };
    let streams = terminal.map(|terminal| Ok::<_, io::Error>((terminal.try_clone()?, terminal.try_clone()?, terminal)));
    let mut streams = streams.transpose()?;
    Ok(move |program: &OsString| {
        let mut command = Command::new(program);
        if let Some((input, output, errors)) = streams.take() {
            command.stdin(input).stdout(output);
            if io::stderr().is_terminal() {
                command.stderr(errors); // else they go elsewhere already
            }
        }
        command
    })
}
