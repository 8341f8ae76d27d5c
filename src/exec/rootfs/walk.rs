//! Packs a tree of host files: depth first, each directory in the order of names. Every file is opened relative to its
//! open directory and never through a symbolic link, so a tree that changes meanwhile cannot lead out of itself.

use std::ffi::{CStr, CString, OsStr};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use libc::{gid_t, uid_t};
use nix::NixPath;
use nix::dir::{Dir, Type};
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, openat, readlinkat};
use nix::sys::stat::{FileStat, Mode, fstat, fstatat};

use super::Error;
use super::archive::{Archive, MAX_FILE, join};
use super::normalize;
use super::sparse::{DIRECTORY, SparseFile};
use crate::boot::Written;
use crate::boot::initramfs::TRAILER;
use crate::sys::os_error;
use crate::sys::xattr::find_attribute;

/// The most warnings of one archive. A root directory may have any number of unusual files.
const MAX_WARNINGS: usize = 10;

/// Neither opening nor reading blocks, and a terminal does not become the controlling one.
const FILE: OFlag = OFlag::O_RDONLY.union(OFlag::O_CLOEXEC).union(OFlag::O_NONBLOCK).union(OFlag::O_NOCTTY);

/// Adds host files to an archive.
pub struct Walk<'a> {
    pub archive: Archive<'a>,
    warnings: Vec<String>,
    more_warnings: usize,
    sparse_files: u32,
    pub(super) name: Vec<u8>,      // of the current entry
    device: u64,                   // of the current tree
    owner: Option<(uid_t, gid_t)>, // of all entries, instead of their own
    lost: Option<(String, usize)>, // the first extended attribute that is left out, and the number of files with one
}

/// An open directory whose entries are being packed.
struct OpenDirectory {
    directory: Dir,
    entries: std::vec::IntoIter<(CString, Option<Type>)>,
    name: Vec<u8>,
}

impl<'a> Walk<'a> {
    /// Files go to `archive`. They belong to `owner` there, if there is one.
    pub fn new(archive: Archive<'a>, owner: Option<(uid_t, gid_t)>) -> Self {
        let (warnings, name) = (Vec::new(), Vec::new());
        Self { archive, warnings, more_warnings: 0, sparse_files: 0, name, device: 0, owner, lost: None }
    }

    /// `stat` with the owner of the archive's entries.
    pub(super) fn owned(&self, mut stat: FileStat) -> FileStat {
        (stat.st_uid, stat.st_gid) = self.owner.unwrap_or((stat.st_uid, stat.st_gid));
        stat
    }

    /// Packs the file or directory at `path` on the host as `name`; of a file, the first `max_len` bytes. A symbolic
    /// link at `path` is followed.
    ///
    /// # Errors
    ///
    /// `path` itself cannot be packed. What cannot be packed below a directory is left out with a warning.
    pub fn tree(&mut self, path: &Path, name: &[u8], max_len: u64) -> Result<(), Error> {
        self.try_tree(path, name, max_len).map_err(|source| Error::Pack { path: path.to_owned(), source })
    }

    fn try_tree(&mut self, path: &Path, name: &[u8], max_len: u64) -> io::Result<()> {
        self.name = self.archive.create_parents(name);
        check_name(&self.name)?;
        self.archive.begin_tree();
        let (file, stat) = open(AT_FDCWD, path, FILE)?;
        let mut stat = self.owned(stat);
        match stat.st_mode & libc::S_IFMT {
            libc::S_IFREG if self.name.is_empty() => Err(io::Error::other("it is not a directory")), // but the root is
            libc::S_IFREG => {
                stat.st_size = stat.st_size.min(i64::try_from(max_len).unwrap_or(i64::MAX));
                stat.st_nlink = 1; // its other names are not in this tree
                self.content(file, &stat)
            }
            libc::S_IFDIR => {
                self.device = stat.st_dev;
                let path = self.name.clone();
                self.enter(b"", &path, file, &stat).map(|root| self.directories(root))
            }
            _ => Err(io::Error::other("it is neither a file nor a directory")),
        }
    }

    /// Packs everything below `root`. The directories above the current entry are in a list: a recursion could overflow
    /// the stack, as a tree may have a level for every two bytes of a path.
    fn directories(&mut self, root: OpenDirectory) {
        let mut open = vec![root];
        while let Some(parent) = open.last_mut() {
            let Some((name, kind)) = parent.entries.next() else {
                open.pop();
                continue;
            };
            self.name = join(&parent.name, name.to_bytes());
            match check_name(&self.name).and_then(|()| self.entry(parent, &name, kind)) {
                Ok(subdirectory) => open.extend(subdirectory),
                Err(error) => self.warn(&format!("is left out: {}", os_error::describe(&error))),
            }
        }
    }

    /// Packs one entry of `parent`. Returns it if it is a directory.
    fn entry(&mut self, parent: &OpenDirectory, name: &CStr, kind: Option<Type>) -> io::Result<Option<OpenDirectory>> {
        let directory = parent.directory.as_fd();
        // Some file systems do not return the type. Only files and directories are opened.
        if !matches!(kind, Some(Type::File | Type::Directory)) {
            let stat = self.owned(fstatat(directory, name, AtFlags::AT_SYMLINK_NOFOLLOW)?);
            match stat.st_mode & libc::S_IFMT {
                libc::S_IFREG | libc::S_IFDIR => {}
                libc::S_IFSOCK => return Err(io::Error::other("it is a socket")),
                libc::S_IFLNK => return self.special(&stat, readlinkat(directory, name)?.as_bytes()),
                _ => return self.special(&stat, b""),
            }
        }
        let (file, stat) = open(directory, name, FILE | OFlag::O_NOFOLLOW)?;
        let stat = self.owned(stat);
        match stat.st_mode & libc::S_IFMT {
            libc::S_IFREG => self.content(file, &stat).map(|()| None),
            libc::S_IFDIR => self.enter(&parent.name, name.to_bytes(), file, &stat).map(Some),
            _ => Err(io::Error::other("its type changed while it was packed")),
        }
    }

    /// Packs an entry that is neither a file nor a directory; `target` is that of a symbolic link.
    fn special(&mut self, stat: &FileStat, target: &[u8]) -> io::Result<Option<OpenDirectory>> {
        self.check_free()?;
        self.archive.special(&self.name, stat, target);
        Ok(None)
    }

    /// Packs the directory `file` itself, which is `path` from the directory `base` of the archive, and lists its
    /// entries. If the archive has this directory or a symbolic link to one, that stays as it is, and the entries go
    /// there.
    fn enter(&mut self, base: &[u8], path: &[u8], file: OwnedFd, stat: &FileStat) -> io::Result<OpenDirectory> {
        let mut directory = Dir::from_fd(file)?;
        let own = if self.name.is_empty() { b"." } else { &self.name[..] };
        let name = match self.archive.resolve(base, path) {
            Some(existing) if !self.archive.is_implied(own) => existing,
            _ => {
                self.archive.special(own, stat, b"");
                self.name.clone()
            }
        };
        if stat.st_dev != self.device {
            return Err(io::Error::other("another file system is mounted there; its files are not packed"));
        }
        let mut entries = Vec::new();
        for entry in directory.iter() {
            let entry = entry?;
            if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
                entries.push((entry.file_name().to_owned(), entry.file_type()));
            }
        }
        entries.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
        Ok(OpenDirectory { directory, entries: entries.into_iter(), name })
    }

    fn content(&mut self, file: OwnedFd, stat: &FileStat) -> io::Result<()> {
        self.check_free()?;
        let file = File::from(file);
        if let Some(sparse) = SparseFile::find(&self.name, &file, stat) {
            return self.sparse(&file, stat, &sparse);
        }
        if stat.st_size.cast_unsigned() > MAX_FILE {
            return Err(io::Error::other("it has 4 GiB or more, which an initramfs cannot hold"));
        }
        let Some(range) = self.archive.file(&self.name, stat) else { return Ok(()) };
        if let Some(attribute) = find_attribute(file.as_fd(), is_lost) {
            self.lose(&attribute);
        }
        let len = range.end - range.start;
        match self.archive.read(file.as_fd(), range) {
            Ok(done) if done == len || !self.archive.fits() => {}
            Ok(_) => self.warn("became shorter while it was packed; the rest of it is zeros in the guest"),
            Err(error) => {
                let why = os_error::describe(&error);
                self.warn(&format!("cannot be read: {why}; the rest of it is zeros in the guest"));
            }
        }
        Ok(())
    }

    /// The kernel skips an entry that is not a directory if its name is one.
    pub(super) fn check_free(&self) -> io::Result<()> {
        match self.archive.is_directory(&self.name) {
            true => Err(io::Error::other("a directory has the same name")),
            false => Ok(()),
        }
    }

    /// Packs a file with holes: an empty file, and another one with the data.
    fn sparse(&mut self, file: &File, stat: &FileStat, sparse: &SparseFile) -> io::Result<()> {
        let description = sparse.encode();
        let len = sparse.data_len() + description.len() as u64;
        if len > MAX_FILE {
            return Err(io::Error::other("it has 4 GiB or more of data, which an initramfs cannot hold"));
        }
        let mut empty = *stat;
        empty.st_size = 0;
        let Some(range) = self.archive.file(&self.name, &empty) else { return Ok(()) };
        self.archive.read_stream(&mut io::empty(), range)?;
        self.sparse_files += 1;
        let name = self.archive.create_parents(&normalize(&Path::new(DIRECTORY).join(self.sparse_files.to_string())));
        self.archive.stream(&name, len, &mut sparse.data(file).chain(&description[..]))
    }

    /// Counts the current file, whose extended attribute `name` cannot be packed.
    pub(super) fn lose(&mut self, name: &str) {
        let first = || (format!("{name} of '{}'", OsStr::from_bytes(&self.name).display()), 0);
        self.lost.get_or_insert_with(first).1 += 1;
    }

    pub(super) fn warn(&mut self, what: &str) {
        if self.warnings.len() < MAX_WARNINGS {
            self.warnings.push(format!("'{}' {what}", OsStr::from_bytes(&self.name).display()));
        } else {
            self.more_warnings += 1;
        }
    }

    /// Ends the archive. Returns it with the warnings, at most [`MAX_WARNINGS`] and a count of the others.
    pub fn finish(mut self) -> (Written, Vec<String>) {
        if let Some((first, count)) = self.lost {
            let files = if count == 1 { "file" } else { "files" };
            let what = "an initramfs has no capabilities, access control lists and other extended attributes";
            self.warnings.push(format!("{what}; {count} {files} had some: {first}"));
        }
        if self.more_warnings > 0 {
            self.warnings.push(format!("{} more like these", self.more_warnings));
        }
        (self.archive.finish(), self.warnings)
    }
}

/// Whether a program in the guest may need the extended attribute `name`. Labels of security modules are of the host.
pub(super) fn is_lost(name: &str) -> bool {
    name == "security.capability" || name.starts_with("system.posix_acl") || name.starts_with("user.")
}

fn open<P: NixPath + ?Sized>(directory: BorrowedFd<'_>, path: &P, flags: OFlag) -> nix::Result<(OwnedFd, FileStat)> {
    let file = loop {
        match openat(directory, path, flags, Mode::empty()) {
            Err(Errno::EINTR) => {}
            result => break result?,
        }
    };
    let stat = fstat(&file)?;
    Ok((file, stat))
}

/// The kernel skips an entry whose name it does not accept.
pub(super) fn check_name(name: &[u8]) -> io::Result<()> {
    let too_long = |part: &[u8]| part.len() > libc::NAME_MAX as usize;
    if TRAILER.strip_suffix(b"\0") == Some(name) {
        Err(io::Error::other("that name ends an initramfs"))
    } else if name.len() >= libc::PATH_MAX as usize || name.split(|byte| *byte == b'/').any(too_long) {
        Err(io::Error::other("its path in the guest would be too long"))
    } else {
        Ok(())
    }
}
