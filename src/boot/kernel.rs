//! Detects the format of a kernel file from its content, has its headers checked, and loads it.

use std::path::Path;

use linux_loader::loader::{BzImage, Elf, KernelLoader};
use vm_memory::{GuestAddress, GuestMemoryMmap};

use super::decompress::Compression;
use super::error::Error;
use super::image::{Kernel, Protocol};
use super::input_file::InputFile;
use super::{bzimage, elf};

/// Files that are mistaken for kernels of this machine: offset and value of the magic number, and what the file is.
const OTHERS: [(usize, &[u8], &str); 10] = [
    (0, b"BZh", "it is bzip2-compressed; unpack it first (bunzip2)"),
    (0, b"\x5d\0\0", "it is lzma-compressed; unpack it first (unlzma)"),
    (0, b"\x89LZO", "it is lzo-compressed; unpack it first (lzop -d)"),
    (0, b"!<arch>\n", "it is a Debian package; unpack it (dpkg -x FILE DIR) and give the directory"),
    (0, b"\xed\xab\xee\xdb", "it is an RPM package; unpack it (rpm2cpio FILE | cpio -id) and give the directory"),
    (0, b"\x27\x05\x19\x56", "it is a U-Boot image (uImage), which is not for x86-64"),
    (56, b"ARM\x64", "it is an arm64 kernel, not one for x86-64"),
    (56, b"RSC\x05", "it is a RISC-V kernel, not one for x86-64"),
    (4, b"zimg", "it is a compressed EFI kernel (zboot), which is not for x86-64"),
    (
        0,
        b"MZ",
        "it is an EFI program and no bzImage; a unified kernel image (UKI) contains a kernel \
         (objcopy -O binary --only-section=.linux FILE vmlinuz)",
    ),
];

impl Kernel {
    /// Opens the kernel at `path`, decompresses it if necessary, and checks its headers.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let mut file = InputFile::open(path, "kernel")?;
        if let Some(compression) = Compression::detect(&file.peek::<6>(0)?) {
            file = file.decompressed(compression)?;
        }
        let start: [u8; 64] = file.peek(0)?;
        if start.starts_with(b"\x7fELF") {
            return elf::inspect(file);
        }
        if file.peek(bzimage::MAGIC_OFFSET)? == *b"HdrS" {
            return bzimage::inspect(file);
        }
        let other = OTHERS.iter().find(|(at, magic, _)| start[*at..].starts_with(magic));
        Err(file.unusable(other.map_or("it is neither a bzImage nor an ELF image", |(_, _, what)| what)))
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
