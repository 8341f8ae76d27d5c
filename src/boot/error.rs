//! Why a guest cannot be loaded.

use std::fmt;
use std::path::PathBuf;

/// Why a guest cannot be loaded. Each message names the file and, where one is known, a remedy.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file cannot be opened or read, or its content does not fit its purpose.
    #[error("cannot {action} {role} '{path}': {why}")]
    File {
        /// "open", "read" or "use".
        action: &'static str,
        /// The purpose of the file: "kernel" or "initramfs".
        role: &'static str,
        /// The path as the user wrote it.
        path: PathBuf,
        /// The error of the operating system, or what is wrong with the content.
        why: String,
    },
    /// No option and no variable names a kernel, and the current directory is not in a build tree.
    #[error(
        "no kernel given: use --kernel with a file, a directory or 'host', set KICKVM_KERNEL, or start kickvm in a build \
         tree of Linux"
    )]
    NoKernel,
    /// An [`InitramfsSource`](super::InitramfsSource) failed, or its archive is too large for any amount of RAM.
    #[error(transparent)]
    InitramfsSource(super::SourceError),
    /// The guest has too little RAM.
    #[error("guest memory of {ram} is too small{why}; try --memory {suggestion}")]
    NoRoom {
        /// The RAM that counts: all, or that below 4 GiB.
        ram: ByteSize,
        /// The purpose and the figures.
        why: String,
        /// The RAM that is needed.
        needed: ByteSize,
        /// A sufficient amount of RAM.
        suggestion: ByteSize,
    },
    /// The command line is longer than the kernel accepts.
    #[error("the kernel command line has {len} bytes, but this kernel takes at most {max}")]
    CommandLine {
        /// Length in bytes.
        len: usize,
        /// Maximum length in bytes.
        max: usize,
    },
    /// A part of the user's command line has no effect, or puts other parameters out of effect.
    #[error("cannot use '{parameter}' on the kernel command line: {why}")]
    Parameter {
        /// The part.
        parameter: String,
        /// What is wrong with it.
        why: String,
    },
    /// A table does not fit in guest memory.
    #[error("cannot write boot data to guest memory: {0}")]
    Memory(#[from] vm_memory::GuestMemoryError),
}

/// A number of bytes. It is displayed rounded up, in a unit that `--memory` takes.
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
