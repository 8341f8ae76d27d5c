//! A cpio archive ("new ASCII" format) that is written into guest memory. What does not fit is measured and not written.

use super::Packed;
use nix::sys::stat::FileStat;
use std::collections::{HashMap, HashSet};
use std::os::fd::BorrowedFd;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

const HEADER: usize = 110;
const TRAILER: &[u8] = b"TRAILER!!!";
const ALIGNMENT: u64 = 4;
const PAGE: u64 = 4096;
/// About what Linux needs for an inode and its name.
const INODE: u64 = 1 << 10;
/// The console's device number: Linux, Documentation/admin-guide/devices.txt.
const CONSOLE: (u32, u32) = (5, 1);

/// The longest file that the header's eight digits can tell.
pub const LONGEST_FILE: u64 = u32::MAX as u64;

/// An archive that grows.
#[derive(Debug)]
pub struct Archive<'a> {
    memory: &'a GuestMemoryMmap,
    start: u64,
    next: u64,
    end: u64,
    unpacked: u64,
    entries: u32,
    links: HashMap<(u64, u64), u32>, // (device, inode) to the number of the entry that has the content
    not_directories: HashSet<Vec<u8>>,
    block: Vec<u8>, // for headers
}

/// What a header says, besides the name.
#[derive(Clone, Copy, Debug, Default)]
struct Header {
    inode: u32,
    mode: u32,
    user: u32,
    group: u32,
    links: u32,
    time: u32,
    size: u32,
    device: (u32, u32),
}

impl Header {
    fn of(stat: &FileStat, inode: u32, size: u32) -> Self {
        Self {
            inode,
            mode: stat.st_mode,
            user: stat.st_uid,
            group: stat.st_gid,
            links: u32::try_from(stat.st_nlink).unwrap_or(u32::MAX),
            time: u32::try_from(stat.st_mtime).unwrap_or(0), // before 1970 or after 2106: the format has no such time
            size,
            device: (libc::major(stat.st_rdev), libc::minor(stat.st_rdev)),
        }
    }
}

/// The bytes of a file that has been announced.
#[derive(Debug)]
pub enum Content {
    /// It is in the archive already, under another name.
    Linked,
    /// They begin at this address; it has this length.
    At(u64, u64),
}

impl<'a> Archive<'a> {
    /// An archive in `memory`, from the address `start` to before `end`.
    pub fn new(memory: &'a GuestMemoryMmap, start: u64, end: u64) -> Self {
        Self {
            memory,
            start,
            next: start,
            end,
            unpacked: 0,
            entries: 0,
            links: HashMap::new(),
            not_directories: HashSet::new(),
            block: Vec::with_capacity(512),
        }
    }

    /// Whether all fits so far.
    pub fn fits(&self) -> bool {
        self.next <= self.end
    }

    /// Whether `name` is in the archive as something that is no directory.
    pub fn has(&self, name: &[u8]) -> bool {
        self.not_directories.contains(name)
    }

    fn header(&mut self, name: &[u8], header: &Header) {
        self.block.clear();
        self.block.extend_from_slice(b"070701");
        let Header { inode, mode, user, group, links, time, size, device } = *header;
        let name_size = name.len() as u32 + 1; // the kernel's longest path is far from 2^32
        for field in [inode, mode, user, group, links, time, size, 0, 0, device.0, device.1, name_size, 0] {
            let digits: [u8; 8] = std::array::from_fn(|n| b"0123456789abcdef"[(field >> (28 - 4 * n) & 0xf) as usize]);
            self.block.extend_from_slice(&digits);
        }
        debug_assert_eq!(self.block.len(), HEADER);
        self.block.extend_from_slice(name);
        self.block.push(0);
        let len = self.block.len().next_multiple_of(ALIGNMENT as usize);
        self.block.resize(len, 0);
        let block = std::mem::take(&mut self.block);
        self.put(&block);
        self.block = block;
        self.unpacked += INODE;
    }

    fn put(&mut self, bytes: &[u8]) {
        let at = self.next;
        self.next = at.saturating_add(bytes.len() as u64);
        if self.fits() && self.memory.write_slice(bytes, GuestAddress(at)).is_err() {
            self.end = at; // `end` was wrong: there is no memory
        }
    }

    fn pad(&mut self) {
        let gap = self.next.next_multiple_of(ALIGNMENT) - self.next;
        self.put(&[0; ALIGNMENT as usize][..gap as usize]);
    }

    fn number(&mut self) -> u32 {
        self.entries += 1;
        self.entries
    }

    /// A directory, which is root's.
    pub fn directory(&mut self, name: &[u8], mode: u32) {
        let inode = self.number();
        self.header(name, &Header { inode, mode: libc::S_IFDIR | mode, links: 2, ..Header::default() });
    }

    /// The console device.
    pub fn console(&mut self, name: &[u8]) {
        let inode = self.number();
        let mode = libc::S_IFCHR | 0o600;
        self.header(name, &Header { inode, mode, links: 1, device: CONSOLE, ..Header::default() });
    }

    /// A regular file with this content, which is root's.
    pub fn new_file(&mut self, name: &[u8], mode: u32, content: &[u8]) {
        let inode = self.number();
        let size = content.len() as u32; // what is made here is far from 4 GiB
        self.header(name, &Header { inode, mode: libc::S_IFREG | mode, links: 1, size, ..Header::default() });
        self.put(content);
        self.pad();
        self.unpacked += (content.len() as u64).next_multiple_of(PAGE);
    }

    /// An entry without content, or whose content is the symbolic link's `target`.
    pub fn special(&mut self, name: &[u8], stat: &FileStat, target: &[u8]) {
        let inode = self.number();
        if stat.st_mode & libc::S_IFMT != libc::S_IFDIR {
            self.not_directories.insert(name.to_vec());
        }
        self.header(name, &Header::of(stat, inode, target.len() as u32));
        self.put(target);
        self.pad();
    }

    /// A regular file of at most [`LONGEST_FILE`] bytes, whose content follows unless it is linked.
    pub fn file(&mut self, name: &[u8], stat: &FileStat) -> Content {
        let number = self.number();
        let mut size = u64::try_from(stat.st_size).unwrap_or(0);
        let mut inode = number;
        let mut linked = false;
        if stat.st_nlink > 1 {
            inode = *self.links.entry((stat.st_dev, stat.st_ino)).or_insert(number);
            linked = inode != number;
        }
        if linked {
            size = 0; // the kernel links it to the entry with that number
        }
        self.header(name, &Header::of(stat, inode, size as u32));
        if linked {
            return Content::Linked;
        }
        let at = self.next;
        self.next = at.saturating_add(size);
        self.unpacked += size.next_multiple_of(PAGE);
        Content::At(at, size)
    }

    /// Reads a file's content from `file` to where it was announced. Returns how much of it there was.
    pub fn read(&mut self, file: BorrowedFd<'_>, at: u64, size: u64) -> std::io::Result<u64> {
        let mut done = 0;
        let mut file = file;
        let mut result = Ok(());
        while self.fits() && done < size {
            let left = usize::try_from(size - done).unwrap_or(usize::MAX);
            match self.memory.read_volatile_from(GuestAddress(at + done), &mut file, left) {
                Ok(0) => break,
                Ok(len) => done += len as u64,
                Err(error) => {
                    result = match error {
                        vm_memory::GuestMemoryError::IOError(error) => Err(error),
                        error => Err(std::io::Error::other(error)),
                    };
                    break;
                }
            }
        }
        // What is missing is zeros.
        let mut hole = done;
        while self.fits() && hole < size {
            let len = (size - hole).min(PAGE);
            let zeros = &[0; PAGE as usize][..len as usize];
            if self.memory.write_slice(zeros, GuestAddress(at + hole)).is_err() {
                break;
            }
            hole += len;
        }
        self.pad();
        result.map(|()| done)
    }

    /// Ends the archive.
    pub fn finish(mut self) -> Packed {
        self.header(TRAILER, &Header { links: 1, ..Header::default() });
        Packed { len: self.next - self.start, unpacked: self.unpacked }
    }
}
