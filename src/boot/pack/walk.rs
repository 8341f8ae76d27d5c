//! A walk through a directory of the host, in the order of names, relative to the directory that is open.

use super::archive::{Archive, Content, LONGEST_FILE};
use nix::dir::{Dir, Type};
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat, readlinkat};
use nix::sys::stat::{FileStat, Mode, fstat, fstatat};
use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

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
        self.name.clear();
        self.name.extend_from_slice(name);
        let file = openat(nix::fcntl::AT_FDCWD, path, FILE, Mode::empty())?;
        let mut stat = fstat(&file)?;
        match stat.st_mode & libc::S_IFMT {
            libc::S_IFREG => {
                stat.st_size = stat.st_size.min(i64::try_from(most).unwrap_or(i64::MAX));
                self.content(file, &stat);
            }
            libc::S_IFDIR => {
                self.device = stat.st_dev;
                let name = if self.name.is_empty() { b"." } else { &self.name[..] };
                self.archive.special(name, &stat, b"");
                self.directory(Dir::from_fd(file)?)?;
            }
            _ => return Err(io::Error::other("It is neither a file nor a directory")),
        }
        Ok(())
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
            if let Err(error) = self.entry(&directory, &name, kind) {
                self.leave_out(&crate::cause::cause(&error));
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
                        let target = readlinkat(directory.as_fd(), name.as_c_str())?.into_vec();
                        self.archive.special(&self.name, &stat, &target);
                        Ok(())
                    }
                    libc::S_IFSOCK => Err(io::Error::other("It is a socket")),
                    _ => {
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
        self.archive.special(&self.name, &stat, b"");
        if stat.st_dev != self.device {
            return Err(io::Error::other("Another file system is mounted there; its files are not packed"));
        }
        self.directory(Dir::from_fd(opened)?)
    }

    fn file(&mut self, directory: &Dir, name: &CStr) -> io::Result<()> {
        let file = Self::open(directory, name, FILE)?;
        let stat = fstat(&file)?;
        match stat.st_mode & libc::S_IFMT {
            libc::S_IFREG if stat.st_size as u64 > LONGEST_FILE => {
                Err(io::Error::other("It has 4 GiB or more, which an initramfs cannot hold"))
            }
            libc::S_IFREG => {
                self.content(file, &stat);
                Ok(())
            }
            _ => Err(io::Error::other("It became something else while it was packed")),
        }
    }

    fn content(&mut self, file: OwnedFd, stat: &FileStat) {
        let Content::At(at, size) = self.archive.file(&self.name, stat) else { return };
        match self.archive.read(file.as_fd(), at, size) {
            Ok(done) if done < size && self.archive.fits() => {
                self.say("became shorter while it was packed; the rest of it is zeros in the guest");
            }
            Ok(_) => {}
            Err(error) => {
                let why = crate::cause::cause(&error);
                self.say(&format!("cannot be read: {why}; the rest of it is zeros in the guest"));
            }
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
