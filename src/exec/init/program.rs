//! The program of a command: where it is, and why the kernel cannot execute it.

use std::env;
use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::unistd::{AccessFlags, access};

use crate::boot::elf_headers::ElfHeaders;
use crate::boot::input_file::read_at;
use crate::exec::rootfs::elf;
use crate::sys::os_error;

/// The shell that executes scripts without `#!`, as execvp(3) does.
pub const SHELL: &str = "/bin/sh";
/// The most bytes that the kernel reads of the first line (`BINPRM_BUF_SIZE`).
const FIRST_LINE: usize = 256;

/// The file of the program `name`: one that can be executed in a directory of `PATH`, else any there, else `name`
/// itself.
pub fn find(name: &OsStr) -> PathBuf {
    let directories = env::var_os("PATH").filter(|_| !name.as_bytes().contains(&b'/')).unwrap_or_default();
    let files = || env::split_paths(&directories).map(|directory| directory.join(name)).filter(|path| path.is_file());
    let executable = files().find(|path| access(path, AccessFlags::X_OK).is_ok());
    executable.or_else(|| files().next()).unwrap_or_else(|| name.into())
}

/// Whether the kernel does not execute `path`, but a shell does: a text without `#!`.
pub fn is_plain_script(path: &Path, error: &io::Error) -> bool {
    let is_text = |line: Vec<u8>| !line.starts_with(b"\x7fELF") && !line.contains(&0);
    error.raw_os_error() == Some(libc::ENOEXEC) && first_line(path).is_ok_and(is_text)
}

/// What is missing or wrong, for an `error` of executing `path`.
pub fn explain(path: &Path, error: &io::Error) -> String {
    let line = first_line(path).unwrap_or_default();
    let reason = match error.raw_os_error() {
        Some(libc::ENOENT) if line.starts_with(b"#!") => explain_interpreter(&line),
        Some(libc::ENOENT) => elf::read(path)
            .ok()
            .flatten()
            .and_then(|dynamic| dynamic.linker)
            .map(|linker| format!("its dynamic linker '{linker}' is not in the guest")),
        Some(libc::ENOEXEC) if line.starts_with(b"\x7fELF") => {
            File::open(path).and_then(|file| ElfHeaders::read(&file)).ok().and_then(Result::err)
        }
        Some(libc::ENOEXEC) => Some("it is neither an executable nor a script".to_owned()),
        Some(libc::EACCES) if path.is_dir() => Some("it is a directory".to_owned()),
        Some(libc::EACCES) if line.starts_with(b"#!") && access(path, AccessFlags::X_OK).is_ok() => {
            explain_interpreter(&line)
        }
        _ => None,
    };
    reason.unwrap_or_else(|| os_error::describe(error))
}

fn explain_interpreter(line: &[u8]) -> Option<String> {
    let text = OsStr::from_bytes(line.strip_prefix(b"#!")?.trim_ascii_start());
    let interpreter = text.as_bytes().split(|byte| matches!(byte, b' ' | b'\t')).next()?;
    let path = OsStr::from_bytes(interpreter.trim_ascii_end()).display();
    Some(match interpreter.ends_with(b"\r") {
        true => format!("its first line ends with a carriage return, which counts as a part of the name '{path}'"),
        false => format!("its interpreter '{path}' is not in the guest, or cannot be executed"),
    })
}

/// The first line of a file, as far as the kernel reads it.
fn first_line(path: &Path) -> io::Result<Vec<u8>> {
    let mut start = vec![0; FIRST_LINE];
    let len = read_at(&File::open(path)?, &mut start, 0)?;
    start.truncate(start[..len].iter().position(|byte| *byte == b'\n').unwrap_or(len));
    Ok(start)
}
