//! A cpio archive in guest memory ("new ASCII" format: Linux,
//! Documentation/driver-api/early-userspace/buffer-format.rst), and the rules of the kernel that unpacks it. What does
//! not fit in memory is measured and not written.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs;
use std::io::{self, Read};
use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::sys::stat::{FileStat, lstat};
use vm_memory::{Bytes, GuestAddress, GuestMemoryError, GuestMemoryMmap};

use crate::boot::Written;
use crate::boot::initramfs::{ALIGNMENT, HEADER_LEN, MAGIC, TRAILER};
use crate::boot::layout::PAGE_SIZE;

/// Offset of the header field `c_nlink`.
const NLINK_OFFSET: u64 = 6 + 4 * 8;
/// The size of the reads from a stream.
const STREAM_BUFFER: usize = 128 << 10;
/// The longest file: `c_filesize` has 32 bits.
pub const MAX_FILE: u64 = u32::MAX as u64;

// What Linux needs for an unpacked file, besides its pages.
/// About what an inode and its name take.
const INODE: u64 = 1 << 10;
/// What each file with several links takes until the archive ends: space for the longest name (init/initramfs.c).
const LINK: u64 = 8 << 10;
/// The most symbolic links that Linux follows in a path (path_resolution(7)).
const MAX_SYMLINKS: usize = 40;

/// What the archive has under a name, as far as later entries depend on it. Names are paths without symbolic links.
#[derive(Clone, Debug, PartialEq, Eq)]
enum EntryKind {
    /// A directory that was created because an entry is in it.
    ImpliedDirectory,
    /// A directory with the attributes of one on the host.
    Directory,
    /// A symbolic link, with its target.
    Symlink(Vec<u8>),
    /// A file that may have other names, with its inode number.
    HardLinked(u32),
    /// A device, a FIFO or a socket.
    Special,
}

/// The first name of a file that has several.
#[derive(Debug)]
struct FirstLink {
    ino: u32,
    header: u64,  // the address of its header
    linked: bool, // whether there is a second name, and so `c_nlink` of the first is more than 1
}

/// The fields of a header, named as in buffer-format.rst, without the constant ones.
#[derive(Clone, Copy, Debug, Default)]
pub struct Header {
    pub ino: u32,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub nlink: u32,
    pub mtime: u32,
    pub filesize: u32,
    pub rdev: (u32, u32),
}

impl Header {
    /// An entry that belongs to root.
    pub fn new(mode: u32) -> Self {
        Self { mode, nlink: 1, ..Self::default() }
    }
}

impl From<&FileStat> for Header {
    /// The attributes of a host file, but with one link and without a length. The kernel keeps the name of a file with
    /// more links, to link later entries to it.
    fn from(stat: &FileStat) -> Self {
        Self {
            uid: stat.st_uid,
            gid: stat.st_gid,
            mtime: u32::try_from(stat.st_mtime.max(0)).unwrap_or(u32::MAX), // the format ends in 2106
            rdev: (libc::major(stat.st_rdev), libc::minor(stat.st_rdev)),
            ..Self::new(stat.st_mode)
        }
    }
}

/// An archive that is being written.
#[derive(Debug)]
pub struct Archive<'a> {
    memory: &'a GuestMemoryMmap,
    start: u64,
    next: u64,
    end: u64,
    unpacked: u64,
    entries: u32,
    links: HashMap<(u64, u64), FirstLink>, // by device and inode, of the current tree
    kinds: HashMap<Vec<u8>, EntryKind>,
    below: Option<&'a Path>,
}

impl<'a> Archive<'a> {
    /// An empty archive at the addresses `range` of `memory`, which the guest mounts over the directory `below`.
    pub fn new(memory: &'a GuestMemoryMmap, range: Range<u64>, below: Option<&'a Path>) -> Self {
        let Range { start, end } = range;
        let (links, kinds) = (HashMap::new(), HashMap::new());
        Self { memory, start, next: start, end, unpacked: 0, entries: 0, links, kinds, below }
    }

    /// Whether everything has fit so far.
    pub fn fits(&self) -> bool {
        self.next <= self.end
    }

    /// Begins another tree of host files. Hard links are kept within a tree only: a later tree may have replaced a
    /// name.
    pub fn begin_tree(&mut self) {
        self.links.clear();
    }

    /// Whether `name` is a directory in the archive.
    pub fn is_directory(&self, name: &[u8]) -> bool {
        matches!(self.kinds.get(name), Some(EntryKind::ImpliedDirectory | EntryKind::Directory))
    }

    /// Whether `name` is a directory that still has to get the attributes of one on the host.
    pub fn is_implied(&self, name: &[u8]) -> bool {
        self.kinds.get(name) == Some(&EntryKind::ImpliedDirectory)
    }

    /// The directory to which `path` leads from the directory `base`, as a name without symbolic links; `None` if the
    /// archive has no such directory.
    pub fn resolve(&mut self, base: &[u8], path: &[u8]) -> Option<Vec<u8>> {
        let (mut at, mut symlinks) = (base.to_vec(), 0);
        let parts = |path: &[u8]| path.rsplit(|byte| *byte == b'/').map(<[u8]>::to_vec).collect::<Vec<_>>();
        let mut todo = parts(path);
        while let Some(part) = todo.pop() {
            let next = join(&at, &part);
            if !matches!(&part[..], b"" | b"." | b"..") {
                self.adopt(&next);
            }
            match (&part[..], self.kinds.get(&next)) {
                (b"" | b".", _) => {}
                (b"..", _) => at.truncate(at.iter().rposition(|byte| *byte == b'/').unwrap_or(0)),
                (_, Some(EntryKind::ImpliedDirectory | EntryKind::Directory)) => at = next,
                (_, Some(EntryKind::Symlink(target))) if symlinks < MAX_SYMLINKS => {
                    symlinks += 1;
                    todo.extend(parts(target));
                    if target.starts_with(b"/") {
                        at.clear();
                    }
                }
                _ => return None,
            }
        }
        Some(at)
    }

    /// Adds the directory or symbolic link that `below` has at `name`. An overlay in the guest would hide it by a
    /// directory, and has the attributes of its uppermost directory.
    fn adopt(&mut self, name: &[u8]) {
        let Some(path) = self.below.map(|below| below.join(OsStr::from_bytes(name))) else { return };
        let Some(stat) = lstat(&path).ok().filter(|_| !self.kinds.contains_key(name)) else { return };
        match (stat.st_mode & libc::S_IFMT, fs::read_link(&path)) {
            (libc::S_IFDIR, _) => self.special(name, &stat, b""),
            (libc::S_IFLNK, Ok(target)) => self.special(name, &stat, target.as_os_str().as_bytes()),
            _ => {}
        }
    }

    /// Adds the directories above `path` that are missing. Returns `path` as a name without symbolic links.
    pub fn create_parents(&mut self, path: &[u8]) -> Vec<u8> {
        let mut at = Vec::new();
        let mut parts = path.split(|byte| *byte == b'/').peekable();
        while let Some(part) = parts.next() {
            let next = join(&at, part);
            at = match parts.peek() {
                None => next,
                Some(_) => self.resolve(&at, part).unwrap_or_else(|| {
                    self.directory(&next, 0o755);
                    next
                }),
            };
        }
        at
    }

    /// Writes the header of an entry and its name.
    #[expect(clippy::cast_possible_truncation, reason = "names are far below 4 GiB, and the alignment is 4")]
    fn header(&mut self, name: &[u8], header: &Header) {
        let Header { ino, mode, uid, gid, nlink, mtime, filesize, rdev } = *header;
        let name_size = name.len() as u32 + 1;
        let len = (HEADER_LEN + name.len() + 1).next_multiple_of(ALIGNMENT as usize);
        let mut block = Vec::with_capacity(len);
        block.extend_from_slice(MAGIC);
        // The zeros are the device (2 fields) and the check sum, which Linux ignores in this format.
        for field in [ino, mode, uid, gid, nlink, mtime, filesize, 0, 0, rdev.0, rdev.1, name_size, 0] {
            block.extend_from_slice(&hex(field));
        }
        block.extend_from_slice(name);
        block.resize(len, 0);
        self.put(&block);
        self.unpacked += INODE;
    }

    fn put(&mut self, bytes: &[u8]) {
        let at = self.next;
        self.next = at.saturating_add(bytes.len() as u64);
        if self.fits() && self.memory.write_slice(bytes, GuestAddress(at)).is_err() {
            self.end = at; // the RAM ends here
        }
    }

    fn pad(&mut self) {
        let gap = self.next.wrapping_neg() % ALIGNMENT;
        self.put(&[0; 3][..gap as usize]);
    }

    /// Adds an entry with `content`: that of a small file, or the target of a symbolic link.
    #[expect(clippy::cast_possible_truncation, reason = "the content is far below 4 GiB")]
    pub fn add(&mut self, name: &[u8], header: Header, content: &[u8]) {
        self.entries += 1;
        self.header(name, &Header { ino: self.entries, filesize: content.len() as u32, ..header });
        self.put(content);
        self.pad();
    }

    /// Adds the directory that `below` has at `name`, or one that belongs to root.
    pub fn directory(&mut self, name: &[u8], mode: u32) {
        self.adopt(name);
        if !self.is_directory(name) {
            self.kinds.insert(name.to_vec(), EntryKind::ImpliedDirectory);
            self.add(name, Header::new(libc::S_IFDIR | mode), b"");
        }
    }

    /// Adds a regular file that belongs to root.
    pub fn new_file(&mut self, name: &[u8], mode: u32, content: &[u8]) {
        self.unlink_existing(name);
        self.add(name, Header::new(libc::S_IFREG | mode), content);
        self.unpacked += (content.len() as u64).next_multiple_of(PAGE_SIZE);
    }

    /// Adds a host file that is not regular; `target` is that of a symbolic link.
    pub fn special(&mut self, name: &[u8], stat: &FileStat, target: &[u8]) {
        let kind = match stat.st_mode & libc::S_IFMT {
            libc::S_IFDIR => EntryKind::Directory,
            libc::S_IFLNK => EntryKind::Symlink(target.to_vec()),
            _ => EntryKind::Special,
        };
        self.kinds.insert(name.to_vec(), kind);
        self.add(name, stat.into(), target);
    }

    /// Makes sure that an entry at `name` will be a new file. The kernel writes through an existing regular file, which
    /// may have other names. It replaces it with a symbolic link, and replaces that with a file.
    fn unlink_existing(&mut self, name: &[u8]) {
        if let Some(EntryKind::HardLinked(_)) = self.kinds.remove(name) {
            self.add(name, Header::new(libc::S_IFLNK | 0o777), b".");
        }
    }

    /// Adds a regular file of at most [`MAX_FILE`] bytes. Returns the addresses for its content, which
    /// [`read`](Self::read) fills; `None` if the file is in the archive already, under another name.
    pub fn file(&mut self, name: &[u8], stat: &FileStat) -> Option<Range<u64>> {
        let key = (stat.st_dev, stat.st_ino);
        if let (Some(EntryKind::HardLinked(ino)), Some(first)) = (self.kinds.get(name), self.links.get(&key))
            && *ino == first.ino
        {
            return None; // a symbolic link led to a name of this file; linked to itself, it would be lost
        }
        self.unlink_existing(name);
        self.entries += 1;
        let ino = self.entries;
        let size = u32::try_from(stat.st_size).unwrap_or(0);
        let mut header = Header { ino, filesize: size, ..stat.into() };
        if stat.st_nlink > 1 {
            let (at, fits) = (self.next, self.fits());
            let first = self.links.entry(key).or_insert(FirstLink { ino, header: at, linked: false });
            self.kinds.insert(name.to_vec(), EntryKind::HardLinked(first.ino));
            if first.ino != ino {
                let nlink = u32::try_from(stat.st_nlink).unwrap_or(u32::MAX);
                // The kernel links an entry without content to the first one with the same inode number and several
                // links.
                header = Header { ino: first.ino, nlink, filesize: 0, ..header };
                if !std::mem::replace(&mut first.linked, true) {
                    self.unpacked += LINK;
                    if fits {
                        // Cannot fail: the header at this address is written.
                        let _ = self.memory.write_slice(&hex(nlink), GuestAddress(first.header + NLINK_OFFSET));
                    }
                }
                self.header(name, &header);
                return None;
            }
        }
        self.header(name, &header);
        let start = self.next;
        self.next = start.saturating_add(size.into());
        self.unpacked += u64::from(size).next_multiple_of(PAGE_SIZE);
        Some(start..self.next)
    }

    /// Reads the content of the last entry from `file` to the addresses `range`. Returns the number of bytes that
    /// `file` had; the rest of `range` is zeros.
    ///
    /// # Errors
    ///
    /// Reading failed. The rest of `range` is zeros then, too.
    #[expect(clippy::cast_possible_truncation, reason = "usize has 64 bits")]
    pub fn read(&mut self, mut file: BorrowedFd<'_>, range: Range<u64>) -> io::Result<u64> {
        let mut at = range.start;
        let result = loop {
            if at == range.end || !self.fits() {
                break Ok(());
            }
            match self.memory.read_volatile_from(GuestAddress(at), &mut file, (range.end - at) as usize) {
                Ok(0) => break Ok(()),
                Ok(len) => at += len as u64,
                Err(GuestMemoryError::IOError(error)) => break Err(error),
                Err(error) => break Err(io::Error::other(error)),
            }
        };
        self.end_content(at..range.end);
        result.map(|()| at - range.start)
    }

    /// Fills the addresses `unread` of the last entry with zeros, and aligns the next one.
    #[expect(clippy::cast_possible_truncation, reason = "a page is far below 4 GiB")]
    fn end_content(&mut self, unread: Range<u64>) {
        for hole in unread.clone().step_by(PAGE_SIZE as usize).take_while(|_| self.fits()) {
            let len = (unread.end - hole).min(PAGE_SIZE) as usize;
            // Cannot fail: a range that fits is in RAM.
            let _ = self.memory.write_slice(&[0; PAGE_SIZE as usize][..len], GuestAddress(hole));
        }
        self.pad();
    }

    /// As [`read`](Self::read), from a stream.
    ///
    /// # Errors
    ///
    /// Reading failed. The rest of `range` is zeros then, too.
    pub fn read_stream(&mut self, stream: &mut impl Read, range: Range<u64>) -> io::Result<()> {
        let mut buffer = vec![0; STREAM_BUFFER];
        let (mut at, mut result) = (range.start, Ok(()));
        while at < range.end && self.fits() {
            let len = usize::try_from(range.end - at).unwrap_or(STREAM_BUFFER).min(STREAM_BUFFER);
            result = stream.read_exact(&mut buffer[..len]);
            if result.is_err() {
                break;
            }
            // Cannot fail: a range that fits is in RAM.
            let _ = self.memory.write_slice(&buffer[..len], GuestAddress(at));
            at += len as u64;
        }
        self.end_content(at..range.end);
        result
    }

    /// Adds a regular file that belongs to root and has the first `len` bytes of `stream`, at most [`MAX_FILE`].
    ///
    /// # Errors
    ///
    /// Reading failed. The rest of the file is zeros then.
    pub fn stream(&mut self, name: &[u8], len: u64, stream: &mut impl Read) -> io::Result<()> {
        self.entries += 1;
        let filesize = u32::try_from(len).unwrap_or(0);
        self.header(name, &Header { ino: self.entries, filesize, ..Header::new(libc::S_IFREG | 0o600) });
        let start = self.next;
        self.next = start.saturating_add(filesize.into());
        self.unpacked += len.next_multiple_of(PAGE_SIZE);
        self.read_stream(stream, start..self.next)
    }

    /// Ends the archive.
    pub fn finish(mut self) -> Written {
        self.header(&TRAILER[..TRAILER.len() - 1], &Header::new(0)); // without the NUL
        Written { len: self.next - self.start, unpacked: self.unpacked, entries: self.entries.into() }
    }
}

/// `name` in the directory `directory`, which is empty for the root.
pub fn join(directory: &[u8], name: &[u8]) -> Vec<u8> {
    let separator: &[u8] = if directory.is_empty() { b"" } else { b"/" };
    [directory, separator, name].concat()
}

/// A number as a header field.
fn hex(field: u32) -> [u8; 8] {
    std::array::from_fn(|n| b"0123456789abcdef"[(field >> (28 - 4 * n) & 0xf) as usize])
}
