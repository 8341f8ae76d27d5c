//! Detects the format of a kernel file from its content, and calls the code for that format.

use std::path::Path;

use vm_memory::GuestMemoryMmap;

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

    /// Copies the kernel into guest memory.
    pub fn load(&mut self, memory: &GuestMemoryMmap) -> Result<(), Error> {
        let loaded = match self.protocol {
            Protocol::BzImage => bzimage::load(self, memory),
            Protocol::Elf | Protocol::Pvh => elf::load(self, memory),
        };
        loaded.map(drop).map_err(|error| self.file.unusable(error.to_string()))
    }
}
