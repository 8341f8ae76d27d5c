//! Packs a tar archive, such as `docker export` writes it. It is read once, from its start to its end.

use std::cell::Cell;
use std::collections::HashMap;
use std::ffi::OsStr;
use std::io::{self, Read, Seek};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::sys::stat::{FileStat, fstat};
use tar::{Entry, EntryType};

use super::archive::MAX_FILE;
use super::walk::{Walk, check_name, is_lost};
use super::{Error, normalize};
use crate::boot::decompress::Compression;
use crate::boot::input_file::InputFile;
use crate::sys::os_error;

/// Offset and value of the magic number (POSIX, pax: ustar interchange format).
const MAGIC_OFFSET: u64 = 257;
const MAGIC: &[u8] = b"ustar";
/// The prefix of extended attributes in the headers of a tar archive (star(5)).
const XATTR: &str = "SCHILY.xattr.";

/// Stores whether the last read returned only zeros: blocks of these end a tar archive.
struct EndDetector<'a, R> {
    stream: R,
    at_end: &'a Cell<bool>,
}

impl<R: Read> Read for EndDetector<'_, R> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let len = self.stream.read(bytes)?;
        if len > 0 {
            self.at_end.set(bytes[..len].iter().all(|byte| *byte == 0));
        }
        Ok(len)
    }
}

impl Walk<'_> {
    /// Packs the content of the tar archive at `path` as the root.
    ///
    /// # Errors
    ///
    /// The archive cannot be read, or is invalid. An entry that cannot be packed is left out with a warning.
    pub fn tarball(&mut self, path: &Path) -> Result<(), Error> {
        let mut file = InputFile::open(path, "--root")?;
        let compression = Compression::detect(&file.peek::<6>(0)?);
        if compression.is_none() && !file.peek::<8>(MAGIC_OFFSET)?.starts_with(MAGIC) {
            let source = io::Error::other("it is neither a directory nor a tar archive");
            return Err(Error::Tarball { path: path.to_owned(), source });
        }
        self.archive.begin_tree();
        let mut try_tarball = || {
            file.file.rewind()?;
            let template = fstat(&file.file)?;
            let plain = file.file.try_clone()?;
            match compression {
                Some(compression) => self.entries(compression.reader(plain)?, &template),
                None => self.entries(plain, &template),
            }
        };
        try_tarball().map_err(|source| Error::Tarball { path: path.to_owned(), source })
    }

    /// Packs the entries of `stream`. `template` has the fields of a FileStat that a tar archive does not have.
    fn entries(&mut self, stream: impl Read, template: &FileStat) -> io::Result<()> {
        let at_end = Cell::new(false);
        let mut tarball = tar::Archive::new(EndDetector { stream, at_end: &at_end });
        let mut inodes = HashMap::new();
        for (number, entry) in (1..).zip(tarball.entries()?) {
            let mut entry = entry?;
            if matches!(entry.header().entry_type(), EntryType::XGlobalHeader) {
                continue;
            }
            let parts = normalize(Path::new(OsStr::from_bytes(&entry.path_bytes())));
            self.name = self.archive.create_parents(&parts);
            match check_name(&self.name).and_then(|()| self.tar_entry(&mut entry, number, &mut inodes, template)) {
                Err(error) if error.kind() == io::ErrorKind::Other => {
                    self.warn(&format!("is left out: {}", os_error::describe(&error)));
                }
                result => result?,
            }
        }
        if at_end.get() { Ok(()) } else { Err(io::Error::other("it is cut off")) }
    }

    /// Packs an entry. An error of the kind `Other` concerns only this entry.
    fn tar_entry<R: Read>(
        &mut self,
        entry: &mut Entry<'_, R>,
        number: u64,
        inodes: &mut HashMap<Vec<u8>, u64>,
        template: &FileStat,
    ) -> io::Result<()> {
        let header = entry.header();
        let kind = header.entry_type();
        let id = |id: u64| u32::try_from(id).map_err(io::Error::other);
        let device = match kind {
            EntryType::Char | EntryType::Block => {
                libc::makedev(header.device_major()?.unwrap_or(0), header.device_minor()?.unwrap_or(0))
            }
            _ => 0,
        };
        let mut stat = *template;
        (stat.st_mode, stat.st_uid, stat.st_gid) = (header.mode()? & 0o7777, id(header.uid()?)?, id(header.gid()?)?);
        stat.st_mtime = header.mtime()?.try_into().unwrap_or(0);
        (stat.st_rdev, stat.st_ino, stat.st_size) = (device, number, 0);
        stat = self.owned(stat);
        let link = entry.link_name_bytes().unwrap_or_default().into_owned();
        let special = match kind {
            EntryType::Symlink => Some(libc::S_IFLNK),
            EntryType::Directory => Some(libc::S_IFDIR),
            EntryType::Char => Some(libc::S_IFCHR),
            EntryType::Block => Some(libc::S_IFBLK),
            EntryType::Fifo => Some(libc::S_IFIFO),
            EntryType::Link | EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => None,
            _ => return Err(io::Error::other("its type is not known")),
        };
        if let Some(kind) = special {
            stat.st_mode |= kind;
            let own = if self.name.is_empty() { b"." } else { &self.name[..] };
            if kind != libc::S_IFDIR {
                self.check_free()?;
            } else if !self.archive.is_implied(own) && self.archive.resolve(b"", own).is_some() {
                return Ok(()); // it exists, perhaps as a link to a directory
            }
            let target: &[u8] = if kind == libc::S_IFLNK { &link } else { b"" };
            self.archive.special(own, &stat, target);
            return Ok(());
        }
        self.check_free()?;
        stat.st_mode |= libc::S_IFREG;
        stat.st_nlink = 2; // any file may get another name
        if kind == EntryType::Link {
            let target = self.archive.create_parents(&normalize(Path::new(OsStr::from_bytes(&link))));
            stat.st_ino =
                *inodes.get(&target).ok_or_else(|| io::Error::other("it is a link to a file that is missing"))?;
            self.archive.file(&self.name, &stat);
            inodes.insert(self.name.clone(), stat.st_ino);
            return Ok(());
        }
        let size = entry.size();
        if size > MAX_FILE {
            return Err(io::Error::other("it has 4 GiB or more, which an initramfs cannot hold"));
        }
        stat.st_size = size.cast_signed();
        let lost = entry.pax_extensions()?.into_iter().flatten().flatten().find_map(|extension| {
            extension.key().ok()?.strip_prefix(XATTR).filter(|name| is_lost(name)).map(str::to_owned)
        });
        if let Some(name) = lost {
            self.lose(&name);
        }
        inodes.insert(self.name.clone(), stat.st_ino);
        match self.archive.file(&self.name, &stat) {
            Some(range) => self.archive.read_stream(entry, range),
            None => Ok(()),
        }
    }
}
