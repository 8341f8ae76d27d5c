//! The host's side of a disk: a raw image or a block device, and all that can be done with it.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, Flock, FlockArg, fallocate};
use nix::sys::statfs::{TMPFS_MAGIC, fstatfs};
use vm_memory::GuestMemoryMmap;

use super::request::{Range, Request, SECTOR};
use crate::device::virtio::Buffers;
use crate::sys::os_error;
use crate::sys::vectored_io::{self, Direction};

/// An open disk. One that is written has no other user.
#[derive(Debug)]
pub struct Disk {
    file: Flock<File>,
    direct: Option<File>, // the same past the host's page cache
    sectors: u64,
    block_size: u32,
    read_only: bool,
    in_memory: bool,
}

/// Why a file cannot be a disk.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// The operating system refuses.
    #[error("cannot {action} disk '{path}': {}{hint}", os_error::describe(.source))]
    Host {
        /// What it refuses.
        action: &'static str,
        /// As the user wrote it.
        path: PathBuf,
        /// Its answer.
        source: io::Error,
        /// What may mend it.
        hint: &'static str,
    },
    /// The file is none that could be a disk.
    #[error("cannot use disk '{path}': {why}")]
    Unfit {
        /// As the user wrote it.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
}

/// How long a lock is waited for: udev takes one for a moment whenever somebody has closed a block device, and requests in flight keep
/// that of a program that was killed.
const LOCK_TRIES: u32 = 25;
const LOCK_PAUSE: Duration = Duration::from_millis(20);

impl Disk {
    /// Opens and locks the image or block device at `path`. A `direct` disk passes the host's page cache by.
    pub fn open(path: &Path, read_only: bool, direct: bool) -> Result<Self, DiskError> {
        let host = |action, hint| move |source| DiskError::Host { action, path: path.to_owned(), source, hint };
        let unfit = |why: String| DiskError::Unfit { path: path.to_owned(), why };

        // Before it is opened, because opening a FIFO or a tape is not without effect.
        let kind = fs::metadata(path).map_err(host("open", ""))?.file_type();
        if kind.is_dir() {
            return Err(unfit("It is a directory".to_owned()));
        }
        if !kind.is_file() && !kind.is_block_device() {
            return Err(unfit("It is neither a regular file nor a block device".to_owned()));
        }
        // For a block device O_EXCL means: not if it is mounted.
        let exclusive = if kind.is_block_device() && !read_only { libc::O_EXCL } else { 0 };
        let open = |path: &Path, flags| OpenOptions::new().read(true).write(!read_only).custom_flags(flags).open(path);
        let mut file = open(path, exclusive)
            .map_err(|error| host("open", hint(&error, !read_only && File::open(path).is_ok()))(error))?;
        let size = match kind.is_file() {
            true => file.metadata().map(|metadata| metadata.len()),
            false => file.seek(SeekFrom::End(0)),
        };
        let size = size.map_err(host("use", ""))?;
        if size == 0 {
            return Err(unfit("It is empty; 'truncate -s 1G' makes an image of 1 GiB".to_owned()));
        }
        if size % SECTOR != 0 {
            let why =
                format!("Its {size} bytes are no whole number of sectors; 'truncate -s %512' fills the last one up");
            return Err(unfit(why));
        }
        let file = lock(file, read_only).map_err(|(file, error)| match error {
            Errno::EWOULDBLOCK => unfit(in_use(&file, read_only)),
            error => host("lock", "")(error.into()),
        })?;
        let direct = match direct {
            // By its descriptor, because the path may be another file's by now.
            true => open(format!("/proc/self/fd/{}", file.as_raw_fd()).as_ref(), libc::O_DIRECT)
                .map(Some)
                .map_err(host("open", "; 'direct' needs a file system that can do without the host's page cache"))?,
            false => None,
        };
        // Of a block device this would tell where its node is.
        let tmpfs =
            kind.is_file() && fstatfs(&*file).is_ok_and(|statistics| statistics.filesystem_type() == TMPFS_MAGIC);
        let in_memory = tmpfs && direct.is_none();
        let block_size = direct.as_ref().map_or(SECTOR as u32, direct_block_size);
        Ok(Self { file, direct, sectors: size / SECTOR, block_size, read_only, in_memory })
    }

    /// Its size in sectors of 512 bytes.
    pub fn sectors(&self) -> u64 {
        self.sectors
    }

    /// The block size in bytes that suits it.
    pub fn block_size(&self) -> u32 {
        self.block_size
    }

    /// Whether it can only be read.
    pub fn read_only(&self) -> bool {
        self.read_only
    }

    /// Its files: the one through the page cache, and perhaps the one past it.
    pub fn files(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        [self.file.as_fd()].into_iter().chain(self.direct.as_ref().map(AsFd::as_fd))
    }

    /// The flags for preadv2(2) with which a transfer does not wait for a medium, if there are any.
    pub fn at_once(&self) -> Option<i32> {
        match self.direct {
            Some(_) => None,
            None if self.in_memory => Some(0),
            None => Some(libc::RWF_NOWAIT),
        }
    }

    /// Whether nothing but memory is moved.
    pub fn in_memory(&self) -> bool {
        self.in_memory
    }

    /// Moves bytes between `buffers` and the disk until none are left. What has been moved is dropped from `buffers` and added
    /// to `offset`, so that after an error somebody else can go on.
    pub fn transfer(
        &self,
        direction: Direction,
        offset: &mut u64,
        memory: &GuestMemoryMmap,
        buffers: &mut Buffers,
        flags: i32,
    ) -> io::Result<()> {
        let mut direct = self.direct.as_ref();
        while !buffers.is_empty() {
            let file = direct.map_or(self.file.as_fd(), AsFd::as_fd);
            match vectored_io::transfer(file, direction, memory, buffers.iter().copied(), *offset, flags) {
                Ok(0) => return Err(shorter()),
                Ok(count) => {
                    buffers.skip(count);
                    *offset += count as u64; // is inside the disk
                }
                // The driver need not care for the alignment that passing the page cache takes.
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) && direct.is_some() => direct = None,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Does `request`, however long it takes. If it is to be `durable`, what it writes is on the medium afterwards.
    pub fn perform(
        &self,
        request: Request,
        memory: &GuestMemoryMmap,
        buffers: &mut Buffers,
        durable: bool,
    ) -> io::Result<()> {
        match request {
            Request::Transfer { direction, mut offset } => {
                return self.transfer(direction, &mut offset, memory, buffers, flags(direction, durable));
            }
            Request::Identify => return Ok(()),
            Request::Flush => return self.file.sync_data(),
            Request::Discard(range) => match self.allocate(FallocateFlags::FALLOC_FL_PUNCH_HOLE, range) {
                Err(Errno::EOPNOTSUPP | Errno::EINVAL) => {} // it was no more than a hint
                result => result?,
            },
            Request::Zero { range, unmap } => self.zero(range, unmap)?,
        }
        if durable { self.file.sync_data() } else { Ok(()) }
    }

    fn zero(&self, range: Range, unmap: bool) -> io::Result<()> {
        let ways = [FallocateFlags::FALLOC_FL_PUNCH_HOLE, FallocateFlags::FALLOC_FL_ZERO_RANGE];
        for way in &ways[usize::from(!unmap)..] {
            match self.allocate(*way, range) {
                // The latter where a block device's blocks are larger than the guest's.
                Err(Errno::EOPNOTSUPP | Errno::EINVAL) => {}
                result => return Ok(result?),
            }
        }
        let zeros = vec![0; 64 << 10];
        let end = range.offset + range.len; // is inside the disk
        for offset in (range.offset..end).step_by(zeros.len()) {
            let len = (end - offset).min(zeros.len() as u64);
            self.file.write_all_at(&zeros[..len as usize], offset)?;
        }
        Ok(())
    }

    fn allocate(&self, way: FallocateFlags, range: Range) -> Result<(), Errno> {
        let (Ok(offset), Ok(len @ 1..)) = (range.offset.try_into(), range.len.try_into()) else { return Ok(()) };
        loop {
            match fallocate(&*self.file, way | FallocateFlags::FALLOC_FL_KEEP_SIZE, offset, len) {
                Err(Errno::EINTR) => {}
                result => return result,
            }
        }
    }
}

/// The flags for preadv2(2) of a transfer that may take its time.
pub fn flags(direction: Direction, durable: bool) -> i32 {
    if durable && direction == Direction::Write { libc::RWF_DSYNC } else { 0 }
}

/// What reading behind the end of the file means.
pub fn shorter() -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, "The file has become shorter")
}

/// What mends an error of opening a disk, which `could_read` or not.
fn hint(error: &io::Error, could_read: bool) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EACCES | libc::EPERM | libc::EROFS) if could_read => {
            "; if the guest need not write, give ',ro' behind it"
        }
        Some(libc::EBUSY) => "; it is mounted here, or part of something that is",
        _ => "",
    }
}

/// One writer, or any number of readers. Locks of flock(2) are what udev heeds too.
fn lock(mut file: File, read_only: bool) -> Result<Flock<File>, (File, Errno)> {
    let kind = if read_only { FlockArg::LockSharedNonblock } else { FlockArg::LockExclusiveNonblock };
    let mut tries = LOCK_TRIES;
    loop {
        tries -= 1;
        match Flock::lock(file, kind) {
            Err((back, Errno::EWOULDBLOCK)) if tries > 0 => file = back,
            result => return result,
        }
        thread::sleep(LOCK_PAUSE);
    }
}

/// Says who has locked `file`, if the kernel tells.
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
    match holder {
        Some(id) if id == std::process::id() => "It is a disk of this guest already".to_owned(),
        holder => {
            let holder = holder.filter(|id| *id > 0).map(|id| {
                let name = fs::read_to_string(format!("/proc/{id}/comm")).unwrap_or_default();
                format!("process {id} ({})", name.trim_end())
            });
            let holder = holder.unwrap_or_else(|| "another process".to_owned());
            let mend = if read_only { "" } else { "; guests can share a disk if each has it with ',ro'" };
            format!("It is in use: {holder} has locked it{mend}")
        }
    }
}

/// The least block that can be read past the page cache.
fn direct_block_size(file: &File) -> u32 {
    const LARGEST: usize = 4096;
    let mut room = vec![0; 2 * LARGEST];
    let start = room.as_ptr().align_offset(LARGEST).min(LARGEST);
    let block = &mut room[start..][..SECTOR as usize];
    match file.read_at(block, 0) {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => LARGEST as u32,
        _ => SECTOR as u32,
    }
}
