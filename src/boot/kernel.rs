//! Detects the format of a kernel file from its content, has its headers checked, and loads it.

use std::path::Path;

use linux_loader::loader::{BzImage, Elf, KernelLoader};
use vm_memory::{GuestAddress, GuestMemoryMmap};

use super::error::Error;
use super::image::{Kernel, Protocol};
use super::input_file::InputFile;
use super::{bzimage, elf};

impl Kernel {
    /// Opens the kernel at `path` and checks its headers.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let file = InputFile::open(path, "kernel")?;
        let magic: [u8; 4] = file.peek(0)?;
        let setup_magic: [u8; 4] = file.peek(bzimage::MAGIC_OFFSET)?;
        match (&magic, &setup_magic) {
            (b"\x7fELF", _) => elf::inspect(file),
            (_, b"HdrS") => bzimage::inspect(file),
            ([0x1f, 0x8b, ..], _) => Err(file.unusable("it is gzip-compressed; unpack it first (gunzip)")),
            (b"\x28\xb5\x2f\xfd", _) => Err(file.unusable("it is zstd-compressed; unpack it first (unzstd)")),
            (b"\xfd7zX", _) => Err(file.unusable("it is xz-compressed; unpack it first (unxz)")),
            _ => Err(file.unusable("it is neither a bzImage nor an ELF image")),
        }
    }

    /// Copies the kernel into guest memory: the protected-mode code of a bzImage, or the segments of an ELF image.
    pub fn load(&mut self, memory: &GuestMemoryMmap) -> Result<(), Error> {
        let file = &mut self.file.file;
        let loaded = match self.protocol {
            Protocol::BzImage => BzImage::load(memory, Some(GuestAddress(self.entry - bzimage::ENTRY_64)), file, None),
            // With an offset, the loader does not parse the notes. `elf::inspect` has done so, and limits their size.
            Protocol::Elf | Protocol::Pvh => Elf::load(memory, Some(GuestAddress(0)), file, None),
        };
        loaded.map(drop).map_err(|error| self.file.unusable(error.to_string()))
    }
}
