//! Replacing this process's program by another.

use std::ffi::{CString, OsStr};
use std::io;
use std::os::unix::ffi::OsStrExt;

/// Executes the file `path` with the arguments `words`, of which the first is the program's name. Returns only the
/// error. Unlike std's `Command::exec`, this does not execute a shell if the kernel does not support the format of
/// the file.
pub fn execute(path: &OsStr, words: &[&OsStr]) -> io::Error {
    let Ok(path) = CString::new(path.as_bytes()) else { return io::ErrorKind::InvalidInput.into() };
    let words: Result<Vec<_>, _> = words.iter().map(|word| CString::new(word.as_bytes())).collect();
    let Ok(words) = words else { return io::ErrorKind::InvalidInput.into() };
    // Rust's runtime ignores SIGPIPE, and the program would inherit that.
    // SAFETY: the default action runs no code of this process.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
    let Err(error) = nix::unistd::execv(&path, &words);
    error.into()
}
