//! A walk through a directory of the host, in the order of names, relative to the directory that is open.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

use nix::dir::{Dir, Type};
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat, readlinkat};
use nix::sys::stat::{FileStat, Mode, fstat, fstatat};

use super::archive::{Archive, Content, MAX_FILE, TRAILER};

/// The archive, and the name of what is being packed.
pub struct Walk<'a, 'b> {
    /// Where entries go.
    pub archive: Archive<'a>,
    note: &'b mut dyn FnMut(String),
    name: Vec<u8>,
    device: u64,
}

const DIRECTORY: OFlag = OFlag::O_RDONLY.union(OFlag::O_DIRECTORY).union(OFlag::O_CLOEXEC);
const FILE: OFlag = OFlag::O_RDONLY.union(OFlag::O_CLOEXEC).union(OFlag::O_NONBLOCK).union(OFlag::O_NOCTTY);

impl<'a, 'b> Walk<'a, 'b> {
    /// A walk that packs into `archive` and says to `note` what it leaves out.
    pub fn new(archive: Archive<'a>, note: &'b mut dyn FnMut(String)) -> Self {
        Self { archive, note, name: Vec::with_capacity(4096), device: 0 }
    }

    /// Packs what is at `path` on the host, a link followed, as `name`; of a file `most` bytes at most. An error concerns `path`
    /// itself: of a directory's content what cannot be had is left out.
    pub fn tree(&mut self, path: &Path, name: &[u8], most: u64) -> io::Result<()> {
        self.name = self.archive.parents(name);
        check_name(&self.name)?;
        self.archive.begin_tree();
        let file = openat(nix::fcntl::AT_FDCWD, path, FILE, Mode::empty())?;
        let mut stat = fstat(&file)?;
        match stat.st_mode & libc::S_IFMT {
            libc::S_IFREG => {
                stat.st_size = stat.st_size.min(i64::try_from(most).unwrap_or(i64::MAX));
                stat.st_nlink = 1; // its other names are not in this tree
                self.content(file, &stat)?;
            }
            libc::S_IFDIR => {
                self.device = stat.st_dev;
                self.enter(&stat);
                self.directory(Dir::from_fd(file)?)?;
            }
            _ => return Err(io::Error::other("It is neither a file nor a directory")),
        }
        Ok(())
    }

    /// Packs a directory without what is in it. One that is there already stays as it is, as does a link to one; the name is
    /// then the one that it leads to.
    fn enter(&mut self, stat: &FileStat) {
        let name = if self.name.is_empty() { b"." } else { &self.name[..] };
        match self.archive.resolve(name) {
            Some(there) if !self.archive.is_made(name) => self.name = there,
            _ => self.archive.special(name, stat, b""),
        }
    }

    /// Packs what is in `directory`.
    fn directory(&mut self, mut directory: Dir) -> io::Result<()> {
        let mut entries = Vec::new();
        for entry in directory.iter() {
            let entry = entry?;
            if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
                entries.push((entry.file_name().to_owned(), entry.file_type()));
            }
        }
        entries.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
        let len = self.name.len();
        for (name, kind) in entries {
            if len > 0 {
                self.name.push(b'/');
            }
            self.name.extend_from_slice(name.to_bytes());
            if let Err(error) = check_name(&self.name).and_then(|()| self.entry(&directory, &name, kind)) {
                self.leave_out(&crate::sys::os_error::describe(&error));
            }
            self.name.truncate(len);
        }
        Ok(())
    }

    fn entry(&mut self, directory: &Dir, name: &CString, kind: Option<Type>) -> io::Result<()> {
        match kind {
            Some(Type::File) => self.file(directory, name),
            Some(Type::Directory) => self.subdirectory(directory, name),
            _ => {
                let stat = fstatat(directory.as_fd(), name.as_c_str(), AtFlags::AT_SYMLINK_NOFOLLOW)?;
                match stat.st_mode & libc::S_IFMT {
                    libc::S_IFREG => self.file(directory, name),
                    libc::S_IFDIR => self.subdirectory(directory, name),
                    libc::S_IFLNK => {
                        self.check_free()?;
                        let target = readlinkat(directory.as_fd(), name.as_c_str())?.into_vec();
                        self.archive.special(&self.name, &stat, &target);
                        Ok(())
                    }
                    libc::S_IFSOCK => Err(io::Error::other("It is a socket")),
                    _ => {
                        self.check_free()?;
                        self.archive.special(&self.name, &stat, b"");
                        Ok(())
                    }
                }
            }
        }
    }

    fn open(directory: &Dir, name: &CStr, flags: OFlag) -> nix::Result<OwnedFd> {
        loop {
            match openat(directory.as_fd(), name, flags | OFlag::O_NOFOLLOW, Mode::empty()) {
                Err(Errno::EINTR) => {}
                result => return result,
            }
        }
    }

    fn subdirectory(&mut self, directory: &Dir, name: &CStr) -> io::Result<()> {
        let opened = Self::open(directory, name, DIRECTORY)?;
        let stat = fstat(&opened)?;
        let opened = Dir::from_fd(opened)?;
        let name = self.name.clone();
        self.enter(&stat);
        let done = match stat.st_dev == self.device {
            true => self.directory(opened),
            false => Err(io::Error::other("Another file system is mounted there; its files are not packed")),
        };
        self.name = name;
        done
    }

    fn file(&mut self, directory: &Dir, name: &CStr) -> io::Result<()> {
        let file = Self::open(directory, name, FILE)?;
        let stat = fstat(&file)?;
        match stat.st_mode & libc::S_IFMT {
            libc::S_IFREG => self.content(file, &stat),
            _ => Err(io::Error::other("It became something else while it was packed")),
        }
    }

    fn content(&mut self, file: OwnedFd, stat: &FileStat) -> io::Result<()> {
        self.check_free()?;
        if stat.st_size as u64 > MAX_FILE {
            return Err(io::Error::other("It has 4 GiB or more, which an initramfs cannot hold"));
        }
        let Content::At(at, size) = self.archive.file(&self.name, stat) else { return Ok(()) };
        match self.archive.read(file.as_fd(), at, size) {
            Ok(done) if done < size && self.archive.fits() => {
                self.say("became shorter while it was packed; the rest of it is zeros in the guest");
            }
            Ok(_) => {}
            Err(error) => {
                let why = crate::sys::os_error::describe(&error);
                self.say(&format!("cannot be read: {why}; the rest of it is zeros in the guest"));
            }
        }
        Ok(())
    }

    /// The kernel skips what comes for a directory and is none.
    fn check_free(&self) -> io::Result<()> {
        match self.archive.is_directory(&self.name) {
            true => Err(io::Error::other("A directory has its place")),
            false => Ok(()),
        }
    }

    fn leave_out(&mut self, why: &str) {
        self.say(&format!("is left out: {why}"));
    }

    fn say(&mut self, what: &str) {
        let name = std::ffi::OsStr::from_bytes(&self.name).display();
        (self.note)(format!("warning: '{name}' {what}"));
    }
}

/// The kernel skips what has a name that it does not take.
fn check_name(name: &[u8]) -> io::Result<()> {
    let too_long = |part: &[u8]| part.len() > libc::NAME_MAX as usize;
    match name {
        TRAILER => Err(io::Error::other("That name ends an initramfs")),
        _ if name.len() >= libc::PATH_MAX as usize || name.split(|byte| *byte == b'/').any(too_long) => {
            Err(io::Error::other("Its path in the guest would be too long"))
        }
        _ => Ok(()),
    }
}
