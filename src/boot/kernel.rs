//! Which kind of kernel a file holds, where it will lie, and how it is entered.

use std::fmt;
use std::path::Path;

use linux_loader::loader::bootparam::setup_header;
use vm_memory::{GuestAddress, GuestMemoryMmap};

use super::error::{Error, Role};
use super::source::Source;
use super::{bzimage, elf};

/// How the guest is entered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// Linux/x86 boot protocol, 64-bit entry of a bzImage (Documentation/arch/x86/boot.rst).
    BzImage,
    /// Linux/x86 boot protocol, entry point of an uncompressed 64-bit ELF image.
    Elf,
    /// PVH: 32-bit entry named by an ELF note (Xen, docs/misc/pvh.pandoc).
    Pvh,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::BzImage => "bzImage, 64-bit entry",
            Self::Elf => "ELF, 64-bit entry",
            Self::Pvh => "ELF, PVH entry",
        })
    }
}

/// A kernel that has been looked at but not loaded.
#[derive(Debug)]
pub(super) struct Kernel {
    pub source: Source,
    /// Where it is entered, and how.
    pub entry: u64,
    pub protocol: Protocol,
    /// The first address it does not need when it starts.
    pub end: u64,
    /// Highest address an initramfs may have.
    pub initramfs_max: u64,
    /// Longest command line without its NUL.
    pub cmdline_max: usize,
    /// The bzImage's header.
    pub setup: Option<setup_header>,
}

/// x86's `COMMAND_LINE_SIZE` without its NUL, for images that do not say (arch/x86/include/asm/setup.h).
pub(super) const CMDLINE_MAX: usize = 2047;

impl Kernel {
    /// Opens the image at `path` and finds out what it is.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let source = Source::open(path, Role::Kernel)?;
        let magic: [u8; 4] = source.peek(0)?;
        let setup_magic: [u8; 4] = source.peek(bzimage::MAGIC_OFFSET)?;
        match (&magic, &setup_magic) {
            (b"\x7fELF", _) => elf::inspect(source),
            (_, b"HdrS") => bzimage::inspect(source),
            ([0x1f, 0x8b, ..], _) => Err(source.bad("It is gzip-compressed; unpack it first (gunzip)")),
            (b"\x28\xb5\x2f\xfd", _) => Err(source.bad("It is zstd-compressed; unpack it first (unzstd)")),
            (b"\xfd7zX", _) => Err(source.bad("It is xz-compressed; unpack it first (unxz)")),
            _ => Err(source.bad("It is neither a bzImage nor an ELF image")),
        }
    }

    /// Copies the image into guest memory.
    pub fn load(&mut self, memory: &GuestMemoryMmap) -> Result<(), Error> {
        match self.protocol {
            Protocol::BzImage => bzimage::load(self, memory),
            Protocol::Elf | Protocol::Pvh => elf::load(self, memory),
        }
    }
}

/// How a loaded guest starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The boot protocol, which decides the processor's mode.
    pub protocol: Protocol,
    /// First instruction.
    pub address: GuestAddress,
    /// The protocol's data: the zero page (in RSI), or PVH's start info (in RBX).
    pub boot_data: GuestAddress,
}
