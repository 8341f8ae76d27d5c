//! The value of `--share`.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf, absolute};

use crate::exec::{ShareMode, SharedDirectory};
use crate::sys::os_error;

/// Parses `HOST[:GUEST][,MODE]`. GUEST defaults to the absolute HOST.
pub fn parse(text: OsString) -> Result<SharedDirectory, String> {
    let here =
        std::env::current_dir().map_err(|error| format!("the current directory: {}", os_error::describe(&error)))?;
    parse_in(text.as_bytes(), &here)
}

fn parse_in(text: &[u8], here: &Path) -> Result<SharedDirectory, String> {
    let comma = text.iter().rposition(|byte| *byte == b',');
    let mode = |at: usize| str::from_utf8(&text[at + 1..]).ok().and_then(ShareMode::parse);
    let (paths, mode) = match comma.and_then(|at| Some((at, mode(at)?))) {
        Some((at, mode)) => (&text[..at], Some(mode)),
        None => (text, None),
    };
    let colon = paths.iter().rposition(|byte| *byte == b':').filter(|at| paths.get(at + 1) == Some(&b'/'));
    let path = |bytes: &[u8]| PathBuf::from(OsStr::from_bytes(bytes));
    let (host, guest) = colon.map_or((path(paths), None), |at| (path(&paths[..at]), Some(path(&paths[at + 1..]))));
    if host.as_os_str().is_empty() {
        return Err("give HOST[:GUEST][,rw|ro|overlay], such as . or /data:/mnt,ro".to_owned());
    }
    let full = absolute(here.join(&host)).unwrap_or_else(|_| host.clone());
    // A symbolic link may lead elsewhere.
    let real = full.canonicalize().map_err(|error| format!("'{}': {}", host.display(), os_error::describe(&error)))?;
    let below = here.canonicalize().is_ok_and(|here| real.starts_with(here));
    let mode = match mode {
        Some(mode) => mode,
        None if below || full == here => ShareMode::ReadWrite,
        None => {
            let host = host.display();
            return Err(format!("'{host}' is not in the current directory; give '{host},ro', ',overlay' or ',rw'"));
        }
    };
    let guest = guest.unwrap_or_else(|| normalize(&full));
    if guest == Path::new("/") {
        return Err("the guest's root is shared by --root DIR, not by --share".to_owned());
    }
    Ok(SharedDirectory { host, guest, mode })
}

/// An absolute path without `.` and `..`.
fn normalize(path: &Path) -> PathBuf {
    use std::path::Component;
    path.components().fold(PathBuf::new(), |mut all, part| {
        match part {
            Component::ParentDir => drop(all.pop()),
            part => all.push(part),
        }
        all
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(text: &str) -> Result<(String, String, &'static str), String> {
        let here = Path::new("/usr");
        parse_in(text.as_bytes(), here).map(|SharedDirectory { host, guest, mode }| {
            (host.display().to_string(), guest.display().to_string(), mode.name())
        })
    }

    #[test]
    fn only_the_current_directory_and_below_are_writable_by_default() {
        for (text, host, guest, mode) in [
            (".", ".", "/usr", "rw"),
            ("bin", "bin", "/usr/bin", "rw"),
            ("/usr/lib,ro", "/usr/lib", "/usr/lib", "ro"),
            (".:/src", ".", "/src", "rw"),
            ("../etc:/mnt/a,b,overlay", "../etc", "/mnt/a,b", "overlay"),
            ("../etc,rw", "../etc", "/etc", "rw"),
        ] {
            assert_eq!(parts(text), Ok((host.to_owned(), guest.to_owned(), mode)), "{text}");
        }
        let error = parts("/etc").unwrap_err();
        assert_eq!(error, "'/etc' is not in the current directory; give '/etc,ro', ',overlay' or ',rw'");
        assert!(parts("..").is_err() && parts("").is_err() && parts(":/x").is_err() && parts(".:/").is_err());
    }
}
