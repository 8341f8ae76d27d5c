//! What can be wrong with the files a guest is made of.

use std::fmt;
use std::io;
use std::path::PathBuf;

use crate::sys::os_error;

/// Why a guest could not be loaded. Each message names the file and says what would mend it where something would.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file cannot be opened or read.
    #[error("cannot {action} {role} '{path}': {}", os_error::describe(.source))]
    File {
        /// "open" or "read".
        action: &'static str,
        /// What the file is for.
        role: Role,
        /// As the user wrote it.
        path: PathBuf,
        /// The operating system's answer.
        source: io::Error,
    },
    /// A file cannot be what it is given as.
    #[error("cannot use {role} '{path}': {why}")]
    Content {
        /// What the file is for.
        role: Role,
        /// As the user wrote it.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The guest's RAM is too small for what has to be in it.
    #[error(
        "guest memory of {ram} is too small: kernel '{kernel}' needs {needed}, the initramfs {initramfs}; try --memory {suggestion}"
    )]
    NoRoom {
        /// RAM below 4 GiB, where both must be.
        ram: ByteSize,
        /// The kernel's file.
        kernel: PathBuf,
        /// RAM up to the end of the kernel.
        needed: ByteSize,
        /// Bytes of initramfs.
        initramfs: ByteSize,
        /// RAM that would do.
        suggestion: ByteSize,
    },
    /// What was to be packed cannot be.
    #[error("cannot pack '{path}': {}", os_error::describe(.source))]
    Pack {
        /// As the user wrote it.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// An executable needs a library that is nowhere.
    #[error("cannot find the library '{library}', which '{executable}' needs")]
    NoLibrary {
        /// As the user wrote it.
        executable: PathBuf,
        /// The name it asks for.
        library: String,
    },
    /// The guest's RAM is too small for the files that were packed.
    #[error(
        "guest memory of {ram} is too small for '{path}': its files take {files}, and {needed} are needed until they are unpacked; try --memory {suggestion}"
    )]
    NoRoomForRoot {
        /// All RAM.
        ram: ByteSize,
        /// The root directory.
        path: PathBuf,
        /// Bytes of its files.
        files: ByteSize,
        /// RAM that is needed.
        needed: ByteSize,
        /// RAM that would do.
        suggestion: ByteSize,
    },
    /// No guest's RAM is large enough for the files that were packed.
    #[error("'{path}' is too large to be an initramfs: its files take {files}, and this kernel takes {most} at most")]
    RootTooLarge {
        /// The root directory.
        path: PathBuf,
        /// Bytes of its files.
        files: ByteSize,
        /// Bytes an archive can have.
        most: ByteSize,
    },
    /// The command line is longer than the kernel can take.
    #[error("the kernel command line has {len} bytes, but this kernel takes at most {max}")]
    CommandLine {
        /// Bytes given.
        len: usize,
        /// Bytes the kernel takes.
        max: usize,
    },
    /// A table does not fit where it belongs.
    #[error("cannot write boot data to guest memory: {0}")]
    Memory(#[from] vm_memory::GuestMemoryError),
}

/// What a file is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// `--kernel`
    Kernel,
    /// `--initramfs`
    Initramfs,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kernel => "kernel",
            Self::Initramfs => "initramfs",
        })
    }
}

/// A number of bytes, shown rounded up in a unit that `--memory` takes too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ByteSize(pub u64);

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            bytes if bytes >= 1 << 30 && bytes % (1 << 30) == 0 => write!(f, "{}G", bytes >> 30),
            bytes if bytes >= 1 << 20 => write!(f, "{}M", bytes.div_ceil(1 << 20)),
            bytes => write!(f, "{}K", bytes.div_ceil(1 << 10)),
        }
    }
}
