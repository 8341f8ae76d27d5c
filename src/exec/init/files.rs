//! Sends files of the guest to kickvm.

use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;

use super::channel::GuestChannel;
use crate::exec::files::{MAX_FILE, MAX_PART, UNREADABLE};

/// Opens a file.
///
/// # Errors
///
/// The error of open(2).
pub fn open(path: &OsStr) -> io::Result<File> {
    OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path)
}

/// Sends the content of a file. Of `/dev/kmsg` that is what the kernel has logged until now.
pub fn send(channel: &mut GuestChannel, file: io::Result<File>) {
    let end = file.and_then(|file| send_parts(channel, file)).map_or(UNREADABLE, |()| 0);
    channel.send_part(&end.to_le_bytes());
}

fn send_parts(channel: &mut GuestChannel, mut file: File) -> io::Result<()> {
    let mut part = [0; 4 + MAX_PART];
    let mut sent = 0;
    // A device may have no end.
    while sent <= MAX_FILE {
        match file.read(&mut part[4..]) {
            Ok(0) => return Ok(()),
            Ok(len) => {
                sent += len;
                part[..4].copy_from_slice(&u32::try_from(len).unwrap_or(UNREADABLE).to_le_bytes());
                if !channel.send_part(&part[..4 + len]) {
                    return Err(io::ErrorKind::TimedOut.into());
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            // The kernel has overwritten the next records (Documentation/ABI/testing/dev-kmsg).
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
            Err(error) => return Err(error),
        }
    }
    Err(io::ErrorKind::FileTooLarge.into())
}
