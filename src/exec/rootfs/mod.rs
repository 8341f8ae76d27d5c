//! The first root file system, made on the fly: directories and files of the host become a cpio archive that is written
//! straight into guest memory. There is no temporary file, and each file's bytes are copied once, by `read(2)`.

mod archive;
mod elf;
mod ld_cache;
mod libraries;
mod walk;

pub use libraries::{Linked, libraries_of};

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use vm_memory::GuestMemoryMmap;

use crate::boot::{ByteSize, Error};
use archive::Archive;
use walk::Walk;

/// What is packed, each layer over those before it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Root {
    /// A directory that becomes the root.
    pub directory: Option<PathBuf>,
    /// Files and directories that are added to it.
    pub additions: Vec<Overlay>,
    /// Files that are made here, of the guest's root.
    pub files: Vec<NewFile>,
}

/// A file that is not on the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewFile {
    /// Its path in the guest, from the root.
    pub guest: PathBuf,
    /// Who may do what, as chmod(2) has it.
    pub mode: u32,
    /// What is in it.
    pub content: Vec<u8>,
}

/// Something of the host's, and its place in the guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Overlay {
    /// Its path on the host.
    pub host: PathBuf,
    /// Its path in the guest, from the root.
    pub guest: PathBuf,
    /// Whether of an executable only the part comes that is loaded when it runs. What debuggers read lies behind that, and is
    /// most of a program that was not stripped.
    pub strip: bool,
    /// Whether the libraries of a dynamic executable come with it.
    pub with_libraries: bool,
}

/// The guest memory that an archive may take.
#[derive(Clone, Copy, Debug)]
pub struct Room {
    /// First address.
    pub start: u64,
    /// The address behind the last.
    pub end: u64,
    /// What `end` would be with as much RAM as there can be.
    pub most: u64,
    /// All of the guest's RAM, in bytes.
    pub ram: u64,
}

/// An archive that was packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packed {
    /// Its length in bytes.
    pub len: u64,
    /// About as many bytes it takes when unpacked.
    pub unpacked: u64,
    /// Its entries, each of which takes an inode or a link.
    pub entries: u64,
}

/// RAM that Linux and its command want beside the files.
const WORKING_ROOM: u64 = 48 << 20;
/// What has to be said of a root that has many odd files.
const MAX_NOTES: usize = 10;

/// Packs `root` into `memory`, from `room.start` on. What had to be left out goes to `note`.
pub fn pack(memory: &GuestMemoryMmap, room: &Room, root: &Root, note: &mut dyn FnMut(String)) -> Result<Packed, Error> {
    let mut notes = 0;
    let mut limited = |text: String| {
        notes += 1;
        if notes <= MAX_NOTES {
            note(text);
        }
    };
    let mut walk = Walk::new(Archive::new(memory, room.start, room.end), &mut limited);
    walk.archive.directory(b".", 0o755);
    // Linux opens the console for the first process before that could make it.
    walk.archive.directory(b"dev", 0o755);
    walk.archive.console(b"dev/console");
    if let Some(directory) = &root.directory {
        if std::fs::metadata(directory).is_ok_and(|metadata| metadata.is_file()) {
            return Err(unpackable(directory, std::io::Error::other("It is not a directory")));
        }
        walk.tree(directory, b"", u64::MAX).map_err(|source| unpackable(directory, source))?;
    }
    let mut libraries = Vec::new();
    for Overlay { host, guest, strip, with_libraries } in &root.additions {
        let guest = place(&walk.archive, host, guest);
        let most = if *strip { elf::loaded_len(host).unwrap_or(u64::MAX) } else { u64::MAX };
        walk.tree(host, &guest, most).map_err(|source| unpackable(host, source))?;
        if *with_libraries {
            libraries.extend(libraries_of(host)?.into_iter().flat_map(|linked| linked.files()));
        }
    }
    libraries.sort();
    libraries.dedup();
    for library in &libraries {
        walk.tree(library, &name_of(library), u64::MAX).map_err(|source| unpackable(library, source))?;
    }
    for NewFile { guest, mode, content } in &root.files {
        let guest = walk.archive.parents(&name_of(guest));
        walk.archive.new_file(&guest, *mode, content);
    }
    let packed = walk.archive.finish();
    if notes > MAX_NOTES {
        note(format!("{} more like these", notes - MAX_NOTES));
    }
    check_room(room, root, packed)?;
    Ok(packed)
}

fn unpackable(path: &Path, source: std::io::Error) -> Error {
    Error::Pack { path: path.to_owned(), source }
}

/// The archive lies in RAM until it is unpacked, so for a moment all files are there twice.
fn check_room(room: &Room, root: &Root, packed: Packed) -> Result<(), Error> {
    let archive_end = room.start.saturating_add(packed.len);
    let total = archive_end.saturating_add(packed.unpacked).saturating_add(WORKING_ROOM);
    if archive_end <= room.end && total <= room.ram {
        return Ok(());
    }
    let what =
        root.directory.clone().unwrap_or_else(|| root.additions.first().map_or("/".into(), |it| it.host.clone()));
    let (files, needed) = (ByteSize(packed.unpacked), ByteSize(total));
    if archive_end > room.most {
        return Err(Error::RootTooLarge { path: what, files, most: ByteSize(room.most.saturating_sub(room.start)) });
    }
    // People give memory in round numbers.
    let step = if total > 1 << 30 { 256 << 20 } else { 64 << 20 };
    let suggestion = ByteSize(total.max(archive_end + crate::boot::layout::PAGE_SIZE).next_multiple_of(step));
    Err(Error::NoRoomForRoot { ram: ByteSize(room.ram), path: what, files, needed, suggestion })
}

/// Where the file `host` goes: into `guest` if that is a directory or ends like one, as cp(1) has it.
fn place(archive: &Archive<'_>, host: &Path, guest: &Path) -> Vec<u8> {
    let name = name_of(guest);
    let into = guest.as_os_str().as_bytes().ends_with(b"/") || archive.resolve(&name).is_some();
    match host.file_name() {
        Some(file) if into && host.is_file() => name_of(&guest.join(file)),
        _ => name,
    }
}

/// `path` without a root, `.` and `..`.
fn name_of(path: &Path) -> Vec<u8> {
    let mut parts: Vec<&OsStr> = Vec::new();
    for part in path.components() {
        match part {
            Component::Normal(part) => parts.push(part),
            Component::ParentDir => drop(parts.pop()),
            _ => {}
        }
    }
    parts.join(OsStr::new("/")).as_bytes().to_vec()
}

impl Overlay {
    /// What `HOSTPATH[:GUESTPATH]` says. Where GUESTPATH is missing it is HOSTPATH, from here if that is not from the root.
    pub fn parse(text: &OsStr) -> Self {
        let bytes = text.as_bytes();
        let path = |bytes: &[u8]| PathBuf::from(OsStr::from_bytes(bytes));
        match bytes.iter().rposition(|byte| *byte == b':') {
            Some(at) if at > 0 && at + 1 < bytes.len() => Self::new(path(&bytes[..at]), path(&bytes[at + 1..])),
            _ => {
                let host = path(bytes);
                let guest = std::path::absolute(&host).unwrap_or_else(|_| host.clone());
                Self::new(host, guest)
            }
        }
    }
}

impl Overlay {
    /// What is at `host`, at `guest`.
    pub fn new(host: impl Into<PathBuf>, guest: impl Into<PathBuf>) -> Self {
        Self { host: host.into(), guest: guest.into(), strip: false, with_libraries: false }
    }
}

impl From<OsString> for Overlay {
    fn from(text: OsString) -> Self {
        Self::parse(&text)
    }
}

#[cfg(test)]
mod tests;
