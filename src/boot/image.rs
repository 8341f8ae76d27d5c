//! What a guest starts from: a kernel image, where it lies in guest memory, and how it is entered.

use std::fmt;
use std::path::PathBuf;

use linux_loader::loader::bootparam::setup_header;
use vm_memory::GuestAddress;

use super::input_file::InputFile;

/// The code that a guest starts with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Image {
    /// A kernel file.
    File(PathBuf),
    /// Machine code that is copied to 1 MiB and entered there in 64-bit mode.
    Raw(&'static [u8]),
}

/// How the guest is entered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// Linux/x86 boot protocol, 64-bit entry of a bzImage (Documentation/arch/x86/boot.rst).
    BzImage,
    /// Linux/x86 boot protocol, entry point of an uncompressed 64-bit ELF image.
    Elf,
    /// PVH: 32-bit entry point, named by an ELF note (Xen, docs/misc/pvh.pandoc).
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

/// How a loaded guest starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The boot protocol, which decides the processor's mode.
    pub protocol: Protocol,
    /// The address of the first instruction.
    pub address: GuestAddress,
    /// Whether the image is certainly Linux.
    pub is_linux: bool,
    /// The protocol's data: the zero page (passed in RSI) or PVH's start info (passed in RBX).
    pub boot_data: GuestAddress,
}

/// A kernel file whose headers are checked. It is not in guest memory yet.
#[derive(Debug)]
pub(super) struct Kernel {
    pub file: InputFile,
    pub entry: u64,
    pub protocol: Protocol,
    /// The end of the memory that the kernel uses before it manages memory itself.
    pub end: u64,
    /// The end of the memory in which the kernel accepts an initramfs.
    pub initramfs_end: u64,
    /// The longest command line that the kernel takes, in bytes without the NUL.
    pub cmdline_max: usize,
    /// The setup header of a bzImage.
    pub setup: Option<setup_header>,
    /// Whether the image is certainly Linux: a bzImage, or an ELF file with a note of Linux.
    pub is_linux: bool,
}

/// `COMMAND_LINE_SIZE` of x86 without the NUL, for images that do not state it (arch/x86/include/asm/setup.h).
pub(super) const CMDLINE_MAX: usize = 2047;
