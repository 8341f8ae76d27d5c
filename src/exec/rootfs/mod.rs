//! The root file system of a guest, generated when it starts: directories and files of the host become an initramfs
//! archive.
//!
//! [`RootfsSpec`] lists what is packed. It is an [`InitramfsSource`], so the archive is written directly into guest
//! memory: there is no temporary file, and the content of each file is copied once, by read(2). `walk` reads the host's
//! trees, `archive` has the format and the kernel's rules for it, and `libraries` finds the libraries of an executable.

mod archive;
pub(super) mod elf;
mod ld_cache;
mod libraries;
pub(super) mod sparse;
mod tarball;
mod walk;

pub use libraries::{Linked, libraries_of};

use std::ffi::OsStr;
use std::io;
use std::ops::Range;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

use vm_memory::GuestMemoryMmap;

use crate::boot::{self, InitramfsSource, SourceError, Written};
use crate::sys::os_error;
use archive::{Archive, Header};
use walk::Walk;

/// What is packed. Each part may replace files of the parts before it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RootfsSpec {
    /// A directory that becomes the root, or a tar archive of one, which may be compressed.
    pub directory: Option<PathBuf>,
    /// A directory that is below the packed files in the guest. Its directories and links are kept.
    pub below: Option<PathBuf>,
    /// Files and directories that are added to it.
    pub overlays: Vec<Overlay>,
    /// Files that are not on the host. They belong to root.
    pub files: Vec<NewFile>,
    /// The user and the group that all other files belong to; `None` for those on the host.
    pub owner: Option<(u32, u32)>,
}

/// A file that is not on the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewFile {
    /// Its path in the guest, from the root.
    pub guest: PathBuf,
    /// Its permissions, as in chmod(2).
    pub mode: u32,
    /// Its content.
    pub content: Vec<u8>,
}

/// A file or directory of the host that is added to the root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Overlay {
    /// Its path on the host.
    pub host: PathBuf,
    /// Its path in the guest, from the root.
    pub guest: PathBuf,
    /// Whether to leave out what follows the last loaded segment of an executable. Debuggers read it, and it is most of
    /// a program that was not stripped.
    pub strip: bool,
    /// Whether the libraries of a dynamically linked executable are added, too.
    pub with_libraries: bool,
}

/// Why a root file system cannot be packed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file or directory cannot be packed.
    #[error("cannot pack '{path}': {}", os_error::describe(.source))]
    Pack {
        /// The path as the user wrote it.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A tar archive cannot be opened.
    #[error(transparent)]
    File(#[from] boot::Error),
    /// A tar archive is invalid.
    #[error("cannot unpack '{path}': {}", os_error::describe(.source))]
    Tarball {
        /// The path as the user wrote it.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A library of an executable is not on the host.
    #[error("cannot find the library '{library}', which '{executable}' needs")]
    NoLibrary {
        /// The path as the user wrote it.
        executable: PathBuf,
        /// The name of the library.
        library: String,
    },
}

/// The device number of /dev/console (Linux, Documentation/admin-guide/devices.txt).
const CONSOLE: (u32, u32) = (5, 1);

impl InitramfsSource for RootfsSpec {
    fn name(&self) -> String {
        let first = self.directory.as_ref().or(self.overlays.first().map(|overlay| &overlay.host));
        first.map_or("/".to_owned(), |path| path.display().to_string())
    }

    /// Logs a warning for each file that is left out.
    fn write(&self, memory: &GuestMemoryMmap, range: Range<u64>) -> Result<Written, SourceError> {
        let uid = self.directory.as_ref().and_then(|path| path.metadata().ok()).map_or(0, |root| root.uid());
        if uid != 0 && self.owner.is_none() {
            log::info!(
                "the root directory belongs to user {uid} in the guest, too; --chown root makes root the owner of all files"
            );
        }
        let (written, warnings) = self.pack(memory, range)?;
        warnings.iter().for_each(|warning| log::warn!("warning: {warning}"));
        Ok(written)
    }
}

impl RootfsSpec {
    /// Packs everything. Returns warnings for what is left out.
    fn pack(&self, memory: &GuestMemoryMmap, range: Range<u64>) -> Result<(Written, Vec<String>), Error> {
        let mut walk = Walk::new(Archive::new(memory, range, self.below.as_deref()), self.owner);
        // Linux opens the console for the first process before that can create it.
        walk.archive.directory(b".", 0o755);
        walk.archive.directory(b"dev", 0o755);
        walk.archive.add(b"dev/console", Header { rdev: CONSOLE, ..Header::new(libc::S_IFCHR | 0o600) }, b"");
        match &self.directory {
            Some(path) if path.is_dir() || !path.exists() => walk.tree(path, b"", u64::MAX)?,
            Some(path) => walk.tarball(path)?,
            None => {}
        }
        let mut libraries = Vec::new();
        for overlay in &self.overlays {
            let max_len = if overlay.strip { elf::loaded_len(&overlay.host) } else { None };
            let target = overlay.target(&mut walk.archive);
            walk.tree(&overlay.host, &target, max_len.unwrap_or(u64::MAX))?;
            if overlay.with_libraries {
                libraries.extend(libraries_of(&overlay.host)?.into_iter().flat_map(Linked::files));
            }
        }
        libraries.sort();
        libraries.dedup();
        for library in &libraries {
            walk.tree(library, &normalize(library), u64::MAX)?;
        }
        for NewFile { guest, mode, content } in &self.files {
            let name = walk.archive.create_parents(&normalize(guest));
            walk.archive.new_file(&name, *mode, content);
        }
        Ok(walk.finish())
    }
}

impl Overlay {
    /// Puts `host` at the path `guest`.
    pub fn new(host: impl Into<PathBuf>, guest: impl Into<PathBuf>) -> Self {
        Self { host: host.into(), guest: guest.into(), strip: false, with_libraries: false }
    }

    /// The name in `archive`. A file goes into `guest` if that is a directory there or ends with a slash, as with
    /// cp(1).
    fn target(&self, archive: &mut Archive<'_>) -> Vec<u8> {
        let name = normalize(&self.guest);
        let into = self.guest.as_os_str().as_bytes().ends_with(b"/") || archive.resolve(b"", &name).is_some();
        match self.host.file_name() {
            Some(file) if into && self.host.is_file() => normalize(&self.guest.join(file)),
            _ => name,
        }
    }
}

/// `path` relative to the root, without `.` and `..`.
fn normalize(path: &Path) -> Vec<u8> {
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

#[cfg(test)]
mod tests;
