//! Disk images in other formats than raw, recognized by their magic numbers. A guest that uses one as a raw disk cannot
//! find a file system in it, and destroys it when it writes.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::thread;
use std::time::{Duration, Instant};

use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use nix::sys::statfs::{OVERLAYFS_SUPER_MAGIC, fstatfs};

use crate::sys::vectored_io::peek_cached;

/// How long a disk may take to read the magic number. One that does not answer is used as it is: no read of it may
/// block, as a blocked process cannot end.
const READ_TIME: Duration = Duration::from_millis(500);
const PAUSE: Duration = Duration::from_millis(1);

/// Offset and value of the magic number, and the name of the format for `qemu-img -f`.
const FORMATS: [(usize, &[u8], &str); 7] = [
    (0, b"QFI\xfb", "qcow2"),
    (0, b"KDMV", "vmdk"),
    (0, b"# Disk DescriptorFile", "vmdk"),
    (0, b"vhdxfile", "vhdx"),
    (0, b"conectix", "vpc"),
    (0x40, b"\x7f\x10\xda\xbe", "vdi"),
    (0, b"QED\0", "qed"),
];

/// The format of `file` if it is known and not raw.
pub fn other_format(file: &File) -> Option<&'static str> {
    let mut start = [0; 0x44];
    read_start(file, &mut start).ok()?;
    FORMATS.iter().find(|(at, magic, _)| start[*at..].starts_with(magic)).map(|(.., name)| *name)
}

fn read_start(file: &File, start: &mut [u8]) -> io::Result<usize> {
    let started = Instant::now();
    loop {
        match peek_cached(file.as_fd(), start) {
            Err(error) if error.kind() == ErrorKind::WouldBlock && started.elapsed() < READ_TIME => {
                posix_fadvise(file, 0, 1, PosixFadviseAdvice::POSIX_FADV_WILLNEED)?;
                thread::sleep(PAUSE);
            }
            // The file system of containers does not support reads that do not block. It is on a local disk.
            Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => match fstatfs(file) {
                Ok(fs) if fs.filesystem_type() == OVERLAYFS_SUPER_MAGIC => return file.read_at(start, 0),
                _ => return Err(error),
            },
            result => return result,
        }
    }
}
