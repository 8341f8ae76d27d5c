//! A cpio archive ("new ASCII" format) that is written into guest memory. What does not fit is measured and not written.

use std::collections::HashMap;
use std::os::fd::BorrowedFd;

use nix::sys::stat::FileStat;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::Packed;

const HEADER: usize = 110;
/// The name that ends an archive.
pub const TRAILER: &[u8] = b"TRAILER!!!";
const ALIGNMENT: u64 = 4;
const PAGE: u64 = 4096;
/// About what Linux needs for an inode and its name.
const INODE: u64 = 1 << 10;
/// What Linux keeps of a file with several links until the archive ends: it has room for the longest name (init/initramfs.c).
const LINK: u64 = 8 << 10;
/// Where in a header the number of links is.
const LINKS_AT: u64 = 6 + 4 * 8;
/// As many links Linux follows on the way to a file.
const MAX_LINKS: usize = 40;
/// The console's device number: Linux, Documentation/admin-guide/devices.txt.
const CONSOLE: (u32, u32) = (5, 1);

/// The longest file that the header's eight digits can tell.
pub const MAX_FILE: u64 = u32::MAX as u64;

/// What a name in the archive is, where that matters to what comes later. Names lead through no link.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Place {
    /// A directory that was made because something is in it.
    Made,
    /// A directory as it is on the host.
    Directory,
    /// A symbolic link, with its target.
    Link(Vec<u8>),
    /// A file that may have other names, and the number of the first.
    Shared(u32),
}

/// The first name of a file that has several.
#[derive(Debug)]
struct First {
    number: u32,
    told: bool, // whether its header says that there are more
    at: u64,    // the header's address
}

/// An archive that grows.
#[derive(Debug)]
pub struct Archive<'a> {
    memory: &'a GuestMemoryMmap,
    start: u64,
    next: u64,
    end: u64,
    unpacked: u64,
    entries: u32,
    links: HashMap<(u64, u64), First>, // by device and inode, of this tree
    places: HashMap<Vec<u8>, Place>,
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
            time: stat.st_mtime.clamp(0, u32::MAX.into()) as u32, // the format ends in 2106
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
            places: HashMap::new(),
            block: Vec::with_capacity(512),
        }
    }

    /// Whether all fits so far.
    pub fn fits(&self) -> bool {
        self.next <= self.end
    }

    /// Begins another tree. Its files are linked to each other only: names of those before may be taken by other files.
    pub fn begin_tree(&mut self) {
        self.links.clear();
    }

    /// Whether `name`, which leads through no link, is a directory here.
    pub fn is_directory(&self, name: &[u8]) -> bool {
        matches!(self.places.get(name), Some(Place::Made | Place::Directory))
    }

    /// Whether `name` is a directory that was only made because something is in it.
    pub fn is_made(&self, name: &[u8]) -> bool {
        self.places.get(name) == Some(&Place::Made)
    }

    /// The directory that `name` leads to, as a name that leads through no link; `None` if there is none here.
    pub fn resolve(&self, name: &[u8]) -> Option<Vec<u8>> {
        let (mut at, mut links) = (Vec::new(), 0);
        let mut todo: Vec<&[u8]> = name.rsplit(|byte| *byte == b'/').collect();
        while let Some(part) = todo.pop() {
            match part {
                b"" | b"." => continue,
                b".." => {
                    at.truncate(at.iter().rposition(|byte| *byte == b'/').unwrap_or(0));
                    continue;
                }
                _ => {}
            }
            let next = join(&at, part);
            match self.places.get(&next)? {
                Place::Made | Place::Directory => at = next,
                Place::Link(target) if links < MAX_LINKS => {
                    links += 1;
                    todo.extend(target.rsplit(|byte| *byte == b'/'));
                    if target.starts_with(b"/") {
                        at.clear();
                    }
                }
                Place::Link(_) | Place::Shared(_) => return None,
            }
        }
        Some(at)
    }

    /// Makes the directories above `name` that are not here, and returns it as a name that leads through no link.
    pub fn parents(&mut self, name: &[u8]) -> Vec<u8> {
        let mut at = Vec::new();
        let mut parts = name.split(|byte| *byte == b'/').peekable();
        while let Some(part) = parts.next() {
            at = join(&at, part);
            if parts.peek().is_none() || self.is_directory(&at) {
                continue;
            }
            let leads_to = match self.places.get(&at) {
                Some(Place::Link(_)) => self.resolve(&at),
                _ => None,
            };
            match leads_to {
                Some(directory) => at = directory,
                None => self.directory(&at, 0o755),
            }
        }
        at
    }

    fn header(&mut self, name: &[u8], header: &Header) {
        self.block.clear();
        self.block.extend_from_slice(b"070701");
        let Header { inode, mode, user, group, links, time, size, device } = *header;
        let name_size = name.len() as u32 + 1; // the kernel's longest path is far from 2^32
        for field in [inode, mode, user, group, links, time, size, 0, 0, device.0, device.1, name_size, 0] {
            self.block.extend_from_slice(&digits(field));
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
        self.places.insert(name.to_vec(), Place::Made);
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
        self.make_way(name);
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
        let mut header = Header::of(stat, inode, target.len() as u32);
        let place = match stat.st_mode & libc::S_IFMT {
            libc::S_IFDIR => Some(Place::Directory),
            libc::S_IFLNK => Some(Place::Link(target.to_vec())),
            _ => None,
        };
        if place != Some(Place::Directory) {
            header.links = 1; // with more, the kernel would wait for them
        }
        match place {
            Some(place) => self.places.insert(name.to_vec(), place),
            None => self.places.remove(name),
        };
        self.header(name, &header);
        self.put(target);
        self.pad();
    }

    /// Sees to it that a file at `name` will be a new one. The kernel writes into one that it finds there, which may have other
    /// names; it removes what a symbolic link comes for, and that when a file comes.
    fn make_way(&mut self, name: &[u8]) {
        if let Some(Place::Shared(_)) = self.places.remove(name) {
            let inode = self.number();
            let mode = libc::S_IFLNK | 0o777;
            self.header(name, &Header { inode, mode, links: 1, size: 1, ..Header::default() });
            self.put(b".");
            self.pad();
        }
    }

    /// A regular file of at most [`MAX_FILE`] bytes, whose content follows unless it is linked.
    pub fn file(&mut self, name: &[u8], stat: &FileStat) -> Content {
        let key = (stat.st_dev, stat.st_ino);
        if let (Some(Place::Shared(number)), Some(first)) = (self.places.get(name), self.links.get(&key))
            && *number == first.number
        {
            return Content::Linked; // a link of the tree below leads here: linked to itself, it would be gone
        }
        self.make_way(name);
        let number = self.number();
        let size = u64::try_from(stat.st_size).unwrap_or(0);
        let mut header = Header::of(stat, number, size as u32);
        if stat.st_nlink > 1 {
            let at = self.next;
            let fits = self.fits();
            let first = self.links.entry(key).or_insert(First { number, told: false, at });
            header.inode = first.number;
            self.places.insert(name.to_vec(), Place::Shared(first.number));
            if first.number == number {
                header.links = 1; // until there is another
            } else {
                if !first.told {
                    first.told = true;
                    self.unpacked += LINK;
                    if fits {
                        let field = GuestAddress(first.at + LINKS_AT);
                        let _ = self.memory.write_slice(&digits(header.links), field); // it was written before
                    }
                }
                header.size = 0; // the kernel links it to the entry with that number
                self.header(name, &header);
                return Content::Linked;
            }
        }
        self.header(name, &header);
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
        Packed { len: self.next - self.start, unpacked: self.unpacked, entries: self.entries.into() }
    }
}

/// `name` in the directory `directory`, which is empty for the root.
fn join(directory: &[u8], name: &[u8]) -> Vec<u8> {
    let separator: &[u8] = if directory.is_empty() { b"" } else { b"/" };
    [directory, separator, name].concat()
}

/// A field of a header.
fn digits(field: u32) -> [u8; 8] {
    std::array::from_fn(|n| b"0123456789abcdef"[(field >> (28 - 4 * n) & 0xf) as usize])
}
