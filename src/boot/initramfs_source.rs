//! An initramfs archive that is generated straight into guest memory.

use std::fmt;
use std::ops::Range;

use vm_memory::GuestMemoryMmap;

use super::error::{ByteSize, Error};
use super::layout::PAGE_SIZE;
use super::round_up_memory;

/// Generates an initramfs archive (cpio, "newc" format) in guest memory, without a file.
pub trait InitramfsSource: fmt::Debug {
    /// What the archive is made from, for messages.
    fn name(&self) -> String;

    /// Writes the archive to the guest-physical addresses `range`, from its start on. If the archive is longer, the
    /// rest of it is only measured; the caller reports the memory that is needed.
    ///
    /// # Errors
    ///
    /// The archive cannot be generated. A lack of memory is not an error here.
    fn write(&self, memory: &GuestMemoryMmap, range: Range<u64>) -> Result<Written, SourceError>;
}

/// Why an [`InitramfsSource`] cannot generate its archive.
pub type SourceError = Box<dyn std::error::Error + Send + Sync>;

/// An archive that an [`InitramfsSource`] has written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Written {
    /// Length of the archive in bytes.
    pub len: u64,
    /// Approximate number of bytes that its files take after the kernel has unpacked it.
    pub unpacked: u64,
    /// Number of entries; each takes an inode or a link.
    pub entries: u64,
}

/// RAM that Linux and its first programs need besides the files.
const WORKING_RAM: u64 = 48 << 20;

impl Written {
    /// Checks that this archive fits in `range`, and that the `ram` of the guest is enough to unpack it: until that is
    /// done, the archive and its files are both in RAM. With more RAM, `range` could end at `max_end`.
    pub(super) fn check_fit(&self, name: &str, ram: u64, range: &Range<u64>, max_end: u64) -> Result<(), Error> {
        let end = range.start.saturating_add(self.len);
        let needed = end.saturating_add(self.unpacked).saturating_add(WORKING_RAM);
        let files = ByteSize(self.unpacked);
        if end <= range.end && needed <= ram {
            Ok(())
        } else if end > max_end {
            let max = ByteSize(max_end.saturating_sub(range.start));
            let sizes = format!("its files take {files}, and this kernel takes {max} at most");
            Err(Error::InitramfsSource(format!("'{name}' is too large to be an initramfs: {sizes}").into()))
        } else {
            let (ram, needed, suggestion) = (ByteSize(ram), ByteSize(needed), ByteSize(round_up_memory(needed)));
            let why = format!(" for '{name}': its files take {files}, and {needed} are needed until they are unpacked");
            Err(Error::NoRoom { ram, why, needed, suggestion })
        }
    }

    /// Whether the files fit in the tmpfs of a guest with `free` bytes of free RAM. Linux limits a tmpfs to half of the
    /// RAM that is free when it is mounted, and to one inode for each page of that half.
    pub(super) fn fits_tmpfs(&self, free: u64) -> bool {
        self.unpacked.max(self.entries.saturating_mul(PAGE_SIZE)) <= free / 2 - free / 16
    }
}
