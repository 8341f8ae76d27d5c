//! A disk's file: a raw image or a block device.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::thread;
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FlockArg, OFlag, fcntl};
use nix::sys::statfs::{TMPFS_MAGIC, fstatfs};

use super::image_format::other_format;
use super::request::SECTOR;
use crate::device::virtio::HostError;
use crate::sys::os_error;
use crate::sys::vectored_io::supports_nowait;

/// An open disk. A disk that can be written has no other user.
#[derive(Debug)]
pub struct Disk {
    /// The file through the host's page cache, and that of a direct disk, which bypasses it. Empty when closed.
    pub(super) files: Vec<File>,
    pub(super) sectors: u64,    // of 512 bytes
    pub(super) block_size: u64, // in bytes, for the driver
    pub(super) read_only: bool,
    pub(super) direct: bool,   // bypasses the host's page cache
    pub(super) inline: Inline, // the part of its I/O that never blocks
}

/// The part of a disk's I/O that never blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Inline {
    /// Nothing: not even closing the file (FUSE, NFS).
    Nothing,
    /// Reads of data in the host's page cache, with RWF_NOWAIT. Writes wait for a frozen file system with all flags.
    CachedReads,
    /// Everything, because the file is memory (tmpfs).
    Everything,
}

/// How often and how long a lock is tried: udev takes one for a moment when a block device has been closed, and
/// requests in flight keep that of a process that was killed.
const LOCK_TRIES: u32 = 25;
const LOCK_PAUSE: Duration = Duration::from_millis(20);

impl Disk {
    /// Opens and locks the image or block device at `path`. A `direct` disk bypasses the host's page cache.
    ///
    /// # Errors
    ///
    /// The file cannot be opened, is in use, is neither a regular file nor a block device, or its size is zero or not a
    /// multiple of the sector size.
    pub fn open(path: &Path, read_only: bool, direct: bool) -> Result<Self, HostError> {
        let error = |action, reason| HostError(format!("cannot {action} disk '{}': {reason}", path.display()));
        let host = |action, hint| move |source| error(action, format!("{}{hint}", os_error::describe(&source)));
        let unfit = |reason| error("use", reason);

        // Before it is opened, because opening a FIFO or a tape has side effects.
        let kind = fs::metadata(path).map_err(host("open", ""))?.file_type();
        if kind.is_dir() {
            return Err(unfit("it is a directory".to_owned()));
        }
        if !kind.is_file() && !kind.is_block_device() {
            return Err(unfit("it is neither a regular file nor a block device".to_owned()));
        }
        // For a block device O_EXCL means: not if it is mounted.
        let exclusive = if kind.is_block_device() && !read_only { libc::O_EXCL } else { 0 };
        let open = |path: &Path, flags| OpenOptions::new().read(true).write(!read_only).custom_flags(flags).open(path);
        let mut file = open(path, exclusive)
            .map_err(|error| host("open", hint(&error, !read_only && File::open(path).is_ok()))(error))?;
        let size = file.seek(SeekFrom::End(0)).map_err(host("use", ""))?;
        if size == 0 {
            return Err(unfit("it is empty; 'truncate -s 1G' makes an image of 1 GiB".to_owned()));
        }
        if size % SECTOR != 0 {
            return Err(unfit(format!(
                "its size of {size} bytes is not a multiple of 512; 'truncate -s %512' fills up the last sector"
            )));
        }
        lock(&file, !read_only).map_err(|error| match error {
            Errno::EWOULDBLOCK => unfit(in_use(&file, read_only)),
            error => host("lock", "")(error.into()),
        })?;
        // An update of the access time can wait for the medium even if the data is cached. Only the owner may avoid it.
        let _ = fcntl(&file, FcntlArg::F_SETFL(OFlag::O_NOATIME));
        let mut files = vec![file];
        if direct {
            // By its descriptor, because the path may name another file by now.
            let same = format!("/proc/self/fd/{}", files[0].as_raw_fd());
            let hint = "; 'direct' needs a file system that can bypass the host's page cache";
            files.push(open(same.as_ref(), libc::O_DIRECT).map_err(host("open", hint))?);
        }
        // For a block device, fstatfs(2) returns the file system of its node.
        let is_tmpfs = |file| fstatfs(file).is_ok_and(|statistics| statistics.filesystem_type() == TMPFS_MAGIC);
        let inline = match supports_nowait(files[0].as_fd(), size) {
            _ if kind.is_file() && !direct && is_tmpfs(&files[0]) => Inline::Everything,
            true => Inline::CachedReads,
            false => Inline::Nothing,
        };
        let block_size = if direct { direct_block_size(&files[1]) } else { SECTOR };
        Ok(Self { files, sectors: size / SECTOR, block_size, read_only, direct, inline })
    }

    /// Checks that the disk at `path` is not an image in another format than raw.
    ///
    /// # Errors
    ///
    /// It is one.
    pub fn check_raw(&self, path: &Path) -> Result<(), HostError> {
        let Some(format) = self.files.first().and_then(other_format) else { return Ok(()) };
        let path = path.display();
        Err(HostError(format!(
            "cannot use disk '{path}': it is a {format} image; 'qemu-img convert -f {format} -O raw {path} {path}.raw' makes a \
             raw one (append ',raw' to use its bytes as they are)"
        )))
    }

    /// Closes its files. The lock lasts as long as there are copies of their descriptors.
    pub fn close(&mut self) {
        self.files.clear();
    }
}

/// A remedy for an error of opening a disk for writing; `readable` is whether it can be opened for reading.
fn hint(error: &io::Error, readable: bool) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EACCES | libc::EPERM | libc::EROFS) if readable => "; append ',ro' if the guest need not write",
        Some(libc::EBUSY) => "; it is mounted here, or part of something that is",
        _ => "",
    }
}

/// Locks `file` for one writer or any number of readers. udev respects locks of flock(2), too. The lock belongs to the
/// open file, so it lasts until all its descriptors are closed, also those of other processes.
#[expect(deprecated, reason = "`Flock` would release the lock before; `File::try_lock` needs Rust 1.89")]
fn lock(file: &File, exclusive: bool) -> nix::Result<()> {
    let kind = if exclusive { FlockArg::LockExclusiveNonblock } else { FlockArg::LockSharedNonblock };
    let mut tries = 1..LOCK_TRIES;
    loop {
        match nix::fcntl::flock(file.as_raw_fd(), kind) {
            Err(Errno::EWOULDBLOCK) if tries.next().is_some() => thread::sleep(LOCK_PAUSE),
            result => return result,
        }
    }
}

/// Describes which process has locked `file`, as far as the kernel reports it.
fn in_use(file: &File, read_only: bool) -> String {
    let holder = file.metadata().ok().and_then(|metadata| {
        let (device, inode) = (metadata.dev(), metadata.ino());
        let id = format!("{:02x}:{:02x}:{inode}", libc::major(device), libc::minor(device));
        // As in "1: FLOCK  ADVISORY  WRITE 708 00:13:412 0 EOF" (proc_locks(5)).
        let locks = fs::read_to_string("/proc/locks").ok()?;
        locks.lines().find_map(|line| {
            let words: Vec<_> = line.split_whitespace().collect();
            words.windows(2).find(|pair| pair[1] == id).and_then(|pair| pair[0].parse::<u32>().ok())
        })
    });
    let remedy = if read_only { "" } else { "; guests can share a disk if each has it with ',ro'" };
    match holder.filter(|id| *id > 0) {
        Some(id) if id == std::process::id() => "it is already a disk of this guest".to_owned(),
        Some(id) => match fs::read_to_string(format!("/proc/{id}/comm")) {
            Ok(name) => format!("it is in use: process {id} ({}) has locked it{remedy}", name.trim_end()),
            Err(_) => format!("it is in use: requests of process {id}, which has ended, are still in flight"),
        },
        None => format!("it is in use: another process has locked it{remedy}"),
    }
}

/// The smallest block that can be read without the page cache.
fn direct_block_size(file: &File) -> u64 {
    const MAX: usize = 4096;
    let mut room = vec![0; 2 * MAX];
    let start = room.as_ptr().align_offset(MAX).min(MAX);
    #[expect(clippy::cast_possible_truncation, reason = "a sector has 512 bytes")]
    let block = &mut room[start..][..SECTOR as usize];
    match file.read_at(block, 0) {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => MAX as u64,
        _ => SECTOR,
    }
}
